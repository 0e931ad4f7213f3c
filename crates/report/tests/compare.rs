//! Comparisons of runs that a test writes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use common::{predictions, record, write_run};
use run_record::{ResultRow, RunRecord, to_csv};
use serde_json::{Value, json};

const RECIPE: &str = r#"
model = "vit_reference"
dataset = "digits"
[data]
image_size = 32
normalize = "unit"
validation.end.count = 100
[augment]
hflip = 0.5
[train]
epochs = 3
batch_size = 64
label_smoothing = 0.0
select = "best"
[optimizer]
name = "adamw"
lr = 1e-3
beta1 = 0.9
beta2 = 0.999
eps = 1e-7
weight_decay = 1e-4
scale_decay_by_lr = false
[schedule]
name = "constant"
"#;

/// Both forms of what is found.
fn compared(a: &Path, b: &Path, images: Option<usize>) -> (Value, String) {
    let found = report::compare(a, b, images.and_then(NonZeroUsize::new)).unwrap();
    assert_eq!(found.problems, Vec::<String>::new());
    (serde_json::from_str(&found.to_json().unwrap()).unwrap(), found.to_string())
}

fn refused(path: &Path) -> String {
    report::compare(path, path, None).unwrap_err().to_string()
}

/// A run of 40 images, with a recipe.
fn write_with_recipe(
    dir: PathBuf,
    record: &RunRecord,
    recipe: &str,
    wrong: impl Fn(usize) -> bool,
) -> PathBuf {
    write_run(&dir, record, &predictions(40, wrong, "cat"));
    fs::write(dir.join("recipe.toml"), recipe).unwrap();
    dir
}

/// A results.csv of rows with these models, seeds and test top-1.
fn write_csv(path: PathBuf, dataset: &str, rows: &[(&str, u64, f64)]) -> PathBuf {
    let row = |(model, seed, top1): &(&str, u64, f64)| ResultRow {
        dataset: dataset.into(),
        ..record(model, *seed, *top1).result
    };
    fs::write(&path, to_csv(&rows.iter().map(row).collect::<Vec<_>>()).unwrap()).unwrap();
    path
}

fn near(found: &Value, want: f64) {
    let found = found.as_f64().unwrap();
    assert!((found - want).abs() < 1e-9, "{found} is not {want}");
}

