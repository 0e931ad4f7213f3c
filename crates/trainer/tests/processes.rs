//! Several processes of one run: the same numbers as one, one writer, an end for all.

mod runs;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use runs::{history, record, root};
use safetensors::SafeTensors;

/// Small networks of which each image is computed by itself, or the whole batch together, with all that is random, and
/// batches that do not divide evenly.
const NETWORKS: [(&str, &[&str]); 4] = [
    (
        "cct_reference",
        &[
            "model.embed_dim=16",
            "model.head_dim=8",
            "model.mlp_hidden=16",
            "model.drop_path_rate=0.2",
            "train.clip_grad=1.0",
            "train.accumulate=2",
        ],
    ),
    (
        "vit_reference",
        &[
            "model.embed_dim=16",
            "model.depth=2",
            "model.mlp_hidden=16",
            "ema.decay=0.9",
            "ema.warmup=true",
            "augment.mixup.alpha=0.8",
            "augment.cutmix.alpha=1.0",
        ],
    ),
    (
        "gcvit_xxtiny_64",
        &[
            "model.embed_dim=16",
            "model.depths=[2,2,2,2]",
            "data.image_size=32",
            "model.window_sizes=[2,2,2,1]",
        ],
    ),
    // With batch norm, which sees all images.
    ("convmixer_reference", &["model.embed_dim=16", "model.depth=2", "train.sync_batch_norm=true"]),
];

fn arguments(network: usize, out: &Path, more: &[&str]) -> Vec<String> {
    let (model, sets) = NETWORKS[network];
    let fixed = ["train", "--model", model, "--preset", "quick", "--device", "cpu", "--out"];
    let mut arguments: Vec<String> = fixed.map(str::to_owned).to_vec();
    arguments.push(out.display().to_string());
    // Adam divides by the length of gradients, also of those that are nothing but rounding.
    let sgd = [
        "name=sgd",
        "beta1=",
        "beta2=",
        "eps=",
        "scale_decay_by_lr=",
        "momentum=0.9",
        "nesterov=true",
        "lr=0.05",
    ];
    let sgd = sgd.map(|set| format!("optimizer.{set}"));
    let short = ["train.epochs=2", "train.batch_size=126"].map(str::to_owned);
    let sets = sets.iter().map(|set| (*set).to_owned()).chain(short).chain(sgd);
    arguments.extend(sets.flat_map(|set| ["--set".to_owned(), set]));
    arguments.extend(more.iter().map(|&argument| argument.to_owned()));
    arguments
}

fn command() -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("trainer"));
    command.current_dir(root()).env("OMP_NUM_THREADS", "1");
    command
}

fn finish(network: usize, out: &Path, more: &[&str]) -> Output {
    let output = command().args(arguments(network, out, more)).output().expect("the trainer starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(record(out)["result"]["status"], "complete");
    output
}

/// The published weights by name.
fn weights(run: &Path) -> BTreeMap<String, Vec<f64>> {
    let bytes = fs::read(run.join("last.safetensors")).expect("there are weights");
    let file = SafeTensors::deserialize(&bytes).expect("they can be read");
    let numbers = |bytes: &[u8]| {
        let numbers =
            bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]));
        numbers.map(f64::from).collect()
    };
    file.tensors().into_iter().map(|(name, view)| (name, numbers(view.data()))).collect()
}

/// The largest difference of a number, by the largest number of its tensor. A tensor that changes nothing, as the bias of
/// scores before a softmax, stays within rounding of zero.
fn difference(one: &Path, other: &Path) -> f64 {
    let (one, other) = (weights(one), weights(other));
    assert!(one.keys().eq(other.keys()) && !one.is_empty());
    let of_tensor = |(one, other): (&Vec<f64>, &Vec<f64>)| {
        let largest = one.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        let apart = one.iter().zip(other).fold(0.0, |most: f64, (x, y)| most.max((x - y).abs()));
        apart / largest.max(1e-3)
    };
    one.values().zip(other.values()).map(of_tensor).fold(0.0, f64::max)
}

