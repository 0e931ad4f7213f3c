//! An architecture crate is enough: the program in the README of `cct`, built and run outside this workspace.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::Path;
use std::process::Command;

/// The README's block whose first line begins with `first`, without the fences, for the workspace at `root`.
fn block(readme: &str, first: &str, root: &Path) -> String {
    let mut blocks = readme.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
    let found = blocks.find(|(_, text)| text.starts_with(first));
    let (_, text) = found.unwrap_or_else(|| panic!("the README has no block that begins with {first:?}"));
    text.replace("/path/to/compact-vision", root.to_str().unwrap())
}

#[test]
fn the_program_in_the_readme_trains_loads_and_predicts() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let readme = fs::read_to_string(root.join("crates/cct/README.md")).unwrap();
    let place = tempfile::tempdir().unwrap();
    let directory = place.path();
    fs::create_dir(directory.join("src")).unwrap();
    fs::create_dir(directory.join(".cargo")).unwrap();
    for (file, first) in [
        ("Cargo.toml", "# Cargo.toml"),
        (".cargo/config.toml", "# .cargo/config.toml"),
        ("src/main.rs", "// src/main.rs"),
    ] {
        fs::write(directory.join(file), block(&readme, first, root)).unwrap();
    }
    // The same releases of everything as here, so that nothing is downloaded.
    fs::copy(root.join("Cargo.lock"), directory.join("Cargo.lock")).unwrap();
    let mut run = Command::new(env!("CARGO"));
    run.args(["run", "--quiet", "--offline"]).current_dir(directory);
    // What cargo and this workspace's configuration set for a test is not there in somebody's shell.
    for variable in
        ["LIBTORCH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"]
    {
        run.env_remove(variable);
    }
    // Kept for the next time: torch-sys takes minutes.
    run.env("CARGO_TARGET_DIR", root.join("target/outside"));
    let output = run.output().unwrap();
    let (said, errors) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(output.status.success(), "{said}{errors}");
    let lines: Vec<&str> = said.lines().collect();
    let [loss, weights] = lines.as_slice() else { panic!("{said}{errors}") };
    // Near ln 3 at the first step of three classes.
    let loss: f64 = loss.strip_prefix("loss ").unwrap().parse().unwrap();
    assert!((0.4..3.0).contains(&loss), "{said}");
    let (sha256, classes) = weights.strip_prefix("weights ").unwrap().split_once(": classes ").unwrap();
    assert!(sha256.len() == 64 && directory.join("shapes.safetensors").exists(), "{said}");
    assert_eq!(classes.split(',').count(), 8, "{said}");
}