#[test]
fn two_runs_differ_in_keys_numbers_and_by_more_than_chance() {
    let dir = tempfile::tempdir().unwrap();
    let mut other = record("vit", 1, 0.9);
    other.result.train_seconds = Some(198.0);
    other.result.data_sha256 = "data".into();
    // Only A has 0 to 1 right, only B 10 to 17.
    let a =
        write_with_recipe(dir.path().join("a"), &record("vit", 0, 0.75), RECIPE, |i| (10..20).contains(&i));
    let recipe = RECIPE
        .replace("epochs = 3", "epochs = 5")
        .replace("model = \"vit_reference\"", "model = { name = \"vit_reference\", depth = 4 }")
        .replace("hflip = 0.5", "hflip = 0.5\nmixup = { alpha = 0.2 }")
        .replace("1e-7", "0.0000001");
    let b = write_with_recipe(dir.path().join("b"), &other, &recipe, |i| i < 2 || (18..20).contains(&i));
    let (found, text) = compared(&a, &b, None);
    let keys: Vec<&str> =
        found["recipe"].as_array().unwrap().iter().map(|found| found["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["augment.mixup.alpha", "model.depth", "train.epochs"], "{text}");
    assert_eq!(found["recipe"][0], json!({"key": "augment.mixup.alpha", "a": null, "b": 0.2}));
    assert_eq!(found["recipe"][2], json!({"key": "train.epochs", "a": 3, "b": 5}));
    assert_eq!(found["circumstances"], json!([{"key": "seed", "a": 0, "b": 1}]));
    assert_eq!(found["kind"], "two_runs");
    assert_eq!(
        [&found["test"], &found["a_only"], &found["b_only"], &found["images"], &found["verdict"]],
        [&json!("mcnemar"), &json!(2), &json!(8), &json!(40), &json!("could be chance")]
    );
    near(&found["p"], 0.109375);
    let number = |column| {
        let numbers = found["numbers"].as_array().unwrap();
        numbers.iter().find(|number| number["column"] == column).unwrap()["difference"].clone()
    };
    near(&number("test_top1"), 0.15);
    near(&number("train_seconds"), 99.0);
    assert_eq!(number("peak_memory_mb"), Value::Null);
    for words in [
        "| augment.mixup.alpha | – | 0.2 |",
        "| test top-1       |    75.00 % |    90.00 % | +15.00 points |",
        "| training time    | 1 min 39 s | 3 min 18 s |        × 2.00 |",
        "Of 40 test images A alone has 2 right and B alone 8: could be chance (p = 0.1094, McNemar).",
    ] {
        assert!(text.contains(words), "{words}\n{text}");
    }
}

#[test]
fn equal_recipes_are_the_same_however_they_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let a = write_with_recipe(dir.path().join("a"), &record("vit", 0, 1.0), RECIPE, |_| false);
    let recipe = RECIPE.replace("model = \"vit_reference\"", "model.name = \"vit_reference\"");
    let b = write_with_recipe(dir.path().join("b"), &record("vit", 0, 1.0), &recipe, |_| false);
    let (found, text) = compared(&a, &b, None);
    assert_eq!((&found["recipe"], &found["circumstances"]), (&json!([]), &json!([])));
    assert!(text.contains("The recipes are the same.") && text.contains("p = 1.0000"), "{text}");
}

#[test]
fn runs_on_other_images_are_compared_as_shares_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let of = |name: &str, dataset: &str, top1, images| {
        let mut record = record("vit", 0, top1);
        (record.result.dataset, record.result.data_sha256) = (dataset.into(), name.into());
        let path = dir.path().join(name);
        write_run(&path, &record, &predictions(images, |_| false, "cat"));
        path
    };
    // docs/parity/significance.py: two_shares.
    let (a, b) = (of("a", "cifar10", 0.8271, 0), of("b", "folder", 0.851, 2000));
    let (found, text) = compared(&a, &b, None);
    assert_eq!((&found["test"], &found["a_images"]), (&json!("two_proportions"), &json!(10_000)));
    near(&found["p"], 0.009210607670276434);
    assert_eq!(found["without_recipe"], json!(["A", "B"]));
    assert!(text.contains("no recipe.toml in A and B"), "{text}");
    assert!(text.contains("| dataset     | cifar10 | folder |"), "{text}");
    assert!(text.contains("A was tested on 10000 images and B on 2000"), "{text}");

    let c = of("c", "folder", 0.851, 0);
    let (found, text) = compared(&a, &c, None);
    assert_eq!((&found["test"], &found["verdict"]), (&json!("none"), &Value::Null));
    assert!(
        text.contains("Nothing is judged: the number of test images of B is not known; --images"),
        "{text}"
    );
    near(&compared(&a, &c, Some(2000)).0["p"], 0.009210607670276434);

    let mut untested = record("vit", 0, 0.5);
    (untested.result.test_top1, untested.result.status) = (None, "stopped".into());
    write_run(&dir.path().join("d"), &untested, &[]);
    let (found, text) = compared(&a, &dir.path().join("d"), None);
    assert_eq!(found["reason"], "B has no test top-1");
    assert!(text.contains("| status      | complete | stopped |"), "{text}");
}

