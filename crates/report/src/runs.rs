//! What the runs of a results directory left behind.

use std::fs;
use std::path::{Path, PathBuf};

use run_record::layout::{
    CLASSES, FIGURES, HISTORY, LAYERS, PREDICTIONS, RECIPE, RECORD, RUNS, VERIFICATION,
};
use run_record::{
    ClassCounts, EpochStats, Prediction, Recipe, RunRecord, STATUS_COMPLETE, Verification,
    predictions_from_csv, sha256,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::Error;
use crate::files::CHARTS;

/// One run.
#[derive(Debug)]
pub struct Run {
    /// Name of its directory.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
    /// What it is accountable for.
    pub record: RunRecord,
    /// Its recipe, if the file is there.
    pub recipe: Option<Recipe>,
    /// A row per epoch; empty without the file.
    pub history: Vec<EpochStats>,
    /// An answer per test image; empty without the file.
    pub predictions: Vec<Prediction>,
    /// How many images of each class there are; empty without the file.
    pub classes: Vec<ClassCounts>,
    /// The network layer by layer, as `layers.json` lists them; null without the file.
    pub layers: Value,
    /// Whether and when the run was found to be what its record says.
    pub verified: String,
    /// Files in `figures/` that are PNG pictures and no charts, by name.
    pub pictures: Vec<String>,
}

impl Run {
    /// Test images it had right.
    pub fn hits(&self) -> usize {
        self.predictions.iter().filter(|row| row.is_right()).count()
    }

    /// Whether it was trained to the end and tested.
    pub fn is_complete(&self) -> bool {
        self.record.result.status == STATUS_COMPLETE
    }

    /// Whether it answered the same images in the same order.
    pub fn has_same_images(&self, other: &Self) -> bool {
        !self.predictions.is_empty()
            && self.record.result.data_sha256 == other.record.result.data_sha256
            && self.predictions.len() == other.predictions.len()
            && self
                .predictions
                .iter()
                .zip(&other.predictions)
                .all(|(a, b)| a.image == b.image && a.label == b.label)
    }
}

/// Reads every run that has a record, by name; beside them what cannot be read, and why.
///
/// # Errors
/// The directory cannot be listed.
pub fn read_runs(results: &Path) -> Result<(Vec<Run>, Vec<String>), Error> {
    let dir = results.join(RUNS);
    let (mut runs, mut problems) = (Vec::new(), Vec::new());
    if !dir.is_dir() {
        return Ok((runs, problems));
    }
    for entry in fs::read_dir(&dir).map_err(Error::io(&dir))? {
        let path = entry.map_err(Error::io(&dir))?.path();
        if path.join(RECORD).is_file() {
            match read_run(&path) {
                Ok(run) => runs.push(run),
                Err(error) => problems.push(error.to_string()),
            }
        }
    }
    runs.sort_by(|a, b| a.name.cmp(&b.name));
    problems.sort();
    Ok((runs, problems))
}

/// Reads one run.
///
/// # Errors
/// A file cannot be read, or says what it should not.
pub fn read_run(dir: &Path) -> Result<Run, Error> {
    let text = |path: &Path| fs::read_to_string(path).map_err(Error::io(path));
    let there = |name: &str| Some(dir.join(name)).filter(|path| path.is_file());
    let broken = |path: &Path, problem: String| Error::Content { path: path.to_owned(), problem };

    let path = dir.join(RECORD);
    let text_of_record = text(&path)?;
    let record = RunRecord::parse(&text_of_record).map_err(|problem| broken(&path, problem))?;
    let recipe = match there(RECIPE) {
        Some(path) => {
            Some(Recipe::parse(&text(&path)?).map_err(|problem| broken(&path, problem.to_string()))?)
        }
        None => None,
    };
    let history = there(HISTORY).map_or(Ok(Vec::new()), |path| rows(&path))?;
    let classes = there(CLASSES).map_or(Ok(Vec::new()), |path| rows(&path))?;
    let predictions = match there(PREDICTIONS) {
        Some(path) => {
            predictions_from_csv(text(&path)?.as_bytes()).map_err(|error| broken(&path, error.to_string()))?
        }
        None => Vec::new(),
    };
    let json = |name: &str| match there(name) {
        Some(path) => serde_json::from_str(&text(&path)?).map_err(|error| broken(&path, error.to_string())),
        None => Ok(Value::Null),
    };
    let layers = json(LAYERS)?["layers"].take();
    let verified = match serde_json::from_value::<Option<Verification>>(json(VERIFICATION)?) {
        Ok(verification) => in_words(verification.as_ref(), &sha256(&text_of_record)),
        Err(error) => return Err(broken(&dir.join(VERIFICATION), error.to_string())),
    };
    let mut pictures = Vec::new();
    let figures = dir.join(FIGURES);
    if figures.is_dir() {
        for entry in fs::read_dir(&figures).map_err(Error::io(&figures))? {
            let name = entry.map_err(Error::io(&figures))?.file_name().to_string_lossy().into_owned();
            if let Some(stem) = name.strip_suffix(".png")
                && !CHARTS.contains(&stem)
            {
                pictures.push(name);
            }
        }
    }
    pictures.sort();
    let name = dir.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok(Run {
        name,
        dir: dir.to_owned(),
        record,
        recipe,
        history,
        predictions,
        classes,
        layers,
        verified,
        pictures,
    })
}

fn rows<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, Error> {
    let broken = |error: csv::Error| Error::Content { path: path.to_owned(), problem: error.to_string() };
    csv::Reader::from_path(path).map_err(broken)?.deserialize().collect::<Result<_, _>>().map_err(broken)
}

/// What became of checking a run whose record has this SHA-256.
fn in_words(verification: Option<&Verification>, record_sha256: &str) -> String {
    match verification {
        None => "not yet: cargo xtask verify-results computes its numbers again".to_owned(),
        Some(checked) if checked.record_sha256 != record_sha256 => {
            format!("not since the record was changed; before, at {}", checked.verified_at)
        }
        Some(checked) if checked.holds() => {
            format!("at {}: all holds, {} test images", checked.verified_at, checked.images)
        }
        Some(checked) => {
            format!("at {}, and does not hold: {}", checked.verified_at, checked.findings.join("; "))
        }
    }
}
