//! Many trainings in a row: those of a preset and its seeds, of a search, and those that are killed on purpose.

mod child;
pub(crate) mod plan;
mod presets;
pub(crate) mod search;
mod seeds;
pub(crate) mod soak;
pub(crate) mod train_all;
