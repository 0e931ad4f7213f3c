// What operations of our own on the CPU share: which kernels there are, and threads to run them on.

#pragma once

#include "autocast.h"
#include "kernels/kernels.h"
#include "shared.h"

#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/Version.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <optional>

namespace torch_ext {

using at::Tensor;

// The widest instructions that this machine has and ATEN_CPU_CAPABILITY, libtorch's own variable, allows.
inline const Kernels &kernels() {
  static const Kernels &chosen = []() -> const Kernels & {
#if defined(__x86_64__)
    const std::string allowed = at::get_cpu_capability();
    if (allowed == "AVX512")
      return __builtin_cpu_supports("avx512bf16") ? kernels_avx512_bf16 : kernels_avx512;
    if (allowed == "AVX2")
      return kernels_avx2;
#endif
    return kernels_plain;
  }();
  return chosen;
}

// Calls f(begin, end) for ranges that cover [0, count), on libtorch's threads if there are `grain` of them or more.
//
// A tensor iterator shares its elements among the threads; that of a compiler with OpenMP would start others beside
// them. The elements are places only, nothing is read or written there.
template <class F>
void parallel(int64_t count, int64_t grain, const F &f) {
  if (count <= std::max<int64_t>(grain, 1) || at::get_num_threads() == 1 || at::in_parallel_region())
    return f(int64_t{0}, count);
  char *const origin = reinterpret_cast<char *>(uintptr_t{64});
  auto places = at::from_blob(origin, {count}, at::kByte);
  auto iterator = at::TensorIteratorConfig().add_output(places).add_input(places).build();
  iterator.for_each(
      [&](char **data, const int64_t *, int64_t n) {
        const int64_t begin = data[0] - origin;
        f(begin, begin + n);
      },
      std::max<int64_t>(grain, 1));
}

// No kernel computes in f16, whether that is a tensor's kind or autocast's.
inline bool is_fast(const Tensor &tensor) {
  return tensor.is_cpu() && autocast_kind().value_or(at::kBFloat16) == at::kBFloat16 && tensor.layout() == at::kStrided &&
         (tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16);
}

// The f32 numbers of a tensor, or null for none.
inline const float *numbers(const Tensor &tensor) { return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr; }

inline std::optional<Tensor> optional(const Tensor *tensor) {
  return tensor ? std::optional<Tensor>(*tensor) : std::nullopt;
}

inline void require(bool condition, const char *problem) {
  if (!condition)
    throw ArgumentError(problem);
}

// For a gradient that autograd cannot see into: asked for one to differentiate again, it would leave out terms and say
// nothing. Autograd records a backward pass in that case alone.
inline void require_first_derivative(const char *problem) { require(!c10::GradMode::is_enabled(), problem); }

// A function's answer. Where no gradients are asked for, nothing is kept for any.
template <class Function, class... Arguments>
auto run(const Arguments &...arguments) {
  return c10::GradMode::is_enabled() ? Function::apply(arguments...) : Function::forward(nullptr, arguments...);
}

// Maps [images, channels, height, width] with the channels of a pixel beside each other in memory.
inline Tensor pixel_by_pixel(const Tensor &maps) { return maps.contiguous(at::MemoryFormat::ChannelsLast); }

} // namespace torch_ext
