//! The residual convolution block of the trunk.

use core_layers::{
    Activation, Conv2d, LayerNorm, LayerScale, Padding, SqueezeExcite, SqueezeExciteConfig, drop_path,
};
use tch::nn::Path;
use tch::{TchError, Tensor};

use crate::config::{Design, PatchConvNetConfig};
use crate::pooling::{NORM_EPS, optional_scale};

/// Norm, 1×1 convolution, 3×3 convolution, squeeze-and-excitation, 1×1 convolution, with an
/// activation after the first two, beside a residual.
#[derive(Debug)]
pub(crate) struct TrunkBlock {
    norm: LayerNorm,
    expand: Conv2d,
    spatial: Conv2d,
    excite: SqueezeExcite,
    project: Conv2d,
    scale: Option<LayerScale>,
    activation: Activation,
    drop_path_rate: f64,
}

impl TrunkBlock {
    pub(crate) fn new(vs: &Path, config: &PatchConvNetConfig) -> Result<Self, TchError> {
        let &PatchConvNetConfig { embed_dim: dim, design, init, .. } = config;
        let scheme = init.convolution();
        let layers = vs / "attn" / "qkv_pos";
        let (norm, expand, spatial, reduce, excite, project) = match design {
            Design::Tutorial => (vs / "norm", vs / "pw1", vs / "conv3", vs / "se1", vs / "se2", vs / "pw2"),
            Design::Official => (
                vs / "norm1",
                &layers / 0,
                &layers / 2,
                &layers / 4 / "conv_reduce",
                &layers / 4 / "conv_expand",
                &layers / 5,
            ),
        };
        let pointwise =
            |vs: &Path| Conv2d::new(vs, dim, dim, 1, scheme.weight(dim, dim), Some(scheme.bias(dim)));
        let spatial = match design {
            Design::Tutorial => {
                let fan = 9 * dim;
                Conv2d::new(&spatial, dim, dim, 3, scheme.weight(fan, fan), Some(scheme.bias(fan)))?
            }
            Design::Official => {
                Conv2d::depthwise(&spatial, dim, 3, scheme.depthwise_weight(3, dim), Some(scheme.bias(9)))?
            }
        };
        let squeeze = SqueezeExciteConfig {
            channels: dim,
            reduced: config.reduced_channels(),
            activation: Activation::Relu,
            bias: design == Design::Official,
            as_convolutions: design == Design::Official,
            init: scheme,
        };
        Ok(Self {
            norm: LayerNorm::new(&norm, dim, NORM_EPS)?,
            expand: pointwise(&expand)?,
            spatial: spatial.padding(Padding::Symmetric(1)),
            excite: SqueezeExcite::new(&reduce, &excite, squeeze)?,
            project: pointwise(&project)?,
            scale: optional_scale(vs, "gamma_1", config)?,
            activation: config.activation,
            drop_path_rate: config.drop_path_rate,
        })
    }

    /// `[B, D, h, w]` → the same shape.
    pub(crate) fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        let y = self.activation.forward(&self.expand.forward(&self.norm.forward_map(x)));
        let y = self.activation.forward(&self.spatial.forward(&y));
        let branch = self.project.forward(&self.excite.forward(&y));
        let branch = match &self.scale {
            Some(scale) => scale.forward_map(&branch),
            None => branch,
        };
        x + drop_path(branch, self.drop_path_rate, train)
    }
}
