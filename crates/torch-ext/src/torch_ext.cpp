// What tch lacks of libtorch, as C functions for src/ffi.rs.

#include "autocast.h"
#include "shared.h"

#include <ATen/Context.h>
#include <ATen/DynamicLibrary.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/ivalue.h>
#include <ATen/cpu/Utils.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <torch/headeronly/version.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

static_assert(
    TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR == 11,
    "tch 0.24 and the declarations below are for libtorch 2.11; run `cargo xtask setup`");

#ifdef TORCH_EXT_CUDA
// Declared here because its header includes CUDA's own.
namespace at::cuda {
int warp_size();
} // namespace at::cuda

// libtorch finds CUDA by libtorch_cuda being loaded, and names none of its symbols. Neither does anything else in a
// program, so a linker that keeps only what is needed would drop the library and CUDA would silently be gone. This
// file is a whole part of every program that uses the crate (see build.rs), and this needs the library.
__attribute__((constructor)) static void need_libtorch_cuda() {
  int (*const volatile symbol)() = &at::cuda::warp_size;
  (void)symbol;
}
#endif

thread_local std::string torch_ext::last_error;

c10::Device torch_ext::device_of(int number) {
  switch (number) {
  case -1:
    return at::Device(at::kCPU);
  case -2:
    return at::Device(at::kMPS);
  case -3:
    return at::Device(at::kVulkan);
  default:
    return at::Device(at::kCUDA, static_cast<at::DeviceIndex>(number));
  }
}

bool torch_ext::is_cuda_here(c10::Device device) {
  if (!device.is_cuda() || !at::globalContext().hasCUDA())
    return false;
  at::globalContext().lazyInitDevice(at::kCUDA);
  return true;
}

using namespace torch_ext;

namespace {

using Tensors = const at::Tensor *const *;


std::string nth(const char *name, size_t i) { return std::string(name) + "[" + std::to_string(i) + "]"; }

std::vector<at::Tensor> list(const char *name, Tensors tensors, size_t count) {
  std::vector<at::Tensor> result;
  result.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    if (!tensors[i]->defined())
      throw ArgumentError(nth(name, i) + " is undefined");
    result.push_back(*tensors[i]);
  }
  return result;
}

// The fused kernels walk the memory of all their lists with the size of the parameter and check nothing on
// the CPU: whatever they get must have exactly the parameter's elements in exactly its order.
void check_params(const std::vector<at::Tensor> &params) {
  for (size_t i = 0; i < params.size(); ++i) {
    const auto &param = params[i];
    if (param.layout() != at::kStrided || !param.is_non_overlapping_and_dense())
      throw ArgumentError(nth("params", i) + " must be dense in memory, not a view with gaps");
    if (!param.is_floating_point())
      throw ArgumentError(nth("params", i) + " must be of floating point");
    if (param.device() != params[0].device() || param.scalar_type() != params[0].scalar_type())
      throw ArgumentError(nth("params", i) + " must be on the device and of the kind of params[0]");
  }
}

void check_like_param(const char *name, size_t i, const at::Tensor &tensor, const at::Tensor &param) {
  if (tensor.layout() != at::kStrided || tensor.sizes() != param.sizes() || tensor.device() != param.device() ||
      tensor.scalar_type() != param.scalar_type())
    throw ArgumentError(nth(name, i) + " must have the shape, kind and device of params[" + std::to_string(i) + "]");
}

void check_states(const char *name, const std::vector<at::Tensor> &states, const std::vector<at::Tensor> &params) {
  for (size_t i = 0; i < params.size(); ++i) {
    check_like_param(name, i, states[i], params[i]);
    if (states[i].strides() != params[i].strides())
      throw ArgumentError(nth(name, i) + " must have the strides of params[" + std::to_string(i) + "]");
  }
}

// Autograd gives gradients the strides of their parameters, but a gradient may come from elsewhere.
void match_gradients(std::vector<at::Tensor> &grads, const std::vector<at::Tensor> &params) {
  for (size_t i = 0; i < params.size(); ++i) {
    check_like_param("grads", i, grads[i], params[i]);
    if (grads[i].strides() != params[i].strides())
      grads[i] = at::empty_like(params[i]).copy_(grads[i]);
  }
}

