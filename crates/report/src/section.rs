//! A run's own section of the page: its curves, its answers by class, its pictures, where it comes from.

use std::collections::HashMap;

use run_record::layout::{FIGURES, HISTORY, PREDICTIONS, RECIPE, RUNS};
use run_record::{
    CalibrationBin, ClassCounts, EpochStats, calibration, calibration_error, class_measures, confusion,
    grouped,
};
use serde::Serialize;
use serde_json::Value;

use crate::Error;
use crate::charts::{Chart, Figure, Legend, Mark, Series, colour};
use crate::files::Files;
use crate::heatmap::confusion as confusion_drawing;
use crate::pictures::{Picture, pictures};
use crate::runs::Run;
use crate::scale::{Scale, percent};

/// Classes up to this number are drawn as a table of confusions.
const SHOWN_CLASSES: usize = 20;

#[derive(Serialize)]
struct ClassRow {
    name: String,
    train: String,
    /// Training images in per cent of those of the largest class.
    bar: usize,
    validation: String,
    test: String,
    precision: String,
    recall: String,
    f1: String,
}

#[derive(Serialize)]
struct LayerRow {
    name: String,
    kind: String,
    output: String,
    params: String,
    macs: String,
}

/// A table of confusions; cells hold text and depth of colour in per cent.
#[derive(Serialize)]
struct Matrix {
    title: &'static str,
    rows: Vec<(String, Vec<(String, u32)>)>,
}

