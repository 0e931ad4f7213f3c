//! Batch norm and layer norm with every constant spelled out: frameworks disagree on all of them.

use tch::nn::Path;
use tch::{Kind, TchError, Tensor};

use torch_ext::{
    BatchNorm, LARGEST_NORM, add_layer_norm, batch_norm, gelu_batch_norm, has_kernels, layer_norm,
};

use crate::{Activation, Init, apply_drop_path, buffer, must, parameter, trace};

/// Batch normalisation of `[B, C, H, W]` maps over B, H and W (Ioffe & Szegedy, arXiv:1502.03167).
#[derive(Debug)]
pub struct BatchNorm2d {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: f64,
    eps: f64,
}

impl BatchNorm2d {
    /// Gain 1, shift 0, running mean 0 and variance 1.
    ///
    /// `momentum` is the weight of the *new* value in the running statistics, as PyTorch counts
    /// it: PyTorch's default is 0.1, Keras's default of 0.99 for the old value is 0.01 here. `eps`
    /// is 1e-5 in PyTorch and 1e-3 in Keras.
    ///
    /// # Errors
    /// What libtorch says when a tensor cannot be made.
    pub fn new(vs: &Path, channels: i64, momentum: f64, eps: f64) -> Result<Self, TchError> {
        Ok(Self {
            weight: parameter(vs, "weight", &[channels], Init::Ones)?,
            bias: parameter(vs, "bias", &[channels], Init::Zeros)?,
            running_mean: buffer(vs, "running_mean", &[channels], Init::Zeros)?,
            running_var: buffer(vs, "running_var", &[channels], Init::Ones)?,
            momentum,
            eps,
        })
    }

    /// `[B, C, H, W]` → the same shape. In training it normalises by the batch and moves the
    /// running statistics (the variance unbiased); otherwise it normalises by those. Which batch that is where several
    /// processes share one, [`torch_ext::batch_norm`] tells.
    pub fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        let tensors = [&self.weight, &self.bias, &self.running_mean, &self.running_var].map(Some);
        let y = must(batch_norm(x, self.norm(), train));
        trace::step("BatchNorm2d", &tensors, &y, &[0]);
        y
    }

    /// The norm of the activation of `x`, and a residual of the same shape on top if there is one.
    pub fn forward_activated_t(
        &self,
        x: &Tensor,
        activation: Activation,
        residual: Option<&Tensor>,
        train: bool,
    ) -> Tensor {
        let form = activation.gelu().filter(|_| {
            let trainable = !train || x.numel() as i64 > self.weight.size()[0];
            has_kernels(x) && self.weight.kind() == Kind::Float && trainable
        });
        let Some(form) = form else {
            let y = self.forward_t(&activation.forward(x), train);
            return residual.map_or(y.shallow_clone(), |residual| residual + &y);
        };
        let y = must(gelu_batch_norm(x, form, residual, self.norm(), train));
        let tensors = [&self.weight, &self.bias, &self.running_mean, &self.running_var].map(Some);
        trace::step("BatchNorm2d", &tensors, &y, &[0]);
        y
    }

    fn norm(&self) -> BatchNorm<'_> {
        let Self { weight, bias, running_mean, running_var, momentum, eps } = self;
        BatchNorm { weight, bias, running_mean, running_var, momentum: *momentum, eps: *eps }
    }
}

