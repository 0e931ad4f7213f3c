//! Weights of other people, as files and on a stand-in for the Hugging Face hub, given to the trainer.
//! docs/parity/torch_checkpoints.py wrote the checkpoints, with timm's logits.

mod runs;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use runs::hub::{COMMIT, Hub};
use runs::{error_line, root, trainer};
use tch::{Device, Kind, Tensor};
use trainer::network::weights::{WeightsFile, save};

const MIXER: [&str; 11] = [
    "convmixer_reference",
    "--image-size",
    "8",
    "--num-classes",
    "3",
    "--set",
    "model.embed_dim=8",
    "--set",
    "model.depth=1",
    "--set",
    "model.bn_eps=1e-5",
];
const VIT: [&str; 15] = [
    "vit_tiny_patch16_224",
    "--image-size",
    "8",
    "--num-classes",
    "3",
    "--set",
    "model.patch_size=4",
    "--set",
    "model.embed_dim=8",
    "--set",
    "model.depth=1",
    "--set",
    "model.num_heads=2",
    "--set",
    "model.mlp_hidden=16",
];
const MIXER_LOGITS: [[f64; 3]; 2] = [[0.686724, 0.804122, 0.555134], [0.686186, 0.805338, 0.557557]];
const VIT_LOGITS: [[f64; 3]; 2] = [[-0.35964, -0.150954, 0.119661], [-0.331768, -0.080842, 0.200542]];

fn golden(name: &str) -> PathBuf {
    root().join("crates/trainer/tests/golden").join(name)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The images that timm was shown.
fn images(directory: &Path) -> PathBuf {
    let numbers = Tensor::arange(2 * 3 * 8 * 8, (Kind::Double, Device::Cpu)) * 0.1;
    let images = numbers.sin().to_kind(Kind::Float).view([2, 3, 8, 8]);
    let path = directory.join("input.safetensors");
    save(&path, &BTreeMap::from([("input".to_owned(), images)])).expect("the disk has room");
    path
}

/// Runs `forward` where the hub is `endpoint`, its cache in `directory`.
fn forward(network: &[&str], weights: &str, directory: &Path, endpoint: &str, offline: bool) -> Output {
    let mut command = trainer();
    for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(proxy);
    }
    command.env("HF_ENDPOINT", endpoint).env("HF_HOME", directory.join("hf"));
    command.env("HF_HUB_OFFLINE", if offline { "1" } else { "0" });
    command.arg("forward").args(network).args(["--weights", weights]).arg("--input").arg(images(directory));
    command.arg("--output").arg(directory.join("output.safetensors"));
    command.output().expect("the trainer starts")
}

fn logits(directory: &Path) -> Tensor {
    let output = WeightsFile::open(&directory.join("output.safetensors")).expect("it was written");
    output.tensor("logits").expect("it has logits")
}

fn assert_logits(directory: &Path, want: &[[f64; 3]; 2]) {
    let want = Tensor::from_slice2(want).to_kind(Kind::Float);
    let difference = (logits(directory) - want).abs().max().double_value(&[]);
    assert!(difference < 2e-6, "{difference}");
}

