// Dense 3×3 convolution on the CPU by Winograd's algorithm, with its gradients; the transformations are in
// kernels/winograd.h.

#include "ops.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <cmath>
#include <memory>

using namespace torch_ext;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

// Tiles that are worked on together: enough for a product to be fast, few enough to stay in the caches.
constexpr int64_t TILES_AT_ONCE = 96;

// f32 numbers of transformed maps that the gradient of the weights is summed over at a time: half of a cache of 32 MiB.
constexpr int64_t NUMBERS_AT_ONCE = 1 << 22;

// What happens to weights, in both dimensions: G ⊗ G of [6, 3], whose rows are the values of 1, x, x² at the points over
// the products of the differences to all others.
std::array<std::array<float, 9>, WINOGRAD_POSITIONS> of_weights() {
  const double a = WINOGRAD_POINTS[0], b = WINOGRAD_POINTS[1];
  const double points[5] = {0, a, -a, b, -b};
  double g[6][3] = {};
  for (int i = 0; i < 5; ++i) {
    double differences = 1;
    for (int j = 0; j < 5; ++j)
      differences *= i == j ? 1 : points[i] - points[j];
    for (int j = 0; j < 3; ++j)
      g[i][j] = std::pow(points[i], j) / differences;
  }
  g[5][2] = 1;
  std::array<std::array<float, 9>, WINOGRAD_POSITIONS> both;
  for (int i = 0; i < WINOGRAD_POSITIONS; ++i)
    for (int j = 0; j < 9; ++j)
      both[i][j] = static_cast<float>(g[i / 6][j / 3] * g[i % 6][j % 3]);
  return both;
}

// `matrix` [rows, depth] times [depth, columns].
Tensor mixed(int64_t rows, int64_t depth, const float *matrix, const Tensor &numbers) {
  const auto from = numbers.contiguous();
  const int64_t columns = from.size(1), blocks = columns / WINOGRAD_CHANNELS;
  auto to = at::empty({rows, columns}, from.options());
  parallel(blocks, 256, [&](int64_t begin, int64_t end) {
    kernels().winograd_weights(
        rows, depth, matrix, from.const_data_ptr<float>(), columns, begin * WINOGRAD_CHANNELS, end * WINOGRAD_CHANNELS,
        to.mutable_data_ptr<float>());
  });
  return to;
}

// Weights [9, outputs, inputs] as [36, outputs / panel, inputs, panel].
Tensor transformed(const Tensor &weights) {
  const int64_t outputs = weights.size(1), inputs = weights.size(2), panel = kernels().winograd_panel(outputs);
  const auto panels = weights.reshape({9, outputs / panel, panel, inputs}).transpose(2, 3);
  return mixed(WINOGRAD_POSITIONS, 9, of_weights()[0].data(), panels.reshape({9, outputs * inputs}));
}

// The gradient of weights [9, columns] from that of the transformed ones [36, columns].
Tensor transformed_back(const Tensor &grads) {
  const auto forward = of_weights();
  float matrix[9][WINOGRAD_POSITIONS];
  for (int i = 0; i < WINOGRAD_POSITIONS; ++i)
    for (int j = 0; j < 9; ++j)
      matrix[j][i] = forward[i][j];
  return mixed(9, WINOGRAD_POSITIONS, matrix[0], grads);
}

WinogradArgs arguments(const Tensor &maps, int64_t outputs, int64_t padding) {
  WinogradArgs args{};
  args.height = maps.size(2);
  args.width = maps.size(3);
  args.inputs = maps.size(1);
  args.outputs = outputs;
  args.padding = padding;
  args.x = maps.const_data_ptr<float>();
  return args;
}

// The convolution of maps in channels-last order; `weights` [9, outputs, inputs].
Tensor convolved(const Tensor &maps, const Tensor &weights, const Tensor &bias, int64_t padding) {
  auto args = arguments(maps, weights.size(1), padding);
  const auto by = transformed(weights);
  args.weight = by.const_data_ptr<float>();
  args.bias = numbers(bias);
  const int64_t images = maps.size(0), shrunk = 2 - 2 * padding;
  auto out = at::empty(
      {images, args.outputs, args.height - shrunk, args.width - shrunk},
      maps.options().memory_format(at::MemoryFormat::ChannelsLast));
  args.out = out.mutable_data_ptr<float>();
  const int64_t together = std::max<int64_t>(1, TILES_AT_ONCE / kernels().winograd_tiles(args));
  const int64_t blocks = (images + together - 1) / together;
  parallel(blocks, 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<float[]> scratch(new float[kernels().winograd_scratch(args, together)]);
    for (int64_t block = begin; block < end; ++block)
      kernels().winograd(args, block * together, std::min(images, (block + 1) * together), scratch.get());
  });
  return out;
}

