//! The network: tokenizer, encoder, pooling, head.

use core_layers::{
    AttentionConfig, Conv2d, Init, LayerNorm, Linear, Mlp, MlpConfig, Model, MultiHeadAttention, Padding,
    apply_drop_path, buffer, drop_path_mask, drop_path_rates, pad_same, parameter,
};
use tch::nn::Path;
use tch::{Kind, TchError, Tensor};

use crate::config::{CctConfig, CctInit, PositionEmbedding, Tokenizer, Wiring};

/// Of every layer norm in the family.
const NORM_EPS: f64 = 1e-5;

/// A CCT, CVT or ViT-Lite; see [`CctConfig`].
///
/// Features are the pooled `[B, embed_dim]` tokens. Attention maps are the weights of the sequence
/// pooling, `[B, 1, h, w]`, or those of the class token in the last block, `[B, heads, h, w]`.
#[derive(Debug)]
pub struct Cct {
    stages: Vec<Conv2d>,
    tokenizer: Tokenizer,
    position: Option<Tensor>,
    blocks: Vec<Block>,
    norm: LayerNorm,
    pooling: Pooling,
    head: Linear,
}

/// What makes one vector of the tokens.
#[derive(Debug)]
enum Pooling {
    /// A class token, `[1, 1, D]`, that the encoder sees first.
    ClassToken(Tensor),
    /// The mean of the tokens, weighted by a softmax over a learned score of each.
    Sequence(Linear),
}

#[derive(Debug)]
struct Block {
    first_norm: LayerNorm,
    attention: MultiHeadAttention,
    second_norm: LayerNorm,
    mlp: Mlp,
    wiring: Wiring,
    drop_path_rate: f64,
    shared_drop_path: bool,
}

impl Cct {
    pub(crate) fn new(vs: &Path, config: &CctConfig) -> Result<Self, TchError> {
        let dim = config.embed_dim;
        let classifier = vs / "classifier";
        let scheme = config.init.scheme();
        let stages = (0..config.conv_layers)
            .map(|stage| tokenizer_stage(&(vs / "tokenizer" / "conv_layers" / stage / 0), config, stage))
            .collect::<Result<Vec<_>, _>>()?;
        let tokens = config.tokens();
        let shape = [1, tokens, dim];
        let position = match (config.position_embedding, config.init) {
            (PositionEmbedding::None, _) => None,
            (PositionEmbedding::Sinusoidal, _) => {
                let mut position = buffer(&classifier, "positional_emb", &shape, Init::Zeros)?;
                position.f_copy_(&sinusoids(tokens, dim))?;
                Some(position)
            }
            (PositionEmbedding::Learned, CctInit::Official) => {
                Some(parameter(&classifier, "positional_emb", &shape, Init::Normal { std: 0.2 })?)
            }
            // Keras takes the fans of the matrix of tokens by channels.
            (PositionEmbedding::Learned, CctInit::Keras) => {
                let init = Init::GlorotUniform { fan_in: tokens, fan_out: dim };
                Some(parameter(&classifier, "positional_emb", &shape, init)?)
            }
        };
        let pooling = if config.class_token {
            Pooling::ClassToken(parameter(&classifier, "class_emb", &[1, 1, dim], Init::Zeros)?)
        } else {
            let path = &classifier / "attention_pool";
            Pooling::Sequence(Linear::new(&path, dim, 1, scheme.weight(dim, 1), Some(scheme.bias(dim)))?)
        };
        let rates = drop_path_rates(config.drop_path_rate, config.depth);
        let blocks = (0..)
            .zip(rates)
            .map(|(l, rate)| Block::new(&(&classifier / "blocks" / l), config, rate))
            .collect::<Result<Vec<_>, _>>()?;
        let classes = config.num_classes;
        Ok(Self {
            stages,
            tokenizer: config.tokenizer,
            position,
            blocks,
            norm: LayerNorm::new(&(&classifier / "norm"), dim, NORM_EPS)?,
            pooling,
            head: Linear::new(
                &(&classifier / "fc"),
                dim,
                classes,
                scheme.weight(dim, classes),
                Some(scheme.bias(dim)),
            )?,
        })
    }

