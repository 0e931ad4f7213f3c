//! The numbers that make a CCT, CVT or ViT-Lite, and the variants that have a name.

use core_layers::{
    Activation, ConfigError, InitScheme, Variant, count, field_error, require_rates, require_sizes,
};
use serde::{Deserialize, Serialize};

/// How an image becomes tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tokenizer {
    /// Stages of convolution, ReLU and max pool, padded as the official implementation does: half
    /// the kernel around the convolution, one pixel around the pool.
    Conv,
    /// The same stages as the Keras tutorial pads them: an unpadded convolution, ReLU, one pixel of
    /// zeros all around, a "same" pool.
    TutorialConv,
    /// One convolution with the stride of its kernel: CVT and ViT-Lite.
    Patch,
}

/// Which normalised tensor the second residual of a block starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wiring {
    /// Each branch normalises its own input; the residual stream is never normalised.
    PreNorm,
    /// The official layer: its second norm replaces the residual stream.
    NormedResidual,
}

/// What is added to the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionEmbedding {
    /// A trained tensor.
    Learned,
    /// Sines and cosines, stored and not trained.
    Sinusoidal,
    /// Nothing.
    None,
}

/// What parameters start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CctInit {
    /// Keras 3.12 and before, with which the tutorial's log was made.
    Keras,
    /// The official implementation.
    Official,
}

/// Everything that decides a network of this family.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CctConfig {
    /// Side of the images, in pixels.
    pub image_size: i64,
    /// Number of logits.
    pub num_classes: i64,
    /// How an image becomes tokens.
    pub tokenizer: Tokenizer,
    /// Stages of the convolutional tokenizers; all but the last have 64 channels.
    pub conv_layers: i64,
    /// Side of the tokenizer's kernels, in pixels.
    pub kernel_size: i64,
    /// Channels of the tokens.
    pub embed_dim: i64,
    /// Number of encoder blocks.
    pub depth: i64,
    /// Number of attention heads.
    pub num_heads: i64,
    /// Channels of each head.
    pub head_dim: i64,
    /// Biases on queries, keys and values.
    pub qkv_bias: bool,
    /// Channels between the layers of the MLP.
    pub mlp_hidden: i64,
    /// Activation of the MLP.
    pub activation: Activation,
    /// Whether the activation follows the MLP's second layer too.
    pub act_on_output: bool,
    /// How the branches of a block are joined.
    pub wiring: Wiring,
    /// What is added to the tokens.
    pub position_embedding: PositionEmbedding,
    /// A class token whose output is classified, instead of the learned mean over tokens.
    pub class_token: bool,
    /// Dropout rate of the attention probabilities.
    pub attn_drop: f64,
    /// Dropout rate after each layer of the MLP.
    pub mlp_drop: f64,
    /// Stochastic depth of the last block; it rises evenly from 0 in the first.
    pub drop_path_rate: f64,
    /// One draw of stochastic depth for both branches of a block, as the tutorial's equally seeded
    /// generators amount to.
    pub shared_drop_path: bool,
    /// What parameters start from.
    pub init: CctInit,
}

impl CctConfig {
    /// The network of the Keras tutorial on CIFAR-10: CCT-2/3x2 with heads twice as wide. 416,331
    /// parameters.
    pub fn reference() -> Self {
        Self {
            tokenizer: Tokenizer::TutorialConv,
            head_dim: 128,
            qkv_bias: true,
            activation: Activation::GeluTanh,
            act_on_output: true,
            wiring: Wiring::PreNorm,
            mlp_drop: 0.1,
            shared_drop_path: true,
            init: CctInit::Keras,
            ..Self::cct(2, 3, 2)
        }
    }