/// Accuracies of every epoch, which are counts.
fn accuracies(run: &Path) -> Vec<Vec<String>> {
    let of_row = |row: Vec<String>| [3, 4, 6, 7].map(|column| row[column].clone()).to_vec();
    history(run).into_iter().map(of_row).collect()
}

#[test]
fn several_processes_compute_what_one_does() {
    for (network, (name, _)) in NETWORKS.iter().enumerate() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let alone = directory.path().join("alone");
        finish(network, &alone, &[]);
        for processes in ["2", "4"] {
            let run = directory.path().join(processes);
            let output = finish(network, &run, &["--processes", processes]);
            // One of them speaks, and says what each computes.
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains(&format!("batch 126 over {processes} processes")), "{text}");
            assert_eq!(text.lines().filter(|line| line.starts_with("epoch ")).count(), 2);
            assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
            let difference = difference(&alone, &run);
            eprintln!("{}, {processes} processes: {difference:e}", name);
            assert!(difference < 1e-4, "{}, {processes}: {difference:e}", name);
            assert_eq!(accuracies(&alone), accuracies(&run), "{}, {processes}", name);
            assert_eq!(record(&alone)["result"]["test_top1"], record(&run)["result"]["test_top1"]);
        }
    }
}

/// A process of a run of two, with what a starter of processes would set.
fn start(rank: &str, port: &str, out: &Path, more: &[&str]) -> Child {
    command()
        .args(arguments(0, out, more))
        .args(["--keep-last", "1000", "--peer-timeout", "20"])
        .envs([("RANK", rank), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the trainer starts")
}

fn start_two(out: &Path, more: &[&str]) -> [Child; 2] {
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = port.expect("a port is free").port().to_string();
    ["0", "1"].map(|rank| start(rank, &port, out, more))
}

fn wait_for(out: &Path, checkpoint: &str) {
    let checkpoint = out.join("checkpoints").join(checkpoint);
    let started = Instant::now();
    while !checkpoint.is_dir() {
        assert!(started.elapsed() < Duration::from_secs(300), "there never was a {}", checkpoint.display());
        thread::sleep(Duration::from_millis(1));
    }
}

fn ended(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().expect("it ends");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status();
    assert!(sent.expect("there is a kill").success());
}

/// The same for one that may have ended just now.
fn signal_if_there(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).stderr(Stdio::null()).status();
    sent.expect("there is a kill");
}

#[test]
fn who_is_asked_to_stop_stops_all_and_another_number_goes_on_exactly() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (whole, run) = (directory.path().join("whole"), directory.path().join("run"));
    finish(0, &whole, &[]);
    // The one that does not write.
    let [first, second] = start_two(&run, &["--checkpoint-steps", "2"]);
    wait_for(&run, "epoch-0001-step-000004");
    signal(&second, "-TERM");
    let (code, text) = ended(second);
    assert_eq!((code, text.as_str()), (Some(143), ""));
    let (code, text) = ended(first);
    assert!(code == Some(143) && text.contains("stopped by SIGTERM"), "{text}");
    assert_eq!(record(&run)["result"]["status"], "stopped");
    // Three go on where two were, and one after them.
    finish(0, &run, &["--processes", "3"]);
    assert_eq!(accuracies(&whole), accuracies(&run));
    let difference = difference(&whole, &run);
    assert!(difference < 1e-4, "{difference:e}");
    let resumed = record(&run)["resumed_from"].as_array().map(Vec::len);
    assert_eq!(resumed, Some(1));
}

