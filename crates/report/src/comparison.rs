//! Which network is better: runs beside each other, and whether their differences are more than chance.

use std::collections::BTreeMap;

use run_record::{duration, wilson};
use serde::Serialize;

use crate::charts::{colour, hex};
use crate::runs::Run;
use crate::scale::{percent, scaled};
use crate::stats::{McNemar, holm, mcnemar, mean_and_deviation, two_shares};

/// Networks up to this number are compared each with each other, and more with the first.
const ALL_PAIRS: usize = 8;

/// Corrected probability below which a difference is called more than chance.
const CHANCE: f64 = 0.05;

/// A run in the table: what is shown, and what it is sorted by.
#[derive(Serialize)]
pub struct Row {
    id: String,
    name: String,
    colour: String,
    cells: Vec<Cell>,
}

#[derive(Serialize, Default)]
struct Cell {
    text: String,
    sort: Option<f64>,
    is_number: bool,
}

#[derive(Serialize)]
pub struct Group {
    name: String,
    n: usize,
    seeds: String,
    test: String,
    reference: String,
}

#[derive(Serialize)]
pub struct Pair {
    first: String,
    second: String,
    first_only: usize,
    second_only: usize,
    p: String,
    verdict: &'static str,
}

/// Runs by test top-1, those without one last.
pub fn best_first<'a>(runs: impl IntoIterator<Item = &'a Run>) -> Vec<&'a Run> {
    let mut order: Vec<&Run> = runs.into_iter().collect();
    order.sort_by(|a, b| {
        let top1 = |run: &Run| run.record.result.test_top1.unwrap_or(-1.0);
        top1(b).total_cmp(&top1(a)).then_with(|| a.name.cmp(&b.name))
    });
    order
}

/// One run per model, preset and data: of several seeds the one that validation prefers, never the test.
pub fn networks<'a>(runs: &[&'a Run]) -> Vec<&'a Run> {
    let mut best: BTreeMap<(&str, &str, &str, &str), &Run> = BTreeMap::new();
    for run in runs.iter().filter(|run| run.is_complete()) {
        let result = &run.record.result;
        let key = (&*result.model, &*result.preset, &*result.data_sha256, &*result.recipe_sha256);
        let kept = best.entry(key).or_insert(run);
        if result.val_top1 > kept.record.result.val_top1 {
            *kept = run;
        }
    }
    best_first(best.into_values())
}

/// Networks with predictions of the same images, and which are compared.
pub fn pairs(networks: &[&Run]) -> (Vec<Pair>, &'static str) {
    let each = networks.len() <= ALL_PAIRS;
    let firsts = if each { networks.len() } else { 1 };
    let mut found = Vec::new();
    for (index, first) in networks.iter().enumerate().take(firsts) {
        for second in networks[index + 1..].iter().filter(|second| first.has_same_images(second)) {
            found.push((first, second, on_same_images(first, second)));
        }
    }
    let corrected = holm(&found.iter().map(|(_, _, test)| test.p).collect::<Vec<_>>());
    let pair = |((first, second, test), p): (&(&&Run, &&Run, McNemar), f64)| Pair {
        first: first.name.clone(),
        second: second.name.clone(),
        first_only: test.first_only,
        second_only: test.second_only,
        p: p_text(p),
        verdict: judged(p),
    };
    let pairs = found.iter().zip(corrected).map(pair).collect();
    (pairs, if each { "each with each other" } else { "the first with every other" })
}

/// McNemar's test of two runs that answered the same images.
pub fn on_same_images(first: &Run, second: &Run) -> McNemar {
    let (mut one, mut other) = (0, 0);
    for (a, b) in first.predictions.iter().zip(&second.predictions) {
        one += usize::from(a.is_right() && !b.is_right());
        other += usize::from(b.is_right() && !a.is_right());
    }
    mcnemar(one, other)
}

/// A probability to four places.
pub fn p_text(p: f64) -> String {
    if p < 0.0001 { "< 0.0001".to_owned() } else { format!("{p:.4}") }
}

/// What a probability, corrected if there are several, says about a difference.
pub fn judged(p: f64) -> &'static str {
    if p < CHANCE { "more than chance" } else { "could be chance" }
}

