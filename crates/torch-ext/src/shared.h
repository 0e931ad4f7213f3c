// What the C++ files of this crate share: how a tensor and an error cross to src/ffi.rs.
//
// A tensor crosses as torch-sys passes it: a pointer to an at::Tensor that its owner deletes. A fallible function
// returns a Status; the message of anything but OK is at torch_ext_last_error until the thread's next failure. No
// exception leaves a function of `extern "C"`.

#pragma once

#include <c10/core/Device.h>
#include <c10/util/Exception.h>

#include <stdexcept>
#include <string>

namespace torch_ext {

enum Status : int { OK = 0, TORCH = 1, ARGUMENT = 2 };

struct ArgumentError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

extern thread_local std::string last_error;

// The device of torch-sys's number.
c10::Device device_of(int number);

// Whether this is a CUDA device of a libtorch that reaches one; CUDA is then ready to be asked.
bool is_cuda_here(c10::Device device);

template <typename F>
int guarded(F &&f) noexcept {
  try {
    f();
    return OK;
  } catch (const ArgumentError &error) {
    last_error = error.what();
    return ARGUMENT;
  } catch (const c10::Error &error) {
    last_error = error.what_without_backtrace();
  } catch (const std::exception &error) {
    last_error = error.what();
  } catch (...) {
    last_error = "an exception of an unknown type";
  }
  return TORCH;
}

} // namespace torch_ext
