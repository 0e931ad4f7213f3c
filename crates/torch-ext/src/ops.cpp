// Operations of our own on the CPU, with their gradients: libtorch's tensors and autograd around src/kernels.

#include "ops.h"
#include "together.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <memory>
#include <mutex>

using namespace torch_ext;
using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

Element element(const Tensor &tensor) { return tensor.scalar_type() == at::kFloat ? Element::F32 : Element::BF16; }

// Two keys of a draw of dropout at a rate, by libtorch's generator.
int64_t draw_keys(double rate) {
  require(rate >= 0 && rate < 1, "dropout: the rate must be 0 or more and less than 1");
  if (rate == 0)
    return 0;
  auto generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard<std::mutex> lock(generator.mutex());
  return static_cast<int64_t>(at::check_generator<at::CPUGeneratorImpl>(generator)->random64());
}

Dropout dropout(double rate, int64_t keys, int64_t first) {
  Dropout result;
  if (rate > 0) {
    result.first = first;
    result.threshold = static_cast<uint32_t>(std::min(std::ceil(rate * 0x1p32), 0x1p32 - 1));
    result.scale = static_cast<float>(1 / (1 - rate));
    result.keys[0] = static_cast<uint32_t>(keys);
    result.keys[1] = static_cast<uint32_t>(keys >> 32);
  }
  return result;
}

Dropout saved_dropout(AutogradContext *context) {
  auto &data = context->saved_data;
  return dropout(data["rate"].toDouble(), data["keys"].toInt(), data["first"].toInt());
}

// Elements that are worth a thread's while, where each takes little.
constexpr int64_t BLOCK = 8192;

struct GeluFunction : torch::autograd::Function<GeluFunction> {
  static void run(bool backward, const GeluArgs &args, const Tensor &x) {
    const auto run = backward ? kernels().gelu_backward : kernels().gelu;
    const int64_t count = x.numel();
    parallel((count + BLOCK - 1) / BLOCK, 1, [&](int64_t begin, int64_t end) {
      run(element(x), args, begin * BLOCK, std::min(end * BLOCK, count));
    });
  }

  static Tensor
  forward(AutogradContext *context, const Tensor &input, int64_t form, double rate, int64_t keys, int64_t first) {
    RECORD_FUNCTION("torch_ext::gelu", {});
    const auto x = input.is_non_overlapping_and_dense() ? input : input.contiguous();
    auto out = at::empty_like(x);
    run(false, {Gelu(form), dropout(rate, keys, first), x.const_data_ptr(), nullptr, out.mutable_data_ptr()}, x);
    if (context) {
      context->save_for_backward({x});
      context->saved_data["form"] = form;
      context->saved_data["rate"] = rate;
      context->saved_data["keys"] = keys;
      context->saved_data["first"] = first;
    }
    return out;
  }