    /// CCT-`depth`/`kernel_size`x`conv_layers` for 32×32 images and ten classes.
    pub fn cct(depth: i64, kernel_size: i64, conv_layers: i64) -> Self {
        // Width, heads and MLP ratio go with the depth.
        let (embed_dim, num_heads, mlp_ratio) = match depth {
            0..=5 => (128, 2, 1),
            6..=7 => (256, 4, 2),
            _ => (384, 6, 3),
        };
        Self {
            image_size: 32,
            num_classes: 10,
            tokenizer: Tokenizer::Conv,
            conv_layers,
            kernel_size,
            embed_dim,
            depth,
            num_heads,
            head_dim: embed_dim / num_heads,
            qkv_bias: false,
            mlp_hidden: mlp_ratio * embed_dim,
            activation: Activation::Gelu,
            act_on_output: false,
            wiring: Wiring::NormedResidual,
            position_embedding: PositionEmbedding::Learned,
            class_token: false,
            attn_drop: 0.1,
            mlp_drop: 0.0,
            drop_path_rate: 0.1,
            shared_drop_path: false,
            init: CctInit::Official,
        }
    }

    /// CVT-`depth`/4: patches of 4×4 instead of the convolutional tokenizer.
    pub fn cvt(depth: i64) -> Self {
        Self { tokenizer: Tokenizer::Patch, ..Self::cct(depth, 4, 1) }
    }

    /// ViT-Lite-`depth`/4: CVT with a class token.
    pub fn vit_lite(depth: i64) -> Self {
        Self { class_token: true, ..Self::cvt(depth) }
    }

    /// The same network for other images and classes.
    fn at(self, image_size: i64, num_classes: i64) -> Self {
        Self { image_size, num_classes, ..self }
    }

    fn sinusoidal(self) -> Self {
        Self { position_embedding: PositionEmbedding::Sinusoidal, ..self }
    }

    /// Channels of the tokenizer's convolution `stage`, in and out.
    pub(crate) fn stage_channels(&self, stage: i64) -> (i64, i64) {
        let last = stage + 1 == self.conv_layers;
        (if stage == 0 { 3 } else { 64 }, if last { self.embed_dim } else { 64 })
    }

    /// Side of the maps each stage's convolution gives, and of the map of tokens; `None` where an
    /// image is too small.
    pub(crate) fn map_sides(&self) -> Option<(Vec<i64>, i64)> {
        let (kernel, mut side) = (self.kernel_size, self.image_size);
        let mut convolved = Vec::new();
        for _ in 0..self.conv_layers {
            let (stride, padding) = match self.tokenizer {
                Tokenizer::Conv => ((kernel / 2 - 1).max(1), (kernel / 2).max(1)),
                Tokenizer::TutorialConv => (1, 0),
                Tokenizer::Patch => (kernel, 0),
            };
            if side + 2 * padding < kernel {
                return None;
            }
            side = (side + 2 * padding - kernel) / stride + 1;
            convolved.push(side);
            side = match self.tokenizer {
                Tokenizer::Conv => (side - 1) / 2 + 1,
                Tokenizer::TutorialConv => (side + 2 + 1) / 2,
                Tokenizer::Patch => side,
            };
        }
        Some((convolved, side))
    }

    /// Tokens the encoder sees, the class token included.
    pub(crate) fn tokens(&self) -> i64 {
        let side = self.map_sides().map_or(0, |(_, side)| side);
        side * side + i64::from(self.class_token)
    }
}

