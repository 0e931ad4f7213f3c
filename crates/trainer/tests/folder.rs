//! Training from folders of pictures, from the command line.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use image::{Rgb, RgbImage};
use serde_json::Value;
use tempfile::TempDir;

const RECIPE: &str = r#"
model = { name = "convmixer_reference", depth = 1, embed_dim = 8 }
dataset = "folder"
[folder]
stored_size = 12
crop_mode = "squash"
interpolation = "bicubic"
on_error = "skip"
test_fraction = 0.2
[data]
image_size = 8
resize = { interpolation = "bilinear", crop_pct = 1.0 }
normalize = "adapt"
validation.end.fraction = 0.25
[augment]
hflip = 0.5
resized_crop = { scale = [0.5, 1.0], ratio = [0.75, 1.3333], interpolation = "random" }
policy.name = "rand-m9-mstd0.5-inc1"
color_jitter = { brightness = 0.4, contrast = 0.4, saturation = 0.4, hue = 0.1 }
erasing = { prob = 0.25, mode = "pixel", count = 1 }
mixup.alpha = 0.8
cutmix.alpha = 1.0
mix = { prob = 1.0, switch_prob = 0.5, mode = "elem", off_epoch = 1 }
[train]
epochs = 2
batch_size = 8
label_smoothing = 0.1
select = "last"
[optimizer]
name = "adamw"
lr = 1e-2
beta1 = 0.9
beta2 = 0.999
eps = 1e-8
weight_decay = 0.01
scale_decay_by_lr = true
[schedule]
name = "constant"
"#;

/// Thirty pictures of two classes and sizes, a damaged one, and a text.
fn pictures() -> TempDir {
    let root = tempfile::tempdir().expect("a temporary directory can be made");
    for (class, count) in [("dark", 18u8), ("light", 12)] {
        let directory = root.path().join("pictures").join(class);
        fs::create_dir_all(&directory).expect("it can be made");
        for number in 0..count {
            let base = if class == "dark" { 20 } else { 180 };
            let picture = RgbImage::from_fn(12 + u32::from(number % 3), 12, |x, y| {
                Rgb([base + (x * 3) as u8, base + (y * 2) as u8, base + number])
            });
            picture.save(directory.join(format!("{number:02}.png"))).expect("it can be written");
        }
    }
    let dark = root.path().join("pictures/dark");
    let whole = fs::read(dark.join("00.png")).expect("it is there");
    fs::write(dark.join("damaged.png"), &whole[..whole.len() / 2]).expect("it can be written");
    fs::write(dark.join("notes.txt"), "none").expect("it can be written");
    fs::write(root.path().join("recipe.toml"), RECIPE).expect("it can be written");
    root
}

fn run(root: &Path, arguments: &[&str]) -> Output {
    let command = arguments[0];
    Command::new(assert_cmd::cargo::cargo_bin!("trainer"))
        .args([command, "--recipe"])
        .arg(root.join("recipe.toml"))
        .arg("--data-dir")
        .arg(root.join("pictures"))
        .args(["--device", "cpu"])
        .args(&arguments[1..])
        .env("COMPACT_VISION_CACHE", root.join("cache"))
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .output()
        .expect("the trainer starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_run_from_a_folder_is_the_same_held_or_streamed_and_names_what_it_left_out() {
    let root = pictures();
    let train = |name: &str, more: &[&str]| {
        let out = root.path().join(name);
        let out_text = out.display().to_string();
        let ran = run(root.path(), &[&["train", "--out", &out_text], more].concat());
        assert!(ran.status.success(), "{}", text(&ran.stderr));
        let record = fs::read_to_string(out.join("record.json")).expect("it is there");
        let record: Value = serde_json::from_str(&record).expect("it is JSON");
        (record, fs::read(out.join("last.safetensors")).expect("it is there"), text(&ran.stdout))
    };
    let (held, weights, said) = train("held", &[]);
    assert_eq!(held["skipped_files"], 1);
    assert_eq!(
        (&held["result"]["dataset"], &held["result"]["status"]),
        (&"folder".into(), &"complete".into())
    );
    assert!(said.contains("left out dark/damaged.png: ") && said.contains("1 txt"), "{said}");
    assert!(said.contains("18 of folder images for training"), "{said}"); // 30, 6 for testing, 6 for validation
    let (streamed, streamed_weights, _) = train("streamed", &["--stream"]);
    for key in ["val_top1", "test_top1", "test_loss", "data_sha256", "recipe_sha256"] {
        assert_eq!(held["result"][key], streamed["result"][key], "{key}");
    }
    // Batches are alike to the last bit, so the weights are, and so are the files.
    assert!(weights == streamed_weights, "the weights differ");

    let fatal = run(
        root.path(),
        &[
            "train",
            "--set",
            "folder.on_error=fail",
            "--out",
            &root.path().join("never").display().to_string(),
        ],
    );
    assert_eq!(fatal.status.code(), Some(1));
    assert!(text(&fatal.stderr).contains("damaged.png"), "{}", text(&fatal.stderr));
}

#[test]
fn inspect_counts_the_classes_and_shows_the_first_batch() {
    let root = pictures();
    let sheet = root.path().join("sheet.png");
    let shown =
        run(root.path(), &["inspect", "--count", "5", "--json", "--output", &sheet.display().to_string()]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    let summary: Value = serde_json::from_slice(&shown.stdout).expect("it is JSON");
    assert_eq!(summary["total"]["train"], 18);
    assert_eq!(
        summary["classes"][0],
        serde_json::json!({"name": "dark", "train": 11, "validation": 3, "test": 4})
    );
    assert_eq!(summary["skipped"].as_array().map(Vec::len), Some(1));
    let mean = summary["mean"][0].as_f64().expect("it is a number");
    assert!((0.3..0.5).contains(&mean), "{mean}");
    // Four pairs in the first row, one in the second.
    let sheet = image::open(&sheet).expect("it is a picture").into_rgb8();
    assert_eq!(sheet.dimensions(), (8 + 4 * 280, 8 + 2 * 148));
    let streamed = run(root.path(), &["inspect", "--stream", "--json"]);
    assert_eq!(text(&streamed.stdout), text(&shown.stdout));
}

#[test]
fn a_folder_has_to_be_named() {
    let root = pictures();
    let recipe = root.path().join("recipe.toml");
    let ran = Command::new(assert_cmd::cargo::cargo_bin!("trainer"))
        .args(["train", "--device", "cpu", "--out"])
        .arg(root.path().join("out"))
        .arg("--recipe")
        .arg(recipe)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .output()
        .expect("the trainer starts");
    assert_eq!(ran.status.code(), Some(2));
    assert!(text(&ran.stderr).contains("--data-dir"), "{}", text(&ran.stderr));
}
