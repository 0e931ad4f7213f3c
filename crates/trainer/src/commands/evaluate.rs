//! `evaluate`: measures trained weights.

use std::path::PathBuf;

use clap::ValueEnum;
use run_record::{
    CalibrationBin, ClassMeasures, calibration, calibration_error, class_measures, confusion, to_csv, visible,
};
use serde::Serialize;
use trainer::data::source::{self, Purpose, Source, Subset};
use trainer::look::answers::Answers;
use trainer::process::lines::{note, show};
use trainer::process::memory::Budget;
use trainer::process::table::table;
use trainer::run::evaluate::evaluate_each;
use trainer::{Error, run::recipes};

use super::predict::open;
use super::{DataArgs, listen, say_json};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Weights of a run: its directory, a file, a network in weights/, or hf:ORG/NAME[@REVISION][/FILE] [default: those of
    /// the newest finished run, or without one the best in weights/].
    #[arg(long, value_name = "WEIGHTS")]
    weights: Option<PathBuf>,
    /// Split to evaluate [default: test, or all of an undivided folder other than the one trained on].
    #[arg(long, value_enum)]
    split: Option<Split>,
    #[command(flatten)]
    data: DataArgs,
    /// Show each image its mirror image too, and take the mean of the logits.
    #[arg(long, value_enum)]
    tta: Option<Tta>,
    /// How results are written.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// The same as --format json.
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Split {
    Train,
    #[value(alias = "val")]
    Validation,
    Test,
    All,
}

/// What is added to an image at test time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tta {
    Mirror,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// To read.
    Table,
    /// A row per number: measure, class, called, value.
    Csv,
    /// One object.
    Json,
}

/// All that was measured.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    epoch: u32,
    dataset: String,
    data_sha256: String,
    split: String,
    images: usize,
    mirrored: bool,
    top1: f64,
    top5: f64,
    loss: f64,
    /// Expected calibration error.
    ece: f64,
    calibration: Vec<CalibrationBin>,
    classes: Vec<OfClass>,
    /// Images by label and by what they were called.
    confusion: Vec<Vec<u64>>,
}

