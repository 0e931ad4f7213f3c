//! What `export` writes, read by other programs: TorchScript by libtorch, and files by those who look for them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod runs;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use core_layers::Model;
use runs::{error_line, trainer};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tch::nn::VarStore;
use tch::{CModule, Device, Kind, Tensor};
use trainer::export::graph::{Argument, Graph, Size};
use trainer::export::{onnx, script};
use trainer::look::trained::Trained;
use trainer::network::registry::{self, Architecture};

/// One network of each architecture.
const NETWORKS: [&str; 5] =
    ["cct_reference", "vit_reference", "convmixer_reference", "patchconvnet_reference", "gcvit_xxtiny_64"];

/// A network with random numbers in every tensor, so that none is hidden by a factor of zero.
fn network(name: &str) -> (Architecture, VarStore, Box<dyn Model>) {
    let architecture = registry::find(name).unwrap();
    let vs = VarStore::new(Device::Cpu);
    let network = architecture.init(&vs.root()).unwrap();
    // Matrices and kernels are drawn; what starts as zeros, ones or nearly nothing is not.
    let vectors = vs.variables().into_iter().filter(|(_, tensor)| tensor.dim() < 2);
    for (name, mut tensor) in vectors {
        let filled = test_support::tensor(&name, &tensor.size(), test_support::Role::Gain);
        tch::no_grad(|| tensor.copy_(&filled));
    }
    (architecture, vs, network)
}

/// Pictures as a network is fed them.
fn pictures(batch: i64, side: i64) -> Tensor {
    test_support::images(batch, side) / 127.5 - 1.0
}

fn graph_of(name: &str) -> (Architecture, VarStore, Box<dyn Model>, Graph) {
    let (architecture, vs, network) = network(name);
    let graph = Graph::of(network.as_ref(), &vs, architecture.facts.image_size, None).unwrap();
    (architecture, vs, network, graph)
}

/// Fails unless two are alike to `bound` of the largest logit, or 1 if that is smaller.
fn same(what: &str, ours: &Tensor, theirs: &Tensor, bound: f64) {
    assert_eq!(ours.size(), theirs.size(), "{what}");
    let difference = (ours - theirs).abs().max().double_value(&[]);
    let scale = ours.abs().max().double_value(&[]);
    assert!(scale > 1e-3, "{what}: logits of {scale} say nothing");
    assert!(difference <= bound * scale.max(1.0), "{what}: {difference} of {scale}");
}

#[test]
fn torchscript_files_compute_the_same_for_one_image_and_for_three_and_keep_names() {
    for name in NETWORKS {
        let (architecture, vs, network, graph) = graph_of(name);
        let mut file = Vec::new();
        let files = [("about".to_owned(), name.to_owned())].into();
        // Neither statistics nor the places in a table of biases.
        let trainable = |name: &str| !name.contains("running_") && !name.starts_with("constants.");
        script::write(&mut file, &graph, trainable, &files).unwrap();
        let module = CModule::load_data(&mut file.as_slice()).unwrap();
        for batch in [1, 3] {
            let images = pictures(batch, architecture.facts.image_size);
            let ours = tch::no_grad(|| network.forward_t(&images, false));
            let theirs = tch::no_grad(|| module.forward_ts(&[images]).unwrap());
            same(&format!("{name}, {batch}"), &ours, &theirs, 1e-5);
        }
        let theirs: BTreeSet<String> =
            module.named_parameters().unwrap().into_iter().map(|(name, _)| name).collect();
        let ours: BTreeSet<String> =
            vs.variables().into_keys().filter(|name| !name.contains("running_")).collect();
        assert_eq!(theirs, ours, "{name}");
    }
}

