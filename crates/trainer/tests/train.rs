//! The `trainer` program from the outside: a real run on the digits, what it leaves, what it refuses.

mod runs;

use std::fs;
use std::path::Path;
use std::process::Output;

use runs::{error_line, history, record, root, stdout, trainer};

/// A ConvMixer small enough to learn the digits in seconds.
const SMALL: [&str; 14] = [
    "--set",
    "model.embed_dim=32",
    "--set",
    "model.depth=2",
    "--set",
    "train.epochs=3",
    "--set",
    "train.batch_size=16",
    "--set",
    "train.label_smoothing=0.0",
    "--set",
    "train.select=best",
    "--set",
    "schedule.name=constant",
];

fn small_run(out: &Path, more: &[&str]) -> Output {
    trainer()
        .args(["train", "--model", "convmixer_reference", "--preset", "quick", "--device", "cpu", "--out"])
        .arg(out)
        .args(SMALL)
        .args(more)
        .output()
        .expect("the trainer starts")
}

#[test]
fn a_run_on_real_digits_learns_and_is_recorded_reused_and_protected() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let run = directory.path().join("run");
    let output = small_run(&run, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Not a terminal: plain lines, one per epoch, nothing else on either stream.
    assert_eq!(stdout(&output).lines().filter(|line| line.starts_with("epoch ")).count(), 3);
    assert!(output.stderr.is_empty());

    let record_before = record(&run);
    let result = &record_before["result"];
    assert_eq!(result["status"], "complete");
    assert_eq!(result["dataset"], "digits");
    assert_eq!(result["libtorch"], "2.11.0");
    assert_eq!(result["data_sha256"].as_str().map(str::len), Some(64));
    assert_eq!(
        (&record_before["command"][0], &record_before["command"][1]),
        (&"trainer".into(), &"train".into())
    );
    let top1 = result["test_top1"].as_f64().expect("it was tested");
    assert!(top1 > 0.8, "test top-1 {top1}");
    // Trained three epochs, tested the best of them.
    let rows = history(&run);
    let best = result["best_epoch"].as_u64().expect("there is a best epoch") as usize;
    assert_eq!(rows.len(), 3);
    let val_top1: f64 = rows[best - 1][6].parse().expect("a number");
    assert!((val_top1 - result["val_top1"].as_f64().expect("a number")).abs() < 1e-6);

    // The weights on disk give the recorded accuracy again.
    let evaluated = trainer()
        .args(["evaluate", "--json", "--device", "cpu", "--weights"])
        .arg(run.join("best.safetensors"))
        .output()
        .expect("the trainer starts");
    let report: serde_json::Value = serde_json::from_slice(&evaluated.stdout).expect("it is JSON");
    assert!((report["top1"].as_f64().expect("a number") - top1).abs() < 1e-6);
    assert_eq!(report["images"], 326);

    // The same again is reused, not repeated.
    let again = small_run(&run, &[]);
    assert!(again.status.success() && stdout(&again).contains("already trained, reused"));
    assert_eq!(record(&run), record_before);

    // Another recipe is refused with the difference, and nothing is touched.
    let other = small_run(&run, &["--set", "train.epochs=4"]);
    let line = error_line(&other, 1);
    assert!(line.contains("train.epochs: 3 -> 4") && line.contains("--fresh"), "{line}");
    assert_eq!(record(&run), record_before);

    // So is another seed.
    let line = error_line(&small_run(&run, &["--seed", "1"]), 1);
    assert!(line.contains("seed: 0 -> 1"), "{line}");

    // Weights that are not the recorded ones are not taken for the run's.
    let weights = run.join("best.safetensors");
    let mut bytes = fs::read(&weights).expect("they can be read");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&weights, &bytes).expect("they can be written");
    assert!(error_line(&small_run(&run, &[]), 1).contains("not the one it recorded"));
    assert!(small_run(&run, &["--fresh"]).status.success());
}

