//! What the page says: from runs to the values of its template.

use std::collections::BTreeMap;
use std::fs;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment};
use run_record::{
    EpochStats, calibration, calibration_error, class_measures, confusion, duration, write_atomically,
};
use serde::Serialize;

use crate::Error;
use crate::charts::{Chart, Mark, Scale, Series, colour, scaled};
use crate::runs::Run;
use crate::stats::{holm, mcnemar, mean_and_deviation, two_shares, wilson};

/// Bytes of pictures that the page holds, of all runs together; others are linked.
const PICTURES: usize = 1_900_000;
/// Networks up to this number are compared each with each other, and more with the first.
const ALL_PAIRS: usize = 8;
/// Corrected probability below which a difference is called more than chance.
const CHANCE: f64 = 0.05;
/// Classes up to this number are drawn as a table of confusions.
const SHOWN_CLASSES: usize = 20;

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

/// A run in the table: what is shown, and what it is sorted by.
#[derive(Serialize)]
struct Row {
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
struct Group {
    name: String,
    n: usize,
    seeds: String,
    test: String,
    reference: String,
}

#[derive(Serialize)]
struct Pair {
    first: String,
    second: String,
    first_only: usize,
    second_only: usize,
    p: String,
    verdict: &'static str,
}

#[derive(Serialize)]
struct Figure {
    title: String,
    caption: &'static str,
    svg: String,
    file: Option<String>,
}

#[derive(Serialize)]
struct Legend {
    run: String,
    colour: String,
}

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
struct Section {
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

fn percent(value: f64) -> String {
    format!("{:.2} %", 100.0 * value)
}

fn hex(family: &str) -> String {
    let colour = colour(family);
    format!("#{:02x}{:02x}{:02x}", colour.0, colour.1, colour.2)
}

/// The page, and charts written beside each run.
///
/// # Errors
/// A picture that cannot be read, a chart that cannot be drawn, a file that cannot be written.
pub fn page(runs: &[Run], problems: &[String]) -> Result<String, Error> {
    let mut order: Vec<&Run> = runs.iter().collect();
    order.sort_by(|a, b| {
        let top1 = |run: &Run| run.record.result.test_top1.unwrap_or(-1.0);
        top1(b).total_cmp(&top1(a)).then_with(|| a.name.cmp(&b.name))
    });
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

/// One run per model, preset and data: of several seeds the one that validation prefers, never the test.
fn networks<'a>(runs: &[&'a Run]) -> Vec<&'a Run> {
    let mut best: BTreeMap<(&str, &str, &str, &str), &Run> = BTreeMap::new();
    for run in runs.iter().filter(|run| run.is_complete()) {
        let result = &run.record.result;
        let key = (&*result.model, &*result.preset, &*result.data_sha256, &*result.recipe_sha256);
        let kept = best.entry(key).or_insert(run);
        if result.val_top1 > kept.record.result.val_top1 {
            *kept = run;
        }
    }
    let mut networks: Vec<&Run> = best.into_values().collect();
    networks.sort_by(|a, b| {
        let top1 = |run: &Run| run.record.result.test_top1.unwrap_or(-1.0);
        top1(b).total_cmp(&top1(a)).then_with(|| a.name.cmp(&b.name))
    });
    networks
}

fn pairs(networks: &[&Run]) -> (Vec<Pair>, &'static str) {
    let each = networks.len() <= ALL_PAIRS;
    let firsts = if each { networks.len() } else { 1 };
    let mut found = Vec::new();
    for (index, first) in networks.iter().enumerate().take(firsts) {
        for second in networks[index + 1..].iter().filter(|second| first.has_same_images(second)) {
            let (mut one, mut other) = (0, 0);
            for (a, b) in first.predictions.iter().zip(&second.predictions) {
                one += usize::from(a.is_right() && !b.is_right());
                other += usize::from(b.is_right() && !a.is_right());
            }
            found.push((first, second, mcnemar(one, other)));
        }
    }
    let corrected = holm(&found.iter().map(|(_, _, test)| test.p).collect::<Vec<_>>());
    let pair = |((first, second, test), p): (&(&&Run, &&Run, crate::McNemar), f64)| Pair {
        first: first.name.clone(),
        second: second.name.clone(),
        first_only: test.first_only,
        second_only: test.second_only,
        p: if p < 0.0001 { "< 0.0001".to_owned() } else { format!("{p:.4}") },
        verdict: if p < CHANCE { "more than chance" } else { "could be chance" },
    };
    let pairs = found.iter().zip(corrected).map(pair).collect();
    (pairs, if each { "each with each other" } else { "the first with every other" })
}