#[derive(Debug, Serialize)]
struct OfClass {
    name: String,
    #[serde(flatten)]
    measures: ClassMeasures,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Error> {
    let root = recipes::workspace_root()?;
    let stop = listen()?;
    let trained = open(args.weights.as_ref(), &args.device)?;
    let (card, device) = (&trained.card, trained.device);
    let (recipe, classes) = (&card.recipe, &card.class_names);

    let DataArgs { data_dir, stream } = &args.data;
    let listing = source::list(recipe, &root, data_dir.as_deref(), Purpose::Evaluation(classes))?;
    listing.notes.iter().for_each(|text| note(text));
    let short = Budget::new(listing.bytes(), 0, device)?.short_of().is_some();
    let stream = listing.can_stream() && (*stream || short);
    let source = listing.read(recipe, stream, &stop, &mut note)?;
    let split = match args.split {
        Some(split) => split,
        None => usual_split(&source, &card.data_sha256),
    };
    let (train_set, test_set) = source.sets(device)?;
    let train = |range: &std::ops::Range<usize>| Subset { set: &train_set, range: range.clone() };
    let test = Subset { set: &test_set, range: 0..test_set.len() };
    let parts = match split {
        Split::Train => vec![train(&source.parts.train)],
        Split::Validation => vec![train(&source.parts.validation)],
        Split::Test => vec![test],
        Split::All => vec![train(&(0..train_set.len())), test],
    };
    let images: usize = parts.iter().map(|part| part.range.len()).sum();
    let name = split.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
    if images == 0 {
        return Err(Error::Usage(format!(
            "--split {name}: the data has no such images; --split all measures all there are"
        )));
    }
    let mut answers = Answers::default();
    let mirrored = args.tta == Some(Tta::Mirror);
    let metrics = evaluate_each(
        trained.network.as_ref(),
        &parts,
        &trained.presentation,
        &recipe.train,
        &stop,
        mirrored,
        &mut |logits, labels| answers.add(logits, labels),
    )?;

    let (called, confidences) = answers.best(1.0);
    let right: Vec<bool> =
        answers.labels.iter().zip(&called).map(|(label, called)| label == called).collect();
    let confusion = confusion(&answers.labels, &called, classes.len());
    let calibration = calibration(&confidences, &right);
    let of_class = |(name, measures): (&String, ClassMeasures)| OfClass { name: name.clone(), measures };
    let report = Report {
        model: card.model.clone(),
        epoch: card.epoch,
        dataset: source.name.clone(),
        data_sha256: source.sha256.clone(),
        split: name,
        images,
        mirrored,
        top1: metrics.top1,
        top5: metrics.top5,
        loss: metrics.loss,
        ece: calibration_error(&calibration),
        calibration,
        classes: classes.iter().zip(class_measures(&confusion)).map(of_class).collect(),
        confusion,
    };
    match args.format {
        _ if args.json => say_json(&report)?,
        Format::Json => say_json(&report)?,
        Format::Table => show(&report.to_text()),
        Format::Csv => show(report.to_csv()?.trim_end()),
    }
    Ok(())
}

/// What is measured if nothing is said: the test part, as far as there is one that is no part of another whole.
fn usual_split(source: &Source, trained_on: &str) -> Split {
    if source.sha256 == trained_on {
        return Split::Test;
    }
    note(&format!("note: this is not the data the weights were trained on (SHA-256 {trained_on})"));
    if source.has_test {
        return Split::Test;
    }
    note(
        "note: it has no test part of its own, so all of it is measured; --split test takes the recipe's share",
    );
    Split::All
}

/// Confusions that are told in words.
const CONFUSIONS: usize = 5;

impl Report {
    fn to_text(&self) -> String {
        let Self { model, epoch, images, dataset, split, top1, top5, loss, ece, .. } = self;
        let mirrored = if self.mirrored { ", mirrored" } else { "" };
        let mut lines = vec![
            format!(
                "{model} (epoch {epoch}) on {images} images of {dataset} ({split}{mirrored}): \
                 top-1 {:.2} %, top-5 {:.2} %, loss {loss:.4}, calibration error {:.2} %",
                100.0 * top1,
                100.0 * top5,
                100.0 * ece
            ),
            String::new(),
        ];
        let percent =
            |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{:.2} %", 100.0 * share));
        let rows = self.classes.iter().map(|OfClass { name, measures }| {
            let ClassMeasures { images, precision, recall, f1 } = *measures;
            let [precision, recall, f1] = [precision, recall, f1].map(percent);
            [name.clone(), images.to_string(), precision, recall, f1]
        });
        lines.push(table(["class", "images", "precision", "recall", "F1"], 1..5, rows));
        let mut mistakes: Vec<(u64, usize, usize)> =
            self.cells().filter(|(n, a, b)| *n > 0 && a != b).collect();
        mistakes.sort_by(|a, b| b.0.cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        if !mistakes.is_empty() {
            let name = |class: usize| visible(&self.classes[class].name);
            let said = mistakes
                .iter()
                .take(CONFUSIONS)
                .map(|(n, label, called)| format!("{} called {} {n} times", name(*label), name(*called)));
            lines.push(String::new());
            lines.push(format!("most often: {}", said.collect::<Vec<_>>().join(", ")));
        }
        lines.join("\n")
    }

    /// Images by label and by what they were called, with both.
    fn cells(&self) -> impl Iterator<Item = (u64, usize, usize)> + '_ {
        let rows = self.confusion.iter().enumerate();
        rows.flat_map(|(label, row)| row.iter().enumerate().map(move |(called, n)| (*n, label, called)))
    }

    fn to_csv(&self) -> Result<String, Error> {
        let number = |value: f64| format!("{value:.6}");
        let row = |measure, class: &str, called: &str, value| Cell {
            measure,
            class: visible(class).into_owned(),
            called: visible(called).into_owned(),
            value,
        };
        let whole = [("top1", self.top1), ("top5", self.top5), ("loss", self.loss), ("ece", self.ece)];
        let mut rows: Vec<Cell> =
            whole.into_iter().map(|(measure, value)| row(measure, "", "", number(value))).collect();
        for OfClass { name, measures } in &self.classes {
            let ClassMeasures { precision, recall, f1, .. } = *measures;
            for (measure, value) in [("precision", precision), ("recall", recall), ("f1", f1)] {
                rows.push(row(measure, name, "", value.map_or_else(String::new, number)));
            }
        }
        let name = |class: usize| self.classes[class].name.as_str();
        rows.extend(
            self.cells()
                .map(|(images, label, called)| row("images", name(label), name(called), images.to_string())),
        );
        let bytes = to_csv(&rows)
            .map_err(|error| Error::Training(format!("the results cannot be written as CSV: {error}")))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// A number in the CSV form.
#[derive(Debug, Default, Serialize)]
struct Cell {
    measure: &'static str,
    class: String,
    called: String,
    value: String,
}
