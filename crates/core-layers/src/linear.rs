//! A dense layer with explicit initialisers.

use tch::nn::Path;
use tch::{TchError, Tensor};
use torch_ext::{frozen_linear, is_frozen};

use crate::{Init, must, parameter, trace};

/// y = x·Wᵀ + b over the last dimension.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Creates `weight` `[outputs, inputs]` and, if it has an initialiser, `bias` `[outputs]`.
    ///
    /// # Errors
    /// What libtorch says when a tensor cannot be made.
    pub fn new(
        vs: &Path,
        inputs: i64,
        outputs: i64,
        weight: Init,
        bias: Option<Init>,
    ) -> Result<Self, TchError> {
        Self::shaped(vs, &[outputs, inputs], weight, bias)
    }

    /// The same layer with its weight kept as that of a 1×1 convolution, `[outputs, inputs, 1, 1]`,
    /// as some checkpoints do.
    ///
    /// # Errors
    /// What libtorch says when a tensor cannot be made.
    pub fn new_1x1(
        vs: &Path,
        inputs: i64,
        outputs: i64,
        weight: Init,
        bias: Option<Init>,
    ) -> Result<Self, TchError> {
        Self::shaped(vs, &[outputs, inputs, 1, 1], weight, bias)
    }

    fn shaped(vs: &Path, shape: &[i64], weight: Init, bias: Option<Init>) -> Result<Self, TchError> {
        Ok(Self {
            weight: parameter(vs, "weight", shape, weight)?,
            bias: bias.map(|init| parameter(vs, "bias", &shape[..1], init)).transpose()?,
        })
    }

    /// `[.., inputs]` → `[.., outputs]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let bias = self.bias.as_ref();
        let y = match is_frozen(x) {
            true => must(frozen_linear(x, &self.weight, bias)),
            false => x.linear(&self.weight.flatten(1, -1), bias),
        };
        trace::step("Linear", &[Some(&self.weight), self.bias.as_ref()], &y, &self.weight.size()[1..]);
        y
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, nn};

    #[test]
    fn it_computes_the_product_and_adds_the_bias() {
        let vs = nn::VarStore::new(Device::Cpu);
        let layer = Linear::new(&vs.root(), 2, 3, Init::Zeros, Some(Init::Ones)).unwrap();
        tch::no_grad(|| {
            layer
                .weight
                .shallow_clone()
                .copy_(&Tensor::from_slice(&[1f32, 2., 3., 4., 5., 6.]).reshape([3, 2]));
        });
        let y = layer.forward(&Tensor::from_slice(&[10f32, 1.]));
        assert_eq!(Vec::<f32>::try_from(y).unwrap(), [13., 35., 57.]);
    }
}