  static variable_list backward(AutogradContext *context, const variable_list &grads) {
    RECORD_FUNCTION("torch_ext::gelu_backward", {});
    const auto x = context->get_saved_variables()[0];
    auto grad = grads[0].to(x.scalar_type());
    if (grad.strides() != x.strides())
      grad = at::empty_like(x).copy_(grad);
    auto out = at::empty_like(x);
    const auto drop = saved_dropout(context);
    run(true,
        {Gelu(context->saved_data["form"].toInt()), drop, x.const_data_ptr(), grad.const_data_ptr(),
         out.mutable_data_ptr()},
        x);
    return {out, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

// Heads of `tensor` [B, N, .. ] from its channel `first` on.
AttentionArgs::Heads heads_in(const Tensor &tensor, int64_t first, int64_t channels) {
  const auto *const data = static_cast<const char *>(tensor.const_data_ptr()) + first * tensor.element_size();
  return {data, tensor.stride(0), channels, tensor.stride(1)};
}

AttentionArgs::Written heads_of(const Tensor &tensor, int64_t first, int64_t channels) {
  auto *const data = static_cast<char *>(tensor.mutable_data_ptr()) + first * tensor.element_size();
  return {data, tensor.stride(0), channels, tensor.stride(1)};
}

// Parts that gradients of a bias are summed in, so that the sum does not depend on the number of threads.
constexpr int64_t CHUNKS = 16;

struct AttentionFunction : torch::autograd::Function<AttentionFunction> {
  // `packed` [B, M, 2 or 3 parts of h·d], `query` [B, h, N, d] or undefined, `bias` f32 [1, h, N, M] or undefined.
  static AttentionArgs
  arguments(const Tensor &packed, const Tensor &query, const Tensor &bias, int64_t heads, const Dropout &drop) {
    AttentionArgs args{};
    const bool external = query.defined();
    const int64_t inner = packed.size(2) / (external ? 2 : 3), channels = inner / heads;
    args.images = packed.size(0);
    args.heads = heads;
    args.queries = external ? query.size(2) : packed.size(1);
    args.keys = packed.size(1);
    args.channels = channels;
    args.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(channels)));
    args.dropout = drop;
    args.q = external ? AttentionArgs::Heads{query.const_data_ptr(), query.stride(0), query.stride(1), query.stride(2)}
                      : heads_in(packed, 0, channels);
    args.k = heads_in(packed, external ? 0 : inner, channels);
    args.v = heads_in(packed, external ? inner : 2 * inner, channels);
    args.bias = numbers(bias);
    return args;
  }

  static int64_t grain(const AttentionArgs &args) {
    return 1 + 100000 / (1 + args.queries * args.keys * args.channels);
  }

  static Tensor forward(
      AutogradContext *context, const Tensor &packed_, const std::optional<Tensor> &query_,
      const std::optional<Tensor> &bias_, int64_t heads, double rate, int64_t keys, int64_t first) {
    RECORD_FUNCTION("torch_ext::attention", {});
    const auto packed = packed_.stride(2) == 1 ? packed_ : packed_.contiguous();
    const auto query = !query_ ? Tensor() : query_->stride(3) == 1 ? *query_ : query_->contiguous();
    const auto bias = bias_ ? bias_->to(at::kFloat).contiguous() : Tensor();
    auto args = arguments(packed, query, bias, heads, dropout(rate, keys, first));
    auto out = at::empty({args.images, args.queries, heads * args.channels}, packed.options());
    auto lse = at::empty({args.images, heads, args.queries}, packed.options().dtype(at::kFloat));
    args.out = heads_of(out, 0, args.channels);
    args.lse = lse.mutable_data_ptr<float>();
    parallel(args.images * heads, grain(args), [&](int64_t begin, int64_t end) {
      const std::unique_ptr<float[]> scratch(new float[kernels().attention_scratch(args)]);
      for (int64_t item = begin; item < end; ++item)
        kernels().attention(element(packed), args, item / heads, item % heads, scratch.get());
    });
    if (context) {
      context->save_for_backward({packed, query, bias, lse});
      context->saved_data["heads"] = heads;
      context->saved_data["rate"] = rate;
      context->saved_data["keys"] = keys;
      context->saved_data["first"] = first;
    }
    return out;
  }

  static variable_list backward(AutogradContext *context, const variable_list &grads) {
    RECORD_FUNCTION("torch_ext::attention_backward", {});
    const auto saved = context->get_saved_variables();
    const auto &packed = saved[0], &query = saved[1], &bias = saved[2], &lse = saved[3];
    const int64_t heads = context->saved_data["heads"].toInt();
    auto args = arguments(packed, query, bias, heads, saved_dropout(context));
    const auto grad = grads[0].to(packed.scalar_type()).contiguous();
    const int64_t inner = heads * args.channels;
    const bool external = query.defined();
    auto grad_packed = at::empty(packed.sizes(), packed.options());
    Tensor grad_query, grad_bias;
    args.grad_out = heads_in(grad, 0, args.channels);
    args.lse = const_cast<float *>(lse.const_data_ptr<float>());
    args.grad_k = heads_of(grad_packed, external ? 0 : inner, args.channels);
    args.grad_v = heads_of(grad_packed, external ? inner : 2 * inner, args.channels);
    if (external) {
      grad_query = at::empty(query.sizes(), query.options());
      args.grad_q = {
          grad_query.mutable_data_ptr(), grad_query.stride(0), grad_query.stride(1), grad_query.stride(2)};
    } else {
      args.grad_q = heads_of(grad_packed, 0, args.channels);
    }
    // Without a bias every image is a chunk.
    const int64_t chunks = bias.defined() ? std::min(args.images, CHUNKS) : args.images;
    const int64_t bias_size = heads * args.queries * args.keys;
    if (bias.defined()) {
      grad_bias = at::zeros({chunks, heads, args.queries, args.keys}, bias.options());
      args.grad_bias = grad_bias.mutable_data_ptr<float>();
    }
    parallel(chunks * heads, bias.defined() ? 1 : grain(args), [&](int64_t begin, int64_t end) {
      const std::unique_ptr<float[]> scratch(new float[kernels().attention_scratch(args)]);
      for (int64_t item = begin; item < end; ++item) {
        const int64_t chunk = item / heads;
        float *const to = args.grad_bias ? args.grad_bias + chunk * bias_size : nullptr;
        for (int64_t image = args.images * chunk / chunks; image < args.images * (chunk + 1) / chunks; ++image)
          kernels().attention_backward(element(packed), args, image, item % heads, to, scratch.get());
      }
    });
    return {
        grad_packed, grad_query, bias.defined() ? grad_bias.sum(0, /*keepdim=*/true) : grad_bias, Tensor(), Tensor(),
        Tensor(), Tensor()};
  }
};

Tensor empty_maps(const Tensor &like) {
  return at::empty(like.sizes(), like.options().memory_format(at::MemoryFormat::ChannelsLast));
}

struct DepthwiseFunction : torch::autograd::Function<DepthwiseFunction> {
  static DepthwiseArgs
  arguments(const Tensor &x, const Tensor &weight, const Tensor &bias, int64_t top, int64_t left) {
    DepthwiseArgs args{};
    args.height = x.size(2);
    args.width = x.size(3);
    args.channels = x.size(1);
    args.kernel = weight.size(2);
    args.top = top;
    args.left = left;
    args.x = x.const_data_ptr();
    args.weight = numbers(weight);
    args.bias = numbers(bias);
    return args;
  }

