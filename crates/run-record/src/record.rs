//! What a run leaves behind: a row per epoch, a record, and its row in the results table.

use serde::{Deserialize, Serialize};

/// Version of the `record.json` layout; a reader refuses a newer one.
pub const RECORD_FORMAT: u32 = 6;

/// [`ResultRow::status`] of a run that reached its last epoch and was tested.
pub const STATUS_COMPLETE: &str = "complete";

/// [`ResultRow::status`] while a run trains, and for good if it was killed.
pub const STATUS_RUNNING: &str = "running";

/// [`ResultRow::status`] of a run that was asked to stop, and can go on.
pub const STATUS_STOPPED: &str = "stopped";

/// How [`ResultRow::status`] of a run that failed begins; the reason follows.
pub const STATUS_FAILED: &str = "failed: ";

/// What the error of a device that can be used for no network begins with, in [`ResultRow::status`] too.
pub const DEVICE_FAILED: &str = "the device cannot be used";

/// One row of `history.csv`.
///
/// Two runs of one recipe with one seed on one machine's CPU have identical rows, except for the
/// last three columns, which measure time.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct EpochStats {
    /// Counted from 1.
    pub epoch: u32,
    /// Learning rate of the epoch's last step.
    pub lr: f64,
    /// Mean training loss over the epoch, in train mode, while the weights moved.
    pub train_loss: f64,
    /// Training top-1 accuracy over the epoch, likewise; 0 to 1.
    pub train_top1: f64,
    /// Training top-5 accuracy over the epoch, likewise.
    pub train_top5: f64,
    /// Mean validation loss after the epoch, in eval mode.
    pub val_loss: f64,
    /// Validation top-1 accuracy after the epoch; 0 to 1.
    pub val_top1: f64,
    /// Validation top-5 accuracy after the epoch; 0 to 1.
    pub val_top5: f64,
    /// Validation loss of the averaged weights, where there are any.
    pub ema_val_loss: Option<f64>,
    /// Their validation top-1 accuracy.
    pub ema_val_top1: Option<f64>,
    /// Their validation top-5 accuracy.
    pub ema_val_top5: Option<f64>,
    /// Training images per second of training time.
    pub images_per_second: f64,
    /// Wall-clock seconds of training in this epoch.
    pub train_seconds: f64,
    /// Wall-clock seconds of validation in this epoch.
    pub val_seconds: f64,
}

impl EpochStats {
    /// Validation top-1 of the weights a run would keep after this epoch: the averaged ones where there are any.
    pub fn kept_top1(&self) -> f64 {
        self.ema_val_top1.unwrap_or(self.val_top1)
    }

    /// Their validation loss.
    pub fn kept_loss(&self) -> f64 {
        self.ema_val_loss.unwrap_or(self.val_loss)
    }

    /// Their validation top-5.
    pub fn kept_top5(&self) -> f64 {
        self.ema_val_top5.unwrap_or(self.val_top5)
    }
}

/// One row of `results.csv`; the order of the fields is the order of the columns.
///
/// Accuracies are fractions, 0 to 1. An empty cell is a number the run does not have.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResultRow {
    /// Variant name, as `cargo xtask list` prints it.
    pub model: String,
    /// Architecture the variant belongs to.
    pub family: String,
    /// Preset the recipe came from, or `custom` for a recipe file.
    pub preset: String,
    /// Data set name.
    pub dataset: String,
    /// Side of the images the network saw, in pixels.
    pub image_size: i64,
    /// Seed of every random draw.
    pub seed: u64,
    /// Epochs the recipe asks for.
    pub epochs: u32,
    /// Images per step.
    pub batch_size: usize,
    /// Trainable parameters.
    pub params: u64,
    /// Multiply-accumulates of one forward pass on one image.
    pub macs: u64,
    /// Epoch whose weights were kept and tested: the best by validation top-1, or the last.
    pub best_epoch: Option<u32>,
    /// Validation top-1 at that epoch.
    pub val_top1: Option<f64>,
    /// Test top-1 of those weights.
    pub test_top1: Option<f64>,
    /// Test top-5 of those weights.
    pub test_top5: Option<f64>,
    /// Mean test loss of those weights.
    pub test_loss: Option<f64>,
    /// Published test top-1.
    pub reference_top1: Option<f64>,
    /// Published test top-5.
    pub reference_top5: Option<f64>,
    /// `test_top1` − `reference_top1`.
    pub delta_top1: Option<f64>,
    /// Wall-clock seconds of training, validation and testing left out.
    pub train_seconds: Option<f64>,
    /// Training images per second over the whole run.
    pub images_per_second: Option<f64>,
    /// Largest memory so far, in MiB: resident memory of the process on the CPU, tensors on the card on CUDA.
    pub peak_memory_mb: Option<f64>,
    /// `cpu` or `cuda:N`.
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
    /// Commit of the working tree, `-dirty` appended if it had changes; empty outside a checkout.
    pub git_commit: String,
    /// Start of the run, RFC 3339 in UTC.
    pub started_at: String,
    /// `complete`, `running`, `stopped`, or `failed: …`.
    pub status: String,
}

impl ResultRow {
    /// Whether the run failed because its device can be used for no network.
    pub fn device_failed(&self) -> bool {
        self.status.strip_prefix(STATUS_FAILED).is_some_and(|error| error.starts_with(DEVICE_FAILED))
    }
}

