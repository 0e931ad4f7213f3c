//! Everything training carries from one step to the next, and its way into a checkpoint and back.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use core_layers::weights::{WeightsError, WeightsFile, write_safetensors};
use run_record::layout::CHECKPOINT_MODEL as MODEL;
use run_record::{EpochStats, Recipe, TrainRecipe};
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::VarStore;

use crate::Error;
use crate::network::registry::Architecture;
use crate::network::weights::Card;
use crate::optim::ema::Ema;
use crate::optim::optimizer::Optimizer;
use crate::run::checkpoint::{Checkpoint, Draft, Position};
use crate::run::evaluate::{SavedSums, Sums};
use crate::run::peers::Peers;

/// The files of a checkpoint.
const OPTIMIZER: &str = "optimizer.safetensors";
const EMA: &str = "ema.safetensors";
const STATE: &str = "state.json";

/// That of the weights to keep. It is copied from disk to disk, and no part of the state.
pub const KEPT: &str = "kept.safetensors";

/// What training carries from step to step, besides the network's tensors.
#[derive(Debug)]
pub struct State {
    /// The optimiser.
    pub optimizer: Optimizer,
    /// The averaged weights, where the recipe asks for them.
    pub ema: Option<Ema>,
    /// Sums over the epoch under way.
    pub sums: Sums,
    /// How far training is.
    pub counters: Counters,
    /// The weights to keep if training ended here.
    pub kept: Option<Kept>,
}

/// How far training is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counters {
    /// Finished epochs.
    pub history: Vec<EpochStats>,
    /// Steps of the epoch under way.
    pub step: u64,
    /// Updates of the run.
    pub updates: u64,
    /// Seconds of training in the epoch under way.
    pub seconds: f64,
    /// How often training went back to a checkpoint because the loss was no longer a number.
    pub rollbacks: u32,
}

/// The weights of an epoch, in a file of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// The epoch.
    pub epoch: u32,
    /// SHA-256 of the safetensors file.
    pub sha256: String,
}

/// Which weights to keep with a checkpoint.
#[derive(Debug, Clone, Copy)]
pub enum Keep<'a> {
    /// The network's as they are, or their averages where there are any, which say this of themselves.
    Current(&'a Card),
    /// Those that were kept so far, if there are any; the first of these files that is theirs is copied.
    Same(&'a [PathBuf]),
}

/// What a checkpoint must agree with to go on from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Digest of the recipe.
    pub recipe_sha256: String,
    /// Digest of the data set.
    pub data_sha256: String,
    /// Seed of every draw.
    pub seed: u64,
    /// Arithmetic of a training step.
    pub precision: String,
}

/// What computes a checkpoint. On another machine a run goes on, but its numbers may differ in the last bits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// What NVIDIA calls the card, for CUDA.
    #[serde(default)]
    pub gpu: Option<String>,
    /// CPU threads of libtorch.
    pub threads: i32,
    /// Processor model.
    pub cpu: String,
    /// The instructions of our own operations, on the CPU.
    #[serde(default)]
    pub kernels: Option<String>,
    /// libtorch's version.
    pub libtorch: String,
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, gpu, threads, cpu, kernels, libtorch } = self;
        let gpu = gpu.as_deref().map_or(String::new(), |gpu| format!(" ({gpu})"));
        let kernels = kernels.as_deref().map_or(String::new(), |kernels| format!(", kernels {kernels}"));
        write!(f, "{device}{gpu}, {threads} threads, {cpu}{kernels}, libtorch {libtorch}")
    }
}

/// `state.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    run: Identity,
    machine: Machine,
    counters: Counters,
    sums: SavedSums,
    kept: Option<Kept>,
}

impl Counters {
    /// The epoch under way, counted from 1.
    pub fn epoch(&self) -> u32 {
        self.history.len() as u32 + 1
    }

    /// Where in the run this is.
    pub fn position(&self) -> Position {
        match self.step {
            0 => Position { epoch: self.epoch() - 1, step: None },
            step => Position { epoch: self.epoch(), step: Some(step) },
        }
    }

    /// The epochs by validation top-1 of the weights a run would keep, the best first, of equals the earlier.
    pub fn best_epochs(&self) -> Vec<u32> {
        let mut epochs: Vec<&EpochStats> = self.history.iter().collect();
        epochs.sort_by(|a, b| b.kept_top1().total_cmp(&a.kept_top1()).then(a.epoch.cmp(&b.epoch)));
        epochs.into_iter().map(|stats| stats.epoch).collect()
    }