  static Tensor forward(
      AutogradContext *context, const Tensor &maps, const Tensor &weight_, const std::optional<Tensor> &bias_,
      int64_t top, int64_t left) {
    RECORD_FUNCTION("torch_ext::depthwise", {});
    const auto x = pixel_by_pixel(maps), weight = weight_.to(at::kFloat).contiguous();
    const auto bias = bias_ ? bias_->to(at::kFloat).contiguous() : Tensor();
    auto args = arguments(x, weight, bias, top, left);
    auto out = empty_maps(x);
    args.out = out.mutable_data_ptr();
    const int64_t step = kernels().depthwise_channels, blocks = (args.channels + step - 1) / step;
    parallel(x.size(0) * blocks, 1, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<float[]> scratch(new float[kernels().depthwise_scratch(args)]);
      for (int64_t item = begin; item < end; ++item) {
        const int64_t image = item / blocks;
        kernels().depthwise(element(x), args, image, image + 1, item % blocks * step, scratch.get());
      }
    });
    if (context) {
      context->save_for_backward({x, weight});
      context->saved_data["top"] = top;
      context->saved_data["left"] = left;
      context->saved_data["bias"] = bias.defined();
      context->saved_data["kind"] = static_cast<int64_t>(weight_.scalar_type());
    }
    return out;
  }

  static variable_list backward(AutogradContext *context, const variable_list &grads) {
    RECORD_FUNCTION("torch_ext::depthwise_backward", {});
    const auto saved = context->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1];
    auto args = arguments(
        x, weight, Tensor(), context->saved_data["top"].toInt(), context->saved_data["left"].toInt());
    const auto grad = pixel_by_pixel(grads[0].to(x.scalar_type()));
    const auto out = context->needs_input_grad(0) ? empty_maps(x) : Tensor();
    args.grad = grad.const_data_ptr();
    args.out = out.defined() ? out.mutable_data_ptr() : nullptr;
    const int64_t step = kernels().depthwise_channels, blocks = (args.channels + step - 1) / step;
    const int64_t images = x.size(0), chunks = std::min(images, CHUNKS), area = args.kernel * args.kernel;
    auto sums = at::empty({chunks, area + 1, args.channels}, weight.options());
    auto *const to = sums.mutable_data_ptr<float>();
    parallel(chunks * blocks, 1, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<float[]> scratch(new float[kernels().depthwise_scratch(args)]);
      for (int64_t item = begin; item < end; ++item) {
        const int64_t chunk = item / blocks;
        kernels().depthwise_backward(
            element(x), args, images * chunk / chunks, images * (chunk + 1) / chunks, item % blocks * step,
            to + chunk * (area + 1) * args.channels, scratch.get());
      }
    });
    const auto kind = static_cast<at::ScalarType>(context->saved_data["kind"].toInt());
    const auto all = sums.sum(0).to(kind);
    const auto grad_weight = all.narrow(0, 0, area).t().reshape(weight.sizes());
    return {out, grad_weight, context->saved_data["bias"].toBool() ? all[area] : Tensor(), Tensor(), Tensor()};
  }
};

