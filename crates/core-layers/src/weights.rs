//! Named tensors as safetensors files.

mod write;

pub use write::{WriteError, write_safetensors};
