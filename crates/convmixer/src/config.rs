//! The numbers that make a ConvMixer, and the variants that have a name.

use core_layers::{Activation, ConfigError, InitScheme, Variant, count, field_error, require_sizes};
use serde::{Deserialize, Serialize};

/// Everything that decides a ConvMixer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConvMixerConfig {
    /// Channels of every map (the paper's h).
    pub embed_dim: i64,
    /// Number of blocks.
    pub depth: i64,
    /// Side of the depthwise kernels, in pixels of the embedded map.
    pub kernel_size: i64,
    /// Side of a patch, in image pixels.
    pub patch_size: i64,
    /// Side of the images the variant is made for, in pixels; any size of at least a patch works.
    pub image_size: i64,
    /// Number of logits.
    pub num_classes: i64,
    /// The activation after each convolution.
    pub activation: Activation,
    /// Batch norm: the weight of the new value in the running statistics.
    pub bn_momentum: f64,
    /// Batch norm: added to the variance.
    pub bn_eps: f64,
    /// What weights and biases start from.
    pub init: InitScheme,
}

impl ConvMixerConfig {
    /// ConvMixer-256/8 of the Keras tutorial on CIFAR-10: kernel 5, patch 2, Keras's batch norm
    /// and initialisation. 594,186 trainable parameters.
    pub fn reference() -> Self {
        Self { bn_momentum: 0.01, bn_eps: 1e-3, init: InitScheme::Glorot, ..Self::cifar(256, 8, 5, 2) }
    }

    /// The paper's network for 32×32 images and ten classes.
    pub fn cifar(embed_dim: i64, depth: i64, kernel_size: i64, patch_size: i64) -> Self {
        Self { image_size: 32, num_classes: 10, ..Self::imagenet(embed_dim, depth, kernel_size, patch_size) }
    }

    /// The paper's network for 224×224 images and a thousand classes.
    pub fn imagenet(embed_dim: i64, depth: i64, kernel_size: i64, patch_size: i64) -> Self {
        Self {
            embed_dim,
            depth,
            kernel_size,
            patch_size,
            image_size: 224,
            num_classes: 1000,
            activation: Activation::Gelu,
            bn_momentum: 0.1,
            bn_eps: 1e-5,
            init: InitScheme::Torch,
        }
    }
}

