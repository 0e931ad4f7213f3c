//! `export`: a trained network for other programs.

use std::path::{Path, PathBuf};
use std::{fs, io};

use trainer::Error;
use trainer::export::source::Source;
use trainer::export::{self, Format, Precision, Request};
use trainer::network::registry;
use trainer::process::lines::note;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A run's directory, a weights file, or a network in weights/.
    #[arg(value_name = "RUN_OR_WEIGHTS")]
    weights: PathBuf,
    /// What to write.
    #[arg(long, value_enum)]
    format: Format,
    /// File to write.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Numbers of the file.
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
    /// Take pixels from 0 to 1 and normalise them in the network; without it, it takes what it was trained on.
    #[arg(long)]
    normalize_inside: bool,
    /// Network, one of `list`, for weights that do not say which they belong to.
    #[arg(long)]
    model: Option<String>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Error> {
    let Args { weights, format, out, precision, normalize_inside, model } = args;
    let request =
        Request { format: *format, out, precision: *precision, normalize_inside: *normalize_inside };
    request.check(weights)?;
    let given = model.as_deref().map(registry::find).transpose()?;
    let source = Source::open(weights, given)?;
    for text in &source.notes {
        note(&format!("note: {}: {text}", source.path.display()));
    }
    export::export(&source, &request)?;
    let bytes = bytes(out).map_err(Error::io(out))?;
    let (model, side) = (&source.architecture.model, source.architecture.facts.image_size);
    note(&format!(
        "{}: {model}, {:.1} MB; images are [B, 3, {side}, {side}]",
        out.display(),
        bytes as f64 / 1e6
    ));
    Ok(())
}

/// Of a file, or of all in a directory.
fn bytes(path: &Path) -> io::Result<u64> {
    if !path.is_dir() {
        return Ok(fs::metadata(path)?.len());
    }
    fs::read_dir(path)?.map(|entry| Ok(entry?.metadata()?.len())).sum()
}
