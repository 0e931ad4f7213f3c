//! What a run leaves in its directory, as far as two runs of one recipe and seed must agree in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use run_record::{RunRecord, STATUS_COMPLETE, Select, layout, sha256_file};

use crate::report::read_record;

/// The columns of history.csv that measure time.
const TIMES: [&str; 3] = ["images_per_second", "train_seconds", "val_seconds"];

/// The numbers of record.json that are no times.
const NUMBERS: [&str; 5] = ["best_epoch", "val_top1", "test_top1", "test_top5", "test_loss"];

/// What a finished run has left: a value by what it is called.
pub(super) type Left = BTreeMap<String, String>;

/// Reads what a finished run has left: digests of weights, history.csv and record.json without times.
///
/// # Errors
/// A file that is missing or cannot be read.
pub(super) fn left(run: &Path) -> Result<Left> {
    let mut left = Left::new();
    for name in [Select::Best, Select::Last].map(Select::weights_file) {
        let path = run.join(name);
        if path.exists() {
            let digest = sha256_file(&path).with_context(|| format!("cannot read {}", path.display()))?;
            left.insert(format!("{name}: SHA-256"), digest);
        }
    }
    ensure!(!left.is_empty(), "{} holds no weights", run.display());
    let path = run.join(layout::HISTORY);
    let reading = || format!("cannot read {}", path.display());
    let mut reader = csv::Reader::from_path(&path).with_context(reading)?;
    let columns = reader.headers().with_context(reading)?.clone();
    for (row, cells) in (1..).zip(reader.records()) {
        let cells = cells.with_context(reading)?;
        let cells = columns.iter().zip(&cells).filter(|(column, _)| !TIMES.contains(column));
        left.extend(
            cells
                .map(|(column, cell)| (format!("{}, row {row}: {column}", layout::HISTORY), cell.to_owned())),
        );
    }
    let row = serde_json::to_value(read_record(&run.join(layout::RECORD))?.result)?;
    left.extend(NUMBERS.map(|name| (format!("{}: {name}", layout::RECORD), row[name].to_string())));
    Ok(left)
}

/// Where `other` differs from the uninterrupted run, one line each.
pub(super) fn differences(alone: &Left, other: &Left) -> Vec<String> {
    let names: BTreeSet<&String> = alone.keys().chain(other.keys()).collect();
    let differs = names.into_iter().filter(|name| alone.get(*name) != other.get(*name));
    let shown = |left: &Left, name: &str| left.get(name).map_or("missing".to_owned(), String::clone);
    differs
        .map(|name| format!("{name} is {} instead of {}", shown(other, name), shown(alone, name)))
        .collect()
}

/// A moment in training: the epoch, and the steps of it that were done; all of them at its end.
type Position = (u32, u64);

/// `epoch-0002` and `epoch-0002-step-000040`, ordered as training goes.
fn position(name: &str) -> Option<Position> {
    let rest = name.strip_prefix("epoch-")?;
    match rest.split_once("-step-") {
        Some((epoch, step)) => Some((epoch.parse().ok()?, step.parse().ok()?)),
        None => Some((rest.parse().ok()?, u64::MAX)),
    }
}

/// A run's directory between two starts.
#[derive(Debug)]
pub(super) struct Between {
    /// The newest checkpoint; one with its final name is whole.
    newest: Option<(Position, String)>,
    record: Option<RunRecord>,
    /// Of record.json: a file that was written again is another one.
    written: Option<(u64, Option<SystemTime>)>,
}

impl Between {
    pub(super) fn look(run: &Path) -> Result<Self> {
        let mut newest = None;
        let checkpoints = run.join(layout::CHECKPOINTS);
        if checkpoints.is_dir() {
            let listing = || format!("cannot list {}", checkpoints.display());
            for entry in fs::read_dir(&checkpoints).with_context(listing)? {
                let name = entry.with_context(listing)?.file_name().to_string_lossy().into_owned();
                newest = newest.max(position(&name).map(|position| (position, name)));
            }
        }
        let path = run.join(layout::RECORD);
        let record = path.exists().then(|| read_record(&path)).transpose()?;
        let written = fs::metadata(&path).ok().map(|data| (data.ino(), data.modified().ok()));
        Ok(Self { newest, record, written })
    }

    pub(super) fn is_complete(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.result.status == STATUS_COMPLETE)
    }

    #[cfg(test)]
    pub(super) fn newest_name(&self) -> Option<&str> {
        self.newest.as_ref().map(|(_, name)| name.as_str())
    }

    fn resumed_from(&self) -> &[String] {
        self.record.as_ref().map_or(&[], |record| &record.resumed_from)
    }

    /// Whether something was saved since.
    pub(super) fn has_advanced(&self, before: &Self) -> bool {
        self.newest > before.newest || self.is_complete() && !before.is_complete()
    }
}

/// What a start began with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Began {
    /// Killed before its record said anything.
    NotYet,
    /// At the first step: there was no checkpoint.
    AtTheStart,
    /// With a checkpoint of the middle of an epoch.
    Inside(String),
    /// With a checkpoint of an epoch's end.
    AtAnEnd(String),
    /// With nothing to do: the start before was killed when all was written.
    Finished,
}

