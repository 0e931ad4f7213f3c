//! A comparison as tables for people.

use comfy_table::{CellAlignment, Table, presets};
use run_record::{duration, visible};
use serde_json::Value;

use super::chance::Chance;
use super::two_runs::{Difference, Number, TwoRuns};
use super::two_sets::{Alone, Key, Pair, Seeds, TwoSets};
use crate::comparison::p_text;
use crate::scale::{percent, scaled};

/// Characters of a checksum that are shown.
const CHECKSUM: usize = 12;

/// Which is A and which is B.
pub fn names(a: &str, b: &str) -> String {
    format!("A: {}\nB: {}\n", visible(a), visible(b))
}

/// Two runs.
pub fn two_runs(found: &TwoRuns) -> String {
    let mut text = match &found.without_recipe[..] {
        [] if found.recipe.is_empty() => "\nThe recipes are the same.\n".to_owned(),
        [] => format!("\nThe recipes differ:\n\n{}\n", differences("recipe", &found.recipe)),
        missing => {
            format!("\nThe recipes cannot be compared: no recipe.toml in {}.\n", missing.join(" and "))
        }
    };
    if !found.circumstances.is_empty() {
        text += &format!("\n{}\n", differences("run", &found.circumstances));
    }
    let rows = found.numbers.iter().map(number);
    text += &format!("\n{}\n", table("measured|A|B|B − A", 1, rows));
    let verdict = found.verdict.unwrap_or_default();
    text += &match &found.chance {
        Chance::McNemar { a_only, b_only, images, p } => format!(
            "\nOf {images} test images A alone has {a_only} right and B alone {b_only}: {verdict} ({}, McNemar).",
            p_equals(*p)
        ),
        Chance::TwoProportions { a_images, b_images, p } => format!(
            "\nA was tested on {a_images} images and B on {b_images}, without predictions of the same ones: {verdict} \
             ({}, z-test of two proportions).",
            p_equals(*p)
        ),
        Chance::Welch { p } => format!("\nThe means: {verdict} ({}, Welch).", p_equals(*p)),
        Chance::None { reason } => format!("\nNothing is judged: {}.", visible(reason)),
    };
    if found.verdict.is_some() {
        text += "\nThis holds for these two networks. What holds for a recipe takes several seeds.";
    }
    text
}

/// Two sets of runs.
pub fn two_sets(found: &TwoSets) -> String {
    let mut text = String::new();
    if found.pairs.is_empty() {
        text += "\nNo complete run of A and B has the same model, preset, data set and image size.\n";
    } else {
        let header =
            "model|preset|dataset|size|n A|test top-1 A|n B|test top-1 B|B − A|p|p (Holm)|test|verdict";
        text += &format!("\n{}\n", table(header, 3, found.pairs.iter().map(pair)));
    }
    for pair in &found.pairs {
        text.extend(notes(pair).into_iter().map(|note| format!("{}: {note}\n", name(&pair.key))));
    }
    for (of, alone) in [("A", &found.only_a), ("B", &found.only_b)] {
        if !alone.is_empty() {
            let rows = alone.iter().map(alone_cells);
            text +=
                &format!("\nOnly in {of}:\n\n{}\n", table("model|preset|dataset|size|n|test top-1", 3, rows));
        }
    }
    for (of, n) in [("A", found.a_not_complete), ("B", found.b_not_complete)] {
        match n {
            0 => {}
            1 => text += &format!("\n1 run of {of} is not complete and left out.\n"),
            _ => text += &format!("\n{n} runs of {of} are not complete and left out.\n"),
        }
    }
    text.truncate(text.trim_end().len());
    text
}

/// A Markdown table; columns from `numbers` on are aligned to the right.
fn table(header: &str, numbers: usize, rows: impl Iterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header.split('|')).add_rows(rows);
    for column in table.column_iter_mut().skip(numbers) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn differences(heading: &str, found: &[Difference]) -> Table {
    let cells = |found: &Difference| {
        let shown = |value| shown(&found.key, value);
        vec![visible(&found.key).into_owned(), shown(&found.a), shown(&found.b)]
    };
    table(&format!("{heading}|A|B"), usize::MAX, found.iter().map(cells))
}

