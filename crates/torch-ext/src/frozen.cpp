// Weights that do not change for a while, kept as oneDNN's kernels for the CPU compute with them.
//
// libtorch's own convolutions and products bring weights into that order at every call, which for a batch of one takes as
// long as the rest. PyTorch's compiler keeps them by the operators that are called here, when a model is frozen.

#include "autocast.h"
#include "kernels/kernels.h"
#include "shared.h"

#include <ATen/Context.h>
#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mkldnn_reorder_conv2d_weight.h>
#include <ATen/Version.h>
#include <c10/core/GradMode.h>

#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

using namespace torch_ext;
using at::Tensor;

namespace {

struct Operators {
  c10::OperatorHandle convolution, linear, reorder_linear;
};

// PyTorch's compiler calls them by these names too; a libtorch without oneDNN has none.
const std::optional<Operators> &operators() {
  static const auto found = []() -> std::optional<Operators> {
    auto &all = c10::Dispatcher::singleton();
    const auto convolution = all.findSchema({"mkldnn::_convolution_pointwise", ""});
    const auto linear = all.findSchema({"mkldnn::_linear_pointwise", ""});
    const auto reorder = all.findSchema({"mkldnn::_reorder_linear_weight", ""});
    if (!at::globalContext().hasMKLDNN() || !convolution || !linear || !reorder)
      return std::nullopt;
    return Operators{*convolution, *linear, *reorder};
  }();
  return found;
}

// A weight and its bias as they were given, and as they are computed with.
struct Prepared {
  Tensor weight;
  uint32_t version = 0;
  at::ScalarType kind = at::kFloat;
  std::vector<int64_t> sizes;
  Tensor packed, bias;
};

struct Frozen {
  int depth = 0;
  // By the weight's address, which nobody else can have as long as it is kept here.
  std::unordered_map<const at::TensorImpl *, Prepared> prepared;
};

thread_local std::unique_ptr<Frozen> frozen;

at::ScalarType kind_for(const Tensor &x) { return autocast_kind().value_or(x.scalar_type()); }

// oneDNN computes in bf16 with AVX-512's instructions; f32 it computes with any.
bool computes_in(at::ScalarType kind) {
  return kind == at::kFloat || (kind == at::kBFloat16 && at::get_cpu_capability() == "AVX512");
}

bool is_usable(const Tensor &x) {
  return frozen && !c10::GradMode::is_enabled() && x.is_cpu() && x.layout() == at::kStrided &&
      (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16) && computes_in(kind_for(x)) &&
      at::globalContext().userEnabledMkldnn() && operators().has_value();
}

template <class F>
const Prepared &prepare(const Tensor &weight, const Tensor *bias, at::ScalarType kind, at::IntArrayRef sizes, F &&pack) {
  auto &entry = frozen->prepared[weight.unsafeGetTensorImpl()];
  // Nobody should have changed it, but it costs nothing to look.
  const auto version = weight.is_inference() ? 0 : weight._version();
  if (!entry.packed.defined() || entry.version != version || entry.kind != kind || entry.sizes != sizes) {
    entry = {weight, static_cast<uint32_t>(version), kind, sizes.vec(), pack(weight.detach().to(kind)), Tensor()};
    if (bias)
      entry.bias = bias->detach().to(kind);
  }
  return entry;
}

Tensor call(const c10::OperatorHandle &op, std::vector<c10::IValue> arguments) {
  op.callBoxed(&arguments);
  return arguments.at(0).toTensor();
}

c10::IValue optional(const Tensor &tensor) { return tensor.defined() ? c10::IValue(tensor) : c10::IValue(); }

c10::List<std::optional<at::Scalar>> no_scalars() { return c10::List<std::optional<at::Scalar>>(); }

} // namespace

extern "C" {

int torch_ext_freeze() noexcept {
  return guarded([] {
    if (!frozen)
      frozen = std::make_unique<Frozen>();
    ++frozen->depth;
  });
}

int torch_ext_thaw() noexcept {
  return guarded([] {
    if (frozen && --frozen->depth == 0)
      frozen.reset();
  });
}

int torch_ext_is_frozen(const Tensor *x, bool *result) noexcept {
  return guarded([&] { *result = is_usable(*x); });
}

int torch_ext_frozen_convolution(
    const Tensor *maps, const Tensor *weight, const Tensor *bias, int64_t stride, const int64_t *padding, int64_t groups,
    Tensor **result) noexcept {
  return guarded([&] {
    if (!is_usable(*maps) || maps->dim() != 4 || weight->dim() != 4)
      throw ArgumentError("a convolution of frozen weights takes maps [B, C, H, W], f32 or bf16 on the CPU");
    const auto kind = kind_for(*maps);
    const auto x = maps->to(kind).contiguous(at::MemoryFormat::ChannelsLast);
    const std::vector<int64_t> pad{padding[0], padding[1]}, strides{stride, stride}, dilation{1, 1};
    const auto &entry = prepare(*weight, bias, kind, x.sizes(), [&](const Tensor &plain) {
      return at::mkldnn_reorder_conv2d_weight(plain.contiguous().to_mkldnn(), pad, strides, dilation, groups, x.sizes());
    });
    *result = new Tensor(call(
        operators()->convolution,
        {x, entry.packed, optional(entry.bias), pad, strides, dilation, groups, "none", no_scalars(), c10::IValue()}));
  });
}

int torch_ext_frozen_linear(const Tensor *x, const Tensor *weight, const Tensor *bias, Tensor **result) noexcept {
  return guarded([&] {
    if (!is_usable(*x) || x->dim() < 1 || weight->dim() < 2)
      throw ArgumentError("a product with frozen weights takes f32 or bf16 on the CPU");
    const auto kind = kind_for(*x);
    // In f32 libtorch's product is as fast with a weight as it is.
    const auto &entry = prepare(*weight, bias, kind, {}, [&](const Tensor &plain) {
      const auto matrix = plain.flatten(1).contiguous();
      return kind == at::kFloat ? matrix : call(operators()->reorder_linear, {matrix, c10::IValue()});
    });
    const auto narrow = x->to(kind);
    if (kind == at::kFloat) {
      *result = new Tensor(at::linear(narrow, entry.packed, entry.bias));
    } else {
      *result = new Tensor(call(
          operators()->linear,
          {narrow.contiguous(), entry.packed, optional(entry.bias), "none", no_scalars(), c10::IValue()}));
    }
  });
}

} // extern "C"