impl CctConfig {
    /// Every variant with a name.
    pub const VARIANTS: &'static [Variant<Self>] = &[
        Variant { name: "cct_reference", config: Self::reference },
        Variant { name: "cct_2_3x2_32", config: || Self::cct(2, 3, 2) },
        Variant { name: "cct_4_3x2_32", config: || Self::cct(4, 3, 2) },
        Variant { name: "cct_6_3x1_32", config: || Self::cct(6, 3, 1) },
        Variant { name: "cct_6_3x2_32", config: || Self::cct(6, 3, 2) },
        Variant { name: "cct_7_3x1_32", config: || Self::cct(7, 3, 1) },
        Variant { name: "cct_7_3x1_32_sine", config: || Self::cct(7, 3, 1).sinusoidal() },
        Variant { name: "cct_7_3x1_32_c100", config: || Self::cct(7, 3, 1).at(32, 100) },
        Variant { name: "cct_7_3x2_32", config: || Self::cct(7, 3, 2) },
        Variant { name: "cct_7_7x2_224", config: || Self::cct(7, 7, 2).at(224, 1000) },
        Variant { name: "cct_7_7x2_224_flowers", config: || Self::cct(7, 7, 2).at(224, 102) },
        Variant { name: "cct_14_7x2_224", config: || Self::cct(14, 7, 2).at(224, 1000) },
        Variant { name: "cct_14_7x2_384", config: || Self::cct(14, 7, 2).at(384, 1000) },
        Variant { name: "cvt_2_4_32", config: || Self::cvt(2) },
        Variant { name: "cvt_4_4_32", config: || Self::cvt(4) },
        Variant { name: "cvt_6_4_32", config: || Self::cvt(6) },
        Variant { name: "cvt_7_4_32", config: || Self::cvt(7) },
        Variant { name: "vit_lite_2_4_32", config: || Self::vit_lite(2) },
        Variant { name: "vit_lite_4_4_32", config: || Self::vit_lite(4) },
        Variant { name: "vit_lite_6_4_32", config: || Self::vit_lite(6) },
        Variant { name: "vit_lite_7_4_32", config: || Self::vit_lite(7) },
    ];

    /// Checks every field.
    ///
    /// # Errors
    /// The first field out of its range, with the range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        require_sizes(&[
            ("image_size", self.image_size, 4_096),
            ("num_classes", self.num_classes, 1_000_000),
            ("conv_layers", self.conv_layers, 8),
            ("kernel_size", self.kernel_size, 255),
            ("embed_dim", self.embed_dim, 16_384),
            ("depth", self.depth, 1_024),
            ("num_heads", self.num_heads, 1_024),
            ("head_dim", self.head_dim, 16_384),
            ("mlp_hidden", self.mlp_hidden, 65_536),
        ])?;
        require_rates(&[
            ("attn_drop", self.attn_drop),
            ("mlp_drop", self.mlp_drop),
            ("drop_path_rate", self.drop_path_rate),
        ])?;
        if self.tokenizer == Tokenizer::Patch && self.conv_layers != 1 {
            return Err(field_error("conv_layers", self.conv_layers, "1 with tokenizer \"patch\""));
        }
        if self.map_sides().is_none_or(|(_, side)| side < 1) {
            return Err(field_error("image_size", self.image_size, "large enough for the tokenizer"));
        }
        Ok(())
    }

    /// Trainable parameters of a valid configuration, counted without building the network.
    pub fn param_count(&self) -> u64 {
        let (d, k, inner) = (self.embed_dim, self.kernel_size, self.num_heads * self.head_dim);
        let convolutions: u64 = (0..self.conv_layers)
            .map(|stage| {
                let (inputs, outputs) = self.stage_channels(stage);
                count(&[inputs, outputs, k, k])
            })
            .sum();
        let patch_bias = if self.tokenizer == Tokenizer::Patch { count(&[d]) } else { 0 };
        let positions = match self.position_embedding {
            PositionEmbedding::Learned => count(&[self.tokens(), d]),
            PositionEmbedding::Sinusoidal | PositionEmbedding::None => 0,
        };
        let norm = count(&[2, d]);
        let qkv = count(&[3, inner, d]) + if self.qkv_bias { count(&[3, inner]) } else { 0 };
        let proj = count(&[inner, d]) + count(&[d]);
        let mlp = count(&[2, d, self.mlp_hidden]) + count(&[self.mlp_hidden]) + count(&[d]);
        let block = 2 * norm + qkv + proj + mlp;
        // A class token, or the pooling's weight and bias.
        let pooling = count(&[d]) + u64::from(!self.class_token);
        let head = count(&[self.num_classes, d + 1]);
        convolutions + patch_bias + positions + count(&[self.depth]) * block + norm + pooling + head
    }

    /// Multiply-accumulates of convolutions and matrix products in one forward pass on one image of
    /// `image_size`, attention products included, for a valid configuration.
    pub fn macs(&self) -> u64 {
        let (d, k, inner) = (self.embed_dim, self.kernel_size, self.num_heads * self.head_dim);
        let (sides, _) = self.map_sides().unwrap_or_default();
        let convolutions: u64 = (0..)
            .zip(sides)
            .map(|(stage, side)| {
                let (inputs, outputs) = self.stage_channels(stage);
                count(&[side, side, inputs, outputs, k, k])
            })
            .sum();
        let n = self.tokens();
        let block = count(&[n, 4, inner, d]) + count(&[2, n, n, inner]) + count(&[n, 2, d, self.mlp_hidden]);
        // The pooling's scores and weighted mean.
        let pooling = if self.class_token { 0 } else { count(&[2, n, d]) };
        convolutions + count(&[self.depth]) * block + pooling + count(&[d, self.num_classes])
    }
}

