//! Weights that do not change for a while, kept as the CPU's kernels compute with them.

use std::marker::PhantomData;
use std::ptr::null;

use tch::Tensor;

use crate::TorchExtError;
use crate::ffi::{self, check, tensor_from};

/// While it lives, what this thread computes without gradients on the CPU keeps the weights it meets in the order, and
/// under autocast the type, that oneDNN's kernels take, instead of converting them at every call. That is worth most
/// where little is computed with them: for one image at a time.
///
/// Weights may be changed in place meanwhile, and are converted again then. The converted ones take as much memory as the
/// weights. Guards nest; the outermost gives the memory back.
///
/// ```
/// # fn main() -> Result<(), torch_ext::TorchExtError> {
/// use tch::{Tensor, kind::FLOAT_CPU, no_grad};
/// let (x, weight) = (Tensor::ones([1, 2], FLOAT_CPU), Tensor::ones([3, 2], FLOAT_CPU));
/// let _frozen = torch_ext::Frozen::new()?;
/// no_grad(|| {
///     if torch_ext::is_frozen(&x) {
///         assert_eq!(torch_ext::frozen_linear(&x, &weight, None).unwrap(), x.linear(&weight, None::<&Tensor>));
///     }
/// });
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "weights are kept as long as the guard lives"]
pub struct Frozen {
    not_send: PhantomData<*const ()>,
}

impl Frozen {
    /// Begins to keep weights.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn new() -> Result<Self, TorchExtError> {
        // SAFETY: takes no pointers.
        check(unsafe { ffi::torch_ext_freeze() })?;
        Ok(Self { not_send: PhantomData })
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // SAFETY: takes no pointers.
        let thawed = check(unsafe { ffi::torch_ext_thaw() });
        debug_assert!(thawed.is_ok(), "{thawed:?}");
    }
}

/// Whether [`frozen_convolution`] and [`frozen_linear`] take the tensor now: there is a [`Frozen`], no gradients are
/// asked for, it is f32 or bf16 on the CPU, and this libtorch has oneDNN for it.
pub fn is_frozen(tensor: &Tensor) -> bool {
    let mut frozen = false;
    // SAFETY: the pointers are to a live tensor and to a `bool` to write.
    let asked = check(unsafe { ffi::torch_ext_is_frozen(tensor.as_ptr(), &mut frozen) });
    asked.is_ok() && frozen
}

/// The convolution of maps `[B, C, H, W]` with weights `[O, C / groups, k, k]` and a bias `[O]`, with so many zeros
/// (above and below, left and right) around the maps.
///
/// # Errors
/// [`TorchExtError::Argument`] where [`is_frozen`] says no, otherwise what libtorch says of shapes that do not fit.
pub fn frozen_convolution(
    maps: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: i64,
    padding: [i64; 2],
    groups: i64,
) -> Result<Tensor, TorchExtError> {
    let bias = bias.map_or(null(), Tensor::as_ptr);
    // SAFETY: the pointers are to live tensors and to two numbers; that of the bias may be null.
    tensor_from(|result| unsafe {
        let (maps, weight, padding) = (maps.as_ptr(), weight.as_ptr(), padding.as_ptr());
        ffi::torch_ext_frozen_convolution(maps, weight, bias, stride, padding, groups, result)
    })
}

/// x·Wᵀ + b for `[.., inputs]`, with weights `[outputs, inputs]`, to which dimensions of size 1 may be added, and a bias
/// `[outputs]`.
///
/// # Errors
/// [`TorchExtError::Argument`] where [`is_frozen`] says no, otherwise what libtorch says of shapes that do not fit.
pub fn frozen_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TorchExtError> {
    let bias = bias.map_or(null(), Tensor::as_ptr);
    // SAFETY: the pointers are to live tensors; that of the bias may be null.
    tensor_from(|result| unsafe { ffi::torch_ext_frozen_linear(x.as_ptr(), weight.as_ptr(), bias, result) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Adam, Autocast, fused_adamw_};
    use tch::{Device, Kind, no_grad};

    fn rand(shape: &[i64]) -> Tensor {
        Tensor::rand(shape, (Kind::Float, Device::Cpu)) - 0.5
    }

    fn difference(a: &Tensor, b: &Tensor) -> f64 {
        let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
        ((&a - &b).abs().max() / b.abs().max()).double_value(&[])
    }

    /// Both operations of frozen weights beside libtorch's.
    fn compare(x: &Tensor, weight: &Tensor, bias: &Tensor, tolerance: f64) {
        let flat = weight.flatten(1, -1);
        let tokens = x.permute([0, 2, 3, 1]).narrow(1, 0, 3).reshape([-1, 3 * 9]);
        for _ in 0..2 {
            let got = frozen_convolution(x, weight, Some(bias), 2, [1, 0], 1).unwrap();
            let want = x.conv2d(weight, Some(bias), [2, 2], [1, 0], [1, 1], 1);
            assert!(got.kind() == want.kind() && difference(&got, &want) < tolerance);
            let got = frozen_linear(&tokens, &flat, Some(bias)).unwrap();
            let want = tokens.linear(&flat, Some(bias));
            assert!(got.kind() == want.kind() && difference(&got, &want) < tolerance);
        }
    }

    #[test]
    fn frozen_weights_compute_the_same_and_are_converted_again_after_a_change() {
        tch::manual_seed(3);
        let x = rand(&[2, 3, 9, 9]);
        let (mut weight, bias) = (rand(&[20, 3, 3, 3]).set_requires_grad(true), rand(&[20]));
        assert!(!is_frozen(&x));
        let outer = Frozen::new().unwrap();
        assert!(!is_frozen(&x), "gradients are on");
        let both = |weight: &Tensor| {
            no_grad(|| {
                assert!(is_frozen(&x));
                compare(&x, weight, &bias, 1e-6);
                compare(&x.narrow(0, 0, 1), weight, &bias, 1e-6);
                if crate::supports_bf16(Device::Cpu).unwrap() {
                    let _narrow = Autocast::enter(Device::Cpu, Kind::BFloat16).unwrap();
                    compare(&x, weight, &bias, 0.02);
                }
            });
        };
        both(&weight);
        // Every way in which weights change here.
        no_grad(|| weight.copy_(&rand(&[20, 3, 3, 3])));
        both(&weight);
        let zeros = || weight.zeros_like().set_requires_grad(false);
        let (mut params, grads) = ([weight.shallow_clone()], [rand(&[20, 3, 3, 3])]);
        let (mut means, mut squares, mut steps) = ([zeros()], [zeros()], [Tensor::from(0f32)]);
        let adam = Adam { lr: 0.1.into(), ..Adam::default() };
        fused_adamw_(&mut params, &grads, &mut means, &mut squares, &mut steps, &adam).unwrap();
        both(&weight);
        crate::foreach_mul_(&mut params, -3.0).unwrap();
        both(&weight);
        crate::foreach_add_(&mut params, &grads, 2.0).unwrap();
        both(&weight);
        crate::foreach_lerp_(&mut params, &grads, 0.5).unwrap();
        both(&weight);
        no_grad(|| weight.detach().copy_(&rand(&[20, 3, 3, 3])));
        both(&weight);
        {
            let _inner = Frozen::new().unwrap();
        }
        both(&weight);
        drop(outer);
        no_grad(|| assert!(!is_frozen(&x)));
        let refused = no_grad(|| frozen_linear(&x, &weight, None)).unwrap_err();
        assert_eq!(refused.to_string(), "a product with frozen weights takes f32 or bf16 on the CPU");
    }
}
