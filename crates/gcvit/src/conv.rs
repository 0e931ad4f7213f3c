//! The convolutional parts: MBConv, what halves a map, and what makes the global queries.

use core_layers::{Activation, Conv2d, LayerNorm, Padding, SqueezeExcite, SqueezeExciteConfig};
use tch::nn::Path;
use tch::{TchError, Tensor};

use crate::config::{GcVitInit, QueryPool, squeezed};

/// Of every layer norm in the family.
pub(crate) const NORM_EPS: f64 = 1e-5;

/// A residual, depthwise-separable convolution with squeeze-and-excitation and no norm (the paper's
/// Fused-MBConv, arXiv:2206.09959, eq. 1).
#[derive(Debug)]
struct MbConv {
    depthwise: Conv2d,
    squeeze_excite: SqueezeExcite,
    pointwise: Conv2d,
}

impl MbConv {
    /// Creates the layers under `vs`/conv; their numbers are places in the official sequence.
    fn new(vs: &Path, dim: i64, init: GcVitInit) -> Result<Self, TchError> {
        let (vs, scheme) = (vs / "conv", init.convolution());
        let squeeze_excite = SqueezeExciteConfig {
            channels: dim,
            reduced: squeezed(dim),
            activation: Activation::Gelu,
            bias: false,
            as_convolutions: false,
            init: init.linear(),
        };
        let layers = &vs / 2 / "fc";
        Ok(Self {
            depthwise: Conv2d::depthwise(&(&vs / 0), dim, 3, scheme.depthwise_weight(3, dim), None)?
                .padding(Padding::Symmetric(1)),
            squeeze_excite: SqueezeExcite::new(&(&layers / 0), &(&layers / 2), squeeze_excite)?,
            pointwise: Conv2d::new(&(&vs / 3), dim, dim, 1, scheme.weight(dim, dim), None)?,
        })
    }

    /// `[B, C, H, W]` → the same shape.
    fn forward(&self, maps: &Tensor) -> Tensor {
        let mixed = Activation::Gelu.forward(&self.depthwise.forward(maps));
        maps + self.pointwise.forward(&self.squeeze_excite.forward(&mixed))
    }
}

/// Halves a map and may change its channels: norm, MBConv, strided convolution, norm.
#[derive(Debug)]
pub(crate) struct Downsample {
    first_norm: LayerNorm,
    mb_conv: MbConv,
    reduction: Conv2d,
    second_norm: LayerNorm,
}

impl Downsample {
    pub fn new(vs: &Path, dim: i64, outputs: i64, init: GcVitInit) -> Result<Self, TchError> {
        let weight = init.convolution().weight(9 * dim, 9 * outputs);
        Ok(Self {
            first_norm: LayerNorm::new(&(vs / "norm1"), dim, NORM_EPS)?,
            mb_conv: MbConv::new(vs, dim, init)?,
            reduction: Conv2d::new(&(vs / "reduction"), dim, outputs, 3, weight, None)?
                .stride(2)
                .padding(Padding::Symmetric(1)),
            second_norm: LayerNorm::new(&(vs / "norm2"), outputs, NORM_EPS)?,
        })
    }

    /// `[B, C, H, W]` → `[B, C', H/2, W/2]`, sides rounded up.
    pub fn forward(&self, maps: &Tensor) -> Tensor {
        let normed = self.first_norm.forward_map(maps);
        self.second_norm.forward_map(&self.reduction.forward(&self.mb_conv.forward(&normed)))
    }
}

/// What brings a level's map to the size of a window, where it serves as the query of all windows
/// (arXiv:2206.09959, §3.2): MBConvs, each followed by a halving max pool, or one without if the map
/// has the size already.
#[derive(Debug)]
pub(crate) struct QueryGenerator {
    mb_convs: Vec<MbConv>,
    /// `None` if nothing is to be halved.
    pool: Option<QueryPool>,
}

impl QueryGenerator {
    pub fn new(
        vs: &Path,
        dim: i64,
        halvings: i64,
        pool: QueryPool,
        init: GcVitInit,
    ) -> Result<Self, TchError> {
        let vs = vs / "to_q_global";
        Ok(Self {
            mb_convs: (0..halvings.max(1))
                .map(|k| MbConv::new(&(&vs / k), dim, init))
                .collect::<Result<_, _>>()?,
            pool: (halvings > 0).then_some(pool),
        })
    }

    /// A level's map `[B, C, H, W]` → its query map `[B, C, w, w]` with w the side of a window.
    pub fn forward(&self, maps: &Tensor) -> Tensor {
        self.mb_convs.iter().fold(maps.shallow_clone(), |x, mb_conv| {
            let y = mb_conv.forward(&x);
            match self.pool {
                None => y,
                Some(QueryPool::NegativeInfinity) => halve(&y, 1),
                Some(QueryPool::Zero) => halve(&y.constant_pad_nd([1, 1, 1, 1]), 0),
            }
        })
    }
}

/// The largest of 3×3 pixels, at every second pixel; −∞ on `padding` pixels around the map.
fn halve(maps: &Tensor, padding: i64) -> Tensor {
    maps.max_pool2d([3, 3], [2, 2], [padding, padding], [1, 1], false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, nn};

    #[test]
    fn zeros_around_a_negative_map_win_and_minus_infinity_does_not() {
        let forward = |pool| {
            let vs = nn::VarStore::new(Device::Cpu);
            let generator = QueryGenerator::new(&vs.root(), 4, 1, pool, GcVitInit::Keras).unwrap();
            // Without a branch the MBConv is the identity.
            let _ = tch::no_grad(|| vs.variables()["to_q_global.0.conv.3.weight"].shallow_clone().zero_());
            generator.forward(&Tensor::full([1, 4, 4, 4], -1.0, (Kind::Float, Device::Cpu)))
        };
        let values = |pool| Vec::<f32>::try_from(forward(pool).select(1, 0).flatten(0, -1)).unwrap();
        // Only the last window touches no border: the map ends on an even pixel.
        assert_eq!(values(QueryPool::Zero), [0., 0., 0., -1.]);
        assert_eq!(values(QueryPool::NegativeInfinity), [-1.; 4]);
    }
}
