//! Trials of a search or an ablation: training runs without a test, and the table of what they came to.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use run_record::{
    EpochStats, Recipe, STATUS_COMPLETE, STATUS_FAILED, STATUS_RUNNING, layout, visible, write_atomically,
};
use serde::Deserialize;

use crate::process::{Place, note};
use crate::report::read_record;
use crate::sweeps::child::{Trainers, is_stop};
use crate::sweeps::presets::read_recipe;
use crate::sweeps::train_all;

/// The table of trials in a search's directory.
pub(crate) const TRIALS: &str = "trials.csv";

/// How trials are trained.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Training {
    /// Seed of the draws, and of every run
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Where the data set is, if not in datasets/
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// auto, cpu or cuda:N, passed to the trainer; auto is CUDA where a card can be used
    #[arg(long)]
    pub(crate) device: Option<String>,
    /// Arithmetic of the networks, passed to the trainer
    #[arg(long, value_parser = ["auto", "f32", "bf16", "tf32"])]
    pub(crate) precision: Option<String>,
}

/// A run that is to be made, or was.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Trial {
    /// What sets it apart: its directory is called so.
    pub(crate) name: String,
    /// The cells before its numbers.
    pub(crate) cells: Vec<String>,
    pub(crate) recipe: Recipe,
}

/// What a run came to, as in the table.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Row {
    pub(crate) val_top1: Option<f64>,
    pub(crate) val_loss: Option<f64>,
    pub(crate) train_seconds: Option<f64>,
    /// `complete`, or `failed: …`.
    pub(crate) state: String,
    /// The run's directory, from the table's.
    pub(crate) run: String,
}

/// The last columns of the table.
const NUMBERS: [&str; 5] = ["val_top1", "val_loss", "train_seconds", "state", "run"];

/// How a list of trials ended.
pub(crate) enum Ended {
    /// All of them did; their rows in the same order.
    Done(Vec<Row>),
    /// This program was asked to stop; the exit code.
    Stopped(u8),
}

/// A directory of trials, locked for this process.
pub(crate) struct Trials<'a> {
    pub(crate) place: &'a Place,
    pub(crate) training: &'a Training,
    pub(crate) dir: PathBuf,
    /// Columns before those of the numbers.
    pub(crate) columns: Vec<String>,
    /// What the table has, in the order of the runs.
    done: Vec<(Vec<String>, Row)>,
    trainers: Trainers,
    device: Option<String>,
    _lock: File,
}

impl<'a> Trials<'a> {
    /// Makes or opens the directory and reads its table.
    pub(crate) fn open(
        place: &'a Place,
        training: &'a Training,
        dir: PathBuf,
        columns: Vec<String>,
        device: Option<&str>,
    ) -> Result<Self> {
        for directory in [dir.join(layout::RUNS), dir.join(RECIPES)] {
            fs::create_dir_all(&directory)
                .with_context(|| format!("cannot create {}", directory.display()))?;
        }
        let lock_path = dir.join("search.lock");
        let lock =
            File::create(&lock_path).with_context(|| format!("cannot write {}", lock_path.display()))?;
        if lock.try_lock().is_err() {
            bail!(
                "{} belongs to a search that is running; wait for it, or give --out another directory",
                dir.display()
            );
        }
        let done = read_table(&dir.join(TRIALS), &columns)?;
        let trainers = Trainers::listening()?;
        Ok(Self {
            place,
            training,
            dir,
            columns,
            done,
            trainers,
            device: device.map(str::to_owned),
            _lock: lock,
        })
    }

    /// Trains what the table does not have yet, one after the other, with a row for each as soon as it has ended.
    pub(crate) fn run_all(&mut self, what: &str, trials: &[Trial]) -> Result<Ended> {
        let mut rows = Vec::new();
        for (n, trial) in trials.iter().enumerate() {
            let run = format!("{}/{}", layout::RUNS, trial.name);
            if let Some((_, row)) = self.done.iter().find(|(_, row)| row.run == run) {
                rows.push(row.clone());
                continue;
            }
            note(format!("{what}, {} of {}: {}", n + 1, trials.len(), trial.name));
            let row = match self.run_one(trial, run)? {
                Ok(row) => row,
                Err(code) => {
                    note("stopped; the same command goes on from here");
                    return Ok(Ended::Stopped(code));
                }
            };
            note(format!("{}: {}", trial.name, outcome(&row)));
            self.done.push((trial.cells.clone(), row.clone()));
            self.write_table()?;
            rows.push(row);
        }
        Ok(Ended::Done(rows))
    }

