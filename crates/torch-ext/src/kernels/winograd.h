// Convolution with 3×3 kernels by Winograd's algorithm F(4×4, 3×3): Lavin & Gray, arXiv:1509.09308. Tiles of 6×6 pixels,
// which overlap by two, are transformed; for each of their 36 positions a product of matrices goes over the channels; and
// transformed back, every tile gives 4×4 results. That is 36 multiplications where there would be 144.

#pragma once

#include "kernels.h"
#include "product.h"

namespace {

using torch_ext::WinogradArgs;
using torch_ext::WINOGRAD_POINTS;
using torch_ext::WINOGRAD_POSITIONS;

// Sides of a tile and of its results.
constexpr int TILE = 6, RESULTS = 4;

// Numbers between two positions: an odd number of lines of memory, so that the 36 are not kept in the same few places of a
// cache.
INLINE int64_t position_size(int64_t tiles, int64_t channels) { return (tiles * channels / W | 1) * W; }

INLINE int64_t result_height(const WinogradArgs &args) { return args.height + 2 * args.padding - 2; }
INLINE int64_t result_width(const WinogradArgs &args) { return args.width + 2 * args.padding - 2; }
INLINE int64_t tiles_down(const WinogradArgs &args) { return (result_height(args) + RESULTS - 1) / RESULTS; }
INLINE int64_t tiles_across(const WinogradArgs &args) { return (result_width(args) + RESULTS - 1) / RESULTS; }
INLINE int64_t tiles_of(const WinogradArgs &args) { return tiles_down(args) * tiles_across(args); }

// Channels that lie beside each other in a transformed matrix: [channels / panel, rows, panel], so that a product reads
// memory in one piece.
INLINE int64_t panel_of(int64_t channels) { return channels % 64 == 0 ? 64 : channels % 32 == 0 ? 32 : 16; }

// Polynomials are multiplied by their values at 0, ±A, ±B and infinity. With 1 and 2, which are usual, the largest error is
// five times that with these, which f32 holds exactly with all that is made of them.
constexpr float A = WINOGRAD_POINTS[0], B = WINOGRAD_POINTS[1], AA = A * A, BB = B * B;

// One dimension of what happens to pixels before the products, Bᵀ·d.
INLINE void of_pixels(const V (&d)[TILE], V (&to)[TILE]) {
  const V even = d[4] - BB * d[2], odd = A * (d[3] - BB * d[1]);
  const V far = d[4] - AA * d[2], beyond = B * (d[3] - AA * d[1]);
  to[0] = AA * BB * d[0] - (AA + BB) * d[2] + d[4];
  to[1] = even + odd;
  to[2] = even - odd;
  to[3] = far + beyond;
  to[4] = far - beyond;
  to[5] = AA * BB * d[1] - (AA + BB) * d[3] + d[5];
}

// One dimension of what happens to gradients of results before the products, A·y.
INLINE void of_gradients(const V (&y)[RESULTS], V (&to)[TILE]) {
  const V even = y[0] + AA * y[2], odd = A * (y[1] + AA * y[3]);
  const V far = y[0] + BB * y[2], beyond = B * (y[1] + BB * y[3]);
  to[0] = y[0];
  to[1] = even + odd;
  to[2] = even - odd;
  to[3] = far + beyond;
  to[4] = far - beyond;
  to[5] = y[3];
}

// One dimension of what happens to products, Aᵀ·m.
INLINE void of_products(const V (&m)[TILE], V (&to)[RESULTS]) {
  const V even = m[1] + m[2], odd = A * (m[1] - m[2]);
  const V far = m[3] + m[4], beyond = B * (m[3] - m[4]);
  to[0] = m[0] + even + far;
  to[1] = odd + beyond;
  to[2] = AA * even + BB * far;
  to[3] = AA * odd + BB * beyond + m[5];
}

// Both dimensions of a transformation of N×N vectors to M×M.
template <int N, int M, class F>
INLINE void both(const V (&from)[N][N], V (&to)[M][M], const F &transformed) {
  V half[M][N];
  for (int x = 0; x < N; ++x) {
    V column[N], done[M];
    for (int y = 0; y < N; ++y)
      column[y] = from[y][x];
    transformed(column, done);
    for (int y = 0; y < M; ++y)
      half[y][x] = done[y];
  }
  for (int y = 0; y < M; ++y)
    transformed(half[y], to[y]);
}

// Calls f(tile, y, x) for the tiles of images [0, images), with the place of each one's results.
template <class F>
INLINE void each_tile(const WinogradArgs &args, int64_t images, const F &f) {
  int64_t tile = 0;
  for (int64_t image = 0; image < images; ++image)
    for (int64_t y = 0; y < tiles_down(args); ++y)
      for (int64_t x = 0; x < tiles_across(args); ++x)
        f(tile++, image, y * RESULTS, x * RESULTS);
}

// The N×N pixels of a map from (y, x) on, in `channels` from `c` on; zeros where there is no map.
template <int N>
INLINE void
read_pixels(const float *map, int64_t height, int64_t width, int64_t channels, int64_t y, int64_t x, int64_t c, V (&to)[N][N]) {
  for (int i = 0; i < N; ++i)
    for (int j = 0; j < N; ++j) {
      const bool inside = y + i >= 0 && y + i < height && x + j >= 0 && x + j < width;
      to[i][j] = inside ? load(map + ((y + i) * width + x + j) * channels + c) : V{};
    }
}

// Tiles of maps [images, height, width, inputs] as [36, tiles, inputs].
void winograd_pixels(const WinogradArgs &args, int64_t images, const float *maps, int64_t tiles, float *to) {
  const int64_t size = args.height * args.width * args.inputs, step = position_size(tiles, args.inputs);
  each_tile(args, images, [&](int64_t tile, int64_t image, int64_t y, int64_t x) {
    for (int64_t c = 0; c < args.inputs; c += W) {
      V pixels[TILE][TILE], done[TILE][TILE];
      read_pixels(
          maps + image * size, args.height, args.width, args.inputs, y - args.padding, x - args.padding, c, pixels);
      both(pixels, done, [](const auto &from, auto &to) { of_pixels(from, to); });
      float *const at = to + tile * args.inputs + c;
      for (int i = 0; i < TILE; ++i)
        for (int j = 0; j < TILE; ++j)
          store(at + (i * TILE + j) * step, done[i][j]);
    }
  });
}

// Tiles of gradients of results [images, height, width, outputs] as [36, panels, tiles, panel].
void winograd_gradients(const WinogradArgs &args, int64_t images, const float *maps, int64_t tiles, float *to) {
  const int64_t height = result_height(args), width = result_width(args), panel = panel_of(args.outputs);
  const int64_t size = height * width * args.outputs, step = position_size(tiles, args.outputs);
  each_tile(args, images, [&](int64_t tile, int64_t image, int64_t y, int64_t x) {
    for (int64_t c = 0; c < args.outputs; c += W) {
      V pixels[RESULTS][RESULTS], done[TILE][TILE];
      read_pixels(maps + image * size, height, width, args.outputs, y, x, c, pixels);
      both(pixels, done, [](const auto &from, auto &to) { of_gradients(from, to); });
      float *const at = to + (c / panel * tiles + tile) * panel + c % panel;
      for (int i = 0; i < TILE; ++i)
        for (int j = 0; j < TILE; ++j)
          store(at + (i * TILE + j) * step, done[i][j]);
    }
  });
}

// Results [images, height, width, outputs] of products [36, tiles, outputs], and the bias.
void winograd_results(const WinogradArgs &args, int64_t images, const float *products, int64_t tiles, float *maps) {
  const int64_t height = result_height(args), width = result_width(args);
  const int64_t step = position_size(tiles, args.outputs);
  each_tile(args, images, [&](int64_t tile, int64_t image, int64_t y, int64_t x) {
    float *const map = maps + (image * height * width + y * width + x) * args.outputs;
    const int64_t rows = height - y < RESULTS ? height - y : RESULTS, columns = width - x < RESULTS ? width - x : RESULTS;
    for (int64_t c = 0; c < args.outputs; c += W) {
      const float *const at = products + tile * args.outputs + c;
      V all[TILE][TILE], done[RESULTS][RESULTS];
      for (int i = 0; i < TILE; ++i)
        for (int j = 0; j < TILE; ++j)
          all[i][j] = load(at + (i * TILE + j) * step);
      both(all, done, [](const auto &from, auto &to) { of_products(from, to); });
      const V start = args.bias ? load(args.bias + c) : V{};
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j)
          store(map + (i * width + j) * args.outputs + c, done[i][j] + start);
    }
  });
}

