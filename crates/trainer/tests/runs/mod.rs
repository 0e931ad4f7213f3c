//! Starting the `trainer` program and reading what a run leaves.

#![allow(dead_code, reason = "no test program needs all of it")]

pub mod hub;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;

/// The program, in the workspace.
pub fn trainer() -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("trainer"));
    // One line per error is promised whatever the environment asks for. Tests run side by side, so one thread each.
    command.env("RUST_BACKTRACE", "1").env("OMP_NUM_THREADS", "1").current_dir(root());
    command
}

/// The workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What was printed.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The one line of an error, checked to be one line.
pub fn error_line(output: &Output, code: i32) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.starts_with("error: ") && text.trim_end().lines().count() == 1, "{text}");
    text
}

/// `history.csv` without the columns that measure time.
pub fn history(run: &Path) -> Vec<Vec<String>> {
    let mut reader = csv::Reader::from_path(run.join("history.csv")).expect("there is a history");
    let header = reader.headers().expect("it has a header").clone();
    let timed = ["images_per_second", "train_seconds", "val_seconds"];
    reader
        .records()
        .map(|row| {
            let row = row.expect("it is whole");
            let kept = header.iter().zip(&row).filter(|(name, _)| !timed.contains(name));
            kept.map(|(_, value)| value.to_owned()).collect()
        })
        .collect()
}

/// `record.json`.
pub fn record(run: &Path) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(run.join("record.json")).expect("there is a record"))
        .expect("it is JSON")
}

/// A directory for each of `classes` with so many pictures of its own brightness.
pub fn pictures(place: &Path, classes: &[(&str, u8)]) {
    for (class, (name, count)) in classes.iter().enumerate() {
        let directory = place.join(name);
        fs::create_dir_all(&directory).expect("it can be made");
        for number in 0..*count {
            let base = (class * 40) as u8;
            let picture = image::RgbImage::from_fn(16 + u32::from(number % 3), 16, |x, y| {
                image::Rgb([base + (x * 3) as u8, base + (y * 2) as u8, base + number])
            });
            picture.save(directory.join(format!("{number:02}.png"))).expect("it can be written");
        }
    }
}
