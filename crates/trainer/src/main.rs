//! The command line of the trainer.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use data_cifar::ChannelStats;
use run_record::FieldValue;
use tch::Device;
use tch::nn::VarStore;
use trainer::data::{self, Part};
use trainer::evaluate::evaluate;
use trainer::forward::forward;
use trainer::keeper::Saving;
use trainer::paths::check_output;
use trainer::precision::{self, Precision};
use trainer::presentation::Presentation;
use trainer::progress::{Output, note, say, show};
use trainer::recipes::Resolved;
use trainer::registry::{Architecture, FAMILIES};
use trainer::signals::Stop;
use trainer::train::{self, Request};
use trainer::weights::{self, Head, WeightsFile, shapes};
use trainer::{Error, environment, error, inspect, recipes, registry, signals, summary};

// libtorch allocates and frees large blocks every step, which the C library's allocator hands back
// to the kernel each time. With its `override` feature, mimalloc serves libtorch's C++ too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Trains, evaluates and compares compact vision architectures.
#[derive(Debug, Parser)]
#[command(name = "trainer", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train one network by a preset's recipe or one of your own.
    #[command(
        after_help = "Example: trainer train --model convmixer_reference --preset quick --set train.epochs=2"
    )]
    Train(TrainArgs),
    /// Measure a trained network on one part of its data.
    #[command(
        after_help = "Example: trainer evaluate --weights results/runs/convmixer_reference--quick--s0/last.safetensors"
    )]
    Evaluate(EvaluateArgs),
    /// List the networks: name, family, parameters, multiply-accumulates, image size, classes.
    #[command(after_help = "Example: trainer list 'convmixer_256*'")]
    List(ListArgs),
    /// Show a network layer by layer: output shapes, parameters, multiply-accumulates.
    #[command(after_help = "Example: trainer summary vit_reference")]
    Summary(SummaryArgs),
    /// Run images from a safetensors file through a network with given weights, and write logits,
    /// features and attention to another.
    #[command(
        after_help = "Example: trainer forward vit_tiny_patch16_224 --weights vit.safetensors --input images.safetensors --output logits.safetensors"
    )]
    Forward(ForwardArgs),
    /// Show what a recipe's data holds, and what training makes of its images.
    #[command(
        after_help = "Example: trainer inspect --model cct_reference --preset reference --output sheet.png"
    )]
    Inspect(InspectArgs),
    /// Write a network's freshly drawn weights, so that another program can start from the same.
    #[command(after_help = "Example: trainer init gcvit_xxtiny --output fresh.safetensors")]
    Init(InitArgs),
}

