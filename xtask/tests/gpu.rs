//! What is done about NVIDIA cards, with a script in the place of nvidia-smi.

#![cfg(target_os = "linux")] // elsewhere there is no CUDA
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

const GOOD: &str = "echo '580.95.05, 9.0, 81559, NVIDIA H100 80GB HBM3'";
const OLD_DRIVER: &str = "echo '570.211.01, 8.6, 24564, NVIDIA RTX A5000'";
const OLD_CARD: &str = "echo '580.95.05, 7.0, 16384, Tesla V100-SXM2-16GB'";
const BOTH: &str = "echo '580.95.05, 7.0, 16384, Tesla V100-SXM2-16GB'
                    echo '580.95.05, 7.5, 15360, Tesla T4'";
const FAILS: &str =
    "echo; echo \"NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\"
                     exit 9";
const GARBAGE: &str = "echo '<html>'";
const HANGS: &str = "kill -STOP $$";

const DRIVER: &str = "driver 570.211.01 is too old, CUDA 13 needs 580 or later";
const CARD: &str = "compute capability 7.0 is too old, CUDA 13 needs 7.5 or later";

/// xtask in a workspace where nvidia-smi runs a script, and no other program is found.
fn xtask(dir: &Path, nvidia_smi: Option<&str>) -> Command {
    let bin = dir.join("bin");
    fs::create_dir_all(&bin).unwrap();
    if let Some(script) = nvidia_smi {
        common::install(&bin.join("nvidia-smi"), &format!("#!/bin/sh\n{script}\n"));
    }
    let mut command = common::xtask(dir);
    command.env("PATH", bin).env_remove("CUDA_VISIBLE_DEVICES");
    command
}

/// Runs it and returns the exit code and everything it wrote.
fn outcome(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

fn cuda_flavour(dir: &Path) {
    fs::write(dir.join("libtorch/lib/libtorch_cuda.so"), "").unwrap();
}

#[test]
fn doctor_says_what_is_found_and_what_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    common::workspace(dir.path(), "quick", "");
    let gpu = |nvidia_smi| {
        let (_, text) = outcome(xtask(dir.path(), nvidia_smi).arg("doctor"));
        let mut lines = text.lines().skip_while(|line| !line.contains("NVIDIA GPU: ")).map(str::trim);
        (lines.next().unwrap().to_owned(), lines.next().unwrap().to_owned())
    };
    // With the processor's libtorch nothing is wrong.
    for (nvidia_smi, parts) in [
        (GOOD, ["compute capability 9.0 (7.5 is needed), driver 580.95.05 (580 is needed)", "--flavor cuda"]),
        (OLD_DRIVER, [DRIVER, "training runs on the processor"]),
        (OLD_CARD, [CARD, "training runs on the processor"]),
        (FAILS, ["NVIDIA-SMI has failed", "training runs on the processor"]),
        (GARBAGE, ["(<html>)", "training runs on the processor"]),
        (BOTH, [CARD, "; unused"]),
    ] {
        let (line, _) = gpu(Some(nvidia_smi));
        assert!(line.starts_with("ok ") && parts.iter().all(|part| line.contains(part)), "{line}");
    }
    cuda_flavour(dir.path());
    for (nvidia_smi, part, mend) in [
        (OLD_DRIVER, DRIVER, "install NVIDIA's driver 580 or later, or cargo xtask setup --flavor cpu"),
        (OLD_CARD, CARD, "another card, or cargo xtask setup --flavor cpu"),
        (GARBAGE, "(<html>)", "install NVIDIA's driver 580 or later, or"),
    ] {
        let (line, next) = gpu(Some(nvidia_smi));
        assert!(line.starts_with("PROBLEM ") && line.contains(part) && next.contains(mend), "{line}\n{next}");
    }
    assert!(gpu(Some(GOOD)).0.starts_with("ok "));
}

#[test]
fn a_machine_without_nvidia_smi_has_no_card() {
    let dir = tempfile::tempdir().unwrap();
    common::workspace(dir.path(), "quick", "");
    let (_, text) = outcome(xtask(dir.path(), None).arg("doctor"));
    // Unless it has, and only the program is missing.
    let missing = Path::new("/dev/nvidia0").exists();
    let expected = if missing { "but nvidia-smi cannot be started" } else { "NVIDIA GPU: none" };
    assert!(text.contains(&format!("{expected}; training runs on the processor")), "{text}");
    let hidden =
        xtask(dir.path(), Some(GOOD)).arg("doctor").env("CUDA_VISIBLE_DEVICES", "-1").output().unwrap();
    assert!(String::from_utf8(hidden.stdout).unwrap().contains("NVIDIA GPU: none"));
}

