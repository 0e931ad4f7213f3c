//! Weights as safetensors files: written with what is needed to use them, read strictly.
//!
//! [`WeightsFile::open`] reads the header, [`WeightsFile::fit`] compares it with a network, [`WeightsFile::load`] copies
//! the values: a file that is wrong is refused before its tensors are read, and the file is opened once.

mod bytes;
mod file;
mod fit;
mod names;
mod other;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::nn::VarStore;

use crate::Error;
use crate::registry::{self, Architecture};

pub use bytes::{copy_exactly, tensor, tensors_to_bytes, to_bytes};
pub use file::WeightsFile;
pub use fit::{Fit, Head, Shapes, shapes};

/// The metadata key of a safetensors file under which its [`Card`] stands, as JSON.
const CARD_KEY: &str = "compact-vision";

/// What a weights file says of itself, besides the tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Card {
    /// Variant name.
    pub model: String,
    /// Family name.
    pub family: String,
    /// The network's configuration.
    pub config: Value,
    /// The recipe it was trained with.
    pub recipe: run_record::Recipe,
    /// SHA-256 of the data set it was trained on.
    pub data_sha256: String,
    /// Mean per channel on the scale 0 to 255 that images are normalised with.
    pub channel_mean: [f64; 3],
    /// Standard deviation per channel on the scale 0 to 255, likewise.
    pub channel_std: [f64; 3],
    /// Name of each class, in the order of the logits.
    pub class_names: Vec<String>,
    /// Epoch the weights are from, counted from 1.
    pub epoch: u32,
    /// Validation top-1 after that epoch.
    pub val_top1: f64,
}

impl Card {
    /// The metadata of a safetensors file that says this of itself.
    ///
    /// # Errors
    /// A recipe that JSON cannot hold.
    pub fn metadata(&self) -> io::Result<BTreeMap<String, String>> {
        Ok([(CARD_KEY.to_owned(), serde_json::to_string(self)?)].into())
    }

    /// The network the weights belong to.
    ///
    /// # Errors
    /// An architecture or configuration this program does not know; `path` is named.
    pub fn architecture(&self, path: &Path) -> Result<Architecture, Error> {
        let found = registry::from_config(&self.family, self.config.clone());
        let architecture =
            found.map_err(|problem| wrong(path, format!("written for {}: {problem}", self.model)))?;
        Ok(architecture.named(&self.model))
    }
}

/// Opens a weights file, compares it with the network `architecture` whose tensors are in `vs`, and loads it. Returned
/// are the notes of [`Fit`].
///
/// # Errors
/// Those of [`WeightsFile`]; the network is then unchanged.
pub fn load(
    vs: &VarStore,
    architecture: &Architecture,
    path: &Path,
    head: Head<'_>,
) -> Result<Vec<String>, Error> {
    let file = WeightsFile::open(path)?;
    let fit = file.fit(architecture, &shapes(vs), head)?;
    file.load(&fit, vs)?;
    Ok(fit.notes)
}

fn wrong(path: &Path, problem: impl Into<String>) -> Error {
    Error::Weights { path: path.to_owned(), problem: problem.into() }
}
