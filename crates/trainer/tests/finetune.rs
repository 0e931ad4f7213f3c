//! Fine-tuning from the outside: a trunk that stays as it is, classes that count alike, weights from the hub.

mod runs;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Output;

use runs::hub::{COMMIT, Hub};
use runs::{error_line, history, pictures, record, stdout, trainer};
use tch::Tensor;

/// A ConvMixer whose batch norms have running statistics, on two classes of digits' worth of pictures.
fn train(out: &Path, sets: &[&str], more: &[&str]) -> Output {
    let small = ["model.embed_dim=16", "model.depth=2", "train.batch_size=128", "train.select=last"];
    let sets: Vec<_> = small.iter().chain(sets).flat_map(|set| ["--set", set]).collect();
    let run = ["train", "--model", "convmixer_reference", "--preset", "quick", "--device", "cpu", "--out"];
    trainer().args(run).arg(out).args(sets).args(more).output().expect("the trainer starts")
}

fn succeeds(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn tensors(run: &Path) -> BTreeMap<String, Tensor> {
    Tensor::read_safetensors(run.join("last.safetensors")).expect("it was written").into_iter().collect()
}

#[test]
fn the_head_alone_learns_in_the_first_epochs_and_all_of_it_after_them() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let run = |name: &str| directory.path().join(name);
    succeeds(&train(&run("first"), &["train.epochs=1"], &[]));
    let weights = run("first/last.safetensors").display().to_string();
    let from = ["--weights", weights.as_str()];

    let alone = error_line(&train(&run("drawn"), &["train.freeze_epochs=1"], &[]), 2);
    assert!(alone.contains("train.freeze_epochs = 1") && alone.contains("--weights"), "{alone}");

    let planned = train(
        &run("frozen"),
        &["train.epochs=1", "train.freeze_epochs=1"],
        &[&from[..], &["--dry-run"]].concat(),
    );
    assert!(stdout(&planned).contains(", the head alone in the first 1"), "{}", stdout(&planned));
    succeeds(&train(&run("frozen"), &["train.epochs=1", "train.freeze_epochs=1"], &from));
    let (before, frozen) = (tensors(&run("first")), tensors(&run("frozen")));
    for (name, tensor) in &before {
        // Running statistics too: they are no parameters, but the trunk computes with them.
        assert_eq!(&frozen[name] == tensor, !name.starts_with("head"), "{name}");
    }

    // Frozen for an epoch, then not; and the same killed inside the frozen epoch and after it.
    let sets = ["train.epochs=2", "train.freeze_epochs=1"];
    let keep = [&from[..], &["--keep-last", "100", "--checkpoint-steps", "4"]].concat();
    succeeds(&train(&run("whole"), &sets, &keep));
    let whole = tensors(&run("whole"));
    assert!(whole.iter().all(|(name, tensor)| name.contains("num_batches") || *tensor != before[name]));
    let bytes = fs::read(run("whole/last.safetensors")).expect("it was written");
    let rows = history(&run("whole"));
    for last in ["epoch-0001-step-000008", "epoch-0001", "epoch-0002-step-000004"] {
        let checkpoints = run("whole/checkpoints");
        for entry in fs::read_dir(&checkpoints).expect("there are some") {
            let entry = entry.expect("it can be listed");
            let name = entry.file_name().into_string().expect("UTF-8");
            // `epoch-0001` comes after its steps.
            let position =
                |name: &str| if name.contains("step") { name.to_owned() } else { format!("{name}-t") };
            if position(&name) > position(last) {
                fs::remove_dir_all(entry.path()).expect("it can be removed");
            }
        }
        let text = fs::read_to_string(run("whole/record.json")).expect("it was written");
        fs::write(run("whole/record.json"), text.replace("\"complete\"", "\"stopped\"")).expect("it can be");
        let again = train(&run("whole"), &sets, &keep);
        succeeds(&again);
        assert!(
            stdout(&again).contains(&format!("from checkpoint {last}")) || !stdout(&again).contains("reused")
        );
        assert_eq!(
            record(&run("whole"))["resumed_from"].as_array().and_then(|all| all.last()),
            Some(&last.into())
        );
        assert_eq!(history(&run("whole")), rows, "{last}");
        assert!(fs::read(run("whole/last.safetensors")).expect("it was written") == bytes, "{last}");
    }
}