    /// Images `[B, 3, H, W]` to tokens `[B, h·w, D]`, row by row, before the position embedding.
    pub fn tokenize(&self, images: &Tensor) -> Tensor {
        as_tokens(&self.token_map(images))
    }

    fn token_map(&self, images: &Tensor) -> Tensor {
        self.stages.iter().fold(images.shallow_clone(), |x, conv| {
            let y = conv.forward(&x);
            match self.tokenizer {
                Tokenizer::Patch => y,
                Tokenizer::Conv => y.relu().max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false),
                Tokenizer::TutorialConv => {
                    let padded = y.relu().constant_pad_nd([1, 1, 1, 1]);
                    pad_same(&padded, 3, 2, f64::NEG_INFINITY).max_pool2d(
                        [3, 3],
                        [2, 2],
                        [0, 0],
                        [1, 1],
                        false,
                    )
                }
            }
        })
    }

    /// Tokens `[B, h·w, D]` to the normalised tokens after the encoder, and the last block's
    /// attention probabilities.
    fn encode(&self, tokens: Tensor, train: bool) -> (Tensor, Tensor) {
        let mut x = tokens;
        if let Pooling::ClassToken(token) = &self.pooling {
            x = Tensor::cat(&[&token.expand([x.size()[0], -1, -1], false), &x], 1);
        }
        if let Some(position) = &self.position {
            x += position;
        }
        let mut probabilities = Tensor::new();
        for block in &self.blocks {
            (x, probabilities) = block.forward_t(&x, train);
        }
        (self.norm.forward(&x), probabilities)
    }
}

/// `[B, D, h, w]` → `[B, h·w, D]`, row by row.
fn as_tokens(map: &Tensor) -> Tensor {
    map.flatten(2, 3).transpose(1, 2)
}

fn tokenizer_stage(vs: &Path, config: &CctConfig, stage: i64) -> Result<Conv2d, TchError> {
    let (inputs, outputs) = config.stage_channels(stage);
    let kernel = config.kernel_size;
    let fan_in = inputs * kernel * kernel;
    let weight = match config.init {
        CctInit::Keras => Init::HeNormalTruncated { fan_in },
        CctInit::Official => Init::KaimingNormal { fan_in },
    };
    let bias = (config.tokenizer == Tokenizer::Patch).then_some(Init::TorchDefault { fan_in });
    let conv = Conv2d::new(vs, inputs, outputs, kernel, weight, bias)?;
    Ok(match config.tokenizer {
        Tokenizer::Patch => conv.stride(kernel),
        Tokenizer::TutorialConv => conv,
        Tokenizer::Conv => {
            conv.stride((kernel / 2 - 1).max(1)).padding(Padding::Symmetric((kernel / 2).max(1)))
        }
    })
}

impl Block {
    fn new(vs: &Path, config: &CctConfig, drop_path_rate: f64) -> Result<Self, TchError> {
        let &CctConfig { embed_dim: dim, num_heads, head_dim, init, .. } = config;
        let scheme = init.scheme();
        let (qkv_init, proj_init) = match init {
            CctInit::Official => (scheme.weight(dim, dim), scheme.weight(dim, dim)),
            // Keras up to 3.12 takes the kernels [D, h, d] and [h, d, D] for those of convolutions.
            CctInit::Keras => (
                Init::GlorotUniform { fan_in: dim * num_heads, fan_out: dim * head_dim },
                Init::GlorotUniform { fan_in: num_heads * head_dim, fan_out: num_heads * dim },
            ),
        };
        let attention = AttentionConfig {
            dim,
            num_heads,
            head_dim,
            qkv_bias: config.qkv_bias,
            attn_drop: config.attn_drop,
            qkv_init,
            proj_init,
            bias_init: Init::Zeros,
        };
        let mlp = MlpConfig {
            dim,
            hidden: config.mlp_hidden,
            activation: config.activation,
            act_on_output: config.act_on_output,
            drop: config.mlp_drop,
            init: scheme,
        };
        Ok(Self {
            first_norm: LayerNorm::new(&(vs / "pre_norm"), dim, NORM_EPS)?,
            attention: MultiHeadAttention::new(&(vs / "self_attn"), attention)?,
            second_norm: LayerNorm::new(&(vs / "norm1"), dim, NORM_EPS)?,
            mlp: Mlp::new(&(vs / "linear1"), &(vs / "linear2"), mlp)?,
            wiring: config.wiring,
            drop_path_rate,
            shared_drop_path: config.shared_drop_path,
        })
    }

