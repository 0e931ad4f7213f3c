//! What programs that know several architectures ask a Vision Transformer's configuration.

use core_layers::{
    ConfigError, Facts, Model, ModelConfig, Resample, Variants, number_after, resize_position_embedding,
};
use tch::Tensor;
use tch::nn::Path;

use crate::config::VitConfig;

/// The architecture, for programs that know several.
pub const FAMILY: Variants<VitConfig> = Variants { family: "vit", named: VitConfig::VARIANTS };

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