/// A value as recipes write it, texts without quotes; – for none.
fn shown(key: &str, value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) if text.is_empty() => "–".to_owned(),
        Value::String(text) if key.ends_with("sha256") && text.chars().count() > CHECKSUM => {
            visible(&text.chars().take(CHECKSUM).collect::<String>()).into_owned() + "…"
        }
        Value::String(text) => visible(text).into_owned(),
        value => visible(&value.to_string()).into_owned(),
    }
}

fn number(found: &Number) -> Vec<String> {
    let (heading, words): (&str, &dyn Fn(f64) -> String) = match found.column {
        "params" => ("parameters", &scaled),
        "macs" => ("MACs", &scaled),
        "best_epoch" => ("best epoch", &|epoch| epoch.to_string()),
        "val_top1" => ("validation top-1", &percent),
        "test_top1" => ("test top-1", &percent),
        "test_top5" => ("test top-5", &percent),
        "test_loss" => ("test loss", &|loss| format!("{loss:.4}")),
        "train_seconds" => ("training time", &duration),
        "images_per_second" => ("images/s", &|images| format!("{images:.0}")),
        "peak_memory_mb" => ("peak memory", &|memory| format!("{memory:.0} MiB")),
        other => (other, &|value| value.to_string()),
    };
    let cell = |value: Option<f64>| value.map_or("–".to_owned(), words);
    let difference = match (found.a, found.difference) {
        (_, Some(0.0)) => "same".to_owned(),
        (Some(a), Some(difference)) => match found.column {
            "val_top1" | "test_top1" | "test_top5" => points(difference),
            "best_epoch" => format!("{difference:+}"),
            "test_loss" => format!("{difference:+.4}"),
            _ => relative(a, difference),
        },
        _ => String::new(),
    };
    vec![heading.to_owned(), cell(found.a), cell(found.b), difference]
}

fn points(difference: f64) -> String {
    format!("{:+.2} points", 100.0 * difference)
}

/// Per cent of A, or from twice A on a multiple of it.
fn relative(a: f64, difference: f64) -> String {
    match difference / a {
        more if !more.is_finite() => String::new(),
        1.0.. => format!("× {:.2}", (a + difference) / a),
        more => format!("{:+.1} %", 100.0 * more),
    }
}

fn p_equals(p: f64) -> String {
    let text = p_text(p);
    if text.starts_with('<') { format!("p {text}") } else { format!("p = {text}") }
}

fn mean(seeds: &Seeds) -> String {
    let deviation = seeds.std.map_or(String::new(), |std| format!(" ± {:.2}", 100.0 * std));
    format!("{}{deviation}", percent(seeds.mean))
}

fn key_cells(key: &Key) -> Vec<String> {
    let text = |text: &str| visible(text).into_owned();
    vec![text(&key.model), text(&key.preset), text(&key.dataset), key.image_size.to_string()]
}

fn pair(pair: &Pair) -> Vec<String> {
    let mut cells = key_cells(&pair.key);
    let p = |p: Option<f64>| p.map_or(String::new(), p_text);
    cells.extend([
        pair.a.n.to_string(),
        mean(&pair.a),
        pair.b.n.to_string(),
        mean(&pair.b),
        points(pair.difference),
        p(pair.chance.p()),
        p(pair.p_holm),
        pair.chance.name().to_owned(),
        pair.verdict.unwrap_or("not judged").to_owned(),
    ]);
    cells
}

fn alone_cells(alone: &Alone) -> Vec<String> {
    let mut cells = key_cells(&alone.key);
    cells.extend([alone.seeds.n.to_string(), mean(&alone.seeds)]);
    cells
}

fn name(key: &Key) -> String {
    format!("{}, {}, {}", visible(&key.model), visible(&key.preset), visible(&key.dataset))
}

/// What a reader of a pair's numbers must know.
fn notes(pair: &Pair) -> Vec<String> {
    let mut notes = Vec::new();
    if !pair.differs.is_empty() {
        notes.push(format!("A and B differ in {}", pair.differs.join(", ")));
    }
    if !pair.mixed.is_empty() {
        notes.push(format!("runs of one side differ in {}, not in their seeds only", pair.mixed.join(", ")));
    }
    if let Chance::None { reason } = &pair.chance {
        notes.push(format!("not judged: {reason}"));
    }
    notes
}
