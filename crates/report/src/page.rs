//! What the page says: from runs to the values of its template.

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment};
use rayon::prelude::*;
use run_record::EpochStats;
use run_record::layout::{FIGURES, RESULTS};
use serde::Serialize;

use crate::Error;
use crate::charts::{Chart, Figure, Legend, Mark, Series, colour, hex};
use crate::comparison::{Group, Pair, Row, best_first, groups, headings, networks, pairs, row, verdict};
use crate::files::Files;
use crate::pictures::PICTURES;
use crate::runs::Run;
use crate::scale::Scale;
use crate::section::{Section, section};

#[derive(Serialize)]
struct Page<'a> {
    style: &'static str,
    script: &'static str,
    verdict: Vec<String>,
    headings: Vec<&'static str>,
    rows: Vec<Row>,
    groups: Vec<Group>,
    pairs: Vec<Pair>,
    pairs_of: &'static str,
    charts: Vec<Figure>,
    legend: Vec<Entry>,
    runs: Vec<Section>,
    problems: &'a [String],
}

#[derive(Serialize)]
struct Entry {
    run: String,
    colour: String,
}

/// The page, and charts written beside each run.
///
/// # Errors
/// A picture that cannot be read, a chart that cannot be drawn, a file that cannot be written.
pub fn page(results: &Path, runs: &[Run], problems: &[String]) -> Result<String, Error> {
    let order = best_first(runs);
    let networks = networks(&order);
    let (pairs, pairs_of) = pairs(&networks);
    let published = runs.iter().any(|run| run.record.result.reference_top1.is_some());
    let share = PICTURES / runs.len().max(1);
    let page = Page {
        style: include_str!("page.css"),
        script: include_str!("page.js"),
        verdict: verdict(&order, &networks, &pairs),
        headings: headings(published),
        rows: order.iter().map(|run| row(run, published)).collect(),
        groups: groups(&order),
        charts: overview(results, &order)?,
        legend: order
            .iter()
            .map(|run| Entry { run: run.name.clone(), colour: hex(colour(&run.record.result.family)) })
            .collect(),
        runs: order.par_iter().map(|run| section(run, share)).collect::<Result<_, _>>()?,
        pairs,
        pairs_of,
        problems,
    };
    let mut templates = Environment::new();
    templates.set_auto_escape_callback(|_| AutoEscape::Html);
    templates.add_template("report.html", include_str!("page.html"))?;
    Ok(templates.get_template("report.html")?.render(Serde(&page))?)
}

/// Runs up to this number are named in charts that have a point for each.
const LABELLED: usize = 12;

/// Charts of all runs, written into the directory of the results.
fn overview(results: &Path, runs: &[&Run]) -> Result<Vec<Figure>, Error> {
    const SCATTER: &str = "Dots are runs, hollow diamonds the published numbers. Horizontal axis in powers of ten; axes start where the data do.";
    const CURVES: &str = "After each epoch, of the weights that would be kept. Of several seeds each is a thin line, and their mean a thick one.";
    let charts = [
        (
            "parameters",
            against(runs, "parameters", "Parameters", &|run| Some(run.record.result.params as f64)),
            SCATTER,
        ),
        (
            "macs",
            against(runs, "multiply-accumulates", "MACs per image", &|run| {
                Some(run.record.result.macs as f64)
            }),
            SCATTER,
        ),
        (
            "time",
            against(runs, "training time", "Training time in seconds", &|run| {
                run.record.result.train_seconds
            }),
            SCATTER,
        ),
        ("validation-top1", curves(runs, "Validation top-1", Scale::Percent, &EpochStats::kept_top1), CURVES),
        ("validation-loss", curves(runs, "Validation loss", Scale::Plain, &EpochStats::kept_loss), CURVES),
    ];
    let mut figures = Vec::new();
    for (name, chart, caption) in charts {
        let files = Files {
            directory: results.join(FIGURES),
            address: format!("{FIGURES}/"),
            name: name.to_owned(),
            numbers: RESULTS.to_owned(),
        };
        figures.extend(chart.figure(caption, &files)?);
    }
    Ok(figures)
}

/// Test accuracy against a property of each run.
fn against(runs: &[&Run], name: &str, axis: &'static str, value: &dyn Fn(&Run) -> Option<f64>) -> Chart {
    let mut series = Vec::new();
    for run in runs {
        let result = &run.record.result;
        let Some(x) = value(run).filter(|x| *x > 0.0) else { continue };
        let own = colour(&result.family);
        let point = |y: Option<f64>, mark, what| {
            y.map(|y| Series::new(&run.name, &format!("{}{what}", run.name), own, mark, vec![(x, y)]))
        };
        let label = (runs.len() <= LABELLED).then(|| result.model.clone());
        series.extend(point(result.test_top1, Mark::Dots, "").map(|dot| Series { label, ..dot }));
        series.extend(point(result.reference_top1, Mark::Diamonds, ", published"));
    }
    Chart {
        title: format!("Test top-1 against {name}"),
        x: (axis, Scale::Log),
        y: ("Test top-1", Scale::Percent),
        series,
        legend: Legend::None,
    }
}

/// A number after each epoch, of each run; of several seeds also their mean.
fn curves(runs: &[&Run], name: &'static str, scale: Scale, value: &dyn Fn(&EpochStats) -> f64) -> Chart {
    let mut seeds: BTreeMap<(&str, &str), Vec<&Run>> = BTreeMap::new();
    for run in runs.iter().filter(|run| !run.history.is_empty()) {
        let result = &run.record.result;
        seeds.entry((&result.model, &result.recipe_sha256)).or_default().push(run);
    }
    let mut series = Vec::new();
    for ((model, _), runs) in seeds {
        let own = colour(&runs[0].record.result.family);
        let several = runs.len() > 1;
        for run in &runs {
            let points = run.history.iter().map(|row| (f64::from(row.epoch), value(row))).collect();
            let line = Series::new(&run.name, &run.name, own, Mark::Line, points);
            series.push(Series { width: if several { 1 } else { 2 }, ..line });
        }
        if several {
            let shortest = runs.iter().map(|run| run.history.len()).min().unwrap_or_default();
            let mean = |epoch: usize| {
                runs.iter().map(|run| value(&run.history[epoch])).sum::<f64>() / runs.len() as f64
            };
            let points = (0..shortest).map(|epoch| (epoch as f64 + 1.0, mean(epoch))).collect();
            let line =
                Series::new("", &format!("{model}, mean of {} seeds", runs.len()), own, Mark::Line, points);
            series.push(Series { width: 3, ..line });
        }
    }
    Chart {
        title: format!("{name} by epoch"),
        x: ("Epoch", Scale::Whole),
        y: (name, scale),
        series,
        legend: Legend::Files,
    }
}
