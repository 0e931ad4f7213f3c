//! `train`: one run, or its plan.

use std::path::PathBuf;
use std::time::Duration;

use trainer::optim::precision::{self, Precision};
use trainer::process::progress::Output;
use trainer::process::{launch, meeting};
use trainer::run::keeper::Saving;
use trainer::run::peers::Peers;
use trainer::run::request::Request;
use trainer::{Error, process::environment, run::outline, run::recipes, run::train};

use super::{RecipeArgs, device_of, launched, listen};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Initial weights: a safetensors file, a PyTorch checkpoint, a run's directory, a network in weights/, or
    /// hf:ORG/NAME[@REVISION][/FILE]; the head is re-initialised for other classes.
    #[arg(long, value_name = "WEIGHTS")]
    weights: Option<PathBuf>,
    /// Run directory [default: results/runs/<model>--<preset>--s<seed>].
    #[arg(long, value_name = "RUN_DIR")]
    out: Option<PathBuf>,
    /// Start over and replace the run; otherwise an interrupted run is resumed.
    #[arg(long)]
    fresh: bool,
    /// Check everything, time a few steps, print the plan, and stop.
    #[arg(long)]
    dry_run: bool,
    /// Precision of training steps.
    #[arg(long, value_enum, default_value = "f32")]
    precision: precision::Choice,
    /// Use deterministic GPU algorithms only, which is slower; the CPU is deterministic in any case.
    #[arg(long)]
    deterministic: bool,
    /// Also save a checkpoint every N steps.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    checkpoint_steps: Option<u64>,
    /// Also save a checkpoint every M minutes.
    #[arg(long, value_name = "M")]
    checkpoint_minutes: Option<f64>,
    /// Number of recent checkpoints to keep.
    #[arg(long, value_name = "N", default_value_t = 2)]
    keep_last: usize,
    /// Number of best checkpoints to keep.
    #[arg(long, value_name = "K", default_value_t = 1)]
    keep_best: usize,
    /// Leave the test images alone: the run ends with its validation numbers. Without this, the same command tests it.
    #[arg(long)]
    no_test: bool,
    /// Write TensorBoard events to the run directory.
    #[arg(long)]
    tensorboard: bool,
    /// Add a histogram of every tensor per epoch.
    #[arg(long, requires = "tensorboard")]
    histograms: bool,
    /// Train with N processes of this machine, which share every batch and the processor's cores.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    processes: Option<u16>,
    /// Of several processes: seconds to wait for another one.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    peer_timeout: u64,
    /// Print JSON lines.
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Print errors only.
    #[arg(long)]
    quiet: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Error> {
    let placement = meeting::placement(&|name| std::env::var(name).ok())?;
    let root = recipes::workspace_root()?;
    let resolved = args.recipe.resolve(&root)?;
    let RecipeArgs { data, seed, device: named, .. } = args.recipe;
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
    let device = device_of(&named, placement.as_ref())?;
    // What is wrong with the request is known by now, and told once.
    if launched(args.processes.filter(|_| !args.dry_run), placement.as_ref())? {
        return Ok(());
    }
    if args.deterministic {
        environment::deterministic(device)?;
    }
    let stop = listen()?;
    launch::end_with_launcher();
    let peers = match placement.filter(|_| !args.dry_run) {
        Some(placement) => Peers::meet(&placement, device, Duration::from_secs(args.peer_timeout))?,
        None => Peers::default(),
    };
    let is_first = peers.is_first();
    let request = Request {
        root,
        resolved,
        weights: args.weights,
        data_dir: data.data_dir,
        stream: data.stream,
        seed,
        peers,
        device,
        precision: Precision::of(args.precision, device)?,
        deterministic: args.deterministic,
        out: args.out,
        fresh: args.fresh,
        saving,
        tests: !args.no_test,
        tensorboard: args.tensorboard.then_some(args.histograms),
        output: match (args.json, args.quiet) {
            _ if !is_first => Output::Quiet,
            (true, _) => Output::Json,
            (_, true) => Output::Quiet,
            _ => Output::Text,
        },
    };
    if args.dry_run { outline::show(&request, &stop) } else { train::train(&request, &stop) }
}
