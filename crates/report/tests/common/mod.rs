//! Runs as a trainer would leave them, for tests.

#![allow(dead_code, reason = "no test program needs all of it")]

use std::fs;
use std::path::{Path, PathBuf};

use run_record::{EpochStats, Prediction, RECORD_FORMAT, ResultRow, RunRecord, to_csv};

/// A finished run to be made up.
pub struct Run<'a> {
    pub model: &'a str,
    pub family: &'a str,
    pub seed: u64,
    /// How many of its test images, the first ones, it gets wrong.
    pub wrong: usize,
    /// The class of all of them.
    pub class: &'a str,
    /// Which data it is of.
    pub data: &'a str,
    /// The recipe, as TOML; none for none.
    pub recipe: Option<&'a str>,
}

impl Default for Run<'_> {
    fn default() -> Self {
        Self { model: "model", family: "vit", seed: 0, wrong: 0, class: "cat", data: "data", recipe: None }
    }
}

/// Test images of a run.
pub const IMAGES: usize = 40;

/// The smallest PNG: one white pixel.
const DOT: [u8; 69] = [
    0x89, 0x50, 0x4e, 0x47, 0xd, 0xa, 0x1a, 0xa, 0x0, 0x0, 0x0, 0xd, 0x49, 0x48, 0x44, 0x52, 0x0, 0x0, 0x0,
    0x1, 0x0, 0x0, 0x0, 0x1, 0x8, 0x2, 0x0, 0x0, 0x0, 0x90, 0x77, 0x53, 0xde, 0x0, 0x0, 0x0, 0xc, 0x49, 0x44,
    0x41, 0x54, 0x78, 0x9c, 0x63, 0xf8, 0xff, 0xff, 0x3f, 0x0, 0x5, 0xfe, 0x2, 0xfe, 0xd, 0xef, 0x46, 0xb8,
    0x0, 0x0, 0x0, 0x0, 0x49, 0x45, 0x4e, 0x44, 0xae, 0x42, 0x60, 0x82,
];

impl Run<'_> {
    /// Its directory in a results directory.
    pub fn directory(&self, results: &Path) -> PathBuf {
        results.join("runs").join(format!("{}--s{}", self.model, self.seed))
    }

    /// Its record.
    pub fn record(&self) -> RunRecord {
        let top1 = (IMAGES - self.wrong) as f64 / IMAGES as f64;
        let result = ResultRow {
            model: self.model.into(),
            family: self.family.into(),
            preset: "quick".into(),
            dataset: "digits".into(),
            image_size: 32,
            seed: self.seed,
            epochs: 3,
            batch_size: 64,
            // Of more mistakes more parameters, so that orders differ.
            params: 594_186 * (1 + self.wrong as u64),
            macs: 148_113_920,
            best_epoch: Some(2),
            val_top1: Some(top1),
            test_top1: Some(top1),
            test_top5: Some(1.0),
            test_loss: Some(0.1),
            train_seconds: Some(99.0),
            images_per_second: Some(60.4),
            device: "cpu".into(),
            precision: "f32".into(),
            threads: 2,
            libtorch: "2.11.0".into(),
            data_sha256: self.data.into(),
            recipe_sha256: self.model.into(),
            started_at: "2026-01-01T00:00:00Z".into(),
            status: "complete".into(),
            ..ResultRow::default()
        };
        RunRecord {
            format: RECORD_FORMAT,
            result,
            weights_sha256: None,
            predictions_sha256: None,
            history_sha256: None,
            temperature: Some(1.25),
            command: vec!["trainer".into(), "it's".into()],
            trainer_version: "0.1.0".into(),
            cpu: String::new(),
            gpu: None,
            driver: None,
            deterministic: false,
            skipped_files: 0,
            resumed_from: Vec::new(),
        }
    }

    /// Writes all of it.
    pub fn write(&self, results: &Path) {
        let dir = self.directory(results);
        fs::create_dir_all(dir.join("figures")).unwrap();
        fs::write(dir.join("record.json"), serde_json::to_vec(&self.record()).unwrap()).unwrap();
        fs::write(dir.join("figures/mistakes.png"), DOT).unwrap();
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
        let row = |image: usize| Prediction {
            image,
            label: self.class.into(),
            label_probability: 0.5,
            top1: if image < self.wrong { "other".into() } else { self.class.into() },
            top1_probability: 0.9,
            top1_calibrated: 0.8,
            ..Prediction::default()
        };
        fs::write(dir.join("predictions.csv"), to_csv(&(0..IMAGES).map(row).collect::<Vec<_>>()).unwrap())
            .unwrap();
        if let Some(recipe) = self.recipe {
            fs::write(dir.join("recipe.toml"), recipe).unwrap();
        }
    }
}
