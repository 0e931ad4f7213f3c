//! `search` and `search ablate`: killed and gone on with, with trials that fail, and once with the real trainer.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Plays the trainer: notes each run in `log`, and leaves a record and a history whose accuracy follows from the recipe
/// and its epochs. FAULT is done first.
const TRAINER: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
  case "$1" in --recipe) recipe=$2 ;; --out) run=$2 ;; --no-test) tested=no ;; esac
  shift
done
[ "$tested" = no ] || exit 7
name=$(basename "$run")
echo "$name" >> LOG
mkdir -p "$run"
record() { sed "s|VAL|$2|; s|STATUS|$1|" DIR/record.json > "$run/record.json"; }
FAULT
lr=$(sed -n 's/^lr = //p' "$recipe")
epochs=$(sed -n 's/^epochs = //p' "$recipe")
val=$(awk "BEGIN { printf \"%.6f\", 0.5 + $lr * 10 + $epochs / 1000 }")
printf 'epoch,lr,train_loss,train_top1,train_top5,val_loss,val_top1,val_top5,ema_val_loss,ema_val_top1,ema_val_top5,images_per_second,train_seconds,val_seconds\n2,0,0,0,0,0.25,0,0,,,,1,1,1\n' > "$run/history.csv"
record complete "$val"
"#;

const SPACE: &str = "optimizer.lr = { linear = [1e-3, 1e-2] }\naugment.zoom = [\"\", 0.25]\n";

/// A workspace with a trainer that has this fault, and a space.
fn workspace(fault: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().display().to_string();
    let trainer =
        TRAINER.replace("FAULT", fault).replace("LOG", &format!("{place}/log")).replace("DIR", &place);
    common::workspace(dir.path(), "quick", &trainer);
    let record = r#"{ "format": 6, "result": { "model": "a", "family": "a", "preset": "custom", "dataset": "digits",
"image_size": 32, "seed": 0, "epochs": 1, "batch_size": 1, "params": 1, "macs": 1, "best_epoch": 2, "val_top1": VAL,
"test_top1": null, "test_top5": null, "test_loss": null, "reference_top1": null, "reference_top5": null,
"delta_top1": null, "train_seconds": 1.5, "images_per_second": 1.0, "peak_memory_mb": null, "device": "cpu",
"precision": "f32", "threads": 1, "libtorch": "2.11.0", "data_sha256": "", "recipe_sha256": "", "git_commit": "",
"started_at": "", "status": "STATUS" }, "weights_sha256": null, "predictions_sha256": null, "history_sha256": null,
"temperature": null, "command": [], "trainer_version": "0.1.0", "cpu": "" }"#;
    fs::write(dir.path().join("record.json"), record).unwrap();
    fs::write(dir.path().join("space.toml"), SPACE).unwrap();
    dir
}

