//! A network's answers for parts of a data set, kept while it is evaluated, and as the rows of `predictions.csv`.

use core_layers::Model;
use run_record::{Prediction, TrainRecipe};
use tch::{Device, Kind, Tensor};

use crate::Error;
use crate::data::presentation::Presentation;
use crate::data::source::Subset;
use crate::process::signals::Stop;
use crate::run::evaluate::{Metrics, evaluate_each};

/// Logits and labels of images in the order in which they were evaluated.
#[derive(Debug, Default)]
pub struct Answers {
    /// The class of each image.
    pub labels: Vec<usize>,
    /// A logit per class, image by image.
    pub logits: Vec<Vec<f64>>,
}

impl Answers {
    /// Those of a network for a part of a data set, with what they measure.
    ///
    /// # Errors
    /// Those of [`evaluate_each`].
    pub fn of(
        network: &dyn Model,
        part: &Subset,
        presentation: &Presentation,
        train: &TrainRecipe,
        stop: &Stop,
    ) -> Result<(Metrics, Self), Error> {
        let mut answers = Self::default();
        let part = std::slice::from_ref(part);
        let each = &mut |logits: &Tensor, labels: &Tensor| answers.add(logits, labels);
        let metrics = evaluate_each(network, part, presentation, train, stop, false, each)?;
        Ok((metrics, answers))
    }

    /// Keeps a batch: logits `[B, K]` and labels `[B]`.
    ///
    /// # Errors
    /// libtorch's refusal.
    pub fn add(&mut self, logits: &Tensor, labels: &Tensor) -> Result<(), Error> {
        let logits = logits.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?;
        self.logits.extend(Vec::<Vec<f64>>::try_from(&logits)?);
        let labels = Vec::<i64>::try_from(&labels.f_to_device(Device::Cpu)?)?;
        self.labels.extend(labels.into_iter().map(|label| label as usize));
        Ok(())
    }

    /// The likeliest class of each image, and its probability once logits are divided by `temperature`. Of equal ones
    /// the first.
    pub fn best(&self, temperature: f64) -> (Vec<usize>, Vec<f64>) {
        let best = |logits: &Vec<f64>| {
            let class = ranked(logits).first().copied().unwrap_or_default();
            (class, share(logits, class, temperature))
        };
        self.logits.iter().map(best).unzip()
    }

    /// The probability of a class for an image.
    pub fn probability(&self, image: usize, class: usize) -> Option<f64> {
        self.logits.get(image).map(|logits| share(logits, class, 1.0))
    }

    /// The rows of `predictions.csv`, with `temperature` to calibrate by.
    pub fn rows(&self, class_names: &[String], temperature: f64) -> Vec<Prediction> {
        let name = |class: usize| class_names.get(class).cloned().unwrap_or_default();
        let row = |(image, (label, logits)): (usize, (&usize, &Vec<f64>))| {
            let best = ranked(logits);
            let other = |rank: usize| best.get(rank).map(|class| name(*class)).unwrap_or_default();
            let top1 = best.first().copied().unwrap_or_default();
            Prediction {
                image,
                label: name(*label),
                label_probability: share(logits, *label, 1.0),
                top1: name(top1),
                top1_probability: share(logits, top1, 1.0),
                top1_calibrated: share(logits, top1, temperature),
                top2: other(1),
                top3: other(2),
                top4: other(3),
                top5: other(4),
            }
        };
        self.labels.iter().zip(&self.logits).enumerate().map(row).collect()
    }
}

/// Classes from the largest logit to the least; of equal ones the first comes first.
fn ranked(logits: &[f64]) -> Vec<usize> {
    let mut classes: Vec<usize> = (0..logits.len()).collect();
    classes.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    classes
}

/// The probability of a class: the softmax of logits over a temperature.
fn share(logits: &[f64], class: usize, temperature: f64) -> f64 {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp = |logit: f64| ((logit - largest) / temperature).exp();
    logits.get(class).map_or(0.0, |logit| exp(*logit)) / logits.iter().copied().map(exp).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_name_the_likeliest_classes_and_their_probabilities() {
        let mut answers = Answers::default();
        let (three, nine) = (3f32.ln(), 9f32.ln());
        let logits = Tensor::from_slice(&[0f32, nine, three, nine, 0., 0.]).reshape([2, 3]);
        answers.add(&logits, &Tensor::from_slice(&[2i64, 0])).unwrap();
        let names = ["ant", "bee", "cat"].map(str::to_owned);
        let rows = answers.rows(&names, 2.0);
        let first = &rows[0];
        assert_eq!((first.image, first.label.as_str(), first.top1.as_str()), (0, "cat", "bee"));
        assert_eq!([&first.top2, &first.top3, &first.top4, &first.top5], ["cat", "ant", "", ""]);
        // Shares of 1, 9 and 3; at a temperature of 2, of their roots.
        assert!((first.label_probability - 3.0 / 13.0).abs() < 1e-6);
        assert!((first.top1_probability - 9.0 / 13.0).abs() < 1e-6);
        assert!((first.top1_calibrated - 3.0 / (4.0 + 3f64.sqrt())).abs() < 1e-6);
        // Of equal ones the first.
        assert_eq!([&rows[1].top1, &rows[1].top2, &rows[1].top3], ["ant", "bee", "cat"]);
        assert_eq!(answers.best(1.0).0, [1, 0]);
    }
}
