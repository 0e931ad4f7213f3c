// GELU and dropout in one pass.

#pragma once

#include "kernels.h"
#include "simd.h"

namespace {

using torch_ext::Dropout;
using torch_ext::Gelu;
using torch_ext::GeluArgs;

// What an element is multiplied by, for that of the number `index`.
INLINE V kept(const Dropout &dropout, int64_t index) {
  const U hash = hashed((uint32_t)index + lane(), dropout.keys[0] ^ (uint32_t)(index >> 32), dropout.keys[1]);
  return hash >= dropout.threshold ? splat(dropout.scale) : V{};
}

struct Activated {
  V value, slope;
};

// x·Φ(x) and its derivative Φ(x) + x·φ(x).
INLINE Activated gelu_erf(V x) {
  // 1 - erf by Abramowitz & Stegun 7.1.26, to 1.5e-7.
  const V far = absolute(x) * 0.70710678118f;
  const V z = far > 20.0f ? splat(20.0f) : far;
  const V e = exponential2(z * z * -LOG2E);
  const V t = reciprocal(1.0f + 0.3275911f * z);
  V p = splat(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const V tail = 0.5f * p * t * e;
  const V share = x < 0.0f ? tail : 1.0f - tail;
  return {x * share, share + x * e * 0.39894228040f};
}

// 0.5·x·(1 + tanh(u)) = x·σ(2u) with u = √(2/π)·(x + 0.044715·x³), and its derivative.
INLINE Activated gelu_tanh(V x) {
  constexpr float TWICE = 1.5957691216f;
  const V square = x * x;
  const V power = -TWICE * LOG2E * x * (1.0f + 0.044715f * square);
  const V e = exponential2(power < 126.0f ? power : splat(126.0f));
  const V share = reciprocal(1.0f + e);
  const V slope = TWICE * (1.0f + 0.134145f * square);
  return {x * share, share + x * share * (1.0f - share) * slope};
}

template <Gelu FORM>
INLINE Activated activated(V x) {
  return FORM == Gelu::ERF ? gelu_erf(x) : gelu_tanh(x);
}

template <class T, Gelu FORM, bool BACKWARD>
void gelu_range(const GeluArgs &args, int64_t begin, int64_t end) {
  const auto *const x = static_cast<const T *>(args.x);
  const auto *const grad = static_cast<const T *>(args.grad);
  auto *const out = static_cast<T *>(args.out);
  vectors(end - begin, [&](int64_t i, auto n) {
    const Activated y = activated<FORM>(load(x + begin + i, n));
    V result = BACKWARD ? y.slope * load(grad + begin + i, n) : y.value;
    if (args.dropout.threshold)
      result *= kept(args.dropout, args.dropout.first + begin + i);
    store(out + begin + i, result, n);
  });
}

template <bool BACKWARD>
void gelu_dispatched(torch_ext::Element element, const GeluArgs &args, int64_t begin, int64_t end) {
  const bool erf = args.form == Gelu::ERF;
  if (element == torch_ext::Element::F32)
    (erf ? gelu_range<float, Gelu::ERF, BACKWARD> : gelu_range<float, Gelu::TANH, BACKWARD>)(args, begin, end);
  else
    (erf ? gelu_range<bf16, Gelu::ERF, BACKWARD> : gelu_range<bf16, Gelu::TANH, BACKWARD>)(args, begin, end);
}

} // namespace
