//! What programs that know several architectures ask a Vision Transformer's configuration.

use core_layers::{
    Activation, ConfigError, Facts, Model, ModelConfig, PublicWeights, Resample, Timm, Variants,
    number_after, resize_position_embedding,
};
use serde_json::json;
use tch::Tensor;
use tch::nn::Path;

use crate::config::{VitConfig, VitInit};

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

    /// timm's Vision Transformer has all of these numbers as arguments.
    fn timm(&self) -> Result<Timm, String> {
        let &Self { image_size, patch_size, embed_dim, depth, num_heads, mlp_hidden, .. } = self;
        if self.act_on_output {
            return Err("timm's Vision Transformer has no activation after the MLP's second layer".to_owned());
        }
        let mlp_ratio = mlp_hidden as f64 / embed_dim as f64;
        if (embed_dim as f64 * mlp_ratio) as i64 != mlp_hidden {
            return Err(format!(
                "timm rounds {embed_dim} times {mlp_ratio} to another number than {mlp_hidden}"
            ));
        }
        let act_layer = match self.activation {
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::Relu => "relu",
        };
        // What is drawn or dropped in training is no part of the network.
        let named = Self::VARIANTS.iter().find(|variant| {
            let named = (variant.config)();
            let Self { num_classes, mlp_drop, drop_path_rate, init, .. } = named;
            named.init == VitInit::Timm
                && named == Self { num_classes, mlp_drop, drop_path_rate, init, ..self.clone() }
        });
        Ok(Timm {
            architecture: named.map_or("vit_base_patch16_224", |variant| variant.name),
            model_args: json!({
                "img_size": image_size,
                "patch_size": patch_size,
                "embed_dim": embed_dim,
                "depth": depth,
                "num_heads": num_heads,
                "mlp_ratio": mlp_ratio,
                "qkv_bias": self.qkv_bias,
                "act_layer": act_layer,
            }),
            num_features: embed_dim,
            global_pool: "token",
            first_conv: "patch_embed.proj",
            classifier: "head",
            fixed_input_size: true,
        })
    }

    fn build(&self, vs: &Path) -> Result<Box<dyn Model>, ConfigError> {
        Ok(Box::new(self.init(vs)?))
    }
}