    /// Trains one. An error is what keeps others from being trained too; the code is that of a request to stop.
    fn run_one(&self, trial: &Trial, run: String) -> Result<Result<Row, u8>> {
        let recipe = self.dir.join(RECIPES).join(format!("{}.toml", trial.name));
        let text = trial.recipe.to_toml().map_err(|problem| anyhow!(problem))?;
        write_atomically(&recipe, text.as_bytes())
            .with_context(|| format!("cannot write {}", recipe.display()))?;
        let path = self.dir.join(&run);
        let mut command = self.place.trainer_command();
        command.arg("train").arg("--recipe").arg(&recipe).args(["--seed", &self.training.seed.to_string()]);
        if let Some(dir) = &self.training.data_dir {
            command.arg("--data-dir").arg(dir);
        }
        for (flag, value) in [("--device", &self.device), ("--precision", &self.training.precision)] {
            command.args(value.iter().flat_map(|value| [flag, value]));
        }
        command
            .args(["--no-test", "--quiet", "--keep-last", "1", "--keep-best", "0"])
            .arg("--out")
            .arg(&path);
        let code = train_all::train(&self.trainers, &mut command, &trial.name, &path, "the same command")?;
        if let Some(code) = Some(code).filter(|code| is_stop(*code)).or(self.trainers.asked_to_stop()) {
            return Ok(Err(code));
        }
        let failed = |state: String| Row {
            val_top1: None,
            val_loss: None,
            train_seconds: None,
            state,
            run: run.clone(),
        };
        let record = path.join(layout::RECORD);
        if code == 2 {
            return Ok(Ok(failed(format!("{STATUS_FAILED}the trainer refuses the recipe"))));
        }
        if !record.exists() {
            bail!("{}: the trainer could not begin; the same command goes on from here", trial.name);
        }
        let result = read_record(&record)?.result;
        if result.device_failed() {
            bail!("{}: {}; the same command goes on from here", trial.name, result.status);
        }
        match result.status.as_str() {
            STATUS_COMPLETE => {}
            STATUS_RUNNING => {
                bail!("another trainer is busy with {}; wait for it, and start again", path.display())
            }
            state => return Ok(Ok(failed(visible(state).into_owned()))),
        }
        Ok(Ok(Row {
            val_top1: result.val_top1,
            val_loss: Some(loss_at(&path.join(layout::HISTORY), result.best_epoch)?),
            train_seconds: result.train_seconds,
            state: result.status,
            run,
        }))
    }

    /// Refuses a directory whose runs were made with other recipes of the same names.
    pub(crate) fn check_recipes(&self, trials: &[Trial]) -> Result<()> {
        for trial in trials {
            let path = self.dir.join(RECIPES).join(format!("{}.toml", trial.name));
            if !path.exists() {
                continue;
            }
            let earlier = read_recipe(&path)?.recipe;
            let differences = earlier.differences(&trial.recipe).map_err(|problem| anyhow!(problem))?;
            if let Some(first) = differences.first() {
                bail!(
                    "{} holds runs of other recipes ({}: {} differs); --out names another directory",
                    self.dir.display(),
                    trial.name,
                    first.key
                );
            }
        }
        Ok(())
    }

    fn write_table(&self) -> Result<()> {
        let path = self.dir.join(TRIALS);
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(self.columns.iter().map(String::as_str).chain(NUMBERS))?;
        for (cells, row) in &self.done {
            let number = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
            let numbers = [number(row.val_top1), number(row.val_loss), number(row.train_seconds)];
            let rest = [row.state.clone(), row.run.clone()];
            writer.write_record(cells.iter().cloned().chain(numbers).chain(rest))?;
        }
        let text = writer.into_inner().context("the table of trials")?;
        write_atomically(&path, &text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The directory of the recipes that are trained.
const RECIPES: &str = "recipes";

/// What the table has, if there is one.
fn read_table(path: &Path, columns: &[String]) -> Result<Vec<(Vec<String>, Row)>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let unreadable = || format!("{} cannot be read", path.display());
    let mut reader = csv::Reader::from_path(path).with_context(unreadable)?;
    let header = reader.headers().with_context(unreadable)?.clone();
    if !header.iter().eq(columns.iter().map(String::as_str).chain(NUMBERS)) {
        bail!("{}: its columns are not those of this search; --out names another directory", path.display());
    }
    let row = |record: csv::Result<csv::StringRecord>| {
        let record = record?;
        let cells = record.iter().take(columns.len()).map(str::to_owned).collect();
        Ok((cells, record.deserialize(Some(&header))?))
    };
    reader.records().map(row).collect::<csv::Result<_>>().with_context(unreadable)
}

/// The validation loss of the weights that were kept after an epoch.
fn loss_at(history: &Path, epoch: Option<u32>) -> Result<f64> {
    let unreadable = || format!("{} cannot be read", history.display());
    for row in csv::Reader::from_path(history).with_context(unreadable)?.deserialize() {
        let stats: EpochStats = row.with_context(unreadable)?;
        if Some(stats.epoch) == epoch {
            return Ok((stats.kept_loss() * 1e6).round() / 1e6);
        }
    }
    bail!("{} has no row of the epoch that was kept", history.display())
}

/// A row in words.
fn outcome(row: &Row) -> String {
    let percent = crate::table::percent(row.val_top1);
    match row.train_seconds {
        Some(seconds) => format!("validation top-1 {percent}, {} of training", run_record::duration(seconds)),
        None => row.state.clone(),
    }
}
