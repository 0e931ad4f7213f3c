//! The `train` command: a plan, the data, a run directory, training, a record.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Instant;

use data_cifar::{ChannelStats, keyed_seed};
use run_record::{
    EpochStats, RECORD_FORMAT, Recipe, ResultRow, RunRecord, STATUS_COMPLETE, STATUS_FAILED, STATUS_RUNNING,
    STATUS_STOPPED, duration,
};
use serde_json::json;
use tch::Device;

use crate::board::Board;
use crate::data::{Part, Source};
use crate::evaluate::Metrics;
use crate::fit::{Job, fit};
use crate::keeper::{Keeper, Saving};
use crate::look::glance::Glance;
use crate::look::outcome::Outcome;
use crate::plan::Plan;
use crate::precision::Precision;
use crate::presentation::Presentation;
use crate::progress::{Output, Progress};
use crate::recipes::{self, Resolved};
use crate::registry::{self, Architecture};
use crate::run_dir::{Found, RunDir};
use crate::signals::Stop;
use crate::state::{Identity, Machine, State};
use crate::summary::grouped;
use crate::weights::{self, Card, Head};
use crate::{Error, environment, error, inspect};

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
    /// Where to train.
    pub device: Device,
    /// Arithmetic of a training step.
    pub precision: Precision,
    /// Whether only deterministic algorithms run; see [`environment::deterministic`].
    pub deterministic: bool,
    /// Run directory, if not the default one.
    pub out: Option<PathBuf>,
    /// Replace whatever the run directory holds.
    pub fresh: bool,
    /// When to save, and what to leave.
    pub saving: Saving,
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

/// Trains, tests and records one run, goes on with one that was stopped, or finds that it is already done.
///
/// Nothing is written before everything that can be known was checked. A run that is replaced is kept until the first
/// step of the one that replaces it is made.
///
/// # Errors
/// See [`Error`]. A run that began and could not be finished has a record that says `failed: …`, one that was asked
/// to stop one that says so.
pub fn train(request: &Request, stop: &Stop) -> Result<(), Error> {
    let mut plan = Plan::resolve(request)?;
    let (output, model) = (request.output, request.resolved.recipe.model.name.as_str());
    let source = plan.read_data(request, stop)?;
    let run = plan.open_run(request)?;
    run.check_data(&plan.found, &source.sha256)?;
    if let Found::Finished(record) = &plan.found {
        output.say(&format!("{model}: already trained, reused ({})", verdict(&record.result)));
        output.event("result", json!({ "result": record.result }));
        return Ok(());
    }

    let recipe = &plan.resolved.recipe;
    let mut record = new_record(request, &plan, &source)?;
    let attempt = || train_and_test(request, stop, &plan, &source, &run, &record);
    // libtorch's refusals inside a forward pass (out of memory, say) come as panics of tch.
    let outcome = catch_unwind(AssertUnwindSafe(attempt))
        .unwrap_or_else(|panic| Err(error::from_panic(panic.as_ref())))
        .map_err(|error| error.or_out_of_memory(&recipe.train));
    record.result.peak_memory_mb = environment::peak_memory_mb(request.device);
    match outcome {
        Ok(finished) => {
            finish(&mut record, &finished);
            run.write_record(&record)?;
            let text = format!("{model}: {}; in {}", verdict(&record.result), run.path().display());
            run.log()?.line(&text);
            output.say(&text);
            output.event("result", json!({ "result": record.result }));
            Ok(())
        }
        Err(error) => {
            let stopped = matches!(error, Error::Stopped { .. });
            record.result.status =
                if stopped { STATUS_STOPPED.to_owned() } else { format!("{STATUS_FAILED}{error}") };
            output.event("end", json!({ "status": record.result.status }));
            let place = run.path().display();
            // The first error is the one to report, even if the disk can take no more.
            if run.put_back().unwrap_or(false) {
                output.say(&format!("{model}: no step was made; {place} holds the earlier run as it was"));
                return Err(error);
            }
            if run.has_record() {
                let _ = run.write_record(&record);
            }
            if stopped {
                let again = if request.fresh { " without --fresh" } else { "" };
                let text =
                    format!("{model}: everything is saved in {place}; the same command{again} goes on");
                let _ = run.log().map(|log| log.line(&text));
                output.say(&text);
            }
            Err(error)
        }
    }
}

