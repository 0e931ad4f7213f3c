//! Pooling by attention: class tokens gather what the trunk has found.

use core_layers::{
    LayerNorm, LayerScale, Linear, Mlp, MlpConfig, attend, merge_heads, parameter, prepend_tokens,
    split_heads,
};
use tch::nn::Path;
use tch::{TchError, Tensor};

use crate::config::{ClassTokens, Design, PatchConvNetConfig};

/// Of every layer norm in the network.
pub(crate) const NORM_EPS: f64 = 1e-6;

/// The block that ends the trunk (arXiv:2112.13692, §3): class tokens attend to the patches and pass
/// an MLP. [`Design`] tells where its norms are.
#[derive(Debug)]
pub(crate) struct AttentionPooling {
    /// `[1, K, D]`.
    class_tokens: Tensor,
    first_norm: LayerNorm,
    attention: ClassAttention,
    second_norm: LayerNorm,
    mlp: Mlp,
    /// Right after the second in the tutorial's design, last in the official one.
    third_norm: LayerNorm,
    /// Of the attention and the MLP.
    scales: [Option<LayerScale>; 2],
    design: Design,
}

/// Attention with one head whose queries are class tokens only (Touvron et al., arXiv:2103.17239,
/// §3).
#[derive(Debug)]
struct ClassAttention {
    queries: Linear,
    keys: Linear,
    values: Linear,
    output: Linear,
    class_tokens: ClassTokens,
    drop: f64,
}

impl AttentionPooling {
    pub(crate) fn new(vs: &Path, config: &PatchConvNetConfig) -> Result<Self, TchError> {
        let &PatchConvNetConfig { embed_dim: dim, design, init, .. } = config;
        let (block, attention, mlp, third_norm) = match design {
            Design::Tutorial => (vs.clone(), vs.clone(), vs.clone(), vs / "norm3"),
            Design::Official => {
                let block = vs / "blocks_token_only" / 0;
                (block.clone(), &block / "attn", block / "mlp", vs / "norm")
            }
        };
        let norm = |vs: &Path| LayerNorm::new(vs, dim, NORM_EPS);
        let mlp_config = MlpConfig {
            dim,
            hidden: config.mlp_hidden,
            activation: config.activation,
            act_on_output: config.act_on_output,
            hidden_drop: config.mlp_drop,
            output_drop: 0.0,
            init: init.linear(),
        };
        Ok(Self {
            class_tokens: parameter(vs, "cls_token", &[1, config.queries(), dim], init.class_tokens())?,
            first_norm: norm(&(&block / "norm1"))?,
            attention: ClassAttention::new(&attention, config)?,
            second_norm: norm(&(&block / "norm2"))?,
            mlp: Mlp::new(&(&mlp / "fc1"), &(&mlp / "fc2"), mlp_config)?,
            third_norm: norm(&third_norm)?,
            scales: [optional_scale(&block, "gamma_1", config)?, optional_scale(&block, "gamma_2", config)?],
            design,
        })
    }

    /// Patches `[B, N, D]` → class tokens `[B, K, D]`.
    pub(crate) fn forward_t(&self, patches: &Tensor, train: bool) -> Tensor {
        let [attention_scale, mlp_scale] = &self.scales;
        let (gathered, _) = self.gather(patches, train);
        let x = &self.class_tokens + scaled(gathered, attention_scale.as_ref());
        match self.design {
            Design::Tutorial => {
                let x = self.third_norm.forward(&self.second_norm.forward(&x));
                &x + scaled(self.mlp.forward_t(&x, train), mlp_scale.as_ref())
            }
            Design::Official => {
                let branch = self.mlp.forward_t(&self.second_norm.forward(&x), train);
                self.third_norm.forward(&(x + scaled(branch, mlp_scale.as_ref())))
            }
        }
    }

    /// What each class token pays attention to among patches `[B, N, D]`: `[B, K, N]`. A single
    /// token's attention to itself is left out and the rest not rescaled.
    pub(crate) fn patch_attention(&self, patches: &Tensor) -> Tensor {
        let (_, probabilities) = self.gather(patches, false);
        let (keys, n) = (probabilities.size()[3], patches.size()[1]);
        probabilities.squeeze_dim(1).narrow(2, keys - n, n)
    }

    /// Patches `[B, N, D]` → what the attention adds to the class tokens, `[B, K, D]`, and its
    /// probabilities `[B, 1, K, N or 1 + N]`.
    fn gather(&self, patches: &Tensor, train: bool) -> (Tensor, Tensor) {
        let tokens = self.first_norm.forward(&prepend_tokens(&self.class_tokens, patches));
        self.attention.forward_t(&tokens, self.class_tokens.size()[1], train)
    }
}

impl ClassAttention {
    fn new(vs: &Path, config: &PatchConvNetConfig) -> Result<Self, TchError> {
        let &PatchConvNetConfig { embed_dim: dim, init, class_tokens, .. } = config;
        let scheme = init.linear();
        let layer = |name: &str, weight| Linear::new(&(vs / name), dim, dim, weight, Some(scheme.bias(dim)));
        Ok(Self {
            queries: layer("q", init.attention(dim))?,
            keys: layer("k", init.attention(dim))?,
            values: layer("v", init.attention(dim))?,
            output: layer("proj", scheme.weight(dim, dim))?,
            class_tokens,
            drop: config.attn_drop,
        })
    }

    /// Tokens `[B, K + N, D]`, the `k` class tokens first, → `[B, K, D]`, and the probabilities
    /// `[B, 1, K, N or 1 + N]` before dropout.
    fn forward_t(&self, tokens: &Tensor, k: i64, train: bool) -> (Tensor, Tensor) {
        let classes = tokens.narrow(1, 0, k);
        let seen = match self.class_tokens {
            ClassTokens::Single => tokens.shallow_clone(),
            ClassTokens::PerClass => tokens.narrow(1, k, tokens.size()[1] - k),
        };
        let heads = |layer: &Linear, x: &Tensor| split_heads(&layer.forward(x), 1);
        let (queries, keys, values) =
            (heads(&self.queries, &classes), heads(&self.keys, &seen), heads(&self.values, &seen));
        let (mixed, probabilities) = attend((&queries, &keys, &values), None, self.drop, train);
        (self.output.forward(&merge_heads(&mixed)), probabilities)
    }
}

/// The layer scale `name` of a residual branch, if the network has any.
pub(crate) fn optional_scale(
    vs: &Path,
    name: &str,
    config: &PatchConvNetConfig,
) -> Result<Option<LayerScale>, TchError> {
    config.layer_scale.map(|value| LayerScale::new(vs, name, config.embed_dim, value)).transpose()
}

fn scaled(branch: Tensor, scale: Option<&LayerScale>) -> Tensor {
    match scale {
        Some(scale) => scale.forward(&branch),
        None => branch,
    }
}
