//! Everything that can stop the trainer, in words that say what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

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
    #[error("{}", first_line(&.0.to_string()))]
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

/// What a panic of tch or of this program says, on one line, and where it was.
pub fn from_panic(panic: &(dyn std::any::Any + Send)) -> Error {
    let message = panic.downcast_ref::<String>().map(String::as_str);
    let message = message.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    let place = PANIC_PLACE.lock().ok().and_then(|mut place| place.take());
    let place = place.map_or(String::new(), |place| format!(" ({place})"));
    Error::Training(format!("stopped in the middle: {}{place}", first_line(message)))
}

/// Where the last panic was, as `file:line`.
static PANIC_PLACE: Mutex<Option<String>> = Mutex::new(None);

/// Keeps panics from printing; [`from_panic`] tells what they were.
pub fn quiet_panics() {
    std::panic::set_hook(Box::new(|info| {
        if let (Some(location), Ok(mut place)) = (info.location(), PANIC_PLACE.lock()) {
            *place = Some(format!("{}:{}", location.file(), location.line()));
        }
    }));
}

/// The telling line of a libtorch message: the first. The rest is a C++ stack. In the panics of
/// tch the message is quoted, its line breaks written out.
pub fn first_line(message: &str) -> &str {
    let message = message.split_once("Torch(\"").map_or(message, |(_, message)| message);
    let message = message.lines().next().unwrap_or_default();
    message.split("\\n").next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_speaks_one_line() {
        let cpp = "[enforce fail at alloc_cpu.cpp:127] data. not enough memory\nframe #0: c10::\nframe #1";
        let want = "[enforce fail at alloc_cpu.cpp:127] data. not enough memory";
        assert_eq!(first_line(cpp), want);
        let panic = format!("called `Result::unwrap()` on an `Err` value: Torch({cpp:?})");
        assert_eq!(first_line(&panic), want);
    }
}
