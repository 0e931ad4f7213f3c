//! Mean and spread over seeds, of the finished runs that differ in nothing else.

use comfy_table::Table;
use run_record::{ResultRow, STATUS_COMPLETE, SummaryRow, duration, visible};

use crate::table::{markdown, percent, points, speed};

/// One row per group of finished runs, in the order of their first rows.
pub(crate) fn summarise(rows: &[ResultRow]) -> Vec<SummaryRow> {
    let mut groups: Vec<(SummaryRow, Vec<&ResultRow>)> = Vec::new();
    for row in rows.iter().filter(|row| row.status == STATUS_COMPLETE) {
        let group = group_of(row);
        match groups.iter_mut().find(|(known, _)| *known == group) {
            Some((_, runs)) => add(runs, row),
            None => groups.push((group, vec![row])),
        }
    }
    groups.into_iter().map(|(group, runs)| filled(group, &runs)).collect()
}

/// A seed that was trained twice counts once, with the run that was started last: a repetition says nothing about
/// the spread over seeds.
fn add<'a>(runs: &mut Vec<&'a ResultRow>, row: &'a ResultRow) {
    match runs.iter_mut().find(|run| run.seed == row.seed) {
        Some(run) if run.started_at < row.started_at => *run = row,
        Some(_) => {}
        None => runs.push(row),
    }
}

/// What runs of one group agree in; nothing that is measured.
fn group_of(row: &ResultRow) -> SummaryRow {
    SummaryRow {
        model: row.model.clone(),
        family: row.family.clone(),
        preset: row.preset.clone(),
        dataset: row.dataset.clone(),
        image_size: row.image_size,
        epochs: row.epochs,
        batch_size: row.batch_size,
        params: row.params,
        macs: row.macs,
        reference_top1: row.reference_top1,
        device: row.device.split(':').next().unwrap_or_default().to_owned(),
        precision: row.precision.clone(),
        threads: row.threads,
        libtorch: row.libtorch.clone(),
        data_sha256: row.data_sha256.clone(),
        recipe_sha256: row.recipe_sha256.clone(),
        ..SummaryRow::default()
    }
}

fn filled(mut group: SummaryRow, runs: &[&ResultRow]) -> SummaryRow {
    let mut seeds: Vec<u64> = runs.iter().map(|run| run.seed).collect();
    seeds.sort_unstable();
    group.n = runs.len();
    group.seeds = seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
    (group.val_top1_mean, group.val_top1_std) = spread(runs, |run| run.val_top1);
    (group.test_top1_mean, group.test_top1_std) = spread(runs, |run| run.test_top1);
    (group.test_top5_mean, group.test_top5_std) = spread(runs, |run| run.test_top5);
    (group.test_loss_mean, group.test_loss_std) = spread(runs, |run| run.test_loss);
    (group.train_seconds_mean, group.train_seconds_std) = spread(runs, |run| run.train_seconds);
    (group.images_per_second_mean, group.images_per_second_std) = spread(runs, |run| run.images_per_second);
    group.delta_top1 =
        group.test_top1_mean.zip(group.reference_top1).map(|(mean, reference)| rounded(mean - reference));
    let commit = runs.first().map_or("", |run| run.git_commit.as_str());
    let one = runs.iter().all(|run| run.git_commit == commit);
    group.git_commit = if one { commit } else { "several" }.to_owned();
    group
}

/// Mean and sample standard deviation of a number every run has.
fn spread(runs: &[&ResultRow], number: impl Fn(&ResultRow) -> Option<f64>) -> (Option<f64>, Option<f64>) {
    let Some(values) = runs.iter().map(|run| number(run)).collect::<Option<Vec<f64>>>() else {
        return (None, None);
    };
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let deviation = (values.len() > 1).then(|| rounded((squares / (n - 1.0)).sqrt()));
    (Some(rounded(mean)), deviation)
}

/// Six decimals, as in the runs' own records.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

/// The groups of several runs, for people; `None` if there is no such group.
pub(crate) fn table(groups: &[SummaryRow]) -> Option<Table> {
    let several: Vec<&SummaryRow> = groups.iter().filter(|group| group.n > 1).collect();
    let mean = |group: &SummaryRow, (mean, deviation): (Option<f64>, Option<f64>)| {
        let Some((mean, deviation)) = mean.zip(deviation) else { return String::new() };
        format!("{} ± {:.2} (n = {})", percent(Some(mean)), deviation * 100.0, group.n)
    };
    let cells = |group: &&SummaryRow| {
        vec![
            visible(&group.model).into_owned(),
            visible(&group.preset).into_owned(),
            visible(&group.dataset).into_owned(),
            listed(&group.seeds),
            mean(group, (group.val_top1_mean, group.val_top1_std)),
            mean(group, (group.test_top1_mean, group.test_top1_std)),
            percent(group.reference_top1),
            points(group.delta_top1),
            speed(group.images_per_second_mean),
            group.train_seconds_mean.map_or(String::new(), duration),
        ]
    };
    let header = "model|preset|dataset|seeds|val top-1|test top-1|reference|delta|img/s|time";
    (!several.is_empty()).then(|| markdown(header, 3..10, several.iter().map(cells)))
}