/// What timm says of its own weights, from the checkpoint that `torch.save` wrote and from the same as safetensors.
#[test]
fn checkpoints_give_timms_logits_and_those_of_safetensors() {
    for (name, network, want, note) in [
        (
            "timm_convmixer.pt",
            &MIXER[..],
            MIXER_LOGITS,
            "read were the tensors under \"state_dict\" of this checkpoint; left alone: epoch",
        ),
        ("timm_vit.pt", &VIT[..], VIT_LOGITS, "the wrapper \"module.\" of the names was taken off"),
    ] {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let directory = directory.path();
        let file = golden(name);
        let ran = forward(network, file.to_str().expect("UTF-8"), directory, "http://127.0.0.1:1", true);
        assert!(ran.status.success(), "{}", stderr(&ran));
        assert_eq!(stderr(&ran), format!("note: {}: {note}\n", file.display()));
        assert_logits(directory, &want);
        let of_checkpoint = logits(directory);

        let checkpoint = WeightsFile::open(&file).expect("it is a checkpoint");
        let architecture = trainer::network::registry::find(network[0]).expect("it is known");
        let fields: BTreeMap<_, _> = network[1..]
            .chunks(2)
            .map(|pair| match pair {
                ["--image-size", size] => ("image_size", *size),
                ["--num-classes", classes] => ("num_classes", *classes),
                [_, field] => field["model.".len()..].split_once('=').expect("a field"),
                _ => panic!("arguments come in pairs"),
            })
            .map(|(field, value)| {
                let number = value.parse().map(run_record::FieldValue::Integer);
                (
                    field.to_owned(),
                    number
                        .unwrap_or_else(|_| run_record::FieldValue::Float(value.parse().expect("a number"))),
                )
            })
            .collect();
        let architecture = architecture.with_fields(&fields).expect("the fields are in range");
        let vs = tch::nn::VarStore::new(Device::Cpu);
        architecture.init(&vs.root()).expect("it builds");
        let head = trainer::network::weights::Head::Same;
        trainer::network::weights::load_opened(&vs, &architecture, &checkpoint, head).expect("it fits");
        let same = directory.join("same.safetensors");
        save(&same, &vs.variables().into_iter().collect()).expect("the disk has room");
        let ran = forward(network, same.to_str().expect("UTF-8"), directory, "http://127.0.0.1:1", true);
        assert!(ran.status.success() && ran.stderr.is_empty(), "{}", stderr(&ran));
        assert_eq!(logits(directory), of_checkpoint);
    }
}

fn served(name: &'static str, file: &str) -> (&'static str, Vec<u8>, String) {
    let bytes = fs::read(golden(file)).expect("it is in the repository");
    let digest = run_record::sha256(&bytes);
    (name, bytes, digest)
}

#[test]
fn weights_on_the_hub_are_downloaded_once() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let directory = directory.path();
    // There is no model.safetensors.
    let hub =
        Hub::new(vec![served("pytorch_model.bin", "timm_convmixer.pt"), served("sub/vit.pt", "timm_vit.pt")]);
    let run = |weights: &str, network: &[&str], offline| {
        forward(network, weights, directory, &hub.endpoint, offline)
    };

    let early = error_line(&run("hf:org/net", &MIXER, true), 1);
    let words = "hf:org/net: there is neither model.safetensors nor pytorch_model.bin in";
    assert!(early.contains(words) && early.contains("HF_HUB_OFFLINE keeps from downloading"), "{early}");
    assert!(hub.asked().is_empty());

    let ran = run("hf:org/net", &MIXER, false);
    assert!(
        ran.status.success() && stderr(&ran).starts_with("note: hf:org/net: read were"),
        "{}",
        stderr(&ran)
    );
    assert_logits(directory, &MIXER_LOGITS);
    let asked = hub.asked();
    assert_eq!(asked[0], "/org/net/resolve/main/model.safetensors 0-0");
    assert!(asked.contains(&"/org/net/resolve/main/pytorch_model.bin 0-".to_owned()), "{asked:?}");

    // From the cache, by whatever name, with and without leave to ask.
    for weights in ["hf:org/net", "hf:org/net@main/pytorch_model.bin", &format!("hf:org/net@{COMMIT}")] {
        for offline in [false, true] {
            let ran = run(weights, &MIXER, offline);
            assert!(ran.status.success(), "{}", stderr(&ran));
            assert_logits(directory, &MIXER_LOGITS);
        }
    }
    assert!(hub.asked().is_empty());

    let ran = run("hf:org/net@v2/sub/vit.pt", &VIT, false);
    assert!(ran.status.success(), "{}", stderr(&ran));
    assert_logits(directory, &VIT_LOGITS);
    assert!(hub.asked().contains(&"/org/net/resolve/v2/sub/vit.pt 0-".to_owned()));

    for (weights, code, words) in [
        ("hf:org/net/none.safetensors", 1, "no such revision, or there is no none.safetensors in it"),
        (
            "hf:org/net@v3",
            1,
            "no such revision, or there is neither model.safetensors nor pytorch_model.bin in it",
        ),
        ("hf:org/other", 1, "the hub refuses it (status 401)"),
        ("hf:org", 2, "expected hf:ORG/NAME,"),
        ("hf:org/../net", 2, "expected hf:ORG/NAME,"),
    ] {
        let line = error_line(&run(weights, &MIXER, false), code);
        assert!(line.starts_with(&format!("error: {weights}: ")) && line.contains(words), "{line}");
    }
    let line = error_line(&forward(&MIXER, "hf:org/new", directory, "http://127.0.0.1:1", false), 1);
    assert!(
        line.contains("hf:org/new: it cannot be downloaded") && line.contains("is there a network?"),
        "{line}"
    );
}