#[test]
fn classes_count_by_how_rare_they_are() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let data = directory.path().join("pictures");
    pictures(&data, &[("many", 30), ("some", 10)]);
    let run = |name: &str, more: &[&str]| {
        let out = directory.path().join(name);
        let sets = [
            "model.depth=1",
            "model.embed_dim=8",
            "data.image_size=8",
            "folder.stored_size=12",
            "train.epochs=1",
            "train.batch_size=8",
        ];
        let sets: Vec<_> = sets.iter().chain(more).flat_map(|set| ["--set", set]).collect();
        let output = trainer()
            .args(["train", "--recipe", "recipes/finetune/gcvit_flowers.toml", "--device", "cpu"])
            .args(["--model", "convmixer_reference", "--out"])
            .arg(&out)
            .arg("--data-dir")
            .arg(&data)
            .args(sets)
            .output()
            .expect("the trainer starts");
        succeeds(&output);
        (fs::read_to_string(out.join("train.log")).unwrap_or_default(), history(&out)[0][2].clone())
    };
    let (log, plain) = run("plain", &[]);
    assert!(!log.contains("counts by its class"), "{log}");
    let (log, balanced) = run("balanced", &["train.class_weights=balanced"]);
    let line = log.lines().find(|line| line.contains("an image counts by its class: "));
    let weights: Vec<f64> = line
        .unwrap_or_else(|| panic!("{log}"))
        .split(": ")
        .last()
        .into_iter()
        .flat_map(|words| words.split(", "))
        .map(|words| words.split(' ').next_back().and_then(|number| number.parse().ok()).expect("a number"))
        .collect();
    // n₁ + n₂ = N and N / (2·n) each.
    assert!(
        (1.0 / weights[0] + 1.0 / weights[1] - 2.0).abs() < 2e-3 && weights[1] > weights[0],
        "{weights:?}"
    );
    assert_ne!(plain, balanced); // the training losses
}

/// The tutorial's recipe as its users run it, from the hub's ImageNet weights: of a narrower network, served by a stand-in.
#[test]
fn the_flowers_recipe_starts_from_weights_of_the_hub() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let place = |name: &str| directory.path().join(name);
    let sets = ["model.embed_dim=16", "model.depths=[2,2,2,2]", "model.window_sizes=[2,2,4,2]"];
    let sets: Vec<_> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let made = trainer()
        .args(["init", "gcvit_xxtiny", "--image-size", "64", "--output"])
        .arg(place("imagenet.safetensors"))
        .args(&sets)
        .output()
        .expect("the trainer starts");
    succeeds(&made);
    let bytes = fs::read(place("imagenet.safetensors")).expect("it was written");
    let digest = run_record::sha256(&bytes);
    let hub = Hub::new(vec![("model.safetensors", bytes, digest.clone())]);
    let flowers = ["daisy", "dandelion", "rose", "sunflower", "tulip"].map(|name| (name, 8));
    pictures(&place("flowers"), &flowers);

    let mut command = trainer();
    for proxy in ["HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"] {
        command.env_remove(proxy);
    }
    command.env("HF_ENDPOINT", &hub.endpoint).env("HF_HOME", place("hf")).env_remove("HF_HUB_OFFLINE");
    let output = command
        .args([
            "train",
            "--recipe",
            "recipes/finetune/gcvit_flowers.toml",
            "--weights",
            "hf:org/net",
            "--device",
            "cpu",
        ])
        .arg("--data-dir")
        .arg(place("flowers"))
        .args(&sets)
        .args([
            "--set",
            "data.image_size=64",
            "--set",
            "folder.stored_size=64",
            "--set",
            "train.epochs=2",
            "--out",
        ])
        .arg(place("run"))
        .output()
        .expect("the trainer starts");
    succeeds(&output);
    let said = stdout(&output);
    assert!(said.contains("head"), "{said}");
    let record = record(&place("run"));
    assert_eq!(record["result"]["status"], "complete");
    assert_eq!(history(&place("run")).len(), 2);
    let recipe = fs::read_to_string(place("run/recipe.toml")).expect("the run has a recipe");
    assert!(recipe.contains(&format!("file = \"hf:org/net@{COMMIT}/model.safetensors\"")), "{recipe}");
    assert!(recipe.contains(&format!("sha256 = \"{digest}\"")), "{recipe}");
}