#[test]
fn results_are_matched_and_judged_together() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let write = |results: &Path, model: &str, seed, top1, wrong: &dyn Fn(usize) -> bool| {
        let run = results.join("runs").join(format!("{model}{seed}"));
        write_run(&run, &record(model, seed, top1), &predictions(40, wrong, "cat"));
    };
    for (results, top1s) in [(&a, [0.82, 0.83, 0.825]), (&b, [0.84, 0.835, 0.85])] {
        (0..).zip(top1s).for_each(|(seed, top1)| write(results, "seeds", seed, top1, &|_| false));
    }
    write(&a, "single", 0, 0.95, &|i| i < 2);
    write(&b, "single", 7, 0.8, &|i| (2..10).contains(&i));
    write(&a, "uneven", 0, 0.9, &|_| false);
    (0..2).for_each(|seed| write(&b, "uneven", seed, 0.9, &|_| false));
    write(&a, "gone", 0, 0.9, &|_| false);
    write(&b, "new", 0, 0.9, &|_| false);
    let mut stopped = record("single", 3, 0.1);
    stopped.result.status = "stopped".into();
    write_run(&b.join("runs/stopped"), &stopped, &[]);

    let (found, text) = compared(&a, &b, None);
    let [seeds, single, uneven] = found["pairs"].as_array().unwrap().as_slice() else { panic!("{text}") };
    // docs/parity/significance.py: welch and mcnemar. Of two tests the smaller p counts twice.
    near(&seeds["p"], 0.041914517471453035);
    near(&seeds["p_holm"], 2.0 * 0.041914517471453035);
    assert_eq!(
        (&seeds["test"], &seeds["a"]["n"], &seeds["b"]["seeds"]),
        (&json!("welch"), &json!(3), &json!([0, 1, 2]))
    );
    near(&seeds["a"]["std"], 0.005);
    near(&seeds["difference"], 0.841_666_666_666_666_7 - 0.825);
    assert_eq!(
        (&single["test"], &single["a_only"], &single["b_only"]),
        (&json!("mcnemar"), &json!(8), &json!(2))
    );
    near(&single["p"], 0.109375);
    near(&single["p_holm"], 0.109375);
    assert_eq!((&uneven["test"], &uneven["p_holm"]), (&json!("none"), &Value::Null));
    assert_eq!((&found["only_a"][0]["model"], &found["only_b"][0]["model"]), (&json!("gone"), &json!("new")));
    assert_eq!((&found["a_not_complete"], &found["b_not_complete"]), (&json!(0), &json!(1)));
    for words in [
        "82.50 % ± 0.50 |   3 | 84.17 % ± 0.76 |  +1.67 points | 0.0419 |   0.0838 |   Welch | could be chance |",
        "uneven, quick, digits: not judged: two or more seeds on one side and a single one on the other",
        "Only in A:",
        "1 run of B is not complete and left out.",
    ] {
        assert!(text.contains(words), "{words}\n{text}");
    }

    // A run counts as a set of one row.
    let (found, _) = compared(&a.join("runs/single0"), &b, None);
    assert_eq!((&found["kind"], &found["pairs"][0]["test"]), (&json!("two_sets"), &json!("mcnemar")));
}

#[test]
fn what_else_differs_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let mut runs =
        [record("vit", 0, 0.9), record("vit", 0, 0.8), record("vit", 0, 0.7), record("vit", 1, 0.6)];
    runs[0].result.device = "cuda:0".into();
    // The same seed again, later.
    runs[2].result.started_at = "2026-01-02T00:00:00Z".into();
    runs[3].result.recipe_sha256 = "another".into();
    for (index, run) in runs.iter().enumerate() {
        let results = dir.path().join(if index == 0 { "a" } else { "b" });
        write_run(&results.join("runs").join(index.to_string()), run, &[]);
    }
    let (found, text) = compared(&dir.path().join("a"), &dir.path().join("b"), None);
    let pair = &found["pairs"][0];
    near(&pair["b"]["mean"], 0.65);
    assert_eq!(pair["differs"], json!(["recipe_sha256", "device"]));
    assert_eq!(pair["mixed"], json!(["recipe_sha256"]));
    assert!(text.contains("vit, quick, digits: A and B differ in recipe_sha256, device\n"), "{text}");
    assert!(text.contains("runs of one side differ in recipe_sha256, not in their seeds only"), "{text}");
}

#[test]
fn tables_are_compared_where_the_number_of_images_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let csv = |name: &str, dataset, top1| write_csv(dir.path().join(name), dataset, &[("vit", 0, top1)]);
    let (found, text) = compared(&csv("a", "cifar10", 0.8271), &csv("b", "cifar10", 0.8352), None);
    near(&found["pairs"][0]["p"], 0.12628862238224678);
    assert!(
        text.contains("| +0.81 points | 0.1263 |   0.1263 | two proportions | could be chance |"),
        "{text}"
    );
    let (a, b) = (csv("a", "folder", 350.0 / 360.0), csv("b", "folder", 352.0 / 360.0));
    assert!(compared(&a, &b, None).1.contains("the number of test images of both is not known"));
    near(&compared(&a, &b, Some(360)).0["pairs"][0]["p"], 0.6330702545034995);
    // Seeds need no images, and no spread no test.
    let (a, b) = (dir.path().join("c"), dir.path().join("d"));
    write_csv(a.clone(), "folder", &[("vit", 0, 0.5), ("vit", 1, 0.5)]);
    write_csv(b.clone(), "folder", &[("vit", 0, 0.75), ("vit", 1, 0.75)]);
    assert!(compared(&a, &b, None).1.contains("no spread to judge by"));
}

