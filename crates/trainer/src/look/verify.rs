//! Whether a finished run is what its record says: its files against each other, its numbers from weights and data again.

use std::fs;
use std::path::Path;

use run_record::layout::{HISTORY, PREDICTIONS, RECIPE, RECORD};
use run_record::{
    EpochStats, Prediction, Recipe, ResultRow, RunRecord, STATUS_COMPLETE, Verification,
    predictions_from_csv, sha256, sha256_file, temperature,
};
use serde_json::{Map, Value};
use tch::Device;

use crate::Error;
use crate::data::source::{self, Purpose, Source, Subset};
use crate::look::answers::Answers;
use crate::look::trained::Trained;
use crate::network::weights::Card;
use crate::process::signals::Stop;
use crate::run::account::{Finished, finish, known_before};
use crate::run::evaluate::Metrics;
use crate::run::recipes;

/// How far a probability may be from what it was on another machine, where sums have another order.
const NEAR: f64 = 1e-3;

/// How far a mean loss, or a temperature of 1, may be from what it was on another machine.
const NEAR_MEAN: f64 = 1e-3;

/// Findings of one kind that are told one by one.
const TOLD: usize = 3;

/// Where the data of runs is, and where networks compute.
#[derive(Debug)]
pub struct Place<'a> {
    /// The workspace.
    pub root: &'a Path,
    /// Directory of the data set, if it is not where it is fetched to.
    pub data_dir: Option<&'a Path>,
    /// Where networks compute.
    pub device: Device,
}

/// What does not hold, in words.
struct Findings(Vec<String>);

impl Findings {
    /// A result, or its error as a finding. Only a wish to stop ends the check.
    fn keep<T>(&mut self, result: Result<T, Error>) -> Result<Option<T>, Error> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(stopped @ Error::Stopped(_)) => Err(stopped),
            Err(error) => {
                self.0.push(error.to_string());
                Ok(None)
            }
        }
    }

    fn compare(&mut self, file: &str, what: &str, found: &str, said: &str) {
        if found != said {
            self.0.push(format!("{file}: {what} is {found}, and {RECORD} says {said}"));
        }
    }
}

/// Checks the run in a directory. All that can be known of it is computed again; what was measured with a clock, memory
/// and names of the machine are compared where another file says them too.
///
/// # Errors
/// No run, a run that is not complete, or somebody who wants to stop. What does not hold is no error.
pub fn verify(run: &Path, place: &Place<'_>, stop: &Stop) -> Result<Verification, Error> {
    let text = read(run, RECORD)?;
    let broken = |problem| Error::RunDir { path: run.join(RECORD), problem };
    let record = RunRecord::parse(&text).map_err(broken)?;
    if record.result.status != STATUS_COMPLETE {
        return Err(broken(format!("the run is not complete, but {}", record.result.status)));
    }
    if record.result.test_top1.is_none() && record.predictions_sha256.is_none() {
        let problem = "the run was not tested (train --no-test), so there are no test numbers to verify";
        return Err(broken(problem.to_owned()));
    }
    let mut findings = Findings(Vec::new());
    let recipe = findings.keep(recipe(run))?;
    let history = findings.keep(history(run))?;
    let predictions = findings.keep(predictions(run))?;
    for (name, sha256, said) in [
        (PREDICTIONS, predictions.as_ref().map(|(sha256, _)| sha256), &record.predictions_sha256),
        (HISTORY, history.as_ref().map(|(sha256, _)| sha256), &record.history_sha256),
    ] {
        if let Some(sha256) = sha256 {
            findings.compare(name, "the SHA-256", sha256, said.as_deref().unwrap_or("nothing"));
        }
    }
    if let Some(recipe) = &recipe {
        let digest = recipes::digest(recipe)?;
        findings.compare(RECIPE, "the SHA-256 of its values", &digest, &record.result.recipe_sha256);
    }
    let trained = findings.keep(Trained::open(run, place.device))?;
    let mut images = 0;
    if let Some(trained) = &trained {
        let weights = sha256_file(&trained.path).map_err(Error::io(&trained.path))?;
        let name = trained.path.file_name().map(|name| name.display().to_string()).unwrap_or_default();
        let said = record.weights_sha256.as_deref().unwrap_or("nothing");
        findings.compare(&name, "the SHA-256", &weights, said);
        check_card(&trained.card, &record.result, &name, &mut findings)?;
        let source = findings.keep(data(trained, place, stop))?;
        if let (Some(source), Some(recipe), Some((_, history)), Some((_, rows))) =
            (&source, &recipe, &history, &predictions)
        {
            let again = findings.keep(Again::compute(trained, source, stop))?;
            if let Some(again) = again {
                images = again.rows.len();
                check_predictions(rows, &again, &mut findings);
                let known = known_before(recipe, &trained.card.architecture(&trained.path)?)?;
                let known = ResultRow { data_sha256: source.sha256.clone(), ..known };
                check_record(&record, known, history, rows, &again, &mut findings);
            }
        }
    }
    let verified_at = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    Ok(Verification { record_sha256: sha256(&text), verified_at, images, findings: findings.0 })
}

