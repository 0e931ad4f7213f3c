//! Plain data of a training run, shared by the trainer that writes it and by xtask that reads it.
//!
//! What is called how on the disk is in [`layout`].
//!
//! | on disk | type |
//! | --- | --- |
//! | `recipes/<preset>/<family>.toml`, `runs/*/recipe.toml` | [`Recipe`] |
//! | `runs/*/history.csv`, one row per epoch | [`EpochStats`] |
//! | `runs/*/record.json` | [`RunRecord`] |
//! | `results.csv`, one row per run | [`ResultRow`] |
//! | `summary.csv`, one row per group of seeds | [`SummaryRow`] |
//!
//! This crate knows nothing of tensors, so whatever only reads results builds in seconds.

mod augment;
mod data;
mod digest;
mod disk;
pub mod layout;
mod optim;
mod recipe;
mod record;
mod summary;
mod words;

pub use augment::{AugmentRecipe, CropOffset, EraseMode, MixMode, TrainInterpolation};
pub use data::{
    CropMode, DataRecipe, DatasetName, FolderRecipe, Interpolation, Normalize, OnError, ValidationFrom,
};
pub use digest::{Hashed, Hashing, sha256, sha256_file};
pub use disk::{
    cache_dir, check_writable, remove_partial_files, sync_directory, write_atomically, write_atomically_with,
};
pub use optim::{Algorithm, Anneal, EmaRecipe, OptimizerName, OptimizerRecipe, RollbackRecipe, Schedule};
pub use recipe::{
    Estimate, FieldValue, InitialWeights, Loss, ModelChoice, Recipe, RecipeError, RecipeErrors, Reference,
    Select, TrainRecipe,
};
pub use record::{
    DEVICE_FAILED, EpochStats, RECORD_FORMAT, ResultRow, RunRecord, STATUS_COMPLETE, STATUS_FAILED,
    STATUS_RUNNING, STATUS_STOPPED,
};
pub use summary::SummaryRow;
pub use words::{complaint, duration, first_few, visible, visible_lines};
