//! The network: stem, trunk, pooling, head.

use core_layers::{
    Activation, ClassEvidence, ConfigError, Conv2d, Linear, Model, Padding, map_to_tokens, parameter, trace,
};
use tch::nn::Path;
use tch::{Kind, TchError, Tensor};

use crate::config::{ClassTokens, Design, PatchConvNetConfig};
use crate::pooling::AttentionPooling;
use crate::trunk::TrunkBlock;

/// A PatchConvNet; see [`PatchConvNetConfig`].
///
/// Features are the class token after the pooling, `[B, D]`, or the class tokens, `[B, K, D]`, where
/// every one of the K classes has one. Attention maps are the class token's attention to the patches,
/// `[B, 1, h, w]`; where every class has one, their mean.
#[derive(Debug)]
pub struct PatchConvNet {
    stem: Vec<Conv2d>,
    /// One block for all of a tied trunk.
    trunk: Vec<TrunkBlock>,
    pooling: AttentionPooling,
    head: Head,
    design: Design,
    activation: Activation,
    depth: usize,
}

/// What makes logits of class tokens.
#[derive(Debug)]
enum Head {
    /// All logits of the only token.
    Single(Linear),
    /// A logit of each token by weights `[1, D]` and a bias `[1]` of its own.
    PerClass { weights: Vec<Tensor>, biases: Vec<Tensor> },
}

impl PatchConvNetConfig {
    /// Builds the network with freshly drawn parameters under `vs`.
    ///
    /// # Errors
    /// A field out of its range, or what libtorch says when a tensor cannot be made.
    pub fn init(&self, vs: &Path) -> Result<PatchConvNet, ConfigError> {
        self.validate()?;
        Ok(PatchConvNet::new(vs, self)?)
    }
}

impl PatchConvNet {
    fn new(vs: &Path, config: &PatchConvNetConfig) -> Result<Self, TchError> {
        let design = config.design;
        let channels = config.stem_channels();
        let stem = (0..).zip(channels.windows(2)).map(|(i, pair)| {
            let path = match design {
                Design::Tutorial => vs / "stem" / i,
                Design::Official => vs / "patch_embed" / "proj" / (2 * i) / 0,
            };
            stem_convolution(&path, config, pair[0], pair[1])
        });
        let stem = stem.collect::<Result<_, _>>()?;
        let blocks = vs
            / match design {
                Design::Tutorial => "trunk",
                Design::Official => "blocks",
            };
        let trunk = if config.tied_trunk {
            vec![TrunkBlock::new(&blocks, config)?]
        } else {
            (0..config.depth).map(|i| TrunkBlock::new(&(&blocks / i), config)).collect::<Result<_, _>>()?
        };
        Ok(Self {
            stem,
            trunk,
            pooling: AttentionPooling::new(vs, config)?,
            head: Head::new(&(vs / "head"), config)?,
            design,
            activation: config.activation,
            depth: config.depth as usize,
        })
    }

    /// Images `[B, 3, H, W]` to the map of patches the trunk starts from, `[B, D, h, w]`.
    pub fn embed_patches(&self, images: &Tensor) -> Tensor {
        let last = self.stem.len() - 1;
        self.stem.iter().enumerate().fold(images.shallow_clone(), |x, (i, conv)| {
            let y = conv.forward(&x);
            match self.design {
                Design::Official if i == last => y,
                Design::Tutorial | Design::Official => self.activation.forward(&y),
            }
        })
    }

    /// Where each class token looks, `[B, K, h, w]` for images `[B, 3, H, W]`: K is the number of
    /// classes where every one has a token, and 1 elsewhere. Attention to patches sums to one; a
    /// single token keeps a share of it for itself, which is left out.
    pub fn class_attention_maps(&self, images: &Tensor) -> Tensor {
        let maps = self.encode(images, false);
        let size = maps.size();
        let attention = self.pooling.patch_attention(&map_to_tokens(&maps)); // [B, K, h·w]
        attention.reshape([size[0], -1, size[2], size[3]])
    }

