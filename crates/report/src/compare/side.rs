//! One of the two that are compared: a run, the runs of a results directory, or the rows of a results.csv.

use std::fs;
use std::path::Path;

use run_record::layout::{RECORD, RESULTS, RUNS};
use run_record::{ResultRow, columns, first_few};

use crate::Error;
use crate::runs::{Run, read_run, read_runs};

/// Characters of a foreign column's name that are shown.
const SHOWN: usize = 40;

/// What a path holds.
#[derive(Debug)]
pub struct Side {
    /// Whether it is one run, the only row.
    pub is_run: bool,
    /// What was measured.
    pub rows: Vec<Row>,
    /// Runs that cannot be read, and why.
    pub problems: Vec<String>,
}

/// The numbers of a run, and the run itself unless they come from a CSV file.
#[derive(Debug)]
pub struct Row {
    pub result: ResultRow,
    pub run: Option<Run>,
}

impl Row {
    /// How many images it was tested on, or else `given`.
    pub fn test_images(&self, given: Option<usize>) -> Option<usize> {
        let predictions = self.run.as_ref().map_or(0, |run| run.predictions.len());
        match (predictions, &*self.result.dataset) {
            (1.., _) => Some(predictions),
            (_, "digits") => Some(326),
            (_, "cifar10" | "cifar100" | "cifar100_coarse") => Some(10_000),
            _ => given,
        }
    }
}

/// Reads a run, a results directory or a results.csv.
pub fn read_side(path: &Path) -> Result<Side, Error> {
    if path.join(RECORD).is_file() {
        let run = read_run(path)?;
        check_shares(&run.record.result).map_err(content(&path.join(RECORD)))?;
        return Ok(Side { is_run: true, rows: vec![row_of(run)], problems: Vec::new() });
    }
    if path.join(RUNS).is_dir() {
        let (runs, mut problems) = read_runs(path)?;
        let mut rows = Vec::new();
        for run in runs {
            match check_shares(&run.record.result) {
                Ok(()) => rows.push(row_of(run)),
                Err(problem) => {
                    problems.push(content(&run.dir.join(RECORD))(problem).to_string());
                }
            }
        }
        return Ok(Side { is_run: false, rows, problems });
    }
    if path.is_dir() {
        let problem = format!("neither a run (no {RECORD}) nor a results directory (no {RUNS}/)");
        return Err(content(path)(problem));
    }
    let rows = rows_of_csv(&fs::read(path).map_err(Error::io(path))?).map_err(content(path))?;
    Ok(Side { is_run: false, rows, problems: Vec::new() })
}

fn content(path: &Path) -> impl Fn(String) -> Error {
    move |problem| Error::Content { path: path.to_owned(), problem }
}

fn row_of(run: Run) -> Row {
    Row { result: run.record.result.clone(), run: Some(run) }
}

fn rows_of_csv(bytes: &[u8]) -> Result<Vec<Row>, String> {
    let mut reader = csv::Reader::from_reader(bytes);
    check_header(reader.headers().map_err(|error| error.to_string())?)?;
    let header = reader.headers().map_err(|error| error.to_string())?.clone();
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| error.to_string())?;
        let line = record.position().map_or(0, csv::Position::line);
        let result: ResultRow =
            record.deserialize(Some(&header)).map_err(|error| format!("line {line}: {error}"))?;
        check_shares(&result).map_err(|problem| format!("line {line}: {problem}"))?;
        rows.push(Row { result, run: None });
    }
    Ok(rows)
}

/// Whether the columns are those of a results.csv, in any order.
fn check_header(found: &csv::StringRecord) -> Result<(), String> {
    if found.is_empty() {
        return Err(format!("line 1: empty, without the header of a {RESULTS}"));
    }
    let wanted = columns::<ResultRow>().map_err(|error| error.to_string())?;
    let missing: Vec<String> =
        wanted.iter().filter(|name| !found.iter().any(|has| has == *name)).map(str::to_owned).collect();
    if !missing.is_empty() {
        return Err(format!("line 1: not the header of a {RESULTS}: no {}", first_few(&missing)));
    }
    let unknown: Vec<String> = found
        .iter()
        .filter(|name| !wanted.iter().any(|has| has == *name))
        .map(|name| name.chars().take(SHOWN).collect())
        .collect();
    if !unknown.is_empty() {
        return Err(format!("line 1: not the header of a {RESULTS}: unknown {}", first_few(&unknown)));
    }
    if found.len() > wanted.len() {
        return Err(format!("line 1: not the header of a {RESULTS}: a column is there twice"));
    }
    Ok(())
}

/// A percentage in place of a share would make nonsense of every test.
fn check_shares(row: &ResultRow) -> Result<(), String> {
    let shares = [("val_top1", row.val_top1), ("test_top1", row.test_top1), ("test_top5", row.test_top5)];
    for (column, share) in shares {
        if let Some(share) = share
            && !(0.0..=1.0).contains(&share)
        {
            return Err(format!("{column} = {share} is no share from 0 to 1"));
        }
    }
    Ok(())
}
