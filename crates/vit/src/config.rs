//! The numbers that make a Vision Transformer, and the variants that have a name.

use core_layers::{
    Activation, ConfigError, InitScheme, Variant, count, field_error, require_rates, require_sizes,
};
use serde::{Deserialize, Serialize};

/// What parameters start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VitInit {
    /// The Keras tutorial: Glorot uniform, zero class token.
    Keras,
    /// timm: normals of standard deviation 0.02.
    Timm,
}

/// Everything that decides a Vision Transformer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
    /// Side of the images, in pixels; a multiple of the patch.
    pub image_size: i64,
    /// Side of a patch, in pixels.
    pub patch_size: i64,
    /// Number of logits.
    pub num_classes: i64,
    /// Channels of the tokens; a multiple of the heads.
    pub embed_dim: i64,
    /// Number of blocks.
    pub depth: i64,
    /// Number of attention heads.
    pub num_heads: i64,
    /// Channels between the layers of the MLP.
    pub mlp_hidden: i64,
    /// Biases on queries, keys and values.
    pub qkv_bias: bool,
    /// Activation of the MLP.
    pub activation: Activation,
    /// Whether the activation follows the MLP's second layer too.
    pub act_on_output: bool,
    /// Dropout rate after each layer of the MLP.
    pub mlp_drop: f64,
    /// Stochastic depth of the last block; it rises evenly from 0 in the first.
    pub drop_path_rate: f64,
    /// What parameters start from.
    pub init: VitInit,
}

impl VitConfig {
    /// The small network the Keras tutorial trains on CIFAR-10 resized to 72×72: patches of 6×6,
    /// eight blocks of 64 channels, GELU and dropout after both layers of the MLP.
    ///
    /// It multiplies and accumulates 60.5 million times per image. Counts of 62.2 million include the identity
    /// convolution with which Keras cuts an image into patches; here patches are cut and embedded by one.
    pub fn reference() -> Self {
        Self {
            image_size: 72,
            patch_size: 6,
            num_classes: 10,
            embed_dim: 64,
            depth: 8,
            num_heads: 4,
            mlp_hidden: 128,
            act_on_output: true,
            mlp_drop: 0.1,
            init: VitInit::Keras,
            ..Self::base(16, 224)
        }
    }

    /// The ViT-B/16 the Keras tutorial builds: without biases on queries, keys and values.
    pub fn b16_reference() -> Self {
        Self { qkv_bias: false, init: VitInit::Keras, ..Self::base(16, 224) }
    }

    /// Ti with this patch and image size, in pixels.
    pub fn tiny(patch_size: i64, image_size: i64) -> Self {
        Self::timm(192, 3, 12, patch_size, image_size)
    }

    /// S with this patch and image size, in pixels.
    pub fn small(patch_size: i64, image_size: i64) -> Self {
        Self::timm(384, 6, 12, patch_size, image_size)
    }

    /// B with this patch and image size, in pixels.
    pub fn base(patch_size: i64, image_size: i64) -> Self {
        Self::timm(768, 12, 12, patch_size, image_size)
    }

    /// L with this patch and image size, in pixels.
    pub fn large(patch_size: i64, image_size: i64) -> Self {
        Self::timm(1024, 16, 24, patch_size, image_size)
    }

    /// H with this patch and image size, in pixels.
    pub fn huge(patch_size: i64, image_size: i64) -> Self {
        Self::timm(1280, 16, 32, patch_size, image_size)
    }

    fn timm(embed_dim: i64, num_heads: i64, depth: i64, patch_size: i64, image_size: i64) -> Self {
        Self {
            image_size,
            patch_size,
            num_classes: 1000,
            embed_dim,
            depth,
            num_heads,
            mlp_hidden: 4 * embed_dim,
            qkv_bias: true,
            activation: Activation::Gelu,
            act_on_output: false,
            mlp_drop: 0.0,
            drop_path_rate: 0.0,
            init: VitInit::Timm,
        }
    }

    /// Side of the grid of patches.
    pub(crate) fn grid(&self) -> i64 {
        self.image_size / self.patch_size
    }
}

