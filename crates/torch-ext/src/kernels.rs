//! Operations of our own on the CPU, where libtorch's are slow; for f32 and bf16, with gradients.

use std::ffi::CStr;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, Ordering};

use tch::Tensor;

use crate::TorchExtError;
use crate::batch_share::batch_share;
use crate::ffi::{self, check, tensor_from, tensors_from};

static ON: AtomicBool = AtomicBool::new(true);

/// Whether layers are to use the functions of this module; they do unless told otherwise. Of the whole process: set it
/// before networks compute.
pub fn set_kernels(on: bool) {
    ON.store(on, Ordering::Relaxed);
}

/// The instructions that kernels use in this process: `avx512_bf16`, `avx512`, `avx2`, or `plain` for those the program
/// was compiled for; `off` after [`set_kernels`]. Results differ between them in the last bits.
pub fn kernel_instructions() -> String {
    if !ON.load(Ordering::Relaxed) {
        return "off".to_owned();
    }
    // SAFETY: the pointer is to a constant string that ends with a zero.
    let name = unsafe { CStr::from_ptr(ffi::torch_ext_kernel_instructions()) }.to_string_lossy();
    name.strip_prefix("kernels_").unwrap_or(&name).to_owned()
}

/// Whether the functions of this module take the tensor, which is f32 or bf16 on the CPU, and are wanted.
pub fn has_kernels(tensor: &Tensor) -> bool {
    if !ON.load(Ordering::Relaxed) {
        return false;
    }
    let mut fast = false;
    // SAFETY: the pointers are to a live tensor and to a `bool` to write.
    let asked = check(unsafe { ffi::torch_ext_is_fast(tensor.as_ptr(), &mut fast) });
    asked.is_ok() && fast
}

/// The form of a GELU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gelu {
    /// x·Φ(x) with the error function.
    Erf,
    /// Its approximation by tanh.
    Tanh,
}

/// GELU, and dropout at the rate `drop` after it.
///
/// What is dropped follows from two numbers of libtorch's generator, and needs no memory for the backward pass.
///
/// # Errors
/// [`TorchExtError::Argument`] for a tensor without kernels.
pub fn gelu(x: &Tensor, form: Gelu, drop: f64) -> Result<Tensor, TorchExtError> {
    // SAFETY: the pointer is to a live tensor.
    tensor_from(|result| unsafe {
        ffi::torch_ext_gelu(x.as_ptr(), form == Gelu::Tanh, drop, before(x.numel()), result)
    })
}

/// Scaled dot-product attention of `heads` heads with dropout of the probabilities at the rate `drop`: `[B, N, h·d]`.
///
/// `packed` holds queries, keys and values beside each other, `[B, N, 3·h·d]`, head-major; or keys and values alone,
/// `[B, M, 2·h·d]`, where there is a `query` `[B, h, N, d]`. `bias` `[1, h, N, M]` is added to the scores. The scores
/// of one head at a time are in memory.
///
/// # Errors
/// [`TorchExtError::Argument`] for tensors without kernels or of other shapes.
pub fn attention(
    packed: &Tensor,
    query: Option<&Tensor>,
    bias: Option<&Tensor>,
    heads: i64,
    drop: f64,
) -> Result<Tensor, TorchExtError> {
    let first = before(packed.size().first().map_or(0, |&images| images as usize));
    // SAFETY: the pointers are to live tensors, or null where the function allows it.
    tensor_from(|result| unsafe {
        ffi::torch_ext_attention(packed.as_ptr(), pointer(query), pointer(bias), heads, drop, first, result)
    })
}

/// How many of a batch's elements come before the `count` of this process.
fn before(count: usize) -> i64 {
    batch_share().map_or(0, |share| share.scaled(count as i64)[0])
}

/// The pointer to a tensor, or null.
fn pointer(tensor: Option<&Tensor>) -> *const torch_sys::C_tensor {
    tensor.map_or(null(), Tensor::as_ptr)
}

/// The largest side of a kernel that [`depthwise`] takes.
pub const LARGEST_DEPTHWISE: i64 = 9;

/// Depthwise convolution of maps `[B, C, H, W]` by `weight` `[C, 1, k, k]` with k of 9 or less, at stride 1 and of the
/// same size: there are `top` rows and `left` columns of zeros before a map, and so many after it that there are k − 1
/// in all. Under autocast it computes in that kind.
///
/// # Errors
/// [`TorchExtError::Argument`] for tensors without kernels or of other shapes.
pub fn depthwise(
    maps: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    [top, left]: [i64; 2],
) -> Result<Tensor, TorchExtError> {
    // SAFETY: the pointers are to live tensors, or null where the function allows it.
    tensor_from(|result| unsafe {
        ffi::torch_ext_depthwise(maps.as_ptr(), weight.as_ptr(), pointer(bias), top, left, result)
    })
}

/// Whether [`winograd`] takes these maps and this weight, and is faster than libtorch: with 32 channels or more and 256 tiles
/// of 4×4 results in the batch; and kernels are wanted.
pub fn has_winograd(maps: &Tensor, weight: &Tensor, padding: i64) -> bool {
    if !ON.load(Ordering::Relaxed) {
        return false;
    }
    let mut fast = false;
    // SAFETY: the pointers are to live tensors and to a `bool` to write.
    let asked =
        check(unsafe { ffi::torch_ext_has_winograd(maps.as_ptr(), weight.as_ptr(), padding, &mut fast) });
    asked.is_ok() && fast
}

