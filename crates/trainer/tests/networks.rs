//! `summary`, `forward`, `init` and starting from given weights, from the outside.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use tch::{Device, Kind, Tensor};
use trainer::network::weights::{Head, WeightsFile, load, save};
use trainer::{Error, network::registry};

const NETWORK: [&str; 5] = ["vit_reference", "--image-size", "24", "--set", "model.depth=1"];

fn trainer(arguments: &[&str], files: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("trainer"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    command.env("RUST_BACKTRACE", "1").current_dir(root).args(arguments);
    for (flag, file) in files {
        command.arg(flag).arg(file);
    }
    command.output().expect("the trainer starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The one line of an error, checked to be one line.
fn error_line(output: &Output, code: i32) -> String {
    let line = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{line}");
    assert!(line.starts_with("error: ") && line.trim_end().lines().count() == 1, "{line}");
    line
}

fn read_tensor(path: &Path, name: &str) -> Result<Tensor, Error> {
    Ok(WeightsFile::open(path)?.tensor(name)?)
}

fn write(path: &Path, name: &str, tensor: Tensor) {
    save(path, &BTreeMap::from([(name.to_owned(), tensor)])).expect("the disk has room");
}

/// Fresh weights and three images in a directory, and the place of the output.
fn files(directory: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let weights = directory.join("weights.safetensors");
    let made = trainer(&[&["init"], &NETWORK[..]].concat(), &[("--output", &weights)]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let input = directory.join("input.safetensors");
    write(&input, "input", Tensor::rand([3, 3, 24, 24], (Kind::Float, Device::Cpu)));
    (weights, input, directory.join("output.safetensors"))
}

fn forward(network: &[&str], weights: &Path, input: &Path, output: &Path) -> Output {
    let files = [("--weights", weights), ("--input", input), ("--output", output)];
    trainer(&[&["forward"], network].concat(), &files)
}

#[test]
fn forward_writes_what_the_library_computes() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let (weights, input, output) = files(directory.path());
    let ran = forward(&NETWORK, &weights, &input, &output);
    assert!(ran.status.success() && ran.stderr.is_empty(), "{}", text(&ran.stderr));

    let fields = [("image_size", 24), ("depth", 1)];
    let fields = fields.map(|(name, value)| (name.to_owned(), run_record::FieldValue::Integer(value)));
    let architecture = registry::find("vit_reference").and_then(|a| a.with_fields(&fields.into()));
    let architecture = architecture.expect("the fields are in range");
    let vs = tch::nn::VarStore::new(Device::Cpu);
    let network = architecture.init(&vs.root()).expect("it builds");
    load(&vs, &architecture, &weights, Head::Same).expect("the weights fit");
    let images = read_tensor(&input, "input").expect("it was just written");
    let (logits, maps) =
        tch::no_grad(|| (network.forward_t(&images, false), network.attention_maps(&images)));
    let read = |name| read_tensor(&output, name).expect("it is there");
    assert!((read("logits") - logits).abs().max().double_value(&[]) < 1e-5);
    assert!((read("attention") - maps.expect("there is attention")).abs().max().double_value(&[]) < 1e-5);
    assert_eq!(read("features").size(), [3, 64]);
    assert!(read_tensor(&output, "input").is_err());
}

#[test]
fn a_head_for_other_classes_takes_the_flag_and_is_announced() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let (weights, input, output) = files(directory.path());
    let seven = [&NETWORK[..], &["--num-classes", "7"]].concat();
    let ran = forward(&seven, &weights, &input, &output);
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    assert!(text(&ran.stderr).contains("drawn anew: head.bias, head.weight"), "{}", text(&ran.stderr));
    assert_eq!(read_tensor(&output, "logits").expect("it is there").size(), [3, 7]);
    // Through a field of the configuration it is another network, and strictly so.
    let field = [&NETWORK[..], &["--set", "model.num_classes=7"]].concat();
    let line = error_line(&forward(&field, &weights, &input, &output), 1);
    assert!(line.contains("head.bias is [10], the network has [7]"), "{line}");
}

#[test]
fn requests_that_do_not_fit_are_answered_in_one_line() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let (weights, input, output) = files(directory.path());
    let whole = forward(&["vit_reference"], &weights, &input, &output);
    let line = error_line(&whole, 1);
    assert!(line.contains("is [3, 3, 24, 24], vit_reference takes [B, 3, 72, 72]"), "{line}");
    let line = error_line(&forward(&["vit_referense"], &weights, &input, &output), 2);
    assert!(line.contains("nearest: vit_reference"), "{line}");
    let line = error_line(&trainer(&["summary", "vit_reference", "--set", "depth=1"], &[]), 2);
    assert!(line.contains("expected model.FIELD=VALUE"), "{line}");
    let line = error_line(&trainer(&["summary", "vit_reference", "--image-size", "70"], &[]), 2);
    assert!(line.contains("model.image_size = 70: a multiple of"), "{line}");
    let line = error_line(&forward(&NETWORK, &weights, &weights, &output), 1);
    assert!(line.contains("no tensor \"input\""), "{line}");
    assert!(!output.exists());
}

#[test]
fn summary_is_a_table_and_json() {
    let table = text(&trainer(&[&["summary"], &NETWORK[..]].concat(), &[]).stdout);
    assert!(table.contains("blocks.0.attn.qkv ") && table.contains("[1, 17, 192]"), "{table}");
    // Patches 6,976, class token 64, positions 17·64, a block 33,472, norm 128, head 650.
    assert!(table.contains("vit_reference: 42,378 parameters"), "{table}");
    let json = trainer(&[&["summary", "--json"], &NETWORK[..]].concat(), &[]).stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).expect("it is JSON");
    assert_eq!(json["trainable"], 42_378);
    let kinds: Vec<&str> =
        json["layers"].as_array().into_iter().flatten().filter_map(|layer| layer["kind"].as_str()).collect();
    assert_eq!(kinds[..4], ["Conv2d", "ClassToken", "PositionEmbedding", "LayerNorm"]);
}

