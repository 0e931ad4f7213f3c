//! What keeps a file from becoming a network's weights.

use std::fmt;
use std::io;
use std::path::PathBuf;

use tch::TchError;

use super::first_few;

/// A file that cannot be loaded, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct WeightsError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a weights file.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is something else, is damaged, or has no such tensor.
    #[error("{0}")]
    File(String),
    /// Its tensors are not the network's.
    #[error("the tensors are not the network's; {0}")]
    Mismatch(Box<Mismatch>),
    /// Values that are not finite, from which nothing can start.
    #[error(
        "NaN or infinity in {} of {of} tensors: {}; nothing can start from these weights", tensors.len(), first_few(tensors)
    )]
    NotFinite {
        /// The tensors with such values, by the file's names.
        tensors: Vec<String>,
        /// How many tensors were to be loaded.
        of: usize,
    },
    /// libtorch refused.
    #[error("libtorch: {}", .0.to_string().lines().next().unwrap_or_default())]
    Torch(#[from] TchError),
}

/// In what a file's tensors are not a network's; names are the network's wherever it has one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// Tensors of the network that the file lacks.
    pub missing: Vec<String>,
    /// Tensors of the file that the network lacks.
    pub unexpected: Vec<String>,
    /// Tensors of another shape.
    pub misshapen: Vec<Misshapen>,
    /// Tensors that are not of a floating type: name and type.
    pub mistyped: Vec<(String, String)>,
    /// What all names of the file begin with, if those of the network do not.
    pub prefix: Option<String>,
}

/// A tensor of another shape than the network's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misshapen {
    /// The network's name of it.
    pub name: String,
    /// Its shape in the file.
    pub file: Vec<i64>,
    /// Its shape in the network.
    pub network: Vec<i64>,
}

impl fmt::Display for Misshapen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {:?}, the network has {:?}", self.name, self.file, self.network)
    }
}

impl Mismatch {
    /// Whether the tensors are the network's.
    pub(super) fn is_none(&self) -> bool {
        let Self { missing, unexpected, misshapen, mistyped, .. } = self;
        missing.is_empty() && unexpected.is_empty() && misshapen.is_empty() && mistyped.is_empty()
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mistyped: Vec<String> =
            self.mistyped.iter().map(|(name, dtype)| format!("{name} holds {dtype}")).collect();
        let mut parts: Vec<String> = [
            ("missing", first_few(&self.missing)),
            ("unexpected", first_few(&self.unexpected)),
            ("of another shape", first_few(&self.misshapen)),
            ("not of a floating type", first_few(&mistyped)),
        ]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("{what}: {names}"))
        .collect();
        parts.extend(self.prefix.iter().map(|prefix| format!("all names begin with {prefix:?}")));
        f.write_str(&parts.join("; "))
    }
}
