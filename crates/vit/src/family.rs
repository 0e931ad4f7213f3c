//! What programs that know several architectures ask a Vision Transformer's configuration.

use core_layers::{
    ConfigError, Facts, Model, ModelConfig, PublicWeights, Resample, Variants, number_after,
    resize_position_embedding,
};
use tch::Tensor;
use tch::nn::Path;

use crate::config::VitConfig;

/// The architecture, for programs that know several.
pub const FAMILY: Variants<VitConfig> =
    Variants { family: "vit", named: VitConfig::VARIANTS, published: PUBLISHED };

/// On the hub by timm, with the licence that timm 1.0.31 gives; those of `orig_in21k` have no head.
const PUBLISHED: &[PublicWeights] = &[
    PublicWeights {
        variant: "vit_tiny_patch16_224",
        source: "hf:timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        license: "Apache-2.0",
    },
    PublicWeights {
        variant: "vit_tiny_patch16_384",
        source: "hf:timm/vit_tiny_patch16_384.augreg_in21k_ft_in1k",
        license: "Apache-2.0",
    },
    PublicWeights {
        variant: "vit_small_patch32_224",
        source: "hf:timm/vit_small_patch32_224.augreg_in21k_ft_in1k",
        license: "Apache-2.0",
    },
    PublicWeights {
        variant: "vit_small_patch32_384",
        source: "hf:timm/vit_small_patch32_384.augreg_in21k_ft_in1k",
        license: "Apache-2.0",
    },
    PublicWeights {
        variant: "vit_small_patch16_224",
        source: "hf:timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
        license: "Apache-2.0",
    },
    PublicWeights {
        variant: "vit_small_patch16_384",
        source: "hf:timm/vit_small_patch16_384.augreg_in21k_ft_in1k",
        license: "Apache-2.0",
    },
    PublicWeights {
        variant: "vit_base_patch32_224",
        source: "hf:timm/vit_base_patch32_224.augreg_in21k_ft_in1k",
        license: "Apache-2.0",
    },
    PublicWeights {
        variant: "vit_base_patch32_384",
        source: "hf:timm/vit_base_patch32_384.augreg_in21k_ft_in1k",
        license: "Apache-2.0",
    },
    PublicWeights {
        variant: "vit_base_patch16_224",
        source: "hf:timm/vit_base_patch16_224.augreg_in21k_ft_in1k",
        license: "Apache-2.0",
    },
    PublicWeights {
        variant: "vit_base_patch16_384",
        source: "hf:timm/vit_base_patch16_384.augreg_in21k_ft_in1k",
        license: "Apache-2.0",
    },
    PublicWeights {
        variant: "vit_base_patch8_224",
        source: "hf:timm/vit_base_patch8_224.augreg_in21k_ft_in1k",
        license: "Apache-2.0",
    },
    PublicWeights {
        variant: "vit_large_patch32_224",
        source: "hf:timm/vit_large_patch32_224.orig_in21k",
        license: "Apache-2.0",
    },
    PublicWeights {
        variant: "vit_large_patch32_384",
        source: "hf:timm/vit_large_patch32_384.orig_in21k_ft_in1k",
        license: "Apache-2.0",
    },
    PublicWeights {
        variant: "vit_large_patch16_224",
        source: "hf:timm/vit_large_patch16_224.augreg_in21k_ft_in1k",
        license: "Apache-2.0",
    },
    PublicWeights {
        variant: "vit_large_patch16_384",
        source: "hf:timm/vit_large_patch16_384.augreg_in21k_ft_in1k",
        license: "Apache-2.0",
    },
    PublicWeights {
        variant: "vit_huge_patch14_224",
        source: "hf:timm/vit_huge_patch14_224.orig_in21k",
        license: "Apache-2.0",
    },
];

impl ModelConfig for VitConfig {
    fn facts(&self) -> Result<Facts, ConfigError> {
        self.validate()?;
        let &Self { image_size, num_classes, .. } = self;
        let (params, macs) = (self.param_count(), self.macs());
        Ok(Facts { family: FAMILY.family, image_size, num_classes, params, macs })
    }

    fn head(&self) -> &'static [&'static str] {
        &["head."]
    }

    fn embeddings(&self) -> &'static [&'static str] {
        &["cls_token", "pos_embed"]
    }

    fn layer_id(&self, name: &str) -> i64 {
        let stem = ["patch_embed.", "cls_token", "pos_embed"];
        match number_after(name, "blocks.") {
            Some(block) => block + 1,
            None if stem.iter().any(|prefix| name.starts_with(prefix)) => 0,
            None if name.starts_with("norm.") => self.depth,
            None => self.depth + 1,
        }
    }

    /// The position embedding, bicubic with antialiasing, as timm does.
    fn resample(&self, name: &str, tensor: &Tensor, shape: &[i64]) -> Option<Tensor> {
        if name != "pos_embed" || shape.len() != 3 {
            return None;
        }
        let side = ((shape[1] - 1) as f64).sqrt() as i64;
        resize_position_embedding(tensor, 1, side, Resample::BicubicAntialias).ok()
    }

    fn build(&self, vs: &Path) -> Result<Box<dyn Model>, ConfigError> {
        Ok(Box::new(self.init(vs)?))
    }
}
