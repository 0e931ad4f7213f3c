// Scaled dot-product attention of short sequences: the scores of a head stay in a core's cache, and are computed again
// in the backward pass.

#pragma once

#include <math.h>

#include "gelu.h"
#include "product.h"

namespace {

using torch_ext::AttentionArgs;

// Sizes of a head's matrices in working memory: rows of channels and of keys are padded with zeros to whole vectors.
struct HeadSizes {
  int64_t queries, keys, channels, channel_row, key_row;
  // Queries that are worked on at a time: their scores are to stay in the cache nearest to the core.
  int64_t block;

  explicit HeadSizes(const AttentionArgs &args)
      : queries(args.queries), keys(args.keys), channels(args.channels), channel_row(rounded_up(args.channels)),
        key_row(rounded_up(args.keys)) {
    constexpr int64_t NUMBERS = 3072;
    block = NUMBERS / key_row / ROWS * ROWS;
    block = block < ROWS ? ROWS : block > 8 * ROWS ? 8 * ROWS : block;
  }

  int64_t scores() const { return block * key_row; }
  int64_t key_matrix() const { return key_row * channel_row; }
  int64_t query_matrix() const { return block * channel_row; }
};

int64_t attention_scratch(const AttentionArgs &args) {
  const HeadSizes sizes(args);
  return 2 * sizes.scores() + 5 * sizes.key_matrix() + 3 * sizes.query_matrix();
}

template <class T>
const T *head_of(const AttentionArgs::Heads &heads, int64_t image, int64_t head) {
  return static_cast<const T *>(heads.data) + image * heads.image + head * heads.head;
}

template <class T>
T *head_of(const AttentionArgs::Written &heads, int64_t image, int64_t head) {
  return static_cast<T *>(heads.data) + image * heads.image + head * heads.head;
}

// `to` [count, row] = factor · tokens.
template <class T>
void read_tokens(const T *from, int64_t stride, int64_t count, int64_t channels, float factor, float *to, int64_t row) {
  for (int64_t n = 0; n < count; ++n)
    vectors(channels, [&](int64_t c, auto some) {
      store(to + n * row + c, load(from + n * stride + c, some) * factor);
    });
}

template <class T>
void write_tokens(
    const float *from, int64_t row, int64_t count, int64_t channels, float factor, T *to, int64_t stride) {
  for (int64_t n = 0; n < count; ++n)
    vectors(channels, [&](int64_t c, auto some) {
      store(to + n * stride + c, load(from + n * row + c) * factor, some);
    });
}

// `to` [row, count_row] = tokens [count, row], transposed; what is beyond their count is zero.
void transposed(const float *from, int64_t count, int64_t row, float *to, int64_t count_row) {
  for (int64_t n = 0; n < count_row; n += W)
    for (int64_t c = 0; c < row; c += W) {
      V block[W];
      for (int64_t i = 0; i < W; ++i)
        block[i] = n + i < count ? load(from + (n + i) * row + c) : V{};
      transpose(block);
      for (int64_t i = 0; i < W; ++i)
        store(to + (c + i) * count_row + n, block[i]);
    }
}

// Of a row's numbers from `key` on, those that are keys.
INLINE I is_key(int64_t keys, int64_t key) { return (I)lane() < (int32_t)(keys - key); }

// Scores are those of the softmax times log2(e), for powers of two.
INLINE V score(const AttentionArgs &args, const float *row, const float *bias, int64_t key) {
  const V score = load(row + key);
  if (!bias)
    return score;
  const int64_t n = args.keys - key;
  return score + LOG2E * (n >= W ? load(bias + key) : load(bias + key, Some{n}));
}

// The number of the first probability of a row, by which it is dropped or not.
INLINE int64_t first_of(const AttentionArgs &args, int64_t image, int64_t head, int64_t query, int64_t key_row) {
  return (((args.dropout.first + image) * args.heads + head) * args.queries + query) * key_row;
}

template <class T>
void attention_head(const AttentionArgs &args, int64_t image, int64_t head, float *memory) {
  const HeadSizes sizes(args);
  const auto [queries, keys, channels, channel_row, key_row, block] = sizes;
  float *const scores = memory, *const kt = scores + sizes.scores(), *const v = kt + sizes.key_matrix();
  float *const q = v + sizes.key_matrix(), *const mixed = q + sizes.query_matrix();
  const T *const query = head_of<T>(args.q, image, head);
  T *const out = head_of<T>(args.out, image, head);
  float *const lse = args.lse + (image * args.heads + head) * queries;

  read_tokens(head_of<T>(args.k, image, head), args.k.token, keys, channels, 1, v, channel_row);
  transposed(v, keys, channel_row, kt, key_row);
  read_tokens(head_of<T>(args.v, image, head), args.v.token, keys, channels, 1, v, channel_row);
  for (int64_t first = 0; first < queries; first += block) {
    const int64_t count = queries - first < block ? queries - first : block;
    read_tokens(query + first * args.q.token, args.q.token, count, channels, LOG2E * args.scale, q, channel_row);
    product(count, key_row, channels, {q, channel_row, 1}, kt, key_row, scores, key_row);
    float sums[8 * ROWS];
    for (int64_t i = 0; i < count; ++i) {
      float *const row = scores + i * key_row;
      const float *const bias = args.bias ? args.bias + (head * queries + first + i) * keys : nullptr;
      V most = splat(-INFINITY);
      for (int64_t j = 0; j < key_row; j += W) {
        const V s = is_key(keys, j) ? score(args, row, bias, j) : splat(-INFINITY);
        store(row + j, s);
        most = maximum(s, most);
      }
      const float top = largest(most);
      const int64_t number = first_of(args, image, head, first + i, key_row);
      V all = {};
      for (int64_t j = 0; j < key_row; j += W) {
        // What is no key is so small that nothing is left of it.
        V p = exponential2(load(row + j) - top);
        all += p;
        if (args.dropout.threshold)
          p *= kept(args.dropout, number + j);
        store(row + j, p);
      }
      sums[i] = sum(all);
      lse[first + i] = top + log2f(sums[i]);
    }
    product(count, channel_row, keys, {scores, key_row, 1}, v, channel_row, mixed, channel_row);
    for (int64_t i = 0; i < count; ++i)
      write_tokens(
          mixed + i * channel_row, channel_row, 1, channels, 1 / sums[i], out + (first + i) * args.out.token, 0);
  }
}

template <class T>
void attention_head_backward(
    const AttentionArgs &args, int64_t image, int64_t head, float *grad_bias, float *memory) {
  const HeadSizes sizes(args);
  const auto [queries, keys, channels, channel_row, key_row, block] = sizes;
  float *const scores = memory, *const grads = scores + sizes.scores();
  float *const k = grads + sizes.scores(), *const kt = k + sizes.key_matrix(), *const vt = kt + sizes.key_matrix();
  float *const grad_k = vt + sizes.key_matrix(), *const grad_v = grad_k + sizes.key_matrix();
  float *const q = grad_v + sizes.key_matrix(), *const grad = q + sizes.query_matrix();
  float *const grad_q = grad + sizes.query_matrix();
  const T *const query = head_of<T>(args.q, image, head), *const above = head_of<T>(args.grad_out, image, head);
  T *const below = head_of<T>(args.grad_q, image, head);
  const float *const lse = args.lse + (image * args.heads + head) * queries;

  read_tokens(head_of<T>(args.v, image, head), args.v.token, keys, channels, 1, k, channel_row);
  transposed(k, keys, channel_row, vt, key_row);
  read_tokens(head_of<T>(args.k, image, head), args.k.token, keys, channels, 1, k, channel_row);
  transposed(k, keys, channel_row, kt, key_row);
  memset(grad_k, 0, 2 * sizes.key_matrix() * sizeof(float));
  for (int64_t first = 0; first < queries; first += block) {
    const int64_t count = queries - first < block ? queries - first : block;
    read_tokens(query + first * args.q.token, args.q.token, count, channels, LOG2E * args.scale, q, channel_row);
    read_tokens(above + first * args.grad_out.token, args.grad_out.token, count, channels, 1, grad, channel_row);
    product(count, key_row, channels, {q, channel_row, 1}, kt, key_row, scores, key_row);
    product(count, key_row, channels, {grad, channel_row, 1}, vt, key_row, grads, key_row);
    for (int64_t i = 0; i < count; ++i) {
      float *const row = scores + i * key_row, *const row_grads = grads + i * key_row;
      const int64_t place = (head * queries + first + i) * keys;
      const float *const bias = args.bias ? args.bias + place : nullptr;
      const int64_t number = first_of(args, image, head, first + i, key_row);
      V all = {};
      for (int64_t j = 0; j < key_row; j += W) {
        const V p = is_key(keys, j) ? exponential2(score(args, row, bias, j) - lse[first + i]) : V{};
        V g = load(row_grads + j);
        if (args.dropout.threshold) {
          g *= kept(args.dropout, number + j);
          store(row_grads + j, g);
        }
        store(row + j, p);
        all += p * g;
      }
      const float mean = sum(all);
      for (int64_t j = 0; j < key_row; j += W) {
        const V p = load(row + j);
        const V g = p * (load(row_grads + j) - mean);
        store(row_grads + j, g);
        if (args.dropout.threshold)
          store(row + j, p * kept(args.dropout, number + j));
      }
      if (grad_bias)
        vectors(keys, [&](int64_t j, auto n) {
          float *const to = grad_bias + place + j;
          store(to, load(to, n) + load(row_grads + j), n);
        });
    }
    product<Into::ADD>(keys, channel_row, count, {scores, 1, key_row}, grad, channel_row, grad_v, channel_row);
    product<Into::ADD>(keys, channel_row, count, {grads, 1, key_row}, q, channel_row, grad_k, channel_row);
    product(count, channel_row, keys, {grads, key_row, 1}, k, channel_row, grad_q, channel_row);
    write_tokens(
        grad_q, channel_row, count, channels, args.scale, below + first * args.grad_q.token, args.grad_q.token);
  }
  write_tokens(
      grad_k, channel_row, keys, channels, 1 / LOG2E, head_of<T>(args.grad_k, image, head), args.grad_k.token);
  write_tokens(
      grad_v, channel_row, keys, channels, 1, head_of<T>(args.grad_v, image, head), args.grad_v.token);
}

} // namespace
