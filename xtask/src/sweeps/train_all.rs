//! `train-all`: one training run per recipe of a preset and seed, then the tables.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use run_record::{
    DatasetName, STATUS_COMPLETE, STATUS_FAILED, STATUS_RUNNING, STATUS_STOPPED, duration, layout,
    write_atomically,
};

use crate::machine::datasets::{CIFAR10, CIFAR100};
use crate::machine::fetch::{self, Source};
use crate::machine::gpu::Gpus;
use crate::machine::libtorch::{self, FlavorChoice};
use crate::process::{Place, Usage, ending, exit_code, note, say};
use crate::report::{self, read_record};
use crate::sweeps::child::{Trainers, is_stop};
use crate::sweeps::presets::{Named, forecast, recipes_of, select};
use crate::sweeps::seeds::Seeds;
use crate::trainer::build_trainer;

/// `cargo xtask train-all`.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Sweep {
    /// A directory of recipes/ [default: reference on CUDA, else quick]
    #[arg(long)]
    pub(crate) preset: Option<String>,
    /// Only these models, by model or recipe name, separated by commas
    #[arg(long, value_delimiter = ',')]
    pub(crate) models: Vec<String>,
    /// Where the data set is, if not in datasets/
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Seed of every random draw
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Several seeds, each for every model: 0..3, 0..=2 or 0,1,5
    #[arg(long, conflicts_with = "seed")]
    pub(crate) seeds: Option<Seeds>,
    /// auto, cpu or cuda:N, passed to the trainer; auto is CUDA where a card can be used
    #[arg(long)]
    pub(crate) device: Option<String>,
    /// Arithmetic of the networks, passed to the trainer
    #[arg(long, value_parser = ["auto", "f32", "bf16", "tf32"])]
    pub(crate) precision: Option<String>,
    /// Minutes of training between two checkpoints inside an epoch, passed to the trainer
    #[arg(long, value_name = "M", value_parser = minutes)]
    pub(crate) checkpoint_minutes: Option<f64>,
    /// How many of the latest checkpoints each run keeps, passed to the trainer
    #[arg(long, value_name = "N")]
    pub(crate) keep_last: Option<u32>,
    /// Use deterministic algorithms only, passed to the trainer
    #[arg(long)]
    pub(crate) deterministic: bool,
    /// Write logs for TensorBoard beside each run
    #[arg(long)]
    pub(crate) tensorboard: bool,
    /// Have the trainer print less
    #[arg(long)]
    pub(crate) quiet: bool,
    /// Train again what is finished, from the start
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Where runs and tables go [default: results/ in the workspace]
    #[arg(long, value_name = "DIR")]
    pub(crate) results: Option<PathBuf>,
}

fn minutes(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0);
    value.ok_or_else(|| "expected minutes, 0 or more".to_owned())
}

impl Sweep {
    fn seeds(&self) -> &[u64] {
        self.seeds.as_ref().map_or(std::slice::from_ref(&self.seed), |seeds| &seeds.0)
    }

    /// What mends a run that was interrupted.
    fn again(&self) -> &'static str {
        if self.fresh {
            "the same command without --fresh (which keeps finished runs)"
        } else {
            "the same command"
        }
    }
}

/// What is the same for all runs of a sweep.
struct Plan<'a> {
    sweep: &'a Sweep,
    preset: &'a str,
    device: Option<&'a str>,
    results: &'a Path,
}