/// What a start began with, judged by the directory before and after it.
///
/// # Errors
/// The work that was lost, where it did not go on from the newest checkpoint.
pub(super) fn began(before: &Between, after: &Between) -> Result<Began, String> {
    if before.is_complete() {
        return Ok(Began::Finished);
    }
    if before.written == after.written {
        return Ok(Began::NotYet);
    }
    let last = after.resumed_from().last().and_then(|name| Some((position(name)?, name.clone())));
    match (last, &before.newest) {
        (last, Some((newest, name))) if last.as_ref().is_none_or(|(position, _)| position < newest) => {
            // A record may have been written without a word yet on what the start goes on from.
            if !after.is_complete() && after.resumed_from() == before.resumed_from() {
                return Ok(Began::NotYet);
            }
            let from = last.map_or("the start".to_owned(), |(_, name)| name);
            Err(format!("went on from {from}, and {name} was there"))
        }
        (None, _) => Ok(Began::AtTheStart),
        (Some(((_, u64::MAX), name)), _) => Ok(Began::AtAnEnd(name)),
        (Some((_, name)), _) => Ok(Began::Inside(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::record;

    fn between(newest: &str, status: &str, resumed_from: &[&str], written: u64) -> Between {
        let mut record = record("a", "quick", 0, status);
        record.resumed_from = resumed_from.iter().map(|name| (*name).to_owned()).collect();
        Between {
            newest: position(newest).map(|position| (position, newest.to_owned())),
            record: Some(record),
            written: (written > 0).then_some((written, None)),
        }
    }

    #[test]
    fn checkpoints_are_ordered_as_training_goes() {
        let names =
            ["epoch-0001-step-000005", "epoch-0001-step-000010", "epoch-0001", "epoch-0002-step-000001"];
        let positions: Vec<_> = names.iter().map(|name| position(name).unwrap()).collect();
        assert!(positions.is_sorted());
        assert_eq!([".epoch-0001.1.partial", "epoch-", "notes"].map(position), [None; 3]);
    }

    #[test]
    fn what_a_start_began_with_is_told_from_the_directory() {
        let (inside, end) = ("epoch-0002-step-000040", "epoch-0002");
        let start = between("", "running", &[], 0);
        assert_eq!(began(&start, &between("epoch-0001", "running", &[], 1)), Ok(Began::AtTheStart));
        assert_eq!(began(&start, &between("", "running", &[], 0)), Ok(Began::NotYet));

        let before = between(inside, "running", &[], 1);
        assert_eq!(
            began(&before, &between(end, "running", &[inside], 2)),
            Ok(Began::Inside(inside.to_owned()))
        );
        assert_eq!(began(&before, &between(inside, "running", &[], 1)), Ok(Began::NotYet));
        // A record that has not been touched tells of an earlier start.
        let before = between(end, "running", &[end], 2);
        assert_eq!(began(&before, &between(end, "running", &[end], 2)), Ok(Began::NotYet));
        assert_eq!(
            began(&before, &between(end, "complete", &[end, end], 3)),
            Ok(Began::AtAnEnd(end.to_owned()))
        );
        assert_eq!(
            began(&between(end, "complete", &[], 3), &between(end, "complete", &[], 3)),
            Ok(Began::Finished)
        );
    }

    #[test]
    fn a_checkpoint_that_was_passed_over_is_work_lost() {
        let before = between("epoch-0002", "running", &["epoch-0001"], 1);
        for (status, from, said) in [
            (
                "running",
                &["epoch-0001", "epoch-0001"][..],
                "went on from epoch-0001, and epoch-0002 was there",
            ),
            ("running", &[], "went on from the start, and epoch-0002 was there"),
            ("complete", &["epoch-0001"], "went on from epoch-0001, and epoch-0002 was there"),
        ] {
            let after = between("epoch-0003", status, from, 2);
            assert_eq!(began(&before, &after), Err(said.to_owned()));
        }
    }

    #[test]
    fn a_difference_is_named_and_times_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let leave = |name: &str, weights: &str, history: &str, top1: f64| {
            let run = dir.path().join(name);
            fs::create_dir(&run).unwrap();
            fs::write(run.join("last.safetensors"), weights).unwrap();
            let header = "epoch,train_loss,val_loss,images_per_second,train_seconds,val_seconds\n";
            fs::write(run.join(layout::HISTORY), format!("{header}{history}")).unwrap();
            let mut record = record("a", "quick", 0, STATUS_COMPLETE);
            record.result.test_top1 = Some(top1);
            fs::write(run.join(layout::RECORD), serde_json::to_vec(&record).unwrap()).unwrap();
            left(&run).unwrap()
        };
        let alone = leave("alone", "abc", "1,0.5,0.6,10,1,2\n2,0.4,0.5,10,1,2\n", 0.75);
        assert_eq!(
            differences(&alone, &leave("same", "abc", "1,0.5,0.6,9,3,4\n2,0.4,0.5,8,5,6\n", 0.75)),
            [""; 0]
        );
        let other = leave("other", "abd", "1,0.5,0.6,10,1,2\n2,0.4,0.51,10,1,2\n", 0.5);
        assert_eq!(
            differences(&alone, &other),
            [
                "history.csv, row 2: val_loss is 0.51 instead of 0.5",
                // Of "abd" and "abc", as sha256sum has them.
                "last.safetensors: SHA-256 is a52d159f262b2c6ddb724a61840befc36eb30c88877a4030b65cbe86298449c9 \
                 instead of ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
                "record.json: test_top1 is 0.5 instead of 0.75",
            ]
        );
        let short = leave("short", "abc", "1,0.5,0.6,10,1,2\n", 0.75);
        assert_eq!(
            differences(&alone, &short),
            [("epoch", "2"), ("train_loss", "0.4"), ("val_loss", "0.5")]
                .map(|(column, cell)| format!("history.csv, row 2: {column} is missing instead of {cell}"))
        );
    }
}
