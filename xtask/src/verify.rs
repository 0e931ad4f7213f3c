//! `verify-results`: whether the tables are those of the runs, and the runs what their records say.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use csv::StringRecord;
use run_record::{columns, layout, to_csv};
use serde::Serialize;

use crate::machine::libtorch::{self, FlavorChoice};
use crate::process::{Place, cannot_start, exit_code, note, say};
use crate::report::collect;
use crate::summary::summarise;
use crate::trainer::build_trainer;

/// Which results, on which data.
#[derive(Debug, clap::Args)]
pub(crate) struct Verify {
    /// Where the runs are [default: results/ in the workspace]
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
    /// Directory of the data set, if not where `cargo xtask fetch` puts it, or of an image folder
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where networks compute: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
}

/// Checks the tables here, and has the trainer check each complete run. The exit code is 1 if something does not hold.
pub(crate) fn verify(place: &Place, args: &Verify) -> Result<u8> {
    let results = args.results.clone().unwrap_or_else(|| place.root.join("results"));
    if !results.is_dir() {
        bail!(
            "{} is no directory: `cargo xtask train-all` makes one, --results names another",
            results.display()
        );
    }
    let report = collect(&results)?;
    let mut wrong = report.problems.len();
    report.problems.iter().for_each(|problem| say(format!("does not hold: {problem}")));
    wrong += check_table(&results.join(layout::RESULTS), &report.rows)?;
    wrong += check_table(&results.join(layout::SUMMARY), &summarise(&report.rows))?;
    for run in report.running.iter().chain(&report.stopped) {
        say(format!("{run}: not finished, so there is nothing to check"));
    }
    let failed = report.rows.len() - report.complete.len();
    if failed > 0 {
        say(format!("{failed} failed runs: only their rows were checked"));
    }
    let code = match report.complete.as_slice() {
        [] => 0,
        runs => check_runs(place, args, &results, runs)?,
    };
    if report.rows.is_empty() && wrong == 0 {
        note(format!("note: {} holds no finished run", results.display()));
    }
    Ok(code.max(u8::from(wrong > 0)))
}

fn check_runs(place: &Place, args: &Verify, results: &Path, runs: &[String]) -> Result<u8> {
    libtorch::ensure(place, FlavorChoice::Auto, None)?;
    let code = build_trainer(place)?;
    if code != 0 {
        return Ok(code);
    }
    let mut trainer = place.trainer_command();
    trainer.args(["verify", "--device", &args.device]);
    if let Some(data) = &args.data_dir {
        trainer.arg("--data-dir").arg(data);
    }
    trainer.arg("--").args(runs.iter().map(|run| results.join(layout::RUNS).join(run)));
    Ok(exit_code(trainer.status().with_context(|| cannot_start(&trainer))?))
}

/// Says what of a table is not as the records have it, and counts it.
fn check_table<T: Serialize + Default>(path: &Path, rows: &[T]) -> Result<usize> {
    let name = path.file_name().unwrap_or_default().display();
    let findings = match fs::read(path) {
        Ok(bytes) => differences(&bytes, rows)?,
        Err(error) => vec![format!("cannot be read: {error}")],
    };
    findings.iter().for_each(|finding| say(format!("does not hold: {name}: {finding}")));
    if findings.is_empty() {
        say(format!("{name}: holds, {} rows", rows.len()));
    }
    Ok(findings.len())
}

/// In what a table differs from the rows it should have. Numbers may be written in another way.
fn differences<T: Serialize + Default>(bytes: &[u8], rows: &[T]) -> Result<Vec<String>> {
    let header = columns::<T>()?;
    let wanted = to_csv(rows)?;
    let wanted = csv::Reader::from_reader(&*wanted).into_records().collect::<csv::Result<Vec<_>>>()?;
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(bytes);
    match reader.headers() {
        Ok(found) if *found == header => {}
        Ok(_) => {
            return Ok(vec!["line 1: these are not its columns; `cargo xtask report` writes it anew".into()]);
        }
        Err(error) => return Ok(vec![error.to_string()]),
    }
    let found: Vec<StringRecord> = match reader.records().collect() {
        Ok(records) => records,
        Err(error) => return Ok(vec![error.to_string()]),
    };
    let alike = |a: &StringRecord, b: &StringRecord| a.iter().zip(b).filter(|(a, b)| is_same(a, b)).count();
    // Rows that are as they should be first, so that a changed one is not taken for another.
    let mut left: Vec<&StringRecord> = found.iter().collect();
    let mut missing = Vec::new();
    for row in &wanted {
        let is_whole = |other: &&StringRecord| other.len() == row.len() && alike(row, other) == row.len();
        match left.iter().position(is_whole) {
            Some(index) => drop(left.remove(index)),
            None => missing.push(row),
        }
    }
    let mut findings = Vec::new();
    for row in missing {
        // A changed cell, even of a name, leaves most of a row as it was.
        let best = (0..left.len()).max_by_key(|index| alike(row, left[*index]));
        match best.filter(|index| 2 * alike(row, left[*index]) > header.len()) {
            Some(index) => findings.extend(changed_cells(&header, row, left.remove(index))),
            None => findings.push(format!("there is no row of {}", named(&header, row))),
        }
    }
    findings.extend(left.iter().map(|row| format!("line {}: no run has this row", line(row))));
    Ok(findings)
}

