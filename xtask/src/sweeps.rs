//! Many trainings in a row: those of a preset and its seeds, and those that are killed on purpose.

mod child;
pub(crate) mod plan;
mod presets;
mod seeds;
pub(crate) mod soak;
pub(crate) mod train_all;
