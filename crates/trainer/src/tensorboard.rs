//! What TensorBoard shows of a run.

pub mod board;
pub mod events;
