//! `summary`: a network layer by layer.

use trainer::process::lines::show;
use trainer::{Error, network::summary};

use super::{NetworkArgs, say_json};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    network: NetworkArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Error> {
    let summary = summary::summarize(&args.network.architecture()?)?;
    if args.json {
        say_json(&summary)?;
    } else {
        show(&summary.to_text());
    }
    Ok(())
}