#[derive(Serialize)]
pub struct Section {
    id: String,
    name: String,
    status: String,
    charts: Vec<Figure>,
    calibration: Option<String>,
    classes: Vec<String>,
    matrices: Vec<Matrix>,
    matrix_links: Vec<(&'static str, String)>,
    class_rows: Vec<ClassRow>,
    layers: Vec<LayerRow>,
    pictures: Vec<Picture>,
    provenance: Vec<(&'static str, String)>,
    repeat: String,
}

fn curves(run: &Run) -> Vec<(&'static str, Chart, &'static str)> {
    const CAPTION: &str = "Solid: validation after the epoch. Dashed: training, while the weights moved.";
    const MILESTONES: &str = "Solid: validation after the epoch. Dashed: training, while the weights moved. Hollow diamonds: validation, as published.";
    let own = colour(&run.record.result.family);
    let series = |what: &str, mark: Mark, value: &dyn Fn(&EpochStats) -> f64| {
        let points = run.history.iter().map(|row| (f64::from(row.epoch), value(row))).collect();
        Series::new(&run.name, what, own, mark, points)
    };
    let both = |train: &dyn Fn(&EpochStats) -> f64, validation: &dyn Fn(&EpochStats) -> f64| {
        vec![series("training", Mark::Dashes, train), series("validation", Mark::Line, validation)]
    };
    let chart = |title: &str, scale, series| Chart {
        title: format!("{title} of {}", run.name),
        x: ("Epoch", Scale::Whole),
        y: (if scale == Scale::Percent { "Accuracy" } else { "Loss" }, scale),
        series,
        legend: Legend::Everywhere,
    };
    let published = run.recipe.as_ref().and_then(|recipe| recipe.reference.as_ref());
    let milestones: Vec<(f64, f64)> = published
        .iter()
        .flat_map(|published| &published.milestones)
        .map(|(epoch, top1)| (f64::from(*epoch), *top1))
        .collect();
    let mut top1 = both(&|row| row.train_top1, &|row| row.val_top1);
    let of_top1 = if milestones.is_empty() { CAPTION } else { MILESTONES };
    top1.push(Series::new(&run.name, "validation, published", own, Mark::Diamonds, milestones));
    vec![
        ("loss", chart("Loss", Scale::Plain, both(&|row| row.train_loss, &|row| row.val_loss)), CAPTION),
        ("top1", chart("Top-1", Scale::Percent, top1), of_top1),
        ("top5", chart("Top-5", Scale::Percent, both(&|row| row.train_top5, &|row| row.val_top5)), CAPTION),
    ]
}

/// The reliability diagram, and what it says in words.
fn reliability(run: &Run) -> Option<(Chart, String)> {
    let right: Vec<bool> = run.predictions.iter().map(|row| row.is_right()).collect();
    if right.is_empty() {
        return None;
    }
    let before: Vec<f64> = run.predictions.iter().map(|row| row.top1_probability).collect();
    let after: Vec<f64> = run.predictions.iter().map(|row| row.top1_calibrated).collect();
    let (before, after) = (calibration(&before, &right), calibration(&after, &right));
    let points = |bins: &[CalibrationBin]| {
        bins.iter().filter(|bin| bin.images > 0).map(|bin| (bin.confidence, bin.accuracy)).collect()
    };
    let series = |name: &str, colour, mark, points| Series::new(&run.name, name, colour, mark, points);
    let own = colour(&run.record.result.family);
    let chart = Chart {
        title: format!("Reliability of {}", run.name),
        x: ("Confidence", Scale::Percent),
        y: ("Share that is right", Scale::Percent),
        series: vec![
            series("perfect", colour(""), Mark::Dashes, vec![(0.0, 0.0), (1.0, 1.0)]),
            series("as trained", own, Mark::Dots, points(&before)),
            series("with temperature", own, Mark::Diamonds, points(&after)),
        ],
        legend: Legend::Everywhere,
    };
    let temperature = run.record.temperature.map_or_else(
        || "; the record has no temperature".to_owned(),
        |t| {
            format!(
                ", and {} with the temperature {t:.3}, which was fitted on the validation images",
                percent(calibration_error(&after))
            )
        },
    );
    Some((
        chart,
        format!(
            "Expected calibration error over 15 bins of equal width: {}{temperature}.",
            percent(calibration_error(&before))
        ),
    ))
}

/// The section of a run, its charts written beside it. `picture_bytes` are for its pictures.
///
/// # Errors
/// A picture that cannot be read, a chart that cannot be drawn, a file that cannot be written.
pub fn section(run: &Run, picture_bytes: usize) -> Result<Section, Error> {
    let mut drawn = curves(run);
    let reliability = reliability(run);
    let calibration = reliability.as_ref().map(|(_, words)| words.clone());
    if let Some((chart, _)) = reliability {
        drawn.push(("reliability", chart, "Dots: as trained. Hollow diamonds: with temperature. On the dashed line confidence is the share that is right. Test images."));
    }
    let of_run = format!("{RUNS}/{}/", link(&run.name));
    let files = |name: &str, numbers: &str| Files {
        directory: run.dir.join(FIGURES),
        address: format!("{of_run}{FIGURES}/"),
        name: name.to_owned(),
        numbers: format!("{of_run}{numbers}"),
    };
    let mut charts = Vec::new();
    for (name, chart, caption) in drawn {
        let numbers = if name == "reliability" { PREDICTIONS } else { HISTORY };
        charts.extend(chart.figure(caption, &files(name, numbers))?);
    }
    let (classes, counts, class_rows) = by_class(run);
    let matrix_links = if classes.is_empty() {
        Vec::new()
    } else {
        let title = format!("Confusion matrix of {}", run.name);
        let svg = confusion_drawing(&title, &counts, &classes, colour(&run.record.result.family))?;
        files("confusion", PREDICTIONS).write(&svg)?
    };
    Ok(Section {
        id: run.name.clone(),
        name: run.name.clone(),
        status: run.record.result.status.clone(),
        charts,
        calibration,
        matrices: matrices(&counts, &classes),
        classes,
        matrix_links,
        class_rows,
        layers: layers(run),
        pictures: pictures(run, &|name| format!("{of_run}{FIGURES}/{}", link(name)), picture_bytes)?,
        provenance: provenance(run),
        repeat: repeat(run),
    })
}

/// Classes in the order of the data set, as far as that is known; images by true and given class; a row for each class.
fn by_class(run: &Run) -> (Vec<String>, Vec<Vec<u64>>, Vec<ClassRow>) {
    let mut classes: Vec<String> = run.classes.iter().map(|class| class.name.clone()).collect();
    let mut others: Vec<&String> = run.predictions.iter().flat_map(|row| [&row.label, &row.top1]).collect();
    others.sort();
    others.dedup();
    others.retain(|name| !classes.contains(name));
    classes.extend(others.into_iter().cloned());
    if run.predictions.is_empty() {
        return (Vec::new(), Vec::new(), Vec::new());
    }
    let numbers: HashMap<&str, usize> = classes.iter().map(String::as_str).zip(0..).collect();
    let number = |name: &str| numbers.get(name).copied().unwrap_or_default();
    let labels: Vec<usize> = run.predictions.iter().map(|row| number(&row.label)).collect();
    let called: Vec<usize> = run.predictions.iter().map(|row| number(&row.top1)).collect();
    let counts = confusion(&labels, &called, classes.len());
    let words = |value: Option<f64>| value.map_or_else(String::new, percent);
    let most = run.classes.iter().map(|class| class.train).max().unwrap_or(0).max(1);
    let class_rows = class_measures(&counts)
        .into_iter()
        .zip(&classes)
        .map(|(measures, name)| {
            let parts = run.classes.iter().find(|class| class.name == *name);
            let part = |count: fn(&ClassCounts) -> usize| {
                parts.map_or_else(String::new, |c| grouped(count(c) as u64))
            };
            ClassRow {
                name: name.clone(),
                train: part(|class| class.train),
                bar: parts.map_or(0, |class| 100 * class.train / most),
                validation: part(|class| class.validation),
                test: grouped(measures.images),
                precision: words(measures.precision),
                recall: words(measures.recall),
                f1: words(measures.f1),
            }
        })
        .collect();
    (classes, counts, class_rows)
}

/// Tables of confusions: images, and shares of each class; none of many classes.
fn matrices(counts: &[Vec<u64>], classes: &[String]) -> Vec<Matrix> {
    if classes.is_empty() || classes.len() > SHOWN_CLASSES {
        return Vec::new();
    }
    let matrix = |title, shown: &dyn Fn(u64, u64) -> String| Matrix {
        title,
        rows: counts
            .iter()
            .zip(classes)
            .map(|(row, name)| {
                let images = row.iter().sum::<u64>().max(1);
                let cell = |count: &u64| (shown(*count, images), (100 * count / images) as u32);
                (name.clone(), row.iter().map(cell).collect())
            })
            .collect(),
    };
    let share = |count: u64, images: u64| format!("{:.1}", 100.0 * count as f64 / images as f64);
    vec![matrix("Images", &|count, _| count.to_string()), matrix("Per cent of each class", &share)]
}

/// Rows of `layers.json`; none without the file, or of one that is not as it was written.
fn layers(run: &Run) -> Vec<LayerRow> {
    let rows = run.layers.as_array().into_iter().flatten();
    let row = |layer: &Value| {
        let number = |name: &str| layer[name].as_u64().map_or_else(String::new, grouped);
        let sides = layer["output"].as_array()?.iter().map(ToString::to_string);
        Some(LayerRow {
            name: layer["name"].as_str()?.to_owned(),
            kind: layer["kind"].as_str()?.to_owned(),
            output: sides.collect::<Vec<_>>().join(" × "),
            params: number("params"),
            macs: number("macs"),
        })
    };
    rows.filter_map(row).collect()
}

/// A name as part of an address.
fn link(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    name.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn provenance(run: &Run) -> Vec<(&'static str, String)> {
    let (record, result) = (&run.record, &run.record.result);
    let some = |text: &Option<String>| text.clone().unwrap_or_default();
    let source = run
        .recipe
        .as_ref()
        .and_then(|recipe| recipe.reference.as_ref())
        .map(|published| published.source.clone());
    let facts = [
        ("Model", format!("{} ({})", result.model, result.family)),
        (
            "Recipe",
            format!(
                "{}, seed {}, {} epochs, batches of {}",
                result.preset, result.seed, result.epochs, result.batch_size
            ),
        ),
        ("Published in", source.unwrap_or_default()),
        ("SHA-256 of the recipe", result.recipe_sha256.clone()),
        ("SHA-256 of the data", result.data_sha256.clone()),
        ("SHA-256 of the weights", some(&record.weights_sha256)),
        ("Commit", result.git_commit.clone()),
        ("libtorch", result.libtorch.clone()),
        (
            "Machine",
            format!("{}, {} threads, {}, {}", record.cpu, result.threads, result.device, result.precision),
        ),
        ("Card", some(&record.gpu)),
        ("Driver", some(&record.driver)),
        ("Started", result.started_at.clone()),
        ("Went on from", record.resumed_from.join(", ")),
        ("Command", quoted(&record.command)),
        ("Verified", run.verified.clone()),
    ];
    facts.into_iter().filter(|(_, text)| !text.is_empty()).collect()
}

/// The command that trains it once more. The data of a folder is where it was, as the run was told.
fn repeat(run: &Run) -> String {
    // Seen from where this was started, which is the workspace.
    let here = std::env::current_dir().unwrap_or_default();
    let recipe = run.dir.join(RECIPE);
    let recipe = recipe.strip_prefix(here).unwrap_or(&recipe).display().to_string();
    let result = &run.record.result;
    let mut words = ["cargo", "xtask", "train", "--recipe", &recipe, "--seed", &result.seed.to_string()]
        .map(str::to_owned)
        .to_vec();
    if result.precision != "f32" {
        words.extend(["--precision".to_owned(), result.precision.clone()]);
    }
    if run.record.deterministic && result.device != "cpu" {
        words.push("--deterministic".to_owned());
    }
    let told = run.record.command.windows(2).find(|pair| pair[0] == "--data-dir");
    words.extend(told.into_iter().flatten().cloned());
    let weights = run.record.command.windows(2).find(|pair| pair[0] == "--weights");
    words.extend(weights.into_iter().flatten().cloned());
    quoted(&words)
}

/// Words as a shell takes them.
fn quoted(words: &[String]) -> String {
    let plain = |word: &String| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./=:,+@%".contains(&b))
    };
    let quote =
        |word: &String| if plain(word) { word.clone() } else { format!("'{}'", word.replace('\'', "'\\''")) };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}
