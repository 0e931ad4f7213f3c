//! Optimiser steps in one pass over parameter, gradient and state.

use std::ptr;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::TorchExtError;
use crate::ffi::{self, check, check_count, pointers};

/// A learning rate, as a number or on the device.
#[derive(Debug, Clone, Copy)]
pub enum LearningRate<'a> {
    /// A number.
    Number(f64),
    /// One f32 number in a tensor. On CUDA the step then takes no number from the host that changes from step
    /// to step. On the CPU the number is read from the tensor.
    Tensor(&'a Tensor),
}

impl From<f64> for LearningRate<'_> {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl<'a> From<&'a Tensor> for LearningRate<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        Self::Tensor(tensor)
    }
}

impl LearningRate<'_> {
    /// The two forms as the C functions take them: the pointer counts unless it is null.
    fn parts(&self) -> (f64, *const C_tensor) {
        match self {
            Self::Number(number) => (*number, ptr::null()),
            Self::Tensor(tensor) => (0.0, tensor.as_ptr()),
        }
    }
}

/// Hyper-parameters of [`fused_adamw_`]. The default has those of PyTorch's `AdamW`, without weight decay.
#[derive(Debug, Clone, Copy)]
pub struct Adam<'a> {
    /// Learning rate, 1e-3 by default.
    pub lr: LearningRate<'a>,
    /// Decay of the running mean of the gradient, 0.9 by default.
    pub beta1: f64,
    /// Decay of the running mean of its square, 0.999 by default.
    pub beta2: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Added to the root of the second moment, 1e-8 by default.
    pub eps: f64,
}

impl Default for Adam<'_> {
    fn default() -> Self {
        Self { lr: 1e-3.into(), beta1: 0.9, beta2: 0.999, weight_decay: 0.0, eps: 1e-8 }
    }
}

/// Hyper-parameters of [`fused_sgd_`]. The default is plain gradient descent at 1e-3.
#[derive(Debug, Clone, Copy)]
pub struct Sgd<'a> {
    /// Learning rate, 1e-3 by default.
    pub lr: LearningRate<'a>,
    /// Decay of the momentum buffer; 0 is none.
    pub momentum: f64,
    /// Factor of the parameter in its gradient.
    pub weight_decay: f64,
    /// Whether to step along `grad + momentum * buffer` instead of the buffer.
    pub nesterov: bool,
}

impl Default for Sgd<'_> {
    fn default() -> Self {
        Self { lr: 1e-3.into(), momentum: 0.0, weight_decay: 0.0, nesterov: false }
    }
}

/// One step of AdamW (Loshchilov & Hutter, 2019; PyTorch's `AdamW`) on every parameter, in place.
///
/// With gradient g, moments m and v, and t the step counted from 1:
///
/// ```text
/// p -= lr weight_decay p
/// m  = beta1 m + (1 - beta1) g
/// v  = beta2 v + (1 - beta2) g²
/// p -= lr (m / (1 - beta1^t)) / (√(v / (1 - beta2^t)) + eps)
/// ```
///
/// - `params`: dense tensors of one device and one floating-point kind.
/// - `grads`: one for each parameter, of its shape, kind and device. They are not changed. One whose strides
///   differ from the parameter's is copied first.
/// - `exp_avgs`, `exp_avg_sqs`: m and v, zeros at first, one for each parameter with its shape and strides,
///   as `zeros_like` makes them.
/// - `steps`: the steps taken so far, one f32 number per tensor, on the parameters' device; either one tensor
///   for each parameter or a single one for all. The call raises each by one.
///
/// Nothing is recorded for a gradient, and nothing waits for the device.
///
/// # Errors
/// [`TorchExtError::Argument`] when a slice is of the wrong length or a tensor does not fit its parameter;
/// then nothing has changed.
pub fn fused_adamw_(
    params: &mut [Tensor],
    grads: &[Tensor],
    exp_avgs: &mut [Tensor],
    exp_avg_sqs: &mut [Tensor],
    steps: &mut [Tensor],
    adam: &Adam,
) -> Result<(), TorchExtError> {
    let count = params.len();
    check_count("grads", grads.len(), count)?;
    check_count("exp_avgs", exp_avgs.len(), count)?;
    check_count("exp_avg_sqs", exp_avg_sqs.len(), count)?;
    if steps.len() != 1 {
        check_count("steps", steps.len(), count)?;
    }
    let (lr, lr_tensor) = adam.lr.parts();
    // SAFETY: each list has `count` pointers to live tensors and `steps` one or `count`; the vectors live
    // until the end of the statement and the tensors longer. What the kernels would not check, the function
    // checks.
    check(unsafe {
        ffi::torch_ext_fused_adamw(
            pointers(params).as_ptr(),
            pointers(grads).as_ptr(),
            pointers(exp_avgs).as_ptr(),
            pointers(exp_avg_sqs).as_ptr(),
            count,
            pointers(steps).as_ptr(),
            steps.len(),
            lr,
            lr_tensor,
            adam.beta1,
            adam.beta2,
            adam.weight_decay,
            adam.eps,
        )
    })
}

/// One step of gradient descent with momentum (PyTorch's `SGD` with dampening 0) on every parameter, in
/// place.
///
/// With gradient g and momentum buffer b:
///
/// ```text
/// g += weight_decay p
/// b  = momentum b + g        (b = g on the first step)
/// p -= lr b                  (p -= lr (g + momentum b) with nesterov)
/// ```
///
/// - `params`, `grads`: as for [`fused_adamw_`].
/// - `momentum_buffers`: one for each parameter with its shape and strides; none without momentum.
/// - `first_step`: whether the buffers hold nothing yet. With buffers of zeros `false` gives the same.
///
/// Nothing is recorded for a gradient, and nothing waits for the device.
///
/// # Errors
/// As [`fused_adamw_`].
pub fn fused_sgd_(
    params: &mut [Tensor],
    grads: &[Tensor],
    momentum_buffers: &mut [Tensor],
    first_step: bool,
    sgd: &Sgd,
) -> Result<(), TorchExtError> {
    let count = params.len();
    check_count("grads", grads.len(), count)?;
    check_count("momentum_buffers", momentum_buffers.len(), if sgd.momentum == 0.0 { 0 } else { count })?;
    let (lr, lr_tensor) = sgd.lr.parts();
    // SAFETY: `params` and `grads` have `count` pointers to live tensors and the buffers as many as is said;
    // the vectors live until the end of the statement and the tensors longer. What the kernels would not
    // check, the function checks.
    check(unsafe {
        ffi::torch_ext_fused_sgd(
            pointers(params).as_ptr(),
            pointers(grads).as_ptr(),
            count,
            pointers(momentum_buffers).as_ptr(),
            momentum_buffers.len(),
            lr,
            lr_tensor,
            sgd.momentum,
            sgd.weight_decay,
            sgd.nesterov,
            // Without buffers it means nothing, and libtorch would warn.
            first_step && sgd.momentum != 0.0,
        )
    })
}