// Parts that sums over pixels are made of, whatever the number of threads.
constexpr int64_t PIXEL_CHUNKS = 64;

// Two sums for each channel over all pixels, [2, channels] in f64; f(begin, end, to) writes those of a range.
template <class F>
Tensor pixel_sums(int64_t pixels, int64_t channels, const F &f) {
  auto sums = at::empty({PIXEL_CHUNKS, 2, channels}, at::kFloat);
  auto *const to = sums.mutable_data_ptr<float>();
  parallel(PIXEL_CHUNKS, pixels * channels < BLOCK ? PIXEL_CHUNKS : 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk)
      f(pixels * chunk / PIXEL_CHUNKS, pixels * (chunk + 1) / PIXEL_CHUNKS, to + chunk * 2 * channels);
  });
  return sums.sum(0, /*keepdim=*/false, at::kDouble);
}

struct BatchNormFunction : torch::autograd::Function<BatchNormFunction> {
  static Tensor forward(
      AutogradContext *context, const Tensor &maps, const std::optional<Tensor> &residual_, const Tensor &weight,
      const Tensor &bias, const Tensor &running_mean, const Tensor &running_var, int64_t form, bool train,
      double momentum, double eps) {
    RECORD_FUNCTION("torch_ext::gelu_batch_norm", {});
    const auto x = pixel_by_pixel(maps);
    const auto residual = residual_ ? pixel_by_pixel(*residual_) : Tensor();
    const int64_t channels = x.size(1), pixels = x.numel() / channels;
    BatchNormArgs args{};
    args.channels = channels;
    args.form = Gelu(form);
    args.x = x.const_data_ptr();
    args.residual = residual.defined() ? residual.const_data_ptr() : nullptr;
    Tensor mean = running_mean, var = running_var;
    const SharedBatch batch = train ? shared_batch : SharedBatch{};
    int64_t values = pixels;
    if (train) {
      // The differences from a mean that is nearly right are small, and so is what their squares lose.
      args.mean = numbers(running_mean);
      auto sums = pixel_sums(pixels, channels, [&](int64_t begin, int64_t end, float *to) {
        kernels().batch_norm_sums(element(x), args, begin, end, to);
      });
      values = batch.sum(sums, pixels);
      require(values > 1, "batch norm: one value per channel has no variance to train with");
      sums = sums / values;
      mean = (running_mean + sums[0]).to(at::kFloat);
      const auto biased = (sums[1] - sums[0] * sums[0]).clamp_min(0);
      var = biased.to(at::kFloat);
      running_mean.lerp_(mean, momentum);
      running_var.lerp_((biased * (static_cast<double>(values) / (values - 1))).to(at::kFloat), momentum);
    } else if (context) {
      mean = mean.clone();
    }
    auto inverse = at::empty_like(var);
    std::transform(
        numbers(var), numbers(var) + channels, inverse.mutable_data_ptr<float>(),
        [eps](float variance) { return static_cast<float>(1 / std::sqrt(variance + eps)); });
    auto out = empty_maps(x);
    args.mean = numbers(mean);
    args.inverse = numbers(inverse);
    args.weight = numbers(weight);
    args.bias = numbers(bias);
    args.out = out.mutable_data_ptr();
    parallel(pixels, 1 + BLOCK / channels, [&](int64_t begin, int64_t end) {
      kernels().batch_norm(element(x), args, begin, end);
    });
    if (context) {
      context->save_for_backward({x, weight, mean, inverse});
      context->saved_data["form"] = form;
      context->saved_data["train"] = train;
      context->saved_data["residual"] = residual.defined();
      context->saved_data["values"] = values;
      context->saved_data["counts"] = batch.counts;
      if (batch.processes)
        context->saved_data["processes"] = c10::IValue::make_capsule(batch.processes);
    }
    return out;
  }

