// Small matrix products in f32, of matrices that fit in a core's cache.

#pragma once

#include "simd.h"

namespace {

// As many sums as the registers hold.
#if defined(__AVX512F__)
constexpr int ROWS = 6, COLUMNS = 4;
#else
constexpr int ROWS = 6, COLUMNS = 2;
#endif

// A's element [i, k] is at i·row + k·column.
struct Left {
  const float *data;
  int64_t row, column;
};

// What becomes of C.
enum class Into { SET, ADD };

template <Into INTO, int M, int N>
INLINE void product_block(int64_t depth, Left a, const float *b, int64_t b_row, float *c, int64_t c_row) {
  V sums[M][N];
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j)
      sums[i][j] = INTO == Into::ADD ? load(c + i * c_row + j * W) : V{};
  for (int64_t k = 0; k < depth; ++k) {
    V row[N];
    for (int j = 0; j < N; ++j)
      row[j] = load(b + k * b_row + j * W);
    for (int i = 0; i < M; ++i) {
      const V left = splat(a.data[i * a.row + k * a.column]);
      for (int j = 0; j < N; ++j)
        sums[i][j] += left * row[j];
    }
  }
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j)
      store(c + i * c_row + j * W, sums[i][j]);
}

template <Into INTO, int N>
void product_columns(int64_t rows, int64_t depth, Left a, const float *b, int64_t b_row, float *c, int64_t c_row) {
  // With fewer columns there is room for more rows.
  constexpr int M = N == 1 ? 2 * ROWS : ROWS;
  const auto at = [&](int64_t i) { return Left{a.data + i * a.row, a.row, a.column}; };
  int64_t i = 0;
  for (; i + M <= rows; i += M)
    product_block<INTO, M, N>(depth, at(i), b, b_row, c + i * c_row, c_row);
  for (; i + 3 <= rows; i += 3)
    product_block<INTO, 3, N>(depth, at(i), b, b_row, c + i * c_row, c_row);
  for (; i < rows; ++i)
    product_block<INTO, 1, N>(depth, at(i), b, b_row, c + i * c_row, c_row);
}

// C [rows, columns] = A [rows, depth] · B [depth, columns], or C + that, with a number of columns that W divides.
template <Into INTO = Into::SET>
void product(
    int64_t rows, int64_t columns, int64_t depth, Left a, const float *b, int64_t b_row, float *c, int64_t c_row) {
  int64_t j = 0;
  for (; j + COLUMNS * W <= columns; j += COLUMNS * W)
    product_columns<INTO, COLUMNS>(rows, depth, a, b + j, b_row, c + j, c_row);
  switch ((columns - j) / W) {
  case 3:
    return product_columns<INTO, 3>(rows, depth, a, b + j, b_row, c + j, c_row);
  case 2:
    return product_columns<INTO, 2>(rows, depth, a, b + j, b_row, c + j, c_row);
  case 1:
    return product_columns<INTO, 1>(rows, depth, a, b + j, b_row, c + j, c_row);
  }
}

// W vectors of W numbers, transposed.
INLINE void transpose(V (&block)[W]) {
#if defined(__clang__)
  for (int64_t i = 0; i < W; ++i)
    for (int64_t j = 0; j < i; ++j) {
      const float kept = block[i][j];
      block[i][j] = block[j][i];
      block[j][i] = kept;
    }
#else
  I low, high;
  for (int64_t i = 0; i < W; ++i) {
    low[i] = i / 2 + (i % 2) * W;
    high[i] = low[i] + W / 2;
  }
  // Half of the block interleaved with the other, as often as it can be halved.
  for (int64_t n = 1; n < W; n *= 2) {
    V next[W];
    for (int64_t i = 0; i < W / 2; ++i) {
      next[2 * i] = __builtin_shuffle(block[i], block[i + W / 2], low);
      next[2 * i + 1] = __builtin_shuffle(block[i], block[i + W / 2], high);
    }
    for (int64_t i = 0; i < W; ++i)
      block[i] = next[i];
  }
#endif
}

} // namespace
