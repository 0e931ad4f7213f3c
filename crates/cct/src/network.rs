//! The network: tokenizer, encoder, pooling, head.

use core_layers::{
    AttentionConfig, ClassEvidence, ConfigError, Conv2d, EncoderBlock, EncoderConfig, EncoderPaths, Init,
    LayerNorm, Linear, MlpConfig, Model, Padding, SequencePooling, add_position_embedding, buffer,
    drop_path_rates, first_token_map, map_to_tokens, pad_same, parameter, patch_embedding, prepend_tokens,
    sinusoidal_position_embedding,
};
use tch::nn::Path;
use tch::{TchError, Tensor};

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
    blocks: Vec<EncoderBlock>,
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
    Sequence(SequencePooling),
}

impl CctConfig {
    /// Builds the network with freshly drawn parameters under `vs`.
    ///
    /// # Errors
    /// A field out of its range, or what libtorch says when a tensor cannot be made.
    pub fn init(&self, vs: &Path) -> Result<Cct, ConfigError> {
        self.validate()?;
        Ok(Cct::new(vs, self)?)
    }
}

impl Cct {
    fn new(vs: &Path, config: &CctConfig) -> Result<Self, TchError> {
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
                position.f_copy_(&sinusoidal_position_embedding(tokens, dim))?;
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
            Pooling::Sequence(SequencePooling::new(&path, dim, scheme.weight(dim, 1), scheme.bias(dim))?)
        };
        let rates = drop_path_rates(config.drop_path_rate, config.depth);
        let blocks = (0..)
            .zip(rates)
            .map(|(l, rate)| encoder_block(&(&classifier / "blocks" / l), config, rate))
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
        map_to_tokens(&self.token_map(images))
    }

    fn token_map(&self, images: &Tensor) -> Tensor {
        self.stages.iter().fold(images.shallow_clone(), |x, conv| {
            let y = conv.forward(&x);
            // ReLU comes first in the networks. It commutes with a maximum, and after it there is a quarter to do.
            let pool = |y: &Tensor, padding| y.max_pool2d([3, 3], [2, 2], padding, [1, 1], true).relu();
            let even = y.size()[2..].iter().all(|side| side % 2 == 0);
            match self.tokenizer {
                Tokenizer::Patch => y,
                Tokenizer::Conv => y.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false).relu(),
                // A pixel of zeros around a map and one of −∞ at its end: no window lacks a pixel of the map, none of
                // which is below zero after ReLU, so that the zeros make no difference.
                Tokenizer::TutorialConv if even => pool(&y, [1, 1]),
                Tokenizer::TutorialConv => {
                    let padded = y.relu().constant_pad_nd([1, 1, 1, 1]);
                    pool(&pad_same(&padded, 3, 2, f64::NEG_INFINITY), [0, 0])
                }
            }
        })
    }

    /// Tokens `[B, h·w, D]` to the normalised tokens after the encoder.
    fn encode(&self, tokens: Tensor, train: bool) -> Tensor {
        let encoded =
            self.blocks.iter().fold(self.with_positions(tokens), |x, block| block.forward_t(&x, train));
        self.norm.forward(&encoded)
    }

    /// Tokens `[B, h·w, D]` as the first block gets them, behind a class token if there is one.
    fn with_positions(&self, tokens: Tensor) -> Tensor {
        let tokens = match &self.pooling {
            Pooling::ClassToken(token) => prepend_tokens(token, &tokens),
            Pooling::Sequence(_) => tokens,
        };
        match &self.position {
            Some(position) => add_position_embedding(&tokens, position),
            None => tokens,
        }
    }
}

