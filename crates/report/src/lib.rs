//! The results page: `results/report.html`, one file that needs no network, and the same charts as files of each run.
//! And two runs or sets of runs beside each other.

mod charts;
mod compare;
mod comparison;
mod files;
mod heatmap;
mod page;
mod pictures;
mod runs;
mod scale;
mod section;
mod stats;

use std::path::{Path, PathBuf};

use run_record::{layout, write_atomically};

pub use compare::{Comparison, compare};
pub use stats::{McNemar, holm, mcnemar, mean_and_deviation, two_shares, welch};

/// Why there is no page, or no comparison.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file says what it should not.
    #[error("{}: {problem}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A chart cannot be drawn.
    #[error("a chart cannot be drawn: {0}")]
    Chart(String),
    /// The page cannot be filled in.
    #[error("the page cannot be filled in: {0:#}")]
    Template(#[from] minijinja::Error),
    /// A comparison cannot be written as JSON.
    #[error("JSON cannot hold the comparison: {0}")]
    Json(#[from] serde_json::Error),
}

impl Error {
    fn io(path: &Path) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

/// What was written.
#[derive(Debug)]
pub struct Written {
    /// The page.
    pub page: PathBuf,
    /// Runs it shows.
    pub runs: usize,
    /// Runs it does not show, and why.
    pub problems: Vec<String>,
}

/// Writes `report.html` into a results directory, and charts as `figures/*.svg` into each run's.
///
/// # Errors
/// No such directory, a disk that is full, a chart that cannot be drawn. A run that cannot be read is a problem of
/// [`Written`], and stops no other.
pub fn write(results: &Path) -> Result<Written, Error> {
    let missing = || std::io::Error::new(std::io::ErrorKind::NotADirectory, "no directory of results");
    if !results.is_dir() {
        return Err(Error::io(results)(missing()));
    }
    let (runs, problems) = runs::read_runs(results)?;
    let page = results.join(layout::REPORT);
    let html = page::page(results, &runs, &problems)?;
    write_atomically(&page, html.as_bytes()).map_err(Error::io(&page))?;
    Ok(Written { page, runs: runs.len(), problems })
}
