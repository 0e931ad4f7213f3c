//! The `train` command: from a recipe to a finished run directory.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use data_cifar::keyed_seed;
use run_record::{
    EpochStats, InitialWeights, RECORD_FORMAT, Recipe, ResultRow, RunRecord, STATUS_COMPLETE, STATUS_RUNNING,
    Select, duration,
};
use sha2::{Digest, Sha256};
use tch::Device;
use tch::nn::VarStore;

use crate::data::{self, Part, Source};
use crate::evaluate::{Metrics, evaluate};
use crate::fit::{Job, fit};
use crate::presentation::Presentation;
use crate::progress::{Progress, say};
use crate::recipes::{self, Resolved};
use crate::registry::{self, Architecture};
use crate::run_dir::{Found, RunDir};
use crate::summary::grouped;
use crate::weights::{self, Card};
use crate::{Error, environment, error};

/// What `train` was asked for.
#[derive(Debug)]
pub struct Request {
    /// The directory with `recipes/` and `datasets/`.
    pub root: PathBuf,
    /// What to train and how.
    pub resolved: Resolved,
    /// Where the data is, if not where `fetch` puts it.
    pub data_dir: Option<PathBuf>,
    /// Decode the pictures of a folder as they are needed, even if they would fit in memory.
    pub stream: bool,
    /// Seed of every draw.
    pub seed: u64,
    /// Where to train.
    pub device: Device,
    /// Run directory, if not the default one.
    pub out: Option<PathBuf>,
    /// Replace whatever the run directory holds.
    pub fresh: bool,
    /// Print errors only.
    pub quiet: bool,
}

/// Trains, tests and records one run, or finds that it is already done.
///
/// # Errors
/// See [`Error`]. A run that could not be finished has a record that says `failed: …`.
pub fn train(request: &Request) -> Result<(), Error> {
    let Request { root, resolved: Resolved { recipe, preset }, seed, .. } = request;
    let model = &recipe.model.name;
    // A folder's classes are known only once it is read, but a wrong model field is wrong at once.
    let without_data = architecture(recipe, data::class_count(recipe.dataset))?;
    let default = || root.join("results/runs").join(format!("{model}--{preset}--s{seed}"));
    let run = RunDir::open(&request.out.clone().unwrap_or_else(default))?;
    let tell = |text: &str| {
        if !request.quiet {
            say(text);
        }
    };

    let loaded =
        data::load(recipe, root, request.data_dir.as_deref(), request.stream, &mut |text| tell(text));
    let source = match loaded {
        Ok(source) => source,
        // What was asked for wrongly leaves no run behind.
        Err(error @ Error::Usage(_)) => return Err(error),
        Err(error) => {
            record_missing_data(request, &without_data, &run, &error)?;
            return Err(error);
        }
    };
    let architecture = architecture(recipe, Some(source.class_names.len() as i64))?;
    if let Some(weights) = &recipe.initial_weights {
        verify(weights)?;
    }
    let found = if request.fresh { Found::Nothing } else { run.find(recipe, *seed, &source.sha256)? };
    match found {
        Found::Finished(record) => {
            tell(&format!("{model}: already trained, reused ({})", verdict(&record.result)));
            return Ok(());
        }
        // The same recipe, seed and data: what is there is replaced epoch by epoch.
        Found::Unfinished => tell(&format!("{model}: an unfinished run is there; training starts over")),
        Found::Nothing => run.clear()?,
    }
    run.tidy()?;

    let mut record = new_record(request, &architecture, &source.sha256)?;
    record.skipped_files = source.skipped.len();
    // The record first: a directory with one is known to be a run's.
    run.write_record(&record)?;
    run.write("recipe.toml", recipes::to_toml(recipe)?.as_bytes())?;
    let progress = Progress::new(recipe.train.epochs, source.train.len(), request.quiet, run.log()?);
    progress.line(&format!(
        "{model}: {} parameters, {} of {} images for training, {} epochs, batch {}, {} with {} threads, seed {seed}",
        grouped(architecture.params),
        source.train.len(),
        source.name,
        recipe.train.epochs,
        recipe.train.batch_size,
        record.result.device,
        record.result.threads,
    ));

    for skipped in &source.skipped {
        progress.line(&format!("{model}: left out {skipped}"));
    }

    let attempt = || train_and_test(request, &architecture, &source, &run, &progress);
    // libtorch's refusals inside a forward pass (out of memory, say) come as panics of tch.
    let outcome = catch_unwind(AssertUnwindSafe(attempt))
        .unwrap_or_else(|panic| Err(error::from_panic(panic.as_ref())));
    progress.finish();
    record.result.peak_memory_mb = environment::peak_memory_mb();
    match outcome {
        Ok(finished) => {
            finish(&mut record, &finished);
            run.write_record(&record)?;
            progress.line(&format!("{model}: {}; in {}", verdict(&record.result), run.path().display()));
            Ok(())
        }
        Err(error) => {
            record.result.status = format!("failed: {error}");
            // The first error is the one to report, even if the disk cannot take the record.
            let _ = run.write_record(&record);
            Err(error)
        }
    }
}

/// Leaves a failed record for a run that had no data to begin with, unless a run is there already.
fn record_missing_data(
    request: &Request,
    architecture: &Architecture,
    run: &RunDir,
    error: &Error,
) -> Result<(), Error> {
    let recipe = &request.resolved.recipe;
    if let Ok(Found::Nothing) = run.find(recipe, request.seed, "") {
        let mut record = new_record(request, architecture, "")?;
        record.result.status = format!("failed: {error}");
        run.write_record(&record)?;
        run.write("recipe.toml", recipes::to_toml(recipe)?.as_bytes())?;
    }
    Ok(())
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
    weights_sha256: String,
}

