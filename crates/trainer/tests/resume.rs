//! Runs that are killed, stopped, damaged or out of space go on as if nothing had happened, to the last bit.

mod runs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use runs::{error_line, history, record, root, stdout, trainer};
use trainer::run::checkpoint::{self, Draft, Position};

/// A small network of each architecture, with everything random left in, and each with another optimiser or
/// something else that has a state.
const NETWORKS: [(&str, &[&str]); 5] = [
    (
        "cct_reference",
        &["model.embed_dim=16", "model.head_dim=8", "model.mlp_hidden=16", "train.clip_grad=1.0"],
    ),
    (
        "gcvit_xxtiny_64",
        &[
            "model.embed_dim=16",
            "model.depths=[2,2,2,2]",
            "data.image_size=32",
            "model.window_sizes=[2,2,2,1]",
            "optimizer.name=lamb",
            "optimizer.scale_decay_by_lr=",
        ],
    ),
    (
        "patchconvnet_reference",
        &[
            "model.embed_dim=32",
            "model.mlp_hidden=32",
            "data.image_size=24",
            "augment.enlarged_crop.from=26",
            "augment.enlarged_crop.offset=batch",
            "train.accumulate=2",
        ],
    ),
    (
        "vit_reference",
        &["model.embed_dim=16", "model.depth=2", "model.mlp_hidden=16", "ema.decay=0.9", "ema.warmup=true"],
    ),
    (
        "convmixer_reference",
        &[
            "model.embed_dim=16",
            "model.depth=2",
            "optimizer.name=sgd",
            "optimizer.beta1=",
            "optimizer.beta2=",
            "optimizer.eps=",
            "optimizer.scale_decay_by_lr=",
            "optimizer.momentum=0.9",
            "optimizer.nesterov=true",
            "augment.hflip=0.5",
            "augment.hflip_alternates=true",
            "optimizer.lookahead={k=3,alpha=0.5}",
        ],
    ),
];

/// Two epochs of eleven steps.
const SHORT: [&str; 3] = ["train.epochs=2", "train.batch_size=128", "train.label_smoothing=0.1"];

fn arguments(network: usize, out: &Path, more: &[&str]) -> Vec<String> {
    let (model, sets) = NETWORKS[network];
    let fixed = ["train", "--model", model, "--preset", "quick", "--device", "cpu", "--out"];
    let mut arguments: Vec<String> = fixed.map(str::to_owned).to_vec();
    arguments.push(out.display().to_string());
    arguments.extend(SHORT.iter().chain(sets).flat_map(|set| ["--set".to_owned(), (*set).to_owned()]));
    arguments.extend(more.iter().map(|&argument| argument.to_owned()));
    arguments
}