impl CctInit {
    pub(crate) fn scheme(self) -> InitScheme {
        match self {
            Self::Keras => InitScheme::Glorot,
            Self::Official => InitScheme::Normal02,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parameters and MACs (in millions) from the official implementation with torch's FLOP counter
    /// halved, and from the Keras tutorial for the reference. No number: not published.
    const TABLE: [(&str, u64, Option<f64>); 21] = [
        ("cct_reference", 416_331, Some(41.189376)),
        ("cct_2_3x2_32", 283_723, Some(35.34)),
        ("cct_4_3x2_32", 482_123, Some(50.02)),
        ("cct_6_3x1_32", 3_233_803, Some(1013.8)),
        ("cct_6_3x2_32", 3_326_923, Some(253.5)),
        ("cct_7_3x1_32", 3_760_139, Some(1181.6)),
        // The learned embedding's 65,536 are stored and not trained.
        ("cct_7_3x1_32_sine", 3_760_139 - 65_536, Some(1181.6)),
        ("cct_7_3x1_32_c100", 3_783_269, Some(1181.6)),
        ("cct_7_3x2_32", 3_853_259, Some(289.1)),
        ("cct_7_7x2_224", 4_804_521, None),
        ("cct_7_7x2_224_flowers", 4_573_735, Some(1604.6)),
        ("cct_14_7x2_224", 22_367_273, Some(5521.9)),
        ("cct_14_7x2_384", 22_513_193, Some(18580.0)),
        ("cvt_2_4_32", 214_539, Some(15.1)),
        ("cvt_4_4_32", 412_939, Some(29.8)),
        ("cvt_6_4_32", 3_190_283, Some(214.7)),
        ("cvt_7_4_32", 3_716_619, Some(250.4)),
        ("vit_lite_2_4_32", 214_666, Some(15.3)),
        ("vit_lite_4_4_32", 413_066, Some(30.3)),
        ("vit_lite_6_4_32", 3_190_538, Some(218.2)),
        ("vit_lite_7_4_32", 3_716_874, Some(254.5)),
    ];

    #[test]
    fn parameters_and_macs_are_those_of_the_published_table() {
        assert_eq!(CctConfig::VARIANTS.len(), TABLE.len());
        for (variant, (name, params, mega_macs)) in CctConfig::VARIANTS.iter().zip(TABLE) {
            let config = (variant.config)();
            assert_eq!(variant.name, name);
            config.validate().unwrap();
            assert_eq!(config.param_count(), params, "{name}");
            let got = config.macs() as f64 / 1e6;
            // The smallest are published with three digits.
            let tolerance = if mega_macs.is_some_and(|m| m < 32.0) { 4e-3 } else { 1e-3 };
            if let Some(want) = mega_macs {
                assert!((got / want - 1.0).abs() < tolerance, "{name}: {got} {want}");
            }
        }
        assert_eq!(CctConfig::reference().macs(), 41_189_376);
        let ten = CctConfig::cct(14, 7, 2).at(224, 10);
        assert_eq!(ten.param_count(), 21_986_123);
    }
}
