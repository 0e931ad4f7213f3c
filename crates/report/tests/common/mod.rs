//! Runs that no trainer made.

#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "a test that cannot go on fails, and no test uses all of it"
)]

use std::fs;
use std::path::Path;

use run_record::{EpochStats, Prediction, RECORD_FORMAT, ResultRow, RunRecord, to_csv};

/// The record of a complete run.
pub fn record(name: &str, seed: u64, top1: f64) -> RunRecord {
    RunRecord {
        format: RECORD_FORMAT,
        result: ResultRow {
            model: name.into(),
            family: "vit".into(),
            preset: "quick".into(),
            dataset: "digits".into(),
            image_size: 32,
            seed,
            epochs: 3,
            batch_size: 64,
            params: 594_186,
            macs: 148_113_920,
            best_epoch: Some(2),
            val_top1: Some(top1),
            test_top1: Some(top1),
            test_top5: Some(1.0),
            test_loss: Some(0.1),
            reference_top1: None,
            reference_top5: None,
            delta_top1: None,
            train_seconds: Some(99.0),
            images_per_second: Some(60.4),
            peak_memory_mb: None,
            device: "cpu".into(),
            precision: "f32".into(),
            threads: 2,
            libtorch: "2.11.0".into(),
            data_sha256: "data".into(),
            recipe_sha256: name.into(),
            git_commit: String::new(),
            started_at: "2026-01-01T00:00:00Z".into(),
            status: "complete".into(),
        },
        weights_sha256: None,
        predictions_sha256: None,
        history_sha256: None,
        temperature: Some(1.25),
        command: vec!["trainer".into(), "it's".into()],
        trainer_version: "0.1.0".into(),
        cpu: String::new(),
        gpu: None,
        driver: None,
        kernels: None,
        deterministic: false,
        skipped_files: 0,
        resumed_from: Vec::new(),
    }
}

/// Answers to so many images of one class, those in `wrong` wrong.
pub fn predictions(images: usize, wrong: impl Fn(usize) -> bool, class: &str) -> Vec<Prediction> {
    let row = |image: usize| Prediction {
        image,
        label: class.into(),
        label_probability: 0.5,
        top1: if wrong(image) { "other".into() } else { class.into() },
        top1_probability: 0.9,
        top1_calibrated: 0.8,
        top2: String::new(),
        top3: String::new(),
        top4: String::new(),
        top5: String::new(),
    };
    (0..images).map(row).collect()
}

/// Writes `record.json`, and `predictions.csv` if there are predictions.
pub fn write_run(dir: &Path, record: &RunRecord, predictions: &[Prediction]) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("record.json"), serde_json::to_vec(record).unwrap()).unwrap();
    if !predictions.is_empty() {
        fs::write(dir.join("predictions.csv"), to_csv(predictions).unwrap()).unwrap();
    }
}

/// Writes a `history.csv` of three epochs.
pub fn write_history(dir: &Path) {
    let epoch = |epoch: u32| EpochStats {
        epoch,
        train_loss: 1.0 / f64::from(epoch),
        train_top1: 0.25 * f64::from(epoch),
        train_top5: 1.0,
        val_loss: 1.5 / f64::from(epoch),
        val_top1: 0.3 * f64::from(epoch),
        val_top5: 1.0,
        ..EpochStats::default()
    };
    fs::write(dir.join("history.csv"), to_csv(&[1, 2, 3].map(epoch)).unwrap()).unwrap();
}

/// The smallest PNG: one white pixel.
pub const DOT: [u8; 69] = [
    0x89, 0x50, 0x4e, 0x47, 0xd, 0xa, 0x1a, 0xa, 0x0, 0x0, 0x0, 0xd, 0x49, 0x48, 0x44, 0x52, 0x0, 0x0, 0x0,
    0x1, 0x0, 0x0, 0x0, 0x1, 0x8, 0x2, 0x0, 0x0, 0x0, 0x90, 0x77, 0x53, 0xde, 0x0, 0x0, 0x0, 0xc, 0x49, 0x44,
    0x41, 0x54, 0x78, 0x9c, 0x63, 0xf8, 0xff, 0xff, 0x3f, 0x0, 0x5, 0xfe, 0x2, 0xfe, 0xd, 0xef, 0x46, 0xb8,
    0x0, 0x0, 0x0, 0x0, 0x49, 0x45, 0x4e, 0x44, 0xae, 0x42, 0x60, 0x82,
];