impl Plan<'_> {
    fn run_dir(&self, model: &str, seed: u64) -> PathBuf {
        self.results.join(layout::RUNS).join(format!("{model}--{}--s{seed}", self.preset))
    }

    /// Whether the runs after a failed one would fail too: by its record, or because the card does not compute any more.
    fn is_device_lost(&self, trainer: impl FnOnce() -> Command, run: &Path) -> bool {
        if read_record(&run.join(layout::RECORD)).is_ok_and(|record| record.result.device_failed()) {
            return true;
        }
        let Some(device) = self.device.filter(|device| is_cuda(device)) else { return false };
        // What keeps it from computing was said by the run.
        let asked = trainer().args(["device", device, "--quiet"]).stderr(Stdio::null()).status();
        !asked.is_ok_and(|status| status.success())
    }

    /// Gives the trainer its arguments.
    fn complete(&self, command: &mut Command, model: &str, seed: u64) {
        let sweep = self.sweep;
        command.args(["train", "--model", model, "--preset", self.preset, "--seed", &seed.to_string()]);
        if let Some(dir) = &sweep.data_dir {
            command.arg("--data-dir").arg(dir);
        }
        if let Some(device) = self.device {
            command.args(["--device", device]);
        }
        if let Some(precision) = &sweep.precision {
            command.args(["--precision", precision]);
        }
        if let Some(minutes) = sweep.checkpoint_minutes {
            command.args(["--checkpoint-minutes", &minutes.to_string()]);
        }
        if let Some(count) = sweep.keep_last {
            command.args(["--keep-last", &count.to_string()]);
        }
        for (given, flag) in [
            (sweep.deterministic, "--deterministic"),
            (sweep.tensorboard, "--tensorboard"),
            (sweep.quiet, "--quiet"),
            (sweep.fresh, "--fresh"),
        ] {
            if given {
                command.arg(flag);
            }
        }
        command.arg("--out").arg(self.run_dir(model, seed));
    }
}

pub(crate) fn train_all(place: &Place, sweep: &Sweep) -> Result<u8> {
    let start = Instant::now();
    let device = device(place, sweep.device.as_deref())?;
    let on_cuda = device.is_some_and(is_cuda);
    let (preset, why) = match &sweep.preset {
        Some(preset) => (preset.as_str(), ""),
        None if on_cuda => ("reference", " (for CUDA; --preset quick for the short one)"),
        None => ("quick", " (for the processor; --preset reference for the published recipes)"),
    };
    let recipes = select(recipes_of(&place.root, preset)?, &sweep.models)?;
    note(format!("preset {preset}{why}: {}", forecast(&recipes, sweep.seeds().len(), on_cuda)));
    let code = prepare(place, &recipes, sweep.data_dir.is_none())?;
    if code != 0 {
        return Ok(code);
    }

    let results = sweep.results.clone().unwrap_or_else(|| place.root.join("results"));
    fs::create_dir_all(&results).with_context(|| format!("cannot create {}", results.display()))?;
    let trainers = Trainers::listening()?;
    let plan = Plan { sweep, preset, device, results: &results };
    let code = train_each(&trainers, || place.trainer_command(), &plan, &recipes);
    let reported = report::report(place, &results)?;
    say(format!("total time {}, set-up included", duration(start.elapsed().as_secs_f64())));
    Ok(if code == 0 { reported } else { code })
}

/// The device to train on, given the one that was asked for; `None` leaves it to the trainer.
pub(crate) fn device<'a>(place: &Place, asked: Option<&'a str>) -> Result<Option<&'a str>> {
    if asked == Some("cpu") {
        return Ok(asked);
    }
    let gpus = Gpus::here();
    match (asked.filter(|device| *device != "auto"), gpus.problem()) {
        (Some(device), Some(problem)) if matches!(gpus, Gpus::Cards(_)) => {
            Err(Usage(format!("--device {device}: {problem}; --device cpu trains on the processor")).into())
        }
        (Some(device), _) => Ok(Some(device)),
        // By name, because the trainer would try the card.
        (None, Some(problem)) => {
            note(format!("{problem}: training runs on the processor"));
            Ok(Some("cpu"))
        }
        // By name, because hours on the processor are not what was asked for: a card that turns out unusable is an error.
        (None, None) => Ok(libtorch::cuda_expected(place, &gpus).then_some("cuda:0")),
    }
}

fn is_cuda(device: &str) -> bool {
    device.starts_with("cuda")
}

/// Provides what training needs: libtorch, the data sets if they are wanted, and the trainer. Returns the exit
/// code of building it.
pub(crate) fn prepare(place: &Place, recipes: &[Named], with_data: bool) -> Result<u8> {
    let there = libtorch::in_use(place).is_ok_and(|tree| tree.is_some());
    let tree = libtorch::ensure(place, FlavorChoice::Auto, None)?;
    if there {
        note(format!("{tree}: reused from {}", tree.dir.display()));
    }
    if with_data {
        fetch_data(place, recipes)?;
    }
    build_trainer(place)
}