/// The recipe's network, with the input its data ask for and a head for so many classes, or the variant's.
///
/// # Errors
/// An unknown name or field, a field that the data decides, or one out of its range.
pub fn architecture(recipe: &Recipe, num_classes: Option<i64>) -> Result<Architecture, Error> {
    let decided = [
        ("image_size", Some(recipe.data.image_size), "data.image_size"),
        ("num_classes", num_classes, "the data set"),
    ];
    let mut fields = recipe.model.fields.clone();
    for (field, value, by) in decided {
        if fields.contains_key(field) {
            return Err(Error::Usage(format!(
                "model.{field} is decided by {by}; leave it out of the recipe"
            )));
        }
        if let Some(value) = value {
            fields.insert(field.to_owned(), run_record::FieldValue::Integer(value));
        }
    }
    registry::find(&recipe.model.name)?.with_fields(&fields)
}

/// What a run that reached its end measured.
struct Finished {
    history: Vec<EpochStats>,
    kept: EpochStats,
    test: Metrics,
    temperature: f64,
    weights_sha256: String,
}

fn train_and_test(
    request: &Request,
    stop: &Stop,
    plan: &Plan,
    source: &Source,
    run: &RunDir,
    record: &RunRecord,
) -> Result<Finished, Error> {
    let Request { seed, device, precision, output, .. } = request;
    let Plan { resolved: Resolved { recipe, .. }, architecture, vs, network, .. } = plan;
    let stats = source.normalization(&recipe.data)?;
    let (train_set, test_set) = source.sets(*device).map_err(Error::or_placing)?;
    let presentation = Presentation::new(recipe, &stats, source.class_names.len() as i64, *device)?;
    let mut state = State::new(vs, architecture, recipe)?;
    let mut keeper = keeper(request, plan, source, run, &stats)?;
    let machine =
        plan.checkpoint.as_ref().map(|saved| state.restore(vs, saved, &keeper.identity)).transpose()?;

    begin(run, plan, record)?;
    let progress = Progress::new(recipe.train.epochs, source.parts.train.len(), *output, run.log()?);
    tell_beginning(&progress, plan, source, record);
    output.event("run", json!({ "path": run.path().display().to_string(), "result": record.result }));
    if let (Some(machine), Some(checkpoint)) = (machine, &plan.checkpoint) {
        if machine != keeper.machine {
            progress.line(&format!(
                "{}: this checkpoint was computed elsewhere ({machine}); \
                 the numbers may differ in their last digits from those of a run in one place",
                architecture.model
            ));
        }
        keeper.saved = Some(checkpoint.position);
        keeper.publish_weights(&state)?;
        run.write_history(&state.counters.history)?;
    }
    let train = Part { set: &train_set, range: source.parts.train.clone() };
    if let Some(histograms) = request.tensorboard {
        let updates = state.counters.updates;
        let mut board = Board::open(run.file("tensorboard"), updates, histograms)?;
        if updates == 0 {
            let shown = inspect::Shown { recipe, class_names: &source.class_names, stats: &stats };
            board.picture(0, "train/images", &inspect::sheet(&shown, &train, (*seed, 1), 16)?)?;
        }
        keeper.board = Some(board);
    }
    let validation = Part { set: &train_set, range: source.parts.validation.clone() };
    let job = Job {
        recipe,
        seed: *seed,
        network: network.as_ref(),
        vs,
        train,
        glance: Glance::new(recipe, &source.class_names, &validation, &presentation)?,
        validation,
        presentation,
        precision: *precision,
        progress: &progress,
        stop,
    };
    progress.at(&state);
    fit(&job, &mut state, &mut keeper)?;
    let (done, best) = (state.counters.history.len() as u32, state.counters.best_epochs().first().copied());
    if let (Some(best), true) = (best, done < recipe.train.epochs) {
        progress.line(&format!(
            "{}: ended after epoch {done}, because none since epoch {best} had a better validation top-1",
            architecture.model
        ));
    }

    let kept = state.kept.ok_or_else(|| Error::Training("no epoch was trained".to_owned()))?;
    // Tested are the weights on disk, as anyone would load them.
    weights::load(vs, architecture, &run.file(recipe.train.select.weights_file()), Head::Same)?;
    let test = Part { set: &test_set, range: 0..test_set.len() };
    let outcome = Outcome {
        shown: inspect::Shown { recipe, class_names: &source.class_names, stats: &stats },
        architecture,
        network: job.network,
        presentation: &job.presentation,
        train: job.train.clone(),
        validation: job.validation.clone(),
        test,
        seed: *seed,
    };
    let (test, temperature) = outcome.test(run, stop)?;
    if !test.loss.is_finite() {
        return Err(Error::Training(format!("the test loss is {}", test.loss)));
    }
    let history = state.counters.history;
    let epoch = history.iter().find(|stats| stats.epoch == kept.epoch).cloned();
    let epoch = epoch.ok_or_else(|| Error::Training("the kept epoch is not in the history".to_owned()))?;
    Ok(Finished { history, kept: epoch, test, temperature, weights_sha256: kept.sha256 })
}