    /// Whether there is nothing left to train: all epochs are done, or too many in a row brought nothing.
    pub fn is_finished(&self, train: &TrainRecipe) -> bool {
        let done = self.epoch() - 1;
        let idle = self.best_epochs().first().map_or(0, |best| done - best);
        done >= train.epochs || (self.step == 0 && train.patience.is_some_and(|patience| idle >= patience))
    }
}

impl State {
    /// Before the first step.
    ///
    /// # Errors
    /// A constant of the optimiser that is out of its range, or libtorch's refusal.
    pub fn new(vs: &VarStore, architecture: &Architecture, recipe: &Recipe) -> Result<Self, Error> {
        Ok(Self {
            optimizer: Optimizer::new(vs, architecture, &recipe.optimizer)?,
            ema: recipe.ema.map(|ema| Ema::new(vs, ema)).transpose()?,
            sums: Sums::new(vs.device(), SavedSums::default())?,
            counters: Counters::default(),
            kept: None,
        })
    }

    /// Writes everything as the files of a checkpoint, one tensor after the other; waits for the device. Weights say of
    /// themselves what is in `card`. From then on those that `keep` says are those that are kept.
    ///
    /// # Errors
    /// libtorch's refusal to copy a tensor, or a disk that cannot take it.
    pub fn write(
        &mut self,
        draft: &mut Draft,
        vs: &VarStore,
        (run, machine): (&Identity, &Machine),
        card: &Card,
        keep: Keep,
    ) -> Result<(), Error> {
        draft.file(MODEL, |out| write_safetensors(out, &tensors(vs), &card.metadata()?))?;
        draft.file(OPTIMIZER, |out| write_safetensors(out, &self.optimizer.state(), &BTreeMap::new()))?;
        if let Some(ema) = &self.ema {
            draft.file(EMA, |out| write_safetensors(out, &ema.state(), &card.metadata()?))?;
        }
        match (keep, &self.kept) {
            (Keep::Current(card), _) => {
                let weights = self.ema.as_ref().map_or_else(|| tensors(vs), Ema::state);
                let written = draft.file(KEPT, |out| write_safetensors(out, &weights, &card.metadata()?))?;
                self.kept = Some(Kept { epoch: card.epoch, sha256: written.sha256 });
            }
            (Keep::Same(sources), Some(kept)) => draft.copy(KEPT, sources, &kept.sha256)?,
            (Keep::Same(_), None) => {}
        }
        let saved = Saved {
            run: run.clone(),
            machine: machine.clone(),
            counters: self.counters.clone(),
            sums: self.sums.save(),
            kept: self.kept.clone(),
        };
        draft.file(STATE, |out| Ok(serde_json::to_writer_pretty(out, &saved).map_err(io::Error::from)?))?;
        Ok(())
    }

    /// Makes this state and the network's tensors those of the first process.
    ///
    /// # Errors
    /// A process that is gone, or libtorch's refusal to place the sums on the device.
    pub fn share(&mut self, vs: &VarStore, peers: &Peers) -> Result<(), Error> {
        if !peers.are_several() {
            return Ok(());
        }
        let carried = (self.counters.clone(), self.sums.save(), self.optimizer.steps());
        if let Some((counters, sums, steps)) = peers.hear(peers.is_first().then_some(&carried))? {
            self.counters = counters;
            self.sums = Sums::new(vs.device(), sums)?;
            self.optimizer.set_steps(steps);
        }
        // All processes have them in the order of their names.
        let averages = self.ema.as_ref().map_or_else(BTreeMap::new, Ema::state);
        let all = [tensors(vs), self.optimizer.state(), averages];
        peers.copy_first(&all.into_iter().flat_map(BTreeMap::into_values).collect::<Vec<_>>())
    }

    /// Makes this state and the network's tensors those of a checkpoint, and returns what computed it.
    ///
    /// # Errors
    /// A checkpoint of another run, or one that does not fit the network.
    pub fn restore(
        &mut self,
        vs: &VarStore,
        checkpoint: Checkpoint,
        run: &Identity,
    ) -> Result<Machine, Error> {
        let Checkpoint { position, mut files } = checkpoint;
        let wrong = |problem: String| {
            Error::Training(format!("checkpoint {position}: {problem}; --fresh starts over and replaces it"))
        };
        let mut file = |name: &str| files.remove(name).ok_or_else(|| wrong(format!("it has no {name}")));
        let saved: Saved = serde_json::from_slice(&file(STATE)?)
            .map_err(|error| wrong(format!("its {STATE} cannot be read ({error})")))?;
        if let Some(difference) = saved.run.difference(run) {
            return Err(wrong(difference));
        }
        // A file at a time, whose bytes go before those of the next one are copied.
        let mut read = |name: &str, fill: &mut dyn FnMut(&WeightsFile) -> Result<(), WeightsError>| {
            let tensors = WeightsFile::from_bytes(Path::new(name), file(name)?);
            tensors.and_then(|tensors| fill(&tensors)).map_err(|problem| wrong(format!("its {problem}")))
        };
        read(MODEL, &mut |saved| saved.copy_to(&tensors(vs)))?;
        read(OPTIMIZER, &mut |saved| self.optimizer.load_state(saved))?;
        if let Some(ema) = &self.ema {
            read(EMA, &mut |saved| saved.copy_to(&ema.state()))?;
        }
        self.kept = saved.kept;
        self.counters = saved.counters;
        self.sums = Sums::new(vs.device(), saved.sums)?;
        Ok(saved.machine)
    }
}

