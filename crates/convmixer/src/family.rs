//! What programs that know several architectures ask a ConvMixer's configuration.

use core_layers::{
    Activation, ConfigError, Facts, Model, ModelConfig, PublicWeights, Timm, Variants, number_after,
};
use serde_json::json;
use tch::nn::Path;

use crate::config::ConvMixerConfig;

/// The architecture, for programs that know several.
pub const FAMILY: Variants<ConvMixerConfig> =
    Variants { family: "convmixer", named: ConvMixerConfig::VARIANTS, published: PUBLISHED };

/// On the hub by timm, with the licence that timm 1.0.31 gives.
const PUBLISHED: &[PublicWeights] = &[
    PublicWeights { variant: "convmixer_768_32", source: "hf:timm/convmixer_768_32.in1k", license: "MIT" },
    PublicWeights {
        variant: "convmixer_1024_20_ks9_p14",
        source: "hf:timm/convmixer_1024_20_ks9_p14.in1k",
        license: "MIT",
    },
    PublicWeights { variant: "convmixer_1536_20", source: "hf:timm/convmixer_1536_20.in1k", license: "MIT" },
];

/// What timm's batch norms add to a variance: PyTorch's default.
const TIMM_BN_EPS: f64 = 1e-5;

impl ModelConfig for ConvMixerConfig {
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
        &[]
    }

    fn layer_id(&self, name: &str) -> i64 {
        match number_after(name, "blocks.") {
            Some(block) => block + 1,
            None if name.starts_with("stem.") => 0,
            None => self.depth + 1,
        }
    }

    /// The authors' checkpoints number the layers of one flat sequence: patch convolution, GELU,
    /// norm, the blocks, pooling, flattening, head.
    fn tensor_name(&self, name: &str) -> String {
        let Some((Ok(layer), rest)) = name.split_once('.').map(|(layer, rest)| (layer.parse::<u32>(), rest))
        else {
            return name.to_owned();
        };
        match i64::from(layer) - 3 {
            -3 => format!("stem.0.{rest}"),
            -1 => format!("stem.2.{rest}"),
            block if (0..self.depth).contains(&block) => format!("blocks.{block}.{rest}"),
            end if end == self.depth + 2 => format!("head.{rest}"),
            _ => name.to_owned(),
        }
    }

    /// timm has three ConvMixers, whose numbers are no arguments.
    fn timm(&self) -> Result<Timm, String> {
        let &Self { embed_dim, depth, kernel_size, patch_size, activation, bn_eps, .. } = self;
        let architecture = match (embed_dim, depth, kernel_size, patch_size, activation) {
            (1536, 20, 9, 7, Activation::Gelu) => "convmixer_1536_20",
            (1024, 20, 9, 14, Activation::Gelu) => "convmixer_1024_20_ks9_p14",
            (768, 32, 7, 7, Activation::Relu) => "convmixer_768_32",
            _ => {
                return Err(
                    "timm has no other ConvMixers than convmixer_1536_20, convmixer_1024_20_ks9_p14 and \
                            convmixer_768_32"
                        .to_owned(),
                );
            }
        };
        if bn_eps != TIMM_BN_EPS {
            return Err(format!("timm's batch norms add {TIMM_BN_EPS} to a variance, and these {bn_eps}"));
        }
        Ok(Timm {
            architecture,
            model_args: json!({}),
            num_features: embed_dim,
            global_pool: "avg",
            first_conv: "stem.0",
            classifier: "head",
            fixed_input_size: false,
        })
    }

    fn build(&self, vs: &Path) -> Result<Box<dyn Model>, ConfigError> {
        Ok(Box::new(self.init(vs)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authors_numbered_layers_have_their_places() {
        let config = ConvMixerConfig::reference();
        for (name, want) in [
            ("0.weight", "stem.0.weight"),
            ("2.running_mean", "stem.2.running_mean"),
            ("3.0.fn.0.weight", "blocks.0.0.fn.0.weight"),
            ("10.3.bias", "blocks.7.3.bias"),
            ("13.weight", "head.weight"),
            ("11.weight", "11.weight"),
            ("blocks.0.1.bias", "blocks.0.1.bias"),
            ("head.bias", "head.bias"),
        ] {
            assert_eq!(config.tensor_name(name), want);
        }
    }
}