#[test]
fn a_run_without_a_test_says_so_and_is_tested_later_as_if_it_had_been_at_once() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let [at_once, later] = ["a", "b"].map(|name| directory.path().join(name));
    assert!(small_run(&at_once, &["--quiet"]).status.success());
    let output = small_run(&later, &["--no-test"]);
    assert!(output.status.success() && stdout(&output).contains(": not tested, validation top-1 "));
    let numbers = ["test_top1", "test_top5", "test_loss"];
    let untested = record(&later);
    assert_eq!(untested["result"]["status"], "complete");
    for number in numbers {
        assert!(untested["result"][number].is_null(), "{number}");
    }
    assert!(untested["predictions_sha256"].is_null() && untested["temperature"].is_f64());
    assert!(!later.join("predictions.csv").exists() && later.join("layers.json").exists());
    let verified = trainer().arg("verify").arg(&later).output().expect("the trainer starts");
    assert_eq!(verified.status.code(), Some(1));
    assert!(stdout(&verified).contains("was not tested (train --no-test)"), "{}", stdout(&verified));

    // Without a test it is finished, and with one it is not.
    let again = small_run(&later, &["--no-test"]);
    assert!(stdout(&again).contains("already trained, reused (not tested"), "{}", stdout(&again));
    assert_eq!(record(&later), untested);
    let output = small_run(&later, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(stdout(&output).lines().filter(|line| line.starts_with("epoch ")).count(), 0);
    for number in numbers {
        assert_eq!(record(&later)["result"][number], record(&at_once)["result"][number], "{number}");
    }
    let bytes = |run: &Path, file: &str| fs::read(run.join(file)).expect("it can be read");
    for file in ["predictions.csv", "best.safetensors"] {
        assert!(bytes(&later, file) == bytes(&at_once, file), "{file}");
    }
    // A tested run is finished either way.
    assert!(stdout(&small_run(&later, &["--no-test"])).contains("already trained, reused (test top-1"));
}

#[test]
fn one_seed_is_one_run_and_another_seed_is_another() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let runs = [("a", "7"), ("b", "7"), ("c", "8")].map(|(name, seed)| {
        let run = directory.path().join(name);
        let output = small_run(&run, &["--seed", seed, "--quiet", "--set", "augment.hflip=0.5"]);
        assert!(output.status.success() && output.stdout.is_empty());
        run
    });
    assert_eq!(history(&runs[0]), history(&runs[1]));
    assert_ne!(history(&runs[0]), history(&runs[2]));
    let weights = |run: &Path| fs::read(run.join("best.safetensors")).expect("there are weights");
    assert!(weights(&runs[0]) == weights(&runs[1]));
}

#[test]
fn wrong_requests_are_answered_on_one_line_with_exit_code_2() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let out = directory.path().join("run");
    let cases: [(&[&str], &str); 11] = [
        (
            &["--model", "convmixer_reference"],
            "required arguments were not provided: --preset <PRESET>; --help",
        ),
        (
            &["--model", "convmixer_reference", "--preset", "quick", "--seed", "x"],
            "invalid value 'x' for '--seed",
        ),
        (
            &["--model", "convmixer_reference", "--preset", "quick", "--set", "model.patch_size=0"],
            "model.patch_size",
        ),
        (&["--model", "convmixr_reference", "--preset", "quick"], "nearest: convmixer_reference"),
        (
            &["--model", "convmixer_reference", "--preset", "slow"],
            "there are best, finetune, folder, quick, reference",
        ),
        (
            &["--model", "convmixer_reference", "--preset", "quick", "--set", "train.epoch=1"],
            "unknown field `epoch`",
        ),
        (
            &["--model", "convmixer_reference", "--preset", "quick", "--set", "optimizer.lr=-1"],
            "optimizer.lr = -1",
        ),
        (
            &["--model", "convmixer_reference", "--preset", "quick", "--set", "model.depth=0"],
            "model.depth = 0: 1 to",
        ),
        (
            &["--model", "convmixer_reference", "--preset", "quick", "--set", "model.dept=2"],
            "has no such field",
        ),
        (
            &[
                "--model",
                "convmixer_reference",
                "--preset",
                "quick",
                "--set",
                "data.validation.end.count=1471",
            ],
            "data.validation.end.count = 1471",
        ),
        (&["--model", "convmixer_reference", "--preset", "quick", "--device", "cuda:99"], "cuda:99"),
    ];
    for (args, words) in cases {
        let output =
            trainer().arg("train").args(args).arg("--out").arg(&out).output().expect("the trainer starts");
        let line = error_line(&output, 2);
        assert!(line.contains(words), "{line}");
        assert!(!out.join("recipe.toml").exists(), "{line}");
    }
}

