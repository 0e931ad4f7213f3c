//! Everything that can stop the trainer, in words that say what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use core_layers::ConfigError;
use data_cifar::DataError;
use run_record::TrainRecipe;
use tch::TchError;
use torch_ext::TorchExtError;

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
    /// A loss became NaN or infinite.
    #[error(
        "{what} no longer a finite number {place}, at a learning rate of {lr:e}; {}; a new run (--fresh, or --out \
         another directory) may do with a lower optimizer.lr, with train.clip_grad, or with a [rollback]",
        last_good(checkpoint.as_deref())
    )]
    NotFinite {
        /// Which loss, and "is".
        what: &'static str,
        /// Epoch and step.
        place: String,
        /// The learning rate there.
        lr: f64,
        /// The newest checkpoint, if there is one.
        checkpoint: Option<PathBuf>,
    },
    /// The device or the system has no more memory.
    #[error(
        "out of memory with batches of {batch_size} in {parts} ({problem}); {}",
        smaller(*batch_size, *accumulate),
        parts = if *accumulate == 1 { "one part".to_owned() } else { format!("{accumulate} parts") }
    )]
    OutOfMemory {
        /// Images of a step.
        batch_size: usize,
        /// Parts a batch is passed through the network in.
        accumulate: usize,
        /// What libtorch said.
        problem: String,
    },
    /// Somebody asked to stop.
    #[error("stopped by {}", crate::signals::name(*signal))]
    Stopped {
        /// The signal.
        signal: i32,
    },
    /// A checkpoint cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::CheckpointError),
    /// libtorch refused an operation.
    #[error("libtorch: {}", first_line(&.0.to_string()))]
    Torch(#[from] TchError),
    /// The same, of an operation that tch does not have.
    #[error(transparent)]
    TorchExt(#[from] TorchExtError),
}

impl Error {
    /// 2 for a request that cannot be meant, what a shell expects after a signal, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Stopped { signal } => crate::signals::exit_code(*signal),
            _ => 1,
        }
    }

    /// The error, named for what it is if it is libtorch's way to say that there is no more memory.
    pub fn or_out_of_memory(self, train: &TrainRecipe) -> Self {
        let problem = self.to_string();
        // On CUDA; in its libraries; on the CPU; in the system's own words and in C++'s.
        let words = [
            "out of memory",
            "STATUS_ALLOC_FAILED",
            "not enough memory",
            "Cannot allocate memory",
            "std::bad_alloc",
        ];
        let from_libtorch =
            matches!(self, Self::Training(_) | Self::Torch(_) | Self::TorchExt(_) | Self::Data(_));
        if !from_libtorch || !words.iter().any(|words| problem.contains(words)) {
            return self;
        }
        let accumulate = train.accumulate.unwrap_or(1);
        Self::OutOfMemory { batch_size: train.batch_size, accumulate, problem }
    }

    /// Names the path an I/O error belongs to.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

/// What needs less memory.
fn smaller(batch_size: usize, accumulate: usize) -> String {
    if accumulate >= batch_size {
        return "its parts are single images: use smaller ones, or a device with more memory".to_owned();
    }
    let more = (2 * accumulate).min(batch_size);
    format!("--set train.accumulate={more} --fresh makes the same updates from parts that take less")
}

fn last_good(checkpoint: Option<&Path>) -> String {
    match checkpoint {
        Some(path) => {
            let model = path.join("model.safetensors");
            format!(
                "the last good checkpoint is {} (--weights {} starts from it)",
                path.display(),
                model.display()
            )
        }
        None => "there is no checkpoint yet".to_owned(),
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