#[test]
fn an_nvidia_smi_that_hangs_does_not_hang_the_doctor() {
    let dir = tempfile::tempdir().unwrap();
    common::workspace(dir.path(), "quick", "");
    let (_, text) = outcome(xtask(dir.path(), Some(HANGS)).arg("doctor"));
    assert!(
        text.contains("nvidia-smi does not answer within 10 s; training runs on the processor"),
        "{text}"
    );
}

#[test]
fn setup_takes_the_libtorch_the_card_can_use_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    // It ends for want of Python, after it has said what it is about to download.
    let setup = |nvidia_smi, flavor| {
        let mut setup = xtask(dir.path(), nvidia_smi);
        let (code, text) = outcome(setup.args(["setup", "--flavor", flavor]).env_remove("LIBTORCH"));
        assert!(code == Some(1) && text.contains("python3 cannot be started"), "{text}");
        text
    };
    for (nvidia_smi, flavor, why) in [
        (GOOD, "cuda", ""),
        (BOTH, "cuda", ""),
        (OLD_DRIVER, "cpu", DRIVER),
        (OLD_CARD, "cpu", CARD),
        (FAILS, "cpu", "nvidia-smi fails"),
        (GARBAGE, "cpu", "no list of cards"),
    ] {
        let text = setup(Some(nvidia_smi), "auto");
        assert!(text.contains(&format!("libtorch 2.11.0 ({flavor}): downloading")), "{text}");
        assert!(
            text.contains(why) && text.contains("is set up for the processor") != why.is_empty(),
            "{text}"
        );
    }
    assert!(setup(None, "auto").contains("(cpu): downloading"));
    let text = setup(Some(OLD_DRIVER), "cuda");
    assert!(text.contains("(cuda): downloading") && text.contains("warning: "), "{text}");
    assert!(text.contains(DRIVER) && text.contains("will train on the processor here"), "{text}");
}

#[test]
fn a_sweep_trains_where_it_can_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let trainer = format!("#!/bin/sh\necho \"$@\" >> {}\nexit 1\n", log.display());
    for preset in ["quick", "reference"] {
        common::workspace(dir.path(), preset, &trainer);
    }
    let train_all = |nvidia_smi, arguments: &[&str]| {
        let _ = fs::remove_file(&log);
        // A preset is chosen by what the card can do, and so nothing is fetched.
        let mut command = xtask(dir.path(), Some(nvidia_smi));
        let (code, text) =
            outcome(command.args(["train-all", "--data-dir", "."]).args(arguments).env("CARGO", "/bin/true"));
        (code, text, fs::read_to_string(&log).unwrap_or_default())
    };
    // A libtorch for the processor leaves the trainer no choice.
    let (_, text, trained) = train_all(GOOD, &[]);
    assert!(trained.contains("--preset quick") && !trained.contains("--device"), "{text}{trained}");
    cuda_flavour(dir.path());
    let (_, text, trained) = train_all(GOOD, &[]);
    assert!(text.contains("preset reference (for CUDA") && !text.contains("CPU cores"), "{text}");
    assert!(trained.contains("--preset reference") && trained.contains("--device cuda:0"), "{trained}");
    for (nvidia_smi, why) in [(OLD_DRIVER, DRIVER), (OLD_CARD, CARD), (FAILS, "nvidia-smi fails")] {
        let (_, text, trained) = train_all(nvidia_smi, &[]);
        assert!(text.contains(why) && text.contains(": training runs on the processor\n"), "{text}");
        assert!(text.contains("of training on two CPU cores"), "{text}");
        assert!(trained.contains("--preset quick") && trained.contains("--device cpu"), "{trained}");
    }
    let (code, text, trained) = train_all(OLD_DRIVER, &["--device", "cuda:0"]);
    assert_eq!((code, trained.as_str()), (Some(2), ""));
    assert_eq!(
        text,
        format!("error: --device cuda:0: NVIDIA RTX A5000: {DRIVER}; --device cpu trains on the processor\n")
    );
    let (_, text, trained) = train_all(OLD_DRIVER, &["--device", "cpu"]);
    assert!(!text.contains(DRIVER) && trained.contains("--device cpu"), "{text}");
}
