//! tract computes what the trainer does from an exported ONNX file, for one image and for three.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use tract_onnx::prelude::*;

/// A network of each architecture, and the side of its images.
const NETWORKS: [(&str, usize); 5] = [
    ("cct_reference", 32),
    ("convmixer_reference", 32),
    ("gcvit_xxtiny_64", 64),
    ("patchconvnet_reference", 48),
    ("vit_reference", 72),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..")
}

fn trainer(arguments: &[&str]) {
    let mut trainer = Command::new(root().join("target/release/trainer"));
    trainer.env("LD_LIBRARY_PATH", root().join(".libtorch/lib")).args(arguments);
    let output = trainer.output().expect("cargo build --release -p trainer has built it");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Numbers from -1 to 1 that look random.
fn noise(count: usize, seed: usize) -> Vec<f32> {
    let mut state = seed as u64 + 1;
    let mut next = || {
        // Knuth's linear congruential generator.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

/// Writes f32 tensors.
fn save(path: &Path, tensors: &BTreeMap<String, (Vec<usize>, Vec<u8>)>) {
    let views = tensors
        .iter()
        .map(|(name, (shape, bytes))| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    fs::write(path, serialize(views, None).unwrap()).unwrap();
}

/// Puts something into the vectors of a network: as drawn, biases are zero and factors one, which hides what they belong to.
fn fill(path: &Path) {
    let file = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let filled = tensors.iter().enumerate().map(|(number, (name, view))| {
        assert_eq!(view.dtype(), Dtype::F32, "{name}");
        let count: usize = view.shape().iter().product();
        let drawn = || noise(count, number).into_iter();
        let values: Vec<f32> = match view.shape().len() {
            0 | 1 if name.ends_with(".bias") || name.ends_with("running_mean") => {
                drawn().map(|v| v * 0.3).collect()
            }
            0 | 1 => drawn().map(|v| v * 0.3 + 0.9).collect(),
            _ => floats(view.data()),
        };
        (name.to_owned(), (view.shape().to_vec(), bytes(&values)))
    });
    save(path, &filled.collect());
}

#[test]
#[ignore = "needs the trainer built in release; .ci/tract runs it"]
fn tract_computes_what_the_trainer_does() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let text = |name: &str| at(name).display().to_string();
    for (model, side) in NETWORKS {
        trainer(&["init", model, "--output", &text("weights.safetensors")]);
        fill(&at("weights.safetensors"));
        let weights = text("weights.safetensors");
        trainer(&["export", &weights, "--model", model, "--format", "onnx", "--out", &text("network.onnx")]);
        // The size of a batch is a symbol in it.
        let graph = tract_onnx::onnx().model_for_path(at("network.onnx")).unwrap();
        let network = graph.into_optimized().unwrap().into_runnable().unwrap();
        for batch in [1, 3] {
            let shape = [batch, 3, side, side];
            let images = noise(shape.iter().product(), 1_000 + batch);
            save(&at("input.safetensors"), &[("input".to_owned(), (shape.to_vec(), bytes(&images)))].into());
            trainer(&[
                "forward",
                model,
                "--weights",
                &weights,
                "--input",
                &text("input.safetensors"),
                "--output",
                &text("output.safetensors"),
            ]);
            let output = fs::read(at("output.safetensors")).unwrap();
            let ours = floats(SafeTensors::deserialize(&output).unwrap().tensor("logits").unwrap().data());

            let images = Tensor::from_shape(&shape, &images).unwrap();
            let theirs = network.run(tvec!(images.into())).unwrap();
            let theirs: Vec<f32> = theirs[0].to_plain_array_view::<f32>().unwrap().iter().copied().collect();

            assert_eq!((ours.len(), theirs.len()), (10 * batch, 10 * batch), "{model}");
            let largest = ours.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            let difference = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            println!("{model}, {batch} images: {difference:.1e} of {largest:.2}");
            assert!(
                largest > 1e-2 && difference <= 1e-4 * largest.max(1.0),
                "{model}: {difference} of {largest}"
            );
        }
    }
}
