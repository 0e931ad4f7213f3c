//! What programs that know several architectures ask a CCT's configuration.

use core_layers::{
    ConfigError, Facts, Model, ModelConfig, PublicWeights, Resample, Variants, number_after,
    resize_position_embedding,
};
use tch::Tensor;
use tch::nn::Path;

use crate::config::CctConfig;

/// The architecture, for programs that know several.
pub const FAMILY: Variants<CctConfig> =
    Variants { family: "cct", named: CctConfig::VARIANTS, published: PUBLISHED };

/// The authors', with the licence of their repository.
const PUBLISHED: &[PublicWeights] = &[
    PublicWeights {
        variant: "cct_7_3x1_32",
        source: "https://shi-labs.com/projects/cct/checkpoints/pretrained/cct_7_3x1_32_cifar10_300epochs.pth",
        license: "Apache-2.0",
    },
    PublicWeights {
        variant: "cct_7_3x1_32_sine",
        source: "https://shi-labs.com/projects/cct/checkpoints/pretrained/cct_7_3x1_32_sine_cifar10_5000epochs.pth",
        license: "Apache-2.0",
    },
    PublicWeights {
        variant: "cct_7_3x1_32_c100",
        source: "https://shi-labs.com/projects/cct/checkpoints/pretrained/cct_7_3x1_32_cifar100_300epochs.pth",
        license: "Apache-2.0",
    },
    PublicWeights {
        variant: "cct_14_7x2_224",
        source: "https://shi-labs.com/projects/cct/checkpoints/pretrained/cct_14_7x2_224_imagenet.pth",
        license: "Apache-2.0",
    },
    PublicWeights {
        variant: "cct_14_7x2_384",
        source: "https://shi-labs.com/projects/cct/checkpoints/finetuned/cct_14_7x2_384_imagenet.pth",
        license: "Apache-2.0",
    },
];

impl ModelConfig for CctConfig {
    fn facts(&self) -> Result<Facts, ConfigError> {
        self.validate()?;
        let &Self { image_size, num_classes, .. } = self;
        let (params, macs) = (self.param_count(), self.macs());
        Ok(Facts { family: FAMILY.family, image_size, num_classes, params, macs })
    }

    fn head(&self) -> &'static [&'static str] {
        &["classifier.fc."]
    }

    fn embeddings(&self) -> &'static [&'static str] {
        &["class_emb", "positional_emb"]
    }

    fn layer_id(&self, name: &str) -> i64 {
        let stem = ["tokenizer.", "classifier.class_emb", "classifier.positional_emb"];
        match number_after(name, "classifier.blocks.") {
            Some(block) => block + 1,
            None if stem.iter().any(|prefix| name.starts_with(prefix)) => 0,
            None if name.starts_with("classifier.norm.") => self.depth,
            None => self.depth + 1,
        }
    }

    /// The position embedding, bilinear, as the official implementation does. A class token's place
    /// is the position that a square grid leaves over.
    fn resample(&self, name: &str, tensor: &Tensor, shape: &[i64]) -> Option<Tensor> {
        if name != "classifier.positional_emb" || shape.len() != 3 {
            return None;
        }
        let side = (shape[1] as f64).sqrt() as i64;
        resize_position_embedding(tensor, shape[1] - side * side, side, Resample::Bilinear).ok()
    }

    fn build(&self, vs: &Path) -> Result<Box<dyn Model>, ConfigError> {
        Ok(Box::new(self.init(vs)?))
    }
}
