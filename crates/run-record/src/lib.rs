//! Plain data of a training run, shared by the trainer that writes it and by xtask that reads it.
//!
//! What is called how on the disk is in [`layout`].
//!
//! | on disk | type |
//! | --- | --- |
//! | `recipes/<preset>/<family>.toml`, `runs/*/recipe.toml` | [`Recipe`] |
//! | `runs/*/history.csv`, one row per epoch | [`EpochStats`] |
//! | `runs/*/record.json` | [`RunRecord`] |
//! | `runs/*/predictions.csv`, one row per test image | [`Prediction`] |
//! | `runs/*/classes.csv`, one row per class | [`ClassCounts`] |
//! | `runs/*/verification.json` | [`Verification`] |
//! | `results.csv`, one row per run | [`ResultRow`] |
//! | `summary.csv`, one row per group of seeds | [`SummaryRow`] |
//!
//! This crate knows nothing of tensors, so whatever only reads results builds in seconds.

mod augment;
mod changes;
mod classes;
mod data;
mod digest;
mod disk;
mod explain;
mod fault;
pub mod layout;
pub mod machine;
mod measures;
mod optim;
mod policy;
mod predictions;
mod recipe;
mod record;
mod summary;
mod table;
mod verification;
mod words;

pub use augment::{
    AugmentRecipe, ColorJitter, CropOffset, Cutmix, EnlargedCrop, EraseMode, MixMode, MixRecipe, Mixup,
    PolicyRecipe, RandomErasing, RandomResizedCrop, TrainInterpolation,
};
pub use changes::{Difference, literal, remove_key, set_key, value_of};
pub use classes::ClassCounts;
pub use data::{
    CropMode, DataRecipe, DatasetName, FolderRecipe, HeldOut, Interpolation, Normalize, OnError, Resize,
    Validation,
};
pub use digest::{Hashed, Hashing, sha256, sha256_file};
pub use disk::{
    cache_dir, check_writable, remove_partial_files, sync_directory, write_atomically, write_atomically_with,
};
pub use explain::{ExplainMethod, ExplainRecipe};
pub use fault::{RecipeError, RecipeErrors};
pub use measures::{
    CALIBRATION_BINS, CalibrationBin, ClassMeasures, calibration, calibration_error, class_measures,
    confusion, temperature, wilson,
};
pub use optim::{Algorithm, Anneal, EmaRecipe, Lookahead, OptimizerRecipe, RollbackRecipe, Schedule};
pub use policy::{Policy, TimmRandAugment};
pub use predictions::{Prediction, predictions_from_csv};
pub use recipe::{
    Bce, ClassWeights, Estimate, FieldValue, InitialWeights, ModelChoice, Recipe, Reference, Select,
    TrainRecipe,
};
pub use record::{
    DEVICE_FAILED, EpochStats, RECORD_FORMAT, ResultRow, RunRecord, STATUS_COMPLETE, STATUS_FAILED,
    STATUS_RUNNING, STATUS_STOPPED,
};
pub use summary::SummaryRow;
pub use table::{columns, to_csv};
pub use verification::Verification;
pub use words::{complaint, duration, first_few, grouped, visible, visible_lines};
