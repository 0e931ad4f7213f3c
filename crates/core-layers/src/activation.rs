//! The activation functions of the published networks; GELU comes in two forms.

use serde::{Deserialize, Serialize};
use tch::Tensor;
use torch_ext::has_kernels;

use crate::drop::dropout;
use crate::must;

/// An elementwise activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x·Φ(x) with the error function: PyTorch's default, and Keras's `"gelu"`.
    Gelu,
    /// The tanh approximation: `keras.ops.gelu`, and flax's default.
    GeluTanh,
    /// max(x, 0).
    Relu,
}

impl Activation {
    /// Applies the activation to a tensor of any shape.
    pub fn forward(self, x: &Tensor) -> Tensor {
        self.forward_dropped(x, 0.0, false)
    }

    /// Which GELU it is, if it is one.
    pub(crate) fn gelu(self) -> Option<torch_ext::Gelu> {
        match self {
            Self::Gelu => Some(torch_ext::Gelu::Erf),
            Self::GeluTanh => Some(torch_ext::Gelu::Tanh),
            Self::Relu => None,
        }
    }

    /// The activation, and dropout at the rate `drop` in training.
    pub fn forward_dropped(self, x: &Tensor, drop: f64, train: bool) -> Tensor {
        let Some(form) = self.gelu() else {
            return dropout(x.relu(), drop, train);
        };
        let drop = if train { drop } else { 0.0 };
        if has_kernels(x) {
            return must(torch_ext::gelu(x, form, drop));
        }
        dropout(x.gelu(if form == torch_ext::Gelu::Tanh { "tanh" } else { "none" }), drop, train)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_gelus_differ_where_they_should() {
        let x = Tensor::from_slice(&[-1.0f64, 1.0, 3.0]);
        let values = |a: Activation| Vec::<f64>::try_from(a.forward(&x)).unwrap();
        // x·Φ(x), with Φ(1) = 0.841344746069 and Φ(3) = 0.998650101968.
        for (got, want) in
            values(Activation::Gelu).iter().zip([-0.158655253931, 0.841344746069, 2.995950305905])
        {
            assert!((got - want).abs() < 1e-11, "{got} {want}");
        }
        // 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))).
        for (got, x) in values(Activation::GeluTanh).iter().zip([-1.0f64, 1.0, 3.0]) {
            let want =
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh());
            assert!((got - want).abs() < 1e-12, "{got} {want}");
        }
        assert_eq!(values(Activation::Relu), [0.0, 1.0, 3.0]);
    }
}
