//! How a run is accounted for: the record it begins with, and what that says at its end.

use run_record::{
    EpochStats, RECORD_FORMAT, Recipe, ResultRow, RunRecord, STATUS_COMPLETE, STATUS_RUNNING, duration,
    machine,
};

use crate::data::source::Source;
use crate::network::registry::Architecture;
use crate::run::directory::Earlier;
use crate::run::evaluate::Metrics;
use crate::run::plan::Plan;
use crate::run::recipes::{self, Resolved};
use crate::run::request::Request;
use crate::{Error, process::environment};

/// What a run that reached its end measured.
#[derive(Debug)]
pub struct Finished {
    /// Every epoch.
    pub history: Vec<EpochStats>,
    /// The one whose weights were kept.
    pub kept: EpochStats,
    /// What those measure on the test images, if they were shown them.
    pub test: Option<Metrics>,
    /// What their logits are divided by to calibrate probabilities, fitted on the validation images.
    pub temperature: f64,
    /// SHA-256 of their file.
    pub weights_sha256: String,
    /// SHA-256 of what they answer for the test images, as a file, likewise.
    pub predictions_sha256: Option<String>,
    /// SHA-256 of the history, as a file.
    pub history_sha256: String,
}

/// The record of a run that is under way.
///
/// # Errors
/// A recipe that cannot be written, or what libtorch says of the card.
pub fn new_record(request: &Request, plan: &Plan, source: &Source) -> Result<RunRecord, Error> {
    let Request { root, seed, device, .. } = request;
    let Plan { resolved: Resolved { recipe, preset }, architecture, .. } = plan;
    let card = torch_ext::gpu(*device)?;
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    // A run that goes on keeps what it was.
    let (started_at, resumed_from, deterministic) = match (&plan.earlier, &plan.checkpoint) {
        (Earlier::Unfinished(earlier), Some(checkpoint)) => {
            let places = earlier.resumed_from.iter().cloned().chain([checkpoint.position.to_string()]);
            (earlier.result.started_at.clone(), places.collect(), earlier.deterministic)
        }
        _ => (now, Vec::new(), true),
    };
    let result = ResultRow {
        preset: preset.clone(),
        seed: *seed,
        device: environment::device_name(*device),
        precision: request.precision.as_str().to_owned(),
        threads: tch::get_num_threads(),
        libtorch: environment::LIBTORCH.to_owned(),
        data_sha256: source.sha256.clone(),
        git_commit: environment::git_commit(root),
        started_at,
        status: STATUS_RUNNING.to_owned(),
        ..known_before(recipe, architecture)?
    };
    Ok(RunRecord {
        format: RECORD_FORMAT,
        result,
        weights_sha256: None,
        predictions_sha256: None,
        history_sha256: None,
        temperature: None,
        command: environment::command(),
        trainer_version: env!("CARGO_PKG_VERSION").to_owned(),
        cpu: machine::cpu(),
        driver: card.as_ref().and_then(|card| card.driver.clone()),
        gpu: card.map(|card| card.name),
        kernels: (request.device == tch::Device::Cpu).then(torch_ext::kernel_instructions),
        deterministic: request.deterministic && deterministic,
        skipped_files: source.skipped.len(),
        resumed_from,
    })
}

/// The columns that follow from the recipe and the network alone; the others are empty.
///
/// # Errors
/// A recipe that cannot be written.
pub fn known_before(recipe: &Recipe, architecture: &Architecture) -> Result<ResultRow, Error> {
    let published = recipe.reference.as_ref();
    Ok(ResultRow {
        model: recipe.model.name.clone(),
        family: architecture.facts.family.to_owned(),
        dataset: recipe.dataset.to_string(),
        image_size: recipe.data.image_size,
        epochs: recipe.train.epochs,
        batch_size: recipe.train.batch_size,
        params: architecture.facts.params,
        macs: architecture.facts.macs,
        reference_top1: published.and_then(|published| published.test_top1),
        reference_top5: published.and_then(|published| published.test_top5),
        recipe_sha256: recipes::digest(recipe)?,
        ..ResultRow::default()
    })
}

/// Fills in what a run that reached its end measured.
pub fn finish(record: &mut RunRecord, finished: &Finished) {
    let Finished { history, kept, test, temperature, weights_sha256, predictions_sha256, history_sha256 } =
        finished;
    let row = &mut record.result;
    let seconds: f64 = history.iter().map(|epoch| epoch.train_seconds).sum();
    let images: f64 = history.iter().map(|epoch| epoch.images_per_second * epoch.train_seconds).sum();
    row.best_epoch = Some(kept.epoch);
    row.val_top1 = Some(rounded(kept.kept_top1()));
    row.test_top1 = test.map(|test| rounded(test.top1));
    row.test_top5 = test.map(|test| rounded(test.top5));
    row.test_loss = test.map(|test| rounded(test.loss));
    row.delta_top1 = test.zip(row.reference_top1).map(|(test, reference)| rounded(test.top1 - reference));
    row.train_seconds = Some((seconds * 10.0).round() / 10.0);
    row.images_per_second = Some((images / seconds * 10.0).round() / 10.0);
    row.status = STATUS_COMPLETE.to_owned();
    record.weights_sha256 = Some(weights_sha256.clone());
    record.predictions_sha256.clone_from(predictions_sha256);
    record.history_sha256 = Some(history_sha256.clone());
    record.temperature = Some(*temperature);
}

/// Six decimals: finer than one image in any data set here.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

/// A finished run in a line.
pub fn verdict(row: &ResultRow) -> String {
    let percent =
        |value: Option<f64>| value.map_or("?".to_owned(), |value| format!("{:.2} %", 100.0 * value));
    let test = match row.test_top1 {
        Some(_) => format!("test top-1 {}, top-5 {}", percent(row.test_top1), percent(row.test_top5)),
        None => "not tested".to_owned(),
    };
    format!(
        "{test}, validation top-1 {} at epoch {}, {} of training",
        percent(row.val_top1),
        row.best_epoch.unwrap_or_default(),
        duration(row.train_seconds.unwrap_or_default()),
    )
}
