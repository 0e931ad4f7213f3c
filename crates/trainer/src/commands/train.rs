//! `train`: one run, or its plan.

use std::path::PathBuf;
use std::time::Duration;

use trainer::optim::precision::{self, Precision};
use trainer::process::progress::Output;
use trainer::run::keeper::Saving;
use trainer::run::request::Request;
use trainer::{Error, process::environment, run::outline, run::recipes, run::train};

use super::{RecipeArgs, listen};

#[derive(Debug, clap::Args)]
pub struct Args {
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
    /// Check everything and say what would be done, with the time and memory of a step, and do no more.
    #[arg(long)]
    dry_run: bool,
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

/// Runs the command.
pub fn run(args: Args) -> Result<(), Error> {
    let root = recipes::workspace_root()?;
    let resolved = args.recipe.resolve(&root)?;
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
    let stop = listen()?;
    let request = Request {
        root,
        resolved,
        weights: args.weights,
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
    if args.dry_run { outline::show(&request, &stop) } else { train::train(&request, &stop) }
}
