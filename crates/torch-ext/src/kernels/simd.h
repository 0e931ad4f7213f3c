// Vectors of f32 as wide as the instructions this file is compiled for, and what kernels do with them.
//
// Everything here is in an unnamed namespace, and nothing of the standard library is a template's code here: the file
// is compiled for several processors, and a function that the linker could share between them might end up with
// instructions the machine lacks.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int64_t W = 16;
#elif defined(__AVX2__)
constexpr int64_t W = 8;
#else
constexpr int64_t W = 4;
#endif

typedef float V __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));
typedef uint16_t H __attribute__((vector_size(2 * W)));

// bfloat16: the upper half of an f32.
struct bf16 {
  uint16_t bits;
};

#define INLINE inline __attribute__((always_inline))

// A difference from zero, because it is the number itself: to add zero is not, for -0, and takes an instruction.
INLINE V splat(float value) { return value - V{}; }

INLINE int64_t rounded_up(int64_t n) { return (n + W - 1) / W * W; }

INLINE V load(const float *from) {
  V value;
  memcpy(&value, from, sizeof(value));
  return value;
}

INLINE V widened(H halves) { return (V)(__builtin_convertvector(halves, U) << 16); }

INLINE V load(const bf16 *from) {
  H halves;
  memcpy(&halves, from, sizeof(halves));
  return widened(halves);
}

INLINE void store(float *to, V value) { memcpy(to, &value, sizeof(value)); }

// To the nearest, ties to even; NaN stays NaN.
INLINE H narrowed(V value) {
#if defined(__AVX512BF16__)
  return (H)_mm512_cvtneps_pbh((__m512)value);
#else
  const U bits = (U)value;
  const U rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const U nan = (U)(value != value);
  return __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), H);
#endif
}

INLINE void store(bf16 *to, V value) {
  const H halves = narrowed(value);
  memcpy(to, &halves, sizeof(halves));
}

// The first n < W numbers, and zeros.
template <class T>
INLINE V load_some(const T *from, int64_t n) {
  T padded[W] = {};
  memcpy(padded, from, n * sizeof(T));
  return load(padded);
}

template <class T>
INLINE void store_some(T *to, V value, int64_t n) {
  T padded[W];
  store(padded, value);
  memcpy(to, padded, n * sizeof(T));
}

// How many numbers of a vector there are: all, so that no instruction is spent on it, or n < W.
struct All {};
struct Some {
  int64_t n;
};

template <class T>
INLINE V load(const T *from, All) {
  return load(from);
}

template <class T>
INLINE V load(const T *from, Some some) {
  return load_some(from, some.n);
}

template <class T>
INLINE void store(T *to, V value, All) {
  store(to, value);
}

template <class T>
INLINE void store(T *to, V value, Some some) {
  store_some(to, value, some.n);
}

// Calls f(i, All or Some) for the vectors that `count` numbers make.
template <class F>
INLINE void vectors(int64_t count, const F &f) {
  int64_t i = 0;
  for (; i + W <= count; i += W)
    f(i, All{});
  if (i < count)
    f(i, Some{count - i});
}

INLINE float to_float(float value) { return value; }

INLINE float to_float(bf16 value) {
  const uint32_t bits = (uint32_t)value.bits << 16;
  float result;
  memcpy(&result, &bits, sizeof(result));
  return result;
}

INLINE V maximum(V a, V b) { return a > b ? a : b; }

INLINE V absolute(V x) { return (V)((I)x & 0x7fffffff); }

// All numbers of a vector taken together by halves, in a fixed order.
template <class F>
INLINE float folded(V x, F f) {
  float numbers[W];
  store(numbers, x);
  for (int64_t half = W / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i)
      numbers[i] = f(numbers[i], numbers[i + half]);
  return numbers[0];
}

INLINE float sum(V x) {
  return folded(x, [](float a, float b) { return a + b; });
}

INLINE float largest(V x) {
  return folded(x, [](float a, float b) { return a > b ? a : b; });
}

INLINE V reciprocal(V x) {
#if defined(__AVX512F__)
  // 14 bits, and once more as many by Newton's method.
  const V guess = (V)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);
  return guess + guess * (1.0f - x * guess);
#else
  return 1.0f / x;
#endif
}

// 2^x to 1 ulp, for x up to 127: x = n + f with n whole and f between -1/2 and 1/2, and a polynomial in f that fits best.
// Below 2^-126 it is as good as nothing.
INLINE V exponential2(V x) {
#if defined(__AVX512F__)
  const V n = (V)_mm512_maskz_roundscale_ps(0xffff, (__m512)x, 0);
#else
  // Found by what is lost of a large number's digits.
  constexpr float LARGE = 12582912.0f;
  x = x > -126.0f ? x : (x != x ? x : splat(-126.0f));
  const V shifted = x + LARGE;
  const V n = shifted - LARGE;
#endif
  const V f = x - n;
  V p = splat(0.00015345811f);
  p = p * f + 0.0013399931f;
  p = p * f + 0.009618489f;
  p = p * f + 0.055503286f;
  p = p * f + 0.24022646f;
  p = p * f + 0.6931472f;
  p = p * f + 1.0f;
#if defined(__AVX512F__)
  return (V)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)n);
#else
  return p * (V)(((I)shifted << 23) + 0x3f800000);
#endif
}

constexpr float LOG2E = 1.44269504f;

// A number of 32 bits for each index that looks like chance: two rounds of multiply and xor-shift, with a key in each.
INLINE U hashed(U index, uint32_t first, uint32_t second) {
  U x = index ^ first;
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = ((x ^ (x >> 15)) + second) * 0x846ca68bu;
  return x ^ (x >> 16);
}

INLINE U lane() {
  U lanes;
  for (int64_t i = 0; i < W; ++i)
    lanes[i] = i;
  return lanes;
}

} // namespace
