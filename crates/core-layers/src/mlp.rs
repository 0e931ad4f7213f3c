//! The two-layer perceptron of a transformer block.

use tch::nn::Path;
use tch::{TchError, Tensor};

use crate::drop::dropout;
use crate::{Activation, InitScheme, Linear};

/// What decides an [`Mlp`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MlpConfig {
    /// Channels in and out.
    pub dim: i64,
    /// Channels in between.
    pub hidden: i64,
    /// The activation between the layers.
    pub activation: Activation,
    /// Whether the activation follows the second layer too, as in the Keras tutorials.
    pub act_on_output: bool,
    /// Dropout rate between the layers.
    pub hidden_drop: f64,
    /// Dropout rate after the second layer.
    pub output_drop: f64,
    /// What weights and biases start from.
    pub init: InitScheme,
}

/// Linear, activation, linear; see [`MlpConfig`].
#[derive(Debug)]
pub struct Mlp {
    first: Linear,
    second: Linear,
    config: MlpConfig,
}

impl Mlp {
    /// Creates the layers under the two paths, whose names differ between checkpoints.
    ///
    /// # Errors
    /// What libtorch says when a tensor cannot be made.
    pub fn new(first: &Path, second: &Path, config: MlpConfig) -> Result<Self, TchError> {
        let MlpConfig { dim, hidden, init, .. } = config;
        Ok(Self {
            first: Linear::new(first, dim, hidden, init.weight(dim, hidden), Some(init.bias(dim)))?,
            second: Linear::new(second, hidden, dim, init.weight(hidden, dim), Some(init.bias(hidden)))?,
            config,
        })
    }

    /// `[.., dim]` → the same shape.
    pub fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        let MlpConfig { activation, act_on_output, hidden_drop, output_drop, .. } = self.config;
        let hidden = activation.forward_dropped(&self.first.forward(x), hidden_drop, train);
        let y = self.second.forward(&hidden);
        match act_on_output {
            true => activation.forward_dropped(&y, output_drop, train),
            false => dropout(y, output_drop, train),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, nn};

    #[test]
    fn the_activation_follows_the_output_only_if_asked() {
        for (act_on_output, want) in [(false, -3.0), (true, 0.0)] {
            let vs = nn::VarStore::new(Device::Cpu);
            let config = MlpConfig {
                dim: 1,
                hidden: 2,
                activation: Activation::Relu,
                act_on_output,
                hidden_drop: 0.0,
                output_drop: 0.0,
                init: InitScheme::Glorot,
            };
            let mlp = Mlp::new(&(vs.root() / "fc1"), &(vs.root() / "fc2"), config).unwrap();
            tch::no_grad(|| {
                let mut w1 = vs.variables()["fc1.weight"].shallow_clone();
                w1.copy_(&Tensor::from_slice(&[1f32, -1.]).reshape([2, 1]));
                let mut w2 = vs.variables()["fc2.weight"].shallow_clone();
                w2.copy_(&Tensor::from_slice(&[-1f32, 5.]).reshape([1, 2]));
            });
            let y = mlp.forward_t(&Tensor::full([1, 1], 3.0, (Kind::Float, Device::Cpu)), true);
            assert_eq!(y.double_value(&[0, 0]), want);
        }
    }
}
