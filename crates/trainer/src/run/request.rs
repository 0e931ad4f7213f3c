//! What `train` is asked for.

use std::path::PathBuf;

use tch::Device;

use crate::optim::precision::Precision;
use crate::process::progress::Output;
use crate::run::keeper::Saving;
use crate::run::peers::Peers;
use crate::run::recipes::Resolved;

/// What `train` was asked for.
#[derive(Debug)]
pub struct Request {
    /// The directory with `recipes/` and `datasets/`.
    pub root: PathBuf,
    /// What to train and how.
    pub resolved: Resolved,
    /// The weights to start from, if not fresh draws.
    pub weights: Option<PathBuf>,
    /// Where the data is, if not where `fetch` puts it.
    pub data_dir: Option<PathBuf>,
    /// Decode the pictures of a folder as they are needed, even if they would fit in memory.
    pub stream: bool,
    /// Seed of every draw.
    pub seed: u64,
    /// The processes that train together.
    pub peers: Peers,
    /// Where to train.
    pub device: Device,
    /// Arithmetic of a training step.
    pub precision: Precision,
    /// Whether only deterministic algorithms run; see [`deterministic`](crate::process::environment::deterministic).
    pub deterministic: bool,
    /// Run directory, if not the default one.
    pub out: Option<PathBuf>,
    /// Replace whatever the run directory holds.
    pub fresh: bool,
    /// When to save, and what to leave.
    pub saving: Saving,
    /// Whether the kept weights are measured on the test images.
    pub tests: bool,
    /// Write TensorBoard's events, and in them the weights' distributions if that is `true`.
    pub tensorboard: Option<bool>,
    /// What to say while it goes on.
    pub output: Output,
}

impl Request {
    /// Where the run goes.
    pub fn run_path(&self, preset: &str) -> PathBuf {
        let model = &self.resolved.recipe.model.name;
        let default = || self.root.join("results/runs").join(format!("{model}--{preset}--s{}", self.seed));
        self.out.clone().unwrap_or_else(default)
    }
}
