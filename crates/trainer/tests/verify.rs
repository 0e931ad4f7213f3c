//! `verify`: a fresh run holds, and whatever is changed in one is found.

mod runs;

use std::fs;
use std::path::Path;
use std::process::Output;

use run_record::sha256;
use runs::{record, stdout, trainer};
use serde_json::Value;

fn train(out: &Path) {
    let small = ["model.embed_dim=16", "model.depth=2", "train.epochs=2", "schedule.name=constant"];
    let output = trainer()
        .args(["train", "--model", "convmixer_reference", "--preset", "quick", "--device", "cpu", "--out"])
        .arg(out)
        .args(small.iter().flat_map(|set| ["--set", set]))
        .output()
        .expect("the trainer starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn verify(run: &Path) -> Output {
    trainer().args(["verify", "--device", "cpu"]).arg(run).output().expect("the trainer starts")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("it can be made");
    for name in ["record.json", "recipe.toml", "history.csv", "predictions.csv", "last.safetensors"] {
        fs::copy(from.join(name), to.join(name)).expect("it can be copied");
    }
}

/// Replaces the first occurrence.
fn replace(run: &Path, name: &str, from: &str, to: &str) {
    let text = fs::read_to_string(run.join(name)).expect("it can be read");
    assert!(text.contains(from), "{name} holds no {from}");
    fs::write(run.join(name), text.replacen(from, to, 1)).expect("it can be written");
}

fn change_record(run: &Path, change: impl FnOnce(&mut Value)) {
    let mut record = record(run);
    change(&mut record);
    fs::write(run.join("record.json"), record.to_string()).expect("it can be written");
}

/// A row of `predictions.csv` as its cells, and back.
fn change_prediction(run: &Path, row: usize, change: impl FnOnce(&mut Vec<String>)) {
    let path = run.join("predictions.csv");
    let text = fs::read_to_string(&path).expect("it can be read");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut cells: Vec<String> = lines[row + 1].split(',').map(str::to_owned).collect();
    change(&mut cells);
    lines[row + 1] = cells.join(",");
    fs::write(path, lines.join("\n") + "\n").expect("it can be written");
}

/// Whoever changes predictions may change their checksum too.
fn cover_up(run: &Path) {
    let bytes = fs::read(run.join("predictions.csv")).expect("it can be read");
    change_record(run, |record| record["predictions_sha256"] = sha256(&bytes).into());
}

#[test]
fn a_fresh_run_holds_and_every_change_is_found() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let fresh = directory.path().join("fresh");
    train(&fresh);
    let output = verify(&fresh);
    assert!(output.status.success(), "{}", stdout(&output));
    assert!(stdout(&output).ends_with("fresh: holds, 326 test images\n"), "{}", stdout(&output));
    let left: Value = serde_json::from_slice(&fs::read(fresh.join("verification.json")).expect("it is left"))
        .expect("JSON");
    let bytes = fs::read(fresh.join("record.json")).expect("it is there");
    assert_eq!(left["record_sha256"], sha256(bytes).as_str());

    type Change = (&'static str, fn(&Path), &'static str);
    let changes: [Change; 13] = [
        (
            "weights",
            |run| {
                let mut bytes = fs::read(run.join("last.safetensors")).expect("it can be read");
                *bytes.last_mut().expect("it is not empty") ^= 1;
                fs::write(run.join("last.safetensors"), bytes).expect("it can be written");
            },
            "last.safetensors: the SHA-256 is",
        ),
        (
            "recipe",
            |run| replace(run, "recipe.toml", "epochs = 2", "epochs = 3"),
            "recipe.toml: the SHA-256 of its values is",
        ),
        (
            "no recipe",
            |run| fs::remove_file(run.join("recipe.toml")).expect("it can go"),
            "recipe.toml: No such file",
        ),
        (
            "probability",
            |run| change_prediction(run, 7, |row| row[2] += "1"),
            "predictions.csv: the SHA-256 is",
        ),
        (
            "probability, covered up",
            |run| {
                change_prediction(run, 7, |row| row[4] = "0.123".into());
                cover_up(run);
            },
            "predictions.csv: image 7: top1_probability is 0.123, and the network says",
        ),
        (
            "answer, covered up",
            |run| {
                change_prediction(run, 7, |row| row[3] = if row[3] == "5" { "6".into() } else { "5".into() });
                cover_up(run);
            },
            "predictions.csv: image 7: top1 is",
        ),
        (
            "label, covered up",
            |run| {
                change_prediction(run, 7, |row| row[1] = if row[1] == "5" { "6".into() } else { "5".into() });
                cover_up(run);
            },
            "predictions.csv: image 7: the label is",
        ),
        (
            "a row less",
            |run| {
                let text = fs::read_to_string(run.join("predictions.csv")).expect("it can be read");
                let cut = text.trim_end().rfind('\n').expect("it has lines") + 1;
                fs::write(run.join("predictions.csv"), &text[..cut]).expect("it can be written");
                cover_up(run);
            },
            "predictions.csv: it has 325 rows, and the data 326 test images",
        ),
        (
            "accuracy",
            |run| change_record(run, |record| record["result"]["test_top1"] = 0.99.into()),
            "record.json: test_top1 is 0.99, and it should be",
        ),
        (
            "parameters",
            |run| change_record(run, |record| record["result"]["params"] = 1.into()),
            "record.json: params is 1, and it should be",
        ),
        (
            "temperature",
            |run| change_record(run, |record| record["temperature"] = 9.5.into()),
            "record.json: temperature is 9.5, and it should be",
        ),
        (
            "data",
            |run| change_record(run, |record| record["result"]["data_sha256"] = "ab".into()),
            "record.json: data_sha256 is \"ab\", and it should be",
        ),
        (
            "history",
            |run| {
                let text = fs::read_to_string(run.join("history.csv")).expect("it can be read");
                let last = text.lines().last().expect("it has lines").to_owned();
                let mut cells: Vec<&str> = last.split(',').collect();
                cells[6] = "0.999";
                fs::write(run.join("history.csv"), text.replace(&last, &cells.join(",")))
                    .expect("it can be written");
            },
            "history.csv: the SHA-256 is",
        ),
    ];
    for (name, change, words) in changes {
        let run = directory.path().join(name);
        copy(&fresh, &run);
        change(&run);
        let output = verify(&run);
        let said = stdout(&output);
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        assert!(
            said.contains("does not hold\n") && said.contains(&format!("  {words}")) || said.contains(words),
            "{name}: {said}"
        );
    }
}

#[test]
fn what_is_no_finished_run_is_named_and_stops_no_other() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let empty = directory.path().join("empty");
    fs::create_dir(&empty).expect("it can be made");
    let output =
        trainer().args(["verify", "--json"]).args([&empty, &empty]).output().expect("the trainer starts");
    let lines: Vec<Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).expect("it is JSON")).collect();
    assert_eq!((output.status.code(), lines.len()), (Some(1), 2));
    assert_eq!(lines[0]["holds"], false);
    assert!(lines[0]["findings"][0].as_str().expect("a text").contains("record.json"), "{lines:?}");
}
