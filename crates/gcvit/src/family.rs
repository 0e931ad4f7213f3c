//! What programs that know several architectures ask a GCViT's configuration.

use core_layers::{
    ConfigError, Facts, Model, ModelConfig, PublicWeights, Resample, Timm, Variants, number_after,
    resize_position_embedding,
};
use serde_json::json;
use tch::Tensor;
use tch::nn::Path;

use crate::config::{GcVitConfig, QueryPool};
use crate::names::{official_name, timm_name};

/// The architecture, for programs that know several.
pub const FAMILY: Variants<GcVitConfig> =
    Variants { family: "gcvit", named: GcVitConfig::VARIANTS, published: PUBLISHED };

/// NVIDIA's, under the names that timm 1.0.31 gives their tensors; the licence is that of NVIDIA's repository.
const PUBLISHED: &[PublicWeights] = &[
    PublicWeights {
        variant: "gcvit_xxtiny",
        source: "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights-morevit/gcvit_xxtiny_224_nvidia-d1d86009.pth",
        license: "CC-BY-NC-SA-4.0",
    },
    PublicWeights {
        variant: "gcvit_xtiny",
        source: "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights-morevit/gcvit_xtiny_224_nvidia-274b92b7.pth",
        license: "CC-BY-NC-SA-4.0",
    },
    PublicWeights {
        variant: "gcvit_tiny",
        source: "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights-morevit/gcvit_tiny_224_nvidia-ac783954.pth",
        license: "CC-BY-NC-SA-4.0",
    },
    PublicWeights {
        variant: "gcvit_small",
        source: "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights-morevit/gcvit_small_224_nvidia-4e98afa2.pth",
        license: "CC-BY-NC-SA-4.0",
    },
    PublicWeights {
        variant: "gcvit_base",
        source: "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights-morevit/gcvit_base_224_nvidia-f009139b.pth",
        license: "CC-BY-NC-SA-4.0",
    },
];

impl ModelConfig for GcVitConfig {
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
        &["relative_position_bias_table"]
    }

    /// What makes a level's query counts with the level's first block, and what halves the maps with the block after
    /// it: timm, whose levels start with the halving, counts it with the next level too.
    fn layer_id(&self, name: &str) -> i64 {
        let before = |level: i64| self.depths.iter().take(level as usize).sum::<i64>();
        let Some(level) = number_after(name, "levels.") else {
            return match name {
                _ if name.starts_with("patch_embed.") => 0,
                _ if name.starts_with("norm.") => before(4),
                _ => before(4) + 1,
            };
        };
        match name.strip_prefix(&format!("levels.{level}.")) {
            Some(rest) if rest.starts_with("downsample.") => before(level + 1) + 1,
            Some(rest) => before(level) + number_after(rest, "blocks.").unwrap_or(0) + 1,
            None => before(4) + 1,
        }
    }

    /// timm's names become the official ones; those stay.
    fn tensor_name(&self, name: &str) -> String {
        official_name(name)
    }

    /// The tables of relative positions `[(2w − 1)², heads]` are for windows of one size w.
    fn resample(&self, name: &str, tensor: &Tensor, shape: &[i64]) -> Option<Tensor> {
        let &[positions, heads] = shape else { return None };
        if !name.ends_with(".relative_position_bias_table") || tensor.size().last() != Some(&heads) {
            return None;
        }
        let side = (positions as f64).sqrt().round() as i64;
        let table = tensor.f_unsqueeze(0).ok()?;
        resize_position_embedding(&table, 0, side, Resample::Bicubic).ok()?.f_squeeze_dim(0).ok()
    }

    /// timm's GCViTs differ in what is no argument: blocks and heads of the levels, and in two the width.
    fn timm(&self) -> Result<Timm, String> {
        let &Self { image_size, embed_dim, depths, num_heads, mlp_ratio, layer_scale, .. } = self;
        if self.query_pool != QueryPool::NegativeInfinity {
            return Err("timm's query generators have no zeros around the maps they pool".to_owned());
        }
        if image_size % 32 != 0 {
            return Err(format!("timm's GCViTs take multiples of 32 pixels, and this one {image_size}"));
        }
        let mut model_args = json!({ "img_size": image_size, "window_size": self.window_sizes });
        let architecture = match (depths, num_heads) {
            ([2, 2, 6, 2], [2, 4, 8, 16]) => "gcvit_xxtiny",
            ([3, 4, 6, 5], [2, 4, 8, 16]) => "gcvit_xtiny",
            ([3, 4, 19, 5], [2, 4, 8, 16]) => "gcvit_tiny",
            ([3, 4, 19, 5], [3, 6, 12, 24]) if (embed_dim, mlp_ratio) == (96, 2) => "gcvit_small",
            ([3, 4, 19, 5], [4, 8, 16, 32]) if (embed_dim, mlp_ratio) == (128, 2) => "gcvit_base",
            _ => return Err("timm has no GCViT of these depths, heads and widths".to_owned()),
        };
        if matches!(architecture, "gcvit_small" | "gcvit_base") {
            if layer_scale.is_none() {
                return Err(format!("timm's {architecture} scales the branches of its blocks"));
            }
        } else {
            model_args["embed_dim"] = embed_dim.into();
            model_args["mlp_ratio"] = mlp_ratio.into();
            model_args["layer_scale"] = layer_scale.into();
        }
        Ok(Timm {
            architecture,
            model_args,
            num_features: 8 * embed_dim,
            global_pool: "avg",
            first_conv: "stem.conv1",
            classifier: "head.fc",
            fixed_input_size: true,
        })
    }

    /// The squeeze-and-excitations are convolutions there.
    fn timm_tensor(&self, name: &str, shape: &[i64]) -> (String, Vec<i64>) {
        let name = timm_name(name);
        let pixel: &[i64] = if name.contains(".se.fc") && shape.len() == 2 { &[1, 1] } else { &[] };
        (name, [shape, pixel].concat())
    }

    fn build(&self, vs: &Path) -> Result<Box<dyn Model>, ConfigError> {
        Ok(Box::new(self.init(vs)?))
    }
}