#[test]
fn who_loses_another_process_ends_and_the_run_goes_on_from_its_checkpoint() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let whole = directory.path().join("whole");
    finish(0, &whole, &["--processes", "2"]);
    for victim in [0, 1] {
        let run = directory.path().join(victim.to_string());
        let children = start_two(&run, &["--checkpoint-steps", "3"]);
        wait_for(&run, "epoch-0001-step-000006");
        let started = Instant::now();
        signal(&children[victim], "-KILL");
        let ends = children.map(ended);
        assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
        let (code, text) = &ends[1 - victim];
        assert_eq!(*code, Some(1), "{text}");
        let other = format!("error: process {} of 2 has lost another one", 1 - victim);
        assert!(text.starts_with(&other) && text.trim_end().lines().count() == 1, "{text}");
        // Every checkpoint there is can be used: the same command goes on, to the last bit.
        finish(0, &run, &["--processes", "2"]);
        assert_eq!(history(&whole), history(&run));
        assert_eq!(difference(&whole, &run), 0.0);
    }
}

/// Draws for the moments of kills (Steele, Lea & Flood's SplitMix64), the same ones every time.
struct Draws(u64);

impl Draws {
    /// A number from 0 to 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Every checkpoint that stands under its name: all files of its manifest, as long as it says and with its digests.
fn check_checkpoints(run: &Path) -> usize {
    let Ok(all) = fs::read_dir(run.join("checkpoints")) else { return 0 };
    let names = all.map(|entry| entry.expect("it can be listed"));
    // A name with a dot in front is unfinished work, which the next process takes away.
    let whole = names.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'));
    let checked = whole.map(|entry| {
        let path = entry.path();
        let manifest = fs::read_to_string(path.join("manifest.json")).expect("it has a manifest");
        let manifest: serde_json::Value = serde_json::from_str(&manifest).expect("which is JSON");
        let files = manifest["files"].as_object().expect("and names files");
        assert!(files.len() >= 2, "{}: {files:?}", path.display());
        for (name, said) in files {
            let file = path.join(name);
            assert_eq!(said["bytes"], fs::metadata(&file).expect("which are there").len());
            let sha256 = run_record::sha256_file(&file).expect("and can be read");
            assert_eq!(said["sha256"], sha256, "{}", file.display());
        }
    });
    checked.count()
}

/// What the other one of two may say when one is killed: that it lost it, or that they never met.
fn check_loss(rank: usize, code: Option<i32>, text: &str) {
    let lost = format!("error: process {rank} of 2 has lost another one");
    let alone = format!("error: process {rank} of 2 did not meet the others");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.starts_with(&lost) || text.starts_with(&alone), "{text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
}

#[test]
#[ignore = "twenty kills take some minutes: cargo test --release -p trainer --test processes -- --ignored --nocapture"]
fn twenty_kills_of_any_process_at_any_moment_lose_nothing() {
    const KILLS: usize = 20;
    // The time-out of the peers, and what two processes take to end on a busy machine.
    const TIMEOUT: Duration = Duration::from_secs(25);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let whole = directory.path().join("whole");
    let started = Instant::now();
    finish(0, &whole, &["--processes", "2"]);
    let takes = started.elapsed();
    let same = |run: &Path| {
        finish(0, run, &["--processes", "2"]);
        assert_eq!(history(&whole), history(run));
        let file = |run: &Path| fs::read(run.join("last.safetensors")).expect("there are weights");
        assert_eq!(file(&whole), file(run), "{}", run.display());
    };
    let (mut draws, mut kills, mut runs) = (Draws(7), 0, 0);
    let mut run = directory.path().join("run-0");
    while kills < KILLS {
        let mut children = start_two(&run, &["--checkpoint-steps", "1"]);
        let victim = usize::from(draws.next() < 0.5);
        let moment = takes.mul_f64(draws.next());
        thread::sleep(moment);
        let is_over = children[victim].try_wait().expect("it can be asked").is_some();
        signal_if_there(&children[victim], "-KILL");
        let killed = Instant::now();
        let mut ends = children.map(ended);
        let (killed_code, _) = std::mem::take(&mut ends[victim]);
        if is_over {
            // It was done before; what the kill was meant to disturb is the same as ever.
            assert!(ends[1 - victim].0 == Some(0), "{ends:?}");
            same(&run);
            runs += 1;
            run = directory.path().join(format!("run-{runs}"));
            continue;
        }
        assert_eq!(killed_code, None, "it was killed");
        kills += 1;
        assert!(killed.elapsed() < TIMEOUT, "{:?}", killed.elapsed());
        let (code, text) = &ends[1 - victim];
        // After the last step and its validation nobody needs another: the one that writes goes on by itself.
        let is_trained = run.join("checkpoints/epoch-0002-step-000011").is_dir();
        match *code == Some(0) && is_trained {
            true => {
                assert!(text.is_empty() && (victim == 0 || record(&run)["result"]["status"] == "complete"))
            }
            false => check_loss(1 - victim, *code, text),
        }
        let checkpoints = check_checkpoints(&run);
        let after = killed.elapsed();
        eprintln!(
            "kill {kills}: process {victim} after {moment:.2?}, the other ended {after:.2?} later, {checkpoints} checkpoints"
        );
    }
    same(&run);
    eprintln!("{kills} kills over {} runs, each with the bytes of one that was never killed", runs + 1);
}

#[test]
fn the_batch_norm_of_all_processes_is_another_than_that_of_each_and_of_one_the_same() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let run = |name: &str, more: &[&str]| {
        let run = directory.path().join(name);
        finish(3, &run, more);
        run
    };
    let apart = ["--set", "train.sync_batch_norm=false"];
    let (one, plain) = (run("one", &[]), run("plain", &apart));
    assert_eq!(weights(&one), weights(&plain));
    let each = run("each", &[&apart[..], &["--processes", "2"]].concat());
    let difference = difference(&plain, &each);
    assert!(difference > 1e-3, "{difference:e}");
}