fn changed_cells(header: &StringRecord, wanted: &StringRecord, found: &StringRecord) -> Vec<String> {
    let of = named(header, wanted);
    if wanted.len() != found.len() {
        return vec![format!("line {} ({of}): {} cells, not {}", line(found), found.len(), wanted.len())];
    }
    let cells = header.iter().zip(wanted.iter().zip(found)).filter(|(_, (a, b))| !is_same(a, b));
    let told = |(column, (wanted, cell)): (&str, (&str, &str))| {
        format!("line {} ({of}): {column} is {cell:?}, and by the records {wanted:?}", line(found))
    };
    cells.map(told).collect()
}

/// Whether two cells say the same: the same text, or the same number.
fn is_same(a: &str, b: &str) -> bool {
    a == b || matches!((a.parse::<f64>(), b.parse::<f64>()), (Ok(a), Ok(b)) if a == b)
}

fn line(row: &StringRecord) -> u64 {
    row.position().map_or(0, csv::Position::line)
}

/// What a row is of, for people.
fn named(header: &StringRecord, row: &StringRecord) -> String {
    let cells =
        header.iter().zip(row).filter(|(column, _)| matches!(*column, "model" | "preset" | "seed" | "seeds"));
    cells.map(|(_, cell)| cell).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::record;
    use run_record::ResultRow;

    fn rows() -> Vec<ResultRow> {
        ["a", "b", "c"].map(|model| record(model, "quick", 7, "complete").result).to_vec()
    }

    fn text() -> String {
        String::from_utf8(to_csv(&rows()).unwrap()).unwrap()
    }

    fn found(text: &str) -> Vec<String> {
        differences(text.as_bytes(), &rows()).unwrap()
    }

    #[test]
    fn a_table_as_it_was_written_holds_in_any_order_and_notation() {
        assert_eq!(found(&text()), [""; 0]);
        let mut lines: Vec<String> = text().lines().map(|line| line.replace("0.95,", "0.9500,")).collect();
        lines[1..].reverse();
        assert_eq!(found(&lines.join("\r\n")), [""; 0]);
    }

    #[test]
    fn each_changed_cell_is_named_with_its_line() {
        let header = columns::<ResultRow>().unwrap();
        let whole: Vec<StringRecord> =
            csv::Reader::from_reader(text().as_bytes()).into_records().map(Result::unwrap).collect();
        for (index, column) in header.iter().enumerate() {
            let mut writer = csv::Writer::from_writer(Vec::new());
            writer.write_record(&header).unwrap();
            for (number, row) in whole.iter().enumerate() {
                let changed = |cell: usize| number == 1 && cell == index;
                let cells = row.iter().enumerate();
                writer.write_record(cells.map(|(i, cell)| if changed(i) { "9" } else { cell })).unwrap();
            }
            let found = differences(&writer.into_inner().unwrap(), &rows()).unwrap();
            assert_eq!(found.len(), 1, "{column}: {found:?}");
            assert!(found[0].starts_with(&format!("line 3 (b quick 7): {column} is \"9\"")), "{found:?}");
        }
    }

    #[test]
    fn missing_and_added_rows_and_other_columns_are_found() {
        let lines: Vec<String> = text().lines().map(str::to_owned).collect();
        assert_eq!(found(&[&*lines[0], &*lines[1], &*lines[3]].join("\n")), ["there is no row of b quick 7"]);
        assert_eq!(found(&[text(), lines[2].clone()].concat()), ["line 5: no run has this row"]);
        assert!(found(&text().replacen("model,", "modell,", 1))[0].starts_with("line 1"));
        assert!(found("")[0].starts_with("line 1"));
        let longer = found(&text().replacen(",complete", ",complete,more", 1));
        let cells = lines[0].split(',').count();
        assert_eq!(longer, [format!("line 2 (a quick 7): {} cells, not {cells}", cells + 1)]);
    }
}
