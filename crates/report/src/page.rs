//! What the page says: from runs to the values of its template.

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment};
use serde::Serialize;

use crate::Error;
use crate::charts::{Chart, Figure, Mark, Scale, Series, colour, hex};
use crate::comparison::{Group, Pair, Row, best_first, groups, networks, pairs, row, verdict};
use crate::runs::Run;
use crate::section::{PICTURES, Section, section};

#[derive(Serialize)]
struct Page<'a> {
    style: &'static str,
    script: &'static str,
    verdict: Vec<String>,
    rows: Vec<Row>,
    groups: Vec<Group>,
    pairs: Vec<Pair>,
    pairs_of: &'static str,
    charts: Vec<Figure>,
    legend: Vec<Legend>,
    runs: Vec<Section>,
    problems: &'a [String],
}

#[derive(Serialize)]
struct Legend {
    run: String,
    colour: String,
}

/// The page, and charts written beside each run.
///
/// # Errors
/// A picture that cannot be read, a chart that cannot be drawn, a file that cannot be written.
pub fn page(runs: &[Run], problems: &[String]) -> Result<String, Error> {
    let order = best_first(runs);
    let networks = networks(&order);
    let (pairs, pairs_of) = pairs(&networks);
    let share = PICTURES / runs.len().max(1);
    let page = Page {
        style: include_str!("page.css"),
        script: include_str!("page.js"),
        verdict: verdict(&order, &networks, &pairs),
        rows: order.iter().map(|run| row(run)).collect(),
        groups: groups(&order),
        charts: overview(&order)?,
        legend: order
            .iter()
            .map(|run| Legend { run: run.name.clone(), colour: hex(&run.record.result.family) })
            .collect(),
        runs: order.iter().map(|run| section(run, share)).collect::<Result<_, _>>()?,
        pairs,
        pairs_of,
        problems,
    };
    let mut templates = Environment::new();
    templates.set_auto_escape_callback(|_| AutoEscape::Html);
    templates.add_template("report.html", include_str!("page.html"))?;
    Ok(templates.get_template("report.html")?.render(Serde(&page))?)
}

/// Charts of all runs.
fn overview(runs: &[&Run]) -> Result<Vec<Figure>, Error> {
    let against = |name: &'static str, axis: &'static str, value: &dyn Fn(&Run) -> Option<f64>| {
        let mut series = Vec::new();
        for run in runs {
            let result = &run.record.result;
            let Some(x) = value(run).filter(|x| *x > 0.0) else { continue };
            for (y, mark, what) in
                [(result.test_top1, Mark::Dots, ""), (result.reference_top1, Mark::Diamonds, ", published")]
            {
                series.extend(y.map(|y| Series {
                    run: run.name.clone(),
                    name: format!("{}{what}", run.name),
                    colour: colour(&result.family),
                    mark,
                    points: vec![(x, y)],
                }));
            }
        }
        Chart {
            title: format!("Test top-1 against {name}"),
            x: (axis, Scale::Log),
            y: ("Test top-1", Scale::Percent),
            series,
        }
    };
    const SCATTER: &str = "Dots are runs, hollow diamonds the published numbers. Horizontal axis in powers of ten; axes start where the data do.";
    const CURVES: &str = "Validation after each epoch, of the weights that would be kept.";
    let curve = |run: &&Run| Series {
        run: run.name.clone(),
        name: run.name.clone(),
        colour: colour(&run.record.result.family),
        mark: Mark::Line,
        points: run.history.iter().map(|row| (f64::from(row.epoch), row.kept_top1())).collect(),
    };
    let charts = [
        (against("parameters", "Parameters", &|run| Some(run.record.result.params as f64)), SCATTER),
        (
            against("multiply-accumulates", "MACs per image", &|run| Some(run.record.result.macs as f64)),
            SCATTER,
        ),
        (
            against("training time", "Training time in seconds", &|run| run.record.result.train_seconds),
            SCATTER,
        ),
        (
            Chart {
                title: "Validation top-1 by epoch".to_owned(),
                x: ("Epoch", Scale::Plain),
                y: ("Validation top-1", Scale::Percent),
                series: runs.iter().map(curve).collect(),
            },
            CURVES,
        ),
    ];
    let figures = charts.iter().map(|(chart, caption)| chart.figure(caption, None));
    Ok(figures.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}