impl ConvMixerConfig {
    /// Every variant with a name.
    pub const VARIANTS: &'static [Variant<Self>] = &[
        Variant { name: "convmixer_reference", config: Self::reference },
        Variant { name: "convmixer_256_8_k5_p2", config: || Self::cifar(256, 8, 5, 2) },
        Variant { name: "convmixer_256_8_k5_p1", config: || Self::cifar(256, 8, 5, 1) },
        Variant { name: "convmixer_256_8_k8_p1", config: || Self::cifar(256, 8, 8, 1) },
        Variant { name: "convmixer_256_8_k9_p1", config: || Self::cifar(256, 8, 9, 1) },
        Variant { name: "convmixer_256_8_k9_p2", config: || Self::cifar(256, 8, 9, 2) },
        Variant { name: "convmixer_256_16_k8_p1", config: || Self::cifar(256, 16, 8, 1) },
        Variant { name: "convmixer_256_16_k8_p2", config: || Self::cifar(256, 16, 8, 2) },
        Variant { name: "convmixer_256_16_k9_p1", config: || Self::cifar(256, 16, 9, 1) },
        Variant { name: "convmixer_256_16_k9_p2", config: || Self::cifar(256, 16, 9, 2) },
        Variant { name: "convmixer_512_12_k8_p7", config: || Self::imagenet(512, 12, 8, 7) },
        Variant { name: "convmixer_512_16_k8_p7", config: || Self::imagenet(512, 16, 8, 7) },
        // The name timm gives the only variant whose released weights were trained with ReLU.
        Variant {
            name: "convmixer_768_32",
            config: || Self { activation: Activation::Relu, ..Self::imagenet(768, 32, 7, 7) },
        },
        Variant { name: "convmixer_1024_12_k8_p7", config: || Self::imagenet(1024, 12, 8, 7) },
        Variant { name: "convmixer_1024_16_k9_p7", config: || Self::imagenet(1024, 16, 9, 7) },
        Variant { name: "convmixer_1024_20_ks9_p14", config: || Self::imagenet(1024, 20, 9, 14) },
        Variant { name: "convmixer_1536_20", config: || Self::imagenet(1536, 20, 9, 7) },
        Variant { name: "convmixer_1536_20_k3_p7", config: || Self::imagenet(1536, 20, 3, 7) },
    ];

    /// Checks every field.
    ///
    /// # Errors
    /// The first field out of its range, with the range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        require_sizes(&[
            ("embed_dim", self.embed_dim, 65_536),
            ("depth", self.depth, 1_024),
            ("kernel_size", self.kernel_size, 255),
            ("patch_size", self.patch_size, 1_024),
            ("image_size", self.image_size, 16_384),
            ("num_classes", self.num_classes, 1_000_000),
        ])?;
        if self.patch_size > self.image_size {
            let expected = format!("at most image_size, {}", self.image_size);
            return Err(field_error("patch_size", self.patch_size, expected));
        }
        if !(self.bn_momentum > 0.0 && self.bn_momentum <= 1.0) {
            return Err(field_error("bn_momentum", self.bn_momentum, "above 0, at most 1"));
        }
        if !(self.bn_eps > 0.0 && self.bn_eps < 1.0) {
            return Err(field_error("bn_eps", self.bn_eps, "above 0, below 1"));
        }
        Ok(())
    }

    /// Trainable parameters of a valid configuration, counted without building the network.
    pub fn param_count(&self) -> u64 {
        let (h, k, p) = (self.embed_dim, self.kernel_size, self.patch_size);
        let norm = count(&[2, h]);
        let stem = count(&[3, p, p, h]) + count(&[h]) + norm;
        let depthwise = count(&[k, k, h]) + count(&[h]) + norm;
        let pointwise = count(&[h, h]) + count(&[h]) + norm;
        let head = count(&[self.num_classes, h + 1]);
        stem + count(&[self.depth]) * (depthwise + pointwise) + head
    }

    /// Multiply-accumulates of convolutions and matrix products in one forward pass on one image of
    /// `image_size`, attention products included, for a valid configuration.
    pub fn macs(&self) -> u64 {
        let (h, k, p) = (self.embed_dim, self.kernel_size, self.patch_size);
        let side = self.image_size / p;
        let per_pixel = count(&[3, p, p, h]) + count(&[self.depth]) * (count(&[k, k, h]) + count(&[h, h]));
        count(&[side, side]) * per_pixel + count(&[h, self.num_classes])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parameters and MACs (in millions) of every variant, from the paper's formula and torch's
    /// FLOP counter halved.
    const TABLE: [(&str, u64, f64); 18] = [
        ("convmixer_reference", 594_186, 148.113920),
        ("convmixer_256_8_k5_p2", 594_186, 148.11),
        ("convmixer_256_8_k5_p1", 591_882, 590.09),
        ("convmixer_256_8_k8_p1", 671_754, 671.88),
        ("convmixer_256_8_k9_p1", 706_570, 707.53),
        ("convmixer_256_8_k9_p2", 708_874, 177.47),
        ("convmixer_256_16_k8_p1", 1_339_402, 1343.0),
        ("convmixer_256_16_k8_p2", 1_341_706, 336.33),
        ("convmixer_256_16_k9_p1", 1_409_034, 1414.3),
        ("convmixer_256_16_k9_p2", 1_411_338, 354.16),
        ("convmixer_512_12_k8_p7", 4_165_608, 3701.5),
        ("convmixer_512_16_k8_p7", 5_357_544, 4909.4),
        ("convmixer_768_32", 21_110_248, 20676.9),
        ("convmixer_1024_12_k8_p7", 14_621_672, 13845.4),
        ("convmixer_1024_16_k9_p7", 19_381_224, 18694.0),
        ("convmixer_1024_20_ks9_p14", 24_383_464, 5948.5),
        ("convmixer_1536_20", 51_625_960, 51099.2),
        ("convmixer_1536_20_k3_p7", 49_414_120, 48834.2),
    ];

    #[test]
    fn parameters_and_macs_are_those_of_the_published_table() {
        assert_eq!(ConvMixerConfig::VARIANTS.len(), TABLE.len());
        for (variant, (name, params, mega_macs)) in ConvMixerConfig::VARIANTS.iter().zip(TABLE) {
            let config = (variant.config)();
            assert_eq!(variant.name, name);
            assert_eq!(config.param_count(), params, "{name}");
            let got = config.macs() as f64 / 1e6;
            assert!((got / mega_macs - 1.0).abs() < 1e-3, "{name}: {got} {mega_macs}");
        }
        assert_eq!(ConvMixerConfig::reference().macs(), 148_113_920);
    }

    #[test]
    fn ten_class_heads_are_those_of_the_published_table() {
        let cases = [
            ("convmixer_512_16_k8_p7", 4_849_674),
            ("convmixer_768_32", 20_348_938),
            ("convmixer_1024_20_ks9_p14", 23_368_714),
            ("convmixer_1536_20", 50_104_330),
        ];
        for (name, params) in cases {
            let variant = ConvMixerConfig::VARIANTS.iter().find(|v| v.name == name).unwrap();
            let mut config = (variant.config)();
            config.num_classes = 10;
            assert_eq!(config.param_count(), params, "{name}");
        }
    }

    #[test]
    fn fields_out_of_range_are_named() {
        type Spoil = fn(&mut ConvMixerConfig);
        let spoil: [(&str, Spoil); 6] = [
            ("embed_dim", |c| c.embed_dim = 0),
            ("depth", |c| c.depth = -1),
            ("kernel_size", |c| c.kernel_size = 1 << 40),
            ("patch_size", |c| c.patch_size = 64),
            ("bn_momentum", |c| c.bn_momentum = f64::NAN),
            ("bn_eps", |c| c.bn_eps = 0.0),
        ];
        for (field, spoil) in spoil {
            let mut config = ConvMixerConfig::reference();
            spoil(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(&format!("model.{field} = ")), "{message}");
        }
    }
}
