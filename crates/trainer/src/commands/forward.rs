//! `forward`: one pass from file to file.

use std::path::PathBuf;

use trainer::network::forward::forward;
use trainer::network::weights::Head;
use trainer::process::lines::note;
use trainer::{Error, process::environment};

use super::NetworkArgs;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    network: NetworkArgs,
    /// Weights: a safetensors file, a PyTorch checkpoint, a run's directory, a network in weights/, or
    /// hf:ORG/NAME[@REVISION][/FILE]; with --num-classes, a head of another size is left at its initial values.
    #[arg(long, value_name = "WEIGHTS")]
    weights: PathBuf,
    /// File with a tensor `input` [B, 3, H, W], resized and normalised as the network expects.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// File to write.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Error> {
    let architecture = args.network.architecture()?;
    let device = environment::device(&args.device)?;
    let head = if args.network.num_classes.is_some() { Head::OfSize } else { Head::Same };
    let notes = forward(&architecture, &args.weights, head, &args.input, &args.output, device)?;
    for text in notes {
        note(&format!("note: {}: {text}", args.weights.display()));
    }
    Ok(())
}
