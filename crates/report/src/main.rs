//! `report RESULTS`: writes `RESULTS/report.html`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use run_record::visible;

/// Writes the results page of a results directory
#[derive(Parser)]
#[command(after_help = "Example: cargo xtask report")]
struct Args {
    /// The directory that holds `runs/`
    results: PathBuf,
}

fn main() -> ExitCode {
    match report::write(&Args::parse().results) {
        Ok(written) => {
            println!("{} runs are shown in {}", written.runs, visible(&written.page.display().to_string()));
            for problem in &written.problems {
                eprintln!("error: {}", visible(problem));
            }
            ExitCode::from(u8::from(!written.problems.is_empty()))
        }
        Err(error) => {
            eprintln!("error: {}", visible(&error.to_string()));
            ExitCode::FAILURE
        }
    }
}
