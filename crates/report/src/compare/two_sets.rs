//! Two sets of runs: rows of one network, preset and data set beside each other, seeds together.

use std::collections::{BTreeMap, BTreeSet};

use run_record::{ResultRow, STATUS_COMPLETE};
use serde::Serialize;

use super::chance::{Chance, of_seeds, of_two};
use super::side::Row;
use crate::comparison::judged;
use crate::stats::{holm, mean_and_deviation};

/// What differs between two sets of runs.
#[derive(Debug, Serialize)]
pub struct TwoSets {
    pub pairs: Vec<Pair>,
    /// What only A has.
    pub only_a: Vec<Alone>,
    /// What only B has.
    pub only_b: Vec<Alone>,
    /// Runs of A that are not complete, and left out.
    pub a_not_complete: usize,
    /// Runs of B that are not complete, and left out.
    pub b_not_complete: usize,
}

/// What rows are matched by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Key {
    pub model: String,
    pub preset: String,
    pub dataset: String,
    pub image_size: i64,
}

/// Runs of one side that differ in their seeds.
#[derive(Debug, Serialize)]
pub struct Seeds {
    pub n: usize,
    pub seeds: Vec<u64>,
    /// Mean test top-1.
    pub mean: f64,
    /// Its sample standard deviation, of two or more.
    pub std: Option<f64>,
}

/// What both sides have.
#[derive(Debug, Serialize)]
pub struct Pair {
    #[serde(flatten)]
    pub key: Key,
    pub a: Seeds,
    pub b: Seeds,
    /// Mean of B − mean of A.
    pub difference: f64,
    #[serde(flatten)]
    pub chance: Chance,
    /// `p` corrected for the number of pairs.
    pub p_holm: Option<f64>,
    pub verdict: Option<&'static str>,
    /// Columns of results.csv in which the sides differ.
    pub differs: Vec<&'static str>,
    /// Columns in which runs of one side differ: they are no seeds of one experiment.
    pub mixed: Vec<&'static str>,
}

/// What one side has.
#[derive(Debug, Serialize)]
pub struct Alone {
    #[serde(flatten)]
    pub key: Key,
    #[serde(flatten)]
    pub seeds: Seeds,
}

/// Compares two sets of runs.
pub fn two_sets(a: &[Row], b: &[Row], images: Option<usize>) -> TwoSets {
    let (ours, mut theirs) = (groups(a), groups(b));
    let (mut pairs, mut only_a) = (Vec::new(), Vec::new());
    for (key, rows) in ours {
        match theirs.remove(&key) {
            Some(others) => pairs.extend(pair(key, &rows, &others, images)),
            None => only_a.extend(alone(key, &rows)),
        }
    }
    let ps: Vec<f64> = pairs.iter().filter_map(|pair| pair.chance.p()).collect();
    let judgeable = pairs.iter_mut().filter(|pair| pair.chance.p().is_some());
    for (pair, p) in judgeable.zip(holm(&ps)) {
        pair.p_holm = Some(p);
        pair.verdict = Some(judged(p));
    }
    let not_complete = |rows: &[Row]| rows.iter().filter(|row| !is_complete(row)).count();
    TwoSets {
        pairs,
        only_a,
        only_b: theirs.into_iter().filter_map(|(key, rows)| alone(key, &rows)).collect(),
        a_not_complete: not_complete(a),
        b_not_complete: not_complete(b),
    }
}

fn is_complete(row: &Row) -> bool {
    row.result.status == STATUS_COMPLETE && row.result.test_top1.is_some()
}

/// Complete runs by what they are matched by, in the order of their seeds. A seed that was trained several times counts
/// once, with the latest run, as in summary.csv.
fn groups(rows: &[Row]) -> BTreeMap<Key, Vec<&Row>> {
    let mut latest: BTreeMap<(Key, u64, [&str; 4]), &Row> = BTreeMap::new();
    for row in rows.iter().filter(|row| is_complete(row)) {
        let ResultRow { model, preset, dataset, image_size, seed, started_at, .. } = &row.result;
        let key = Key {
            model: model.clone(),
            preset: preset.clone(),
            dataset: dataset.clone(),
            image_size: *image_size,
        };
        let same = circumstances(&row.result).map(|(_, value)| value);
        let kept = latest.entry((key, *seed, same)).or_insert(row);
        if *started_at > kept.result.started_at {
            *kept = row;
        }
    }
    let mut groups: BTreeMap<Key, Vec<&Row>> = BTreeMap::new();
    for ((key, _, _), row) in latest {
        groups.entry(key).or_default().push(row);
    }
    groups
}

/// What should be the same on both sides. `cuda:0` and `cuda:1` are one device.
fn circumstances(row: &ResultRow) -> [(&'static str, &str); 4] {
    let device = row.device.split(':').next().unwrap_or_default();
    [
        ("recipe_sha256", &row.recipe_sha256),
        ("data_sha256", &row.data_sha256),
        ("device", device),
        ("precision", &row.precision),
    ]
}

fn pair(key: Key, a: &[&Row], b: &[&Row], images: Option<usize>) -> Option<Pair> {
    let (ours, theirs) = (seeds(a)?, seeds(b)?);
    let chance = match (a, b) {
        ([a], [b]) => of_two(a, b, images),
        _ => of_seeds(&top1s(a), &top1s(b)),
    };
    let (mut differs, mut mixed) = (Vec::new(), Vec::new());
    for index in 0..4 {
        let values = |rows: &[&Row]| -> BTreeSet<String> {
            rows.iter().map(|row| circumstances(&row.result)[index].1.to_owned()).collect()
        };
        let name = circumstances(&a.first()?.result)[index].0;
        let (ours, theirs) = (values(a), values(b));
        if ours.len().max(theirs.len()) > 1 {
            mixed.push(name);
        }
        if ours != theirs {
            differs.push(name);
        }
    }
    let difference = theirs.mean - ours.mean;
    Some(Pair { key, a: ours, b: theirs, difference, chance, p_holm: None, verdict: None, differs, mixed })
}

fn alone(key: Key, rows: &[&Row]) -> Option<Alone> {
    Some(Alone { key, seeds: seeds(rows)? })
}

fn top1s(rows: &[&Row]) -> Vec<f64> {
    rows.iter().filter_map(|row| row.result.test_top1).collect()
}

fn seeds(rows: &[&Row]) -> Option<Seeds> {
    let (mean, std) = mean_and_deviation(&top1s(rows))?;
    Some(Seeds { n: rows.len(), seeds: rows.iter().map(|row| row.result.seed).collect(), mean, std })
}
