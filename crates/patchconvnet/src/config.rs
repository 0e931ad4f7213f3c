//! The numbers that make a PatchConvNet, and the variants that have a name.

use core_layers::{
    Activation, ConfigError, Init, InitScheme, Variant, count, field_error, require_rates, require_sizes,
};
use serde::{Deserialize, Serialize};

/// Whose network it is: the parts of the two that are never mixed, and the tensors' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Design {
    /// The Keras tutorial. Stem: two "same" convolutions of stride 2 with biases, an activation after
    /// each. Trunk: a dense 3×3 convolution, squeeze-and-excitation to an eighth of the channels
    /// without biases. Pooling: two layer norms in a row after the attention, and the MLP's residual
    /// starts behind them.
    Tutorial,
    /// The official implementation. Stem: four convolutions of stride 2 and padding 1 without
    /// biases, activations in between. Trunk: a depthwise 3×3 convolution, squeeze-and-excitation to
    /// a quarter of the channels with biases. Pooling: a pre-norm transformer block, then a norm.
    Official,
}

/// How many class tokens gather what the trunk has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassTokens {
    /// One, which attends to itself and the patches; one head makes all logits of it.
    Single,
    /// One per class, which attend to the patches only; each has a head of one logit.
    PerClass,
}

/// What parameters start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PatchConvNetInit {
    /// Keras 3.12 and before, with which the tutorial's log was made: Glorot uniform, zero class token.
    Keras,
    /// The official implementation: linear layers and class tokens normal with standard deviation
    /// 0.02, convolutions as PyTorch has them.
    Official,
}

/// Everything that decides a PatchConvNet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatchConvNetConfig {
    /// Side of the images the variant is made for, in pixels: at least 4, and a multiple of 16 in the
    /// official design.
    pub image_size: i64,
    /// Number of logits.
    pub num_classes: i64,
    /// Channels of the trunk's maps and of the class tokens; a multiple of 8.
    pub embed_dim: i64,
    /// Number of trunk blocks an image passes.
    pub depth: i64,
    /// Whose stem, trunk block and pooling it has.
    pub design: Design,
    /// Whether all trunk blocks are one and the same, so that depth adds no parameters.
    pub tied_trunk: bool,
    /// One class token, or one per class; the latter in the official design only.
    pub class_tokens: ClassTokens,
    /// Activation of the stem, the trunk and the MLP; that of squeeze-and-excitation is always ReLU.
    pub activation: Activation,
    /// Channels between the layers of the pooling's MLP.
    pub mlp_hidden: i64,
    /// Whether the activation follows the MLP's second layer too.
    pub act_on_output: bool,
    /// What the factor of each channel of every residual branch starts from, above 0, up to 1; without it there
    /// are no such factors.
    pub layer_scale: Option<f64>,
    /// Stochastic depth of every trunk block; the pooling has none.
    pub drop_path_rate: f64,
    /// Dropout rate of the pooling's attention probabilities.
    pub attn_drop: f64,
    /// Dropout rate between the layers of the pooling's MLP.
    pub mlp_drop: f64,
    /// What parameters start from.
    pub init: PatchConvNetInit,
}

impl PatchConvNetConfig {
    /// The network of the Keras tutorial on CIFAR-10 resized to 48×48: 256 channels, one trunk block
    /// applied twice. 1,436,426 parameters.
    pub fn reference() -> Self {
        Self {
            image_size: 48,
            num_classes: 10,
            embed_dim: 256,
            depth: 2,
            design: Design::Tutorial,
            tied_trunk: true,
            class_tokens: ClassTokens::Single,
            activation: Activation::GeluTanh,
            mlp_hidden: 256,
            act_on_output: true,
            layer_scale: None,
            drop_path_rate: 0.0,
            attn_drop: 0.2,
            mlp_drop: 0.2,
            init: PatchConvNetInit::Keras,
        }
    }

