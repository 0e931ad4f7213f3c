//! The network: patch embedding, encoder, head.

use core_layers::{
    AttentionConfig, ClassEvidence, ConfigError, Conv2d, EncoderBlock, EncoderConfig, EncoderPaths, Init,
    LayerNorm, Linear, MlpConfig, Model, add_position_embedding, drop_path_rates, first_token_map,
    map_to_tokens, parameter, patch_embedding, position_similarity, prepend_tokens,
};
use tch::nn::Path;
use tch::{Kind, TchError, Tensor};

use crate::config::{VitConfig, VitInit};

/// Of every layer norm in the family.
const NORM_EPS: f64 = 1e-6;

/// A Vision Transformer; see [`VitConfig`].
///
/// Features are the `[B, embed_dim]` class token after the last norm. Attention maps are the class
/// token's attention to the patches in the last block, `[B, heads, h, w]`.
#[derive(Debug)]
pub struct Vit {
    patches: Conv2d,
    class_token: Tensor,
    position: Tensor,
    blocks: Vec<EncoderBlock>,
    norm: LayerNorm,
    head: Linear,
    grid: i64,
}

impl VitConfig {
    /// Builds the network with freshly drawn parameters under `vs`.
    ///
    /// # Errors
    /// A field out of its range, or what libtorch says when a tensor cannot be made.
    pub fn init(&self, vs: &Path) -> Result<Vit, ConfigError> {
        self.validate()?;
        Ok(Vit::new(vs, self)?)
    }
}

impl Vit {
    fn new(vs: &Path, config: &VitConfig) -> Result<Self, TchError> {
        let &VitConfig { embed_dim: dim, patch_size, num_classes, init, .. } = config;
        let scheme = init.scheme();
        let fan_in = 3 * patch_size * patch_size;
        let (patch_weight, patch_bias, class_token) = match init {
            // The tutorial's patch embedding is a dense layer over a flattened patch.
            VitInit::Keras => (Init::GlorotUniform { fan_in, fan_out: dim }, Init::Zeros, Init::Zeros),
            VitInit::Timm => {
                let torch = Init::TorchDefault { fan_in };
                (torch, torch, Init::Normal { std: 1e-6 })
            }
        };
        let tokens = config.grid() * config.grid() + 1;
        let rates = drop_path_rates(config.drop_path_rate, config.depth);
        Ok(Self {
            patches: patch_embedding(
                &(vs / "patch_embed" / "proj"),
                dim,
                patch_size,
                patch_weight,
                patch_bias,
            )?,
            class_token: parameter(vs, "cls_token", &[1, 1, dim], class_token)?,
            position: parameter(vs, "pos_embed", &[1, tokens, dim], Init::Normal { std: 0.02 })?,
            blocks: (0..)
                .zip(rates)
                .map(|(i, rate)| encoder_block(&(vs / "blocks" / i), config, rate))
                .collect::<Result<_, _>>()?,
            norm: LayerNorm::new(&(vs / "norm"), dim, NORM_EPS)?,
            head: Linear::new(
                &(vs / "head"),
                dim,
                num_classes,
                scheme.weight(dim, num_classes),
                Some(scheme.bias(dim)),
            )?,
            grid: config.grid(),
        })
    }

    /// Images `[B, 3, H, W]` to patch tokens `[B, h·w, D]`, row by row, before class token and
    /// position embedding.
    pub fn embed_patches(&self, images: &Tensor) -> Tensor {
        map_to_tokens(&self.patches.forward(images))
    }

    /// Images `[B, 3, H, W]` to what the first block gets, `[B, 1 + h·w, D]`.
    fn tokens(&self, images: &Tensor) -> Tensor {
        let tokens = prepend_tokens(&self.class_token, &self.embed_patches(images));
        add_position_embedding(&tokens, &self.position)
    }

    /// The tokens after the last block, before the norm, and each block's attention probabilities
    /// `[B, heads, N, N]` if they are wanted.
    fn encode(&self, images: &Tensor, train: bool, mut probabilities: Option<&mut Vec<Tensor>>) -> Tensor {
        let mut x = self.tokens(images);
        for block in &self.blocks {
            x = match probabilities.as_deref_mut() {
                None => block.forward_t(&x, train),
                Some(all) => {
                    let (y, attention) = block.with_probabilities(&x, train);
                    all.push(attention);
                    y
                }
            };
        }
        x
    }