#[test]
fn odd_tables_are_named_with_their_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("results.csv");
    let good = String::from_utf8(to_csv(&[record("vit", 0, 0.5).result]).unwrap()).unwrap();
    for (text, words) in [
        ("", "results.csv: line 1: empty, without the header of a results.csv"),
        (
            "Dear all,\nhello",
            "line 1: not the header of a results.csv: no model, family, preset, dataset, image_size and 25 more",
        ),
        (&*good.replace("model,", "modell,"), "line 1: not the header of a results.csv: no model"),
        (
            &good.replace("model,", "model,\u{1b}[2J,"),
            "line 1: not the header of a results.csv: unknown \u{1b}[2J",
        ),
        (&good.replace("model,", "model,model,"), "a column is there twice"),
        (&good.replace("vit,", "\"a\nb\","), ""),
        (&good.replace(",594186,", ",many,"), "line 2: "),
        (&good.replace(",0.5,", ",50,"), "line 2: val_top1 = 50 is no share from 0 to 1"),
        (&good.replace(",0.5,", ",NaN,"), "line 2: val_top1 = NaN is no share from 0 to 1"),
        (&(good.clone() + "vit,vit\n"), "line: 3"),
        (&good.replace("\n", "\r\n").replace("model", "\u{feff}model"), ""),
    ] {
        fs::write(&path, text).unwrap();
        if words.is_empty() {
            compared(&path, &path, None);
        } else {
            assert!(refused(&path).contains(words), "{words}: {}", refused(&path));
        }
    }
    fs::write(&path, [0xff, 0xfe, 0]).unwrap();
    assert!(refused(&path).contains("results.csv: "));
    fs::write(&path, good.lines().next().unwrap()).unwrap();
    assert!(compared(&path, &path, None).1.contains("No complete run of A and B has the same model"));
}

#[test]
fn paths_that_hold_nothing_are_refused_and_broken_runs_named() {
    let dir = tempfile::tempdir().unwrap();
    assert!(refused(&dir.path().join("typo")).contains("typo: No such file"));
    let words = "neither a run (no record.json) nor a results directory (no runs/)";
    assert!(refused(dir.path()).contains(words));
    write_run(&dir.path().join("runs/good"), &record("vit", 0, 0.5), &[]);
    write_run(&dir.path().join("runs/share"), &record("cct", 0, 50.0), &[]);
    fs::create_dir_all(dir.path().join("runs/cut")).unwrap();
    fs::write(dir.path().join("runs/cut/record.json"), "{").unwrap();
    let found = report::compare(dir.path(), &dir.path().join("runs/good"), None).unwrap();
    assert!(found.to_string().contains("| vit "));
    assert!(found.problems[0].contains("cut/record.json: EOF"), "{:?}", found.problems);
    assert!(
        found.problems[1].contains("share/record.json: val_top1 = 50 is no share"),
        "{:?}",
        found.problems
    );
    assert!(refused(&dir.path().join("runs/cut")).contains("record.json: EOF"));
}

#[test]
fn the_program_prints_text_that_cannot_act_and_ends_with_the_right_code() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a\u{1b}[2J"), dir.path().join("b"));
    write_csv(a.clone(), "fol\u{202e}der", &[("vi\nt", 0, 0.5), ("only\u{1b}", 0, 0.5)]);
    write_csv(b.clone(), "fol\u{202e}der", &[("vi\nt", 0, 0.75)]);
    let run = |args: &[&str]| {
        let mut command = assert_cmd::Command::cargo_bin("report").unwrap();
        let output = command.arg("compare").args([&a, &b]).args(args).output().unwrap();
        let texts = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code().unwrap(), texts)
    };
    let (code, [text, errors]) = run(&["--images", "100"]);
    assert_eq!((code, &*errors), (0, ""));
    assert!(
        text.contains("a\\u001b[2J") && text.contains("vi\\nt") && text.contains("more than chance"),
        "{text}"
    );
    let (code, [json, _]) = run(&["--format=json"]);
    assert_eq!(code, 0);
    let found: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(found["pairs"][0]["dataset"], "fol\u{202e}der");
    for text in [text, json] {
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
    }
    for args in [&["--images", "0"][..], &["--format", "xml"], &["a third"]] {
        assert_eq!(run(args).0, 2, "{args:?}");
    }
    fs::remove_file(&b).unwrap();
    let (code, [text, errors]) = run(&[]);
    assert_eq!((code, &*text), (1, ""));
    assert!(errors.starts_with("error: ") && errors.lines().count() == 1, "{errors}");
}