#[derive(Debug, clap::Args)]
struct NetworkArgs {
    /// Network; `list` shows them.
    model: String,
    /// Number of classes, if not the variant's.
    #[arg(long, value_name = "N")]
    num_classes: Option<i64>,
    /// Side of the images in pixels, if not the variant's.
    #[arg(long, value_name = "S")]
    image_size: Option<i64>,
    /// Replace a field of the network's configuration, `model.depth=2`; repeatable.
    #[arg(long = "set", value_name = "model.FIELD=VALUE")]
    sets: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct SummaryArgs {
    #[command(flatten)]
    network: NetworkArgs,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct ForwardArgs {
    #[command(flatten)]
    network: NetworkArgs,
    /// Weights; with --num-classes, a head for another number of classes is left as drawn.
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// File with a tensor `input` [B, 3, H, W], scaled, normalised and resized as the network sees it.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// File to write.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
}

#[derive(Debug, clap::Args)]
struct InitArgs {
    #[command(flatten)]
    network: NetworkArgs,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// File to write.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// Which recipe, on which data.
#[derive(Debug, clap::Args)]
struct RecipeArgs {
    /// Network; `list` shows them. With --recipe it replaces the recipe's.
    #[arg(long, required_unless_present = "recipe")]
    model: Option<String>,
    /// Set of recipes: a directory in recipes/.
    #[arg(long, required_unless_present = "recipe", conflicts_with = "recipe")]
    preset: Option<String>,
    /// Recipe file of your own.
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Replace a value of the recipe, `train.epochs=2` or `model.embed_dim=64`; repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    #[command(flatten)]
    data: DataArgs,
    /// Seed of every random draw.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
}

/// Where the data is.
#[derive(Debug, clap::Args)]
struct DataArgs {
    /// Directory of the data set, if not where `cargo xtask fetch` puts it; of the pictures for a folder.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Decode the pictures of a folder as they are needed, even if they would fit in memory.
    #[arg(long)]
    stream: bool,
}

#[derive(Debug, clap::Args)]
struct TrainArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Start from these weights; a head for other classes is drawn anew.
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Run directory [default: results/runs/<model>--<preset>--s<seed>].
    #[arg(long, value_name = "RUN_DIR")]
    out: Option<PathBuf>,
    /// Start over and replace whatever the run directory holds; without it a stopped run goes on.
    #[arg(long)]
    fresh: bool,
    /// Arithmetic of a training step; auto is bf16 where the device computes in it.
    #[arg(long, value_enum, default_value = "f32")]
    precision: precision::Choice,
    /// On a GPU, use algorithms that give the same bytes every time: slower, by how much depends. On the processor this
    /// changes nothing, it is so anyway.
    #[arg(long)]
    deterministic: bool,
    /// Save a checkpoint after every N steps, besides those after every epoch.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    checkpoint_steps: Option<u64>,
    /// Save a checkpoint when M minutes have passed since the last.
    #[arg(long, value_name = "M")]
    checkpoint_minutes: Option<f64>,
    /// Newest checkpoints to leave.
    #[arg(long, value_name = "N", default_value_t = 2)]
    keep_last: usize,
    /// Checkpoints of the best epochs to leave.
    #[arg(long, value_name = "K", default_value_t = 1)]
    keep_best: usize,
    /// Write events for TensorBoard into the run directory.
    #[arg(long)]
    tensorboard: bool,
    /// With them the distribution of every tensor after each epoch.
    #[arg(long, requires = "tensorboard")]
    histograms: bool,
    /// Print a JSON object per line instead of words.
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Print errors only.
    #[arg(long)]
    quiet: bool,
}

#[derive(Debug, clap::Args)]
struct InspectArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Write a picture of training images beside their originals, PNG.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Images on the picture, from the first batch.
    #[arg(long, default_value_t = 16)]
    count: usize,
    /// Epoch whose draws are shown.
    #[arg(long, default_value_t = 1)]
    epoch: u32,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct EvaluateArgs {
    /// Weights of a run.
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// Part of the data.
    #[arg(long, value_enum, default_value = "test")]
    split: Split,
    #[command(flatten)]
    data: DataArgs,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Print one JSON object instead of words.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Split {
    Train,
    Validation,
    Test,
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Show only names that match, `*` and `?` as in a shell.
    pattern: Option<String>,
    /// Print a JSON array, configurations included.
    #[arg(long)]
    json: bool,
}

/// The option of mimalloc that says how long freed memory waits before it goes back to the kernel.
const PURGE_DELAY: &str = "MIMALLOC_PURGE_DELAY";

/// The option of cuBLAS for its working memory, on which the order of its sums depends.
const CUBLAS_WORKSPACE: &str = "CUBLAS_WORKSPACE_CONFIG";

/// Starts this program again with the environment it needs and nobody has set, which is read before `main`.
///
/// An allocator that keeps freed memory: every training step frees and asks for the same large blocks, and getting them
/// back page by page takes a fifth of its time (ConvMixer-256/8, batch 128, two cores). For `--deterministic`, the
/// working memory with which cuBLAS sums in the same order every time.
#[cfg(unix)]
fn set_environment() {
    use std::os::unix::process::CommandExt;
    let deterministic = std::env::args_os().any(|argument| argument == "--deterministic");
    let wanted = [(PURGE_DELAY, "-1", true), (CUBLAS_WORKSPACE, ":4096:8", deterministic)];
    let missing = wanted.into_iter().filter(|(name, _, needed)| *needed && std::env::var_os(name).is_none());
    let missing: Vec<_> = missing.map(|(name, value, _)| (name, value)).collect();
    if missing.is_empty() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        let arguments = std::env::args_os().skip(1);
        // Comes back only if it failed, which costs nothing but the time.
        let _ = std::process::Command::new(program).args(arguments).envs(missing).exec();
    }
}

fn main() -> ExitCode {
    #[cfg(unix)]
    set_environment();
    // A panic is a bug or libtorch giving up; either is one line here, not a backtrace.
    error::quiet_panics();
    // Without it, a file that is too large is an end without a word; that is all there is to be done about it here.
    let _ = signals::survive_file_limit();
    let outcome = std::panic::catch_unwind(|| match Cli::try_parse() {
        Ok(Cli { command: Command::Train(args) }) => run_train(args),
        Ok(Cli { command: Command::Evaluate(args) }) => run_evaluate(&args),
        Ok(Cli { command: Command::List(args) }) => run_list(&args),
        Ok(Cli { command: Command::Summary(args) }) => run_summary(&args),
        Ok(Cli { command: Command::Forward(args) }) => run_forward(&args),
        Ok(Cli { command: Command::Inspect(args) }) => run_inspect(&args),
        Ok(Cli { command: Command::Init(args) }) => run_init(&args),
        // Help and version go where they belong; a mistake becomes one line.
        Err(help) if !help.use_stderr() => {
            show(help.render().to_string().trim_end());
            Ok(())
        }
        Err(mistake) => Err(Error::Usage(run_record::complaint(&mistake.render().to_string()))),
    });
    let error = match outcome {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(error)) => error,
        Err(panic) => error::from_panic(panic.as_ref()),
    };
    let error = error.or_device();
    // To have been asked to stop is none.
    let label = if matches!(error, Error::Stopped { .. }) { "" } else { "error: " };
    note(&format!("{label}{error}"));
    ExitCode::from(error.exit_code())
}

impl RecipeArgs {
    fn resolve(&self, root: &Path) -> Result<Resolved, Error> {
        match (&self.recipe, &self.preset, self.model.as_deref()) {
            (Some(file), _, model) => recipes::from_file(file, model, &self.sets),
            (None, Some(preset), Some(model)) => recipes::from_preset(root, preset, model, &self.sets),
            _ => Err(Error::Usage("give --model and --preset, or --recipe".to_owned())),
        }
    }
}

fn run_train(args: TrainArgs) -> Result<(), Error> {
    let root = recipes::workspace_root()?;
    let resolved = args.recipe.resolve(&root)?;
    let resolved = match &args.weights {
        Some(file) => resolved.starting_from(&WeightsFile::open(file)?)?,
        None => resolved,
    };
    let RecipeArgs { data, seed, device, .. } = args.recipe;
    let minutes = |minutes: f64| {
        Duration::try_from_secs_f64(60.0 * minutes).map_err(|_| {
            Error::Usage(format!("--checkpoint-minutes {minutes}: expected a number of 0 or more"))
        })
    };
    let saving = Saving {
        steps: args.checkpoint_steps,
        time: args.checkpoint_minutes.map(minutes).transpose()?,
        last: args.keep_last,
        best: args.keep_best,
    };
    let device = environment::device(&device)?;
    if args.deterministic {
        environment::deterministic(device)?;
    }
    let stop = Stop::listen()
        .map_err(|error| Error::Training(format!("the system does not deliver signals: {error}")))?;
    let request = Request {
        root,
        resolved,
        data_dir: data.data_dir,
        stream: data.stream,
        seed,
        device,
        precision: Precision::of(args.precision, device)?,
        deterministic: args.deterministic,
        out: args.out,
        fresh: args.fresh,
        saving,
        tensorboard: args.tensorboard.then_some(args.histograms),
        output: match (args.json, args.quiet) {
            (true, _) => Output::Json,
            (_, true) => Output::Quiet,
            _ => Output::Text,
        },
    };
    train::train(&request, &stop)
}

fn run_inspect(args: &InspectArgs) -> Result<(), Error> {
    let root = recipes::workspace_root()?;
    let Resolved { recipe, .. } = args.recipe.resolve(&root)?;
    let RecipeArgs { data, seed, device, .. } = &args.recipe;
    if let Some(output) = &args.output {
        let (recipes, datasets) = (root.join("recipes"), root.join("datasets"));
        let given = args.recipe.recipe.iter().chain(&data.data_dir);
        let inputs: Vec<&Path> = given.chain([&recipes, &datasets]).map(PathBuf::as_path).collect();
        check_output(output, &inputs)?;
    }
    let source = data::load(&recipe, &root, data.data_dir.as_deref(), data.stream, &mut note)?;
    let summary = inspect::summarize(&source)?;
    if let Some(output) = &args.output {
        let device = environment::device(device)?;
        let sheet = inspect::sheet(&recipe, &source, (*seed, args.epoch), args.count, device)?;
        run_record::write_atomically(output, &sheet).map_err(Error::io(output))?;
    }
    if args.json {
        say_json(&summary)?;
    } else {
        show(&summary.to_text());
    }
    Ok(())
}

fn run_evaluate(args: &EvaluateArgs) -> Result<(), Error> {
    let root = recipes::workspace_root()?;
    let device = environment::device(&args.device)?;
    let weights = WeightsFile::open(&args.weights)?;
    let card = weights.card()?;
    let recipe = &card.recipe;
    let vs = VarStore::new(device);
    let architecture = card.architecture(&args.weights)?;
    let network = architecture.init(&vs.root())?;
    weights.load(&weights.fit(&architecture, &shapes(&vs), Head::Same)?, &vs)?;
    drop(weights);

    let source = data::load(recipe, &root, args.data.data_dir.as_deref(), args.data.stream, &mut note)?;
    if source.class_names != card.class_names {
        return Err(Error::Weights {
            path: args.weights.clone(),
            problem: format!("trained on other classes than those of {}", source.name),
        });
    }
    if source.sha256 != card.data_sha256 {
        note(&format!(
            "note: this is not the data the weights were trained on (SHA-256 {})",
            card.data_sha256
        ));
    }
    let (train_set, test_set) = source.sets(device)?;
    let part = match args.split {
        Split::Train => Part { set: &train_set, range: source.train.clone() },
        Split::Validation => Part { set: &train_set, range: source.validation.clone() },
        Split::Test => Part { set: &test_set, range: 0..test_set.len() },
    };
    let stats = ChannelStats { mean: card.channel_mean, std: card.channel_std };
    let presentation = Presentation::new(recipe, &stats, card.class_names.len() as i64, device)?;
    let metrics = evaluate(network.as_ref(), &part, &presentation, &recipe.train, &Stop::default())?;

    let split = format!("{:?}", args.split).to_lowercase();
    if args.json {
        let report = serde_json::json!({
            "model": card.model, "dataset": source.name, "split": split, "images": part.range.len(),
            "top1": metrics.top1, "top5": metrics.top5, "loss": metrics.loss,
            "data_sha256": source.sha256, "epoch": card.epoch,
        });
        say(&report.to_string());
    } else {
        say(&format!(
            "{} (epoch {}) on {} {split} images of {}: top-1 {:.2} %, top-5 {:.2} %, loss {:.4}",
            card.model,
            card.epoch,
            part.range.len(),
            source.name,
            100.0 * metrics.top1,
            100.0 * metrics.top5,
            metrics.loss,
        ));
    }
    Ok(())
}

impl NetworkArgs {
    fn architecture(&self) -> Result<Architecture, Error> {
        let mut fields = recipes::model_fields(&self.sets)?;
        for (field, value) in [("num_classes", self.num_classes), ("image_size", self.image_size)] {
            if let Some(value) = value {
                fields.insert(field.to_owned(), FieldValue::Integer(value));
            }
        }
        registry::find(&self.model)?.with_fields(&fields)
    }
}

fn run_summary(args: &SummaryArgs) -> Result<(), Error> {
    let summary = summary::summarize(&args.network.architecture()?)?;
    if args.json {
        say_json(&summary)?;
    } else {
        show(&summary.to_text());
    }
    Ok(())
}

/// Prints a value as JSON.
fn say_json(value: &impl serde::Serialize) -> Result<(), Error> {
    let json = serde_json::to_string_pretty(value)
        .map_err(|error| Error::Training(format!("the answer cannot be written as JSON: {error}")))?;
    show(&json);
    Ok(())
}

fn run_forward(args: &ForwardArgs) -> Result<(), Error> {
    let architecture = args.network.architecture()?;
    let device = environment::device(&args.device)?;
    let head = if args.network.num_classes.is_some() { Head::OfSize } else { Head::Same };
    let notes = forward(&architecture, &args.weights, head, &args.input, &args.output, device)?;
    for text in notes {
        note(&format!("note: {}: {text}", args.weights.display()));
    }
    Ok(())
}

fn run_init(args: &InitArgs) -> Result<(), Error> {
    check_output(&args.output, &[])?;
    let architecture = args.network.architecture()?;
    let vs = VarStore::new(Device::Cpu);
    train::seed_initial_weights(args.seed);
    architecture.init(&vs.root())?;
    let bytes = weights::tensors_to_bytes(vs.variables().into_iter().collect(), None)?;
    run_record::write_atomically(&args.output, &bytes).map_err(Error::io(&args.output))
}

fn run_list(args: &ListArgs) -> Result<(), Error> {
    let pattern = args.pattern.as_deref().unwrap_or("*");
    let matcher =
        glob::Pattern::new(pattern).map_err(|error| Error::Usage(format!("pattern {pattern:?}: {error}")))?;
    let mut variants: Vec<_> = FAMILIES.iter().flat_map(|family| family.variants()).collect();
    variants.retain(|variant| matcher.matches(&variant.model));
    if variants.is_empty() {
        return Err(Error::Usage(format!(
            "no model matches {pattern:?}; `list` without a pattern shows all"
        )));
    }
    if args.json {
        say_json(&variants)?;
        return Ok(());
    }
    say(&format!(
        "{:<28} {:<14} {:>12} {:>16} {:>6} {:>8}",
        "model", "family", "params", "MACs", "image", "classes"
    ));
    for v in variants {
        say(&format!(
            "{:<28} {:<14} {:>12} {:>16} {:>6} {:>8}",
            v.model, v.family, v.params, v.macs, v.image_size, v.num_classes
        ));
    }
    Ok(())
}
