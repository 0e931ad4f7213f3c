//! What a finished run leaves to be looked at without its network: predictions, mistakes, a training batch, layers.

use core_layers::Model;
use run_record::layout::{LAYERS, PREDICTIONS};
use run_record::{Prediction, sha256, temperature, to_csv, visible};

use crate::Error;
use crate::data::inspect::{self, Shown};
use crate::data::presentation::Presentation;
use crate::data::source::Subset;
use crate::look::answers::Answers;
use crate::look::explain::gallery;
use crate::look::figure::png;
use crate::look::glance::shown_pictures;
use crate::look::trained::Frame;
use crate::network::registry::Architecture;
use crate::network::summary::summarize;
use crate::process::signals::Stop;
use crate::run::directory::RunDir;
use crate::run::evaluate::Metrics;

/// A finished run's network and data.
#[derive(Debug)]
pub struct Outcome<'a> {
    /// The recipe, the classes and what images are normalised by.
    pub shown: Shown<'a>,
    /// The network's description.
    pub architecture: &'a Architecture,
    /// The network, with the weights that were kept.
    pub network: &'a dyn Model,
    /// How images are fed.
    pub presentation: &'a Presentation,
    /// Images it learned from.
    pub train: Subset<'a>,
    /// Images that calibrate it.
    pub validation: Subset<'a>,
    /// Images it is tested on, if it is.
    pub test: Option<Subset<'a>>,
    /// Seed of the run's draws.
    pub seed: u64,
}

/// What the test came to.
#[derive(Debug)]
pub struct Tested {
    /// Its numbers, if there was one.
    pub test: Option<Metrics>,
    /// What logits are divided by to calibrate probabilities, fitted on the validation images.
    pub temperature: f64,
    /// SHA-256 of `predictions.csv`, likewise.
    pub predictions_sha256: Option<String>,
}

/// Mistakes that are shown.
const MISTAKES: usize = 12;
/// Images of the training batch that are shown.
const BATCH: usize = 16;
/// Side of a shown picture, in pixels.
const SIDE: u32 = 160;

impl Outcome<'_> {
    /// Tests the network and writes into the run's directory `predictions.csv`, `layers.json`, and in `figures/` the most
    /// confident mistakes and the first training batch as the network saw it; without a test, what comes from none.
    ///
    /// # Errors
    /// Those of [`Answers::of`], or a disk that is full.
    pub fn test(&self, run: &RunDir, stop: &Stop) -> Result<Tested, Error> {
        let recipe = &self.shown.recipe.train;
        let answered = |part: &Subset| Answers::of(self.network, part, self.presentation, recipe, stop);
        let tested = self.test.as_ref().map(answered).transpose()?;
        let (_, validation) = answered(&self.validation)?;
        let temperature = temperature(&validation.logits, &validation.labels);
        let layers = serde_json::to_vec_pretty(&summarize(self.architecture)?);
        run.write(LAYERS, &layers.map_err(|error| Error::io(&run.file(LAYERS))(error.into()))?)?;
        let batch = inspect::sheet(&self.shown, &self.train, (self.seed, 1), BATCH)?;
        run.write_figure("batch.png", &png(&batch)?)?;
        let (Some(part), Some((test, answers))) = (&self.test, tested) else {
            return Ok(Tested { test: None, temperature, predictions_sha256: None });
        };
        let rows = answers.rows(self.shown.class_names, temperature);
        let csv = to_csv(&rows).map_err(|error| Error::io(&run.file(PREDICTIONS))(error.into()))?;
        run.write(PREDICTIONS, &csv)?;
        self.draw_mistakes(run, part, &rows)?;
        Ok(Tested { test: Some(test), temperature, predictions_sha256: Some(sha256(&csv)) })
    }

    fn draw_mistakes(&self, run: &RunDir, test: &Subset, rows: &[Prediction]) -> Result<(), Error> {
        let mut mistakes: Vec<&Prediction> = rows.iter().filter(|row| !row.is_right()).collect();
        mistakes.sort_by(|a, b| b.top1_probability.total_cmp(&a.top1_probability));
        mistakes.truncate(MISTAKES);
        if mistakes.is_empty() {
            return Ok(());
        }
        let positions: Vec<i64> = mistakes.iter().map(|row| (test.range.start + row.image) as i64).collect();
        let pictures = shown_pictures(test.set, &positions, &Frame::of(self.shown.recipe), SIDE)?;
        let caption = |row: &&Prediction| {
            let called = format!("called {} {:.1} %", visible(&row.top1), 100.0 * row.top1_probability);
            vec![format!("is {}", visible(&row.label)), called]
        };
        let captioned: Vec<_> = pictures.into_iter().zip(mistakes.iter().map(caption)).collect();
        let title = format!("{}: most confident mistakes", self.architecture.model);
        let figure = gallery(&title, &captioned);
        run.write_figure("mistakes.png", &png(&figure.sheet())?)?;
        run.write_figure("mistakes.svg", figure.svg()?.as_bytes())
    }
}