/// Every variant that is quick enough: nothing it does is missing from the table, and no tensor from the file.
#[test]
fn every_network_can_be_written() {
    for name in registry::names() {
        let facts = registry::find(name).unwrap().facts;
        if facts.params > 30_000_000 || facts.macs > 3_000_000_000 {
            continue;
        }
        let (_, vs, _, graph) = graph_of(name);
        let named: BTreeSet<&str> = graph.tensors.values().map(|named| named.name.as_str()).collect();
        let lost: Vec<String> =
            vs.variables().into_keys().filter(|tensor| !named.contains(tensor.as_str())).collect();
        assert_eq!(lost, [""; 0], "{name}");
        let batches =
            graph.nodes.iter().flat_map(|node| &node.arguments).filter(
                |argument| matches!(argument, Argument::Ints(sizes) if sizes.contains(&Size::Batch(1))),
            );
        if ["cct", "vit"].contains(&facts.family) {
            assert!(batches.count() > 0, "{name}: no size of it depends on the batch");
        }
        let file = onnx::encode(&graph, name, false, &BTreeMap::new()).unwrap();
        let weights = 4 * facts.params as usize;
        assert!(file.len() >= weights && file.len() < weights + weights / 4 + 2_000_000, "{name}");
        assert!(
            onnx::encode(&graph, name, true, &BTreeMap::new()).unwrap().len() < file.len() * 3 / 4,
            "{name}"
        );
    }
}

/// A finished run of one epoch.
fn run(directory: &Path, model: &str, sets: &[&str]) -> PathBuf {
    let out = directory.join("run");
    let mut command = trainer();
    command.args([
        "train",
        "--model",
        model,
        "--preset",
        "quick",
        "--device",
        "cpu",
        "--set",
        "train.epochs=1",
    ]);
    for set in sets {
        command.args(["--set", set]);
    }
    let output = command.arg("--out").arg(&out).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    out
}

fn export(weights: &Path, format: &str, out: &Path, more: &[&str]) -> Output {
    let mut command = trainer();
    command.arg("export").arg(weights).args(["--format", format, "--out"]).arg(out).args(more);
    command.output().unwrap()
}

fn exported(weights: &Path, format: &str, out: &Path, more: &[&str]) {
    let output = export(weights, format, out, more);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_run_is_written_with_normalisation_inside_and_in_every_format() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let small =
        ["model.embed_dim=16", "model.depth=2", "schedule.name=constant", "model.act_on_output=false"];
    let run = run(directory.path(), "vit_reference", &small);

    // Pixels in, as a program has them.
    let trained = Trained::open(&run, Device::Cpu).unwrap();
    let side = trained.card.recipe.data.image_size;
    let bytes = test_support::images(3, side).to_kind(Kind::Uint8);
    let ours =
        tch::no_grad(|| trained.network.forward_t(&trained.presentation.plain(&bytes).unwrap(), false));
    let pixels = bytes.to_kind(Kind::Float) / 255.0;
    exported(&run, "torchscript", &at("network.pt"), &["--normalize-inside"]);
    let module = CModule::load(at("network.pt")).unwrap();
    same("pixels", &ours, &module.forward_ts(&[&pixels]).unwrap(), 1e-5);

    // The same weights again, which a network can be opened from.
    exported(&run, "safetensors", &at("again.safetensors"), &[]);
    let again = Trained::open(&at("again.safetensors"), Device::Cpu).unwrap();
    assert_eq!(again.card, trained.card);
    let fed = trained.presentation.plain(&bytes).unwrap();
    let theirs = tch::no_grad(|| again.network.forward_t(&fed, false));
    // The same sums, which may start elsewhere in memory.
    same("weights read again", &ours, &theirs, 1e-6);

    // Half the size, and nothing else in it.
    exported(&run, "state-dict", &at("half.safetensors"), &["--precision", "bf16"]);
    let bytes = fs::read(at("half.safetensors")).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap().len(), 1);
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert!(tensors.tensors().iter().all(|(_, tensor)| tensor.dtype() == Dtype::BF16));

    // timm's directory, with the numbers of the run on its card.
    exported(&run, "timm", &at("timm"), &[]);
    let config: Value = serde_json::from_slice(&fs::read(at("timm/config.json")).unwrap()).unwrap();
    assert_eq!(config["architecture"], "vit_base_patch16_224");
    assert_eq!(config["model_args"]["embed_dim"], 16);
    assert_eq!(config["label_names"].as_array().unwrap().len(), 10);
    assert_eq!(config["pretrained_cfg"]["input_size"], serde_json::json!([3, side, side]));
    let card = fs::read_to_string(at("timm/README.md")).unwrap();
    let accuracy = runs::record(&run)["result"]["test_top1"].as_f64().unwrap();
    for words in [&format!("| Top-1 | {:.2} %, 95 % interval ", 100.0 * accuracy), "CC BY 4.0", "epochs = 1"]
    {
        assert!(card.contains(words), "{words}: {card}");
    }
    // One for a hub, with an ONNX file that takes pixels.
    exported(&run, "hub", &at("hub"), &[]);
    let card = fs::read_to_string(at("hub/README.md")).unwrap();
    for words in ["| Top-1 | ", "InferenceSession(\"network.onnx\")", "config::<VitConfig>()"] {
        assert!(card.contains(words), "{words}: {card}");
    }
    assert!(!card.contains("import timm") && !card.contains("library_name"), "{card}");
    assert_eq!(Trained::open(&at("hub/model.safetensors"), Device::Cpu).unwrap().card, trained.card);
    exported(&run, "onnx", &at("network.onnx"), &["--normalize-inside"]);
    assert!(fs::read(at("hub/network.onnx")).unwrap() == fs::read(at("network.onnx")).unwrap());
    assert!(error_line(&export(&run, "hub", &at("hub"), &[]), 2).contains("holds files already"));
    let again = export(&run, "timm", &at("timm"), &[]);
    assert!(error_line(&again, 2).contains("this directory holds files already"));

    // Other weights than the record's have none of its numbers.
    exported(&at("again.safetensors"), "timm", &at("other"), &[]);
    let card = fs::read_to_string(at("other/README.md")).unwrap();
    assert!(card.contains("without the record of their run") && !card.contains("95 % interval"), "{card}");
}