/// Convolution of maps `[B, C, H, W]` by `weight` `[K, C, 3, 3]` at stride 1, with 0 or 1 pixel of zeros around: by Winograd's
/// algorithm F(4×4, 3×3) ([arXiv:1509.09308](https://arxiv.org/abs/1509.09308)), with a quarter of the multiplications and
/// an error of about 3e-6 of the largest result.
///
/// # Errors
/// [`TorchExtError::Argument`] for tensors that are not f32 on the CPU, under autocast, for channels that are not multiples of
/// 16, or other shapes.
pub fn winograd(
    maps: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    padding: i64,
) -> Result<Tensor, TorchExtError> {
    // SAFETY: the pointers are to live tensors, or null where the function allows it.
    tensor_from(|result| unsafe {
        ffi::torch_ext_winograd(maps.as_ptr(), weight.as_ptr(), pointer(bias), padding, result)
    })
}

/// What a batch norm normalises by; each `[C]`, f32.
#[derive(Debug, Clone, Copy)]
pub struct BatchNorm<'a> {
    /// Factors.
    pub weight: &'a Tensor,
    /// Summands.
    pub bias: &'a Tensor,
    /// The means it has seen.
    pub running_mean: &'a Tensor,
    /// The variances it has seen.
    pub running_var: &'a Tensor,
    /// The weight of a new value in them.
    pub momentum: f64,
    /// What is added to a variance.
    pub eps: f64,
}

/// Batch norm of `maps`, `[B, C, H, W]`, on any device, by libtorch's operations.
///
/// In training it normalises by the batch and moves the running statistics, which need no gradient; the batch is that of
/// all processes within [`sharing_batch_norm`](crate::ProcessGroup::sharing_batch_norm). Otherwise it normalises by the
/// running statistics.
///
/// # Errors
/// libtorch's refusal, or a process that is gone.
pub fn batch_norm(maps: &Tensor, norm: BatchNorm<'_>, train: bool) -> Result<Tensor, TorchExtError> {
    let BatchNorm { weight, bias, running_mean, running_var, momentum, eps } = norm;
    // SAFETY: the pointers are to live tensors.
    tensor_from(|result| unsafe {
        ffi::torch_ext_batch_norm(
            maps.as_ptr(),
            weight.as_ptr(),
            bias.as_ptr(),
            running_mean.as_ptr(),
            running_var.as_ptr(),
            train,
            momentum,
            eps,
            result,
        )
    })
}

/// Batch norm of GELU(`maps`), `[B, C, H, W]`, plus a residual of that shape.
///
/// By which batch is as in [`batch_norm`].
///
/// # Errors
/// [`TorchExtError::Argument`] for tensors without kernels or of other shapes; a process that is gone.
pub fn gelu_batch_norm(
    maps: &Tensor,
    form: Gelu,
    residual: Option<&Tensor>,
    norm: BatchNorm<'_>,
    train: bool,
) -> Result<Tensor, TorchExtError> {
    let BatchNorm { weight, bias, running_mean, running_var, momentum, eps } = norm;
    // SAFETY: the pointers are to live tensors, or null where the function allows it.
    tensor_from(|result| unsafe {
        ffi::torch_ext_gelu_batch_norm(
            maps.as_ptr(),
            form == Gelu::Tanh,
            pointer(residual),
            weight.as_ptr(),
            bias.as_ptr(),
            running_mean.as_ptr(),
            running_var.as_ptr(),
            train,
            momentum,
            eps,
            result,
        )
    })
}

/// The most channels that [`layer_norm`] and [`add_layer_norm`] take.
pub const LARGEST_NORM: i64 = 4096;

/// Layer norm of `x` `[.., C]` over its last dimension. Under autocast the result is of that kind.
///
/// # Errors
/// [`TorchExtError::Argument`] for tensors without kernels or of other shapes.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor, TorchExtError> {
    let mut sum = null_mut();
    // SAFETY: the pointers are to live tensors, or null where the function allows it.
    tensor_from(|result| unsafe {
        let (x, weight, bias) = (x.as_ptr(), weight.as_ptr(), bias.as_ptr());
        ffi::torch_ext_layer_norm(x, null(), null(), weight, bias, eps, &mut sum, result)
    })
}

/// The sum of a residual stream `x` `[B, .., C]` and a branch of that shape, and [`layer_norm`] of it. A factor for each
/// image's branch, B numbers without a gradient, is that of stochastic depth.
///
/// # Errors
/// [`TorchExtError::Argument`] for tensors without kernels or of other shapes.
pub fn add_layer_norm(
    x: &Tensor,
    branch: &Tensor,
    factors: Option<&Tensor>,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<[Tensor; 2], TorchExtError> {
    // SAFETY: the pointers are to live tensors, or null where the function allows it; there is room for two results.
    let tensors = tensors_from(2, |results| unsafe {
        let (x, branch, weight, bias) = (x.as_ptr(), branch.as_ptr(), weight.as_ptr(), bias.as_ptr());
        ffi::torch_ext_layer_norm(x, branch, pointer(factors), weight, bias, eps, results, results.add(1))
    })?;
    <[Tensor; 2]>::try_from(tensors)
        .map_err(|_| TorchExtError::Argument("two results are not two".to_owned()))
}
