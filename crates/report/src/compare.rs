//! Two runs, or two sets of runs, beside each other: what differs in recipe and numbers, and whether that is chance.

mod chance;
mod side;
mod two_runs;
mod two_sets;
mod words;

use std::fmt;
use std::num::NonZeroUsize;
use std::path::Path;

use run_record::visible_lines;
use serde::Serialize;

use crate::Error;
use side::{Side, read_side};
use two_runs::TwoRuns;
use two_sets::TwoSets;

/// What was found; displayed as tables for people.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// The first path.
    a: String,
    /// The second.
    b: String,
    #[serde(flatten)]
    found: Found,
    /// Runs that are not compared, and why.
    pub problems: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Found {
    TwoRuns(TwoRuns),
    TwoSets(TwoSets),
}

/// Compares two paths, each a run, a results directory or a results.csv. `images` is the number of test images where
/// neither predictions nor the data set's name tell it.
///
/// # Errors
/// A path is none of these, or cannot be read. A run of a results directory that cannot be read is a problem of
/// [`Comparison`].
pub fn compare(a: &Path, b: &Path, images: Option<NonZeroUsize>) -> Result<Comparison, Error> {
    let images = images.map(NonZeroUsize::get);
    let names = [a, b].map(|path| path.display().to_string());
    let (a, b) = (read_side(a)?, read_side(b)?);
    let found = match (&a, &b) {
        (Side { is_run: true, rows: ours, .. }, Side { is_run: true, rows: theirs, .. }) => {
            let pair = ours.first().zip(theirs.first());
            pair.map(|(a, b)| Found::TwoRuns(two_runs::two_runs(a, b, images)))
        }
        _ => None,
    };
    let found = found.unwrap_or_else(|| Found::TwoSets(two_sets::two_sets(&a.rows, &b.rows, images)));
    let problems = a.problems.into_iter().chain(b.problems).collect();
    let [a, b] = names;
    Ok(Comparison { a, b, found, problems })
}

impl Comparison {
    /// The same facts as one JSON object, in which nothing acts on a terminal.
    ///
    /// # Errors
    /// None that are known.
    pub fn to_json(&self) -> Result<String, Error> {
        Ok(visible_lines(&serde_json::to_string_pretty(self)?))
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = match &self.found {
            Found::TwoRuns(found) => words::two_runs(found),
            Found::TwoSets(found) => words::two_sets(found),
        };
        f.write_str(&visible_lines(&format!("{}{found}", words::names(&self.a, &self.b))))
    }
}
