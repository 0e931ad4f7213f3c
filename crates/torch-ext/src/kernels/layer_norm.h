// Layer norm, and the sum of a residual stream and a branch before it, in one pass.

#pragma once

#include <math.h>

#include "kernels.h"
#include "simd.h"

namespace {

using torch_ext::LayerNormArgs;

// Rows [begin, end): sum = x + factor·branch, out = (sum - mean)·inverse·weight + bias.
template <class X, class B, class Y>
void layer_norm_rows(const LayerNormArgs &args, int64_t begin, int64_t end) {
  const int64_t channels = args.channels;
  float row[torch_ext::LARGEST_NORM];
  for (int64_t r = begin; r < end; ++r) {
    const auto *const x = static_cast<const X *>(args.x) + r * channels;
    const auto *const branch = args.branch ? static_cast<const B *>(args.branch) + r * channels : nullptr;
    auto *const total = args.sum ? static_cast<X *>(args.sum) + r * channels : nullptr;
    auto *const out = static_cast<Y *>(args.out) + r * channels;
    const float factor = args.factors ? args.factors[r / args.rows_per_factor] : 1;
    V all = {};
    vectors(channels, [&](int64_t c, auto n) {
      V value = load(x + c, n);
      if (branch) {
        value += factor * load(branch + c, n);
        store(total + c, value, n);
      }
      store(row + c, value, n);
      all += value;
    });
    const float mean = sum(all) / channels;
    V squares = {};
    vectors(channels, [&](int64_t c, auto n) {
      V away = load(row + c, n) - mean;
      if (channels - c < W)
        away = (I)lane() < (int32_t)(channels - c) ? away : V{};
      squares += away * away;
    });
    const float inverse = 1 / sqrtf(sum(squares) / channels + args.eps);
    vectors(channels, [&](int64_t c, auto n) {
      const V normed = (load(row + c, n) - mean) * inverse;
      store(out + c, normed * load(args.weight + c, n) + load(args.bias + c, n), n);
    });
    args.mean[r] = mean;
    args.inverse[r] = inverse;
  }
}

// `sums` [2, channels]: gradients of weight and bias for these rows.
template <class X, class B, class Y>
void layer_norm_rows_backward(const LayerNormArgs &args, int64_t begin, int64_t end, float *sums) {
  const int64_t channels = args.channels;
  float *const grad_weight = sums, *const grad_bias = sums + channels;
  memset(sums, 0, 2 * channels * sizeof(float));
  for (int64_t r = begin; r < end; ++r) {
    const auto *const x = static_cast<const X *>(args.x) + r * channels;
    const auto *const grad = static_cast<const Y *>(args.grad) + r * channels;
    const auto *const beside = args.grad_sum ? static_cast<const X *>(args.grad_sum) + r * channels : nullptr;
    auto *const grad_x = static_cast<X *>(args.grad_x) + r * channels;
    auto *const grad_branch = args.grad_branch ? static_cast<B *>(args.grad_branch) + r * channels : nullptr;
    const float factor = args.factors ? args.factors[r / args.rows_per_factor] : 1;
    const float mean = args.mean[r], inverse = args.inverse[r];
    V first = {}, second = {};
    vectors(channels, [&](int64_t c, auto n) {
      const V above = load(grad + c, n), normed = (load(x + c, n) - mean) * inverse;
      const V weighted = above * load(args.weight + c, n);
      store(grad_weight + c, load(grad_weight + c, n) + above * normed, n);
      store(grad_bias + c, load(grad_bias + c, n) + above, n);
      first += weighted;
      second += weighted * normed;
    });
    const float mean_grad = sum(first) / channels, mean_product = sum(second) / channels;
    vectors(channels, [&](int64_t c, auto n) {
      const V normed = (load(x + c, n) - mean) * inverse;
      const V weighted = load(grad + c, n) * load(args.weight + c, n);
      V below = inverse * (weighted - mean_grad - normed * mean_product);
      if (beside)
        below += load(beside + c, n);
      store(grad_x + c, below, n);
      if (grad_branch)
        store(grad_branch + c, factor * below, n);
    });
  }
}

} // namespace