void check_lr(const at::Tensor *lr) {
  if (lr && (!lr->defined() || lr->numel() != 1 || lr->scalar_type() != at::kFloat))
    throw ArgumentError("the learning rate must be one f32 number");
}

// Raises every step by one and returns one per parameter.
std::vector<at::Tensor> next_steps(const std::vector<at::Tensor> &steps, const std::vector<at::Tensor> &params) {
  for (size_t i = 0; i < steps.size(); ++i) {
    if (steps[i].numel() != 1 || steps[i].scalar_type() != at::kFloat || steps[i].layout() != at::kStrided ||
        steps[i].device() != params[0].device() || steps[i]._is_zerotensor())
      throw ArgumentError(nth("steps", i) + " must be one f32 number on the device of the parameters");
  }
  if (params[0].is_cpu()) {
    for (const auto &step : steps)
      *step.mutable_data_ptr<float>() += 1;
  } else {
    at::_foreach_add_(steps, 1);
  }
  return steps.size() == 1 ? std::vector<at::Tensor>(params.size(), steps[0]) : steps;
}

template <typename F>
F *function(at::DynamicLibrary &library, const char *name) {
  return reinterpret_cast<F *>(library.sym(name));
}

// Unlike contiguous(), this changes the strides of a tensor that is in both orders, which decide how libtorch computes.
at::Tensor to_channels_last(const at::Tensor &tensor) {
  return tensor.to(tensor.options(), /*non_blocking=*/false, /*copy=*/false, at::MemoryFormat::ChannelsLast);
}

using Clock = std::chrono::steady_clock;

// What operations of a thread took.
struct Profile {
  struct Op {
    uint64_t calls = 0;
    Clock::duration time{0};
  };

  at::CallbackHandle handle = 0;
  std::unordered_map<std::string, Op> ops;
  // The innermost operation that runs.
  struct Frame *innermost = nullptr;
};

struct Frame : at::ObserverContext {
  Clock::time_point begin;
  Clock::duration called{0};
  Frame *outer = nullptr;
};

thread_local std::unique_ptr<Profile> profile;

std::unique_ptr<at::ObserverContext> op_begins(const at::RecordFunction &) {
  auto frame = std::make_unique<Frame>();
  if (profile) {
    frame->outer = profile->innermost;
    profile->innermost = frame.get();
  }
  frame->begin = Clock::now();
  return frame;
}

void op_ends(const at::RecordFunction &op, at::ObserverContext *context) {
  const auto *const frame = static_cast<Frame *>(context);
  if (!profile)
    return;
  const auto time = Clock::now() - frame->begin;
  auto &entry = profile->ops[op.name()];
  ++entry.calls;
  entry.time += time - frame->called;
  profile->innermost = frame->outer;
  if (frame->outer)
    frame->outer->called += time;
}

} // namespace

