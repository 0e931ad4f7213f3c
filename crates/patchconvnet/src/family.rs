//! What programs that know several architectures ask a PatchConvNet's configuration.

use core_layers::{ConfigError, Facts, Model, ModelConfig, PublicWeights, Variants, number_after};
use tch::nn::Path;

use crate::config::{ClassTokens, Design, PatchConvNetConfig};

/// The architecture, for programs that know several.
pub const FAMILY: Variants<PatchConvNetConfig> =
    Variants { family: "patchconvnet", named: PatchConvNetConfig::VARIANTS, published: PUBLISHED };

/// The authors', with the licence that their page on these networks gives.
const PUBLISHED: &[PublicWeights] = &[
    PublicWeights {
        variant: "patchconvnet_s60",
        source: "https://dl.fbaipublicfiles.com/deit/s60_224_1k.pth",
        license: "Apache-2.0",
    },
    PublicWeights {
        variant: "patchconvnet_s120",
        source: "https://dl.fbaipublicfiles.com/deit/s120_224_1k.pth",
        license: "Apache-2.0",
    },
    PublicWeights {
        variant: "patchconvnet_b60",
        source: "https://dl.fbaipublicfiles.com/deit/b60_224_1k.pth",
        license: "Apache-2.0",
    },
    PublicWeights {
        variant: "patchconvnet_b120",
        source: "https://dl.fbaipublicfiles.com/deit/b120_224_1k.pth",
        license: "Apache-2.0",
    },
    PublicWeights {
        variant: "patchconvnet_s60_multi",
        source: "https://dl.fbaipublicfiles.com/deit/s60_multi_scratch_1k.pth",
        license: "Apache-2.0",
    },
];

impl ModelConfig for PatchConvNetConfig {
    fn facts(&self) -> Result<Facts, ConfigError> {
        self.validate()?;
        let &Self { image_size, num_classes, .. } = self;
        let (params, macs) = (self.param_count(), self.macs());
        Ok(Facts { family: FAMILY.family, image_size, num_classes, params, macs })
    }

    fn head(&self) -> &'static [&'static str] {
        match self.class_tokens {
            ClassTokens::Single => &["head."],
            ClassTokens::PerClass => &["head.", "cls_token"],
        }
    }

    fn embeddings(&self) -> &'static [&'static str] {
        &["cls_token"]
    }

    /// The blocks are those of the trunk, one if it is tied; the class tokens and all of the pooling follow them.
    fn layer_id(&self, name: &str) -> i64 {
        let (stem, trunk) = match self.design {
            Design::Tutorial => ("stem.", "trunk."),
            Design::Official => ("patch_embed.", "blocks."),
        };
        match number_after(name, trunk) {
            Some(block) => block + 1,
            None if name.starts_with(stem) => 0,
            None if name.starts_with(trunk) => 1,
            None if self.tied_trunk => 2,
            None => self.depth + 1,
        }
    }

    fn build(&self, vs: &Path) -> Result<Box<dyn Model>, ConfigError> {
        Ok(Box::new(self.init(vs)?))
    }
}
