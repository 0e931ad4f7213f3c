#![doc = include_str!("../README.md")]

mod autocast;
mod batch_share;
mod cuda_graph;
mod device;
mod ffi;
mod foreach;
mod frozen;
mod jit;
mod kernels;
mod memory_format;
mod optim;
mod process_group;
mod profile;
mod switches;

pub use autocast::Autocast;
pub use batch_share::{BatchShare, batch_share, with_batch_share};
pub use cuda_graph::{CudaGraph, has_graphs, set_graphs};
pub use device::{
    Gpu, MemoryStats, empty_cache, gpu, memory_info, memory_stats, reset_peak, supports_bf16, test_devices,
};
pub use foreach::{
    clear_grads, clip_grad_norm_, foreach_add_, foreach_lerp_, foreach_mul_, foreach_norm, set_grads,
};
pub use frozen::{Frozen, frozen_convolution, frozen_linear, is_frozen};
pub use jit::{ScriptTensor, Trace, TraceArgument, TraceNode, TraceValue, trace, write_script};
pub use kernels::{
    BatchNorm, Gelu, LARGEST_DEPTHWISE, LARGEST_NORM, add_layer_norm, attention, batch_norm, depthwise, gelu,
    gelu_batch_norm, has_kernels, has_winograd, kernel_instructions, layer_norm, set_kernels, winograd,
};
pub use memory_format::{channels_last, is_channels_last};
pub use optim::{Adam, LearningRate, Sgd, fused_adamw_, fused_sgd_};
pub use process_group::{Meeting, ProcessGroup, Reducer};
pub use profile::{OpTime, Profile};
pub use switches::{
    Determinism, MatmulPrecision, Switch, determinism, matmul_precision, set_determinism,
    set_matmul_precision,
};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum TorchExtError {
    /// An argument that libtorch would take without a check, or would refuse with a message about something
    /// else.
    #[error("{0}")]
    Argument(String),
    /// libtorch's own message, without its backtrace.
    #[error("libtorch: {0}")]
    Torch(String),
}