  static variable_list backward(AutogradContext *context, const variable_list &grads) {
    RECORD_FUNCTION("torch_ext::gelu_batch_norm_backward", {});
    const auto saved = context->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1], &mean = saved[2], &inverse = saved[3];
    const auto grad = pixel_by_pixel(grads[0].to(x.scalar_type()));
    const int64_t channels = x.size(1), pixels = x.numel() / channels;
    BatchNormArgs args{};
    args.channels = channels;
    args.form = Gelu(context->saved_data["form"].toInt());
    args.x = x.const_data_ptr();
    args.mean = numbers(mean);
    args.inverse = numbers(inverse);
    args.weight = numbers(weight);
    args.grad = grad.const_data_ptr();
    auto sums = pixel_sums(pixels, channels, [&](int64_t begin, int64_t end, float *to) {
      kernels().batch_norm_grad_sums(element(x), args, begin, end, to);
    });
    const auto grad_bias = sums[0].to(at::kFloat), grad_weight = sums[1].to(at::kFloat);
    Tensor out;
    if (context->needs_input_grad(0)) {
      SharedBatch batch{{}, context->saved_data["counts"].toBool()};
      if (const auto found = context->saved_data.find("processes"); found != context->saved_data.end())
        batch.processes = c10::static_intrusive_pointer_cast<Together>(found->second.toCapsule());
      // Those of the weights are added up with all others.
      batch.sum(sums, 0);
      const double part =
          context->saved_data["train"].toBool() ? 1.0 / context->saved_data["values"].toInt() : 0.0;
      const auto means = (sums * part).to(at::kFloat);
      out = empty_maps(x);
      args.mean_grad = numbers(means);
      args.mean_product = args.mean_grad + channels;
      args.out = out.mutable_data_ptr();
      parallel(pixels, 1 + BLOCK / channels, [&](int64_t begin, int64_t end) {
        kernels().batch_norm_backward(element(x), args, begin, end);
      });
      if (!batch.counts)
        out.zero_();
    }
    const auto rest = context->saved_data["residual"].toBool() ? grads[0] : Tensor();
    return {out, rest, grad_weight, grad_bias, Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

struct LayerNormFunction : torch::autograd::Function<LayerNormFunction> {
  static LayerNormKinds kinds(const Tensor &x, const Tensor &branch, at::ScalarType out) {
    const auto of = [](at::ScalarType kind) { return kind == at::kFloat ? Element::F32 : Element::BF16; };
    return {element(x), branch.defined() ? element(branch) : Element::F32, of(out)};
  }

  // The sum, if there is a branch, and its norm. Rows are what is before the last dimension.
  static variable_list forward(
      AutogradContext *context, const Tensor &x_, const std::optional<Tensor> &branch_,
      const std::optional<Tensor> &factors_, const Tensor &weight, const Tensor &bias, double eps,
      at::ScalarType kind) {
    RECORD_FUNCTION("torch_ext::layer_norm", {});
    const auto x = x_.contiguous();
    const auto branch = branch_ ? branch_->contiguous() : Tensor();
    const auto factors = factors_ ? factors_->to(at::kFloat).contiguous() : Tensor();
    const int64_t channels = weight.size(0), rows = x.numel() / channels;
    auto out = at::empty(x.sizes(), x.options().dtype(kind));
    auto total = branch.defined() ? at::empty(x.sizes(), x.options()) : x;
    auto statistics = at::empty({2, rows}, x.options().dtype(at::kFloat));
    LayerNormArgs args{};
    args.channels = channels;
    args.eps = static_cast<float>(eps);
    args.x = x.const_data_ptr();
    args.weight = numbers(weight);
    args.bias = numbers(bias);
    args.mean = statistics.mutable_data_ptr<float>();
    args.inverse = args.mean + rows;
    args.out = out.mutable_data_ptr();
    if (branch.defined()) {
      args.branch = branch.const_data_ptr();
      args.sum = total.mutable_data_ptr();
      args.factors = numbers(factors);
      args.rows_per_factor = factors.defined() ? rows / factors.numel() : 1;
    }
    const auto all = kinds(x, branch, kind);
    parallel(rows, 1 + BLOCK / channels, [&](int64_t begin, int64_t end) {
      kernels().layer_norm(all, args, begin, end);
    });
    if (context) {
      context->save_for_backward({total, factors, weight, statistics});
      context->saved_data["branch"] = branch.defined();
      context->saved_data["branch_kind"] = static_cast<int64_t>(branch.defined() ? branch.scalar_type() : at::kFloat);
      context->saved_data["kind"] = static_cast<int64_t>(kind);
    }
    return branch.defined() ? variable_list{total, out} : variable_list{out};
  }

  static variable_list backward(AutogradContext *context, const variable_list &grads) {
    RECORD_FUNCTION("torch_ext::layer_norm_backward", {});
    const auto saved = context->get_saved_variables();
    const auto &x = saved[0], &factors = saved[1], &weight = saved[2], &statistics = saved[3];
    const bool has_branch = context->saved_data["branch"].toBool();
    const auto branch_kind = static_cast<at::ScalarType>(context->saved_data["branch_kind"].toInt());
    const auto kind = static_cast<at::ScalarType>(context->saved_data["kind"].toInt());
    const int64_t channels = weight.size(0), rows = x.numel() / channels;
    const auto &above = grads.back();
    const auto grad = above.defined() ? above.to(kind).contiguous() : at::zeros(x.sizes(), x.options().dtype(kind));
    const auto beside =
        has_branch && grads[0].defined() ? grads[0].to(x.scalar_type()).contiguous() : Tensor();
    auto grad_x = at::empty(x.sizes(), x.options());
    auto grad_branch = has_branch ? at::empty(x.sizes(), x.options().dtype(branch_kind)) : Tensor();
    LayerNormArgs args{};
    args.channels = channels;
    args.x = x.const_data_ptr();
    args.weight = numbers(weight);
    args.factors = numbers(factors);
    args.rows_per_factor = factors.defined() ? rows / factors.numel() : 1;
    args.mean = const_cast<float *>(statistics.const_data_ptr<float>());
    args.inverse = args.mean + rows;
    args.grad = grad.const_data_ptr();
    args.grad_sum = beside.defined() ? beside.const_data_ptr() : nullptr;
    args.grad_x = grad_x.mutable_data_ptr();
    args.grad_branch = has_branch ? grad_branch.mutable_data_ptr() : nullptr;
    const auto all = kinds(x, grad_branch, kind);
    const auto sums = pixel_sums(rows, channels, [&](int64_t begin, int64_t end, float *to) {
      kernels().layer_norm_backward(all, args, begin, end, to);
    });
    const auto weights = sums.to(at::kFloat);
    return {grad_x, grad_branch, Tensor(), weights[0], weights[1], Tensor(), Tensor()};
  }
};

} // namespace

extern "C" {

const char *torch_ext_kernel_instructions() noexcept { return kernels().name; }

int torch_ext_is_fast(const Tensor *tensor, bool *result) noexcept {
  return guarded([&] { *result = is_fast(*tensor); });
}

// `first` elements of a batch come before those of `x`.
int torch_ext_gelu(const Tensor *x, bool tanh, double drop, int64_t first, Tensor **result) noexcept {
  return guarded([&] {
    require(is_fast(*x), "gelu: x must be f32 or bf16 on the CPU");
    const auto form = static_cast<int64_t>(tanh ? Gelu::TANH : Gelu::ERF);
    *result = new Tensor(run<GeluFunction>(*x, form, drop, draw_keys(drop), first));
  });
}

// `bias` may be null.
int torch_ext_depthwise(
    const Tensor *maps, const Tensor *weight, const Tensor *bias, int64_t top, int64_t left,
    Tensor **result) noexcept {
  return guarded([&] {
    require(is_fast(*maps) && is_fast(*weight), "depthwise: maps and weights must be f32 or bf16 on the CPU");
    require(maps->dim() == 4, "depthwise: maps must be [B, C, H, W]");
    require(
        weight->dim() == 4 && weight->size(0) == maps->size(1) && weight->size(1) == 1 &&
            weight->size(2) == weight->size(3) && weight->size(2) >= 1 && weight->size(2) <= LARGEST_KERNEL,
        "depthwise: weights must be [C, 1, k, k] with k of 9 or less");
    require(
        top >= 0 && left >= 0 && top < weight->size(2) && left < weight->size(2),
        "depthwise: there must be fewer zeros than the kernel is wide");
    require(!bias || (is_fast(*bias) && bias->sizes() == at::IntArrayRef({maps->size(1)})), "depthwise: bias must be [C]");
    *result = new Tensor(run<DepthwiseFunction>(
        maps->to(autocast_kind().value_or(maps->scalar_type())), *weight, optional(bias), top, left));
  });
}

// `residual` may be null.
int torch_ext_gelu_batch_norm(
    const Tensor *maps, bool tanh, const Tensor *residual, const Tensor *weight, const Tensor *bias,
    const Tensor *running_mean, const Tensor *running_var, bool train, double momentum, double eps,
    Tensor **result) noexcept {
  return guarded([&] {
    require(is_fast(*maps) && maps->dim() == 4, "batch norm: maps must be [B, C, H, W], f32 or bf16 on the CPU");
    for (const Tensor *tensor : {weight, bias, running_mean, running_var})
      require(
          tensor->is_cpu() && tensor->scalar_type() == at::kFloat && tensor->is_contiguous() &&
              tensor->sizes() == at::IntArrayRef({maps->size(1)}),
          "batch norm: weights and statistics must be [C], f32 on the CPU");
    require(!residual || (residual->is_cpu() && residual->sizes() == maps->sizes()), "batch norm: residual of another shape");
    const auto rest = residual ? std::optional<Tensor>(residual->to(maps->scalar_type())) : std::nullopt;
    const auto form = static_cast<int64_t>(tanh ? Gelu::TANH : Gelu::ERF);
    *result = new Tensor(run<BatchNormFunction>(
        *maps, rest, *weight, *bias, *running_mean, *running_var, form, train, momentum, eps));
  });
}

// `branch` and `factors` may be null; without a branch, `sum` is not written.
int torch_ext_layer_norm(
    const Tensor *x, const Tensor *branch, const Tensor *factors, const Tensor *weight, const Tensor *bias, double eps,
    Tensor **sum, Tensor **result) noexcept {
  return guarded([&] {
    require(is_fast(*x) && (!branch || is_fast(*branch)), "layer norm: tensors must be f32 or bf16 on the CPU");
    require(x->dim() >= 1 && x->size(-1) >= 1 && x->size(-1) <= LARGEST_NORM, "layer norm: too few or many channels");
    for (const Tensor *tensor : {weight, bias})
      require(
          tensor->is_cpu() && tensor->scalar_type() == at::kFloat && tensor->is_contiguous() &&
              tensor->sizes() == at::IntArrayRef({x->size(-1)}),
          "layer norm: weights must be [C], f32 on the CPU");
    require(!branch || branch->sizes() == x->sizes(), "layer norm: a branch of another shape");
    require(
        !factors || (branch && factors->is_cpu() && factors->numel() == x->size(0)),
        "layer norm: there must be a factor for each image's branch");
    const auto kind = autocast_kind().value_or(x->scalar_type());
    // A sum has the wider kind of its summands.
    const auto wide = branch && branch->scalar_type() == at::kFloat ? x->to(at::kFloat) : *x;
    const auto outputs = run<LayerNormFunction>(
        wide, optional(branch), optional(factors), *weight, *bias, eps, kind);
    if (branch)
      *sum = new Tensor(outputs[0]);
    *result = new Tensor(outputs.back());
  });
}

// `query` and `bias` may be null. `first` images of a batch come before these.
int torch_ext_attention(
    const Tensor *packed, const Tensor *query, const Tensor *bias, int64_t heads, double drop, int64_t first,
    Tensor **result) noexcept {
  return guarded([&] {
    require(is_fast(*packed), "attention: keys and values must be f32 or bf16 on the CPU");
    require(packed->dim() == 3, "attention: keys and values must be [B, M, parts of h·d]");
    require(heads > 0 && packed->size(2) % (heads * (query ? 2 : 3)) == 0, "attention: heads must divide the channels");
    const int64_t channels = packed->size(2) / (heads * (query ? 2 : 3));
    require(
        !query || (query->dim() == 4 && query->scalar_type() == packed->scalar_type() && query->is_cpu() &&
                   query->size(0) == packed->size(0) && query->size(1) == heads && query->size(3) == channels),
        "attention: queries must be [B, h, N, d], of the kind of the keys");
    const int64_t queries = query ? query->size(2) : packed->size(1);
    require(
        !bias || (bias->is_cpu() && bias->sizes() == at::IntArrayRef({1, heads, queries, packed->size(1)})),
        "attention: the bias must be [1, h, N, M]");
    *result = new Tensor(run<AttentionFunction>(
        *packed, optional(query), optional(bias), heads, drop, draw_keys(drop), first));
  });
}

} // extern "C"
