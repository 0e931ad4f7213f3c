//! What the runs of a results directory left behind.

use std::fs;
use std::path::{Path, PathBuf};

use run_record::layout::{FIGURES, HISTORY, PREDICTIONS, RECIPE, RECORD, RUNS};
use run_record::{EpochStats, Prediction, Recipe, RunRecord, STATUS_COMPLETE, predictions_from_csv};

use crate::Error;

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
    /// Files in `figures/` that are PNG pictures, by name.
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
    let record = RunRecord::parse(&text(&path)?).map_err(|problem| broken(&path, problem))?;
    let recipe = match there(RECIPE) {
        Some(path) => {
            Some(Recipe::parse(&text(&path)?).map_err(|problem| broken(&path, problem.to_string()))?)
        }
        None => None,
    };
    let history = match there(HISTORY) {
        Some(path) => csv::Reader::from_reader(text(&path)?.as_bytes())
            .deserialize()
            .collect::<Result<_, _>>()
            .map_err(|error| broken(&path, error.to_string()))?,
        None => Vec::new(),
    };
    let predictions = match there(PREDICTIONS) {
        Some(path) => {
            predictions_from_csv(text(&path)?.as_bytes()).map_err(|error| broken(&path, error.to_string()))?
        }
        None => Vec::new(),
    };
    let mut pictures = Vec::new();
    let figures = dir.join(FIGURES);
    if figures.is_dir() {
        for entry in fs::read_dir(&figures).map_err(Error::io(&figures))? {
            let name = entry.map_err(Error::io(&figures))?.file_name().to_string_lossy().into_owned();
            if name.ends_with(".png") {
                pictures.push(name);
            }
        }
    }
    pictures.sort();
    let name = dir.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok(Run { name, dir: dir.to_owned(), record, recipe, history, predictions, pictures })
}