/// `record.json`: the run's result row and what else one needs to account for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRecord {
    /// [`RECORD_FORMAT`] of the writer.
    pub format: u32,
    /// The row of `results.csv`.
    pub result: ResultRow,
    /// SHA-256 of the kept weights, once the run is complete.
    pub weights_sha256: Option<String>,
    /// SHA-256 of `predictions.csv`, once the run is complete. (Not before format 5.)
    pub predictions_sha256: Option<String>,
    /// SHA-256 of `history.csv`, once the run is complete. (Not before format 5.)
    pub history_sha256: Option<String>,
    /// What logits are divided by to make probabilities as confident as they are right, fitted on the validation images
    /// ([`crate::temperature`]); once the run is complete. (Not before format 5.)
    pub temperature: Option<f64>,
    /// The command line of the trainer, of the program its name alone.
    pub command: Vec<String>,
    /// Version of the trainer.
    pub trainer_version: String,
    /// Processor model.
    pub cpu: String,
    /// What NVIDIA calls the card, for a run on CUDA. (Not before format 4.)
    #[serde(default)]
    pub gpu: Option<String>,
    /// Version of its driver, where that is known. (Not before format 4.)
    #[serde(default)]
    pub driver: Option<String>,
    /// The instructions that our own operations used on the CPU (`avx512_bf16`, `avx512`, `avx2`, `plain`, or `off`).
    /// (Not before format 6.)
    #[serde(default)]
    pub kernels: Option<String>,
    /// Whether every part of the run was trained with deterministic algorithms only (`--deterministic`). On the CPU
    /// that makes no difference. (Not before format 4.)
    #[serde(default)]
    pub deterministic: bool,
    /// Files of an image folder that were left out, being no images or damaged. (Not in format 1.)
    #[serde(default)]
    pub skipped_files: usize,
    /// The checkpoints the run went on from, in order; none for a run in one piece. (Not before format 3.)
    #[serde(default)]
    pub resumed_from: Vec<String>,
}

impl RunRecord {
    /// Reads `record.json`.
    ///
    /// # Errors
    /// What is wrong, in one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: serde_json::Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        // Before anything else: a newer layout may have fields this version does not know.
        if let Some(format) = value.get("format").and_then(serde_json::Value::as_u64)
            && format > u64::from(RECORD_FORMAT)
        {
            return Err(format!(
                "format = {format} is newer than {RECORD_FORMAT}, the newest this version reads: update the project"
            ));
        }
        serde_json::from_value(value).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> ResultRow {
        ResultRow {
            model: "convmixer_reference".into(),
            family: "convmixer".into(),
            preset: "reference".into(),
            dataset: "cifar10".into(),
            image_size: 32,
            seed: 0,
            epochs: 10,
            batch_size: 128,
            params: 594_186,
            macs: 148_113_920,
            best_epoch: Some(8),
            val_top1: Some(0.8352),
            test_top1: Some(0.8271),
            test_top5: None,
            test_loss: Some(0.5329),
            reference_top1: Some(0.8271),
            reference_top5: None,
            delta_top1: Some(0.0),
            train_seconds: Some(12.5),
            images_per_second: Some(60.0),
            peak_memory_mb: None,
            device: "cpu".into(),
            precision: "f32".into(),
            threads: 2,
            libtorch: "2.11.0".into(),
            data_sha256: "aa".into(),
            recipe_sha256: "bb".into(),
            git_commit: String::new(),
            started_at: "2026-01-01T00:00:00Z".into(),
            status: STATUS_COMPLETE.into(),
        }
    }

    #[test]
    fn a_device_that_failed_is_told_from_a_run_that_failed() {
        let failed = |status: String| ResultRow { status, ..row() }.device_failed();
        assert!(failed(format!("failed: {DEVICE_FAILED}: no kernel image is available")));
        assert!(!failed("failed: out of memory".into()) && !failed(STATUS_COMPLETE.into()));
    }

    #[test]
    fn rows_survive_a_round_trip() {
        let text = crate::to_csv(&[row()]).unwrap();
        let mut reader = csv::Reader::from_reader(text.as_slice());
        assert_eq!(reader.deserialize::<ResultRow>().next().unwrap().unwrap(), row());
    }

    #[test]
    fn a_record_survives_a_round_trip_and_refuses_unknown_fields() {
        let record = RunRecord {
            format: RECORD_FORMAT,
            result: row(),
            weights_sha256: None,
            predictions_sha256: None,
            history_sha256: None,
            temperature: None,
            command: vec!["trainer".into(), "train".into()],
            trainer_version: "0.1.0".into(),
            cpu: "a processor".into(),
            gpu: Some("a card".into()),
            driver: Some("580.95.05".into()),
            kernels: Some("avx2".into()),
            deterministic: true,
            skipped_files: 3,
            resumed_from: vec!["epoch-0002".into()],
        };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(RunRecord::parse(&text).unwrap(), record);
        let spoiled = text.replacen("\"format\"", "\"formats\"", 1);
        assert!(RunRecord::parse(&spoiled).unwrap_err().contains("formats"));
        let older = text.replacen("\"format\":6", "\"format\":1", 1);
        let older = older.replacen(",\"skipped_files\":3,\"resumed_from\":[\"epoch-0002\"]", "", 1);
        let cards =
            ",\"gpu\":\"a card\",\"driver\":\"580.95.05\",\"kernels\":\"avx2\",\"deterministic\":true";
        let older = older.replacen(cards, "", 1);
        let older = RunRecord::parse(&older).unwrap();
        assert_eq!((older.skipped_files, older.gpu, older.deterministic), (0, None, false));
        let newer = text.replacen("\"format\":6", "\"format\":7,\"another\":3", 1);
        assert!(RunRecord::parse(&newer).unwrap_err().starts_with("format = 7 is newer"));
    }
}
