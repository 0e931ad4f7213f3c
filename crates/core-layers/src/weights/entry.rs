//! Where in a file a tensor's numbers lie.

use std::ops::Range;

use safetensors::Dtype;

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<i64>,
    /// In numbers, for a view that is not simply row after row.
    pub(super) strides: Option<Vec<i64>>,
    /// The file's bytes from the first of its numbers to the last.
    pub(super) bytes: Range<usize>,
}