/// Makes the directory the run's. What it holds of another one is set aside.
fn begin(run: &RunDir, plan: &Plan, record: &RunRecord) -> Result<(), Error> {
    if matches!(plan.found, Found::Nothing) {
        run.set_aside()?;
    }
    // The record first: a directory with one is known to be a run's.
    run.write_record(record)?;
    run.write("recipe.toml", recipes::to_toml(&plan.resolved.recipe)?.as_bytes())
}

fn tell_beginning(progress: &Progress, plan: &Plan, source: &Source, record: &RunRecord) {
    let (row, model) = (&record.result, &plan.architecture.model);
    // They were said before the pictures were decoded.
    for note in &plan.notes {
        progress.log(&format!("{model}: {note}"));
    }
    progress.line(&format!(
        "{model}: {} parameters, {} of {} images for training, {} epochs, batch {}, {} on {} with {} threads, seed {}",
        grouped(row.params),
        source.parts.train.len(),
        source.name,
        row.epochs,
        row.batch_size,
        row.precision,
        row.device,
        row.threads,
        row.seed,
    ));
    for skipped in &source.skipped {
        progress.line(&format!("{model}: left out {skipped}"));
    }
}

/// What writes this run down.
fn keeper<'a>(
    request: &Request,
    plan: &Plan,
    source: &Source,
    run: &'a RunDir,
    stats: &ChannelStats,
) -> Result<Keeper<'a>, Error> {
    let Request { seed, device, precision, saving, .. } = request;
    let Plan { resolved: Resolved { recipe, .. }, architecture, .. } = plan;
    // Weights of the run that is replaced are gone once this one has begun.
    let initial = recipe.initial_weights.as_ref();
    Ok(Keeper {
        run,
        has_begun: plan.checkpoint.is_some(),
        starts_from_itself: initial.is_some_and(|weights| run.holds(&weights.file)),
        card: Card {
            model: architecture.model.clone(),
            family: architecture.family.to_owned(),
            config: architecture.config.clone(),
            recipe: recipe.clone(),
            data_sha256: source.sha256.clone(),
            channel_mean: stats.mean,
            channel_std: stats.std,
            class_names: source.class_names.clone(),
            epoch: 0,
            val_top1: 0.0,
        },
        select: recipe.train.select,
        identity: Identity {
            recipe_sha256: recipes::digest(recipe)?,
            data_sha256: source.sha256.clone(),
            seed: *seed,
            precision: precision.as_str().to_owned(),
        },
        machine: Machine {
            device: environment::device_name(*device),
            gpu: torch_ext::card(*device)?.map(|card| card.name),
            threads: tch::get_num_threads(),
            cpu: environment::cpu(),
            libtorch: environment::LIBTORCH.to_owned(),
        },
        saving: *saving,
        board: None,
        saved_at: Instant::now(),
        saved: None,
    })
}

/// Seeds the generator that a network's parameters are drawn from.
pub fn seed_initial_weights(seed: u64) {
    tch::manual_seed(keyed_seed(seed, "init", 0, 0));
}

