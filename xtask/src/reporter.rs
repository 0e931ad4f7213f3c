//! The program `report`, which writes the results page and compares runs: building it, and running it.

use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::process::{Place, cannot_start, cargo, exit_code, run_quiet_cargo};

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
    run(place, &["page".as_ref(), "--".as_ref(), results.as_os_str()])
}

/// `cargo xtask compare`.
pub(crate) fn compare(place: &Place, args: &Compare) -> Result<u8> {
    let images = args.images.map(|images| format!("--images={images}"));
    let mut passed: Vec<&OsStr> = vec!["compare".as_ref(), "--format".as_ref(), args.format.as_ref()];
    passed.extend(images.iter().map(OsStr::new));
    // A path may begin with a hyphen.
    passed.extend(["--".as_ref(), args.a.as_os_str(), args.b.as_os_str()]);
    run(place, &passed)
}

fn run(place: &Place, args: &[&OsStr]) -> Result<u8> {
    let mut build = cargo(place);
    // With the features that the trainer's build has, so that what both use is compiled once.
    build.args(["build", "--release", "--workspace", "--bin", "report"]);
    let code = run_quiet_cargo(&mut build, "building the program that shows and compares results")?;
    if code != 0 {
        return Ok(code);
    }
    let mut program = Command::new(place.target().join("release/report"));
    Ok(exit_code(program.args(args).status().with_context(|| cannot_start(&program))?))
}
