//! A run is planned before it begins: what is wrong is said at once, nothing is lost, and a corrected command works.

mod runs;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use assert_cmd::cargo::cargo_bin;
use image::{Rgb, RgbImage};
use runs::{error_line, record, stdout};
use tempfile::TempDir;

const RECIPE: &str = r#"
model = { name = "convmixer_reference", depth = 1, embed_dim = 8 }
dataset = "folder"
[folder]
stored_size = 16
crop_mode = "center"
interpolation = "bicubic"
on_error = "skip"
test_fraction = 0.2
[data]
image_size = 16
normalize = "unit"
validation.end.fraction = 0.2
[augment]
hflip = 0.5
[train]
epochs = 1
batch_size = 8
label_smoothing = 0.1
select = "best"
[optimizer]
name = "adamw"
lr = 1e-3
beta1 = 0.9
beta2 = 0.999
eps = 1e-8
weight_decay = 0.05
scale_decay_by_lr = true
[schedule]
name = "constant"
"#;

/// A place with a recipe, pictures and room for runs.
struct Place(TempDir);

impl Place {
    /// With so many pictures in each of these directories.
    fn new(pictures: &[(&str, u32)]) -> Self {
        let place = Self(tempfile::tempdir().expect("a temporary directory can be made"));
        fs::write(place.path("recipe.toml"), RECIPE).expect("it can be written");
        for (directory, count) in pictures {
            place.pictures(&format!("data/{directory}"), *count);
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn pictures(&self, directory: &str, count: u32) {
        let directory = self.path(directory);
        fs::create_dir_all(&directory).expect("it can be made");
        for n in 0..count {
            let picture = RgbImage::from_fn(16, 16, |x, y| {
                Rgb([(n * 37 + x * 9) as u8, (y * 13 + n) as u8, directory.as_os_str().len() as u8])
            });
            picture.save(directory.join(format!("{n:03}.png"))).expect("it can be written");
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(cargo_bin!("trainer"));
        command
            .args(arguments)
            .env("OMP_NUM_THREADS", "1")
            .env("COMPACT_VISION_CACHE", self.path("cache"))
            .current_dir(self.0.path());
        // Where the recipes and the digits are is found from the program's own place.
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the trainer starts")
    }

    fn train(&self, more: &[&str]) -> Output {
        let common = ["train", "--recipe", "recipe.toml", "--data-dir", "data", "--device", "cpu"];
        self.run(&[&common, more].concat())
    }

    fn trained(&self, more: &[&str]) -> Output {
        let output = self.train(more);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output
    }
}

/// Every file below a directory with its bytes.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).expect("it can be read") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).expect("it can be read"));
        }
    }
    found
}