extern "C" {

const char *torch_ext_last_error() noexcept { return torch_ext::last_error.c_str(); }

int torch_ext_fused_adamw(
    Tensors params_, Tensors grads_, Tensors exp_avgs_, Tensors exp_avg_sqs_, size_t count,
    Tensors steps_, size_t step_count, double lr, const at::Tensor *lr_tensor, double beta1, double beta2,
    double weight_decay, double eps) noexcept {
  return guarded([&] {
    if (count == 0)
      return;
    at::NoGradGuard no_grad;
    const auto params = list("params", params_, count);
    auto grads = list("grads", grads_, count);
    const auto exp_avgs = list("exp_avgs", exp_avgs_, count);
    const auto exp_avg_sqs = list("exp_avg_sqs", exp_avg_sqs_, count);
    check_params(params);
    match_gradients(grads, params);
    check_states("exp_avgs", exp_avgs, params);
    check_states("exp_avg_sqs", exp_avg_sqs, params);
    check_lr(lr_tensor);
    const auto steps = next_steps(list("steps", steps_, step_count), params);
    const auto step = [&](const auto &rate) {
      at::_fused_adamw_(
          params, grads, exp_avgs, exp_avg_sqs, {}, steps, rate, beta1, beta2, weight_decay, eps, false, false);
    };
    if (lr_tensor)
      step(*lr_tensor);
    else
      step(lr);
  });
}

int torch_ext_fused_sgd(
    Tensors params_, Tensors grads_, size_t count, Tensors buffers_, size_t buffer_count, double lr,
    const at::Tensor *lr_tensor, double momentum, double weight_decay, bool nesterov, bool first_step) noexcept {
  return guarded([&] {
    if (count == 0)
      return;
    at::NoGradGuard no_grad;
    const auto params = list("params", params_, count);
    auto grads = list("grads", grads_, count);
    const auto buffers = list("momentum_buffers", buffers_, buffer_count);
    check_params(params);
    match_gradients(grads, params);
    if (!buffers.empty())
      check_states("momentum_buffers", buffers, params);
    check_lr(lr_tensor);
    const auto step = [&](const auto &rate) {
      at::_fused_sgd_(params, grads, buffers, weight_decay, momentum, rate, 0.0, nesterov, false, first_step);
    };
    if (lr_tensor)
      step(*lr_tensor);
    else
      step(lr);
  });
}

int torch_ext_foreach_norm(Tensors tensors, size_t count, double ord, at::Tensor **norms) noexcept {
  return guarded([&] {
    if (count == 0)
      return;
    at::NoGradGuard no_grad;
    auto result = at::_foreach_norm(list("tensors", tensors, count), ord);
    for (size_t i = 0; i < count; ++i)
      norms[i] = new at::Tensor(std::move(result[i]));
  });
}

int torch_ext_foreach_mul_scalar(Tensors tensors, size_t count, double factor) noexcept {
  return guarded([&] {
    if (count == 0)
      return;
    at::NoGradGuard no_grad;
    at::_foreach_mul_(list("tensors", tensors, count), factor);
  });
}

int torch_ext_foreach_add(Tensors tensors, Tensors others, size_t count, double alpha) noexcept {
  return guarded([&] {
    if (count == 0)
      return;
    at::NoGradGuard no_grad;
    at::_foreach_add_(list("tensors", tensors, count), list("others", others, count), alpha);
  });
}

int torch_ext_foreach_lerp(Tensors tensors, Tensors ends, size_t count, double weight) noexcept {
  return guarded([&] {
    if (count == 0)
      return;
    at::NoGradGuard no_grad;
    at::_foreach_lerp_(list("tensors", tensors, count), list("ends", ends, count), weight);
  });
}

// A null gradient takes a tensor's away.
int torch_ext_set_grads(Tensors tensors, Tensors grads, size_t count) noexcept {
  return guarded([&] {
    const auto all = list("tensors", tensors, count);
    for (size_t i = 0; i < count; ++i)
      all[i].mutable_grad() = grads[i] ? *grads[i] : at::Tensor();
  });
}

int torch_ext_clip_grad_norm(Tensors grads_, size_t count, double max_norm, at::Tensor **norm) noexcept {
  return guarded([&] {
    at::NoGradGuard no_grad;
    if (count == 0) {
      *norm = new at::Tensor(at::zeros({}, at::kFloat));
      return;
    }
    const auto grads = list("grads", grads_, count);
    auto total = at::linalg_vector_norm(at::stack(at::_foreach_norm(grads, 2)), 2);
    const auto factor = (max_norm / (total + 1e-6)).clamp_max(1.0);
    // On the CPU the factor can be looked at for nothing, and multiplying by one is a pass over all
    // gradients.
    if (!factor.is_cpu() || factor.item<double>() != 1.0)
      at::_foreach_mul_(grads, factor);
    *norm = new at::Tensor(std::move(total));
  });
}

int torch_ext_channels_last(const at::Tensor *tensor, at::Tensor **result) noexcept {
  return guarded([&] {
    *result = new at::Tensor(to_channels_last(*tensor));
  });
}

int torch_ext_is_channels_last(const at::Tensor *tensor, bool *result) noexcept {
  return guarded([&] { *result = tensor->is_contiguous(at::MemoryFormat::ChannelsLast); });
}

// `dtype` and `old_dtype` are numbers of at::ScalarType.
int torch_ext_autocast_enter(int device, bool enabled, int dtype, bool *old_enabled, int *old_dtype) noexcept {
  return guarded([&] {
    const auto type = device_of(device).type();
    const auto new_dtype = static_cast<at::ScalarType>(dtype);
    *old_enabled = at::autocast::is_autocast_enabled(type);
    const auto before = at::autocast::get_autocast_dtype(type);
    *old_dtype = static_cast<int>(before);
    if (enabled) {
      // The cache finds a weight's cast by the weight alone, whatever it was cast to.
      if (before != new_dtype)
        at::autocast::clear_cache();
      at::autocast::set_autocast_dtype(type, new_dtype);
    }
    at::autocast::set_autocast_enabled(type, enabled);
    at::autocast::increment_nesting();
  });
}

int torch_ext_autocast_leave(int device, bool old_enabled, int old_dtype) noexcept {
  return guarded([&] {
    const auto type = device_of(device).type();
    const auto dtype = static_cast<at::ScalarType>(old_dtype);
    if (at::autocast::decrement_nesting() == 0 || at::autocast::get_autocast_dtype(type) != dtype)
      at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(type, old_enabled);
    at::autocast::set_autocast_dtype(type, dtype);
  });
}

int torch_ext_set_switch(int which, bool on) noexcept {
  return guarded([&] {
    auto &context = at::globalContext();
    switch (which) {
    case 0:
      return context.setDeterministicCuDNN(on);
    case 1:
      return context.setBenchmarkCuDNN(on);
    case 2:
      return context.setAllowTF32CuBLAS(on);
    case 3:
      return context.setAllowTF32CuDNN(on);
    case 4:
      return context.setDeterministicFillUninitializedMemory(on);
    default:
      throw ArgumentError("no switch has this number");
    }
  });
}

int torch_ext_get_switch(int which, bool *on) noexcept {
  return guarded([&] {
    const auto &context = at::globalContext();
    switch (which) {
    case 0:
      *on = context.deterministicCuDNN();
      break;
    case 1:
      *on = context.benchmarkCuDNN();
      break;
    case 2:
      *on = context.allowTF32CuBLAS();
      break;
    case 3:
      *on = context.allowTF32CuDNN();
      break;
    case 4:
      *on = context.deterministicFillUninitializedMemory();
      break;
    default:
      throw ArgumentError("no switch has this number");
    }
  });
}

int torch_ext_set_deterministic(bool on, bool warn_only) noexcept {
  return guarded([&] { at::globalContext().setDeterministicAlgorithms(on, warn_only); });
}

int torch_ext_get_deterministic(bool *on, bool *warn_only) noexcept {
  return guarded([&] {
    *on = at::globalContext().deterministicAlgorithms();
    *warn_only = at::globalContext().deterministicAlgorithmsWarnOnly();
  });
}

// 0 is the highest precision, 2 the lowest.
int torch_ext_set_matmul_precision(int precision) noexcept {
  return guarded([&] {
    const char *const names[] = {"highest", "high", "medium"};
    at::globalContext().setFloat32MatmulPrecision(names[precision]);
  });
}

int torch_ext_get_matmul_precision(int *precision) noexcept {
  return guarded([&] {
    switch (at::globalContext().float32MatmulPrecision()) {
    case at::Float32MatmulPrecision::HIGHEST:
      *precision = 0;
      break;
    case at::Float32MatmulPrecision::HIGH:
      *precision = 1;
      break;
    case at::Float32MatmulPrecision::MEDIUM:
      *precision = 2;
      break;
    }
  });
}

// `stats`: bytes allocated, reserved, and the peaks of both.
int torch_ext_memory_stats(int device, bool *found, int64_t *stats) noexcept {
  return guarded([&] {
    const auto of = device_of(device);
    *found = is_cuda_here(of);
    if (!*found)
      return;
    const auto all = c10::getDeviceAllocator(at::kCUDA)->getDeviceStats(of.index());
    const auto sum = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    stats[0] = all.allocated_bytes[sum].current;
    stats[1] = all.reserved_bytes[sum].current;
    stats[2] = all.allocated_bytes[sum].peak;
    stats[3] = all.reserved_bytes[sum].peak;
  });
}

int torch_ext_memory_info(int device, bool *found, size_t *free, size_t *total) noexcept {
  return guarded([&] {
    const auto of = device_of(device);
    *found = is_cuda_here(of);
    if (*found)
      std::tie(*free, *total) = c10::getDeviceAllocator(at::kCUDA)->getMemoryInfo(of.index());
  });
}

int torch_ext_reset_peak(int device) noexcept {
  return guarded([&] {
    const auto of = device_of(device);
    if (is_cuda_here(of))
      c10::getDeviceAllocator(at::kCUDA)->resetPeakStats(of.index());
  });
}

int torch_ext_empty_cache() noexcept {
  return guarded([&] {
    if (!at::globalContext().hasCUDA())
      return;
    auto *const allocator = c10::getDeviceAllocator(at::kCUDA);
    if (allocator->initialized())
      allocator->emptyCache();
  });
}

int torch_ext_profile_start() noexcept {
  return guarded([&] {
    if (profile)
      throw ArgumentError("this thread is measured already");
    profile = std::make_unique<Profile>();
    profile->handle = at::addThreadLocalCallback(
        at::RecordFunctionCallback(op_begins, op_ends)
            .scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION, at::RecordScope::USER_SCOPE}));
  });
}