fn search(dir: &Path, more: &[&str]) -> Output {
    common::xtask(dir)
        .args(["search", "--recipe", "recipes/quick/a.toml", "--space", "space.toml", "--device", "cpu"])
        .args(["--trials", "9", "--first-epochs", "2", "--out", "found"])
        .args(more)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn table(dir: &Path) -> Vec<Vec<String>> {
    let mut reader = csv::Reader::from_path(dir.join("found/trials.csv")).unwrap();
    reader.records().map(|row| row.unwrap().iter().map(str::to_owned).collect()).collect()
}

#[test]
fn a_search_that_was_killed_goes_on_and_ends_as_one_that_was_not() {
    let whole = workspace("");
    let output = search(whole.path(), &[]);
    assert!(output.status.success(), "{}", said(&output));
    let rows = table(whole.path());
    let column = |n: usize| -> Vec<&str> { rows.iter().map(|row| row[n].as_str()).collect() };
    // Nine for 2 epochs, three for 6, one for all 30 of the recipe and the recipe itself.
    assert_eq!(column(0).concat(), "11111111122233");
    assert_eq!(column(2).join(" "), "2 2 2 2 2 2 2 2 2 6 6 6 30 30");
    assert_eq!(column(1)[..9].concat(), "012345678");
    assert_eq!(column(1)[12], "0");
    // The higher the rate, the better: the three highest go on, and then the highest.
    let mut by_rate: Vec<&Vec<String>> = rows[..9].iter().collect();
    by_rate.sort_by(|a, b| b[4].parse::<f64>().unwrap().total_cmp(&a[4].parse().unwrap()));
    let mut best: Vec<&str> = by_rate[..3].iter().map(|row| row[1].as_str()).collect();
    best.sort_unstable();
    assert_eq!(column(1)[9..12], best);
    assert_eq!(column(1)[13], by_rate[0][1]);
    let recipe = fs::read_to_string(whole.path().join("found/best.toml")).unwrap();
    assert!(
        recipe.contains(&format!("\nlr = {}\n", by_rate[0][4])) && recipe.contains("\nepochs = 30\n"),
        "{recipe}"
    );
    assert!(said(&output).contains(&format!("trial {} is best", by_rate[0][1])), "{}", said(&output));

    // Killed at once and for good, in the first rung and in the last.
    let killed = workspace(
        "case $name in rung1-trial004|rung3-trial000) [ -e \"$run/x\" ] || { : > \"$run/x\"; kill -9 $PPID; exit 9; } ;; esac",
    );
    for _ in 0..2 {
        assert_eq!(search(killed.path(), &[]).status.code(), None);
    }
    let output = search(killed.path(), &[]);
    assert!(output.status.success(), "{}", said(&output));
    let both = |file: &str| {
        [&whole, &killed].map(|dir| fs::read_to_string(dir.path().join("found").join(file)).unwrap())
    };
    for file in ["trials.csv", "best.toml", "base.toml"] {
        let [one, other] = both(file);
        assert_eq!(one, other, "{file}");
    }
    // Only the two that were cut off were started twice; a search that has ended starts nothing.
    let log = || fs::read_to_string(killed.path().join("log")).unwrap();
    assert_eq!(log().lines().count(), 14 + 2, "{}", log());
    assert!(search(killed.path(), &[]).status.success());
    assert_eq!(log().lines().count(), 14 + 2, "{}", log());

    // Another search is not mixed into it.
    for (more, words) in [(["--eta", "2"], "other settings"), (["--seed", "1"], "other settings")] {
        let output = search(killed.path(), &more);
        assert_eq!(output.status.code(), Some(2));
        assert!(said(&output).contains(words), "{}", said(&output));
    }
    fs::write(killed.path().join("space.toml"), SPACE.replace("0.25", "0.3")).unwrap();
    assert!(said(&search(killed.path(), &[])).contains("another space"));
    let recipe = killed.path().join("recipes/quick/a.toml");
    fs::write(&recipe, fs::read_to_string(&recipe).unwrap().replace("batch_size = 32", "batch_size = 16"))
        .unwrap();
    let output = search(killed.path(), &[]);
    assert!(said(&output).contains("another recipe (train.batch_size differs)"), "{}", said(&output));
}

#[test]
fn a_trial_that_fails_loses_and_a_recipe_that_fails_ends_the_search() {
    // Those with a high rate diverge, and one is refused.
    let dir = workspace(
        "case $name in rung1-trial003) exit 2 ;; esac\n\
         grep -q '^lr = 0.00[5-9]' \"$recipe\" && { record 'failed: the loss is NaN' null; exit 1; }",
    );
    let output = search(dir.path(), &[]);
    assert!(output.status.success(), "{}", said(&output));
    let rows = table(dir.path());
    let failed: Vec<&Vec<String>> = rows.iter().filter(|row| row[8].starts_with("failed")).collect();
    assert!(failed.iter().any(|row| row[8] == "failed: the loss is NaN" && row[5].is_empty()), "{rows:?}");
    assert!(failed.iter().any(|row| row[8] == "failed: the trainer refuses the recipe" && row[1] == "3"));
    assert!(rows.iter().filter(|row| row[0] != "1").all(|row| row[8] == "complete"), "{rows:?}");

    let dir = workspace("record 'failed: no memory' null; exit 1");
    let output = search(dir.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("the recipe to begin with cannot be trained: failed: no memory"));
    assert!(!dir.path().join("found/best.toml").exists());
}

#[test]
fn what_cannot_be_searched_is_refused_before_anything_starts() {
    let dir = workspace("");
    for (space, words) in [
        ("optimizer.lr = [0.0]", "trial 1: optimizer.lr = 0: a finite number above 0"),
        ("optimizer.rate = [1.0]", "trial 1: optimizer: unknown field `rate`"),
        ("train.epochs = [1, 2]", "train.epochs cannot be searched over"),
        ("train.epochs = ", "space.toml: "),
    ] {
        fs::write(dir.path().join("space.toml"), space).unwrap();
        let output = search(dir.path(), &[]);
        assert_eq!(output.status.code(), Some(2), "{space}: {}", said(&output));
        assert!(said(&output).contains(words), "{space}: {}", said(&output));
    }
    fs::write(dir.path().join("space.toml"), SPACE).unwrap();
    let too_long = common::xtask(dir.path())
        .args(["search", "--recipe", "recipes/quick/a.toml", "--space", "space.toml", "--first-epochs", "31"])
        .output()
        .unwrap();
    assert_eq!(too_long.status.code(), Some(2));
    assert!(said(&too_long).contains("--first-epochs 31: the recipe has 30"), "{}", said(&too_long));
    let plan = said(&search(dir.path(), &["--dry-run"]));
    assert!(plan.contains(
        "rung 1: 9 trials of 2 epochs\nrung 2: 3 trials of 6 epochs\nrung 3: 1 trial of 30 epochs, and"
    ));
    assert!(plan.contains("at most 96 epochs"), "{plan}");
    assert!(!dir.path().join("found").exists() && !dir.path().join("log").exists());
}

#[test]
fn an_ablation_has_a_run_without_each_ingredient() {
    let dir = workspace("");
    let base = fs::read_to_string(dir.path().join("recipes/quick/a.toml")).unwrap();
    let best =
        base.replace("lr = 1.5e-3", "lr = 4e-3").replace("label_smoothing = 0.1", "label_smoothing = 0.2");
    fs::write(dir.path().join("best.toml"), best).unwrap();
    let ablate = || {
        common::xtask(dir.path())
            .args([
                "search",
                "ablate",
                "--recipe",
                "best.toml",
                "--base",
                "recipes/quick/a.toml",
                "--device",
                "cpu",
            ])
            .args(["--epochs", "3", "--out", "found"])
            .output()
            .unwrap()
    };
    let output = ablate();
    assert!(output.status.success(), "{}", said(&output));
    let rows = table(dir.path());
    let told: Vec<[&str; 2]> = rows.iter().map(|row| [row[0].as_str(), row[1].as_str()]).collect();
    assert_eq!(
        told,
        [
            ["–", "0.543"],
            ["optimizer", "0.518"],
            ["train.label_smoothing", "0.543"],
            ["all of them", "0.518"]
        ]
    );
    let markdown = fs::read_to_string(dir.path().join("found/ablation.md")).unwrap();
    assert!(markdown.contains("| optimizer             |   51.80 % | -2.50 |"), "{markdown}");
    // Nothing is run twice, and runs of other recipes are not taken for these.
    assert!(ablate().status.success());
    assert_eq!(fs::read_to_string(dir.path().join("log")).unwrap().lines().count(), 4);
    let best = dir.path().join("best.toml");
    fs::write(&best, fs::read_to_string(&best).unwrap().replace("4e-3", "5e-3")).unwrap();
    let output = ablate();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("(all: optimizer.lr differs)"), "{}", said(&output));
}

