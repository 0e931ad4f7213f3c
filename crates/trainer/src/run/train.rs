//! The `train` command: a plan, the data, a run directory, training, a record.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use data_cifar::ChannelStats;
use image::RgbImage;
use run_record::layout::{CLASSES, HISTORY, RECIPE, TENSORBOARD};
use run_record::{Recipe, RunRecord, STATUS_FAILED, STATUS_STOPPED, grouped, machine, sha256_file, to_csv};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::data::presentation::Presentation;
use crate::data::source::{Source, Subset};
use crate::look::glance::Glance;
use crate::look::outcome::{Outcome, Tested};
use crate::network::weights::{self, Card, Head};
use crate::process::progress::{Log, Progress};
use crate::process::signals::Stop;
use crate::run::account::{Finished, finish, new_record, verdict};
use crate::run::checkpoint::Checkpoint;
use crate::run::directory::{Earlier, RunDir};
use crate::run::fit::{Job, fit};
use crate::run::keeper::Keeper;
use crate::run::peers::Peers;
use crate::run::plan::Plan;
use crate::run::recipes::{self, Resolved};
use crate::run::request::Request;
use crate::run::state::{Identity, Machine, State};
use crate::tensorboard::board::Board;
use crate::{Error, data::inspect, error, process::environment};

