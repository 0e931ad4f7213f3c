// The kernels of one instruction set. Each works on a range of its items, so that they can be shared among threads.

#pragma once

#include <cstdint>

namespace torch_ext {

enum class Element { F32, BF16 };

// What is set to zero with a probability, and what is left is divided by the rest. The same numbers give the same choice.
struct Dropout {
  // Of the 2^32 values of a hash, those below are dropped; 0 drops nothing.
  uint32_t threshold = 0;
  float scale = 1;
  uint32_t keys[2] = {0, 0};
  // Elements, or images for attention, of a batch that come before those at hand.
  int64_t first = 0;
};

enum class Gelu { ERF, TANH };

struct GeluArgs {
  Gelu form;
  Dropout dropout;
  const void *x;
  // Of the result, for the backward pass.
  const void *grad;
  // The result, or the gradient of x.
  void *out;
};

// Attention of N queries over M keys, for items [image, head]. Strides are in elements, those of channels are 1.
struct AttentionArgs {
  struct Heads {
    const void *data;
    int64_t image, head, token;
  };
  struct Written {
    void *data;
    int64_t image, head, token;
  };

  int64_t images, heads, queries, keys, channels;
  float scale;
  Dropout dropout;
  Heads q, k, v;
  // f32 [heads, N, M] that is added to the scores, or null.
  const float *bias;
  // f32 [images, heads, N]: the binary logarithm of the sum that the softmax divides by. Written forward, read backward.
  float *lse;
  Written out;
  Heads grad_out;
  Written grad_q, grad_k, grad_v;
  // f32 [chunks, heads, N, M], to add to; or null.
  float *grad_bias;
};

// The largest side of a depthwise kernel.
constexpr int64_t LARGEST_KERNEL = 9;

// Depthwise convolution at stride 1 that keeps the size of maps [images, height, width, channels].
struct DepthwiseArgs {
  int64_t height, width, channels, kernel;
  // Zeros before the map; after it there are kernel - 1 less these.
  int64_t top, left;
  const void *x;
  // f32 [channels, kernel, kernel] and [channels], or null.
  const float *weight, *bias;
  // The result; or, given the gradient of it, the gradient of x, or null.
  const void *grad;
  void *out;
};

// Positions of a transformed tile, and what channels are a multiple of.
constexpr int64_t WINOGRAD_POSITIONS = 36, WINOGRAD_CHANNELS = 16;

// Two of the six points whose values stand for a polynomial; the others are their negatives, 0 and infinity.
constexpr float WINOGRAD_POINTS[2] = {3.0f / 4, 3.0f / 2};

// Convolution at stride 1 with 3×3 kernels in f32: maps [images, height, width, inputs], results of 2·padding - 2 pixels
// more on each side [images, .., .., outputs].
struct WinogradArgs {
  int64_t height, width, inputs, outputs, padding;
  const float *x;
  // Transformed: [36, outputs / panel, inputs, panel].
  const float *weight;
  // [outputs], or null.
  const float *bias;
  float *out;
  // Of the results, for the gradient of the weights.
  const float *grad;
};

// Batch norm of GELU(x) over pixels [pixels, channels]. All but maps are f32 [channels].
struct BatchNormArgs {
  int64_t channels;
  Gelu form;
  const void *x, *residual;
  const float *mean, *inverse, *weight, *bias;
  const void *grad;
  const float *mean_grad, *mean_product;
  void *out;
};

// The most channels of a layer norm.
constexpr int64_t LARGEST_NORM = 4096;

// Layer norm of rows of channels. The kinds of x and sum, of the branch and of the result may differ.
struct LayerNormArgs {
  int64_t channels;
  float eps;
  // Forward, what is normalised or a summand of it; backward, what was normalised.
  const void *x;
  // What is added, or null; and what by, f32 for every so many rows, or null for 1.
  const void *branch;
  const float *factors;
  int64_t rows_per_factor;
  // f32 [channels].
  const float *weight, *bias;
  // Of each row; written forward, read backward.
  float *mean, *inverse;
  void *sum, *out;
  // Gradients of the result and of the sum, the latter or null.
  const void *grad, *grad_sum;
  void *grad_x, *grad_branch;
};

struct LayerNormKinds {
  Element x, branch, out;
};

struct Kernels {
  // That of the table.
  const char *name;

  // Elements [begin, end).
  void (*gelu)(Element, const GeluArgs &, int64_t begin, int64_t end);
  void (*gelu_backward)(Element, const GeluArgs &, int64_t begin, int64_t end);

  // f32 numbers of working memory that the next two need.
  int64_t (*attention_scratch)(const AttentionArgs &);
  void (*attention)(Element, const AttentionArgs &, int64_t image, int64_t head, float *scratch);
  // `grad_bias` is that of the chunk.
  void (*attention_backward)(
      Element, const AttentionArgs &, int64_t image, int64_t head, float *grad_bias, float *scratch);

  // Channels that the next two work on at a time, and f32 numbers of working memory that they need.
  int64_t depthwise_channels;
  int64_t (*depthwise_scratch)(const DepthwiseArgs &);
  // Images [begin, end).
  void (*depthwise)(Element, const DepthwiseArgs &, int64_t begin, int64_t end, int64_t channel, float *scratch);
  // `sums` [kernel² + 1, channels]: gradients of weights and bias for these images.
  void (*depthwise_backward)(
      Element, const DepthwiseArgs &, int64_t begin, int64_t end, int64_t channel, float *sums, float *scratch);

  // Channels beside each other in a panel of transformed weights.
  int64_t (*winograd_panel)(int64_t channels);
  int64_t (*winograd_tiles)(const WinogradArgs &);
  // Columns [begin, end) of [rows, depth] · [depth, columns]: what happens to weights before the products, and to their
  // gradients after them.
  void (*winograd_weights)(
      int64_t rows, int64_t depth, const float *matrix, const float *from, int64_t columns, int64_t begin, int64_t end,
      float *to);
  // f32 numbers of working memory for so many images.
  int64_t (*winograd_scratch)(const WinogradArgs &, int64_t images);
  // Images [begin, end), with working memory for as many.
  void (*winograd)(const WinogradArgs &, int64_t begin, int64_t end, float *scratch);
  // Transforms one of `images` and its gradients, for the next.
  void (*winograd_see)(const WinogradArgs &, int64_t image, int64_t images, float *scratch);
  // Adds to the gradient of the transformed weights at a position, [inputs, outputs].
  void (*winograd_seen)(
      const WinogradArgs &, int64_t position, int64_t images, const float *scratch, float *grad_weight);

  // Pixels [begin, end). `sums` [2, channels]: forward of GELU(x) - mean and its square, backward of the gradient and of
  // it times the normalised activation.
  void (*batch_norm_sums)(Element, const BatchNormArgs &, int64_t begin, int64_t end, float *sums);
  void (*batch_norm)(Element, const BatchNormArgs &, int64_t begin, int64_t end);
  void (*batch_norm_grad_sums)(Element, const BatchNormArgs &, int64_t begin, int64_t end, float *sums);
  void (*batch_norm_backward)(Element, const BatchNormArgs &, int64_t begin, int64_t end);

  // Rows [begin, end). `sums` [2, channels]: gradients of weight and bias for these rows.
  void (*layer_norm)(LayerNormKinds, const LayerNormArgs &, int64_t begin, int64_t end);
  void (*layer_norm_backward)(LayerNormKinds, const LayerNormArgs &, int64_t begin, int64_t end, float *sums);
};

extern const Kernels kernels_plain;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512_bf16;
#endif

} // namespace torch_ext
