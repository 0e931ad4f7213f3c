//! `predictions.csv`: what a run's network said of every test image.

use serde::{Deserialize, Serialize};

/// One row: the answer for one image, in the order of the test part. The order of the fields is that of the columns.
///
/// Classes are named. Probabilities are the softmax of the logits, 0 to 1.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prediction {
    /// Position of the image in the test part, from 0.
    pub image: usize,
    /// Its class.
    pub label: String,
    /// Probability of that class.
    pub label_probability: f64,
    /// The likeliest class.
    pub top1: String,
    /// Its probability.
    pub top1_probability: f64,
    /// Its probability once logits are divided by the run's temperature.
    pub top1_calibrated: f64,
    /// The next likely classes; empty where there are fewer.
    pub top2: String,
    /// The third.
    pub top3: String,
    /// The fourth.
    pub top4: String,
    /// The fifth.
    pub top5: String,
}

impl Prediction {
    /// Whether the image's class is the likeliest.
    pub fn is_right(&self) -> bool {
        self.label == self.top1
    }

    /// Whether the image's class is among the five likeliest.
    pub fn is_in_top5(&self) -> bool {
        [&self.top1, &self.top2, &self.top3, &self.top4, &self.top5].contains(&&self.label)
    }
}

/// The rows of a CSV file.
///
/// # Errors
/// The first line that is no row, with its number.
pub fn predictions_from_csv(bytes: &[u8]) -> Result<Vec<Prediction>, csv::Error> {
    csv::Reader::from_reader(bytes).deserialize().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::to_csv;

    #[test]
    fn rows_come_back_as_they_were() {
        let row = |label: &str, top1: &str, image| Prediction {
            image,
            label: label.to_owned(),
            label_probability: 0.1 + 0.2,
            top1: top1.to_owned(),
            top1_probability: 1.0 / 3.0,
            top1_calibrated: 1e-17,
            top2: "a, \"quoted\"\nname".to_owned(),
            top3: "dog".to_owned(),
            top4: String::new(),
            top5: String::new(),
        };
        let rows = [row("cat", "cat", 0), row("dog", "cat", 1), row("fox", "cat", 2)];
        let csv = to_csv(&rows).unwrap();
        let header =
            "image,label,label_probability,top1,top1_probability,top1_calibrated,top2,top3,top4,top5\n";
        assert!(csv.starts_with(header.as_bytes()));
        assert_eq!(predictions_from_csv(&csv).unwrap(), rows);
        assert_eq!(rows.each_ref().map(Prediction::is_right), [true, false, false]);
        assert_eq!(rows.each_ref().map(Prediction::is_in_top5), [true, true, false]);
        let broken = String::from_utf8(csv).unwrap().replace("\n2,", "\ntwo,");
        let error = predictions_from_csv(broken.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("record 3") && error.contains("field 0"), "{error}");
    }
}
