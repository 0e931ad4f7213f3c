//! `verify`: whether finished runs are what their records say.

use std::path::PathBuf;

use run_record::layout::VERIFICATION;
use run_record::{Verification, write_atomically};
use serde_json::json;
use trainer::look::verify::{Place, verify};
use trainer::process::environment;
use trainer::process::lines::{note, say};
use trainer::{Error, run::recipes};

use super::listen;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directories of finished runs.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Directory of the data set, if not where `cargo xtask fetch` puts it, or of an image folder.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// An object for each run, a line each.
    #[arg(long)]
    json: bool,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Error> {
    let root = recipes::workspace_root()?;
    let stop = listen()?;
    let device = environment::device(&args.device)?;
    let place = Place { root: &root, data_dir: args.data_dir.as_deref(), device };
    let mut wrong = 0;
    for run in &args.runs {
        let verification = match verify(run, &place, &stop) {
            Err(stopped @ Error::Stopped(_)) => return Err(stopped),
            // A run that cannot be checked stops no other.
            checked => checked.map_err(|error| error.to_string()),
        };
        let name = run.display().to_string();
        wrong += usize::from(!matches!(&verification, Ok(checked) if checked.holds()));
        if let Ok(checked) = &verification {
            keep(run, checked)?;
        }
        tell(&name, &verification, args.json);
    }
    match wrong {
        0 => Ok(()),
        _ => Err(Error::Training(format!("{wrong} of {} runs do not hold", args.runs.len()))),
    }
}

/// Leaves the result in the run, for the results page. Results that cannot be written to can be checked all the same.
fn keep(run: &std::path::Path, checked: &Verification) -> Result<(), Error> {
    let path = run.join(VERIFICATION);
    let json = serde_json::to_vec_pretty(checked).map_err(|error| Error::io(&path)(error.into()))?;
    if let Err(error) = write_atomically(&path, &json) {
        note(&format!("note: {}: {error}", path.display()));
    }
    Ok(())
}

fn tell(run: &str, verification: &Result<Verification, String>, json: bool) {
    match verification {
        _ if json => {
            let (images, findings) = match verification {
                Ok(checked) => (checked.images, checked.findings.clone()),
                Err(problem) => (0, vec![problem.clone()]),
            };
            say(&json!({ "run": run, "holds": findings.is_empty(), "images": images, "findings": findings })
                .to_string());
        }
        Ok(checked) if checked.holds() => say(&format!("{run}: holds, {} test images", checked.images)),
        Ok(checked) => {
            say(&format!("{run}: does not hold"));
            checked.findings.iter().for_each(|finding| say(&format!("  {finding}")));
        }
        Err(problem) => say(&format!("{run}: cannot be checked: {problem}")),
    }
}