#[test]
fn what_cannot_be_written_is_refused_in_a_line() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let init = |model: &str, name: &str| {
        let output = trainer().args(["init", model, "--output"]).arg(at(name)).output().unwrap();
        assert!(output.status.success());
    };
    init("cct_2_3x2_32", "cct.safetensors");
    init("convmixer_reference", "convmixer.safetensors");
    let refused = |weights: &str, format: &str, more: &[&str], code: i32| {
        let line = error_line(&export(&at(weights), format, &at("out"), more), code);
        assert!(!at("out").exists(), "{line}");
        line
    };
    for (weights, format, more, code, words) in [
        ("cct.safetensors", "timm", &[][..], 2, "timm has no such architecture"),
        ("convmixer.safetensors", "timm", &[], 2, "timm has no other ConvMixers than"),
        ("cct.safetensors", "hub", &[], 2, "say neither their classes nor how images are normalised"),
        ("cct.safetensors", "hub", &["--precision", "bf16"], 2, "--format hub has an ONNX file"),
        ("cct.safetensors", "onnx", &["--normalize-inside"], 1, "do not say how pictures were normalised"),
        ("cct.safetensors", "safetensors", &["--normalize-inside"], 2, "--normalize-inside is for programs"),
        ("cct.safetensors", "onnx", &["--precision", "bf16"], 2, "onnx is f32 or f16"),
        ("cct.safetensors", "torchscript", &["--precision", "f16"], 2, "torchscript is f32"),
        (
            "cct.safetensors",
            "onnx",
            &["--model", "vit_reference"],
            1,
            "weights of cct_2_3x2_32, not of vit_ref",
        ),
        ("none.safetensors", "onnx", &[], 1, "none.safetensors"),
    ] {
        let line = refused(weights, format, more, code);
        assert!(line.contains(words), "{line}");
    }
    let itself = export(&at("cct.safetensors"), "onnx", &at("cct.safetensors"), &[]);
    assert!(error_line(&itself, 2).contains("this is the input"));

    // Weights of nobody in particular have to be named.
    exported(&at("cct.safetensors"), "state-dict", &at("plain.safetensors"), &[]);
    assert!(refused("plain.safetensors", "onnx", &[], 1).contains("name it with --model"));
    exported(&at("plain.safetensors"), "onnx", &at("named.onnx"), &["--model", "cct_2_3x2_32"]);
    exported(&at("cct.safetensors"), "onnx", &at("same.onnx"), &[]);
    assert_eq!(fs::read(at("named.onnx")).unwrap(), fs::read(at("same.onnx")).unwrap());
}
