// Sums over processes with a card each: NCCL of whichever libtorch_cuda the process has loaded.

#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <chrono>

namespace torch_ext {

class Nccl {
 public:
  // What the first process makes and the others are told.
  using Id = std::array<char, 128>;

  static bool is_there();
  static Id make_id();

  // All processes at once.
  Nccl(const Id &id, int rank, int size, c10::Device device, std::chrono::milliseconds timeout);
  ~Nccl();
  Nccl(const Nccl &) = delete;
  Nccl &operator=(const Nccl &) = delete;

  // Makes a contiguous tensor on the card the sum of those of all processes, and waits for it.
  void sum(const at::Tensor &flat) const;

 private:
  c10::Device device_;
  std::chrono::milliseconds timeout_;
  void *communicator_;
};

} // namespace torch_ext
