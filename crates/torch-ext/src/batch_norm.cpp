// Batch norm over the images of several processes, as Ioffe & Szegedy's (arXiv:1502.03167) of all of them is: sums over
// each process's images are added up in the forward and in the backward pass.

#include "shared.h"
#include "together.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/batch_norm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <torch/csrc/autograd/custom_function.h>

#include <vector>

using namespace torch_ext;
using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace torch_ext {

thread_local SharedBatch shared_batch;

int64_t SharedBatch::sum(Tensor &sums, int64_t values) const {
  if (!processes)
    return values;
  const auto count = at::full({1}, static_cast<double>(values), sums.options());
  const auto all = at::cat({sums.flatten(), count});
  if (!counts)
    all.zero_();
  processes->sum(all);
  sums = all.narrow(0, 0, sums.numel()).view(sums.sizes());
  return static_cast<int64_t>(all[-1].item<double>());
}

} // namespace torch_ext

namespace {

// Two sums over all but the channels, [2, C] in f64.
Tensor channel_sums(const Tensor &one, const Tensor &other) {
  const std::vector<int64_t> rest{0, 2, 3};
  return at::stack({one.sum(rest, false, at::kDouble), other.sum(rest, false, at::kDouble)});
}

// [C] beside maps.
Tensor wide(const Tensor &channels) { return channels.view({1, -1, 1, 1}); }

struct SharedBatchNorm : torch::autograd::Function<SharedBatchNorm> {
  static Tensor forward(
      AutogradContext *context, const Tensor &maps, const Tensor &weight, const Tensor &bias,
      const Tensor &running_mean, const Tensor &running_var, double momentum, double eps) {
    const SharedBatch batch = shared_batch;
    const auto x = maps.to(at::kFloat);
    // The differences from a mean that is nearly right are small, and so is what their squares lose.
    const auto apart = x - wide(running_mean);
    auto sums = channel_sums(apart, apart * apart);
    const int64_t values = batch.sum(sums, maps.numel() / maps.size(1));
    if (values < 2)
      throw ArgumentError("batch norm: one value per channel has no variance to train with");
    sums = sums / values;
    const auto mean = (running_mean + sums[0]).to(at::kFloat);
    const auto biased = (sums[1] - sums[0] * sums[0]).clamp_min(0);
    const auto inverse = (biased + eps).rsqrt().to(at::kFloat);
    running_mean.lerp_(mean, momentum);
    running_var.lerp_((biased * (static_cast<double>(values) / (values - 1))).to(at::kFloat), momentum);
    context->save_for_backward({maps, weight, mean, inverse});
    context->saved_data["processes"] = c10::IValue::make_capsule(batch.processes);
    context->saved_data["counts"] = batch.counts;
    context->saved_data["values"] = values;
    return ((x - wide(mean)) * wide(inverse * weight) + wide(bias)).to(maps.scalar_type());
  }

  static variable_list backward(AutogradContext *context, const variable_list &grads) {
    const auto saved = context->get_saved_variables();
    const auto &maps = saved[0], &weight = saved[1], &mean = saved[2], &inverse = saved[3];
    const SharedBatch batch{
        c10::static_intrusive_pointer_cast<Together>(context->saved_data["processes"].toCapsule()),
        context->saved_data["counts"].toBool()};
    const auto grad = grads[0].to(at::kFloat);
    const auto normal = (maps.to(at::kFloat) - wide(mean)) * wide(inverse);
    auto sums = channel_sums(grad, grad * normal);
    // Those of the weights are added up with all others.
    const auto grad_bias = sums[0].to(at::kFloat), grad_weight = sums[1].to(at::kFloat);
    batch.sum(sums, 0);
    const auto means = (sums / context->saved_data["values"].toInt()).to(at::kFloat);
    auto out = (grad - wide(means[0]) - normal * wide(means[1])) * wide(inverse * weight);
    if (!batch.counts)
      out.zero_();
    return {out.to(maps.scalar_type()), grad_weight, grad_bias, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

} // namespace

extern "C" {

// In training, over the images of all processes where batch norm is shared.
int torch_ext_batch_norm(
    const Tensor *maps, const Tensor *weight, const Tensor *bias, const Tensor *running_mean, const Tensor *running_var,
    bool train, double momentum, double eps, Tensor **result) noexcept {
  return guarded([&] {
    if (!train || !shared_batch.processes) {
      *result = new Tensor(at::batch_norm(
          *maps, *weight, *bias, *running_mean, *running_var, train, momentum, eps, /*cudnn_enabled=*/true));
      return;
    }
    if (maps->dim() != 4)
      throw ArgumentError("batch norm: maps must be [B, C, H, W]");
    for (const Tensor *tensor : {weight, bias, running_mean, running_var})
      if (tensor->scalar_type() != at::kFloat || tensor->sizes() != at::IntArrayRef({maps->size(1)}))
        throw ArgumentError("batch norm: weights and statistics must be [C], f32");
    *result = new Tensor(SharedBatchNorm::apply(
        *maps, *weight, *bias, *running_mean, *running_var, momentum, eps));
  });
}

} // extern "C"
