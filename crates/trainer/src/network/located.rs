//! Which file `--weights` means: a path, the kept weights of a run, a network that comes with the project, or one on the hub.

use std::fs;
use std::path::{Component, Path, PathBuf};

use run_record::layout::{BEST, LAST, RECORD, RUNS};
use run_record::{ResultRow, RunRecord, STATUS_COMPLETE, first_few};

use crate::Error;
use crate::network::hub::{Fetched, Reference};
use crate::run::recipes::workspace_root;

/// The results directory of the networks that come with the project, in the workspace.
const SHIPPED: &str = "weights";

/// The results directory of one's own runs, in the workspace.
const OWN: &str = "results";

/// Weights that somebody asked for.
#[derive(Debug)]
pub struct Located {
    /// The file.
    pub path: PathBuf,
    /// Its name on the hub, if it is from there: with commit and file, so that it stays the same.
    pub hub: Option<Reference>,
}

/// The file that `--weights` means: a file, the kept weights of a run's directory, those of a network in `weights/` of the
/// workspace, by its name or its family's, or a file on the hub, which is downloaded unless it is in the cache.
///
/// # Errors
/// A directory that is no run's, a name that is neither of a file nor of such a network, or those of [`Reference`].
pub fn locate(weights: &Path) -> Result<Located, Error> {
    if let Some(reference) = Reference::of(weights)? {
        let Fetched { path, exact } = reference.fetch()?;
        return Ok(Located { path, hub: Some(exact) });
    }
    let path = match plain_name(weights) {
        _ if weights.is_dir() => of_run(weights)?,
        Some(name) if !weights.exists() => shipped(name)?,
        _ => weights.to_owned(),
    };
    Ok(Located { path, hub: None })
}

/// The kept weights of the newest finished run in `results/` of the workspace; without one, those of the network in
/// `weights/` that was best by its validation images.
///
/// # Errors
/// Neither, or a directory that cannot be read.
pub fn by_default(root: &Path) -> Result<PathBuf, Error> {
    let own = finished(&root.join(OWN))?.into_iter().max_by(|(a, _), (b, _)| a.started_at.cmp(&b.started_at));
    let best = |(a, _): &(ResultRow, PathBuf), (b, _): &(ResultRow, PathBuf)| {
        a.val_top1.unwrap_or(0.0).total_cmp(&b.val_top1.unwrap_or(0.0))
    };
    let found = match own {
        Some(own) => Some(own),
        None => finished(&root.join(SHIPPED))?.into_iter().max_by(best),
    };
    found.map(|(_, weights)| weights).ok_or_else(|| {
        Error::Usage(format!(
            "there is no finished run in {}; give --weights FILE, or train one: \
             cargo xtask train --model convmixer_reference --preset quick",
            root.join(OWN).join(RUNS).display()
        ))
    })
}

/// A word that could name a network: one part of a path, without an ending.
fn plain_name(weights: &Path) -> Option<&str> {
    let mut parts = weights.components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(name)), None) if weights.extension().is_none() => name.to_str(),
        _ => None,
    }
}

/// The weights in `weights/` of the network, or the family, of that name.
fn shipped(name: &str) -> Result<PathBuf, Error> {
    let all = finished(&workspace_root()?.join(SHIPPED))?;
    let mut known: Vec<String> = all.iter().map(|(row, _)| row.model.clone()).collect();
    let is_named = |(row, _): &(ResultRow, PathBuf)| row.model == name || row.family == name;
    all.into_iter().find(is_named).map(|(_, weights)| weights).ok_or_else(|| {
        known.sort_unstable();
        let has = if known.is_empty() { "nothing".to_owned() } else { first_few(&known) };
        Error::Usage(format!("--weights {name}: there is no such file, and {SHIPPED}/ has {has}"))
    })
}

/// The complete runs of a results directory, with their kept weights. What cannot be read is no finished run.
fn finished(results: &Path) -> Result<Vec<(ResultRow, PathBuf)>, Error> {
    let runs = results.join(RUNS);
    let mut finished = Vec::new();
    for entry in fs::read_dir(&runs).into_iter().flatten() {
        let run = entry.map_err(Error::io(&runs))?.path();
        let record = fs::read_to_string(run.join(RECORD)).ok();
        let row = record.and_then(|text| RunRecord::parse(&text).ok()).map(|record| record.result);
        if let (Some(row), Ok(weights)) = (row, of_run(&run))
            && row.status == STATUS_COMPLETE
        {
            finished.push((row, weights));
        }
    }
    Ok(finished)
}

/// The kept weights in a run's directory.
fn of_run(run: &Path) -> Result<PathBuf, Error> {
    let kept = [BEST, LAST].map(|name| run.join(name));
    kept.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        let problem =
            format!("this directory holds no {BEST} and no {LAST}; give a run's directory, or a file");
        Error::Weights { path: run.to_owned(), problem }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_networks_are_told_from_paths() {
        for (weights, name) in [
            ("cct_reference", Some("cct_reference")),
            ("cct", Some("cct")),
            ("best.safetensors", None),
            ("./cct", None),
            ("results/cct", None),
            ("/cct", None),
            ("..", None),
        ] {
            assert_eq!(plain_name(Path::new(weights)), name, "{weights}");
        }
    }
}
