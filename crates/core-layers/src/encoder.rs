//! The encoder block of a vision transformer.

use tch::nn::Path;
use tch::{TchError, Tensor};

use crate::{
    AttentionConfig, LayerNorm, Mlp, MlpConfig, MultiHeadAttention, apply_drop_path, drop_path_mask,
};

/// What decides an [`EncoderBlock`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EncoderConfig {
    /// Attention by the block's own queries.
    pub attention: AttentionConfig,
    /// The perceptron.
    pub mlp: MlpConfig,
    /// Added to the variance in both norms.
    pub norm_eps: f64,
    /// Rate of stochastic depth of both branches.
    pub drop_path_rate: f64,
    /// One draw of stochastic depth for both branches.
    pub shared_drop_path: bool,
    /// Whether the second norm replaces the residual stream, as in the official CCT.
    pub normed_residual: bool,
}

/// Where the parts of an [`EncoderBlock`] are, whose names differ between checkpoints.
#[derive(Debug)]
pub struct EncoderPaths<'a> {
    /// The norm before the attention.
    pub first_norm: Path<'a>,
    /// The attention, with `qkv` and `proj`.
    pub attention: Path<'a>,
    /// The norm before the perceptron.
    pub second_norm: Path<'a>,
    /// The layers of the perceptron.
    pub mlp: [Path<'a>; 2],
}

/// Norm, self-attention and a residual, norm, perceptron and a residual (Dosovitskiy et al., arXiv:2010.11929, §3.1).
#[derive(Debug)]
pub struct EncoderBlock {
    first_norm: LayerNorm,
    attention: MultiHeadAttention,
    second_norm: LayerNorm,
    mlp: Mlp,
    config: EncoderConfig,
}

impl EncoderBlock {
    /// Creates the block's layers at `paths`.
    ///
    /// # Errors
    /// What libtorch says when a tensor cannot be made.
    pub fn new(paths: &EncoderPaths<'_>, config: EncoderConfig) -> Result<Self, TchError> {
        let EncoderConfig { attention, mlp, norm_eps, .. } = config;
        let [first, second] = &paths.mlp;
        Ok(Self {
            first_norm: LayerNorm::new(&paths.first_norm, attention.dim, norm_eps)?,
            attention: MultiHeadAttention::new(&paths.attention, attention)?,
            second_norm: LayerNorm::new(&paths.second_norm, attention.dim, norm_eps)?,
            mlp: Mlp::new(first, second, mlp)?,
            config,
        })
    }

    /// Tokens `[B, N, D]` → the same shape.
    pub fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        self.forward_normed(x, &self.norm(x), train)
    }

    /// [`Self::forward_t`], with the attention probabilities `[B, heads, N, N]`.
    pub fn with_probabilities(&self, x: &Tensor, train: bool) -> (Tensor, Tensor) {
        let (mixed, probabilities) = self.attention.with_probabilities(&self.norm(x), None, None, train);
        (self.after_attention(x, mixed, train), probabilities)
    }

    /// What the attention gets, `[B, N, D]`: the first norm of tokens of that shape.
    pub fn norm(&self, x: &Tensor) -> Tensor {
        self.first_norm.forward(x)
    }

    /// [`Self::forward_t`], given what [`Self::norm`] makes of `x`.
    pub fn forward_normed(&self, x: &Tensor, normed: &Tensor, train: bool) -> Tensor {
        self.after_attention(x, self.attention.forward_t(normed, None, None, train), train)
    }

    /// Tokens after the block, given those before it and what the attention makes of them.
    fn after_attention(&self, x: &Tensor, mixed: Tensor, train: bool) -> Tensor {
        let EncoderConfig { drop_path_rate, shared_drop_path, normed_residual, .. } = self.config;
        let draw = || drop_path_mask(x, drop_path_rate, train);
        let first = draw();
        let second = if shared_drop_path { first.as_ref().map(Tensor::shallow_clone) } else { draw() };
        let (x, normed) = self.second_norm.forward_added(x, mixed, first.as_ref());
        let branch = apply_drop_path(self.mlp.forward_t(&normed, train), second.as_ref());
        let residual = if normed_residual { normed } else { x };
        residual + branch
    }
}
