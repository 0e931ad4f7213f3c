//! `train-all` asked to stop, with a script in the trainer's place.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// Notes in `log` that it was started and which signals came, and ends as a trainer does.
const TRAINER: &str = r#"#!/bin/sh
log=LOG
trap 'echo INT >> $log; code=130' INT
trap 'echo TERM >> $log; code=143' TERM
trap 'echo USR1 >> $log; code=USR1_CODE' USR1
# Until then, whoever started this has noted that it runs, on a busy machine too.
sleep 1
echo start >> $log
while [ ! "$code" ]; do sleep 0.02; done
# A second signal would come soon after the first.
sleep 0.2
exit $code
"#;

/// `train-all` in a group of its own.
fn train_all(dir: &Path, arguments: &[&str]) -> Child {
    let trainer = TRAINER
        .replace("LOG", &dir.join("log").display().to_string())
        .replace("USR1_CODE", &(128 + Signal::USR1.as_raw()).to_string());
    common::workspace(dir, "quick", &trainer);
    common::xtask(dir)
        .args(["train-all", "--preset", "quick", "--device", "cpu"])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap()
}

/// Waits for the trainer, lets `send` send something to xtask, and returns xtask's exit code, what it said on
/// stderr, and the trainer's notes.
fn stopped(arguments: &[&str], send: impl FnOnce(Pid)) -> (Option<i32>, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let child = train_all(dir.path(), arguments);
    let log = dir.path().join("log");
    let start = Instant::now();
    while !log.exists() && start.elapsed() < Duration::from_secs(30) {
        thread::sleep(Duration::from_millis(10));
    }
    send(Pid::from_child(&child));
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), said, fs::read_to_string(log).unwrap_or_default())
}

#[test]
fn signals_to_xtask_alone_reach_the_trainer_once_and_nothing_more_is_started() {
    for (signal, name) in [(Signal::TERM, "TERM"), (Signal::USR1, "USR1")] {
        let code = 128 + signal.as_raw();
        let (ended, said, notes) = stopped(&[], |xtask| kill_process(xtask, signal).unwrap());
        assert_eq!((ended, notes.as_str()), (Some(code), &format!("start\n{name}\n")[..]), "{said}");
        assert!(said.contains("\nstopped; the same command goes on from here\n"), "{said}");
    }
}

#[test]
fn one_ctrl_c_is_one_for_the_trainer() {
    let (code, said, notes) = stopped(&["--fresh"], |xtask| kill_process_group(xtask, Signal::INT).unwrap());
    assert_eq!((code, notes.as_str()), (Some(130), "start\nINT\n"), "{said}");
    assert!(
        said.contains(
            "\nstopped; the same command without --fresh (which keeps finished runs) goes on from here\n"
        ),
        "{said}"
    );
}
