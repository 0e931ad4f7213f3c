//! The program `report`, which writes the results page and compares runs: building it, and running it.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::process::{Place, cargo, run_cargo};

#[derive(Args)]
pub(crate) struct Compare {
    /// A run's directory, a results directory or a results.csv
    a: PathBuf,
    /// What it is compared with
    b: PathBuf,
    /// Test images, where neither predictions nor the data set's name tell how many there are
    #[arg(long, value_name = "N")]
    images: Option<NonZeroUsize>,
    /// How the comparison is written
    #[arg(long, value_name = "FORMAT", value_parser = ["table", "json"], default_value = "table")]
    format: String,
}

/// Writes the results page.
pub(crate) fn write_page(place: &Place, results: &Path) -> Result<u8> {
    run_cargo(program(place).arg("page").arg(from_here(results)?))
}

/// `cargo xtask compare`.
pub(crate) fn compare(place: &Place, args: &Compare) -> Result<u8> {
    let mut command = program(place);
    command.args(["compare", "--format", &args.format]);
    if let Some(images) = args.images {
        command.args(["--images", &images.to_string()]);
    }
    run_cargo(command.arg(from_here(&args.a)?).arg(from_here(&args.b)?))
}

fn program(place: &Place) -> Command {
    let mut command = cargo(place);
    command.args(["run", "--release", "--quiet", "--package", "report", "--"]);
    command
}

/// Cargo starts elsewhere than we did.
fn from_here(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).context("the current directory cannot be read")
}
