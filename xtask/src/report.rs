//! The results tables, rebuilt from the record every run leaves.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use comfy_table::Table;
use run_record::{
    ResultRow, RunRecord, STATUS_COMPLETE, STATUS_RUNNING, STATUS_STOPPED, duration, layout, to_csv, visible,
    write_atomically,
};

use crate::process::{Place, note, say, show, show_with_deltas};
use crate::table::{markdown, percent, points, speed};
use crate::{reporter, summary};

/// What the runs of a results directory came to.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Finished and failed runs, by model, preset and seed.
    pub(crate) rows: Vec<ResultRow>,
    /// Directories of the complete ones among them, by name.
    pub(crate) complete: Vec<String>,
    /// Directories of runs that are under way, or were killed.
    pub(crate) running: Vec<String>,
    /// Directories of runs that were asked to stop.
    pub(crate) stopped: Vec<String>,
    /// Records that cannot be read.
    pub(crate) problems: Vec<String>,
}

/// `cargo xtask report`: the tables, and the page if there is a run to show on it.
pub(crate) fn report(place: &Place, results: &Path) -> Result<u8> {
    let report = tables(results)?;
    let of_page = if report.rows.is_empty() { 0 } else { reporter::write_page(place, results)? };
    Ok(of_page.max(u8::from(!report.problems.is_empty())))
}

/// Writes results.csv and summary.csv, and prints both.
fn tables(results: &Path) -> Result<Report> {
    if !results.is_dir() {
        bail!(
            "{} is no directory: `cargo xtask train-all` makes one, --results names another",
            results.display()
        );
    }
    let report = collect(results)?;
    let csv = results.join(layout::RESULTS);
    write(&csv, &to_csv(&report.rows)?)?;
    let groups = summary::summarise(&report.rows);
    let summary_csv = results.join(layout::SUMMARY);
    write(&summary_csv, &to_csv(&groups)?)?;
    show_with_deltas(table(&report.rows), DELTA);
    if let Some(table) = summary::table(&groups) {
        say("");
        say(format!("means ± sample standard deviations over seeds ({}):", summary_csv.display()));
        show(table);
    }
    for run in &report.running {
        say(format!(
            "not in the table: {run} has not finished (it is running, or was killed: train it again, and it goes on)"
        ));
    }
    for run in &report.stopped {
        say(format!("not in the table: {run} was stopped (train it again, and it goes on)"));
    }
    say(format!("{} of {} runs written to {}", report.rows.len(), runs_in(&report), csv.display()));
    for problem in &report.problems {
        note(format!("error: {problem}"));
    }
    Ok(report)
}