/// Few seeds one by one, many as the first and the last; all of them are in summary.csv.
fn listed(seeds: &str) -> String {
    let all: Vec<&str> = seeds.split(' ').collect();
    match all[..] {
        [first, .., last] if all.len() > 5 => format!("{first} … {last}"),
        _ => seeds.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::record;

    fn run(seed: u64, test_top1: f64) -> ResultRow {
        ResultRow {
            val_top1: Some(0.8),
            test_top1: Some(test_top1),
            test_loss: Some(0.5 + seed as f64),
            train_seconds: Some(10.0 * (seed + 1) as f64),
            images_per_second: Some(60.0),
            reference_top1: Some(0.82),
            ..record("a", "quick", seed, STATUS_COMPLETE).result
        }
    }

    #[test]
    fn means_and_deviations_are_those_computed_by_hand() {
        // Mean 2.46 / 3 = 0.82; squared differences 0.0001 + 0.0001 + 0, over 2: 0.0001; its root 0.01.
        let rows = [run(2, 0.83), run(0, 0.81), run(1, 0.82)];
        let groups = summarise(&rows);
        assert_eq!(groups.len(), 1);
        let group = &groups[0];
        assert_eq!((group.n, group.seeds.as_str()), (3, "0 1 2"));
        assert_eq!((group.test_top1_mean, group.test_top1_std), (Some(0.82), Some(0.01)));
        assert_eq!((group.val_top1_mean, group.val_top1_std), (Some(0.8), Some(0.0)));
        // 0.5, 1.5, 2.5: mean 1.5, deviation 1. 10, 20, 30: mean 20, deviation 10.
        assert_eq!((group.test_loss_mean, group.test_loss_std), (Some(1.5), Some(1.0)));
        assert_eq!((group.train_seconds_mean, group.train_seconds_std), (Some(20.0), Some(10.0)));
        assert_eq!((group.images_per_second_mean, group.images_per_second_std), (Some(60.0), Some(0.0)));
        assert_eq!((group.test_top5_mean, group.test_top5_std), (None, None));
        assert_eq!((group.reference_top1, group.delta_top1), (Some(0.82), Some(0.0)));

        // 0.8 and 0.81: mean 0.805, deviation 0.01 / √2 = 0.0070710678.
        let groups = summarise(&[run(0, 0.8), run(1, 0.81)]);
        assert_eq!((groups[0].test_top1_mean, groups[0].test_top1_std), (Some(0.805), Some(0.007071)));
        assert_eq!(groups[0].delta_top1, Some(-0.015));
        let shown = table(&groups).unwrap().to_string();
        assert!(shown.contains("| 80.50 % ± 0.71 (n = 2) |") && shown.contains("| -1.50 |"), "{shown}");
    }

    #[test]
    fn one_run_has_a_mean_and_no_deviation() {
        let groups = summarise(&[run(7, 0.83)]);
        assert_eq!((groups[0].n, groups[0].seeds.as_str()), (1, "7"));
        assert_eq!((groups[0].test_top1_mean, groups[0].test_top1_std), (Some(0.83), None));
        assert_eq!(groups[0].delta_top1, Some(0.01));
        assert!(table(&groups).is_none());
    }

    #[test]
    fn what_differs_in_more_than_the_seed_is_not_mixed() {
        type Change = fn(&mut ResultRow);
        let changes: [Change; 12] = [
            |row| row.model = "b".into(),
            |row| row.preset = "reference".into(),
            |row| row.dataset = "cifar10".into(),
            |row| row.image_size = 64,
            |row| row.epochs = 4,
            |row| row.batch_size = 65,
            |row| row.precision = "bf16".into(),
            |row| row.device = "cuda:0".into(),
            |row| row.threads = 1,
            |row| row.libtorch = "2.12.0".into(),
            |row| row.data_sha256 = "d".into(),
            |row| row.recipe_sha256 = "r".into(),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut rows = [run(0, 0.8), run(1, 0.81)];
            change(&mut rows[1]);
            let groups = summarise(&rows);
            assert_eq!(groups.iter().map(|group| group.n).collect::<Vec<_>>(), [1, 1], "case {number}");
        }
    }

    #[test]
    fn devices_of_a_kind_and_commits_are_taken_together_and_unfinished_runs_left_out() {
        let mut rows = [run(0, 0.8), run(1, 0.81), run(2, 0.5)];
        (rows[0].device, rows[1].device) = ("cuda:0".into(), "cuda:1".into());
        (rows[0].git_commit, rows[1].git_commit) = ("one".into(), "other".into());
        rows[2].status = "failed: a reason".into();
        let groups = summarise(&rows);
        assert_eq!(groups.len(), 1);
        assert_eq!((groups[0].device.as_str(), groups[0].git_commit.as_str()), ("cuda", "several"));
        rows[1].git_commit = "one".into();
        assert_eq!(summarise(&rows)[0].git_commit, "one");
    }

    #[test]
    fn a_repeated_seed_counts_once_with_its_last_run() {
        let mut rows = [run(0, 0.9), run(0, 0.8), run(1, 0.81)];
        rows[1].started_at = "2026-01-02T00:00:00Z".into();
        for _ in 0..2 {
            let groups = summarise(&rows);
            assert_eq!((groups[0].n, groups[0].test_top1_mean), (2, Some(0.805)));
            rows.swap(0, 1);
        }
    }

    #[test]
    fn many_seeds_are_shown_by_their_ends() {
        assert_eq!(["7", "0 1 2 3 4", "0 1 2 3 4 5"].map(listed), ["7", "0 1 2 3 4", "0 … 5"]);
    }
}
