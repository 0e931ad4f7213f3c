//! Squeeze-and-excitation: channels weighed by what the whole map says.

use tch::nn::Path;
use tch::{Kind, TchError, Tensor};

use crate::{Activation, InitScheme, Linear};

/// What decides a [`SqueezeExcite`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SqueezeExciteConfig {
    /// Channels of the maps.
    pub channels: i64,
    /// Channels in between.
    pub reduced: i64,
    /// The activation in between.
    pub activation: Activation,
    /// Whether the two layers have biases.
    pub bias: bool,
    /// Whether the checkpoint keeps the two layers as 1×1 convolutions.
    pub as_convolutions: bool,
    /// What weights and biases start from.
    pub init: InitScheme,
}

/// Mean over the map, linear, activation, linear, sigmoid: the factor of each channel (Hu et al.,
/// arXiv:1709.01507).
#[derive(Debug)]
pub struct SqueezeExcite {
    reduce: Linear,
    expand: Linear,
    activation: Activation,
}

impl SqueezeExcite {
    /// Creates the two layers under the two paths, whose names differ between checkpoints.
    ///
    /// # Errors
    /// What libtorch says when a tensor cannot be made.
    pub fn new(reduce: &Path, expand: &Path, config: SqueezeExciteConfig) -> Result<Self, TchError> {
        let SqueezeExciteConfig { channels, reduced, activation, bias, as_convolutions, init } = config;
        let layer = |vs: &Path, inputs, outputs| {
            let make = if as_convolutions { Linear::new_1x1 } else { Linear::new };
            make(vs, inputs, outputs, init.weight(inputs, outputs), bias.then_some(init.bias(inputs)))
        };
        Ok(Self {
            reduce: layer(reduce, channels, reduced)?,
            expand: layer(expand, reduced, channels)?,
            activation,
        })
    }

    /// Maps `[B, C, H, W]` → the same shape.
    pub fn forward(&self, maps: &Tensor) -> Tensor {
        let mean = maps.mean_dim([2i64, 3].as_slice(), false, Kind::Float); // [B, C]
        let hidden = self.activation.forward(&self.reduce.forward(&mean));
        maps * self.expand.forward(&hidden).sigmoid().unsqueeze(-1).unsqueeze(-1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, nn};

    #[test]
    fn channels_are_scaled_by_the_sigmoid_of_their_mean() {
        for as_convolutions in [false, true] {
            let vs = nn::VarStore::new(Device::Cpu);
            let config = SqueezeExciteConfig {
                channels: 2,
                reduced: 1,
                activation: Activation::Relu,
                bias: true,
                as_convolutions,
                init: InitScheme::Glorot,
            };
            let root = vs.root();
            let layer = SqueezeExcite::new(&(&root / "r"), &(&root / "e"), config).unwrap();
            let fill = |name: &str, values: &[f32]| {
                let mut tensor = vs.variables()[name].shallow_clone();
                tch::no_grad(|| tensor.copy_(&Tensor::from_slice(values).reshape(tensor.size())));
            };
            fill("r.weight", &[1., 2.]);
            fill("r.bias", &[0.5]);
            fill("e.weight", &[1., -1.]);
            let shape: &[i64] = if as_convolutions { &[1, 2, 1, 1] } else { &[1, 2] };
            assert_eq!(vs.variables()["r.weight"].size(), shape);
            // Means 1 and 2: reduced 1·1 + 2·2 + 0.5 = 5.5; factors σ(5.5) and σ(−5.5).
            let maps = Tensor::from_slice(&[0f32, 2., 1., 3.]).reshape([1, 2, 1, 2]);
            let got = Vec::<f32>::try_from(layer.forward(&maps).flatten(0, -1)).unwrap();
            let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
            let want = [0., 2. * sigmoid(5.5), sigmoid(-5.5), 3. * sigmoid(-5.5)];
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() < 1e-6, "{got} {want}");
            }
        }
    }
}
