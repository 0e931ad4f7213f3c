//! Weights as files: what this project's files say of themselves, and loading with the network's name in what
//! is said. Reading and writing itself is [`core_layers::weights`].

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;

use core_layers::weights::{CARD_KEY, Problem, WeightsError, WriteError, shapes, write_safetensors};
use run_record::{first_few, write_atomically_with};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::Tensor;
use tch::nn::VarStore;

use crate::Error;
use crate::network::registry::{self, Architecture};

pub use core_layers::weights::{Fit, Head, WeightsFile};

/// What a weights file says of itself, besides the tensors: as JSON under the metadata key
/// [`CARD_KEY`].
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
    /// Validation top-1 of the kept weights after that epoch; a checkpoint's own may be from the middle of one.
    pub val_top1: Option<f64>,
}

impl Card {
    /// What a weights file of this project says of itself.
    ///
    /// # Errors
    /// A file that says nothing, or whose description is damaged.
    pub fn of(file: &WeightsFile) -> Result<Self, Error> {
        let card = file.card().ok_or_else(|| {
            wrong(
                file.path(),
                "these weights do not say which network and data they belong to; expected a file from a run",
            )
        })?;
        let damaged = |problem: &dyn std::fmt::Display| {
            wrong(file.path(), format!("its description is damaged: {problem}"))
        };
        let card: Value = serde_json::from_str(card).map_err(|error| damaged(&error))?;
        if let (None, Some(model)) = (card.get("recipe"), card.get("model").and_then(Value::as_str)) {
            let problem = format!(
                "these are initial weights of {model}, which have learned nothing; expected a file from a run"
            );
            return Err(wrong(file.path(), problem));
        }
        let card: Self = serde_json::from_value(card).map_err(|error| damaged(&error))?;
        card.recipe.validate().map_err(|error| damaged(&error))?;
        Ok(card)
    }

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
        registry::from_config(&self.family, &self.model, &self.config)
            .map_err(|problem| wrong(path, format!("written for {}: {problem}", self.model)))
    }

    /// In what the network differs from `architecture`, as far as the two say.
    fn difference(&self, architecture: &Architecture) -> Option<String> {
        if self.family != architecture.facts.family {
            return Some(format!("the file is of {}", self.model));
        }
        let ours = architecture.config.to_json();
        let fields = self.config.as_object()?.iter();
        let other = fields.filter(|(field, value)| ours[field.as_str()] != **value);
        let other: Vec<String> = other.map(|(field, value)| format!("model.{field} = {value}")).collect();
        (!other.is_empty()).then(|| format!("the file is of {} with {}", self.model, first_few(&other)))
    }
}

/// Opens a weights file and loads it into the network `architecture`, whose tensors are in `vs`. Returned are the notes of
/// [`Fit`].
///
/// # Errors
/// Those of [`WeightsFile`]; the network is then unchanged.
pub fn load(
    vs: &VarStore,
    architecture: &Architecture,
    path: &Path,
    head: Head<'_>,
) -> Result<Vec<String>, Error> {
    load_opened(vs, architecture, &WeightsFile::open(path)?, head)
}

/// [`load`] from a file that is open already.
///
/// # Errors
/// Those of [`WeightsFile`]; the network is then unchanged.
pub fn load_opened(
    vs: &VarStore,
    architecture: &Architecture,
    file: &WeightsFile,
    head: Head<'_>,
) -> Result<Vec<String>, Error> {
    let config = architecture.config.as_ref();
    let fit = file.fit(config, &shapes(vs), head).map_err(|error| match error.problem {
        Problem::Mismatch(mismatch) => {
            let difference = Card::of(file).ok().and_then(|card| card.difference(architecture));
            let difference = difference.map_or_else(String::new, |difference| format!("; {difference}"));
            let model = &architecture.model;
            wrong(file.path(), format!("the tensors are not those of {model}; {mismatch}{difference}"))
        }
        _ => error.into(),
    })?;
    file.load(&fit, config, vs)?;
    Ok(fit.notes)
}

/// What freshly drawn weights say of themselves: the network, its number of classes and image size among the rest.
#[derive(Debug, Serialize)]
struct Untrained<'a> {
    model: &'a str,
    family: &'a str,
    config: Value,
}

/// Replaces the file at `path` by the network's weights that no training has changed.
///
/// # Errors
/// Those of [`save`].
pub fn save_initial(path: &Path, vs: &VarStore, architecture: &Architecture) -> Result<(), Error> {
    let metadata = described(architecture).map_err(Error::io(path))?;
    save_with(path, &vs.variables().into_iter().collect(), &metadata)
}

/// The metadata of a safetensors file that only says which network its tensors belong to.
///
/// # Errors
/// A configuration that JSON cannot hold.
pub fn described(architecture: &Architecture) -> io::Result<BTreeMap<String, String>> {
    let Architecture { model, config, facts, .. } = architecture;
    let card = Untrained { model, family: facts.family, config: config.to_json() };
    Ok([(CARD_KEY.to_owned(), serde_json::to_string(&card)?)].into())
}

/// Replaces the file at `path` by a safetensors file of these tensors.
///
/// # Errors
/// A tensor of a type that the format does not have, libtorch's refusal to copy one, or the disk's to take it.
pub fn save(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<(), Error> {
    save_with(path, tensors, &BTreeMap::new())
}

/// [`save`] with what the file says of itself.
///
/// # Errors
/// Those of [`save`].
pub fn save_with(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), Error> {
    let fill = |out: &mut File| write_safetensors(out, tensors, metadata);
    write_atomically_with(path, fill).map_err(|error| match error {
        WriteError::Io(source) => Error::io(path)(source),
        error => wrong(path, error.to_string()),
    })
}

impl From<WeightsError> for Error {
    fn from(WeightsError { path, problem }: WeightsError) -> Self {
        match problem {
            Problem::Io(source) => Self::Io { path, source },
            Problem::Torch(error) => error.into(),
            problem => Self::Weights { path, problem: problem.to_string() },
        }
    }
}

fn wrong(path: &Path, problem: impl Into<String>) -> Error {
    Error::Weights { path: path.to_owned(), problem: problem.into() }
}
