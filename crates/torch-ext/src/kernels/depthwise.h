// Depthwise convolution of maps whose channels are beside each other in memory. Vectors of channels are copied to tiles
// of their own, several at a time: lines of memory that are beside each other are fetched together.

#pragma once

#include "kernels.h"
#include "simd.h"

namespace {

using torch_ext::DepthwiseArgs;

// Pixels that are summed side by side.
constexpr int64_t SIDE_BY_SIDE = 8;

// Vectors of channels whose tiles are in working memory at a time.
constexpr int64_t TILES = 4;

// Numbers of a tile, which has a frame of zeros.
INLINE int64_t tile_size(const DepthwiseArgs &args) {
  return (args.height + args.kernel - 1) * (args.width + args.kernel - 1) * W;
}

int64_t depthwise_scratch(const DepthwiseArgs &args) {
  return TILES * (2 * tile_size(args) + 2 * args.kernel * args.kernel * W);
}

// Channels from `c` on that are worked on together, and the tiles they fill.
INLINE int64_t channels_from(const DepthwiseArgs &args, int64_t c) {
  return args.channels - c < TILES * W ? args.channels - c : TILES * W;
}

INLINE int64_t tiles_from(const DepthwiseArgs &args, int64_t c) { return (channels_from(args, c) + W - 1) / W; }

// Tiles of a map from channel `c` on, each [height + kernel - 1, width + kernel - 1, W]: `top` rows and `left` columns
// of zeros before the map, the others after it.
template <class T>
void read_tiles(const DepthwiseArgs &args, const T *map, int64_t c, int64_t top, int64_t left, float *tiles) {
  const int64_t width = args.width + args.kernel - 1, height = args.height + args.kernel - 1;
  const int64_t count = tiles_from(args, c), size = tile_size(args);
  const auto zeros = [&](int64_t pixel, int64_t n) {
    for (int64_t v = 0; v < count; ++v)
      memset(tiles + v * size + pixel * W, 0, n * W * sizeof(float));
  };
  zeros(0, top * width);
  for (int64_t y = 0; y < args.height; ++y) {
    const int64_t row = (top + y) * width;
    zeros(row, left);
    for (int64_t x = 0; x < args.width; ++x) {
      const T *const pixel = map + (y * args.width + x) * args.channels + c;
      float *const to = tiles + (row + left + x) * W;
      vectors(channels_from(args, c), [&](int64_t i, auto some) { store(to + i / W * size, load(pixel + i, some)); });
    }
    zeros(row + left + args.width, width - left - args.width);
  }
  zeros((top + args.height) * width, (height - top - args.height) * width);
}

template <int64_t N>
INLINE void convolved_pixels(const DepthwiseArgs &args, const float *tile, const float *weights, V bias, V (&sums)[N]) {
  const int64_t width = (args.width + args.kernel - 1) * W;
  for (int64_t i = 0; i < N; ++i)
    sums[i] = bias;
  for (int64_t ky = 0; ky < args.kernel; ++ky)
    for (int64_t kx = 0; kx < args.kernel; ++kx) {
      const V weight = load(weights + (ky * args.kernel + kx) * W);
      const float *const pixels = tile + ky * width + kx * W;
      for (int64_t i = 0; i < N; ++i)
        sums[i] += weight * load(pixels + i * W);
    }
}

// A map's channels from `c` on = bias + the tiles under the kernel's weights, [kernel², W] for each.
template <class T>
void convolved(
    const DepthwiseArgs &args, const float *tiles, const float *weights, const float *bias, T *map, int64_t c) {
  const int64_t width = args.width + args.kernel - 1, area = args.kernel * args.kernel;
  for (int64_t y = 0; y < args.height; ++y)
    vectors(channels_from(args, c), [&](int64_t i, auto n) {
      const int64_t v = i / W;
      const float *const row = tiles + v * tile_size(args) + y * width * W, *const by = weights + v * area * W;
      const V start = bias ? load(bias + c + i, n) : V{};
      T *const pixels = map + y * args.width * args.channels + c + i;
      int64_t x = 0;
      for (; x + SIDE_BY_SIDE <= args.width; x += SIDE_BY_SIDE) {
        V sums[SIDE_BY_SIDE];
        convolved_pixels(args, row + x * W, by, start, sums);
        for (int64_t i = 0; i < SIDE_BY_SIDE; ++i)
          store(pixels + (x + i) * args.channels, sums[i], n);
      }
      for (; x < args.width; ++x) {
        V sums[1];
        convolved_pixels(args, row + x * W, by, start, sums);
        store(pixels + x * args.channels, sums[0], n);
      }
    });
}

// Adds to `sums` [kernel², W] what each weight saw times the gradient above it, for ROWS rows of a K×K kernel.
template <int K, int ROWS_>
void seen(const DepthwiseArgs &args, const float *tile, const float *grads, int64_t row, float *sums) {
  const int64_t width = (args.width + K - 1) * W;
  V all[ROWS_][K];
  for (int ky = 0; ky < ROWS_; ++ky)
    for (int kx = 0; kx < K; ++kx)
      all[ky][kx] = load(sums + ((row + ky) * K + kx) * W);
  for (int64_t y = 0; y < args.height; ++y) {
    const float *const seen = tile + (y + row) * width, *const above = grads + y * width;
    for (int64_t x = 0; x < args.width * W; x += W) {
      const V grad = load(above + x);
      for (int ky = 0; ky < ROWS_; ++ky)
        for (int kx = 0; kx < K; ++kx)
          all[ky][kx] += grad * load(seen + ky * width + x + kx * W);
    }
  }
  for (int ky = 0; ky < ROWS_; ++ky)
    for (int kx = 0; kx < K; ++kx)
      store(sums + ((row + ky) * K + kx) * W, all[ky][kx]);
}

template <int K>
void seen_by(const DepthwiseArgs &args, const float *tile, const float *grads, float *sums) {
#if defined(__AVX512F__)
  constexpr int REGISTERS = 25;
#else
  constexpr int REGISTERS = 10;
#endif
  constexpr int AT_ONCE = K * K <= REGISTERS ? K : REGISTERS / K;
  int64_t row = 0;
  for (; row + AT_ONCE <= K; row += AT_ONCE)
    seen<K, AT_ONCE>(args, tile, grads, row, sums);
  for (; row < K; ++row)
    seen<K, 1>(args, tile, grads, row, sums);
}

using Seen = void (*)(const DepthwiseArgs &, const float *tile, const float *grads, float *sums);
constexpr Seen SEEN[] = {seen_by<1>, seen_by<2>, seen_by<3>, seen_by<4>, seen_by<5>,
                         seen_by<6>, seen_by<7>, seen_by<8>, seen_by<9>};
static_assert(sizeof(SEEN) / sizeof(*SEEN) == torch_ext::LARGEST_KERNEL);

// Weights [channels, kernel²] of channels from `c` on, as [kernel², W] for each vector; turned by half if `turned`.
void read_weights(const DepthwiseArgs &args, int64_t c, bool turned, float *to) {
  const int64_t area = args.kernel * args.kernel;
  for (int64_t v = 0; v < tiles_from(args, c); ++v)
    for (int64_t k = 0; k < area; ++k)
      for (int64_t i = 0; i < W; ++i) {
        const int64_t channel = c + v * W + i;
        to[(v * area + (turned ? area - 1 - k : k)) * W + i] =
            channel < args.channels ? args.weight[channel * area + k] : 0;
      }
}

template <class T>
void depthwise_block(const DepthwiseArgs &args, int64_t begin, int64_t end, int64_t c, float *scratch) {
  float *const weights = scratch, *const tiles = weights + TILES * args.kernel * args.kernel * W;
  const int64_t size = args.height * args.width * args.channels;
  read_weights(args, c, false, weights);
  for (int64_t image = begin; image < end; ++image) {
    read_tiles(args, static_cast<const T *>(args.x) + image * size, c, args.top, args.left, tiles);
    convolved(args, tiles, weights, args.bias, static_cast<T *>(args.out) + image * size, c);
  }
}

// `sums` [kernel² + 1, channels]: gradients of the weights, and last of the bias.
template <class T>
void depthwise_block_backward(
    const DepthwiseArgs &args, int64_t begin, int64_t end, int64_t c, float *sums, float *scratch) {
  const int64_t area = args.kernel * args.kernel, last = args.kernel - 1, width = args.width + last;
  const int64_t size = args.height * args.width * args.channels, count = tiles_from(args, c);
  float *const weights = scratch, *const grad_weights = weights + TILES * area * W;
  float *const tiles = grad_weights + TILES * area * W, *const grads = tiles + TILES * tile_size(args);
  // The padding of the gradient, with which the turned kernel leads back to each pixel.
  const int64_t top = last - args.top, left = last - args.left;
  read_weights(args, c, true, weights);
  memset(grad_weights, 0, TILES * area * W * sizeof(float));
  V grad_bias[TILES] = {};
  for (int64_t image = begin; image < end; ++image) {
    read_tiles(args, static_cast<const T *>(args.grad) + image * size, c, top, left, grads);
    if (args.out)
      convolved(args, grads, weights, nullptr, static_cast<T *>(args.out) + image * size, c);
    read_tiles(args, static_cast<const T *>(args.x) + image * size, c, args.top, args.left, tiles);
    for (int64_t v = 0; v < count; ++v) {
      const float *const inner = grads + v * tile_size(args) + (top * width + left) * W;
      SEEN[last](args, tiles + v * tile_size(args), inner, grad_weights + v * area * W);
      for (int64_t y = 0; y < args.height; ++y)
        for (int64_t x = 0; x < args.width; ++x)
          grad_bias[v] += load(inner + (y * width + x) * W);
    }
  }
  vectors(channels_from(args, c), [&](int64_t i, auto n) {
    for (int64_t k = 0; k < area; ++k)
      store(sums + k * args.channels + c + i, load(grad_weights + (i / W * area + k) * W), n);
    store(sums + area * args.channels + c + i, grad_bias[i / W], n);
  });
}

} // namespace
