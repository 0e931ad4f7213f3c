//! Memory of training from a folder: it follows the batch and what the network sees, not how large pictures are stored.
#![cfg(target_os = "linux")] // where a record has the peak

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::available_parallelism;

use image::{Rgb, RgbImage};
use serde_json::Value;

const RECIPE: &str = r#"
model = { name = "convmixer_reference", depth = 1, embed_dim = 8 }
dataset = "folder"
[folder]
stored_size = 64
crop_mode = "squash"
interpolation = "bilinear"
on_error = "fail"
test_fraction = 0.2
[data]
image_size = 32
normalize = "unit"
validation.end.fraction = 0.2
[augment]
hflip = 0.5
[train]
epochs = 1
batch_size = 8
label_smoothing = 0.1
select = "last"
[optimizer]
name = "sgd"
lr = 1e-2
momentum = 0.9
nesterov = false
weight_decay = 0.0
[schedule]
name = "constant"
"#;

const PICTURES: usize = 14;
const BATCH: usize = 8;
/// Pictures are stored as squares of so many pixels a side.
const LARGE: usize = 1024;

/// Small pictures of two classes; stored, they are as large as the recipe says.
fn pictures(root: &Path) {
    for class in ["dark", "light"] {
        let directory = root.join("pictures").join(class);
        fs::create_dir_all(&directory).expect("it can be made");
        for number in 0..PICTURES / 2 {
            let base = if class == "dark" { 20 } else { 120 };
            let picture = RgbImage::from_fn(16, 16, |x, y| {
                Rgb([base + (x * 7) as u8, base + (y * 5) as u8, base + number as u8])
            });
            picture.save(directory.join(format!("{number:02}.png"))).expect("it can be written");
        }
    }
    fs::write(root.join("recipe.toml"), RECIPE).expect("it can be written");
}

/// The largest memory of a whole run in MiB.
fn peak(root: &Path, stored: usize, sets: &[&str], flags: &[&str]) -> f64 {
    let (out, stored) = (root.join("run"), format!("folder.stored_size={stored}"));
    let sets = sets.iter().copied().chain([stored.as_str()]).flat_map(|set| ["--set", set]);
    let trained = Command::new(assert_cmd::cargo::cargo_bin!("trainer"))
        .args(["train", "--fresh", "--device", "cpu", "--recipe"])
        .arg(root.join("recipe.toml"))
        .arg("--data-dir")
        .arg(root.join("pictures"))
        .arg("--out")
        .arg(&out)
        .args(sets)
        .args(flags)
        .env("COMPACT_VISION_CACHE", root.join("cache"))
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .output()
        .expect("the trainer starts");
    assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
    let record = fs::read_to_string(out.join("record.json")).expect("it is there");
    let record: Value = serde_json::from_str(&record).expect("it is JSON");
    record["result"]["peak_memory_mb"].as_f64().expect("it is a number")
}

/// Whatever is done to pictures that are stored large, it takes two batches of them in floats at most beside the set.
fn assert_follows_the_batch(sets: &[&str]) {
    let root = tempfile::tempdir().expect("a temporary directory can be made");
    pictures(root.path());
    let pixels = LARGE * LARGE;
    let batches = 2 * BATCH * 3 * pixels * size_of::<f32>();
    // Each thread that decodes has a few pictures in the making; two threads are no matter.
    let decoding = 6 * 3 * pixels * available_parallelism().map_or(1, usize::from).saturating_sub(2);
    // The sheet of the first batch is among what is to be written.
    for (flags, held) in [(["--tensorboard"].as_slice(), PICTURES * 3 * pixels), (&["--stream"], 0)] {
        let [small, large] = [64, LARGE].map(|stored| peak(root.path(), stored, sets, flags));
        let [held, most] = [held, batches + decoding].map(|bytes| bytes as f64 / f64::from(1 << 20));
        let grown = large - small - held;
        let found = format!(
            "{sets:?} {flags:?}: {small} MiB with 64 pixels a side, {large} with {LARGE}, {grown:.0} beside the set"
        );
        println!("{found}");
        assert!(grown <= most, "{found}, more than {most:.0}");
    }
}

#[test]
fn resizing_floats_as_keras_does_takes_two_batches_at_most() {
    assert_follows_the_batch(&[]);
}

#[test]
fn cropping_and_resizing_bytes_as_pil_does_takes_two_batches_at_most() {
    assert_follows_the_batch(&[
        "data.resize={interpolation=\"bicubic\",crop_pct=1.0}",
        "data.normalize=adapt",
        "augment.resized_crop.scale=[0.08, 1.0]",
        "augment.resized_crop.ratio=[0.75, 1.3333]",
        "augment.resized_crop.interpolation=random",
    ]);
}

#[test]
fn changing_colours_and_shapes_before_anything_else_takes_two_batches_at_most() {
    assert_follows_the_batch(&[
        "augment.policy.name=rand-m9-n3-mstd0.5-inc1-p1",
        "augment.policy.first=true",
        "augment.padding=4",
        "augment.vflip=0.5",
        "augment.color_jitter={brightness=0.4,contrast=0.4,saturation=0.4,hue=0.1}",
    ]);
}