#[test]
fn a_recipe_file_with_a_mistake_is_named_with_its_line() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("mine.toml");
    let quick = fs::read_to_string(root().join("recipes/quick/convmixer.toml")).expect("it is committed");
    fs::write(&file, quick.replace("batch_size", "batchsize")).expect("it can be written");
    let output = trainer().args(["train", "--recipe"]).arg(&file).output().expect("the trainer starts");
    let line = error_line(&output, 2);
    assert!(line.contains("mine.toml: line ") && line.contains("unknown field `batchsize`"), "{line}");
}

#[test]
fn missing_and_damaged_data_is_named_with_exit_code_1() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let train = |data: &Path| {
        trainer()
            .args(["train", "--model", "convmixer_reference", "--preset", "reference", "--data-dir"])
            .arg(data)
            .arg("--out")
            .arg(directory.path().join("run"))
            .output()
            .expect("the trainer starts")
    };
    let line = error_line(&train(&directory.path().join("nowhere")), 1);
    assert!(line.contains("nowhere") && line.contains("cargo xtask fetch cifar10"), "{line}");

    let batches = directory.path().join("cifar-10-batches-bin");
    fs::create_dir(&batches).expect("it can be made");
    fs::write(batches.join("data_batch_1.bin"), vec![0; 3073 * 9]).expect("it can be written");
    let line = error_line(&train(directory.path()), 1);
    assert!(line.contains("data_batch_1.bin") && line.contains("30730000"), "{line}");

    let mut bytes = vec![0; 3073 * 10_000];
    bytes[3073 * 5] = 10;
    fs::write(batches.join("data_batch_1.bin"), bytes).expect("it can be written");
    let line = error_line(&train(directory.path()), 1);
    assert!(line.contains("data_batch_1.bin: record 5 has label 10"), "{line}");

    // Nothing began, so nothing is there.
    assert!(!directory.path().join("run").exists());
}

#[test]
fn a_run_directory_that_cannot_be_written_is_named() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("a-file");
    fs::write(&file, "not a directory").expect("it can be written");
    let line = error_line(&small_run(&file.join("run"), &[]), 1);
    assert!(line.contains("a-file"), "{line}");
    assert_eq!(fs::read_to_string(&file).expect("it is still there"), "not a directory");
}

#[test]
fn a_directory_with_files_of_nobodys_run_is_left_alone() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let weights = directory.path().join("best.safetensors");
    fs::write(&weights, "somebody's").expect("it can be written");
    let line = error_line(&small_run(directory.path(), &[]), 1);
    assert!(line.contains("best.safetensors that belongs to no run"), "{line}");
    assert_eq!(fs::read_to_string(&weights).expect("it is still there"), "somebody's");
}

#[test]
fn a_run_without_checkpoints_starts_over_and_one_with_them_only_tests() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let run = directory.path().join("run");
    assert!(small_run(&run, &["--quiet"]).status.success());
    let (finished, before) = (history(&run), record(&run));
    // As kills leave it before the test, while files are written, and before the recipe was.
    let text = fs::read_to_string(run.join("record.json")).expect("there is a record");
    let killed = text.replace("\"status\": \"complete\"", "\"status\": \"running\"");
    assert_ne!(text, killed);
    let kill = || {
        fs::write(run.join("record.json"), &killed).expect("it can be written");
        fs::write(run.join(".best.safetensors.1.partial"), "half").expect("it can be written");
        fs::remove_file(run.join("recipe.toml")).expect("it is there");
    };
    kill();
    let again = small_run(&run, &[]);
    assert!(again.status.success() && stdout(&again).contains("goes on from checkpoint epoch-0003"));
    assert_eq!(record(&run)["result"]["test_top1"], before["result"]["test_top1"]);
    assert_eq!(record(&run)["weights_sha256"], before["weights_sha256"]);
    assert!(!run.join(".best.safetensors.1.partial").exists());

    kill();
    fs::remove_dir_all(run.join("checkpoints")).expect("it is there");
    let again = small_run(&run, &[]);
    assert!(again.status.success() && stdout(&again).contains("training starts over"));
    assert_eq!(history(&run), finished);
    assert_eq!(record(&run)["result"]["status"], "complete");
    assert_eq!(record(&run)["resumed_from"], serde_json::json!([]));
}

