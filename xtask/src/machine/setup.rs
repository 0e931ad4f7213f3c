//! `setup`: provides libtorch.

use anyhow::Result;

use crate::machine::disk::parse_sha256;
use crate::machine::install::ArchiveChoice;
use crate::machine::libtorch::{self, FlavorChoice};
use crate::process::{Place, say};

/// `cargo xtask setup`.
#[derive(clap::Args)]
pub(crate) struct Setup {
    /// Which build of libtorch
    #[arg(long, value_enum, default_value_t)]
    flavor: FlavorChoice,
    /// An upstream libtorch zip to use instead of the wheels: a file or an http(s) address
    #[arg(long, value_name = "FILE_OR_URL", requires = "sha256")]
    archive: Option<String>,
    /// Checksum of the archive
    #[arg(long, value_name = "HEX", requires = "archive", value_parser = parse_sha256)]
    sha256: Option<String>,
}

pub(crate) fn setup(place: &Place, args: Setup) -> Result<u8> {
    let archive = args.archive.zip(args.sha256).map(|(source, sha256)| ArchiveChoice { source, sha256 });
    let tree = libtorch::ensure(place, args.flavor, archive.as_ref())?;
    say(format!("{tree} is ready: {}", tree.dir.display()));
    Ok(0)
}
