//! The trainer: building it, and becoming it for the commands that are its own.

use anyhow::{Context, Result};

use crate::machine::libtorch::{self, FlavorChoice};
use crate::process::{Place, cannot_start, cargo, note, run_cargo, run_quiet_cargo};

/// Builds the trainer in release mode. All members are resolved together, as the tests are, so
/// that one set of compiled dependencies serves both.
pub(crate) fn build_trainer(place: &Place) -> Result<u8> {
    let mut command = cargo(place);
    command.args(["build", "--release", "--workspace", "--bin", "trainer"]);
    if place.trainer().exists() {
        return run_quiet_cargo(&mut command, "building the trainer, whose sources have changed");
    }
    note("building the trainer; the first time takes some minutes");
    run_cargo(&mut command)
}

/// Becomes the trainer, with the command line of this program: its exit code and its handling of Ctrl-C are then ours.
pub(crate) fn become_trainer(place: &Place) -> Result<u8> {
    use std::os::unix::process::CommandExt;
    libtorch::ensure(place, FlavorChoice::Auto, None)?;
    let code = build_trainer(place)?;
    if code != 0 {
        return Ok(code);
    }
    let mut trainer = place.trainer_command();
    let error = trainer.args(std::env::args_os().skip(1)).exec();
    Err(error).with_context(|| cannot_start(&trainer))
}