fn train_and_test(
    request: &Request,
    architecture: &Architecture,
    source: &Source,
    run: &RunDir,
    progress: &Progress,
) -> Result<Finished, Error> {
    let Request { resolved: Resolved { recipe, .. }, seed, device, .. } = request;
    let vs = VarStore::new(*device);
    seed_initial_weights(*seed);
    let network = architecture.init(&vs.root())?;
    if let Some(weights) = &recipe.initial_weights {
        for note in weights::load(&vs, architecture, &weights.file, true)? {
            progress.line(&format!("{}: {}: {note}", architecture.model, weights.file.display()));
        }
    }
    let stats = source.normalization(&recipe.data)?;
    let (train_set, test_set) = source.sets(*device)?;
    let job = Job {
        recipe,
        seed: *seed,
        network: network.as_ref(),
        vs: &vs,
        train: Part { set: &train_set, range: source.train.clone() },
        validation: Part { set: &train_set, range: source.validation.clone() },
        presentation: Presentation::new(recipe, &stats, source.class_names.len() as i64, *device)?,
    };
    let mut kept: Option<(EpochStats, String)> = None;
    let select = recipe.train.select;
    let history = fit(&job, progress, |history, is_best| {
        let keep = select == Select::Last || is_best;
        if let (true, Some(epoch)) = (keep, history.last()) {
            let card = Card {
                model: architecture.model.clone(),
                family: architecture.family.to_owned(),
                config: architecture.config.clone(),
                recipe: recipe.clone(),
                data_sha256: source.sha256.clone(),
                channel_mean: stats.mean,
                channel_std: stats.std,
                class_names: source.class_names.clone(),
                epoch: epoch.epoch,
                val_top1: epoch.val_top1,
            };
            let bytes = weights::to_bytes(&vs, &card)?;
            run.write(select.weights_file(), &bytes)?;
            kept = Some((epoch.clone(), recipes::hex(&Sha256::digest(&bytes))));
        }
        run.write_history(history)
    })?;

    let (kept, weights_sha256) =
        kept.ok_or_else(|| Error::Training("no epoch had a validation accuracy".to_owned()))?;
    // Tested are the weights on disk, as anyone would load them.
    weights::load(&vs, architecture, &run.file(select.weights_file()), false)?;
    let test = Part { set: &test_set, range: 0..test_set.len() };
    let smoothing = recipe.train.label_smoothing;
    let test = evaluate(job.network, &test, &job.presentation, recipe.train.batch_size, smoothing)?;
    if !test.loss.is_finite() {
        return Err(Error::Training(format!("the test loss is {}", test.loss)));
    }
    Ok(Finished { history, kept, test, weights_sha256 })
}

/// Checks that initial weights are the ones the recipe means.
fn verify(InitialWeights { file, sha256 }: &InitialWeights) -> Result<(), Error> {
    let found = recipes::hex(&Sha256::digest(fs::read(file).map_err(Error::io(file))?));
    if found == *sha256 {
        return Ok(());
    }
    let problem = format!("its SHA-256 is {found}, the recipe's initial weights have {sha256}");
    Err(Error::Weights { path: file.clone(), problem })
}

/// Seeds the generator that a network's parameters are drawn from.
pub fn seed_initial_weights(seed: u64) {
    tch::manual_seed(keyed_seed(seed, "init", 0, 0));
}

fn new_record(request: &Request, architecture: &Architecture, data_sha256: &str) -> Result<RunRecord, Error> {
    let Request { root, resolved: Resolved { recipe, preset }, seed, device, .. } = request;
    let reference = recipe.reference.clone();
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
        precision: "f32".to_owned(),
        threads: tch::get_num_threads(),
        libtorch: environment::LIBTORCH.to_owned(),
        data_sha256: data_sha256.to_owned(),
        recipe_sha256: recipes::digest(recipe)?,
        git_commit: environment::git_commit(root),
        started_at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        status: STATUS_RUNNING.to_owned(),
    };
    Ok(RunRecord {
        format: RECORD_FORMAT,
        result,
        weights_sha256: None,
        command: environment::command(),
        trainer_version: env!("CARGO_PKG_VERSION").to_owned(),
        cpu: environment::cpu(),
        skipped_files: 0,
    })
}

fn finish(record: &mut RunRecord, finished: &Finished) {
    let Finished { history, kept, test, weights_sha256 } = finished;
    let row = &mut record.result;
    let seconds: f64 = history.iter().map(|epoch| epoch.train_seconds).sum();
    let images: f64 = history.iter().map(|epoch| epoch.images_per_second * epoch.train_seconds).sum();
    row.best_epoch = Some(kept.epoch);
    row.val_top1 = Some(rounded(kept.val_top1));
    row.test_top1 = Some(rounded(test.top1));
    row.test_top5 = Some(rounded(test.top5));
    row.test_loss = Some(rounded(test.loss));
    row.delta_top1 = row.reference_top1.map(|reference| rounded(test.top1 - reference));
    row.train_seconds = Some((seconds * 10.0).round() / 10.0);
    row.images_per_second = Some((images / seconds * 10.0).round() / 10.0);
    row.status = STATUS_COMPLETE.to_owned();
    record.weights_sha256 = Some(weights_sha256.clone());
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