#[test]
fn a_download_goes_on_where_it_broke_off_and_is_checked() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let directory = directory.path();
    let whole = served("model.safetensors", "timm_convmixer.pt");
    let (bytes, digest) = (whole.1.clone(), whole.2.clone());
    let hub = Hub::new(vec![whole, ("bad.bin", bytes.clone(), "ab".repeat(32))]);
    let blobs = directory.join("hf/hub/models--org--net/blobs");
    fs::create_dir_all(&blobs).expect("it can be made");
    fs::write(blobs.join(format!("{digest}.part")), &bytes[..4000]).expect("it can be written");
    let ran = forward(&MIXER, "hf:org/net", directory, &hub.endpoint, false);
    assert!(ran.status.success(), "{}", stderr(&ran));
    assert_logits(directory, &MIXER_LOGITS);
    assert!(hub.asked().contains(&"/org/net/resolve/main/model.safetensors 4000-".to_owned()));

    for _ in 0..2 {
        let line = error_line(&forward(&MIXER, "hf:org/net/bad.bin", directory, &hub.endpoint, false), 1);
        assert!(line.contains(&format!("has the SHA-256 {digest}, announced was abab")), "{line}");
        assert!(!blobs.join("ab".repeat(32)).exists());
    }
}

/// A run that began with weights of the hub names them in its record, and goes on without a network.
#[test]
fn the_record_names_the_commit_and_the_digest() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let directory = directory.path();
    let hub = Hub::new(vec![served("pytorch_model.bin", "timm_convmixer.pt")]);
    let run = directory.join("run");
    let train = |endpoint: &str, home: &str| {
        let mut command = trainer();
        for proxy in ["HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"] {
            command.env_remove(proxy);
        }
        command
            .env("HF_ENDPOINT", endpoint)
            .env("HF_HOME", directory.join(home))
            .env_remove("HF_HUB_OFFLINE");
        let network = ["model.embed_dim=8", "model.depth=1", "train.epochs=1"].map(|set| ["--set", set]);
        command.args([
            "train",
            "--model",
            "convmixer_reference",
            "--preset",
            "quick",
            "--weights",
            "hf:org/net",
        ]);
        command.args(network.as_flattened()).arg("--out").arg(&run).output().expect("the trainer starts")
    };
    let output = train(&hub.endpoint, "hf");
    assert!(output.status.success(), "{}", stderr(&output));
    let notes = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(notes.contains("read were the tensors under \"state_dict\""), "{notes}");
    let recipe = fs::read_to_string(run.join("recipe.toml")).expect("the run has a recipe");
    let digest = served("", "timm_convmixer.pt").2;
    assert!(recipe.contains(&format!("file = \"hf:org/net@{COMMIT}/pytorch_model.bin\"")), "{recipe}");
    assert!(recipe.contains(&format!("sha256 = \"{digest}\"")), "{recipe}");
    // The run is finished; neither hub nor cache is there any more.
    let again = train("http://127.0.0.1:1", "elsewhere");
    assert!(again.status.success(), "{}", stderr(&again));
}