fn runs_in(report: &Report) -> usize {
    report.rows.len() + report.running.len() + report.stopped.len() + report.problems.len()
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Reads every `runs/*/record.json`.
pub(crate) fn collect(results: &Path) -> Result<Report> {
    let mut report = Report::default();
    let runs = results.join(layout::RUNS);
    if !runs.is_dir() {
        return Ok(report);
    }
    for run in fs::read_dir(&runs).with_context(|| format!("cannot list {}", runs.display()))? {
        let run = run.with_context(|| format!("cannot list {}", runs.display()))?;
        let path = run.path().join(layout::RECORD);
        if !path.exists() {
            continue;
        }
        let name = || run.file_name().to_string_lossy().into_owned();
        match read_record(&path) {
            Ok(record) => match record.result.status.as_str() {
                STATUS_RUNNING => report.running.push(name()),
                STATUS_STOPPED => report.stopped.push(name()),
                status => {
                    report.complete.extend((status == STATUS_COMPLETE).then(name));
                    report.rows.push(record.result);
                }
            },
            Err(error) => report.problems.push(format!("{error:#}")),
        }
    }
    let key = |row: &ResultRow| (row.model.clone(), row.preset.clone(), row.seed);
    report.rows.sort_by_key(key);
    report.complete.sort();
    report.running.sort();
    report.stopped.sort();
    report.problems.sort();
    Ok(report)
}

/// Reads one record.
pub(crate) fn read_record(path: &Path) -> Result<RunRecord> {
    let text = fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    RunRecord::parse(&text).map_err(|problem| anyhow!("{}: {problem}", path.display()))
}

/// The column of the difference to the published number.
const DELTA: usize = 10;

fn table(rows: &[ResultRow]) -> Table {
    let header =
        "model|preset|dataset|seed|params|MACs|epochs|val top-1|test top-1|reference|delta|img/s|time|status";
    let cells = |row: &ResultRow| {
        vec![
            visible(&row.model).into_owned(),
            visible(&row.preset).into_owned(),
            visible(&row.dataset).into_owned(),
            row.seed.to_string(),
            scaled(row.params),
            scaled(row.macs),
            row.epochs.to_string(),
            percent(row.val_top1),
            percent(row.test_top1),
            percent(row.reference_top1),
            points(row.delta_top1),
            speed(row.images_per_second),
            row.train_seconds.map_or(String::new(), duration),
            shortened(&row.status),
        ]
    };
    markdown(header, 3..13, rows.iter().map(cells))
}

/// 594,186 as `594.2 k`.
fn scaled(n: u64) -> String {
    let n = n as f64;
    match n {
        1e9.. => format!("{:.2} G", n / 1e9),
        1e6.. => format!("{:.2} M", n / 1e6),
        1e3.. => format!("{:.1} k", n / 1e3),
        _ => n.to_string(),
    }
}

/// One line of at most 60 characters; the whole text is in results.csv.
fn shortened(status: &str) -> String {
    let line = status.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = visible(&line).into_owned();
    if line.chars().count() <= 60 { line } else { line.chars().take(59).chain(['…']).collect() }
}

#[cfg(test)]
mod shipped;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use run_record::{RECORD_FORMAT, SummaryRow};

    pub(crate) fn record(model: &str, preset: &str, seed: u64, status: &str) -> RunRecord {
        let finished = status == run_record::STATUS_COMPLETE;
        RunRecord {
            format: RECORD_FORMAT,
            result: ResultRow {
                model: model.into(),
                family: "family".into(),
                preset: preset.into(),
                dataset: "digits".into(),
                image_size: 32,
                seed,
                epochs: 3,
                batch_size: 64,
                params: 594_186,
                macs: 148_113_920,
                best_epoch: finished.then_some(2),
                val_top1: finished.then_some(0.95),
                test_top1: finished.then_some(0.9612),
                test_top5: None,
                test_loss: None,
                reference_top1: finished.then_some(0.97),
                reference_top5: None,
                delta_top1: finished.then_some(-0.0088),
                train_seconds: finished.then_some(99.0),
                images_per_second: finished.then_some(60.4),
                peak_memory_mb: None,
                device: "cpu".into(),
                precision: "f32".into(),
                threads: 2,
                libtorch: "2.11.0".into(),
                data_sha256: String::new(),
                recipe_sha256: String::new(),
                git_commit: String::new(),
                started_at: "2026-01-01T00:00:00Z".into(),
                status: status.into(),
            },
            weights_sha256: None,
            predictions_sha256: None,
            history_sha256: None,
            temperature: None,
            command: Vec::new(),
            trainer_version: "0.1.0".into(),
            cpu: String::new(),
            gpu: None,
            driver: None,
            kernels: None,
            deterministic: false,
            skipped_files: 0,
            resumed_from: Vec::new(),
        }
    }

    pub(crate) fn write_record(results: &Path, run: &str, record: &RunRecord) {
        let dir = results.join("runs").join(run);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("record.json"), serde_json::to_vec(record).unwrap()).unwrap();
    }

    #[test]
    fn rows_are_sorted_failures_kept_and_unfinished_runs_left_out() {
        let results = tempfile::tempdir().unwrap();
        write_record(results.path(), "3", &record("b", "quick", 0, "failed: a reason, with a comma"));
        write_record(results.path(), "2", &record("a", "quick", 10, "complete"));
        write_record(results.path(), "1", &record("a", "quick", 9, "complete"));
        write_record(results.path(), "4", &record("a", "best", 11, "complete"));
        write_record(results.path(), "5", &record("c", "quick", 0, STATUS_RUNNING));
        write_record(results.path(), "6", &record("c", "quick", 1, STATUS_STOPPED));
        fs::create_dir_all(results.path().join("runs/without-record")).unwrap();
        assert_eq!(tables(results.path()).unwrap().problems, Vec::<String>::new());

        let text = fs::read_to_string(results.path().join("results.csv")).unwrap();
        assert!(text.starts_with("model,family,preset,"), "{text}");
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let rows: Vec<ResultRow> = reader.deserialize().map(Result::unwrap).collect();
        let keys: Vec<_> = rows.iter().map(|r| (r.model.as_str(), r.preset.as_str(), r.seed)).collect();
        assert_eq!(keys, [("a", "best", 11), ("a", "quick", 9), ("a", "quick", 10), ("b", "quick", 0)]);
        assert_eq!(rows[3].status, "failed: a reason, with a comma");
        assert_eq!(rows[3].test_top1, None);

        let shown = table(&rows).to_string();
        assert!(
            shown.contains("96.12 %") && shown.contains("-0.88") && shown.contains("1 min 39 s"),
            "{shown}"
        );
        let found = collect(results.path()).unwrap();
        assert_eq!((found.running, found.stopped), (vec!["5".to_owned()], vec!["6".to_owned()]));

        let text = fs::read_to_string(results.path().join("summary.csv")).unwrap();
        assert!(text.starts_with("model,family,preset,"), "{text}");
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let groups: Vec<SummaryRow> = reader.deserialize().map(Result::unwrap).collect();
        let keys: Vec<_> = groups.iter().map(|g| (g.preset.as_str(), g.n, g.seeds.as_str())).collect();
        assert_eq!(keys, [("best", 1, "11"), ("quick", 2, "9 10")]);
        assert_eq!((groups[1].test_top1_mean, groups[1].test_top1_std), (Some(0.9612), Some(0.0)));
    }

    #[test]
    fn names_from_a_record_cannot_act_on_the_terminal_or_break_the_table() {
        let mut row = record("a\n| b |", "\u{1b}[2J", 0, "failed: no\u{202e}thing").result;
        row.dataset = "folder\r".into();
        let shown = table(&[row.clone(), row]).to_string();
        assert_eq!(shown.lines().count(), 4, "{shown}");
        for words in ["a\\n| b |", "\\u001b[2J", "folder\\r", "failed: no\\u202ething"] {
            assert!(shown.contains(words), "{shown}");
        }
    }

    #[test]
    fn without_runs_there_still_is_a_header() {
        let results = tempfile::tempdir().unwrap();
        assert!(tables(results.path()).unwrap().rows.is_empty());
        let text = fs::read_to_string(results.path().join("results.csv")).unwrap();
        assert_eq!(text.as_bytes(), to_csv::<ResultRow>(&[]).unwrap());
        let text = fs::read_to_string(results.path().join("summary.csv")).unwrap();
        assert_eq!(text.as_bytes(), to_csv::<SummaryRow>(&[]).unwrap());
        assert!(tables(&results.path().join("typo")).is_err());
    }

    #[test]
    fn a_record_that_cannot_be_read_is_named_and_stops_no_other() {
        let results = tempfile::tempdir().unwrap();
        write_record(results.path(), "good", &record("a", "quick", 0, "complete"));
        let mut newer = serde_json::to_value(record("b", "quick", 0, "complete")).unwrap();
        newer["format"] = (RECORD_FORMAT + 1).into();
        newer["new_field"] = true.into();
        for (run, text) in [("newer", newer.to_string()), ("cut", "{\"format\": 1,".to_owned())] {
            fs::create_dir_all(results.path().join("runs").join(run)).unwrap();
            fs::write(results.path().join("runs").join(run).join("record.json"), text).unwrap();
        }
        let found = tables(results.path()).unwrap();
        assert_eq!(found.rows.len(), 1);
        assert!(found.problems[0].contains("cut/record.json"), "{:?}", found.problems);
        let newer = format!("newer/record.json: format = {} is newer", RECORD_FORMAT + 1);
        assert!(found.problems[1].contains(&newer), "{:?}", found.problems);
    }

    #[test]
    fn numbers_are_shown_for_people() {
        assert_eq!([scaled(999), scaled(594_186), scaled(148_113_920)], ["999", "594.2 k", "148.11 M"]);
    }
}