impl VitInit {
    pub(crate) fn scheme(self) -> InitScheme {
        match self {
            Self::Keras => InitScheme::Glorot,
            Self::Timm => InitScheme::Normal02,
        }
    }
}

impl VitConfig {
    /// Every variant with a name.
    pub const VARIANTS: &'static [Variant<Self>] = &[
        Variant { name: "vit_reference", config: Self::reference },
        Variant { name: "vit_b16_reference", config: Self::b16_reference },
        Variant { name: "vit_tiny_patch16_224", config: || Self::tiny(16, 224) },
        Variant { name: "vit_tiny_patch16_384", config: || Self::tiny(16, 384) },
        Variant { name: "vit_small_patch32_224", config: || Self::small(32, 224) },
        Variant { name: "vit_small_patch32_384", config: || Self::small(32, 384) },
        Variant { name: "vit_small_patch16_224", config: || Self::small(16, 224) },
        Variant { name: "vit_small_patch16_384", config: || Self::small(16, 384) },
        Variant { name: "vit_small_patch8_224", config: || Self::small(8, 224) },
        Variant { name: "vit_base_patch32_224", config: || Self::base(32, 224) },
        Variant { name: "vit_base_patch32_384", config: || Self::base(32, 384) },
        Variant { name: "vit_base_patch16_224", config: || Self::base(16, 224) },
        Variant { name: "vit_base_patch16_384", config: || Self::base(16, 384) },
        Variant { name: "vit_base_patch8_224", config: || Self::base(8, 224) },
        Variant { name: "vit_large_patch32_224", config: || Self::large(32, 224) },
        Variant { name: "vit_large_patch32_384", config: || Self::large(32, 384) },
        Variant { name: "vit_large_patch16_224", config: || Self::large(16, 224) },
        Variant { name: "vit_large_patch16_384", config: || Self::large(16, 384) },
        Variant { name: "vit_large_patch14_224", config: || Self::large(14, 224) },
        Variant { name: "vit_huge_patch14_224", config: || Self::huge(14, 224) },
    ];

    /// Checks every field.
    ///
    /// # Errors
    /// The first field out of its range, with the range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        require_sizes(&[
            ("image_size", self.image_size, 4_096),
            ("patch_size", self.patch_size, 1_024),
            ("num_classes", self.num_classes, 1_000_000),
            ("embed_dim", self.embed_dim, 16_384),
            ("depth", self.depth, 1_024),
            ("num_heads", self.num_heads, 1_024),
            ("mlp_hidden", self.mlp_hidden, 65_536),
        ])?;
        require_rates(&[("mlp_drop", self.mlp_drop), ("drop_path_rate", self.drop_path_rate)])?;
        if self.image_size % self.patch_size != 0 {
            let expected = format!("a multiple of patch_size, {}", self.patch_size);
            return Err(field_error("image_size", self.image_size, expected));
        }
        if self.embed_dim % self.num_heads != 0 {
            let expected = format!("a multiple of num_heads, {}", self.num_heads);
            return Err(field_error("embed_dim", self.embed_dim, expected));
        }
        Ok(())
    }

    /// Trainable parameters of a valid configuration, counted without building the network.
    pub fn param_count(&self) -> u64 {
        let (d, p, hidden) = (self.embed_dim, self.patch_size, self.mlp_hidden);
        let tokens = self.grid() * self.grid() + 1;
        let embedding = count(&[3, p, p, d]) + count(&[d]) + count(&[d]) + count(&[tokens, d]);
        let norm = count(&[2, d]);
        let qkv = count(&[3, d, d]) + if self.qkv_bias { count(&[3, d]) } else { 0 };
        let proj = count(&[d, d]) + count(&[d]);
        let mlp = count(&[2, d, hidden]) + count(&[hidden]) + count(&[d]);
        let head = count(&[self.num_classes, d + 1]);
        embedding + count(&[self.depth]) * (2 * norm + qkv + proj + mlp) + norm + head
    }

    /// Multiply-accumulates of convolutions and matrix products in one forward pass on one image of
    /// `image_size`, attention products included, for a valid configuration.
    pub fn macs(&self) -> u64 {
        let (d, p, n) = (self.embed_dim, self.patch_size, self.grid() * self.grid() + 1);
        let embedding = count(&[n - 1, 3, p, p, d]);
        let block = count(&[n, 4, d, d]) + count(&[2, n, n, d]) + count(&[n, 2, d, self.mlp_hidden]);
        embedding + count(&[self.depth]) * block + count(&[d, self.num_classes])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parameters and MACs (in millions) from timm 1.0.28 with torch's FLOP counter halved, and of
    /// the tutorial's two networks. The tutorial cuts its CIFAR-10 patches with a convolution by an
    /// identity kernel before the dense layer, which costs another 144·108² = 1,679,616 (62,216,064
    /// in all); here the two are one convolution.
    const TABLE: [(&str, u64, Option<f64>); 20] = [
        ("vit_reference", 284_874, Some(60.536448)),
        ("vit_b16_reference", 86_540_008, Some(17563.828224)),
        ("vit_tiny_patch16_224", 5_717_416, Some(1253.7)),
        ("vit_tiny_patch16_384", 5_790_376, Some(4682.2)),
        ("vit_small_patch32_224", 22_878_952, Some(1142.9)),
        ("vit_small_patch32_384", 22_915_432, Some(3443.0)),
        ("vit_small_patch16_224", 22_050_664, Some(4598.9)),
        ("vit_small_patch16_384", 22_196_584, Some(15490.0)),
        ("vit_small_patch8_224", 22_055_272, Some(22405.7)),
        ("vit_base_patch32_224", 88_224_232, Some(4409.2)),
        ("vit_base_patch32_384", 88_297_192, Some(13044.0)),
        ("vit_base_patch16_224", 86_567_656, Some(17563.8)),
        ("vit_base_patch16_384", 86_859_496, Some(55484.0)),
        ("vit_base_patch8_224", 86_576_872, Some(78148.3)),
        ("vit_large_patch32_224", 306_535_400, Some(15377.5)),
        ("vit_large_patch32_384", 306_632_680, Some(45276.0)),
        ("vit_large_patch16_224", 304_326_632, Some(61554.7)),
        ("vit_large_patch16_384", 304_715_752, Some(191070.0)),
        ("vit_large_patch14_224", 304_203_752, Some(81013.0)),
        ("vit_huge_patch14_224", 632_045_800, Some(167295.1)),
    ];

    #[test]
    fn parameters_and_macs_are_those_of_the_published_table() {
        assert_eq!(VitConfig::VARIANTS.len(), TABLE.len());
        for (variant, (name, params, mega_macs)) in VitConfig::VARIANTS.iter().zip(TABLE) {
            let config = (variant.config)();
            assert_eq!(variant.name, name);
            config.validate().unwrap();
            assert_eq!(config.param_count(), params, "{name}");
            let got = config.macs() as f64 / 1e6;
            let want = mega_macs.unwrap_or(got);
            assert!((got / want - 1.0).abs() < 1e-3, "{name}: {got} {want}");
        }
        assert_eq!(VitConfig::reference().macs(), 62_216_064 - 144 * 108 * 108);
        assert_eq!(VitConfig::b16_reference().macs(), 17_563_828_224);
    }

    #[test]
    fn ten_class_heads_are_those_of_the_published_table() {
        for (config, params) in [
            (VitConfig::tiny(16, 224), 5_526_346),
            (VitConfig::small(8, 224), 21_674_122),
            (VitConfig::base(16, 224), 85_806_346),
            (VitConfig::huge(14, 224), 630_777_610),
        ] {
            assert_eq!(VitConfig { num_classes: 10, ..config }.param_count(), params);
        }
    }

    #[test]
    fn fields_out_of_range_are_named() {
        for (config, words) in [
            (VitConfig { image_size: 70, ..VitConfig::reference() }, "model.image_size = 70: a multiple of"),
            (VitConfig { num_heads: 5, ..VitConfig::reference() }, "model.embed_dim = 64: a multiple of"),
            (VitConfig { mlp_drop: 1.0, ..VitConfig::reference() }, "model.mlp_drop = 1"),
            (VitConfig { depth: 0, ..VitConfig::reference() }, "model.depth = 0"),
        ] {
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(words), "{message}");
        }
    }
}
