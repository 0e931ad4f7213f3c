//! A row of the summary over seeds.

use serde::{Deserialize, Serialize};

/// One row of `summary.csv`: the finished runs that differ in nothing but the seed. The order of the fields is the
/// order of the columns.
///
/// Accuracies are fractions, 0 to 1. `_std` is the sample standard deviation, with n − 1; it is empty for one run.
/// A mean is empty unless every run has the number.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SummaryRow {
    /// Variant name, as `cargo xtask list` prints it.
    pub model: String,
    /// Architecture the variant belongs to.
    pub family: String,
    /// Preset the recipe came from, or `custom`.
    pub preset: String,
    /// Data set name.
    pub dataset: String,
    /// Side of the images the network saw, in pixels.
    pub image_size: i64,
    /// Epochs the recipe asks for.
    pub epochs: u32,
    /// Images per step.
    pub batch_size: usize,
    /// Trainable parameters.
    pub params: u64,
    /// Multiply-accumulates of one forward pass on one image.
    pub macs: u64,
    /// Number of runs.
    pub n: usize,
    /// Their seeds in rising order, separated by spaces.
    pub seeds: String,
    /// Mean validation top-1 of the kept weights.
    pub val_top1_mean: Option<f64>,
    /// Its standard deviation.
    pub val_top1_std: Option<f64>,
    /// Mean test top-1.
    pub test_top1_mean: Option<f64>,
    /// Its standard deviation.
    pub test_top1_std: Option<f64>,
    /// Mean test top-5.
    pub test_top5_mean: Option<f64>,
    /// Its standard deviation.
    pub test_top5_std: Option<f64>,
    /// Mean test loss.
    pub test_loss_mean: Option<f64>,
    /// Its standard deviation.
    pub test_loss_std: Option<f64>,
    /// Mean wall-clock seconds of training.
    pub train_seconds_mean: Option<f64>,
    /// Their standard deviation.
    pub train_seconds_std: Option<f64>,
    /// Mean training images per second.
    pub images_per_second_mean: Option<f64>,
    /// Their standard deviation.
    pub images_per_second_std: Option<f64>,
    /// Published test top-1.
    pub reference_top1: Option<f64>,
    /// `test_top1_mean` − `reference_top1`.
    pub delta_top1: Option<f64>,
    /// Kind of device: `cpu` or `cuda`.
    pub device: String,
    /// Arithmetic of the network: `f32` or `bf16`.
    pub precision: String,
    /// CPU threads libtorch used.
    pub threads: i32,
    /// libtorch version.
    pub libtorch: String,
    /// SHA-256 of the data set's images and labels.
    pub data_sha256: String,
    /// SHA-256 of the recipe without its commentary, as TOML.
    pub recipe_sha256: String,
    /// Commit of all the runs, or `several` where they differ.
    pub git_commit: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_a_round_trip() {
        let row = SummaryRow {
            model: "vit_reference".into(),
            n: 2,
            seeds: "0 1".into(),
            test_top1_mean: Some(0.8231),
            images_per_second_std: None,
            git_commit: "several".into(),
            ..SummaryRow::default()
        };
        let text = crate::to_csv(std::slice::from_ref(&row)).unwrap();
        let mut reader = csv::Reader::from_reader(text.as_slice());
        assert_eq!(reader.deserialize::<SummaryRow>().next().unwrap().unwrap(), row);
    }
}
