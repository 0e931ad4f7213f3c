//! Named tensors as safetensors files: read strictly, written one tensor at a time; and those in PyTorch checkpoints, read as
//! data.
//!
//! [`load`] takes a file into a network. Its steps can be had one by one: [`WeightsFile::open`] reads the header,
//! [`WeightsFile::fit`] compares it with a network, [`WeightsFile::load`] copies the values. A file that is wrong is
//! refused before its tensors are read, and each byte is read once: what is hashed is what is loaded.

mod description;
mod entry;
mod error;
mod file;
mod fit;
mod names;
mod other;
mod pickle;
mod torch;
mod write;

use std::collections::BTreeMap;
use std::path::Path;

use tch::nn::VarStore;

use crate::ModelConfig;

pub use description::Description;
pub use error::{Mismatch, Misshapen, Problem, WeightsError};
pub use file::{CARD_KEY, WeightsFile};
pub use fit::{Fit, Head};
pub use write::{WriteError, write_safetensors};

/// Names and shapes of a network's tensors.
pub type Shapes = BTreeMap<String, Vec<i64>>;

/// Names and shapes of the tensors in `vs`.
pub fn shapes(vs: &VarStore) -> Shapes {
    vs.variables().into_iter().map(|(name, tensor)| (name, tensor.size())).collect()
}

/// What was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// What was resampled, replaced, renamed or left out.
    pub notes: Vec<String>,
    /// SHA-256 of the file's bytes, those that were loaded, in lower-case hexadecimal.
    pub sha256: String,
}

/// Loads the safetensors file or PyTorch checkpoint at `path` into the network of `config`, whose tensors are in `vs`: every
/// tensor of the network must be in the file with its shape, and nothing else may be. See [`WeightsFile::fit`] for what counts as the same.
///
/// # Errors
/// A file that cannot be read or is something else, tensors that are not the network's, or values that are not finite. The
/// network is then unchanged.
pub fn load(
    vs: &VarStore,
    config: &dyn ModelConfig,
    path: &Path,
    head: Head<'_>,
) -> Result<Loaded, WeightsError> {
    let file = WeightsFile::open(path)?;
    let fit = file.fit(config, &shapes(vs), head)?;
    file.load(&fit, config, vs)?;
    Ok(Loaded { notes: fit.notes, sha256: file.sha256()? })
}

/// The first names of a list and how many more there are: `a, b, c, d, e and 3 more`.
fn first_few<T: ToString>(names: &[T]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).map(T::to_string).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