    /// Attention probabilities of every block, `[B, heads, N, N]` with the class token first, for
    /// images `[B, 3, H, W]`.
    pub fn block_attention(&self, images: &Tensor) -> Vec<Tensor> {
        let mut all = Vec::new();
        let _ = self.encode(images, false, Some(&mut all));
        all
    }

    /// Attention rollout (Abnar & Zuidema, arXiv:2005.00928): how much of each patch reaches the
    /// class token through all blocks, `[B, 1, h, w]`. In each block the heads are averaged, the
    /// residual counts as much as the attention, and rows sum to one.
    pub fn attention_rollout(&self, images: &Tensor) -> Tensor {
        let all = self.block_attention(images);
        let n = self.grid * self.grid + 1;
        let identity = Tensor::eye(n, (Kind::Float, images.device()));
        let rolled = all.iter().fold(identity.unsqueeze(0), |rolled, attention| {
            let mixed = attention.mean_dim([1i64].as_slice(), false, Kind::Float) * 0.5 + &identity * 0.5;
            mixed.matmul(&rolled) // [B, N, N] x [B, N, N]
        });
        rolled.select(1, 0).narrow(1, 1, n - 1).reshape([-1, 1, self.grid, self.grid])
    }
}

/// The encoder block under `vs`.
fn encoder_block(vs: &Path, config: &VitConfig, drop_path_rate: f64) -> Result<EncoderBlock, TchError> {
    let &VitConfig { embed_dim: dim, num_heads, mlp_hidden, activation, act_on_output, mlp_drop, .. } =
        config;
    let init = config.init.scheme();
    let attention = AttentionConfig {
        dim,
        num_heads,
        head_dim: dim / num_heads,
        qkv_bias: config.qkv_bias,
        external_query: false,
        attn_drop: 0.0,
        // In the tutorial too the three are one dense layer.
        qkv_init: init.weight(dim, 3 * dim),
        proj_init: init.weight(dim, dim),
        bias_init: Init::Zeros,
    };
    let (hidden_drop, output_drop) = (mlp_drop, mlp_drop);
    let mlp =
        MlpConfig { dim, hidden: mlp_hidden, activation, act_on_output, hidden_drop, output_drop, init };
    let paths = EncoderPaths {
        first_norm: vs / "norm1",
        attention: vs / "attn",
        second_norm: vs / "norm2",
        mlp: [vs / "mlp" / "fc1", vs / "mlp" / "fc2"],
    };
    let (shared_drop_path, normed_residual) = (false, false);
    let config = EncoderConfig {
        attention,
        mlp,
        norm_eps: NORM_EPS,
        drop_path_rate,
        shared_drop_path,
        normed_residual,
    };
    EncoderBlock::new(&paths, config)
}

impl Model for Vit {
    fn forward_features(&self, images: &Tensor, train: bool) -> Tensor {
        self.norm.forward(&self.encode(images, train, None).select(1, 0))
    }

    fn forward_head(&self, features: &Tensor, _train: bool) -> Tensor {
        self.head.forward(features)
    }

    fn attention_maps(&self, images: &Tensor) -> Option<Tensor> {
        let last = self.block_attention(images).pop()?;
        Some(first_token_map(&last, self.grid, self.grid))
    }

    fn attention_rollout(&self, images: &Tensor) -> Option<Tensor> {
        Some(Self::attention_rollout(self, images))
    }

    /// The tokens that the last block sees: of those after it, only the class token decides.
    fn class_evidence(&self, images: &Tensor) -> ClassEvidence {
        let tokens = self.tokens(images);
        let (features, encoded) = match self.blocks.split_last() {
            Some((last, first)) => {
                let x = first.iter().fold(tokens, |x, block| block.forward_t(&x, false));
                let normed = last.norm(&x);
                let encoded = last.forward_normed(&x, &normed, false);
                (normed, encoded)
            }
            None => (tokens.shallow_clone(), tokens),
        };
        let logits = self.head.forward(&self.norm.forward(&encoded.select(1, 0)));
        ClassEvidence { features, grid: [self.grid; 2], logits }
    }

    fn kernels(&self) -> Vec<(&'static str, Tensor)> {
        vec![("patch embeddings", self.patches.weight().detach())]
    }

    fn position_similarity(&self) -> Option<Tensor> {
        Some(position_similarity(&self.position, self.grid, self.grid))
    }
}
