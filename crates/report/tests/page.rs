//! The page of runs that a test writes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::Path;

use run_record::{Prediction, RECORD_FORMAT, ResultRow, RunRecord, to_csv};

fn write_run(results: &Path, name: &str, seed: u64, wrong: usize, class: &str) {
    let images = 40;
    let top1 = (images - wrong) as f64 / images as f64;
    let record = RunRecord {
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
        deterministic: false,
        skipped_files: 0,
        resumed_from: Vec::new(),
    };
    let row = |image: usize| Prediction {
        image,
        label: class.into(),
        label_probability: 0.5,
        top1: if image < wrong { "other".into() } else { class.into() },
        top1_probability: 0.9,
        top1_calibrated: 0.8,
        top2: String::new(),
        top3: String::new(),
        top4: String::new(),
        top5: String::new(),
    };
    let dir = results.join("runs").join(format!("{name}--s{seed}"));
    fs::create_dir_all(dir.join("figures")).unwrap();
    fs::write(dir.join("record.json"), serde_json::to_vec(&record).unwrap()).unwrap();
    fs::write(dir.join("figures/mistakes.png"), b"a picture").unwrap();
    let rows: Vec<_> = (0..images).map(row).collect();
    fs::write(dir.join("predictions.csv"), to_csv(&rows).unwrap()).unwrap();
}

#[test]
fn the_page_says_who_won_and_whether_that_is_chance() {
    let results = tempfile::tempdir().unwrap();
    write_run(results.path(), "good", 0, 2, "cat");
    write_run(results.path(), "bad", 0, 22, "cat");
    let written = report::write(results.path()).unwrap();
    assert_eq!((written.runs, written.problems.len()), (2, 0));
    let html = fs::read_to_string(&written.page).unwrap();
    for words in [
        // Wilson's interval of 38 of 40.
        "good--s0 is first with 95.00 % test top-1 (95 % interval 83.50 % to 98.62 %), 50.00 points before bad--s0: more than chance.",
        // Twenty images that only one has right, none that only the other has: 2 / 2^20.
        "<td class=\"number\">20</td><td class=\"number\">0</td><td class=\"number\">&lt; 0.0001</td>",
        // |0.95 − 0.9|, and |0.95 − 0.8| with temperature.
        "equal width: 5.00 %, and 15.00 % with the temperature 1.250",
        "trainer &#x27;it&#x27;\\&#x27;&#x27;s&#x27;",
    ] {
        assert!(html.contains(words), "{words}");
    }
    let chart = results.path().join("runs/good--s0/figures/reliability.svg");
    assert!(fs::read_to_string(chart).unwrap().starts_with("<svg xmlns"));
}

#[test]
fn names_from_outside_stay_text_and_nothing_is_fetched() {
    let results = tempfile::tempdir().unwrap();
    write_run(results.path(), "a", 0, 1, "<script>alert(1)</script>");
    write_run(results.path(), "\"><img src=x onerror=alert(1)>", 1, 1, "cat");
    let html = fs::read_to_string(report::write(results.path()).unwrap().page).unwrap();
    assert!(!html.contains("<script>alert") && !html.contains("<img src=x"));
    assert_eq!(html.matches("<script").count(), 1);
    assert!(!html.contains("src=\"http") && !html.contains("url(") && !html.contains("@import"));
}

#[test]
fn a_run_that_cannot_be_read_is_named_and_two_hundred_fit() {
    let results = tempfile::tempdir().unwrap();
    (0..200).for_each(|seed| write_run(results.path(), &format!("m{}", seed % 10), seed, 1, "cat"));
    let broken = results.path().join("runs/broken");
    fs::create_dir_all(&broken).unwrap();
    fs::write(broken.join("record.json"), "{\"format\": 1,").unwrap();
    let written = report::write(results.path()).unwrap();
    assert_eq!(written.runs, 200);
    assert!(written.problems[0].contains("broken/record.json"), "{:?}", written.problems);
    assert!(fs::metadata(&written.page).unwrap().len() < 8 << 20);
    assert!(report::write(&results.path().join("typo")).is_err());
}