/// Not so of what is no number.
fn is_near(a: f64, b: f64, most: f64) -> bool {
    (a - b).abs() <= most
}

fn read(run: &Path, name: &str) -> Result<String, Error> {
    let path = run.join(name);
    fs::read_to_string(&path).map_err(Error::io(&path))
}

fn recipe(run: &Path) -> Result<Recipe, Error> {
    let broken = |error: run_record::RecipeErrors| Error::RunDir {
        path: run.join(RECIPE),
        problem: error.to_string().lines().next().unwrap_or_default().to_owned(),
    };
    Recipe::parse(&read(run, RECIPE)?).map_err(broken)
}

/// The SHA-256 of the file and its rows.
fn history(run: &Path) -> Result<(String, Vec<EpochStats>), Error> {
    let text = read(run, HISTORY)?;
    let broken = |error: csv::Error| Error::RunDir { path: run.join(HISTORY), problem: error.to_string() };
    let rows = csv::Reader::from_reader(text.as_bytes()).deserialize().collect::<Result<_, _>>();
    Ok((sha256(&text), rows.map_err(broken)?))
}

/// The SHA-256 of the file and its rows.
fn predictions(run: &Path) -> Result<(String, Vec<Prediction>), Error> {
    let text = read(run, PREDICTIONS)?;
    let broken =
        |error: csv::Error| Error::RunDir { path: run.join(PREDICTIONS), problem: error.to_string() };
    Ok((sha256(&text), predictions_from_csv(text.as_bytes()).map_err(broken)?))
}

/// The images the weights say they belong to.
fn data(trained: &Trained, place: &Place<'_>, stop: &Stop) -> Result<Source, Error> {
    let recipe = &trained.card.recipe;
    let listing =
        source::list(recipe, place.root, place.data_dir, Purpose::Evaluation(&trained.card.class_names))?;
    let stream = listing.can_stream();
    listing.read(recipe, stream, stop, &mut |_| ())
}

/// What weights say of themselves is what the record says of the run.
fn check_card(card: &Card, row: &ResultRow, file: &str, findings: &mut Findings) -> Result<(), Error> {
    let epoch = |epoch: Option<u32>| epoch.map_or_else(String::new, |epoch| epoch.to_string());
    findings.compare(file, "its network", &card.model, &row.model);
    findings.compare(file, "the SHA-256 of its recipe", &recipes::digest(&card.recipe)?, &row.recipe_sha256);
    findings.compare(file, "the SHA-256 of its data", &card.data_sha256, &row.data_sha256);
    findings.compare(file, "its epoch", &epoch(Some(card.epoch)), &epoch(row.best_epoch));
    Ok(())
}

/// What the network answers now.
struct Again {
    rows: Vec<Prediction>,
    answers: Answers,
    class_names: Vec<String>,
    test: Metrics,
    validation: Metrics,
    validated: usize,
    temperature: f64,
}

impl Again {
    fn compute(trained: &Trained, source: &Source, stop: &Stop) -> Result<Self, Error> {
        let (train_set, test_set) = source.sets(trained.device)?;
        let recipe = &trained.card.recipe.train;
        let answers = |set, range| {
            let part = Subset { set, range };
            Answers::of(trained.network.as_ref(), &part, &trained.presentation, recipe, stop)
        };
        let (test, tested) = answers(&test_set, 0..test_set.len())?;
        let (validation, validated) = answers(&train_set, source.parts.validation.clone())?;
        let temperature = temperature(&validated.logits, &validated.labels);
        let class_names = trained.card.class_names.clone();
        let rows = tested.rows(&class_names, temperature);
        Ok(Self {
            rows,
            answers: tested,
            class_names,
            test,
            validation,
            validated: validated.labels.len(),
            temperature,
        })
    }

    /// The probability that the network gives a class for an image now.
    fn probability(&self, image: usize, class: &str) -> Option<f64> {
        let class = self.class_names.iter().position(|name| name == class)?;
        self.answers.probability(image, class)
    }
}

/// Every answer in the file against the network's.
fn check_predictions(rows: &[Prediction], again: &Again, findings: &mut Findings) {
    if rows.len() != again.rows.len() {
        findings.0.push(format!(
            "{PREDICTIONS}: it has {} rows, and the data {} test images",
            rows.len(),
            again.rows.len()
        ));
        return;
    }
    let wrong: Vec<String> = rows
        .iter()
        .zip(&again.rows)
        .filter_map(|(row, now)| {
            Some(format!("{PREDICTIONS}: image {}: {}", now.image, difference(row, now, again)?))
        })
        .collect();
    findings.0.extend(wrong.iter().take(TOLD).cloned());
    if wrong.len() > TOLD {
        findings.0.push(format!("{PREDICTIONS}: and {} images more", wrong.len() - TOLD));
    }
}

