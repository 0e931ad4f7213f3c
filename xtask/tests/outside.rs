//! An architecture crate is enough: the programs in the README of `cct` and in docs/exporting.md, built and run outside this
//! workspace.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Leaves weights that describe themselves as a run's do, and their answer to one image.
const MAKE: &str = r###"
use cct::tch::{Device, Kind, Tensor, nn, no_grad};
use cct::{CctConfig, Model, core_layers::ToJson, weights};

fn main() {
    let config = CctConfig { num_classes: 3, image_size: 16, ..CctConfig::reference() };
    let vs = nn::VarStore::new(Device::Cpu);
    let network = config.init(&vs.root()).unwrap();
    let about = format!(
        r##"{{"model": "shapes", "family": "cct", "config": {}, "channel_mean": [10, 20, 30],
            "channel_std": [2, 4, 8], "class_names": ["circle", "square", "star"], "later": 1}}"##,
        config.to_json()
    );
    let tensors = vs.variables().into_iter().collect();
    let about = [(weights::CARD_KEY.to_owned(), about)].into();
    let file = std::fs::File::create("best.safetensors").unwrap();
    weights::write_safetensors(file, &tensors, &about).unwrap();
    let image = Tensor::arange(3 * 16 * 16, (Kind::Float, Device::Cpu)).remainder(256).view([16, 16, 3]);
    let channels = |values: &[f32]| Tensor::from_slice(values);
    let image = (image - channels(&[10., 20., 30.])) / channels(&[2., 4., 8.]);
    let images = image.permute([2, 0, 1]).unsqueeze(0);
    let shares = no_grad(|| network.forward_t(&images, false)).softmax(-1, Kind::Float);
    let class = shares.argmax(-1, false).int64_value(&[0]);
    println!("{} {:.3}", ["circle", "square", "star"][class as usize], shares.double_value(&[0, class]));
}
"###;

/// The page's block whose first line begins with `first`, without the fences, for the workspace at `root`.
fn block(readme: &str, first: &str, root: &Path) -> String {
    let mut blocks = readme.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
    let found = blocks.find(|(_, text)| text.starts_with(first));
    let (_, text) = found.unwrap_or_else(|| panic!("the page has no block that begins with {first:?}"));
    text.replace("/path/to/compact-vision", root.to_str().unwrap())
}

#[test]
fn the_programs_in_the_pages_train_load_predict_and_serve() {
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
    let exporting = fs::read_to_string(root.join("docs/exporting.md")).unwrap();
    fs::create_dir(directory.join("src/bin")).unwrap();
    fs::write(directory.join("src/bin/serve.rs"), block(&exporting, "// src/bin/serve.rs", root)).unwrap();
    fs::write(directory.join("src/bin/make.rs"), MAKE).unwrap();
    // The same releases of everything as here, so that nothing is downloaded.
    fs::copy(root.join("Cargo.lock"), directory.join("Cargo.lock")).unwrap();
    let run = |program: &str, input: &[u8]| {
        let mut run = Command::new(env!("CARGO"));
        run.args(["run", "--quiet", "--offline", "--bin", program]).current_dir(directory);
        // What cargo and this workspace's configuration set for a test is not there in somebody's shell.
        for variable in
            ["LIBTORCH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"]
        {
            run.env_remove(variable);
        }
        // Kept for the next time: torch-sys takes minutes.
        run.env("CARGO_TARGET_DIR", root.join("target/outside"));
        run.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut started = run.spawn().unwrap();
        // One that reads nothing may be gone already.
        let _ = started.stdin.take().unwrap().write_all(input);
        let output = started.wait_with_output().unwrap();
        let (said, errors) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(output.status.success(), "{said}{errors}");
        (said, errors)
    };
    let (said, errors) = run("shapes", &[]);
    let lines: Vec<&str> = said.lines().collect();
    let [loss, weights] = lines.as_slice() else { panic!("{said}{errors}") };
    // Near ln 3 at the first step of three classes.
    let loss: f64 = loss.strip_prefix("loss ").unwrap().parse().unwrap();
    assert!((0.4..3.0).contains(&loss), "{said}");
    let (sha256, classes) = weights.strip_prefix("weights ").unwrap().split_once(": classes ").unwrap();
    assert!(sha256.len() == 64 && directory.join("shapes.safetensors").exists(), "{said}");
    assert_eq!(classes.split(',').count(), 8, "{said}");

    let (made, _) = run("make", &[]);
    let pixels: Vec<u8> = (0..3 * 16 * 16).map(|number| (number % 256) as u8).collect();
    // Two images, the same.
    let (served, _) = run("serve", &[&pixels[..], &pixels[..]].concat());
    assert_eq!(served, made.repeat(2));
}
