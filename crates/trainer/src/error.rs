//! Everything that can stop the trainer, in words that say what to do.

use std::io;
use std::path::{Path, PathBuf};

use core_layers::ConfigError;
use data_cifar::DataError;
use tch::TchError;

/// Why the trainer stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request itself is wrong: a name, a flag, a recipe.
    #[error("{0}")]
    Usage(String),
    /// The data set is missing or not what it should be.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The file system said no.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A weights file does not fit the network or cannot be read.
    #[error("{}: {problem}", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The run directory holds something this run must not touch.
    #[error("{}: {problem}", path.display())]
    RunDir {
        /// The run directory.
        path: PathBuf,
        /// What is in the way, and the way out.
        problem: String,
    },
    /// Training went wrong.
    #[error("{0}")]
    Training(String),
    /// libtorch refused an operation.
    #[error("libtorch: {}", first_line(&.0.to_string()))]
    Torch(#[from] TchError),
}

impl Error {
    /// 2 for a request that cannot be meant, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        if matches!(self, Self::Usage(_)) { 2 } else { 1 }
    }

    /// Names the path an I/O error belongs to.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        match error {
            ConfigError::Field { .. } => Self::Usage(error.to_string()),
            ConfigError::Torch(error) => Self::Torch(error),
        }
    }
}

/// What a panic of tch or of this program says, on one line.
pub fn from_panic(panic: &(dyn std::any::Any + Send)) -> Error {
    let message = panic.downcast_ref::<String>().map(String::as_str);
    let message = message.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    Error::Training(format!("stopped in the middle: {}", first_line(message)))
}

/// The first line of a libtorch message; the rest is a C++ stack.
pub fn first_line(message: &str) -> &str {
    message.lines().next().unwrap_or_default()
}