int torch_ext_profile_read(
    void *into, void (*add)(void *into, const char *name, uint64_t calls, uint64_t nanoseconds)) noexcept {
  return guarded([&] {
    for (const auto &[name, op] : profile->ops)
      add(into, name.c_str(), op.calls, std::chrono::nanoseconds(op.time).count());
  });
}

int torch_ext_profile_stop() noexcept {
  return guarded([&] {
    at::removeCallback(profile->handle);
    profile.reset();
  });
}

int torch_ext_supports_bf16(int device, bool *supported) noexcept {
  return guarded([&] {
    const auto of = device_of(device);
    *supported = false;
    if (is_cuda_here(of)) {
      // libtorch asks the current card.
      const c10::DeviceGuard current(of);
      *supported = at::detail::getCUDAHooks().supportsBFloat16ConvolutionWithCuDNNv8();
    } else if (of.is_cpu()) {
      const auto capabilities = at::cpu::get_cpu_capabilities();
      for (const char *name : {"avx512_bf16", "amx_bf16", "bf16"}) {
        const auto entry = capabilities.find(name);
        *supported |= entry != capabilities.end() && entry->second.isBool() && entry->second.toBool();
      }
    }
  });
}

// `name` and `driver`: `size` bytes each for texts that end with a zero; an empty driver is not known.
int torch_ext_card(int device, bool *found, char *name, char *driver, int size) noexcept {
  return guarded([&] {
    const auto of = device_of(device);
    *found = is_cuda_here(of);
    if (!*found)
      return;
    // libcuda counts cards as libtorch does; nvidia-smi and NVML know nothing of CUDA_VISIBLE_DEVICES.
    name[0] = driver[0] = 0;
    at::DynamicLibrary cuda("libcuda.so.1", nullptr, /*leak_handle=*/true);
    int card = 0;
    if (function<int(int *, int)>(cuda, "cuDeviceGet")(&card, of.index()) != 0 ||
        function<int(char *, int, int)>(cuda, "cuDeviceGetName")(name, size, card) != 0)
      throw ArgumentError("there is no CUDA device " + std::to_string(of.index()));
    // All cards have one driver.
    try {
      at::DynamicLibrary nvml("libnvidia-ml.so.1", nullptr, /*leak_handle=*/true);
      if (function<int()>(nvml, "nvmlInit_v2")() != 0)
        return;
      if (function<int(char *, unsigned)>(nvml, "nvmlSystemGetDriverVersion")(driver, size) != 0)
        driver[0] = 0;
      function<int()>(nvml, "nvmlShutdown")();
    } catch (const c10::Error &) {
      // A container may leave the library out.
    }
  });
}

} // extern "C"