/// Trains, tests and records one run, goes on with one that was stopped, or finds that it is already done.
///
/// Nothing is written before everything that can be known was checked. A run that is replaced is kept until the first
/// step of the one that replaces it is made.
///
/// # Errors
/// See [`Error`]. A run that began and could not be finished has a record that says `failed: …`, one that was asked
/// to stop one that says so.
pub fn train(request: &Request, stop: &Stop) -> Result<(), Error> {
    if !request.peers.is_first() {
        return accompany(request, stop);
    }
    let mut plan = request.peers.agree(Plan::resolve(request))?;
    let _ = request.peers.hear(Some(&Opening::of(&plan)?))?;
    let opened = open(request, stop, &mut plan);
    let (output, model) = (request.output, request.resolved.recipe.model.name.as_str());
    let (source, run) = request.peers.agree(opened)?;
    let _ = request.peers.hear(Some(&source.sha256))?;
    if let Earlier::Finished(record) = &plan.earlier {
        output.say(&format!("{model}: already trained, reused ({})", verdict(&record.result)));
        output.event("result", json!({ "result": record.result }));
        return Ok(());
    }

    let recipe = &plan.resolved.recipe;
    let mut record = new_record(request, &plan, &source)?;
    let checkpoint = plan.checkpoint.take();
    let attempt = || {
        let tested = train_and_test(request, stop, &plan, checkpoint, &source, Some((&run, &record)))?;
        tested.ok_or_else(|| Error::Training("nothing was tested".to_owned()))
    };
    // libtorch's refusals inside a forward pass (out of memory, say) come as panics of tch.
    let outcome = catch_unwind(AssertUnwindSafe(attempt))
        .unwrap_or_else(|panic| Err(error::from_panic(panic.as_ref())))
        .map_err(|error| request.peers.or_gone(error).or_out_of_memory(&recipe.train));
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
            let stopped = matches!(error, Error::Stopped(_));
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

/// The data, and the directory of the run.
fn open(request: &Request, stop: &Stop, plan: &mut Plan) -> Result<(Source, RunDir), Error> {
    let source = plan.read_data(request, stop)?;
    let run = plan.open_run(request)?;
    run.check_data(&plan.earlier, &source.sha256)?;
    Ok((source, run))
}

/// What the first of several processes tells the others of its plan.
#[derive(Debug, Serialize, Deserialize)]
struct Opening {
    /// Whether there is nothing left to do.
    is_done: bool,
    /// The recipe as TOML, without weights to start from, which the others are sent.
    recipe: String,
}

impl Opening {
    fn of(plan: &Plan) -> Result<Self, Error> {
        let recipe = Recipe { initial_weights: None, ..plan.resolved.recipe.clone() };
        let is_done = matches!(plan.earlier, Earlier::Finished(_));
        Ok(Self { is_done, recipe: recipes::to_toml(&recipe)? })
    }
}

/// Trains with the first of several processes, and leaves nothing.
fn accompany(request: &Request, stop: &Stop) -> Result<(), Error> {
    let peers = &request.peers;
    peers.agree(Ok(()))?;
    let Some(Opening { is_done, recipe }) = peers.hear(None)? else { return Ok(()) };
    let plan = || {
        let recipe = Recipe::parse(&recipe).map_err(|problem| Error::Usage(problem.to_string()))?;
        let mut plan = Plan::of(request, Resolved { recipe, ..request.resolved.clone() })?;
        let source = plan.read_data(request, stop)?;
        Ok((plan, source))
    };
    let (plan, source) = peers.agree(plan())?;
    let sha256: Option<String> = peers.hear(None)?;
    if sha256.is_some_and(|sha256| sha256 != source.sha256) {
        return Err(Error::Training(format!(
            "process {} of {} has other data than the first one (SHA-256 {}); give all of them the same",
            peers.rank(),
            peers.processes(),
            source.sha256
        )));
    }
    if is_done {
        return Ok(());
    }
    let attempt = || train_and_test(request, stop, &plan, None, &source, None);
    let outcome = catch_unwind(AssertUnwindSafe(attempt))
        .unwrap_or_else(|panic| Err(error::from_panic(panic.as_ref())))
        .map_err(|error| peers.or_gone(error).or_out_of_memory(&plan.resolved.recipe.train));
    match outcome {
        Ok(_) => Ok(()),
        // The first one tells of it.
        Err(error @ (Error::Stopped(_) | Error::NotFinite { .. })) => {
            Err(Error::Elsewhere { code: error.exit_code() })
        }
        Err(error) => Err(error),
    }
}

/// Trains, and where there is a directory to write to, tests.
fn train_and_test(
    request: &Request,
    stop: &Stop,
    plan: &Plan,
    checkpoint: Option<Checkpoint>,
    source: &Source,
    place: Option<(&RunDir, &RunRecord)>,
) -> Result<Option<Finished>, Error> {
    let Request { seed, device, precision, output, .. } = request;
    let Plan { resolved: Resolved { recipe, .. }, architecture, vs, network, .. } = plan;
    let stats = source.normalization(&recipe.data)?;
    let (train_set, test_set) = source.sets(*device).map_err(Error::or_placing)?;
    let presentation = Presentation::new(recipe, &stats, source.class_names.len() as i64, *device)?;
    let mut state = State::new(vs, architecture, recipe)?;
    let mut keeper = keeper(request, plan, source, place.map(|(run, _)| run), &stats)?;
    keeper.saved = checkpoint.as_ref().map(|saved| saved.position);
    keeper.has_begun = checkpoint.is_some();
    let machine = checkpoint.map(|saved| state.restore(vs, saved, &keeper.identity)).transpose();
    let machine = request.peers.agree(machine)?;
    state.share(vs, &request.peers)?;

    let begun = place.map_or(Ok(()), |(run, record)| {
        begin(run, plan, record)?;
        let classes = to_csv(&source.parts.counts(&source.class_names));
        run.write(CLASSES, &classes.map_err(|error| Error::io(&run.file(CLASSES))(error.into()))?)
    });
    request.peers.agree(begun)?;
    let log = place.map_or(Ok(Log(None)), |(run, _)| run.log())?;
    let progress = Progress::new(recipe.train.epochs, source.parts.train.len(), *output, log);
    if let Some((run, record)) = place {
        tell_beginning(&progress, plan, source, record, &request.peers);
        output.event("run", json!({ "path": run.path().display().to_string(), "result": record.result }));
    }
    if let Some(machine) = machine {
        if machine != keeper.machine {
            progress.line(&format!(
                "{}: this checkpoint was computed elsewhere ({machine}); \
                 the numbers may differ in their last digits from those of a run in one place",
                architecture.model
            ));
        }
        keeper.publish_weights(&state)?;
        keeper.run.map_or(Ok(()), |run| run.write_history(&state.counters.history))?;
    }
    let train = Subset { set: &train_set, range: source.parts.train.clone() };
    if let (Some(histograms), Some(run)) = (request.tensorboard, keeper.run) {
        let shown = inspect::Shown { recipe, class_names: &source.class_names, stats: &stats };
        let sheet = || inspect::sheet(&shown, &train, (*seed, 1), 16);
        keeper.board = Some(board(run, state.counters.updates, histograms, sheet)?);
    }
    let validation = Subset { set: &train_set, range: source.parts.validation.clone() };
    let class_weights = class_weights(recipe, source, *device, &progress)?;
    let job = Job {
        recipe,
        seed: *seed,
        network: network.as_ref(),
        vs,
        config: architecture.config.as_ref(),
        class_weights,
        train,
        glance: match place {
            Some(_) => Glance::new(recipe, &source.class_names, &validation, &presentation)?,
            None => None,
        },
        validation,
        presentation,
        precision: *precision,
        progress: &progress,
        stop,
        peers: &request.peers,
    };
    progress.at(&state);
    fit(&job, &mut state, &mut keeper)?;
    let Some((run, _)) = place else { return Ok(None) };
    let (done, best) = (state.counters.history.len() as u32, state.counters.best_epochs().first().copied());
    if let (Some(best), true) = (best, done < recipe.train.epochs) {
        progress.line(&format!(
            "{}: ended after epoch {done}, because none since epoch {best} had a better validation top-1",
            architecture.model
        ));
    }

    let test = request.tests.then(|| Subset { set: &test_set, range: 0..test_set.len() });
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
    tested(vs, &outcome, run, state, stop).map(Some)
}

/// How often the images of each class count, f32 `[K]`, if the recipe wants that not all count alike.
fn class_weights(
    recipe: &Recipe,
    source: &Source,
    device: Device,
    progress: &Progress,
) -> Result<Option<Tensor>, Error> {
    let Some(wanted) = recipe.train.class_weights else { return Ok(None) };
    let counts = source.parts.counts(&source.class_names);
    let weights = wanted.of(&counts.iter().map(|class| class.train).collect::<Vec<_>>());
    let words = counts.iter().zip(&weights).map(|(class, weight)| format!("{} {weight:.3}", class.name));
    progress.log(&format!("an image counts by its class: {}", words.collect::<Vec<_>>().join(", ")));
    Ok(Some(Tensor::f_from_slice(&weights)?.f_to_kind(Kind::Float)?.f_to_device(device)?))
}

/// Measures the kept weights on the test images, if there are to be any, and leaves what they answer.
fn tested(
    vs: &VarStore,
    outcome: &Outcome,
    run: &RunDir,
    state: State,
    stop: &Stop,
) -> Result<Finished, Error> {
    let kept = state.kept.ok_or_else(|| Error::Training("no epoch was trained".to_owned()))?;
    // Those on disk, as anyone would load them.
    let file = outcome.shown.recipe.train.select.weights_file();
    weights::load(vs, outcome.architecture, &run.file(file), Head::Same)?;
    let Tested { test, temperature, predictions_sha256 } = outcome.test(run, stop)?;
    if let Some(test) = test.filter(|test| !test.loss.is_finite()) {
        return Err(Error::Training(format!("the test loss is {}", test.loss)));
    }
    let history = state.counters.history;
    let epoch = history.iter().find(|stats| stats.epoch == kept.epoch).cloned();
    let epoch = epoch.ok_or_else(|| Error::Training("the kept epoch is not in the history".to_owned()))?;
    let path = run.file(HISTORY);
    Ok(Finished {
        history_sha256: sha256_file(&path).map_err(Error::io(&path))?,
        history,
        kept: epoch,
        test,
        temperature,
        weights_sha256: kept.sha256,
        predictions_sha256,
    })
}

/// TensorBoard's events of the run; a new run begins with a sheet of training images.
fn board(
    run: &RunDir,
    updates: u64,
    histograms: bool,
    sheet: impl FnOnce() -> Result<RgbImage, Error>,
) -> Result<Board, Error> {
    let mut board = Board::open(run.file(TENSORBOARD), updates, histograms)?;
    if updates == 0 {
        board.picture(0, "train/images", &sheet()?.into())?;
    }
    Ok(board)
}

/// Makes the directory the run's. What it holds of another one is set aside.
fn begin(run: &RunDir, plan: &Plan, record: &RunRecord) -> Result<(), Error> {
    if matches!(plan.earlier, Earlier::Nothing) {
        run.set_aside()?;
    }
    // The record first: a directory with one is known to be a run's.
    run.write_record(record)?;
    run.write(RECIPE, recipes::to_toml(&plan.resolved.recipe)?.as_bytes())
}

fn tell_beginning(progress: &Progress, plan: &Plan, source: &Source, record: &RunRecord, peers: &Peers) {
    let (row, model) = (&record.result, &plan.architecture.model);
    // They were said before the pictures were decoded.
    for note in &plan.notes {
        progress.log(&format!("{model}: {note}"));
    }
    let processes = peers.processes();
    let shared = match processes {
        1 => String::new(),
        _ => format!(" over {processes} processes, {} each", row.batch_size.div_ceil(processes)),
    };
    progress.line(&format!(
        "{model}: {} parameters, {} of {} images for training, {} epochs, batch {}{shared}, {} on {} with {} threads, seed {}",
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
    run: Option<&'a RunDir>,
    stats: &ChannelStats,
) -> Result<Keeper<'a>, Error> {
    let Request { seed, device, precision, saving, .. } = request;
    let Plan { resolved: Resolved { recipe, .. }, architecture, .. } = plan;
    // Weights of the run that is replaced are gone once this one has begun.
    let initial = recipe.initial_weights.as_ref();
    Ok(Keeper {
        run,
        has_begun: false,
        starts_from_itself: initial.zip(run).is_some_and(|(weights, run)| run.holds(&weights.file)),
        card: Card {
            model: architecture.model.clone(),
            family: architecture.facts.family.to_owned(),
            config: architecture.config.to_json(),
            recipe: recipe.clone(),
            data_sha256: source.sha256.clone(),
            channel_mean: stats.mean,
            channel_std: stats.std,
            class_names: source.class_names.clone(),
            epoch: 0,
            val_top1: None,
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
            gpu: torch_ext::gpu(*device)?.map(|card| card.name),
            threads: tch::get_num_threads(),
            cpu: machine::cpu(),
            kernels: (*device == Device::Cpu).then(torch_ext::kernel_instructions),
            libtorch: environment::LIBTORCH.to_owned(),
        },
        saving: *saving,
        board: None,
        saved_at: Instant::now(),
        saved: None,
    })
}
