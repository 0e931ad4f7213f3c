//! A workspace of a test's own: recipes, what looks like libtorch, and a script in the trainer's place.

use std::fs;
use std::path::Path;
use std::process::Command;

/// A program that is a shell script. It is written by another process: a file this one has just written may be held
/// open by a child of another test, and then cannot be run.
pub fn install(program: &Path, script: &str) {
    let dir = program.parent().unwrap();
    fs::create_dir_all(dir).unwrap();
    let text = dir.join("script");
    fs::write(&text, script).unwrap();
    assert!(Command::new("install").args(["-m", "755"]).arg(&text).arg(program).status().unwrap().success());
}

/// Fills `dir` with two recipes of `preset` for digits, what looks like libtorch, and a trainer.
pub fn workspace(dir: &Path, preset: &str, trainer: &str) {
    let recipe = include_str!("../../../recipes/quick/vit.toml");
    let recipes = dir.join("recipes").join(preset);
    fs::create_dir_all(&recipes).unwrap();
    for name in ["a", "b"] {
        fs::write(recipes.join(name).with_extension("toml"), recipe).unwrap();
    }
    let library = if cfg!(target_os = "macos") { "libtorch_cpu.dylib" } else { "libtorch_cpu.so" };
    for (file, text) in [
        (&format!("libtorch/lib/{library}")[..], ""),
        ("libtorch/include/torch/csrc/api/include/torch/torch.h", ""),
        ("libtorch/build-version", "2.11.0"),
    ] {
        fs::create_dir_all(dir.join(file).parent().unwrap()).unwrap();
        fs::write(dir.join(file), text).unwrap();
    }
    install(&dir.join("target/release/trainer"), trainer);
}

/// xtask in that workspace, without anything of the user's; building does nothing.
pub fn xtask(dir: &Path) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("xtask"));
    command
        .current_dir(dir)
        .env("CARGO_MANIFEST_DIR", dir.join("xtask"))
        .env("CARGO_TARGET_DIR", dir.join("target"))
        .env("COMPACT_VISION_CACHE", dir.join("cache"))
        .env("LIBTORCH", dir.join("libtorch"))
        .env("CARGO", "true")
        .env_remove("LIBTORCH_USE_PYTORCH")
        .env_remove("VIRTUAL_ENV");
    command
}