fn finish(network: usize, out: &Path, more: &[&str]) -> String {
    let output = trainer().args(arguments(network, out, more)).output().expect("the trainer starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(record(out)["result"]["status"], "complete");
    stdout(&output)
}

fn start(network: usize, out: &Path, more: &[&str]) -> Child {
    Command::new(assert_cmd::cargo::cargo_bin!("trainer"))
        .current_dir(root())
        .env("OMP_NUM_THREADS", "1")
        .args(arguments(network, out, more))
        // The checkpoint that is waited for must not be gone before it is seen.
        .args(["--keep-last", "1000"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the trainer starts")
}

/// Waits until a run has a checkpoint of this name, and then some time that nobody chose.
fn wait_for(child: &mut Child, out: &Path, name: &str) {
    let checkpoint = out.join("checkpoints").join(name);
    let started = Instant::now();
    while !checkpoint.is_dir() {
        assert!(started.elapsed() < Duration::from_secs(120), "there never was a {}", checkpoint.display());
        assert!(
            child.try_wait().expect("it can be asked").is_none(),
            "it ended without {}",
            checkpoint.display()
        );
        thread::sleep(Duration::from_millis(1));
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970");
    thread::sleep(Duration::from_micros(u64::from(now.subsec_nanos()) % 20_000));
}

fn weights(run: &Path) -> Vec<u8> {
    let files = ["best.safetensors", "last.safetensors"].map(|name| run.join(name));
    let file = files.iter().find(|file| file.is_file()).expect("there are weights");
    fs::read(file).expect("they can be read")
}

fn checkpoints(run: &Path) -> PathBuf {
    run.join("checkpoints")
}

/// The optimiser of a checkpoint forgets what it knew.
fn forget(run: &Path, position: Position) {
    let found = checkpoint::load(&checkpoints(run), position, &[]).expect("it is whole");
    let mut draft = Draft::begin(&checkpoints(run), position).expect("it can be written");
    for (name, mut bytes) in found.files {
        if name == "optimizer.safetensors" {
            let data = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("it has a length")) as usize;
            bytes[data..].fill(0);
        }
        draft.file(&name, |out| Ok(out.write_all(&bytes)?)).expect("it can be written");
    }
    draft.finish().expect("it can be saved");
}

/// Uninterrupted = killed and resumed ≠ resumed with the weights alone.
fn three_arms(network: usize) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let run = |name: &str| directory.path().join(name);
    // On the CPU that changes nothing but the record.
    finish(network, &run("whole"), &["--quiet", "--deterministic"]);
    assert_eq!(record(&run("whole"))["deterministic"], true);
    let whole = (history(&run("whole")), weights(&run("whole")));

    // In the middle of the first epoch, and somewhere after its end.
    for (name, first) in [("inside", "epoch-0001-step-000004"), ("after", "epoch-0001")] {
        let saving: &[&str] = if name == "inside" { &["--checkpoint-steps", "2"] } else { &[] };
        let killed = (0..10).any(|_| {
            let mut child = start(network, &run(name), saving);
            wait_for(&mut child, &run(name), first);
            child.kill().expect("it can be killed");
            child.wait().expect("it ended");
            let killed = record(&run(name))["result"]["status"] == "running";
            if !killed {
                fs::remove_dir_all(run(name)).expect("it is there"); // it was too fast
            }
            killed
        });
        assert!(killed, "{name}: it always was too fast to be killed");
        let said = finish(network, &run(name), saving);
        assert!(said.contains("goes on from checkpoint epoch-000"), "{said}");
        let resumed = record(&run(name));
        assert_eq!(resumed["resumed_from"].as_array().map(Vec::len), Some(1), "{resumed}");
        assert_eq!(history(&run(name)), whole.0, "{name}: {}", resumed["resumed_from"]);
        assert!(weights(&run(name)) == whole.1, "{name}: {}", resumed["resumed_from"]);
    }

    // As if the run had ended after the first epoch, and its optimiser had been lost.
    let position = Position { epoch: 1, step: None };
    let lost = run("whole");
    forget(&lost, position);
    fs::remove_dir_all(checkpoints(&lost).join("epoch-0002")).expect("it is there");
    let text = fs::read_to_string(lost.join("record.json")).expect("there is a record");
    fs::write(lost.join("record.json"), text.replace("\"complete\"", "\"running\""))
        .expect("it can be written");
    let said = finish(network, &lost, &[]);
    assert!(said.contains("goes on from checkpoint epoch-0001"), "{said}");
    assert_eq!(record(&lost)["deterministic"], false, "it was not for all of the run");
    assert_eq!(history(&lost)[0], whole.0[0]);
    assert!(history(&lost)[1] != whole.0[1] && weights(&lost) != whole.1);
}

#[test]
fn cct_goes_on_to_the_last_bit() {
    three_arms(0);
}

#[test]
fn gcvit_goes_on_to_the_last_bit() {
    three_arms(1);
}

#[test]
fn patchconvnet_goes_on_to_the_last_bit() {
    three_arms(2);
}

#[test]
fn vit_goes_on_to_the_last_bit() {
    three_arms(3);
}

#[test]
fn convmixer_goes_on_to_the_last_bit() {
    three_arms(4);
}

#[test]
fn a_rollback_the_best_epoch_averages_and_patience_survive_kills() {
    // At the first rate the second loss is no number, at the second all is well; the best epoch is kept, not the last.
    let sets = [
        "optimizer.lr=1e30",
        "rollback.times=1",
        "rollback.lr_factor=2e-32",
        "train.select=best",
        "train.epochs=6",
        "train.patience=2",
        "ema.decay=0.5",
        "ema.warmup=false",
    ];
    let mut more: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (whole, run) = (directory.path().join("whole"), directory.path().join("run"));
    let said = finish(4, &whole, &more);
    assert_eq!(said.matches("back to epoch-0000").count(), 1, "{said}");
    more.extend(["--checkpoint-steps", "1"]);
    for first in
        ["epoch-0000", "epoch-0001-step-000004", "epoch-0001", "epoch-0002-step-000003", "epoch-0002"]
    {
        let mut child = start(4, &run, &more);
        wait_for(&mut child, &run, first);
        child.kill().expect("it runs");
        child.wait().expect("it ended");
    }
    finish(4, &run, &more);
    let resumed = record(&run)["resumed_from"].clone();
    assert!(history(&run) == history(&whole) && weights(&run) == weights(&whole), "{resumed}");
    assert_eq!(record(&run)["result"]["best_epoch"], record(&whole)["result"]["best_epoch"]);
}

#[test]
fn a_run_that_is_asked_to_stop_while_it_validates_or_tests_goes_on_too() {
    let sets = ["data.validation.end.count=1300", "train.batch_size=32", "train.epochs=1"];
    let mut more: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let whole = directory.path().join("whole");
    finish(3, &whole, &more);
    more.extend(["--checkpoint-steps", "5"]);
    // The last of the epoch's five steps; what comes then is validation, of averaged weights as well, and the test.
    for (name, first) in [("validation", "epoch-0001-step-000005"), ("test", "epoch-0001")] {
        let run = directory.path().join(name);
        let mut child = start(3, &run, &more);
        wait_for(&mut child, &run, first);
        let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
        let code = child.wait().expect("it ends").code();
        // It may have been quicker.
        assert!(sent.is_ok() && [Some(143), Some(0)].contains(&code), "{code:?}");
        finish(3, &run, &more);
        assert!(history(&run) == history(&whole) && weights(&run) == weights(&whole), "{name}");
        assert_eq!(record(&run)["result"]["test_loss"], record(&whole)["result"]["test_loss"]);
    }
}

#[test]
fn weights_that_were_lost_come_from_the_checkpoint() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let run = directory.path().join("run");
    finish(4, &run, &["--quiet"]);
    let before = (weights(&run), record(&run)["result"]["test_loss"].clone());
    for name in ["best.safetensors", "last.safetensors"] {
        let _ = fs::remove_file(run.join(name)); // there is one of them
    }
    assert!(finish(4, &run, &[]).contains("goes on from checkpoint epoch-0002"));
    assert!(weights(&run) == before.0 && record(&run)["result"]["test_loss"] == before.1);
}

#[test]
fn a_run_that_is_asked_to_stop_saves_and_says_how_to_go_on() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let whole = directory.path().join("whole");
    finish(4, &whole, &["--quiet"]);
    for (signal, code) in [("INT", 130), ("TERM", 143), ("USR1", 138)] {
        let run = directory.path().join(signal);
        let mut child = start(4, &run, &["--checkpoint-steps", "1"]);
        wait_for(&mut child, &run, "epoch-0001-step-000001");
        let sent = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()));
        assert_eq!(child.wait().expect("it ends").code(), Some(code));
        assert_eq!(record(&run)["result"]["status"], "stopped");
        let log = fs::read_to_string(run.join("train.log")).expect("there is a log");
        assert!(log.contains("the same command goes on"), "{log}");
        assert!(finish(4, &run, &[]).contains("goes on from checkpoint"));
        assert!(history(&run) == history(&whole) && weights(&run) == weights(&whole), "{signal}");
    }
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_it_used() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let run = directory.path().join("run");
    finish(3, &run, &["--quiet"]);
    let (rows, bytes) = (history(&run), weights(&run));
    let newest = checkpoints(&run).join("epoch-0002");
    let mut files: Vec<PathBuf> = fs::read_dir(&newest)
        .expect("it is there")
        .map(|entry| entry.expect("it can be read").path())
        .collect();
    files.sort();
    assert_eq!(files.len(), 6, "{files:?}");
    let before = |error: &str| {
        let found = checkpoint::find(&checkpoints(&run), &[]).expect("it can be listed");
        let position = found.checkpoint.expect("the one before is whole").position;
        assert_eq!(position, Position { epoch: 1, step: None }, "{error}");
        assert!(found.passed_over[0].to_string().contains("epoch-0002"), "{:?}", found.passed_over);
    };
    for file in &files {
        let whole = fs::read(file).expect("it can be read");
        let name = file.display().to_string();
        // Many bytes of each file, every one of its first and last; all of them in the checkpoint's own tests.
        let stride = (whole.len() / 40).max(1);
        let ends = (0..whole.len().min(8)).chain(whole.len().saturating_sub(8)..whole.len());
        for at in (0..whole.len()).step_by(stride).chain(ends) {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            fs::write(file, &flipped).expect("it can be written");
            before(&format!("{name}, byte {at} flipped"));
            fs::write(file, &whole[..at]).expect("it can be written");
            before(&format!("{name}, cut to {at}"));
        }
        fs::remove_file(file).expect("it is there");
        before(&format!("{name} removed"));
        fs::write(file, &whole).expect("it can be written");
    }
    assert!(checkpoint::find(&checkpoints(&run), &[]).expect("it can be listed").passed_over.is_empty());

    // The program does the same, and says so.
    fs::write(&files[0], "damaged").expect("it can be written");
    let text = fs::read_to_string(run.join("record.json")).expect("there is a record");
    fs::write(run.join("record.json"), text.replace("\"complete\"", "\"running\""))
        .expect("it can be written");
    let said = finish(3, &run, &[]);
    assert!(
        said.contains("epoch-0002: not a whole checkpoint") && said.contains("from checkpoint epoch-0001"),
        "{said}"
    );
    assert!(history(&run) == rows && weights(&run) == bytes);
}