#[test]
fn a_network_without_batch_norm_is_told_that_there_is_none_to_share() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let out = directory.path().join("run");
    let plan = |network: usize| {
        let more = ["--dry-run", "--set", "train.sync_batch_norm=true"];
        let output = command().args(arguments(network, &out, &more)).output().expect("the trainer starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let note = "train.sync_batch_norm is without effect: this network has no batch norm";
    assert!(plan(0).contains(note));
    assert!(!plan(3).contains(note));
}

#[test]
fn what_cannot_be_meant_is_refused_once() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let out = directory.path().join("run");
    let refused = |more: &[&str]| {
        let output = command().args(arguments(0, &out, more)).output().expect("the trainer starts");
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(text.trim_end().lines().count(), 1, "{text}");
        assert!(!out.exists());
        text
    };
    let text = refused(&["--processes", "2", "--set", "train.batch_size=3"]);
    assert!(text.contains("2 processes, in 2 parts of a batch each, need at least 4"), "{text}");
    let text = refused(&["--processes", "2", "--set", "train.sync_batch_norm=3"]);
    assert!(text.contains("train.sync_batch_norm"), "{text}");
    let text = refused(&["--processes", "2", "--set", "train.nonsense=3"]);
    assert!(text.contains("nonsense"), "{text}");
}

/// PyTorch's own launcher, where it is: in PATH or in the virtual environment that is active.
#[test]
fn torchrun_starts_it() {
    let environment = std::env::var_os("VIRTUAL_ENV").map(|path| Path::new(&path).join("bin/torchrun"));
    let torchrun = environment.filter(|path| path.exists()).unwrap_or("torchrun".into());
    if Command::new(&torchrun).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        eprintln!("skipped: there is no torchrun here; activate an environment with PyTorch");
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (alone, run) = (directory.path().join("alone"), directory.path().join("run"));
    finish(1, &alone, &[]);
    let output = Command::new(&torchrun)
        .args(["--standalone", "--nproc-per-node", "2", "--no-python"])
        .arg(assert_cmd::cargo::cargo_bin!("trainer"))
        .args(arguments(1, &run, &[]))
        .current_dir(root())
        .env("OMP_NUM_THREADS", "1")
        .output()
        .expect("torchrun starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(accuracies(&alone), accuracies(&run));
    assert!(difference(&alone, &run) < 1e-4);
}