/// Who won, by how much, and whether to believe it.
pub fn verdict(runs: &[&Run], networks: &[&Run], pairs: &[Pair]) -> Vec<String> {
    let complete = runs.iter().filter(|run| run.is_complete()).count();
    let mut said = Vec::new();
    let mut datasets: Vec<&str> = networks.iter().map(|run| &*run.record.result.dataset).collect();
    datasets.sort_unstable();
    datasets.dedup();
    for dataset in datasets {
        let mut here = networks.iter().filter(|run| run.record.result.dataset == dataset);
        let Some((first, top1)) = here.next().and_then(|run| Some((run, run.record.result.test_top1?)))
        else {
            continue;
        };
        let mut line = format!("On {dataset}, {} is first with {} test top-1", first.name, percent(top1));
        if let Some((low, high)) = wilson(first.hits(), first.predictions.len()) {
            line += &format!(" (95 % interval {} to {})", percent(low), percent(high));
        }
        if let Some((second, other)) = here.next().and_then(|run| Some((run, run.record.result.test_top1?))) {
            line += &format!(", {:.2} points before {}", 100.0 * (top1 - other), second.name);
            line += match pairs.iter().find(|pair| pair.first == first.name && pair.second == second.name) {
                Some(pair) if pair.verdict == "more than chance" => ": more than chance",
                Some(_) => ": that could be chance",
                None => "; without predictions of the same images it cannot be said whether that is chance",
            };
        }
        said.push(line + ".");
    }
    if said.is_empty() {
        said.push("No run has been tested yet.".to_owned());
    }
    if complete < runs.len() {
        said.push(format!("{} of {} runs are not complete.", runs.len() - complete, runs.len()));
    }
    said
}

/// Headings of the table's columns; `published` is whether any run has a published number beside it.
pub fn headings(published: bool) -> Vec<&'static str> {
    let middle: &[&str] = if published { &["Published", "Difference, points"] } else { &[] };
    let (first, last) =
        (["Run", "Data", "Test top-1"], ["Parameters", "MACs", "Training time", "Images/s", "Status"]);
    [&first, middle, &last].concat()
}

/// Columns of the table, under [`headings`].
pub fn row(run: &Run, published: bool) -> Row {
    let result = &run.record.result;
    let text = |text: &str| Cell { text: text.to_owned(), ..Cell::default() };
    let number = |value: Option<f64>, words: &dyn Fn(f64) -> String| Cell {
        text: value.map_or_else(String::new, words),
        sort: value,
        is_number: true,
    };
    let interval = wilson(run.hits(), run.predictions.len());
    let half = interval.map_or_else(String::new, |(low, high)| format!(" ± {:.2}", 50.0 * (high - low)));
    let against = against_published(run);
    let middle = [
        number(result.reference_top1, &percent),
        number(result.delta_top1, &|value| format!("{:+.2}{against}", 100.0 * value)),
    ];
    let first =
        [text(&result.dataset), number(result.test_top1, &|value| format!("{}{half}", percent(value)))];
    let last = [
        number(Some(result.params as f64), &scaled),
        number(Some(result.macs as f64), &scaled),
        number(result.train_seconds, &duration),
        number(result.images_per_second, &|value| format!("{value:.0}")),
        text(&result.status.chars().take(80).collect::<String>()),
    ];
    Row {
        id: run.name.clone(),
        name: run.name.clone(),
        colour: hex(colour(&result.family)),
        cells: first.into_iter().chain(middle.into_iter().filter(|_| published)).chain(last).collect(),
    }
}

/// Whether the published number differs by more than chance, if it was measured over as many images.
fn against_published(run: &Run) -> &'static str {
    let result = &run.record.result;
    match (result.test_top1, result.reference_top1, run.predictions.len()) {
        (Some(ours), Some(theirs), n) if n > 0 => {
            if two_shares((ours, n), (theirs, n)) < CHANCE {
                ", more than chance"
            } else {
                ", could be chance"
            }
        }
        _ => "",
    }
}

/// Runs that differ in nothing but the seed.
pub fn groups(runs: &[&Run]) -> Vec<Group> {
    let mut groups: BTreeMap<(&str, &str, &str, &str), Vec<&Run>> = BTreeMap::new();
    for run in runs.iter().filter(|run| run.is_complete()) {
        let result = &run.record.result;
        let key = (&*result.model, &*result.preset, &*result.data_sha256, &*result.recipe_sha256);
        groups.entry(key).or_default().push(run);
    }
    let group = |((model, preset, _, _), mut runs): ((&str, &str, &str, &str), Vec<&Run>)| {
        runs.sort_by_key(|run| run.record.result.seed);
        let values: Vec<f64> = runs.iter().filter_map(|run| run.record.result.test_top1).collect();
        let seeds: Vec<String> = runs.iter().map(|run| run.record.result.seed.to_string()).collect();
        let (mean, deviation) = mean_and_deviation(&values)?;
        Some(Group {
            name: format!("{model}, {preset}"),
            n: runs.len(),
            seeds: seeds.join(" "),
            test: match deviation {
                Some(deviation) => format!("{} ± {:.2}", percent(mean), 100.0 * deviation),
                None => percent(mean),
            },
            reference: runs[0].record.result.reference_top1.map_or_else(String::new, percent),
        })
    };
    groups.into_iter().filter_map(group).collect()
}
