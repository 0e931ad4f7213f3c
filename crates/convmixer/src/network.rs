//! The network: stem, blocks, global mean, linear head.

use core_layers::{Activation, BatchNorm2d, ClassEvidence, ConfigError, Conv2d, Linear, Model, Padding};
use tch::nn::Path;
use tch::{Kind, TchError, Tensor};

use crate::config::ConvMixerConfig;

/// A ConvMixer; see [`ConvMixerConfig`].
///
/// Features are the `[B, embed_dim]` global mean of the last block's map.
#[derive(Debug)]
pub struct ConvMixer {
    stem: Conv2d,
    stem_norm: BatchNorm2d,
    blocks: Vec<Block>,
    head: Linear,
    activation: Activation,
}

/// Mixes positions with a residual depthwise convolution, then channels with a 1×1 convolution
/// that has no residual.
#[derive(Debug)]
struct Block {
    depthwise: Conv2d,
    depthwise_norm: BatchNorm2d,
    pointwise: Conv2d,
    pointwise_norm: BatchNorm2d,
}

impl ConvMixerConfig {
    /// Builds the network with freshly drawn parameters under `vs`.
    ///
    /// # Errors
    /// A field out of its range, or what libtorch says when a tensor cannot be made.
    pub fn init(&self, vs: &Path) -> Result<ConvMixer, ConfigError> {
        self.validate()?;
        Ok(ConvMixer::new(vs, self)?)
    }
}

impl ConvMixer {
    fn new(vs: &Path, config: &ConvMixerConfig) -> Result<Self, TchError> {
        let &ConvMixerConfig { embed_dim, patch_size, num_classes, init, .. } = config;
        // The numbers in the paths are the positions timm's nested sequences give the layers.
        let stem = vs / "stem";
        let fan_in = 3 * patch_size * patch_size;
        let weight = init.weight(fan_in, patch_size * patch_size * embed_dim);
        Ok(Self {
            stem: Conv2d::new(&(&stem / 0), 3, embed_dim, patch_size, weight, Some(init.bias(fan_in)))?
                .stride(patch_size),
            stem_norm: norm(&(&stem / 2), config)?,
            blocks: (0..config.depth)
                .map(|i| Block::new(&(vs / "blocks" / i), config))
                .collect::<Result<_, _>>()?,
            head: Linear::new(
                &(vs / "head"),
                embed_dim,
                num_classes,
                init.weight(embed_dim, num_classes),
                Some(init.bias(embed_dim)),
            )?,
            activation: config.activation,
        })
    }

    /// The patch embedding the blocks start from: images `[B, 3, H, W]` to `[B, C, H/p, W/p]`.
    pub fn embed(&self, images: &Tensor, train: bool) -> Tensor {
        self.stem_norm.forward_activated_t(&self.stem.forward(images), self.activation, None, train)
    }

    /// Images `[B, 3, H, W]` to the last block's map `[B, C, H/p, W/p]`.
    fn mix(&self, images: &Tensor, train: bool) -> Tensor {
        self.blocks
            .iter()
            .fold(self.embed(images, train), |x, block| block.forward_t(&x, self.activation, train))
    }
}

/// `[B, C, h, w]` → `[B, C]`.
fn mean_over_positions(map: &Tensor) -> Tensor {
    map.mean_dim([2i64, 3].as_slice(), false, Kind::Float)
}

impl Block {
    fn new(vs: &Path, config: &ConvMixerConfig) -> Result<Self, TchError> {
        let &ConvMixerConfig { embed_dim, kernel_size, init, .. } = config;
        let residual = vs / 0 / "fn";
        let kernel_area = kernel_size * kernel_size;
        let depthwise = init.depthwise_weight(kernel_size, embed_dim);
        let pointwise = init.weight(embed_dim, embed_dim);
        Ok(Self {
            depthwise: Conv2d::depthwise(
                &(&residual / 0),
                embed_dim,
                kernel_size,
                depthwise,
                Some(init.bias(kernel_area)),
            )?
            .padding(Padding::Same),
            depthwise_norm: norm(&(&residual / 2), config)?,
            pointwise: Conv2d::new(
                &(vs / 1),
                embed_dim,
                embed_dim,
                1,
                pointwise,
                Some(init.bias(embed_dim)),
            )?,
            pointwise_norm: norm(&(vs / 3), config)?,
        })
    }

    /// `[B, C, H, W]` → the same shape.
    fn forward_t(&self, x: &Tensor, activation: Activation, train: bool) -> Tensor {
        let mixed = self.depthwise.forward(x);
        let x = self.depthwise_norm.forward_activated_t(&mixed, activation, Some(x), train);
        self.pointwise_norm.forward_activated_t(&self.pointwise.forward(&x), activation, None, train)
    }
}

fn norm(vs: &Path, config: &ConvMixerConfig) -> Result<BatchNorm2d, TchError> {
    BatchNorm2d::new(vs, config.embed_dim, config.bn_momentum, config.bn_eps)
}

impl Model for ConvMixer {
    fn forward_features(&self, images: &Tensor, train: bool) -> Tensor {
        mean_over_positions(&self.mix(images, train))
    }

    fn forward_head(&self, features: &Tensor, _train: bool) -> Tensor {
        self.head.forward(features)
    }

    /// The last block's map.
    fn class_evidence(&self, images: &Tensor) -> ClassEvidence {
        let features = self.mix(images, false);
        let grid = [features.size()[2], features.size()[3]];
        ClassEvidence { logits: self.head.forward(&mean_over_positions(&features)), features, grid }
    }

    /// The patch embeddings, and the depthwise kernels of the first, the middle and the last block.
    fn kernels(&self) -> Vec<(&'static str, Tensor)> {
        let depthwise = |block: usize| self.blocks.get(block).map(|block| block.depthwise.weight().detach());
        let (middle, last) = (self.blocks.len() / 2, self.blocks.len().saturating_sub(1));
        let named = [
            ("first depthwise kernels", 0),
            ("middle depthwise kernels", middle),
            ("last depthwise kernels", last),
        ];
        let patches = [("patch embeddings", self.stem.weight().detach())];
        let kernels = named.into_iter().filter_map(|(name, block)| Some((name, depthwise(block)?)));
        patches.into_iter().chain(kernels).collect()
    }
}