/// Who won, by how much, and whether to believe it.
fn verdict(runs: &[&Run], networks: &[&Run], pairs: &[Pair]) -> Vec<String> {
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

/// Columns of the table after the name; `page.html` has their headings.
fn row(run: &Run) -> Row {
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
    Row {
        id: run.name.clone(),
        name: run.name.clone(),
        colour: hex(&result.family),
        cells: vec![
            text(&result.dataset),
            number(result.test_top1, &|value| format!("{}{half}", percent(value))),
            number(result.reference_top1, &percent),
            number(result.delta_top1, &|value| format!("{:+.2}{against}", 100.0 * value)),
            number(Some(result.params as f64), &scaled),
            number(Some(result.macs as f64), &scaled),
            number(result.train_seconds, &duration),
            number(result.images_per_second, &|value| format!("{value:.0}")),
            text(&result.status.chars().take(80).collect::<String>()),
        ],
    }
}

/// Whether the published number differs by more than chance, if it was measured over as many images.
fn against_published(run: &Run) -> &'static str {
    let result = &run.record.result;
    match (result.test_top1, result.reference_top1, run.predictions.len()) {
        (Some(ours), Some(theirs), n) if n > 0 => {
            if two_shares(ours, theirs, n) < CHANCE {
                ", more than chance"
            } else {
                ", could be chance"
            }
        }
        _ => "",
    }
}

/// Runs that differ in nothing but the seed.
fn groups(runs: &[&Run]) -> Vec<Group> {
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

fn figure(chart: &Chart, caption: &'static str, file: Option<String>) -> Result<Option<Figure>, Error> {
    let svg = chart.inline()?;
    Ok(svg.map(|svg| Figure { title: chart.title.clone(), caption, svg, file }))
}

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
    let figures = [
        figure(
            &against("parameters", "Parameters", &|run| Some(run.record.result.params as f64)),
            SCATTER,
            None,
        )?,
        figure(
            &against("multiply-accumulates", "MACs per image", &|run| Some(run.record.result.macs as f64)),
            SCATTER,
            None,
        )?,
        figure(
            &against("training time", "Training time in seconds", &|run| run.record.result.train_seconds),
            SCATTER,
            None,
        )?,
        figure(
            &Chart {
                title: "Validation top-1 by epoch".to_owned(),
                x: ("Epoch", Scale::Plain),
                y: ("Validation top-1", Scale::Percent),
                series: runs.iter().map(curve).collect(),
            },
            CURVES,
            None,
        )?,
    ];
    Ok(figures.into_iter().flatten().collect())
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
    let points = |bins: &[run_record::CalibrationBin]| {
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

fn section(run: &Run, picture_bytes: usize) -> Result<Section, Error> {
    let mut drawn = curves(run);
    let reliability = reliability(run);
    let calibration = reliability.as_ref().map(|(_, words)| words.clone());
    if let Some((chart, _)) = reliability {
        drawn.push(("reliability", chart, "Dots: as trained. Hollow diamonds: with temperature. On the dashed line confidence is the share that is right. Test images."));
    }
    let mut charts = Vec::new();
    for (name, chart, caption) in drawn {
        if let Some(svg) = chart.file()? {
            let directory = run.dir.join("figures");
            fs::create_dir_all(&directory).map_err(Error::io(&directory))?;
            let path = directory.join(format!("{name}.svg"));
            write_atomically(&path, svg.as_bytes()).map_err(Error::io(&path))?;
        }
        charts.extend(figure(&chart, caption, Some(format!("runs/{}/figures/{name}.svg", link(&run.name))))?);
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
        let path = run.dir.join("figures").join(name);
        let bytes = fs::read(&path).map_err(Error::io(&path))?;
        let is_embedded = bytes.len() * 4 / 3 <= room;
        let source = if is_embedded {
            room -= bytes.len() * 4 / 3;
            format!("data:image/png;base64,{}", STANDARD.encode(&bytes))
        } else {
            format!("runs/{}/figures/{}", link(&run.name), link(name))
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
    let recipe = format!("results/runs/{}/recipe.toml", run.name);
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
