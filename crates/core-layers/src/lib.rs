#![doc = include_str!("../README.md")]

mod activation;
mod attention;
mod conv;
mod drop;
mod encoder;
mod explain;
mod init;
mod linear;
mod mlp;
mod model;
mod norm;
mod padding;
mod position;
mod scale;
mod squeeze_excite;
mod tokens;
pub mod trace;
pub mod weights;
mod window;

/// What a kernel gives. As tch's operations without `f_`, those of layers panic where libtorch refuses, which they do
/// not for tensors a layer has asked [`torch_ext::has_kernels`] about.
pub(crate) fn must<T>(result: Result<T, torch_ext::TorchExtError>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

pub use activation::Activation;
pub use attention::{AttentionConfig, MultiHeadAttention, attend, merge_heads, split_heads};
pub use conv::{Conv2d, Padding};
pub use drop::{apply_drop_path, drop_path, drop_path_mask, drop_path_rates};
pub use encoder::{EncoderBlock, EncoderConfig, EncoderPaths};
pub use explain::grad_cam;
pub use init::{Init, InitScheme, buffer, parameter};
pub use linear::Linear;
pub use mlp::{Mlp, MlpConfig};
pub use model::{
    ClassEvidence, ConfigError, Facts, Family, Model, ModelConfig, PublicWeights, Timm, ToJson, Variant,
    Variants, count, field_error, number_after, require_rates, require_sizes,
};
pub use norm::{BatchNorm2d, LayerNorm};
pub use padding::{pad_same, same_padding};
pub use position::{
    Resample, add_position_embedding, position_similarity, resize_position_embedding,
    sinusoidal_position_embedding,
};
pub use scale::LayerScale;
pub use squeeze_excite::{SqueezeExcite, SqueezeExciteConfig};
pub use tokens::{SequencePooling, first_token_map, map_to_tokens, patch_embedding, prepend_tokens};
pub use window::{RelativePositionBias, repeat_per_window, window_partition, window_reverse};
