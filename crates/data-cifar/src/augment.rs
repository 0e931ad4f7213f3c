//! What is done to pixels: PIL's operations and resizing, the policies that draw them, Keras's changes, erasing,
//! mixing and normalisation.

pub(crate) mod apply;
pub(crate) mod colour;
pub(crate) mod erase;
pub(crate) mod fit;
pub(crate) mod keras;
pub(crate) mod kernel;
pub(crate) mod mix;
pub(crate) mod normalize;
pub(crate) mod on_device;
pub(crate) mod ops;
pub(crate) mod policy;
pub(crate) mod resample;
pub(crate) mod warp;
