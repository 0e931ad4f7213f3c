//! The commands, a file each, and the arguments that several share.

pub mod device;
pub mod evaluate;
pub mod explain;
pub mod export;
pub mod forward;
pub mod init;
pub mod inspect;
pub mod list;
pub mod measure;
pub mod predict;
pub mod summary;
pub mod train;
pub mod verify;

use std::path::{Path, PathBuf};

use run_record::FieldValue;
use tch::Device;
use trainer::Error;
use trainer::network::registry::{self, Architecture};
use trainer::process::environment;
use trainer::process::launch;
use trainer::process::lines::show;
use trainer::process::meeting::Placement;
use trainer::process::signals::Stop;
use trainer::run::recipes::{self, Resolved};

#[derive(Debug, clap::Args)]
pub struct NetworkArgs {
    /// Network, one of `list`.
    pub model: String,
    /// Number of classes.
    #[arg(long, value_name = "N")]
    pub num_classes: Option<i64>,
    /// Image size in pixels.
    #[arg(long, value_name = "S")]
    pub image_size: Option<i64>,
    /// Override a field of the configuration, e.g. model.depth=2; repeatable.
    #[arg(long = "set", value_name = "model.FIELD=VALUE")]
    pub sets: Vec<String>,
}

/// Which recipe, on which data.
#[derive(Debug, clap::Args)]
pub struct RecipeArgs {
    /// Network, one of `list`; overrides that of --recipe.
    #[arg(long, required_unless_present = "recipe")]
    pub model: Option<String>,
    /// Preset: a directory in recipes/.
    #[arg(long, required_unless_present = "recipe", conflicts_with = "recipe")]
    pub preset: Option<String>,
    /// Your own recipe file.
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// Override a value of the recipe, e.g. train.epochs=2 or model.embed_dim=64; repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    #[command(flatten)]
    pub data: DataArgs,
    /// Seed of every random draw.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Compute with libtorch's operations alone, which is slower, and none of our own.
    #[arg(long)]
    pub no_kernels: bool,
    /// Launch a card's operations one by one, and not as CUDA graphs.
    #[arg(long)]
    pub no_graphs: bool,
}

/// Where the data is.
#[derive(Debug, clap::Args)]
pub struct DataArgs {
    /// Directory of the data set, if not where `cargo xtask fetch` puts it, or of an image folder.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Decode an image folder batch by batch, even if it would fit in memory.
    #[arg(long)]
    pub stream: bool,
}

impl RecipeArgs {
    /// The recipe.
    pub fn resolve(&self, root: &Path) -> Result<Resolved, Error> {
        torch_ext::set_kernels(!self.no_kernels);
        torch_ext::set_graphs(!self.no_graphs);
        match (&self.recipe, &self.preset, self.model.as_deref()) {
            (Some(file), _, model) => recipes::from_file(file, model, &self.sets),
            (None, Some(preset), Some(model)) => recipes::from_preset(root, preset, model, &self.sets),
            _ => Err(Error::Usage("give --model and --preset, or --recipe".to_owned())),
        }
    }
}

impl NetworkArgs {
    /// The network.
    pub fn architecture(&self) -> Result<Architecture, Error> {
        let mut fields = recipes::model_fields(&self.sets)?;
        for (field, value) in [("num_classes", self.num_classes), ("image_size", self.image_size)] {
            if let Some(value) = value {
                fields.insert(field.to_owned(), FieldValue::Integer(value));
            }
        }
        registry::find(&self.model)?.with_fields(&fields)
    }
}

/// The device of a name; of several processes of a machine, each has a card of its own as far as there are so many.
pub fn device_of(name: &str, placement: Option<&Placement>) -> Result<Device, Error> {
    Ok(match (placement, environment::device(name)?, name) {
        (Some(placement), Device::Cuda(_), "auto" | "cuda") => {
            Device::Cuda(placement.local_rank % (tch::Cuda::device_count().max(1) as usize))
        }
        (_, device, _) => device,
    })
}

/// Launches this command in so many processes and waits for them, unless this is one of several already. Says whether it
/// did.
pub fn launched(processes: Option<u16>, placement: Option<&Placement>) -> Result<bool, Error> {
    match (processes, placement) {
        (Some(processes), None) if processes > 1 => launch::launch(processes.into()).map(|()| true),
        (Some(processes), Some(placement)) if usize::from(processes) != placement.meeting.size => {
            Err(Error::Usage(format!(
                "--processes {processes}: {} were started already; leave this out",
                placement.meeting.size
            )))
        }
        _ => Ok(false),
    }
}

/// Listens for signals that ask to stop.
pub fn listen() -> Result<Stop, Error> {
    Stop::listen().map_err(|error| Error::Training(format!("the system does not deliver signals: {error}")))
}

/// Prints a value as JSON.
pub fn say_json(value: &impl serde::Serialize) -> Result<(), Error> {
    let json = serde_json::to_string_pretty(value)
        .map_err(|error| Error::Training(format!("the answer cannot be written as JSON: {error}")))?;
    show(&json);
    Ok(())
}