// The gradient of the weights, [outputs, inputs, 3, 3].
Tensor weight_gradient(const Tensor &maps, const Tensor &grad, int64_t padding) {
  auto args = arguments(maps, grad.size(1), padding);
  args.grad = grad.const_data_ptr<float>();
  const int64_t images = maps.size(0), size = args.inputs * args.outputs;
  const int64_t of_image = kernels().winograd_scratch(args, 1);
  const int64_t together = std::min(images, std::max<int64_t>(1, NUMBERS_AT_ONCE / of_image));
  const std::unique_ptr<float[]> scratch(new float[kernels().winograd_scratch(args, together)]);
  auto sums = at::zeros({WINOGRAD_POSITIONS, size}, maps.options().memory_format(at::MemoryFormat::Contiguous));
  auto *const to = sums.mutable_data_ptr<float>();
  const int64_t of_maps = args.height * args.width * args.inputs, of_grad = grad.numel() / images;
  for (int64_t first = 0; first < images; first += together) {
    const int64_t count = std::min(together, images - first);
    auto some = args;
    some.x += first * of_maps;
    some.grad += first * of_grad;
    parallel(count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t image = begin; image < end; ++image)
        kernels().winograd_see(some, image, count, scratch.get());
    });
    parallel(WINOGRAD_POSITIONS, 1, [&](int64_t begin, int64_t end) {
      for (int64_t position = begin; position < end; ++position)
        kernels().winograd_seen(some, position, count, scratch.get(), to + position * size);
    });
  }
  return transformed_back(sums).reshape({3, 3, args.inputs, args.outputs}).permute({3, 2, 0, 1});
}

struct WinogradFunction : torch::autograd::Function<WinogradFunction> {
  static Tensor forward(
      AutogradContext *context, const Tensor &maps, const Tensor &weight, const std::optional<Tensor> &bias_,
      int64_t padding) {
    RECORD_FUNCTION("torch_ext::winograd", {});
    const auto x = pixel_by_pixel(maps), bias = bias_ ? bias_->contiguous() : Tensor();
    const auto out = convolved(x, weight.permute({2, 3, 0, 1}).flatten(0, 1), bias, padding);
    if (context) {
      context->save_for_backward({x, weight});
      context->saved_data["padding"] = padding;
      context->saved_data["bias"] = bias.defined();
    }
    return out;
  }

  static variable_list backward(AutogradContext *context, const variable_list &grads) {
    RECORD_FUNCTION("torch_ext::winograd_backward", {});
    require_first_derivative("winograd: there is no second derivative; switch kernels off for one");
    const auto saved = context->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1];
    const int64_t padding = context->saved_data["padding"].toInt();
    const auto grad = pixel_by_pixel(grads[0]);
    variable_list results(4);
    // The kernel turned by half leads back to each pixel, from so much padding that the size is that of the maps.
    if (context->needs_input_grad(0))
      results[0] = convolved(grad, weight.flip({2, 3}).permute({2, 3, 1, 0}).flatten(0, 1), Tensor(), 2 - padding);
    if (context->needs_input_grad(1))
      results[1] = weight_gradient(x, grad, padding);
    if (context->saved_data["bias"].toBool())
      results[2] = grad.sum({0, 2, 3});
    return results;
  }
};

bool is_f32(const Tensor &tensor) { return is_fast(tensor) && tensor.scalar_type() == at::kFloat; }

bool is_suitable(const Tensor &maps, const Tensor &weight) {
  return !autocast_kind() && is_f32(maps) && is_f32(weight) && maps.dim() == 4 && weight.dim() == 4 &&
         weight.size(1) == maps.size(1) && weight.size(2) == 3 && weight.size(3) == 3 &&
         weight.size(0) % WINOGRAD_CHANNELS == 0 && weight.size(1) % WINOGRAD_CHANNELS == 0;
}

// Whether it is faster than libtorch's: what happens to the weights is worth it for so many tiles, and a product for so
// many channels (`cargo bench -p torch-ext --bench kernels`).
bool is_worthwhile(const Tensor &maps, const Tensor &weight, int64_t padding) {
  const auto args = arguments(maps, weight.size(0), padding);
  return std::min(args.inputs, args.outputs) >= 32 && maps.size(0) * kernels().winograd_tiles(args) >= 256;
}

} // namespace

extern "C" {

int torch_ext_has_winograd(const Tensor *maps, const Tensor *weight, int64_t padding, bool *result) noexcept {
  return guarded([&] { *result = is_suitable(*maps, *weight) && is_worthwhile(*maps, *weight, padding); });
}

// `bias` may be null.
int torch_ext_winograd(
    const Tensor *maps, const Tensor *weight, const Tensor *bias, int64_t padding, Tensor **result) noexcept {
  return guarded([&] {
    require(
        is_suitable(*maps, *weight),
        "winograd: maps [B, C, H, W] and weights [K, C, 3, 3] must be f32 on the CPU, with channels in multiples of 16, "
        "and no autocast");
    require(padding == 0 || padding == 1, "winograd: the padding must be 0 or 1");
    require(
        maps->size(2) + 2 * padding >= 3 && maps->size(3) + 2 * padding >= 3, "winograd: maps smaller than the kernel");
    require(!bias || (is_f32(*bias) && bias->sizes() == at::IntArrayRef({weight->size(0)})), "winograd: bias must be [K]");
    *result = new Tensor(run<WinogradFunction>(*maps, *weight, optional(bias), padding));
  });
}

} // extern "C"