    /// `[B, N, D]` → the same shape, and the attention probabilities `[B, heads, N, N]`.
    fn forward_t(&self, x: &Tensor, train: bool) -> (Tensor, Tensor) {
        let draw = || drop_path_mask(x, self.drop_path_rate, train);
        let first = draw();
        let second = if self.shared_drop_path { first.as_ref().map(Tensor::shallow_clone) } else { draw() };
        let (mixed, probabilities) = self.attention.with_probabilities(&self.first_norm.forward(x), train);
        let x = x + apply_drop_path(mixed, first.as_ref());
        let normed = self.second_norm.forward(&x);
        let branch = apply_drop_path(self.mlp.forward_t(&normed, train), second.as_ref());
        let residual = match self.wiring {
            Wiring::PreNorm => x,
            Wiring::NormedResidual => normed,
        };
        (residual + branch, probabilities)
    }
}

impl Model for Cct {
    fn forward_features(&self, images: &Tensor, train: bool) -> Tensor {
        let (tokens, _) = self.encode(self.tokenize(images), train);
        match &self.pooling {
            Pooling::ClassToken(_) => tokens.select(1, 0),
            Pooling::Sequence(scores) => {
                let weights = scores.forward(&tokens).softmax(1, Kind::Float); // [B, N, 1]
                weights.transpose(1, 2).matmul(&tokens).squeeze_dim(1) // [B, 1, N] x [B, N, D] -> [B, D]
            }
        }
    }

    fn forward_head(&self, features: &Tensor, _train: bool) -> Tensor {
        self.head.forward(features)
    }

    fn attention_maps(&self, images: &Tensor) -> Option<Tensor> {
        let map = self.token_map(images);
        let size = map.size();
        let (batch, height, width) = (size[0], size[2], size[3]);
        let (tokens, probabilities) = self.encode(as_tokens(&map), false);
        Some(match &self.pooling {
            Pooling::ClassToken(_) => {
                // The class token's row without its own entry: [B, heads, N - 1].
                let row = probabilities.select(2, 0).narrow(2, 1, height * width);
                row.reshape([batch, -1, height, width])
            }
            Pooling::Sequence(scores) => {
                scores.forward(&tokens).softmax(1, Kind::Float).reshape([batch, 1, height, width])
            }
        })
    }
}

/// Fixed embedding `[1, tokens, dim]`: angle p / 10000^(2⌊i/2⌋/dim), its sine on even channels and
/// its cosine on odd ones.
fn sinusoids(tokens: i64, dim: i64) -> Tensor {
    let value = |p: i64, i: i64| {
        let angle = p as f64 / 10000f64.powf((2 * (i / 2)) as f64 / dim as f64);
        if i % 2 == 0 { angle.sin() } else { angle.cos() }
    };
    let values: Vec<f32> = (0..tokens).flat_map(|p| (0..dim).map(move |i| value(p, i) as f32)).collect();
    Tensor::from_slice(&values).reshape([1, tokens, dim])
}

/// A position embedding `[1, prefix + N, D]` for another square grid of tokens: the prefix (a class
/// token's slot) stays, the rest is resized bilinearly as the official implementation does, N to
/// `side`².
///
/// # Errors
/// A number of positions that is no square, or libtorch's refusal.
pub fn resize_position_embedding(embedding: &Tensor, prefix: i64, side: i64) -> Result<Tensor, TchError> {
    let (_, tokens, dim) = embedding.size3()?;
    let old = ((tokens - prefix) as f64).sqrt().round() as i64;
    if prefix < 0 || old < 1 || old * old != tokens - prefix {
        return Err(TchError::Shape(format!("{tokens} positions less {prefix} are no square grid")));
    }
    let grid = embedding.f_narrow(1, prefix, old * old)?.f_reshape([1, old, old, dim])?;
    let resized = grid.f_permute([0, 3, 1, 2])?.f_upsample_bilinear2d([side, side], false, None, None)?;
    let resized = resized.f_permute([0, 2, 3, 1])?.f_reshape([1, side * side, dim])?;
    Tensor::f_cat(&[embedding.f_narrow(1, 0, prefix)?, resized], 1)
}
