//! Plain data of a training run, shared by the trainer that writes it and by xtask that reads it.
//!
//! | on disk | type |
//! | --- | --- |
//! | `recipes/<preset>/<family>.toml`, `runs/*/recipe.toml` | [`Recipe`] |
//! | `runs/*/history.csv`, one row per epoch | [`EpochStats`] |
//! | `runs/*/record.json` | [`RunRecord`] |
//! | `runs/*/predictions.csv`, one row per test image | [`Prediction`] |
//! | `results.csv`, one row per run | [`ResultRow`] |
//! | `summary.csv`, one row per group of seeds | [`SummaryRow`] |
//!
//! This crate knows nothing of tensors, so whatever only reads results builds in seconds.

mod augment;
mod data;
mod disk;
mod explain;
mod measures;
mod optim;
mod predictions;
mod recipe;
mod record;
mod summary;
mod words;

pub use augment::{AugmentRecipe, CropOffset, EraseMode, MixMode, TrainInterpolation};
pub use data::{
    CropMode, DataRecipe, DatasetName, FolderRecipe, Interpolation, Normalize, OnError, ValidationFrom,
};
pub use disk::{cache_dir, check_writable, remove_partial_files, write_atomically};
pub use explain::{ExplainMethod, ExplainRecipe};
pub use measures::{
    CALIBRATION_BINS, CalibrationBin, ClassMeasures, calibration, calibration_error, class_measures,
    confusion, temperature,
};
pub use optim::{Algorithm, Anneal, EmaRecipe, OptimizerName, OptimizerRecipe, RollbackRecipe, Schedule};
pub use predictions::{Prediction, predictions_from_csv, predictions_to_csv};
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
