// Batch norm of activations in maps whose channels are beside each other in memory. The activation is computed again
// wherever it is needed: reading it from memory takes longer.

#pragma once

#include "gelu.h"

namespace {

using torch_ext::BatchNormArgs;

// Sums over pixels [begin, end): forward of a = activation - mean and a²; backward of the gradient and of it times the
// normalised activation. `sums` [2, channels].
template <class T, Gelu FORM, bool BACKWARD>
void batch_norm_sums(const BatchNormArgs &args, int64_t begin, int64_t end, float *sums) {
  const auto *const x = static_cast<const T *>(args.x);
  const auto *const grad = static_cast<const T *>(args.grad);
  float *const second = sums + args.channels;
  memset(sums, 0, 2 * args.channels * sizeof(float));
  for (int64_t p = begin; p < end; ++p)
    vectors(args.channels, [&](int64_t c, auto n) {
      const int64_t at = p * args.channels + c;
      const V a = activated<FORM>(load(x + at, n)).value - load(args.mean + c, n);
      const V above = BACKWARD ? load(grad + at, n) : a;
      const V beside = BACKWARD ? a * load(args.inverse + c, n) : a;
      store(sums + c, load(sums + c, n) + above, n);
      store(second + c, load(second + c, n) + above * beside, n);
    });
}

// Pixels [begin, end) of the result: (activation - mean)·inverse·weight + bias, and a residual.
template <class T, Gelu FORM>
void batch_norm_apply(const BatchNormArgs &args, int64_t begin, int64_t end) {
  const auto *const x = static_cast<const T *>(args.x);
  const auto *const residual = static_cast<const T *>(args.residual);
  auto *const out = static_cast<T *>(args.out);
  for (int64_t p = begin; p < end; ++p)
    vectors(args.channels, [&](int64_t c, auto n) {
      const int64_t at = p * args.channels + c;
      const V scale = load(args.inverse + c, n) * load(args.weight + c, n);
      V y = (activated<FORM>(load(x + at, n)).value - load(args.mean + c, n)) * scale;
      y += load(args.bias + c, n);
      if (residual)
        y += load(residual + at, n);
      store(out + at, y, n);
    });
}

// Pixels [begin, end) of the gradient of x. `mean_grad` and `mean_product` are the sums over all pixels, divided by
// their number; zeros where the statistics are no function of x.
template <class T, Gelu FORM>
void batch_norm_backward(const BatchNormArgs &args, int64_t begin, int64_t end) {
  const auto *const x = static_cast<const T *>(args.x);
  const auto *const grad = static_cast<const T *>(args.grad);
  auto *const out = static_cast<T *>(args.out);
  for (int64_t p = begin; p < end; ++p)
    vectors(args.channels, [&](int64_t c, auto n) {
      const int64_t at = p * args.channels + c;
      const V inverse = load(args.inverse + c, n);
      const Activated a = activated<FORM>(load(x + at, n));
      const V normed = (a.value - load(args.mean + c, n)) * inverse;
      const V above = load(grad + at, n) - load(args.mean_grad + c, n);
      const V below = above - normed * load(args.mean_product + c, n);
      store(out + at, below * inverse * load(args.weight + c, n) * a.slope, n);
    });
}

} // namespace
