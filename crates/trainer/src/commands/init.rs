//! `init`: freshly drawn weights.

use std::path::PathBuf;

use tch::Device;
use tch::nn::VarStore;
use trainer::process::paths::check_output;
use trainer::{Error, network::build, network::weights};

use super::NetworkArgs;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    network: NetworkArgs,
    /// Seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// File to write.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Error> {
    check_output(&args.output, &[])?;
    let architecture = args.network.architecture()?;
    let vs = VarStore::new(Device::Cpu);
    build::seed_initial_weights(args.seed);
    architecture.init(&vs.root())?;
    weights::save_initial(&args.output, &vs, &architecture)
}
