//! `evaluate`: measures trained weights.

use std::path::PathBuf;

use clap::ValueEnum;
use data_cifar::ChannelStats;
use tch::nn::VarStore;
use trainer::data::presentation::Presentation;
use trainer::data::source::{self, Purpose, Source, Subset};
use trainer::network::weights::{self, Card, Head, WeightsFile};
use trainer::process::memory::Budget;
use trainer::process::progress::{note, say};
use trainer::run::evaluate::evaluate;
use trainer::{Error, process::environment, run::recipes};

use super::{DataArgs, listen};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Weights file of a run.
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// Split to evaluate [default: test, or all of an undivided folder other than the one trained on].
    #[arg(long, value_enum)]
    split: Option<Split>,
    #[command(flatten)]
    data: DataArgs,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Split {
    Train,
    #[value(alias = "val")]
    Validation,
    Test,
    All,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Error> {
    let root = recipes::workspace_root()?;
    let device = environment::device(&args.device)?;
    let stop = listen()?;
    let file = WeightsFile::open(&args.weights)?;
    let card = Card::of(&file)?;
    let (recipe, classes) = (&card.recipe, &card.class_names);
    let vs = VarStore::new(device);
    let architecture = card.architecture(&args.weights)?;
    let network = architecture.init(&vs.root())?;
    weights::load_opened(&vs, &architecture, &file, Head::Same)?;
    drop(file);

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
    let stats = ChannelStats { mean: card.channel_mean, std: card.channel_std };
    let presentation = Presentation::new(recipe, &stats, classes.len() as i64, device)?;
    let metrics = evaluate(network.as_ref(), &parts, &presentation, &recipe.train, &stop)?;

    if args.json {
        let report = serde_json::json!({
            "model": card.model, "dataset": source.name, "split": name, "images": images,
            "top1": metrics.top1, "top5": metrics.top5, "loss": metrics.loss,
            "data_sha256": source.sha256, "epoch": card.epoch,
        });
        say(&report.to_string());
    } else {
        say(&format!(
            "{} (epoch {}) on {images} images of {} ({name}): top-1 {:.2} %, top-5 {:.2} %, loss {:.4}",
            card.model,
            card.epoch,
            source.name,
            100.0 * metrics.top1,
            100.0 * metrics.top5,
            metrics.loss,
        ));
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