/// Trains every model with every seed. A run that fails stops no other; a request to stop does, and a device that fails.
/// Returns the code of the request, 2 if a trainer refused its arguments, 1 if a run failed otherwise, or 0.
fn train_each(trainers: &Trainers, trainer: impl Fn() -> Command, plan: &Plan<'_>, recipes: &[Named]) -> u8 {
    let seeds = plan.sweep.seeds();
    // One seed after the other: a whole table is there early.
    let runs = seeds.iter().flat_map(|seed| recipes.iter().map(move |named| (named.model(), *seed)));
    let mut worst = 0;
    let count = recipes.len() * seeds.len();
    for (index, (model, seed)) in runs.enumerate() {
        let which = if seeds.len() == 1 { String::new() } else { format!(", seed {seed}") };
        note(format!("[{}/{count}] {model}{which}", index + 1));
        let mut command = trainer();
        plan.complete(&mut command, model, seed);
        let run = plan.run_dir(model, seed);
        let trained = train(trainers, &mut command, model, &run, plan.sweep.again());
        let code = trained.unwrap_or_else(|error| {
            note(format!("error: {model}: {error:#}"));
            1
        });
        // The trainer's own code first: it may have been stopped by another signal than this program.
        if let Some(code) = Some(code).filter(|code| is_stop(*code)).or(trainers.asked_to_stop()) {
            note(format!("stopped; {} goes on from here", plan.sweep.again()));
            return code;
        }
        worst = worst.max(code);
        if code != 0 && index + 1 < count && plan.is_device_lost(&trainer, &run) {
            let left = count - index - 1;
            note(format!("the others ({left}) would fail in the same way and are not started"));
            break;
        }
    }
    worst
}

/// Trains one model and sees to it that its record tells how that ended. Returns 0, 2 for bad
/// usage, 128 + the signal after a request to stop, 1 for any other failure.
pub(crate) fn train(
    trainers: &Trainers,
    command: &mut Command,
    model: &str,
    run: &Path,
    again: &str,
) -> Result<u8> {
    let Some(ended) = trainers.run(command, None)? else {
        return Ok(0); // nothing was started, and train_each knows why
    };
    let status = ended.status;
    let settled = settle(run, status)?;
    Ok(match exit_code(status) {
        0 if settled.as_deref() == Some(STATUS_COMPLETE) => 0,
        0 => return Err(anyhow!("the trainer ended, but {} records no finished run", run.display())),
        code if code == 2 || is_stop(code) => code,
        _ => {
            // A trainer that could speak has said what is wrong; one that was killed has not.
            if status.code().is_none() {
                let ending = ending(status);
                note(format!(
                    "error: {model}: the trainer {ending}; {again} goes on from its last checkpoint"
                ));
            }
            1
        }
    })
}

