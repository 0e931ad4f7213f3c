//! From a data set to the batches that a network is shown: in what order, from where, by which pipeline, and how
//! much at once.

pub(crate) mod at_once;
pub(crate) mod device;
pub(crate) mod image_set;
pub(crate) mod order;
pub(crate) mod pipeline;
pub(crate) mod share;
pub(crate) mod stream;