#[test]
fn another_precision_or_recipe_is_not_mixed_in() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let run = directory.path().join("run");
    let mut child = start(4, &run, &["--checkpoint-steps", "1"]);
    wait_for(&mut child, &run, "epoch-0001-step-000001");
    child.kill().expect("it runs");
    child.wait().expect("it ended");
    let other = |more: &[&str]| {
        let output = trainer().args(arguments(4, &run, more)).output().expect("the trainer starts");
        error_line(&output, 1)
    };
    let line = other(&["--precision", "bf16"]);
    assert!(line.contains("precision: f32 -> bf16") && line.contains("--fresh"), "{line}");
    let line = other(&["--set", "optimizer.lr=0.1"]);
    assert!(line.contains("optimizer.lr: ") && line.contains(" -> 0.1"), "{line}");
}

#[test]
#[ignore = "mounts a small file system, which takes root on Linux"]
fn a_full_disk_during_a_save_costs_no_older_checkpoint() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let whole = directory.path().join("whole");
    // Large beside the small files.
    let large = ["--set", "model.embed_dim=64"];
    finish(4, &whole, &large);
    let size = |path: &Path| -> u64 {
        let files = fs::read_dir(path).expect("it is there").map(|entry| entry.expect("it can be read"));
        // In whole pages, as the file system takes them.
        files.map(|file| file.metadata().expect("it is there").len().next_multiple_of(4096)).sum()
    };
    let (one, page) = (size(&checkpoints(&whole).join("epoch-0001")), 4096);

    let disk = directory.path().join("disk");
    fs::create_dir(&disk).expect("it can be made");
    let mount = |options: &str| {
        let arguments = ["-t", "tmpfs", "-o", options, "tmpfs"];
        Command::new("mount").args(arguments).arg(&disk).output().is_ok_and(|output| output.status.success())
    };
    // Room for one checkpoint, the weights and the small files, and half a checkpoint more.
    assert!(mount(&format!("size={}", one + one / 2 + 12 * page + weights(&whole).len() as u64)));
    let run = disk.join("run");
    let output = trainer().args(arguments(4, &run, &large)).output().expect("the trainer starts");
    let line = error_line(&output, 1);
    let found = checkpoint::find(&checkpoints(&run), &[]).expect("it can be listed");
    let status = record(&run)["result"]["status"].clone();
    let room = mount("remount,size=64m");
    let said = room.then(|| finish(4, &run, &large));
    let same = history(&run) == history(&whole) && weights(&run) == weights(&whole);
    let unmounted = Command::new("umount").arg(&disk).status();
    assert!(unmounted.is_ok_and(|status| status.success()));

    assert!(
        line.contains("epoch-0002") && line.contains("No space left") && line.contains("make room"),
        "{line}"
    );
    assert!(status.as_str().is_some_and(|status| status.starts_with("failed: ")), "{status}");
    assert_eq!(found.checkpoint.map(|found| found.position), Some(Position { epoch: 1, step: None }));
    assert!(said.is_none_or(|said| same && said.contains("goes on from checkpoint epoch-0001")));
}