#[test]
fn a_loss_that_is_no_number_fails_the_run_and_says_what_to_change() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let run = directory.path().join("run");
    let line = error_line(&small_run(&run, &["--quiet", "--set", "optimizer.lr=1e30"]), 1);
    assert!(
        line.contains("loss is no longer a finite number at step ") && line.contains("of epoch 1"),
        "{line}"
    );
    assert!(line.contains("at a learning rate of 1e30") && line.contains("lower optimizer.lr"), "{line}");
    let status = record(&run)["result"]["status"].clone();
    assert!(status.as_str().is_some_and(|status| status.starts_with("failed: the")), "{status}");
}

#[test]
fn weights_that_cannot_be_evaluated_are_named() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("mine.safetensors");
    let evaluate =
        || trainer().args(["evaluate", "--weights"]).arg(&file).output().expect("the trainer starts");
    assert!(error_line(&evaluate(), 1).contains("mine.safetensors"));
    fs::write(&file, "not safetensors").expect("it can be written");
    assert!(
        error_line(&evaluate(), 1)
            .contains("neither a safetensors file nor a PyTorch checkpoint; expected one")
    );
    fs::write(&file, b"\x02\0\0\0\0\0\0\0{}").expect("it can be written");
    assert!(error_line(&evaluate(), 1).contains("do not say which network"));
}

#[test]
fn a_reader_that_goes_away_does_not_stop_a_run() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let run = directory.path().join("run");
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin!("trainer"))
        .current_dir(root())
        .args(["train", "--model", "convmixer_reference", "--preset", "quick", "--device", "cpu", "--out"])
        .arg(&run)
        .args(SMALL)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("the trainer starts");
    drop(child.stdout.take());
    assert!(child.wait().expect("it ends").success());
    assert_eq!(record(&run)["result"]["status"], "complete");
    // What nobody read is in the log.
    let log = fs::read_to_string(run.join("train.log")).expect("there is a log");
    assert_eq!(log.lines().filter(|line| line.contains("Z epoch ")).count(), 3, "{log}");
}

#[test]
#[cfg(target_os = "linux")]
fn libtorch_uses_the_programs_allocator() {
    let binary = assert_cmd::cargo::cargo_bin!("trainer");
    let output = std::process::Command::new("nm").arg("-D").arg(binary).output();
    let output = output.expect("nm comes with the compiler");
    let symbols = String::from_utf8_lossy(&output.stdout).into_owned();
    // Exported, so that the shared libraries resolve to it instead of the C library's.
    assert!(symbols.lines().any(|line| line.ends_with(" T malloc")), "malloc is not exported");
}

#[test]
fn two_trainers_do_not_share_a_run_directory() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let run = directory.path().join("run");
    fs::create_dir(&run).expect("it can be made");
    let lock = fs::File::create(run.join("run.lock")).expect("it can be made");
    lock.lock().expect("nobody else has it");
    let line = error_line(&small_run(&run, &[]), 1);
    assert!(line.contains("another trainer is writing"), "{line}");
}