    /// The official network of this width and depth for 224×224 images and a thousand classes, with
    /// layer scale from 1e-6.
    pub fn official(embed_dim: i64, depth: i64) -> Self {
        Self {
            image_size: 224,
            num_classes: 1000,
            embed_dim,
            depth,
            design: Design::Official,
            tied_trunk: false,
            class_tokens: ClassTokens::Single,
            activation: Activation::Gelu,
            mlp_hidden: 3 * embed_dim,
            act_on_output: false,
            layer_scale: Some(1e-6),
            drop_path_rate: 0.0,
            attn_drop: 0.0,
            mlp_drop: 0.0,
            init: PatchConvNetInit::Official,
        }
    }

    /// S60, whose layer scale starts from 1e-4.
    pub fn s60() -> Self {
        Self { layer_scale: Some(1e-4), ..Self::official(384, 60) }
    }

    /// S60 with a class token per class.
    pub fn s60_multi() -> Self {
        Self { class_tokens: ClassTokens::PerClass, ..Self::s60() }
    }

    /// Channels before and after each convolution of the stem.
    pub(crate) fn stem_channels(&self) -> Vec<i64> {
        let d = self.embed_dim;
        match self.design {
            Design::Tutorial => vec![3, d / 2, d],
            Design::Official => vec![3, d / 8, d / 4, d / 2, d],
        }
    }

    /// Channels inside squeeze-and-excitation.
    pub(crate) fn reduced_channels(&self) -> i64 {
        match self.design {
            Design::Tutorial => self.embed_dim / 8,
            Design::Official => self.embed_dim / 4,
        }
    }

    /// Number of class tokens.
    pub(crate) fn queries(&self) -> i64 {
        match self.class_tokens {
            ClassTokens::Single => 1,
            ClassTokens::PerClass => self.num_classes,
        }
    }

    /// Trunk blocks with parameters of their own.
    pub(crate) fn distinct_blocks(&self) -> i64 {
        if self.tied_trunk { 1 } else { self.depth }
    }

    /// Scalars of the trunk's 3×3 kernels.
    fn trunk_kernel(&self) -> u64 {
        let d = self.embed_dim;
        match self.design {
            Design::Tutorial => count(&[9, d, d]),
            Design::Official => count(&[9, d]),
        }
    }
}

impl PatchConvNetInit {
    /// Of linear layers.
    pub(crate) fn linear(self) -> InitScheme {
        match self {
            Self::Keras => InitScheme::Glorot,
            Self::Official => InitScheme::Normal02,
        }
    }

    /// Of convolutions.
    pub(crate) fn convolution(self) -> InitScheme {
        match self {
            Self::Keras => InitScheme::Glorot,
            Self::Official => InitScheme::Torch,
        }
    }

    /// Of queries, keys and values of the one-headed attention.
    pub(crate) fn attention(self, dim: i64) -> Init {
        match self {
            // Keras up to 3.12 takes the kernel [D, heads, D] for that of a convolution. The output's,
            // [heads, D, D], comes out as a linear layer's.
            Self::Keras => Init::GlorotUniform { fan_in: dim, fan_out: dim * dim },
            Self::Official => self.linear().weight(dim, dim),
        }
    }

    /// Of the class tokens.
    pub(crate) fn class_tokens(self) -> Init {
        match self {
            Self::Keras => Init::Zeros,
            Self::Official => Init::Normal { std: 0.02 },
        }
    }
}