/// Layer normalisation over the last dimension (Ba et al., arXiv:1607.06450).
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Gain 1, shift 0. `eps` goes under the root; the published networks use 1e-5 or 1e-6.
    ///
    /// # Errors
    /// What libtorch says when a tensor cannot be made.
    pub fn new(vs: &Path, channels: i64, eps: f64) -> Result<Self, TchError> {
        Ok(Self {
            weight: parameter(vs, "weight", &[channels], Init::Ones)?,
            bias: parameter(vs, "bias", &[channels], Init::Zeros)?,
            eps,
        })
    }

    /// `[.., C]` → the same shape.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let Self { weight, bias, eps } = self;
        self.noted(match self.has_kernel(x) {
            true => must(layer_norm(x, weight, bias, *eps)),
            false => x.layer_norm(weight.size(), Some(weight), Some(bias), *eps, true),
        })
    }

    /// The sum of a residual stream `[B, .., C]` and a branch of that shape with a draw of stochastic depth, and the norm
    /// of the sum.
    pub fn forward_added(&self, x: &Tensor, branch: Tensor, mask: Option<&Tensor>) -> (Tensor, Tensor) {
        if !(self.has_kernel(x) && has_kernels(&branch)) {
            let sum = x + apply_drop_path(branch, mask);
            let normed = self.forward(&sum);
            return (sum, normed);
        }
        let [sum, normed] = must(add_layer_norm(x, &branch, mask, &self.weight, &self.bias, self.eps));
        (sum, self.noted(normed))
    }

    fn has_kernel(&self, x: &Tensor) -> bool {
        let float = [&self.weight, &self.bias].iter().all(|tensor| tensor.kind() == Kind::Float);
        has_kernels(x) && float && self.weight.size()[0] <= LARGEST_NORM
    }

    /// What it puts out, as a step.
    fn noted(&self, y: Tensor) -> Tensor {
        trace::step("LayerNorm", &[Some(&self.weight), Some(&self.bias)], &y, &[0]);
        y
    }

    /// Maps `[B, C, H, W]` → the same shape, each pixel normalised over its channels.
    pub fn forward_map(&self, maps: &Tensor) -> Tensor {
        self.forward(&maps.permute([0, 2, 3, 1])).permute([0, 3, 1, 2])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, nn};

    fn close(got: &Tensor, want: &[f64]) {
        let got = Vec::<f64>::try_from(got.flatten(0, -1).to_kind(Kind::Double)).unwrap();
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() < 1e-6, "{got:?} {want:?}");
        }
    }

    #[test]
    fn batch_norm_starts_as_identity_statistics_and_moves_by_momentum() {
        let vs = nn::VarStore::new(Device::Cpu);
        let norm = BatchNorm2d::new(&vs.root(), 1, 0.01, 1e-3).unwrap();
        let x = Tensor::from_slice(&[1f32, 2., 3., 6.]).reshape([1, 1, 2, 2]);
        // Evaluation with mean 0 and variance 1: x / √(1 + 1e-3).
        let scale = 1.0 / 1.001f64.sqrt();
        close(&norm.forward_t(&x, false), &[scale, 2.0 * scale, 3.0 * scale, 6.0 * scale]);
        // Training: batch mean 3, biased variance 3.5.
        let root = 3.501f64.sqrt();
        close(&norm.forward_t(&x, true), &[-2.0 / root, -1.0 / root, 0.0, 3.0 / root]);
        // Running mean 0.01·3; running variance 0.99·1 + 0.01·(3.5·4/3).
        close(&norm.running_mean, &[0.03]);
        close(&norm.running_var, &[0.99 + 0.01 * 14.0 / 3.0]);
        assert_eq!(vs.trainable_variables().len(), 2);
    }

    #[test]
    fn a_map_is_normalised_pixel_by_pixel() {
        let vs = nn::VarStore::new(Device::Cpu);
        let norm = LayerNorm::new(&vs.root(), 2, 1e-6).unwrap();
        // Two channels of two pixels: (1, 3) and (5, 1).
        let maps = Tensor::from_slice(&[1f32, 5., 3., 1.]).reshape([1, 2, 1, 2]);
        let y = norm.forward_map(&maps);
        assert_eq!(y.size(), [1, 2, 1, 2]);
        close(&y, &[-1.0, 1.0, 1.0, -1.0]);
    }

    #[test]
    fn layer_norm_uses_the_biased_variance_and_its_own_eps() {
        let vs = nn::VarStore::new(Device::Cpu);
        let x = Tensor::from_slice(&[1f32, 3.]).reshape([1, 2]);
        // Mean 2, biased variance 1.
        for eps in [1e-5f64, 1e-1] {
            let norm = LayerNorm::new(&(vs.root() / eps.to_string().replace('.', "_")), 2, eps).unwrap();
            let want = 1.0 / (1.0 + eps).sqrt();
            close(&norm.forward(&x), &[-want, want]);
        }
    }
}