// Columns [begin, end), which W divides, of the product of a small matrix [rows, depth] and `from` [depth, columns].
void winograd_weights(
    int64_t rows, int64_t depth, const float *matrix, const float *from, int64_t columns, int64_t begin, int64_t end,
    float *to) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t c = begin; c < end; c += W) {
      V sum{};
      for (int64_t k = 0; k < depth; ++k)
        sum += matrix[row * depth + k] * load(from + k * columns + c);
      store(to + row * columns + c, sum);
    }
}

int64_t winograd_scratch(const WinogradArgs &args, int64_t images) {
  const int64_t tiles = images * tiles_of(args);
  return WINOGRAD_POSITIONS * (position_size(tiles, args.inputs) + position_size(tiles, args.outputs));
}

// Images [begin, end).
void winograd_block(const WinogradArgs &args, int64_t begin, int64_t end, float *scratch) {
  const int64_t images = end - begin, tiles = images * tiles_of(args), panel = panel_of(args.outputs);
  const int64_t from = position_size(tiles, args.inputs), to = position_size(tiles, args.outputs);
  float *const pixels = scratch, *const products = scratch + WINOGRAD_POSITIONS * from;
  winograd_pixels(args, images, args.x + begin * args.height * args.width * args.inputs, tiles, pixels);
  for (int64_t position = 0; position < WINOGRAD_POSITIONS; ++position)
    for (int64_t c = 0; c < args.outputs; c += panel)
      product(
          tiles, panel, args.inputs, Left{pixels + position * from, args.inputs, 1},
          args.weight + (position * args.outputs + c) * args.inputs, panel, products + position * to + c, args.outputs);
  const int64_t size = result_height(args) * result_width(args) * args.outputs;
  winograd_results(args, images, products, tiles, args.out + begin * size);
}