impl PatchConvNetConfig {
    /// Every variant with a name.
    pub const VARIANTS: &'static [Variant<Self>] = &[
        Variant { name: "patchconvnet_reference", config: Self::reference },
        Variant { name: "patchconvnet_s60", config: Self::s60 },
        Variant { name: "patchconvnet_s120", config: || Self::official(384, 120) },
        Variant { name: "patchconvnet_b60", config: || Self::official(768, 60) },
        Variant { name: "patchconvnet_b120", config: || Self::official(768, 120) },
        Variant { name: "patchconvnet_l60", config: || Self::official(1024, 60) },
        Variant { name: "patchconvnet_l120", config: || Self::official(1024, 120) },
        Variant { name: "patchconvnet_s60_multi", config: Self::s60_multi },
    ];

    /// Checks every field.
    ///
    /// # Errors
    /// The first field out of its range, with the range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        require_sizes(&[
            ("num_classes", self.num_classes, 1_000_000),
            ("embed_dim", self.embed_dim, 16_384),
            ("depth", self.depth, 1_024),
            ("mlp_hidden", self.mlp_hidden, 65_536),
        ])?;
        require_rates(&[
            ("drop_path_rate", self.drop_path_rate),
            ("attn_drop", self.attn_drop),
            ("mlp_drop", self.mlp_drop),
        ])?;
        if self.embed_dim % 8 != 0 {
            return Err(field_error("embed_dim", self.embed_dim, "a multiple of 8"));
        }
        if !(4..=4_096).contains(&self.image_size) {
            return Err(field_error("image_size", self.image_size, "4 to 4096"));
        }
        if self.design == Design::Official && self.image_size % 16 != 0 {
            let expected = "a multiple of 16 with design \"official\"";
            return Err(field_error("image_size", self.image_size, expected));
        }
        if self.design == Design::Tutorial && self.class_tokens == ClassTokens::PerClass {
            return Err(field_error("class_tokens", "per_class", "\"single\" with design \"tutorial\""));
        }
        match self.layer_scale {
            Some(value) if !(value > 0.0 && value <= 1.0) => {
                Err(field_error("layer_scale", value, "above 0, up to 1"))
            }
            _ => Ok(()),
        }
    }

    /// Trainable parameters of a valid configuration, counted without building the network.
    pub fn param_count(&self) -> u64 {
        let (d, reduced, hidden) = (self.embed_dim, self.reduced_channels(), self.mlp_hidden);
        let with_biases = |weights: u64, biases: i64| weights + count(&[biases]);
        let (stem_biases, se_biases) = match self.design {
            Design::Tutorial => (true, false),
            Design::Official => (false, true),
        };
        let stem: u64 = self
            .stem_channels()
            .windows(2)
            .map(|pair| with_biases(count(&[9, pair[0], pair[1]]), if stem_biases { pair[1] } else { 0 }))
            .sum();
        let scale = if self.layer_scale.is_some() { count(&[d]) } else { 0 };
        let norm = count(&[2, d]);
        let block = norm
            + 2 * with_biases(count(&[d, d]), d)
            + with_biases(self.trunk_kernel(), d)
            + with_biases(count(&[2, d, reduced]), if se_biases { reduced + d } else { 0 })
            + scale;
        let attention = 4 * with_biases(count(&[d, d]), d);
        let mlp = with_biases(count(&[2, d, hidden]), hidden + d);
        let pooling = count(&[self.queries(), d]) + attention + 3 * norm + mlp + 2 * scale;
        stem + count(&[self.distinct_blocks()]) * block + pooling + count(&[self.num_classes, d + 1])
    }

    /// Multiply-accumulates of convolutions and matrix products in one forward pass on one image of
    /// `image_size`, attention products included, for a valid configuration.
    pub fn macs(&self) -> u64 {
        let (d, queries) = (self.embed_dim, self.queries());
        let mut side = self.image_size;
        let mut stem = 0;
        for pair in self.stem_channels().windows(2) {
            side = (side + 1) / 2;
            stem += count(&[side, side, 9, pair[0], pair[1]]);
        }
        let patches = side * side;
        let block = count(&[patches, 2, d, d])
            + count(&[patches]) * self.trunk_kernel()
            + count(&[2, d, self.reduced_channels()]);
        let keys = match self.class_tokens {
            ClassTokens::Single => patches + 1,
            ClassTokens::PerClass => patches,
        };
        // Queries and outputs; keys and values; the two products between them; the MLP.
        let pooling = count(&[queries, 2, d, d])
            + count(&[keys, 2, d, d])
            + count(&[2, queries, keys, d])
            + count(&[queries, 2, d, self.mlp_hidden]);
        stem + count(&[self.depth]) * block + pooling + count(&[d, self.num_classes])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parameters as published and with ten classes, and MACs (in millions): Keras 3.15.1 for the
    /// reference, the official implementation on PyTorch 2.11 with its FLOP counter halved for the
    /// others.
    const TABLE: [(&str, u64, Option<u64>, f64); 8] = [
        ("patchconvnet_reference", 1_436_426, Some(1_436_426), 271.453184),
        ("patchconvnet_s60", 25_231_096, Some(24_849_946), 3979.5),
        ("patchconvnet_s120", 47_723_896, Some(47_342_746), 7492.7),
        ("patchconvnet_b60", 99_388_936, Some(98_627_626), 15803.0),
        ("patchconvnet_b120", 188_611_336, Some(187_850_026), 29774.6),
        ("patchconvnet_l60", 176_009_576, Some(174_994_826), 28043.2),
        ("patchconvnet_l120", 334_294_376, Some(333_279_626), 52845.5),
        ("patchconvnet_s60_multi", 25_614_712, None, 5308.0),
    ];

    #[test]
    fn parameters_and_macs_are_those_of_the_published_table() {
        assert_eq!(PatchConvNetConfig::VARIANTS.len(), TABLE.len());
        for (variant, (name, params, with_ten_classes, mega_macs)) in
            PatchConvNetConfig::VARIANTS.iter().zip(TABLE)
        {
            let config = (variant.config)();
            assert_eq!(variant.name, name);
            config.validate().unwrap();
            assert_eq!(config.param_count(), params, "{name}");
            let got = config.macs() as f64 / 1e6;
            // Published to a tenth of a million.
            assert!((got - mega_macs).abs() < 0.051, "{name}: {got} {mega_macs}");
            if let Some(params) = with_ten_classes {
                let ten = PatchConvNetConfig { num_classes: 10, ..config };
                assert_eq!(ten.param_count(), params, "{name}");
            }
        }
        assert_eq!(PatchConvNetConfig::reference().macs(), 271_453_184);
    }

    #[test]
    fn depth_adds_parameters_only_to_an_untied_trunk() {
        let config =
            |tied_trunk, depth| PatchConvNetConfig { tied_trunk, depth, ..PatchConvNetConfig::reference() };
        assert_eq!(config(true, 5).param_count(), 1_436_426);
        assert_eq!(config(false, 2).param_count(), 2_174_986);
        assert_eq!(config(false, 3).param_count() - config(false, 2).param_count(), 738_560);
        assert_eq!(config(true, 2).macs(), config(false, 2).macs());
    }

    #[test]
    fn fields_out_of_range_are_named() {
        let (reference, s60) = (PatchConvNetConfig::reference, PatchConvNetConfig::s60);
        for (config, words) in [
            (PatchConvNetConfig { image_size: 3, ..reference() }, "model.image_size = 3: 4 to"),
            (PatchConvNetConfig { image_size: 0, ..reference() }, "model.image_size = 0: 4 to"),
            (PatchConvNetConfig { image_size: 200, ..s60() }, "model.image_size = 200: a multiple of 16"),
            (PatchConvNetConfig { embed_dim: 36, ..reference() }, "model.embed_dim = 36: a multiple of 8"),
            (PatchConvNetConfig { depth: 0, ..s60() }, "model.depth = 0: 1 to"),
            (PatchConvNetConfig { drop_path_rate: 1.0, ..s60() }, "model.drop_path_rate = 1: 0 or more"),
            (PatchConvNetConfig { attn_drop: -0.1, ..s60() }, "model.attn_drop = -0.1: 0 or more"),
            (PatchConvNetConfig { mlp_drop: f64::NAN, ..s60() }, "model.mlp_drop = NaN: 0 or more"),
            (PatchConvNetConfig { layer_scale: Some(2.0), ..s60() }, "model.layer_scale = 2: above 0"),
            (
                PatchConvNetConfig { class_tokens: ClassTokens::PerClass, ..reference() },
                "model.class_tokens = per_class: \"single\"",
            ),
        ] {
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(words), "{message}");
        }
        // Keras's "same" padding takes any size.
        PatchConvNetConfig { image_size: 37, ..reference() }.validate().unwrap();
    }
}
