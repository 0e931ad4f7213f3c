//! `measure`: how fast a network is.

use std::time::Duration;

use trainer::optim::precision::{self, Precision};
use trainer::process::lines::show;
use trainer::process::{launch, meeting};
use trainer::run::measure::{Bench, Measured, Work};
use trainer::run::peers::Peers;
use trainer::{Error, run::recipes};

use super::{RecipeArgs, device_of, launched, listen, say_json};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Steps of the recipe, or logits.
    #[arg(long, value_enum, default_value = "train")]
    work: Work,
    /// Images of a step, of all processes together [default: the recipe's batch].
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Arithmetic.
    #[arg(long, value_enum, default_value = "f32")]
    precision: precision::Choice,
    /// Threads of libtorch [default: libtorch's choice].
    #[arg(long, value_name = "N")]
    threads: Option<i32>,
    /// Processes of this machine that share every batch.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    processes: Option<u16>,
    /// Seconds to measure.
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    seconds: f64,
    /// Steps before that.
    #[arg(long, value_name = "N", default_value_t = 3)]
    warm_up: usize,
    /// Also say where the time goes, operation by operation.
    #[arg(long)]
    profile: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How long several processes wait for each other.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Error> {
    let recipe = args.recipe.resolve(&recipes::workspace_root()?)?.recipe;
    let placement = meeting::placement(&|name| std::env::var(name).ok())?;
    let device = device_of(&args.recipe.device, placement.as_ref())?;
    if args.work == Work::Infer && (args.processes.is_some_and(|n| n > 1) || placement.is_some()) {
        return Err(Error::Usage(
            "--work infer: one process by itself answers; leave out --processes".to_owned(),
        ));
    }
    if launched(args.processes, placement.as_ref())? {
        return Ok(());
    }
    let stop = listen()?;
    launch::end_with_launcher();
    let peers = placement.map(|placement| Peers::meet(&placement, device, PATIENCE)).transpose()?;
    let peers = peers.unwrap_or_default();
    let is_first = peers.is_first();
    if let Some(threads) = args.threads {
        tch::set_num_threads(threads);
    }
    let bench = Bench {
        batch_size: args.batch.unwrap_or(recipe.train.batch_size),
        work: args.work,
        peers,
        precision: Precision::of(args.precision, device)?,
        device,
        seconds: args.seconds,
        warm_up: args.warm_up,
        profile: args.profile,
        recipe,
    };
    let measured = bench.run(&stop)?;
    if !is_first {
        return Ok(());
    }
    if args.json {
        return say_json(&measured);
    }
    show(&text(&measured));
    Ok(())
}

/// For a person.
fn text(measured: &Measured) -> String {
    let Measured { model, work, precision, batch_size, threads, device, steps, .. } = measured;
    let [least, p10, p50, p90, largest] = measured.step_ms;
    let peak = measured.peak_gflops * measured.processes as f64;
    let what = if *work == Work::Train { "training" } else { "inference" };
    let memory = measured.peak_memory_mb.map_or(String::new(), |mb| format!("; memory {mb:.0} MiB at most"));
    let mut text = format!(
        "{model}, {what} in {precision} in batches of {batch_size} on {device} with {threads} threads: {:.1} images/s\n\
         a step takes {p50:.2} ms (10th percentile {p10:.2}, 90th {p90:.2}, {least:.2} to {largest:.2}, {steps} steps), \
         {:.1} % of it for pictures\n\
         {:.1} GFLOP/s, {:.1} % of the {:.0} of large matrix products{memory}",
        measured.images_per_second,
        100.0 * measured.data_share,
        measured.gflops,
        100.0 * measured.gflops / peak,
        peak,
    );
    if let Some(reduction) = &measured.reduction {
        text += &format!(
            "\n{} processes: {} KiB of gradients in {} sums take {:.2} ms alone; a backward pass takes {:.2} ms and waits \
             {:.2} ms for them",
            measured.processes,
            reduction.bytes / 1024,
            reduction.buckets,
            reduction.alone_ms,
            reduction.backward_ms,
            reduction.waited_ms,
        );
    }
    for op in measured.profile.iter().take_while(|op| op.share > 0.002) {
        text += &format!("\n{:9.3} ms {:5.1} % {:7.1} x {}", op.ms, 100.0 * op.share, op.calls, op.name);
    }
    text
}