    /// Images `[B, 3, H, W]` to the map the pooling sees, `[B, D, h, w]`.
    fn encode(&self, images: &Tensor, train: bool) -> Tensor {
        let blocks = self.trunk.iter().cycle().take(self.depth);
        blocks.fold(self.embed_patches(images), |x, block| block.forward_t(&x, train))
    }

    /// The map the pooling sees, `[B, D, h, w]`, to features.
    fn pool(&self, maps: &Tensor, train: bool) -> Tensor {
        let tokens = self.pooling.forward_t(&map_to_tokens(maps), train);
        match self.head {
            Head::Single(_) => tokens.select(1, 0),
            Head::PerClass { .. } => tokens,
        }
    }
}

fn stem_convolution(
    vs: &Path,
    config: &PatchConvNetConfig,
    inputs: i64,
    outputs: i64,
) -> Result<Conv2d, TchError> {
    let scheme = config.init.convolution();
    let (fan_in, fan_out) = (9 * inputs, 9 * outputs);
    let (padding, bias) = match config.design {
        Design::Tutorial => (Padding::Same, Some(scheme.bias(fan_in))),
        Design::Official => (Padding::Symmetric(1), None),
    };
    let conv = Conv2d::new(vs, inputs, outputs, 3, scheme.weight(fan_in, fan_out), bias)?;
    Ok(conv.stride(2).padding(padding))
}

impl Head {
    fn new(vs: &Path, config: &PatchConvNetConfig) -> Result<Self, TchError> {
        let &PatchConvNetConfig { embed_dim: dim, num_classes, .. } = config;
        let scheme = config.init.linear();
        Ok(match config.class_tokens {
            ClassTokens::Single => {
                let weight = scheme.weight(dim, num_classes);
                Self::Single(Linear::new(vs, dim, num_classes, weight, Some(scheme.bias(dim)))?)
            }
            ClassTokens::PerClass => Self::PerClass {
                weights: (0..num_classes)
                    .map(|c| parameter(&(vs / c), "weight", &[1, dim], scheme.weight(dim, 1)))
                    .collect::<Result<_, _>>()?,
                biases: (0..num_classes)
                    .map(|c| parameter(&(vs / c), "bias", &[1], scheme.bias(dim)))
                    .collect::<Result<_, _>>()?,
            },
        })
    }
}

impl Model for PatchConvNet {
    fn forward_features(&self, images: &Tensor, train: bool) -> Tensor {
        self.pool(&self.encode(images, train), train)
    }

    fn forward_head(&self, features: &Tensor, _train: bool) -> Tensor {
        match &self.head {
            Head::Single(head) => head.forward(features),
            // All classes at once: [B, K, D] x [K, D], summed over channels.
            Head::PerClass { weights, biases } => {
                let products = features * Tensor::cat(weights, 0);
                let scores = products.sum_dim_intlist([2i64].as_slice(), false, Kind::Float);
                let logits = scores + Tensor::cat(biases, 0);
                let tensors: Vec<_> = weights.iter().chain(biases).map(Some).collect();
                trace::step("Linear", &tensors, &logits, &features.size()[2..]);
                logits
            }
        }
    }

    fn attention_maps(&self, images: &Tensor) -> Option<Tensor> {
        let maps = self.class_attention_maps(images);
        Some(maps.mean_dim([1i64].as_slice(), true, Kind::Float))
    }

    /// The map that the pooling sees.
    fn class_evidence(&self, images: &Tensor) -> ClassEvidence {
        let features = self.encode(images, false);
        let grid = [features.size()[2], features.size()[3]];
        ClassEvidence { logits: self.forward_head(&self.pool(&features, false), false), features, grid }
    }

    fn kernels(&self) -> Vec<(&'static str, Tensor)> {
        self.stem.first().map(|conv| ("stem", conv.weight().detach())).into_iter().collect()
    }
}
