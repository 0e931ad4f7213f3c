// The kernels for the instructions this file is compiled for; see build.rs. KERNELS is the table's name.

#include "attention.h"
#include "batch_norm.h"
#include "depthwise.h"
#include "gelu.h"
#include "kernels.h"
#include "layer_norm.h"
#include "winograd.h"

// The instance of a template for a kind of element and a form of GELU.
#define COMMA ,
#define OF_KIND(NAME, element, form, rest)                                                                             \
  (element == Element::F32 ? (form == Gelu::ERF ? NAME<float, Gelu::ERF rest> : NAME<float, Gelu::TANH rest>)          \
                           : (form == Gelu::ERF ? NAME<bf16, Gelu::ERF rest> : NAME<bf16, Gelu::TANH rest>))

// The instance of a template for kinds of x, branch and result.
#define OF_KINDS(NAME, kinds)                                                                                          \
  (kinds.x == Element::F32                                                                                             \
       ? (kinds.branch == Element::F32                                                                                 \
              ? (kinds.out == Element::F32 ? NAME<float, float, float> : NAME<float, float, bf16>)                     \
              : (kinds.out == Element::F32 ? NAME<float, bf16, float> : NAME<float, bf16, bf16>))                      \
       : (kinds.branch == Element::F32                                                                                 \
              ? (kinds.out == Element::F32 ? NAME<bf16, float, float> : NAME<bf16, float, bf16>)                       \
              : (kinds.out == Element::F32 ? NAME<bf16, bf16, float> : NAME<bf16, bf16, bf16>)))

namespace torch_ext {

#define TEXT(name) #name
#define TEXT_OF(name) TEXT(name)

extern const Kernels KERNELS = {
    TEXT_OF(KERNELS),
    gelu_dispatched<false>,
    gelu_dispatched<true>,
    attention_scratch,
    [](Element element, const AttentionArgs &args, int64_t image, int64_t head, float *scratch) {
      (element == Element::F32 ? attention_head<float> : attention_head<bf16>)(args, image, head, scratch);
    },
    [](Element element, const AttentionArgs &args, int64_t image, int64_t head, float *grad_bias, float *scratch) {
      (element == Element::F32 ? attention_head_backward<float> : attention_head_backward<bf16>)(
          args, image, head, grad_bias, scratch);
    },
    TILES * W,
    depthwise_scratch,
    [](Element element, const DepthwiseArgs &args, int64_t begin, int64_t end, int64_t channel, float *scratch) {
      (element == Element::F32 ? depthwise_block<float> : depthwise_block<bf16>)(args, begin, end, channel, scratch);
    },
    [](Element element, const DepthwiseArgs &args, int64_t begin, int64_t end, int64_t channel, float *sums,
       float *scratch) {
      (element == Element::F32 ? depthwise_block_backward<float> : depthwise_block_backward<bf16>)(
          args, begin, end, channel, sums, scratch);
    },
    panel_of,
    tiles_of,
    winograd_weights,
    winograd_scratch,
    winograd_block,
    winograd_see,
    winograd_seen,
    [](Element element, const BatchNormArgs &args, int64_t begin, int64_t end, float *sums) {
      OF_KIND(batch_norm_sums, element, args.form, COMMA false)(args, begin, end, sums);
    },
    [](Element element, const BatchNormArgs &args, int64_t begin, int64_t end) {
      OF_KIND(batch_norm_apply, element, args.form, )(args, begin, end);
    },
    [](Element element, const BatchNormArgs &args, int64_t begin, int64_t end, float *sums) {
      OF_KIND(batch_norm_sums, element, args.form, COMMA true)(args, begin, end, sums);
    },
    [](Element element, const BatchNormArgs &args, int64_t begin, int64_t end) {
      OF_KIND(batch_norm_backward, element, args.form, )(args, begin, end);
    },
    [](LayerNormKinds kinds, const LayerNormArgs &args, int64_t begin, int64_t end) {
      OF_KINDS(layer_norm_rows, kinds)(args, begin, end);
    },
    [](LayerNormKinds kinds, const LayerNormArgs &args, int64_t begin, int64_t end, float *sums) {
      OF_KINDS(layer_norm_rows_backward, kinds)(args, begin, end, sums);
    },
};

} // namespace torch_ext
