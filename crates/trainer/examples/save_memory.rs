//! How much memory a checkpoint takes while it is saved: `save_memory [MODEL] [DIRECTORY]`, on Linux.
//!
//! Builds the network with the optimiser's state that a run has, saves a checkpoint of it in a directory that is removed
//! afterwards, and prints by how much the largest resident memory grew meanwhile.

use std::fs;
use std::time::Instant;

use run_record::{EpochStats, Select, machine};
use tch::nn::VarStore;
use tch::{Device, no_grad};
use trainer::network::weights::Card;
use trainer::run::directory::RunDir;
use trainer::run::keeper::{Keeper, Saving};
use trainer::run::state::{Identity, Machine, State};
use trainer::{Error, network::registry, process::environment, process::memory, run::recipes};

// As in the trainer.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().unwrap_or("vit_large_patch16_224".to_owned());
    let above = arguments.next().map_or_else(std::env::temp_dir, Into::into);
    let root = recipes::workspace_root()?;
    let sets = ["data.image_size=224".to_owned()];
    let recipe = recipes::from_preset(&root, "reference", &model, &sets)?.recipe;
    let architecture = registry::find(&model)?;
    let vs = VarStore::new(Device::Cpu);
    let _network = architecture.init(&vs.root())?;
    let mut state = State::new(&vs, &architecture, &recipe)?;
    for mut tensor in state.optimizer.state().into_values() {
        let _ = no_grad(|| tensor.f_fill_(0.001))?; // memory that nobody wrote to is not there yet
    }
    let directory = tempfile::tempdir_in(&above).map_err(Error::io(&above))?;
    let run = RunDir::open(directory.path())?;
    let mut keeper = Keeper {
        run: Some(&run),
        has_begun: true,
        starts_from_itself: false,
        card: Card {
            model: model.clone(),
            family: architecture.facts.family.to_owned(),
            config: architecture.config.to_json(),
            recipe,
            data_sha256: String::new(),
            channel_mean: [0.0; 3],
            channel_std: [1.0; 3],
            class_names: Vec::new(),
            epoch: 1,
            val_top1: None,
        },
        select: Select::Best,
        identity: Identity {
            recipe_sha256: String::new(),
            data_sha256: String::new(),
            seed: 0,
            precision: "f32".to_owned(),
        },
        machine: Machine {
            device: "cpu".to_owned(),
            gpu: None,
            threads: 1,
            cpu: machine::cpu(),
            kernels: None,
            libtorch: environment::LIBTORCH.to_owned(),
        },
        saving: Saving::default(),
        board: None,
        saved_at: Instant::now(),
        saved: None,
    };
    let stats = EpochStats { epoch: 1, val_top1: 0.5, ..EpochStats::default() };
    state.counters.history.push(stats.clone());

    let before = resident()?;
    let started = Instant::now();
    keeper.save_epoch(&vs, &mut state, &stats, true)?;
    keeper.retain(&state)?;
    let seconds = started.elapsed().as_secs_f64();
    let after = machine::peak_memory().unwrap_or_default();
    let words = memory::in_words;
    println!(
        "{model}: tensors {}; resident {} before, at most {} while saving, {} more; {seconds:.1} s",
        words(4 * architecture.facts.params),
        words(before),
        words(after),
        words(after.saturating_sub(before)),
    );
    Ok(())
}

/// Bytes that are resident now, from where the largest are counted from here on.
fn resident() -> Result<u64, Error> {
    let path = std::path::Path::new("/proc/self/clear_refs");
    fs::write(path, "5").map_err(Error::io(path))?;
    Ok(machine::peak_memory().unwrap_or_default())
}
