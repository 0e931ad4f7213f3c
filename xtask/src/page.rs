//! The results page: building the program that writes it, and running it.

use std::path::Path;

use anyhow::{Context, Result};

use crate::process::{Place, cargo, run_cargo};

pub(crate) fn write(place: &Place, results: &Path) -> Result<u8> {
    let mut command = cargo(place);
    command.args(["run", "--release", "--quiet", "--package", "report", "--"]);
    // Cargo starts elsewhere than we did.
    command.arg(std::path::absolute(results).context("the current directory cannot be read")?);
    run_cargo(&mut command)
}