fn tokenizer_stage(vs: &Path, config: &CctConfig, stage: i64) -> Result<Conv2d, TchError> {
    let (inputs, outputs) = config.stage_channels(stage);
    let kernel = config.kernel_size;
    let fan_in = inputs * kernel * kernel;
    let weight = match config.init {
        CctInit::Keras => Init::HeNormalTruncated { fan_in },
        CctInit::Official => Init::KaimingNormal { fan_in },
    };
    if config.tokenizer == Tokenizer::Patch {
        return patch_embedding(vs, outputs, kernel, weight, Init::TorchDefault { fan_in });
    }
    let conv = Conv2d::new(vs, inputs, outputs, kernel, weight, None)?;
    Ok(match config.tokenizer {
        Tokenizer::Patch | Tokenizer::TutorialConv => conv,
        Tokenizer::Conv => {
            conv.stride((kernel / 2 - 1).max(1)).padding(Padding::Symmetric((kernel / 2).max(1)))
        }
    })
}

/// The encoder block under `vs`.
fn encoder_block(vs: &Path, config: &CctConfig, drop_path_rate: f64) -> Result<EncoderBlock, TchError> {
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
        external_query: false,
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
        hidden_drop: config.mlp_drop,
        output_drop: config.mlp_drop,
        init: scheme,
    };
    let paths = EncoderPaths {
        first_norm: vs / "pre_norm",
        attention: vs / "self_attn",
        second_norm: vs / "norm1",
        mlp: [vs / "linear1", vs / "linear2"],
    };
    let config = EncoderConfig {
        attention,
        mlp,
        norm_eps: NORM_EPS,
        drop_path_rate,
        shared_drop_path: config.shared_drop_path,
        normed_residual: config.wiring == Wiring::NormedResidual,
    };
    EncoderBlock::new(&paths, config)
}

impl Model for Cct {
    fn forward_features(&self, images: &Tensor, train: bool) -> Tensor {
        let tokens = self.encode(self.tokenize(images), train);
        match &self.pooling {
            Pooling::ClassToken(_) => tokens.select(1, 0),
            Pooling::Sequence(pooling) => pooling.forward(&tokens),
        }
    }

    fn forward_head(&self, features: &Tensor, _train: bool) -> Tensor {
        self.head.forward(features)
    }

    fn attention_maps(&self, images: &Tensor) -> Option<Tensor> {
        let map = self.token_map(images);
        let size = map.size();
        let (batch, height, width) = (size[0], size[2], size[3]);
        let tokens = map_to_tokens(&map);
        Some(match (&self.pooling, self.blocks.split_last()) {
            (Pooling::Sequence(pooling), _) => {
                pooling.weights(&self.encode(tokens, false)).reshape([batch, 1, height, width])
            }
            (Pooling::ClassToken(_), Some((last, first))) => {
                let tokens = self.with_positions(tokens);
                let x = first.iter().fold(tokens, |x, block| block.forward_t(&x, false));
                first_token_map(&last.with_probabilities(&x, false).1, height, width)
            }
            (Pooling::ClassToken(_), None) => return None,
        })
    }

    /// The tokens that the sequence pooling sees; those that the last block sees, where a class token gathers them.
    fn class_evidence(&self, images: &Tensor) -> ClassEvidence {
        let map = self.token_map(images);
        let grid = [map.size()[2], map.size()[3]];
        let tokens = map_to_tokens(&map);
        match (&self.pooling, self.blocks.split_last()) {
            (Pooling::ClassToken(_), Some((last, first))) => {
                let x = first.iter().fold(self.with_positions(tokens), |x, block| block.forward_t(&x, false));
                let features = last.norm(&x);
                let encoded = last.forward_normed(&x, &features, false);
                let logits = self.head.forward(&self.norm.forward(&encoded).select(1, 0));
                ClassEvidence { features, grid, logits }
            }
            (pooling, _) => {
                let features = self.encode(tokens, false);
                let pooled = match pooling {
                    Pooling::ClassToken(_) => features.select(1, 0),
                    Pooling::Sequence(pooling) => pooling.forward(&features),
                };
                ClassEvidence { logits: self.head.forward(&pooled), features, grid }
            }
        }
    }

    fn kernels(&self) -> Vec<(&'static str, Tensor)> {
        self.stages.first().map(|conv| ("tokenizer", conv.weight().detach())).into_iter().collect()
    }
}