impl Identity {
    /// In what a checkpoint's run differs from the one that is to go on.
    fn difference(&self, now: &Self) -> Option<String> {
        let pairs = [
            ("precision", &self.precision, &now.precision),
            ("recipe", &self.recipe_sha256, &now.recipe_sha256),
            ("data", &self.data_sha256, &now.data_sha256),
            ("seed", &self.seed.to_string(), &now.seed.to_string()),
        ];
        let (what, was, is) = pairs.into_iter().find(|(_, was, is)| was != is)?;
        Some(format!("it is of a run with another {what} ({was}, now {is})"))
    }
}

fn tensors(vs: &VarStore) -> BTreeMap<String, Tensor> {
    vs.variables().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(top1: &[f64]) -> Counters {
        let stats = |(epoch, &val_top1): (usize, &f64)| EpochStats {
            epoch: epoch as u32 + 1,
            lr: 0.1,
            train_loss: 1.0 / 3.0,
            train_top1: 0.5,
            train_top5: 0.75,
            val_loss: 1.0,
            val_top1,
            val_top5: 1.0,
            ema_val_loss: None,
            ema_val_top1: None,
            ema_val_top5: None,
            images_per_second: 1.0,
            train_seconds: 1.0,
            val_seconds: 1.0,
        };
        Counters { history: top1.iter().enumerate().map(stats).collect(), ..Counters::default() }
    }

    fn train(epochs: u32, patience: Option<u32>) -> TrainRecipe {
        let recipe = Recipe::parse(include_str!("../../../../recipes/quick/convmixer.toml")).unwrap();
        TrainRecipe { epochs, patience, ..recipe.train }
    }

    #[test]
    fn positions_and_the_best_epochs_follow_the_history() {
        let mut counters = counters(&[0.5, 0.7, 0.7, 0.6]);
        assert_eq!(counters.position().to_string(), "epoch-0004");
        counters.step = 12;
        assert_eq!(counters.position().to_string(), "epoch-0005-step-000012");
        assert_eq!(counters.best_epochs(), [2, 3, 4, 1]);
        // Averaged weights decide where there are any.
        counters.history[0].ema_val_top1 = Some(0.9);
        assert_eq!(counters.best_epochs()[0], 1);
    }

    #[test]
    fn another_card_is_another_machine_and_older_checkpoints_name_none() {
        let text = r#"{"device": "cuda:0", "threads": 8, "cpu": "a processor", "libtorch": "2.11.0"}"#;
        let older: Machine = serde_json::from_str(text).unwrap();
        assert_eq!(older.to_string(), "cuda:0, 8 threads, a processor, libtorch 2.11.0");
        let card = |name: &str| Machine { gpu: Some(name.into()), ..older.clone() };
        assert_ne!(card("NVIDIA H100"), card("NVIDIA L4"));
        let written = serde_json::to_string(&card("NVIDIA H100")).unwrap();
        let read: Machine = serde_json::from_str(&written).unwrap();
        assert_eq!(read.to_string(), "cuda:0 (NVIDIA H100), 8 threads, a processor, libtorch 2.11.0");
    }

    #[test]
    fn a_run_ends_after_its_epochs_or_when_patience_does() {
        let history = counters(&[0.5, 0.7, 0.7, 0.6]);
        assert!(history.is_finished(&train(4, None)) && !history.is_finished(&train(5, None)));
        assert!(history.is_finished(&train(9, Some(2))) && !history.is_finished(&train(9, Some(3))));
        assert!(!Counters::default().is_finished(&train(1, Some(1))));
    }

    #[test]
    fn counters_survive_json_to_the_last_bit() {
        let counters = Counters { seconds: 0.1 + 0.2, ..counters(&[1.0 / 3.0, 2.0 / 7.0]) };
        let text = serde_json::to_string(&counters).unwrap();
        assert_eq!(serde_json::from_str::<Counters>(&text).unwrap(), counters);
    }
}