/// A ConvMixer that learns something of the digits in a second.
const SMALL: &str = r#"
model = { name = "convmixer_reference", depth = 1, embed_dim = 16, bn_momentum = 0.3 }
dataset = "digits"
[data]
image_size = 16
normalize = "unit"
validation.end.count = 200
[augment]
hflip = 0.0
[train]
epochs = 2
batch_size = 32
label_smoothing = 0.0
select = "last"
[optimizer]
name = "adamw"
lr = 1e-4
beta1 = 0.9
beta2 = 0.999
eps = 1e-8
weight_decay = 0.05
scale_decay_by_lr = true
[schedule]
name = "warmup_cosine"
warmup = 0.1
"#;

#[test]
fn a_better_rate_is_found_on_the_digits_without_a_look_at_the_test_images() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("base.toml"), SMALL).unwrap();
    fs::write(dir.path().join("space.toml"), "optimizer.lr = { log = [1e-4, 1e-2] }").unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let program = assert_cmd::cargo::cargo_bin("xtask");
    let trainer = program.with_file_name("trainer");
    assert!(trainer.exists(), "build the trainer first: cargo build --release --workspace --bin trainer");
    // Everything is built already, by whoever runs the tests.
    let searched = Command::new(program)
        .args(["search", "--recipe", &at("base.toml"), "--space", &at("space.toml"), "--device", "cpu"])
        .args(["--trials", "4", "--eta", "2", "--out", &at("found")])
        .env("CARGO", "true")
        .env("OMP_NUM_THREADS", "1")
        .current_dir(&root)
        .output()
        .unwrap();
    assert!(searched.status.success(), "{}", said(&searched));
    let rows = table(dir.path());
    assert_eq!(rows.iter().map(|row| row[0].as_str()).collect::<String>(), "1111222");
    let top1 = |row: &Vec<String>| row[4].parse::<f64>().unwrap();
    let base = rows.iter().find(|row| row[0] == "2" && row[1] == "0").unwrap();
    let best = rows[4..].iter().map(top1).fold(0.0, f64::max);
    assert!(best > top1(base) + 0.1, "{rows:?}");
    for row in &rows {
        let run = dir.path().join("found").join(&row[8]);
        let record: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(run.join("record.json")).unwrap()).unwrap();
        let result = &record["result"];
        assert!(
            result["test_top1"].is_null()
                && result["test_loss"].is_null()
                && !run.join("predictions.csv").exists()
        );
        assert_eq!(result["val_top1"].as_f64(), Some(top1(row)));
    }
    // What was found is a recipe as any other, and the run that won can be tested where it is.
    let winner = rows[4..].iter().find(|row| top1(row) == best).unwrap();
    let run = dir.path().join("found").join(&winner[8]);
    let mut train = Command::new(trainer);
    let trained = train
        .args([
            "train",
            "--recipe",
            &at("found/best.toml"),
            "--device",
            "cpu",
            "--out",
            &run.display().to_string(),
        ])
        .env("OMP_NUM_THREADS", "1")
        .current_dir(&root)
        .output()
        .unwrap();
    assert!(trained.status.success(), "{}", said(&trained));
    let record: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(run.join("record.json")).unwrap()).unwrap();
    assert_eq!(record["result"]["val_top1"].as_f64(), Some(best));
    assert!(record["result"]["test_top1"].as_f64().is_some_and(|top1| top1 > 0.2));
    assert!(run.join("predictions.csv").exists());
}