#[test]
#[ignore = "mounts a small file system, which takes root on Linux"]
fn a_full_disk_ends_the_run_with_one_line_and_a_record_that_says_so() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let disk = directory.path().join("disk");
    fs::create_dir(&disk).expect("it can be made");
    let mount = |args: &[&str]| std::process::Command::new("mount").args(args).arg(&disk).output();
    let mounted = mount(&["-t", "tmpfs", "-o", "size=24k", "tmpfs"]).expect("there is mount");
    assert!(mounted.status.success(), "{mounted:?}");
    let run = disk.join("run");
    let output = small_run(&run, &["--set", "train.epochs=1"]);
    let status = fs::read_to_string(run.join("record.json"));
    let leftovers: Vec<String> = fs::read_dir(&run)
        .map(|entries| {
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default();
    let unmounted = std::process::Command::new("umount").arg(&disk).status();
    assert!(unmounted.is_ok_and(|status| status.success()));

    let line = error_line(&output, 1);
    assert!(line.contains("epoch-0001") && line.contains("No space left"), "{line}");
    assert!(status.expect("the record is whole").contains("failed: "));
    assert!(!leftovers.iter().any(|name| name.contains("partial")), "{leftovers:?}");
}

#[test]
fn the_list_can_be_filtered_and_read_by_programs() {
    let output = trainer().args(["list", "convmixer_1536*", "--json"]).output().expect("the trainer starts");
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    let names: Vec<&str> =
        list.as_array().into_iter().flatten().filter_map(|row| row["model"].as_str()).collect();
    assert_eq!(names, ["convmixer_1536_20", "convmixer_1536_20_k3_p7"]);
    assert_eq!(list[0]["params"], 51_625_960);
    let published = serde_json::json!({ "source": "hf:timm/convmixer_1536_20.in1k", "license": "MIT" });
    assert_eq!(
        (&list[0]["public_weights"], &list[1]["public_weights"]),
        (&published, &serde_json::Value::Null)
    );
    let table = trainer().args(["list", "convmixer_1536_20"]).output().expect("the trainer starts");
    assert!(stdout(&table).contains(" hf:timm/convmixer_1536_20.in1k (MIT) |"), "{}", stdout(&table));
    let none = trainer().args(["list", "resnet*"]).output().expect("the trainer starts");
    assert!(error_line(&none, 2).contains("no model matches"));
}

#[test]
fn the_last_epoch_is_kept_and_the_schedule_followed_if_the_recipe_says_so() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let run = directory.path().join("run");
    let more = [
        "--set",
        "train.select=last",
        "--set",
        "schedule.name=warmup_cosine",
        "--set",
        "schedule.warmup=0.5",
        "--set",
        "augment.enlarged_crop.from=20",
        "--set",
        "augment.enlarged_crop.offset=image",
        "--set",
        "augment.rotation_degrees=5",
        "--set",
        "augment.zoom=0.1",
    ];
    let ran = small_run(&run, &more);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert!(run.join("last.safetensors").is_file() && !run.join("best.safetensors").exists());
    let (result, rows) = (record(&run)["result"].clone(), history(&run));
    assert_eq!(result["best_epoch"], 3);
    let last: f64 = rows[2][6].parse().expect("it is a number");
    assert!(result["val_top1"].as_f64().is_some_and(|kept| (kept - last).abs() < 1e-6), "{result}");
    // The rate at the end of each epoch: up to the middle of the second, then down to nothing.
    let rates: Vec<f64> = rows.iter().map(|row| row[1].parse().expect("it is a number")).collect();
    assert!(rates[0] > rates[2] && rates[1] > rates[2] && rates[2] < 1e-5, "{rates:?}");
    let again = small_run(&run, &more);
    assert!(stdout(&again).contains("already trained, reused"), "{}", stdout(&again));
}

#[test]
fn a_rollback_goes_to_the_last_good_checkpoint_with_a_lower_rate() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let run = directory.path().join("run");
    let more = ["optimizer.lr=1e30", "rollback.times=2", "rollback.lr_factor=1e-17"];
    let more: Vec<&str> = more.iter().flat_map(|set| ["--set", set]).collect();
    let ran = small_run(&run, &more);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    // 1e30 and 1e13 are too much, 1e-4 is not.
    assert_eq!(stdout(&ran).matches("back to epoch-0000").count(), 2, "{}", stdout(&ran));
    let rates: Vec<f64> = history(&run).iter().map(|row| row[1].parse().expect("it is a number")).collect();
    assert!(rates.iter().all(|rate| (rate / 1e-4 - 1.0).abs() < 1e-9), "{rates:?}");
}

