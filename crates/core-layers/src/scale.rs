//! Layer scale: a learned factor per channel on a residual branch.

use tch::nn::Path;
use tch::{TchError, Tensor};

use crate::{Init, parameter, trace};

/// A factor per channel, starting near 0 so that deep stacks start as identities (Touvron et al.,
/// arXiv:2103.17239, §2.1).
#[derive(Debug)]
pub struct LayerScale {
    gamma: Tensor,
}

impl LayerScale {
    /// Creates the tensor `name` `[channels]` under `vs`, every factor `value`.
    ///
    /// # Errors
    /// What libtorch says when the tensor cannot be made.
    pub fn new(vs: &Path, name: &str, channels: i64, value: f64) -> Result<Self, TchError> {
        Ok(Self { gamma: parameter(vs, name, &[channels], Init::Constant(value))? })
    }

    /// `[.., C]` → the same shape.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let y = x * &self.gamma;
        trace::step("LayerScale", &[Some(&self.gamma)], &y, &[0]);
        y
    }

    /// Maps `[B, C, H, W]` → the same shape.
    pub fn forward_map(&self, maps: &Tensor) -> Tensor {
        let y = maps * self.gamma.reshape([-1, 1, 1]);
        trace::step("LayerScale", &[Some(&self.gamma)], &y, &[0]);
        y
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, nn};

    #[test]
    fn tokens_and_maps_are_scaled_by_channel() {
        let vs = nn::VarStore::new(Device::Cpu);
        let scale = LayerScale::new(&vs.root(), "gamma_1", 2, 0.5).unwrap();
        tch::no_grad(|| {
            let _ = vs.variables()["gamma_1"].narrow(0, 1, 1).fill_(3.0);
        });
        let maps = Tensor::ones([1, 2, 1, 3], (Kind::Float, Device::Cpu));
        let got = Vec::<f32>::try_from(scale.forward_map(&maps).flatten(0, -1)).unwrap();
        assert_eq!(got, [0.5, 0.5, 0.5, 3., 3., 3.]);
        assert_eq!(Vec::<f32>::try_from(scale.forward(&Tensor::from_slice(&[1f32, 1.]))).unwrap(), [0.5, 3.]);
    }
}