#[test]
fn a_run_can_start_from_weights_for_other_classes() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let weights = directory.path().join("weights.safetensors");
    let network = ["convmixer_reference", "--set", "model.embed_dim=16", "--set", "model.depth=1"];
    let made = trainer(
        &[&["init", "--seed", "1", "--num-classes", "3"], &network[..]].concat(),
        &[("--output", &weights)],
    );
    assert!(made.status.success(), "{}", text(&made.stderr));
    let run = directory.path().join("run");
    let train = |epochs: &str| {
        let sets = [&network[1..], &["--set", epochs, "--device", "cpu"]].concat();
        let chosen = ["train", "--model", network[0], "--preset", "quick"];
        trainer(&[&chosen[..], &sets].concat(), &[("--weights", &weights), ("--out", &run)])
    };
    let ran = train("train.epochs=1");
    let said = text(&ran.stdout);
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    assert!(said.contains("drawn anew: head.bias, head.weight"), "{said}");
    let recipe = fs::read_to_string(run.join("recipe.toml")).expect("there is a recipe");
    assert!(recipe.contains("[initial_weights]") && recipe.contains("sha256 = "), "{recipe}");
    // The stem is near the file's, which another seed drew: an epoch cannot have moved it there.
    let stem = |file: &Path| read_tensor(file, "stem.0.weight").expect("it is there");
    let moved = (stem(&run.join("last.safetensors")) - stem(&weights)).abs().max().double_value(&[]);
    assert!(moved > 0.0 && moved < 0.1, "{moved}");

    // Repeated by its recipe, the file must still be the same one.
    let mut bytes = fs::read(&weights).expect("it is there");
    *bytes.last_mut().expect("it is not empty") ^= 1;
    fs::write(&weights, bytes).expect("it can be written");
    let again = directory.path().join("again");
    let line =
        error_line(&trainer(&["train"], &[("--recipe", &run.join("recipe.toml")), ("--out", &again)]), 1);
    assert!(line.contains("the recipe's initial weights have"), "{line}");
}
