//! `report page RESULTS` writes `RESULTS/report.html`; `report compare A B` prints what differs between A and B.

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use report::Error;
use run_record::visible;

/// Shows and compares the runs of results directories
#[derive(Parser)]
#[command(after_help = "Examples:\n  cargo xtask report\n  cargo xtask compare --help")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the results page of a results directory
    Page {
        /// The directory that holds `runs/`
        results: PathBuf,
    },
    /// Compare two runs, results directories or results.csv files
    Compare {
        /// A run, a results directory or a results.csv
        a: PathBuf,
        /// Another
        b: PathBuf,
        /// Test images, where nothing else tells how many there are
        #[arg(long, value_name = "N")]
        images: Option<NonZeroUsize>,
        /// How the comparison is written
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Format {
    #[default]
    Table,
    Json,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Page { results } => page(&results),
        Command::Compare { a, b, images, format } => compare(&a, &b, images, format),
    };
    match done {
        Ok(problems) => {
            for problem in &problems {
                eprintln!("error: {}", visible(problem));
            }
            ExitCode::from(u8::from(!problems.is_empty()))
        }
        Err(error) => {
            eprintln!("error: {}", visible(&error.to_string()));
            ExitCode::FAILURE
        }
    }
}

/// Returns what was left out, and why.
fn page(results: &Path) -> Result<Vec<String>, Error> {
    let written = report::write(results)?;
    println!("{} runs are shown in {}", written.runs, visible(&written.page.display().to_string()));
    Ok(written.problems)
}

fn compare(a: &Path, b: &Path, images: Option<NonZeroUsize>, format: Format) -> Result<Vec<String>, Error> {
    let found = report::compare(a, b, images)?;
    let text = match format {
        Format::Table => found.to_string(),
        Format::Json => found.to_json()?,
    };
    // A reader that stopped listening (`| head`) is no error.
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(found.problems)
}
