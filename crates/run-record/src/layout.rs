//! What is called how in a results directory and in a run's.

/// The directory of the runs in a results directory.
pub const RUNS: &str = "runs";

/// The table of runs in a results directory: [`ResultRow`](crate::ResultRow).
pub const RESULTS: &str = "results.csv";

/// The table over seeds beside it: [`SummaryRow`](crate::SummaryRow).
pub const SUMMARY: &str = "summary.csv";

/// The page of all of it beside them.
pub const REPORT: &str = "report.html";

/// A run's record: [`RunRecord`](crate::RunRecord). A directory with one is a run's.
pub const RECORD: &str = "record.json";

/// A run's recipe, as it ran.
pub const RECIPE: &str = "recipe.toml";

/// A row for each epoch: [`EpochStats`](crate::EpochStats).
pub const HISTORY: &str = "history.csv";

/// The weights of the best epoch, where a recipe keeps those.
pub const BEST: &str = "best.safetensors";

/// The weights of the last epoch, where a recipe keeps those.
pub const LAST: &str = "last.safetensors";

/// What the kept network said of every test image: [`Prediction`](crate::Prediction).
pub const PREDICTIONS: &str = "predictions.csv";

/// How many images of each class the parts have: [`ClassCounts`](crate::ClassCounts).
pub const CLASSES: &str = "classes.csv";

/// What `cargo xtask verify-results` found: [`Verification`](crate::Verification).
pub const VERIFICATION: &str = "verification.json";

/// The network layer by layer.
pub const LAYERS: &str = "layers.json";

/// What was said, with the times.
pub const LOG: &str = "train.log";

/// The file that whoever writes to a run holds the lock of, until all of it is as it is to stay.
pub const LOCK: &str = "run.lock";

/// The directory of a run's checkpoints.
pub const CHECKPOINTS: &str = "checkpoints";

/// The network's tensors in a checkpoint.
pub const CHECKPOINT_MODEL: &str = "model.safetensors";

/// The directory of a run's events for TensorBoard.
pub const TENSORBOARD: &str = "tensorboard";

/// The directory of a run's pictures.
pub const FIGURES: &str = "figures";