// One image of `images` transformed together: its pixels, and the gradients of its results, for `winograd_seen`.
void winograd_see(const WinogradArgs &args, int64_t image, int64_t images, float *scratch) {
  const int64_t of_image = tiles_of(args), tiles = images * of_image;
  // Where the tiles of the image begin in a position, and in a panel of one.
  float *const pixels = scratch + image * of_image * args.inputs;
  float *const gradients = scratch + WINOGRAD_POSITIONS * position_size(tiles, args.inputs);
  winograd_pixels(args, 1, args.x + image * args.height * args.width * args.inputs, tiles, pixels);
  const int64_t size = result_height(args) * result_width(args) * args.outputs;
  winograd_gradients(args, 1, args.grad + image * size, tiles, gradients + image * of_image * panel_of(args.outputs));
}

// Adds to the gradient of the transformed weights at a position, [inputs, outputs], what those images have seen.
void winograd_seen(const WinogradArgs &args, int64_t position, int64_t images, const float *scratch, float *grad_weight) {
  const int64_t tiles = images * tiles_of(args), panel = panel_of(args.outputs);
  const int64_t from = position_size(tiles, args.inputs), to = position_size(tiles, args.outputs);
  const float *const pixels = scratch + position * from;
  const float *const gradients = scratch + WINOGRAD_POSITIONS * from + position * to;
  for (int64_t c = 0; c < args.outputs; c += panel)
    product<Into::ADD>(
        args.inputs, panel, tiles, Left{pixels, 1, args.inputs}, gradients + c * tiles, panel, grad_weight + c,
        args.outputs);
}

} // namespace