/// Returns the status a run's record ends with. A trainer that was killed could not write how it
/// ended, so that is done here.
fn settle(run: &Path, status: ExitStatus) -> Result<Option<String>> {
    let path = run.join(layout::RECORD);
    if !path.exists() {
        return Ok(None);
    }
    // A run whose lock another trainer holds is that one's to settle; while this one is settled, nobody takes it.
    let lock = File::open(run.join(layout::LOCK)).ok();
    let held = lock.as_ref().is_some_and(|lock| lock.try_lock().is_err());
    let mut record = read_record(&path)?;
    // After a usage error nothing was started: the record is that of an earlier run.
    if record.result.status == STATUS_RUNNING && !held && !matches!(status.code(), Some(0 | 2)) {
        // A second Ctrl-C, or a signal before the trainer listened, stops a run without its saying so.
        record.result.status = if is_stop(exit_code(status)) {
            STATUS_STOPPED.to_owned()
        } else {
            format!("{STATUS_FAILED}the trainer {}", ending(status))
        };
        let text = serde_json::to_vec_pretty(&record)?;
        write_atomically(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(Some(record.result.status))
}

/// Fetches the downloaded data sets the recipes name and the workspace lacks.
fn fetch_data(place: &Place, recipes: &[Named]) -> Result<()> {
    for layout in [&CIFAR10, &CIFAR100] {
        let named = recipes.iter().any(|named| match named.recipe.dataset {
            DatasetName::Cifar10 => layout.name == CIFAR10.name,
            DatasetName::Cifar100 | DatasetName::Cifar100Coarse => layout.name == CIFAR100.name,
            DatasetName::Digits | DatasetName::Folder => false,
        });
        if named && layout.link(place).exists() {
            note(format!("{}: reused from {}", layout.name, layout.link(place).display()));
        } else if named {
            fetch::provide(place, layout, &Source::default())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use run_record::DEVICE_FAILED;

    use crate::report::tests::{record, write_record};

    /// A shell that runs `text`. The file is not executed itself: a child of another test may hold it open.
    fn script(dir: &Path, text: &str) -> Command {
        let path = dir.join("trainer");
        fs::write(&path, text).unwrap();
        let mut command = Command::new("sh");
        command.arg(path);
        command
    }

    /// A script in the trainer's place that finds `status` in the record and then runs `end`.
    fn trained(status: &str, end: &str) -> (Result<u8>, Option<String>) {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("runs/run");
        if !status.is_empty() {
            write_record(dir.path(), "run", &record("a", "quick", 0, status));
        }
        let mut command = script(dir.path(), end);
        let code = train(&Trainers::default(), &mut command, "a", &run, "the same command");
        (code, read_record(&run.join(layout::RECORD)).ok().map(|record| record.result.status))
    }

    #[test]
    fn a_killed_trainer_is_recorded_as_failed() {
        let (code, status) = trained(STATUS_RUNNING, "kill -9 $$");
        assert_eq!(code.unwrap(), 1);
        assert_eq!(status.unwrap(), "failed: the trainer was killed by signal 9");
        let (code, status) = trained(STATUS_RUNNING, "exit 3");
        assert_eq!(code.unwrap(), 1);
        assert_eq!(status.unwrap(), "failed: the trainer ended with exit code 3");
    }

    #[test]
    fn a_trainer_that_was_asked_to_stop_has_not_failed() {
        for (before, end, expected) in [
            (STATUS_STOPPED, "exit 143", 143),
            // By its code, not by the signal, which a background job may have been started to ignore.
            (STATUS_RUNNING, "exit 130", 130),
            (STATUS_RUNNING, "kill -TERM $$", 143),
        ] {
            let (code, status) = trained(before, end);
            assert_eq!((code.unwrap(), status.as_deref()), (expected, Some(STATUS_STOPPED)), "{end}");
        }
    }

    #[test]
    fn a_run_another_trainer_is_busy_with_is_left_to_it() {
        let results = tempfile::tempdir().unwrap();
        write_record(results.path(), "run", &record("a", "quick", 0, STATUS_RUNNING));
        let run = results.path().join("runs/run");
        let lock = File::create(run.join(layout::LOCK)).unwrap();
        lock.lock().unwrap();
        let refused = Command::new("false").status().unwrap();
        assert_eq!(settle(&run, refused).unwrap().as_deref(), Some(STATUS_RUNNING));
        // Unlocked, not closed: a child that another test is just starting may have it open as well.
        lock.unlock().unwrap();
        assert!(settle(&run, refused).unwrap().is_some_and(|status| status.starts_with("failed: ")));
    }

    #[test]
    fn what_the_trainer_settled_itself_stays() {
        let (code, status) = trained(STATUS_COMPLETE, "exit 0");
        assert_eq!((code.unwrap(), status.as_deref()), (0, Some(STATUS_COMPLETE)));
        let (code, status) = trained("failed: the loss is NaN", "exit 1");
        assert_eq!((code.unwrap(), status.as_deref()), (1, Some("failed: the loss is NaN")));
        // Bad usage starts nothing, so an older record is not judged by it.
        let (code, status) = trained(STATUS_RUNNING, "exit 2");
        assert_eq!((code.unwrap(), status.as_deref()), (2, Some(STATUS_RUNNING)));
        let (code, status) = trained("", "exit 0");
        assert!(code.unwrap_err().to_string().contains("records no finished run") && status.is_none());
    }

    /// Runs `a_model` and `b_model` with a script whose `$log` takes notes and whose `$run` is the run's
    /// directory; returns the code and the notes.
    fn swept(sweep: &Sweep, results: &Path, text: &str) -> (u8, String) {
        let workspace = crate::sweeps::presets::tests::workspace();
        let recipes = recipes_of(workspace.path(), "quick").unwrap();
        let log = results.join("log");
        let read = "for arg; do run=$arg; done; test \"$1\" = device || mkdir -p \"$run\"";
        let text = format!("log={}\n{read}\n{text}", log.display());
        let device = sweep.device.as_deref().or(Some("cpu"));
        let plan = Plan { sweep, preset: "quick", device, results };
        let code = train_each(&Trainers::default(), || script(results, &text), &plan, &recipes);
        (code, fs::read_to_string(log).unwrap_or_default())
    }

    #[test]
    fn every_seed_has_a_run_of_every_model_with_the_flags() {
        let results = tempfile::tempdir().unwrap();
        let sweep = Sweep {
            seeds: Some(Seeds(vec![2, 0])),
            precision: Some("bf16".into()),
            checkpoint_minutes: Some(5.0),
            keep_last: Some(3),
            deterministic: true,
            tensorboard: true,
            ..Sweep::default()
        };
        let runs = results.path().join(layout::RUNS);
        for seed in [2, 0] {
            for model in ["a_model", "b_model"] {
                let name = format!("{model}--quick--s{seed}");
                write_record(results.path(), &name, &record(model, "quick", seed, STATUS_COMPLETE));
            }
        }
        let (code, notes) = swept(&sweep, results.path(), "echo \"$@\" >> $log");
        let expected =
            [("a_model", 2), ("b_model", 2), ("a_model", 0), ("b_model", 0)].map(|(model, seed)| {
                format!(
                    "train --model {model} --preset quick --seed {seed} --device cpu --precision bf16 \
                 --checkpoint-minutes 5 --keep-last 3 --deterministic --tensorboard --out {}/{model}--quick--s{seed}",
                    runs.display()
                )
            });
        assert_eq!((code, notes.lines().collect::<Vec<_>>()), (0, expected.iter().map(|x| &x[..]).collect()));
    }

    #[test]
    fn a_failed_model_stops_no_other_and_has_its_row() {
        let results = tempfile::tempdir().unwrap();
        write_record(results.path(), "a_model--quick--s0", &record("a_model", "quick", 0, STATUS_RUNNING));
        write_record(results.path(), "b_model--quick--s0", &record("b_model", "quick", 0, STATUS_COMPLETE));
        let fails = "echo x >> $log; case $run in */a_model*) kill -9 $$;; esac";
        let (code, notes) = swept(&Sweep::default(), results.path(), fails);
        assert_eq!((code, notes.as_str()), (1, "x\nx\n"));
        let rows = report::collect(results.path()).unwrap().rows;
        let statuses: Vec<&str> = rows.iter().map(|row| row.status.as_str()).collect();
        assert_eq!(statuses, ["failed: the trainer was killed by signal 9", STATUS_COMPLETE]);
    }

    #[test]
    fn a_device_that_failed_is_not_tried_again() {
        let lost = format!("failed: {DEVICE_FAILED}: CUDA error: unknown error");
        let results = tempfile::tempdir().unwrap();
        write_record(results.path(), "a_model--quick--s0", &record("a_model", "quick", 0, &lost));
        let (code, notes) = swept(&Sweep::default(), results.path(), "echo x >> $log; exit 1");
        assert_eq!((code, notes.as_str()), (1, "x\n"));
        // A run that did not even begin has no record, and the card is asked.
        let (lost, fine) = ("echo $1 >> $log; exit 2", "echo $1 >> $log; test $1 = device");
        for (device, trainer, started) in [
            ("cuda:0", lost, "train device"),
            ("cuda:0", fine, "train device train"),
            ("cpu", lost, "train train"),
        ] {
            let results = tempfile::tempdir().unwrap();
            let sweep = Sweep { device: Some(device.into()), ..Sweep::default() };
            let (_, notes) = swept(&sweep, results.path(), trainer);
            assert_eq!(notes.split_whitespace().collect::<Vec<_>>().join(" "), started, "{device}");
        }
    }

    #[test]
    fn a_trainer_that_was_stopped_is_the_last() {
        for code in [130, 143, 128 + signal_hook::consts::SIGUSR1 as u8] {
            let results = tempfile::tempdir().unwrap();
            let stops = format!("echo x >> $log; exit {code}");
            assert_eq!(swept(&Sweep::default(), results.path(), &stops), (code, "x\n".to_owned()));
        }
    }
}