/// In what a row differs from the network's answer, by more than another machine explains.
fn difference(row: &Prediction, now: &Prediction, again: &Again) -> Option<String> {
    if row.image != now.image {
        return Some(format!("the row says image {}", row.image));
    }
    if row.label != now.label {
        return Some(format!("the label is {}, and in the data {}", row.label, now.label));
    }
    let numbers = [
        ("label_probability", row.label_probability, now.label_probability),
        ("top1_probability", row.top1_probability, now.top1_probability),
        ("top1_calibrated", row.top1_calibrated, now.top1_calibrated),
    ];
    if let Some((name, said, found)) =
        numbers.into_iter().find(|(_, said, found)| !is_near(*said, *found, NEAR))
    {
        return Some(format!("{name} is {said}, and the network says {found}"));
    }
    let ranks = [
        ("top1", &row.top1, &now.top1),
        ("top2", &row.top2, &now.top2),
        ("top3", &row.top3, &now.top3),
        ("top4", &row.top4, &now.top4),
        ("top5", &row.top5, &now.top5),
    ];
    let (name, said, found) = ranks.into_iter().find(|(_, said, found)| {
        let probability = |class| again.probability(now.image, class);
        // Classes that are as likely may change places.
        let are_near =
            matches!((probability(said), probability(found)), (Some(a), Some(b)) if is_near(a, b, NEAR));
        said != found && !are_near
    })?;
    Some(format!("{name} is {said}, and the network says {found}"))
}

/// The record against what it would be if the run ended now.
fn check_record(
    record: &RunRecord,
    known: ResultRow,
    history: &[EpochStats],
    rows: &[Prediction],
    again: &Again,
    findings: &mut Findings,
) {
    let row = &record.result;
    let Some(kept) = history.iter().find(|epoch| Some(epoch.epoch) == row.best_epoch) else {
        findings.0.push(format!("{HISTORY}: it has no row of epoch {}", row.best_epoch.unwrap_or_default()));
        return;
    };
    let share = |right: fn(&Prediction) -> bool| {
        rows.iter().filter(|row| right(row)).count() as f64 / rows.len().max(1) as f64
    };
    let mut now = record.clone();
    now.result = ResultRow {
        preset: row.preset.clone(),
        seed: row.seed,
        peak_memory_mb: row.peak_memory_mb,
        device: row.device.clone(),
        precision: row.precision.clone(),
        threads: row.threads,
        libtorch: row.libtorch.clone(),
        git_commit: row.git_commit.clone(),
        started_at: row.started_at.clone(),
        ..known
    };
    // Each answer was compared above, so accuracies are those of the file, to the last image.
    let test = Metrics {
        top1: share(Prediction::is_right),
        top5: share(Prediction::is_in_top5),
        loss: again.test.loss,
    };
    let finished = Finished {
        history: history.to_vec(),
        kept: kept.clone(),
        test: Some(test),
        temperature: again.temperature,
        weights_sha256: record.weights_sha256.clone().unwrap_or_default(),
        predictions_sha256: record.predictions_sha256.clone(),
        history_sha256: record.history_sha256.clone().unwrap_or_default(),
    };
    finish(&mut now, &finished);
    for (column, said, found) in differing(row, &now.result) {
        findings.0.push(format!("{RECORD}: {column} is {said}, and it should be {found}"));
    }
    let temperature = record.temperature.unwrap_or(f64::NAN);
    if !is_near(temperature, again.temperature, NEAR_MEAN * again.temperature) {
        findings
            .0
            .push(format!("{RECORD}: temperature is {temperature}, and it should be {}", again.temperature));
    }
    // An image whose two likeliest classes are as likely may be right on one machine and wrong on another.
    let one_image = 1.0 / again.validated as f64 + NEAR;
    for (what, said, found, near) in [
        ("loss", kept.kept_loss(), again.validation.loss, NEAR_MEAN * again.validation.loss.max(1.0)),
        ("top-1", kept.kept_top1(), again.validation.top1, one_image),
        ("top-5", kept.kept_top5(), again.validation.top5, one_image),
    ] {
        if !is_near(said, found, near) {
            let epoch = kept.epoch;
            findings.0.push(format!(
                "{HISTORY}: the validation {what} of epoch {epoch} is {said}, and the network's is {found}"
            ));
        }
    }
}

/// Columns of two rows that differ; the loss by more than another machine explains.
fn differing(said: &ResultRow, found: &ResultRow) -> Vec<(String, Value, Value)> {
    let columns = |row: &ResultRow| match serde_json::to_value(row) {
        Ok(Value::Object(columns)) => columns,
        _ => Map::new(),
    };
    let found = columns(found);
    let differs = |column: &str, said: &Value| match (column, said.as_f64(), found[column].as_f64()) {
        ("test_loss", Some(a), Some(b)) => !is_near(a, b, NEAR_MEAN * b.abs().max(1.0)),
        _ => *said != found[column],
    };
    columns(said)
        .into_iter()
        .filter(|(column, said)| differs(column, said))
        .map(|(column, said)| {
            let now = found[&column].clone();
            (column, said, now)
        })
        .collect()
}
