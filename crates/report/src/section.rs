//! A run's own section of the page: its curves, its answers by class, its pictures, where it comes from.

use std::fs;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use run_record::layout::{FIGURES, RECIPE, RUNS};
use run_record::{
    CalibrationBin, EpochStats, calibration, calibration_error, class_measures, confusion, write_atomically,
};
use serde::Serialize;

use crate::Error;
use crate::charts::{Chart, Figure, Mark, Scale, Series, colour, percent};
use crate::runs::Run;

/// Bytes of pictures that the page holds, of all runs together; others are linked.
pub const PICTURES: usize = 1_900_000;

/// Classes up to this number are drawn as a table of confusions.
const SHOWN_CLASSES: usize = 20;

#[derive(Serialize)]
struct Picture {
    name: String,
    about: String,
    source: String,
    is_embedded: bool,
}

#[derive(Serialize)]
struct ClassRow {
    name: String,
    images: u64,
    precision: String,
    recall: String,
    f1: String,
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
    class_rows: Vec<ClassRow>,
    pictures: Vec<Picture>,
    provenance: Vec<(&'static str, String)>,
    repeat: String,
}

fn curves(run: &Run) -> Vec<(&'static str, Chart, &'static str)> {
    const CAPTION: &str = "Solid: validation after the epoch. Dashed: training, while the weights moved.";
    let series = |what: &str, mark: Mark, value: &dyn Fn(&EpochStats) -> f64| Series {
        run: run.name.clone(),
        name: what.to_owned(),
        colour: colour(&run.record.result.family),
        mark,
        points: run.history.iter().map(|row| (f64::from(row.epoch), value(row))).collect(),
    };
    let chart = |title: &str, y, series| Chart {
        title: format!("{title} of {}", run.name),
        x: ("Epoch", Scale::Plain),
        y,
        series,
    };
    vec![
        (
            "loss",
            chart(
                "Loss",
                ("Loss", Scale::Plain),
                vec![
                    series("training", Mark::Dashes, &|row| row.train_loss),
                    series("validation", Mark::Line, &|row| row.val_loss),
                ],
            ),
            CAPTION,
        ),
        (
            "top1",
            chart(
                "Top-1",
                ("Top-1", Scale::Percent),
                vec![
                    series("training", Mark::Dashes, &|row| row.train_top1),
                    series("validation", Mark::Line, &|row| row.val_top1),
                ],
            ),
            CAPTION,
        ),
        (
            "top5",
            chart(
                "Validation top-5",
                ("Top-5", Scale::Percent),
                vec![series("validation", Mark::Line, &|row| row.val_top5)],
            ),
            "Validation after the epoch; training top-5 is not kept.",
        ),
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
    let series = |name: &str, colour, mark, points| Series {
        run: run.name.clone(),
        name: name.to_owned(),
        colour,
        mark,
        points,
    };
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
    let mut charts = Vec::new();
    for (name, chart, caption) in drawn {
        if let Some(svg) = chart.file()? {
            let directory = run.dir.join(FIGURES);
            fs::create_dir_all(&directory).map_err(Error::io(&directory))?;
            let path = directory.join(format!("{name}.svg"));
            write_atomically(&path, svg.as_bytes()).map_err(Error::io(&path))?;
        }
        charts
            .extend(chart.figure(caption, Some(format!("{RUNS}/{}/{FIGURES}/{name}.svg", link(&run.name))))?);
    }
    let (classes, matrices, class_rows) = by_class(run);
    Ok(Section {
        id: run.name.clone(),
        name: run.name.clone(),
        status: run.record.result.status.clone(),
        charts,
        calibration,
        classes,
        matrices,
        class_rows,
        pictures: pictures(run, picture_bytes)?,
        provenance: provenance(run),
        repeat: repeat(run),
    })
}

fn by_class(run: &Run) -> (Vec<String>, Vec<Matrix>, Vec<ClassRow>) {
    let mut classes: Vec<String> =
        run.predictions.iter().flat_map(|row| [row.label.clone(), row.top1.clone()]).collect();
    classes.sort();
    classes.dedup();
    let number = |name: &String| classes.binary_search(name).unwrap_or(usize::MAX);
    let labels: Vec<usize> = run.predictions.iter().map(|row| number(&row.label)).collect();
    let called: Vec<usize> = run.predictions.iter().map(|row| number(&row.top1)).collect();
    let counts = confusion(&labels, &called, classes.len());
    let words = |value: Option<f64>| value.map_or_else(String::new, percent);
    let class_rows = class_measures(&counts)
        .into_iter()
        .zip(&classes)
        .map(|(class, name)| ClassRow {
            name: name.clone(),
            images: class.images,
            precision: words(class.precision),
            recall: words(class.recall),
            f1: words(class.f1),
        })
        .collect();
    if classes.is_empty() || classes.len() > SHOWN_CLASSES {
        return (classes, Vec::new(), class_rows);
    }
    let matrix = |title, shown: &dyn Fn(u64, u64) -> String| Matrix {
        title,
        rows: counts
            .iter()
            .zip(&classes)
            .map(|(row, name)| {
                let images = row.iter().sum::<u64>().max(1);
                let cell = |count: &u64| (shown(*count, images), (100 * count / images) as u32);
                (name.clone(), row.iter().map(cell).collect())
            })
            .collect(),
    };
    let matrices = vec![
        matrix("Images", &|count, _| count.to_string()),
        matrix("Per cent of each class", &|count, images| {
            format!("{:.1}", 100.0 * count as f64 / images as f64)
        }),
    ];
    (classes, matrices, class_rows)
}

/// Mistakes and the batch first, then explanations, the latest before earlier ones; what has no room is linked.
fn pictures(run: &Run, mut room: usize) -> Result<Vec<Picture>, Error> {
    let mut names: Vec<&String> = run.pictures.iter().collect();
    names.sort_by_key(|name| match name.as_str() {
        "mistakes.png" => 0,
        "batch.png" => 1,
        _ => 2,
    });
    if let Some(others) = names.iter().position(|name| !matches!(name.as_str(), "mistakes.png" | "batch.png"))
    {
        names[others..].reverse();
    }
    let mut pictures = Vec::new();
    for name in names {
        let path = run.dir.join(FIGURES).join(name);
        let bytes = fs::read(&path).map_err(Error::io(&path))?;
        let is_embedded = bytes.len() * 4 / 3 <= room;
        let source = if is_embedded {
            room -= bytes.len() * 4 / 3;
            format!("data:image/png;base64,{}", STANDARD.encode(&bytes))
        } else {
            format!("{RUNS}/{}/{FIGURES}/{}", link(&run.name), link(name))
        };
        pictures.push(Picture { name: name.clone(), about: about(name), source, is_embedded });
    }
    Ok(pictures)
}

fn about(name: &str) -> String {
    let stem = name.trim_end_matches(".png");
    let (kind, epoch) = match stem.rsplit_once('-') {
        Some((kind, digits)) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            (kind, format!(", epoch {}", digits.trim_start_matches('0')))
        }
        _ => (stem, String::new()),
    };
    let what = match kind {
        "mistakes" => "Most confident mistakes on test images, with true and given class".to_owned(),
        "batch" => "Images of the first training batch beside what the network saw of them".to_owned(),
        "explain" => "What the network looks at in validation pictures".to_owned(),
        "positions" => "Similarity of position embeddings".to_owned(),
        kind => kind.replace('-', " "),
    };
    what + &epoch
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
    ];
    facts.into_iter().filter(|(_, text)| !text.is_empty()).collect()
}

fn repeat(run: &Run) -> String {
    let recipe = format!("results/{RUNS}/{}/{RECIPE}", run.name);
    let seed = run.record.result.seed.to_string();
    quoted(&["cargo", "xtask", "train", "--recipe", &recipe, "--seed", &seed].map(str::to_owned))
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