fn lines(output: &Output, code: i32) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn whatever_is_wrong_a_finished_run_is_kept_to_the_last_byte() {
    let place = Place::new(&[("a", 12), ("b", 12)]);
    place.trained(&["--out", "run"]);
    let before = contents(&place.path("run"));
    let init = ["init", "convmixer_reference", "--set", "model.depth=3", "--set", "model.embed_dim=8"];
    assert!(place.run(&[&init[..], &["--output", "deep.safetensors"]].concat()).status.success());
    fs::write(place.path("garbage.safetensors"), "garbage, garbage").expect("it can be written");
    place.pictures("one/a", 3);
    place.pictures("three/a", 1);
    place.pictures("three/b", 1);
    place.pictures("three/c", 1);
    place.pictures("flat", 3);
    place.pictures("nested/train/a", 4);
    place.pictures("nested/test/b", 4);

    let mut ways: Vec<Vec<&str>> = [
        "augment.policy.name=foo",
        "augment.policy.name=rand-mx",
        "augment.policy.name=torchvision-n2-m99",
        "augment.hflip=7",
        "augment.enlarged_crop={from=8,offset=\"batch\"}",
        "augment.nothing=1",
        "data.resize.crop_pct=0.5",
        "data.normalize={fixed={mean=[123.675,116.28,103.53],std=[1.0,1.0,1.0]}}",
        "data.image_size=0",
        "data.validation.end.fraction=0.99",
        "data.validation=folder",
        "folder.test_fraction=",
        "folder.test_fraction=0.99",
        "model.depth=0",
        "model.activation=foo",
        "model.num_classes=2",
        "train.epochs=0",
        "train.batch_size=0",
        "optimizer.lr=-1",
        "optimizer.name=foo",
        "schedule.name=warmup_cosine",
        "dataset=cifar10",
    ]
    .map(|set| vec!["--set", set])
    .into();
    ways.extend(
        [
            ["--weights", "deep.safetensors"],
            ["--weights", "garbage.safetensors"],
            ["--weights", "nowhere.safetensors"],
            ["--weights", "data"],
            ["--data-dir", "nowhere"],
            ["--data-dir", "one"],
            ["--data-dir", "three"],
            ["--data-dir", "flat"],
            ["--data-dir", "nested"],
            ["--data-dir", "recipe.toml"],
            ["--recipe", "nowhere.toml"],
            ["--device", "cuda:99"],
            ["--model", "nothing"],
            ["--checkpoint-minutes", "-1"],
        ]
        .map(Vec::from),
    );
    for way in ways {
        let mut arguments = vec!["train", "--device", "cpu", "--out", "run", "--fresh"];
        for (flag, value) in [("--recipe", "recipe.toml"), ("--data-dir", "data")] {
            if !way.contains(&flag) {
                arguments.extend([flag, value]);
            }
        }
        if way.contains(&"--device") {
            arguments.drain(1..3);
        }
        arguments.extend(&way);
        let refused = place.run(&arguments);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(matches!(refused.status.code(), Some(1 | 2)), "{way:?}: {said}");
        assert!(said.starts_with("error: "), "{way:?}: {said}");
        assert!(contents(&place.path("run")) == before, "{way:?} changed the run");
        // Where nothing was, nothing is left.
        let elsewhere: Vec<&str> =
            arguments.iter().map(|argument| if *argument == "run" { "other" } else { argument }).collect();
        assert!(!place.run(&elsewhere).status.success());
        assert!(!place.path("other").exists(), "{way:?} took the directory");
    }
    // And the command without the mistake works.
    assert!(stdout(&place.trained(&["--out", "run"])).contains("already trained, reused"));
    place.trained(&["--out", "other"]);
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let place = Place::new(&[("a", 12), ("b", 12)]);
    fs::write(place.path("lfs.safetensors"), "version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
        .expect("it can be written");
    let said = lines(
        &place.train(&[
            "--out",
            "run",
            "--weights",
            "lfs.safetensors",
            "--set",
            "folder.test_fraction=",
            "--set",
            "model.depth=0",
        ]),
        2,
    );
    for words in ["Git LFS", "there is no picture to test on", "model.depth = 0"] {
        assert_eq!(said.iter().filter(|line| line.contains(words)).count(), 1, "{words}: {said:#?}");
    }
    assert!(said.len() == 3 && said.iter().all(|line| line.starts_with("error: ")), "{said:#?}");
    // Of a recipe every value out of its range, each with the argument that set it.
    let said = lines(
        &place.train(&["--set", "augment.hflip=7", "--set", "train.epochs=3", "--set", "optimizer.lr=-1"]),
        2,
    );
    assert_eq!(said.len(), 2, "{said:#?}");
    assert!(said[0].starts_with("error: --set augment.hflip=7: augment.hflip = 7:"), "{said:#?}");
    assert!(said[1].starts_with("error: --set optimizer.lr=-1: optimizer.lr = -1:"), "{said:#?}");
}

#[test]
fn a_replaced_run_is_kept_until_the_first_step_is_made() {
    let place = Place::new(&[("a", 12), ("b", 12)]);
    place.trained(&["--out", "run"]);
    let before = contents(&place.path("run"));
    // The loss is no number in the first step, which the plan cannot know: all weights are 1e30.
    let weights = fs::read(place.path("run/best.safetensors")).expect("it is there");
    let header = 8 + u64::from_le_bytes(*weights.first_chunk().expect("a length")) as usize;
    let huge = 1e30f32.to_le_bytes().repeat((weights.len() - header) / 4);
    fs::write(place.path("huge.safetensors"), [&weights[..header], &huge].concat())
        .expect("it can be written");
    let broken = place.train(&["--out", "run", "--fresh", "--weights", "huge.safetensors"]);
    assert!(error_line(&broken, 1).contains("no longer a finite number at step 1 of epoch 1"));
    assert!(stdout(&broken).contains("holds the earlier run as it was"), "{}", stdout(&broken));
    assert!(contents(&place.path("run")) == before, "the earlier run was changed");
    // As a kill leaves it between the record of the new run and its first step.
    let run = place.path("run");
    fs::create_dir(run.join("replaced")).expect("it can be made");
    let left = ["predictions.csv", "classes.csv", "layers.json", "figures", "checkpoints", "train.log"];
    for name in left.into_iter().chain(["best.safetensors", "history.csv", "recipe.toml", "record.json"]) {
        fs::rename(run.join(name), run.join("replaced").join(name)).expect("it is there");
    }
    fs::write(run.join("record.json"), "{}").expect("it can be written");
    fs::write(run.join("recipe.toml"), "x").expect("it can be written");
    let again = place.trained(&["--out", "run"]);
    assert!(stdout(&again).contains("already trained, reused"), "{}", stdout(&again));
    assert!(contents(&run) == before, "the earlier run was changed");
}

#[test]
fn a_run_starts_anew_from_its_own_weights() {
    let place = Place::new(&[("a", 12), ("b", 12)]);
    place.trained(&["--out", "run"]);
    let first = record(&place.path("run"));
    let again = ["--out", "run", "--weights", "run/best.safetensors"];
    place.trained(&[&again[..], &["--fresh"]].concat());
    let second = record(&place.path("run"));
    assert_ne!(first["weights_sha256"], second["weights_sha256"]);
    let recipe = fs::read_to_string(place.path("run/recipe.toml")).expect("it is there");
    assert!(recipe.contains(first["weights_sha256"].as_str().expect("a digest")), "{recipe}");
    assert!(!place.path("run/replaced").exists());
    // The same command without --fresh finds it, although these are no longer the weights it began with.
    assert!(stdout(&place.trained(&again)).contains("already trained, reused"));
}

#[test]
fn a_fine_tuned_run_goes_on_although_the_weights_it_began_with_are_gone() {
    let place = Place::new(&[("a", 12), ("b", 12)]);
    let init = ["init", "convmixer_reference", "--set", "model.depth=1", "--set", "model.embed_dim=8"];
    let fit = ["--set", "model.patch_size=2", "--image-size", "16", "--num-classes", "2"];
    assert!(place.run(&[&init[..], &fit[..], &["--output", "w.safetensors"]].concat()).status.success());
    let train = ["--out", "run", "--weights", "w.safetensors", "--set", "train.epochs=2"];
    place.trained(&train);
    let text = fs::read_to_string(place.path("run/record.json")).expect("it is there");
    let stopped = text.replace("\"status\": \"complete\"", "\"status\": \"stopped\"");
    fs::write(place.path("run/record.json"), stopped).expect("it can be written");
    fs::remove_file(place.path("w.safetensors")).expect("it is there");
    let resumed = place.trained(&train);
    assert!(stdout(&resumed).contains("goes on from checkpoint epoch-0002"), "{}", stdout(&resumed));
    // A run that has not begun cannot.
    let line = error_line(&place.train(&["--out", "new", "--weights", "w.safetensors"]), 1);
    assert!(line.contains("w.safetensors"), "{line}");
}

#[test]
fn parts_without_pictures_are_found_before_anything_is_decoded() {
    let flat_test = Place::new(&[("train/a", 10), ("train/b", 10), ("test", 6)]);
    let output = flat_test.trained(&["--out", "run"]);
    assert!(
        stdout(&output).contains("test/ holds pictures without class directories"),
        "{}",
        stdout(&output)
    );
    assert!(record(&flat_test.path("run"))["result"]["test_top1"].is_number());
    let line = error_line(&flat_test.train(&["--out", "run2", "--set", "folder.test_fraction="]), 1);
    assert!(line.contains("no picture to test on") && line.contains("folder.test_fraction"), "{line}");
    assert!(!flat_test.path("run2").exists());

    // Thirty classes of a single picture each: some would have none to learn from.
    let single: Vec<String> = (0..30).map(|n| format!("c{n:02}")).collect();
    let single: Vec<(&str, u32)> = single.iter().map(|name| (name.as_str(), 1)).collect();
    let line = error_line(&Place::new(&single).train(&["--out", "run"]), 1);
    assert!(line.contains("is left to train on") && line.contains("classes (c"), "{line}");

    for (a, b) in [(1, 1), (2, 1)] {
        let place = Place::new(&[("a", a), ("b", b)]);
        let refused = place.train(&["--out", "run"]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("left to train on"), "{said}");
        assert!(!place.path("run").exists());
    }
    let six = Place::new(&[("a", 3), ("b", 3)]);
    six.trained(&["--out", "run"]);

    // Only what is damaged is left of the test part: known once it was decoded, and before training.
    let damaged = Place::new(&[("train/a", 10), ("train/b", 10), ("test/a", 1)]);
    fs::write(damaged.path("data/test/a/000.png"), "x").expect("it can be written");
    let line = error_line(&damaged.train(&["--out", "run"]), 1);
    assert!(line.contains("no picture to test on"), "{line}");
    assert!(!damaged.path("run").exists());
}

#[test]
fn a_step_of_one_image_is_refused_where_batch_norm_would_see_one_value() {
    let place = Place::new(&[("a", 13), ("b", 13)]);
    // 17 images to train on: two batches of 8 and one of 1; patches of 16 pixels leave one place.
    let sets = ["--set", "model.patch_size=16"];
    let line = error_line(&place.train(&[&["--out", "run"], &sets[..]].concat()), 2);
    assert!(line.contains("train.batch_size = 8") && line.contains("batch norm stem"), "{line}");
    place.trained(&[&["--out", "run", "--set", "train.batch_size=6"], &sets[..]].concat());
    // One more would do, if it could be decoded: 18 to train on.
    fs::write(place.path("data/b/damaged.png"), "x").expect("it can be written");
    let refused = place.train(&[&["--out", "run2", "--set", "train.batch_size=8"], &sets[..]].concat());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("train.batch_size = 8"), "{said}");
    assert!(!place.path("run2").exists());
}