fn new_record(request: &Request, plan: &Plan, source: &Source) -> Result<RunRecord, Error> {
    let Request { root, seed, device, .. } = request;
    let Plan { resolved: Resolved { recipe, preset }, architecture, .. } = plan;
    let reference = recipe.reference.clone();
    let card = torch_ext::card(*device)?;
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    // A run that goes on keeps what it was.
    let (started_at, resumed_from, deterministic) = match (&plan.found, &plan.checkpoint) {
        (Found::Unfinished(earlier), Some(checkpoint)) => {
            let places = earlier.resumed_from.iter().cloned().chain([checkpoint.position.to_string()]);
            (earlier.result.started_at.clone(), places.collect(), earlier.deterministic)
        }
        _ => (now, Vec::new(), true),
    };
    let result = ResultRow {
        model: recipe.model.name.clone(),
        family: architecture.family.to_owned(),
        preset: preset.clone(),
        dataset: recipe.dataset.to_string(),
        image_size: recipe.data.image_size,
        seed: *seed,
        epochs: recipe.train.epochs,
        batch_size: recipe.train.batch_size,
        params: architecture.params,
        macs: architecture.macs,
        best_epoch: None,
        val_top1: None,
        test_top1: None,
        test_top5: None,
        test_loss: None,
        reference_top1: reference.as_ref().and_then(|reference| reference.test_top1),
        reference_top5: reference.as_ref().and_then(|reference| reference.test_top5),
        delta_top1: None,
        train_seconds: None,
        images_per_second: None,
        peak_memory_mb: None,
        device: environment::device_name(*device),
        precision: request.precision.as_str().to_owned(),
        threads: tch::get_num_threads(),
        libtorch: environment::LIBTORCH.to_owned(),
        data_sha256: source.sha256.clone(),
        recipe_sha256: recipes::digest(recipe)?,
        git_commit: environment::git_commit(root),
        started_at,
        status: STATUS_RUNNING.to_owned(),
    };
    Ok(RunRecord {
        format: RECORD_FORMAT,
        result,
        weights_sha256: None,
        temperature: None,
        command: environment::command(),
        trainer_version: env!("CARGO_PKG_VERSION").to_owned(),
        cpu: environment::cpu(),
        driver: card.as_ref().and_then(|card| card.driver.clone()),
        gpu: card.map(|card| card.name),
        deterministic: request.deterministic && deterministic,
        skipped_files: source.skipped.len(),
        resumed_from,
    })
}

fn finish(record: &mut RunRecord, finished: &Finished) {
    let Finished { history, kept, test, temperature, weights_sha256 } = finished;
    let row = &mut record.result;
    let seconds: f64 = history.iter().map(|epoch| epoch.train_seconds).sum();
    let images: f64 = history.iter().map(|epoch| epoch.images_per_second * epoch.train_seconds).sum();
    row.best_epoch = Some(kept.epoch);
    row.val_top1 = Some(rounded(kept.kept_top1()));
    row.test_top1 = Some(rounded(test.top1));
    row.test_top5 = Some(rounded(test.top5));
    row.test_loss = Some(rounded(test.loss));
    row.delta_top1 = row.reference_top1.map(|reference| rounded(test.top1 - reference));
    row.train_seconds = Some((seconds * 10.0).round() / 10.0);
    row.images_per_second = Some((images / seconds * 10.0).round() / 10.0);
    row.status = STATUS_COMPLETE.to_owned();
    record.weights_sha256 = Some(weights_sha256.clone());
    record.temperature = Some(*temperature);
}

/// Six decimals: finer than one image in any data set here.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

fn verdict(row: &ResultRow) -> String {
    let percent =
        |value: Option<f64>| value.map_or("?".to_owned(), |value| format!("{:.2} %", 100.0 * value));
    format!(
        "test top-1 {}, top-5 {}, validation top-1 {} at epoch {}, {} of training",
        percent(row.test_top1),
        percent(row.test_top5),
        percent(row.val_top1),
        row.best_epoch.unwrap_or_default(),
        duration(row.train_seconds.unwrap_or_default()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_data_decides_the_head_and_the_input() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let recipe = |set: &str| {
            recipes::from_preset(&root, "reference", "convmixer_reference", &[set.to_owned()]).unwrap().recipe
        };
        let ten = architecture(&recipe("data.image_size=64"), Some(10)).unwrap();
        assert_eq!((ten.num_classes, ten.image_size), (10, 64));
        let hundred = architecture(&recipe("dataset=cifar100"), Some(100)).unwrap();
        assert_eq!((hundred.num_classes, hundred.image_size), (100, 32));
        let refused = architecture(&recipe("model.num_classes=7"), None).unwrap_err().to_string();
        assert!(refused.contains("model.num_classes is decided by the data set"), "{refused}");
    }
}
