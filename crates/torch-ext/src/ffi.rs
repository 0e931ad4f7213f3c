//! The C functions of this crate's C++ files, and how arguments reach them.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::iter;

use tch::{Device, Tensor};
use torch_sys::C_tensor;

use crate::TorchExtError;

/// `const at::Tensor *const *`: the pointers of a slice of tensors.
pub(crate) type Tensors = *const *const C_tensor;

// Each signature repeats the one in C++; `bool`, `int` and `double` are the same in both languages.
unsafe extern "C" {
    fn torch_ext_last_error() -> *const c_char;

    pub(crate) fn torch_ext_fused_adamw(
        params: Tensors,
        grads: Tensors,
        exp_avgs: Tensors,
        exp_avg_sqs: Tensors,
        count: usize,
        steps: Tensors,
        step_count: usize,
        lr: f64,
        lr_tensor: *const C_tensor,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> c_int;
    pub(crate) fn torch_ext_fused_sgd(
        params: Tensors,
        grads: Tensors,
        count: usize,
        buffers: Tensors,
        buffer_count: usize,
        lr: f64,
        lr_tensor: *const C_tensor,
        momentum: f64,
        weight_decay: f64,
        nesterov: bool,
        first_step: bool,
    ) -> c_int;

    pub(crate) fn torch_ext_foreach_norm(
        tensors: Tensors,
        count: usize,
        ord: f64,
        norms: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn torch_ext_foreach_mul_scalar(tensors: Tensors, count: usize, factor: f64) -> c_int;
    pub(crate) fn torch_ext_foreach_add(tensors: Tensors, others: Tensors, count: usize, alpha: f64)
    -> c_int;
    pub(crate) fn torch_ext_foreach_lerp(tensors: Tensors, ends: Tensors, count: usize, weight: f64)
    -> c_int;
    pub(crate) fn torch_ext_set_grads(tensors: Tensors, grads: Tensors, count: usize) -> c_int;
    pub(crate) fn torch_ext_clip_grad_norm(
        grads: Tensors,
        count: usize,
        max_norm: f64,
        norm: *mut *mut C_tensor,
    ) -> c_int;

    pub(crate) fn torch_ext_channels_last(tensor: *const C_tensor, result: *mut *mut C_tensor) -> c_int;
    pub(crate) fn torch_ext_is_channels_last(tensor: *const C_tensor, result: *mut bool) -> c_int;

    pub(crate) fn torch_ext_autocast_enter(
        device: c_int,
        enabled: bool,
        dtype: c_int,
        old_enabled: *mut bool,
        old_dtype: *mut c_int,
    ) -> c_int;
    pub(crate) fn torch_ext_autocast_leave(device: c_int, old_enabled: bool, old_dtype: c_int) -> c_int;

    pub(crate) fn torch_ext_graph_supported(device: c_int, supported: *mut bool) -> c_int;
    pub(crate) fn torch_ext_graph_begin(device: c_int, graph: *mut *mut c_void) -> c_int;
    pub(crate) fn torch_ext_graph_end(graph: *mut c_void) -> c_int;
    pub(crate) fn torch_ext_graph_replay(graph: *mut c_void) -> c_int;
    pub(crate) fn torch_ext_graph_free(graph: *mut c_void);

    pub(crate) fn torch_ext_freeze() -> c_int;
    pub(crate) fn torch_ext_thaw() -> c_int;
    pub(crate) fn torch_ext_is_frozen(x: *const C_tensor, result: *mut bool) -> c_int;
    pub(crate) fn torch_ext_frozen_convolution(
        maps: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        stride: i64,
        padding: *const i64,
        groups: i64,
        result: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn torch_ext_frozen_linear(
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        result: *mut *mut C_tensor,
    ) -> c_int;

    pub(crate) fn torch_ext_group_open(
        host: *const c_char,
        port: u16,
        serves: bool,
        rank: c_int,
        size: c_int,
        prefix: *const c_char,
        device: c_int,
        timeout_ms: i64,
        group: *mut *mut c_void,
    ) -> c_int;
    pub(crate) fn torch_ext_group_free(group: *mut c_void);
    pub(crate) fn torch_ext_group_has_nccl(group: *const c_void) -> bool;
    pub(crate) fn torch_ext_group_failure(group: *const c_void) -> *const c_char;
    pub(crate) fn torch_ext_group_share_batch(group: *mut c_void, counts: bool);
    pub(crate) fn torch_ext_group_sum(group: *mut c_void, tensors: Tensors, count: usize) -> c_int;
    pub(crate) fn torch_ext_group_broadcast(
        group: *mut c_void,
        tensors: Tensors,
        count: usize,
        root: c_int,
    ) -> c_int;
    pub(crate) fn torch_ext_group_barrier(group: *mut c_void) -> c_int;
    pub(crate) fn torch_ext_group_gather(
        group: *mut c_void,
        bytes: *const u8,
        length: usize,
        into: *mut c_void,
        add: extern "C" fn(*mut c_void, *const u8, usize),
    ) -> c_int;
    pub(crate) fn torch_ext_reducer_new(
        group: *const c_void,
        tensors: Tensors,
        count: usize,
        bucket_bytes: i64,
        reducer: *mut *mut c_void,
    ) -> c_int;
    pub(crate) fn torch_ext_reducer_arm(reducer: *mut c_void) -> c_int;
    pub(crate) fn torch_ext_reducer_finish(reducer: *mut c_void) -> c_int;
    pub(crate) fn torch_ext_reducer_buckets(
        reducer: *const c_void,
        into: *mut c_void,
        add: extern "C" fn(*mut c_void, i64),
    );
    pub(crate) fn torch_ext_reducer_free(reducer: *mut c_void);

    pub(crate) fn torch_ext_set_switch(which: c_int, on: bool) -> c_int;
    pub(crate) fn torch_ext_get_switch(which: c_int, on: *mut bool) -> c_int;
    pub(crate) fn torch_ext_set_deterministic(on: bool, warn_only: bool) -> c_int;
    pub(crate) fn torch_ext_get_deterministic(on: *mut bool, warn_only: *mut bool) -> c_int;
    pub(crate) fn torch_ext_set_matmul_precision(precision: c_int) -> c_int;
    pub(crate) fn torch_ext_get_matmul_precision(precision: *mut c_int) -> c_int;

    pub(crate) fn torch_ext_memory_stats(device: c_int, found: *mut bool, stats: *mut i64) -> c_int;
    pub(crate) fn torch_ext_memory_info(
        device: c_int,
        found: *mut bool,
        free: *mut usize,
        total: *mut usize,
    ) -> c_int;
    pub(crate) fn torch_ext_reset_peak(device: c_int) -> c_int;
    pub(crate) fn torch_ext_empty_cache() -> c_int;

    pub(crate) fn torch_ext_kernel_instructions() -> *const c_char;
    pub(crate) fn torch_ext_is_fast(tensor: *const C_tensor, result: *mut bool) -> c_int;
    pub(crate) fn torch_ext_gelu(
        x: *const C_tensor,
        tanh: bool,
        drop: f64,
        first: i64,
        result: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn torch_ext_depthwise(
        maps: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        top: i64,
        left: i64,
        result: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn torch_ext_has_winograd(
        maps: *const C_tensor,
        weight: *const C_tensor,
        padding: i64,
        result: *mut bool,
    ) -> c_int;
    pub(crate) fn torch_ext_winograd(
        maps: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        padding: i64,
        result: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn torch_ext_batch_norm(
        maps: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        running_mean: *const C_tensor,
        running_var: *const C_tensor,
        train: bool,
        momentum: f64,
        eps: f64,
        result: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn torch_ext_gelu_batch_norm(
        maps: *const C_tensor,
        tanh: bool,
        residual: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        running_mean: *const C_tensor,
        running_var: *const C_tensor,
        train: bool,
        momentum: f64,
        eps: f64,
        result: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn torch_ext_layer_norm(
        x: *const C_tensor,
        branch: *const C_tensor,
        factors: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        eps: f64,
        sum: *mut *mut C_tensor,
        result: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn torch_ext_attention(
        packed: *const C_tensor,
        query: *const C_tensor,
        bias: *const C_tensor,
        heads: i64,
        drop: f64,
        first: i64,
        result: *mut *mut C_tensor,
    ) -> c_int;

    pub(crate) fn torch_ext_profile_start() -> c_int;
    pub(crate) fn torch_ext_profile_read(
        into: *mut c_void,
        add: extern "C" fn(*mut c_void, *const c_char, u64, u64),
    ) -> c_int;
    pub(crate) fn torch_ext_profile_stop() -> c_int;

    pub(crate) fn torch_ext_trace_start(inputs: Tensors, count: usize) -> c_int;
    pub(crate) fn torch_ext_trace_end(
        output: *const C_tensor,
        into: *mut c_void,
        take: extern "C" fn(*mut c_void, *const c_char, usize),
        add: extern "C" fn(*mut c_void, *mut C_tensor),
    ) -> c_int;
    pub(crate) fn torch_ext_trace_abandon() -> c_int;
    pub(crate) fn torch_ext_script(
        source: *const c_char,
        names: *const *const c_char,
        tensors: Tensors,
        parameters: *const bool,
        count: usize,
        extra_names: *const *const c_char,
        extra_texts: *const *const c_char,
        extra_count: usize,
        into: *mut c_void,
        write: extern "C" fn(*mut c_void, *const c_void, usize) -> bool,
    ) -> c_int;

    pub(crate) fn torch_ext_supports_bf16(device: c_int, supported: *mut bool) -> c_int;
    pub(crate) fn torch_ext_card(
        device: c_int,
        found: *mut bool,
        name: *mut c_char,
        driver: *mut c_char,
        size: c_int,
    ) -> c_int;
}

/// Turns what a function of `torch_ext.cpp` returned on this thread into a `Result`.
pub(crate) fn check(status: c_int) -> Result<(), TorchExtError> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: the pointer is to a string of this thread that ends with a zero and stays until the thread's
    // next failure; it is copied before anything else can fail.
    let message = unsafe { CStr::from_ptr(torch_ext_last_error()) }.to_string_lossy().into_owned();
    Err(if status == 2 { TorchExtError::Argument(message) } else { TorchExtError::Torch(message) })
}

/// The pointers of `tensors`, valid as long as `tensors` is borrowed.
pub(crate) fn pointers(tensors: &[Tensor]) -> Vec<*const C_tensor> {
    tensors.iter().map(Tensor::as_ptr).collect()
}

/// Runs `write`, which gives out one tensor or fails.
pub(crate) fn tensor_from(write: impl FnOnce(*mut *mut C_tensor) -> c_int) -> Result<Tensor, TorchExtError> {
    let mut tensor = std::ptr::null_mut();
    check(write(&mut tensor))?;
    // SAFETY: a function that succeeded wrote a pointer to a tensor of its own, which is now ours to delete.
    Ok(unsafe { Tensor::from_ptr(tensor) })
}

/// Runs `write`, which gives out `count` tensors or fails.
pub(crate) fn tensors_from(
    count: usize,
    write: impl FnOnce(*mut *mut C_tensor) -> c_int,
) -> Result<Vec<Tensor>, TorchExtError> {
    let mut tensors: Vec<*mut C_tensor> = iter::repeat_n(std::ptr::null_mut(), count).collect();
    check(write(tensors.as_mut_ptr()))?;
    // SAFETY: a function that succeeded wrote `count` pointers to tensors of its own, which are now ours to
    // delete.
    Ok(tensors.into_iter().map(|tensor| unsafe { Tensor::from_ptr(tensor) }).collect())
}

/// torch-sys's number of a device.
pub(crate) fn device_number(device: Device) -> Result<c_int, TorchExtError> {
    match device {
        Device::Cpu => Ok(-1),
        Device::Mps => Ok(-2),
        Device::Vulkan => Ok(-3),
        // libtorch counts devices in one signed byte.
        Device::Cuda(index) => i8::try_from(index).map(c_int::from).map_err(|_| {
            TorchExtError::Argument(format!("CUDA device {index}: the largest possible index is {}", i8::MAX))
        }),
    }
}

/// Fails unless the slice `name` has one tensor for each of the `expected` of another.
pub(crate) fn check_count(name: &str, count: usize, expected: usize) -> Result<(), TorchExtError> {
    if count == expected {
        return Ok(());
    }
    Err(TorchExtError::Argument(format!("{name} has {count} tensors, but there must be {expected}")))
}