#[test]
fn a_dry_run_says_what_would_be_done_and_does_nothing() {
    let place = Place::new(&[
        ("train/a", 10),
        ("train/b", 11),
        ("val/a", 2),
        ("val/b", 2),
        ("test/a", 3),
        ("test/b", 1),
    ]);
    let output = place.trained(&["--out", "run", "--dry-run", "--set", "train.epochs=3"]);
    let said = stdout(&output);
    for words in [
        "run: new",
        "3 in an epoch, the last of 5 images; 9 in all",
        "constant: 1.000e-3 first, 1.000e-3 at most, 1.000e-3 last",
        "validation part of its own (4 images)",
        "a step on cpu (tried)",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let row = |name: &str| {
        said.lines()
            .map(|line| line.split('|').map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>())
            .find(|cells| cells.first() == Some(&name))
    };
    assert_eq!(row("total").expect("there is one"), ["total", "21", "4", "4"]);
    assert!(!place.path("run").exists() && !place.path("cache").exists());

    let json = place.trained(&["--out", "run", "--dry-run", "--json"]);
    let json = stdout(&json);
    let last = json.lines().last().expect("there are lines");
    let json: serde_json::Value = serde_json::from_str(last).expect("it is JSON");
    assert_eq!((&json["event"], &json["plan"]["steps_per_epoch"]), (&"plan".into(), &3.into()));
    assert_eq!(
        json["plan"]["classes"][1],
        serde_json::json!({"name": "b", "train": 11, "validation": 2, "test": 1})
    );
    // Over a finished run it changes nothing either.
    place.trained(&["--out", "run"]);
    let before = contents(&place.path("run"));
    for more in [&["--fresh"][..], &[]] {
        let said = stdout(&place.trained(&[&["--out", "run", "--dry-run"], more].concat()));
        let start = if more.is_empty() { "finished already" } else { "replaces the run that is there" };
        assert!(said.contains(start), "{said}");
        assert!(contents(&place.path("run")) == before);
    }
}

#[test]
fn what_is_known_from_the_listing_is_said_in_time_however_many_pictures_there_are() {
    let place = Place::new(&[("a", 1), ("b", 1)]);
    for class in ["a", "b"] {
        for n in 0..5000 {
            let link = place.path(&format!("data/{class}/link{n}.png"));
            fs::hard_link(place.path(&format!("data/{class}/000.png")), link).expect("it can be linked");
        }
    }
    let started = Instant::now();
    let line = error_line(&place.train(&["--out", "run", "--set", "folder.test_fraction="]), 1);
    assert!(line.contains("no picture to test on"), "{line}");
    // Nothing was decoded: that would have left a cache.
    assert!(!place.path("cache").exists());
    assert!(started.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_failed_run_without_anything_to_lose_is_not_in_the_way() {
    let place = Place::new(&[("a", 12), ("b", 12)]);
    let line = error_line(&place.train(&["--out", "run", "--set", "optimizer.lr=1e30"]), 1);
    assert!(line.contains("no longer a finite number"), "{line}");
    assert!(
        record(&place.path("run"))["result"]["status"].as_str().is_some_and(|s| s.starts_with("failed: "))
    );
    place.trained(&["--out", "run"]);
}

#[test]
fn without_a_home_there_is_no_cache_and_a_note() {
    let place = Place::new(&[("a", 12), ("b", 12)]);
    let mut command =
        place.command(&["train", "--recipe", "recipe.toml", "--data-dir", "data", "--out", "run"]);
    for name in ["HOME", "XDG_CACHE_HOME", "COMPACT_VISION_CACHE"] {
        command.env_remove(name);
    }
    let output = command.output().expect("the trainer starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(stdout(&output).contains("HOME and COMPACT_VISION_CACHE are not set"), "{}", stdout(&output));
}

#[test]
fn weights_are_measured_on_any_folder_with_their_classes() {
    let place = Place::new(&[("a", 12), ("b", 12)]);
    place.trained(&["--out", "run"]);
    place.pictures("other/a", 5);
    place.pictures("more/a", 2);
    place.pictures("more/c", 2);
    place.pictures("testing/test/b", 3);
    let evaluate = |more: &[&str]| {
        place.run(
            &[&["evaluate", "--weights", "run/best.safetensors", "--device", "cpu", "--json"], more].concat(),
        )
    };
    let of = |more: &[&str]| {
        let output = evaluate(more);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let json: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("it is JSON");
        (json["split"].clone(), json["images"].clone(), json["top1"].as_f64().expect("a number"))
    };
    let (split, images, top1) = of(&["--data-dir", "data"]);
    assert_eq!((split, images), ("test".into(), 5.into()));
    assert!(
        (top1 - record(&place.path("run"))["result"]["test_top1"].as_f64().expect("a number")).abs() < 1e-6
    );
    // All of a folder that is not divided, one class of two; a test part alone; the parts a share makes.
    let (split, images, of_a) = of(&["--data-dir", "other"]);
    assert_eq!((split, images), ("all".into(), 5.into()));
    let (split, images, of_b) = of(&["--data-dir", "testing"]);
    assert_eq!((split, images), ("test".into(), 3.into()));
    assert!((0.0..=1.0).contains(&of_a) && (0.0..=1.0).contains(&of_b));
    assert_eq!(of(&["--data-dir", "other", "--split", "test"]).1, 1);
    assert_eq!(of(&["--data-dir", "data", "--split", "val"]).1, 4);
    let line = error_line(&evaluate(&["--data-dir", "more"]), 1);
    assert!(line.contains("holds c that the network knows not; the classes are a, b"), "{line}");
    let said = lines(&evaluate(&["--data-dir", "testing", "--split", "train"]), 2);
    assert!(said.iter().any(|line| line.contains("--split train: the data has no such images")), "{said:#?}");
}

#[test]
#[cfg(unix)]
fn decoding_stops_when_it_is_asked_to() {
    let place = Place::new(&[]);
    fs::create_dir_all(place.path("data/a")).expect("it can be made");
    fs::create_dir_all(place.path("data/b")).expect("it can be made");
    // A quarter of a second or so each, and no two alike to a cache.
    RgbImage::from_fn(5000, 5000, |x, y| Rgb([x as u8, y as u8, (x ^ y) as u8]))
        .save(place.path("data/a/0.png"))
        .expect("it can be written");
    for class in ["a", "b"] {
        for n in 1..400 {
            let link = place.path(&format!("data/{class}/{n}.png"));
            fs::hard_link(place.path("data/a/0.png"), link).expect("it can be linked");
        }
    }
    let mut command =
        place.command(&["train", "--recipe", "recipe.toml", "--data-dir", "data", "--out", "run"]);
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().expect("the trainer starts");
    std::thread::sleep(Duration::from_secs(3));
    assert!(child.try_wait().expect("it can be asked").is_none(), "it takes longer than that to decode them");
    let kill = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(kill.is_ok_and(|status| status.success()));
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(143), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!place.path("run").exists());
}