#[test]
fn a_run_ends_early_when_nothing_gets_better() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let run = directory.path().join("run");
    // At this rate nothing moves, and batch norm's statistics do not either.
    let more =
        ["optimizer.lr=1e-30", "optimizer.weight_decay=0", "model.bn_momentum=1e-9", "train.patience=1"];
    let more: Vec<&str> = more.iter().flat_map(|set| ["--set", set]).collect();
    assert!(small_run(&run, &more).status.success());
    assert_eq!(history(&run).len(), 2);
    assert_eq!(
        (&record(&run)["result"]["best_epoch"], &record(&run)["result"]["epochs"]),
        (&1.into(), &3.into())
    );
}

#[test]
fn averaged_weights_are_validated_kept_and_tested() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let run = directory.path().join("run");
    assert!(small_run(&run, &["--set", "ema.decay=0.98", "--set", "ema.warmup=true"]).status.success());
    let (rows, record) = (history(&run), record(&run));
    let best = record["result"]["best_epoch"].as_u64().expect("there is a best epoch") as usize;
    let number = |column: usize| rows[best - 1][column].parse::<f64>().expect("it is a number");
    // val_loss and ema_val_loss; the record has the top-1 of the weights that are kept.
    assert_ne!(number(5), number(8));
    assert!((number(9) - record["result"]["val_top1"].as_f64().expect("a number")).abs() < 1e-6);
    let evaluated = trainer()
        .args(["evaluate", "--json", "--device", "cpu", "--split", "validation", "--weights"])
        .arg(run.join("best.safetensors"))
        .output()
        .expect("the trainer starts");
    let report: serde_json::Value = serde_json::from_slice(&evaluated.stdout).expect("it is JSON");
    assert!((report["loss"].as_f64().expect("a number") - number(8)).abs() < 1e-6, "{report}");
}

#[test]
fn programs_read_json_lines_and_tensorboard_its_events() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let run = directory.path().join("run");
    let more =
        ["--json", "--tensorboard", "--histograms", "--precision", "bf16", "--set", "train.bce.sum=false"];
    let ran = small_run(&run, &more);
    assert!(ran.status.success() && ran.stderr.is_empty(), "{}", String::from_utf8_lossy(&ran.stderr));
    let lines: Vec<serde_json::Value> =
        stdout(&ran).lines().map(|line| serde_json::from_str(line).expect("it is JSON")).collect();
    let of = |event: &str| lines.iter().filter(|line| line["event"] == event).collect::<Vec<_>>();
    assert_eq!((of("run").len(), of("epoch").len(), of("result").len()), (1, 3, 1));
    assert_eq!(of("epoch")[2]["stats"]["epoch"], 3);
    assert_eq!(of("result")[0]["result"], record(&run)["result"]);
    assert_eq!(record(&run)["result"]["precision"], "bf16");
    assert!(record(&run)["result"]["test_top1"].as_f64().is_some_and(|top1| top1 > 0.6), "{}", record(&run));

    let events: Vec<_> = fs::read_dir(run.join("tensorboard")).expect("it is there").collect();
    let events = fs::read(events[0].as_ref().expect("it can be read").path()).expect("it can be read");
    for tag in ["step/loss", "val/top1", "weights/blocks.0.1.weight", "train/images", "train/lr"] {
        assert!(events.windows(tag.len()).any(|bytes| bytes == tag.as_bytes()), "{tag}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_step_that_does_not_fit_in_memory_names_the_batch_and_the_way_out() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let run = directory.path().join("run");
    let program = assert_cmd::cargo::cargo_bin!("trainer").display().to_string();
    // 4 GiB of addresses; the activations of a batch of large images take more.
    let limited = format!("ulimit -v 4194304 && exec '{program}' \"$@\"");
    let output = std::process::Command::new("sh")
        .current_dir(root())
        // Every thread takes addresses of its own.
        .env("OMP_NUM_THREADS", "1")
        .args(["-c", &limited, "sh", "train", "--model", "convmixer_reference", "--preset", "quick", "--out"])
        .arg(&run)
        .args(["--device", "cpu", "--set", "data.image_size=256", "--set", "train.batch_size=256"])
        .output()
        .expect("the shell starts");
    let line = error_line(&output, 1);
    assert!(line.contains("out of memory with batches of 256 in one part"), "{line}");
    assert!(line.contains("--set train.accumulate=2"), "{line}");
}
