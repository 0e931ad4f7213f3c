//! Everything that can stop the trainer, in words that say what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use core_layers::ConfigError;
use data_cifar::DataError;
use run_record::layout::CHECKPOINT_MODEL;
use run_record::{DEVICE_FAILED, TrainRecipe};
use tch::TchError;
use torch_ext::TorchExtError;

use crate::process::signals::Stopped;
use crate::run::checkpoint::CheckpointError;

/// Why the trainer stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request itself is wrong: a name, a flag, a recipe.
    #[error("{0}")]
    Usage(String),
    /// Several things at once, a line each.
    #[error("{}", lines(.0))]
    Several(Vec<Error>),
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
    /// Pictures that could not be read; each was named.
    #[error("{unread} of {total} pictures could not be read")]
    Unread {
        /// How many.
        unread: usize,
        /// Of how many.
        total: usize,
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
    /// The pictures do not fit on the device.
    #[error(
        "the pictures do not fit in the device's memory ({problem}); --stream decodes those of a folder as they are needed"
    )]
    Placing {
        /// What libtorch said.
        problem: String,
    },
    /// The device can be used for no network.
    #[error(
        "{DEVICE_FAILED}: {problem}; `cargo xtask doctor` may know why, --device cpu trains on the processor"
    )]
    Device {
        /// What libtorch said.
        problem: String,
    },
    /// The other processes did not come.
    #[error(
        "process {rank} of {processes} did not meet the others at {place} ({problem}); see that all of them were started, \
         that this address leads to the machine of the first, and that no other program has this port (MASTER_PORT)"
    )]
    Meeting {
        /// This process.
        rank: usize,
        /// How many there are.
        processes: usize,
        /// Where they meet.
        place: String,
        /// What libtorch said.
        problem: String,
    },
    /// Another process ended, or does not answer.
    #[error(
        "process {rank} of {processes} has lost another one ({problem}); started again, the run goes on from its newest \
         checkpoint"
    )]
    Gone {
        /// This process.
        rank: usize,
        /// How many there are.
        processes: usize,
        /// What libtorch said.
        problem: String,
    },
    /// Another process tells why all of them end.
    #[error("another process failed")]
    Elsewhere {
        /// Its exit code.
        code: u8,
    },
    /// Somebody asked to stop.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// A checkpoint cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
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
            Self::Several(errors) => errors.iter().map(Self::exit_code).max().unwrap_or(1),
            Self::Stopped(stopped) => stopped.exit_code(),
            Self::Elsewhere { code } => *code,
            _ => 1,
        }
    }

    /// What several errors are together; of one, that one.
    pub fn several(errors: impl IntoIterator<Item = Self>) -> Self {
        let mut errors: Vec<Self> = errors.into_iter().collect();
        if errors.len() == 1 { errors.remove(0) } else { Self::Several(errors) }
    }

    /// The errors this one consists of.
    pub fn each(&self) -> &[Self] {
        match self {
            Self::Several(errors) => errors,
            one => std::slice::from_ref(one),
        }
    }

    /// The error, named for what it is if it is libtorch's way to say that there is no more memory, or one of
    /// [`Error::or_device`].
    pub fn or_out_of_memory(self, train: &TrainRecipe) -> Self {
        match self.says(&NO_MEMORY) {
            Some(problem) => {
                let accumulate = train.accumulate.unwrap_or(1);
                Self::OutOfMemory { batch_size: train.batch_size, accumulate, problem }
            }
            None => self.or_device(),
        }
    }

    /// The same of placing pictures on the device.
    pub fn or_placing(self) -> Self {
        match self.says(&NO_MEMORY) {
            Some(problem) => Self::Placing { problem },
            None => self,
        }
    }

    /// The error, named for what it is if it is libtorch's way to say that the device can be used for nothing.
    pub fn or_device(self) -> Self {
        match self.says(&NO_DEVICE) {
            Some(problem) => Self::Device { problem },
            None => self,
        }
    }

    /// What libtorch said, if that is where the error comes from and one of the texts is in it.
    fn says(&self, texts: &[&str]) -> Option<String> {
        let from_libtorch =
            matches!(self, Self::Training(_) | Self::Torch(_) | Self::TorchExt(_) | Self::Data(_))
                || matches!(self, Self::Checkpoint(CheckpointError::Content { .. }));
        let problem = self.to_string();
        (from_libtorch && texts.iter().any(|text| problem.contains(text))).then_some(problem)
    }

    /// Names the path an I/O error belongs to.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

fn lines(errors: &[Error]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// How the want of memory is put.
const NO_MEMORY: [&str; 7] = [
    // On CUDA, and in cuBLAS and cuDNN.
    "out of memory",
    "STATUS_ALLOC_FAILED",
    "ALLOCATION_FAILED",
    // All of cuDNN's algorithms were tried, and none had the working memory it needs.
    "unable to find an engine to execute this computation",
    // On the CPU, in the system's words and in C++'s.
    "not enough memory",
    "Cannot allocate memory",
    "std::bad_alloc",
];

/// How CUDA and libtorch put that a card, its driver or the way to them is no use, whatever is computed.
const NO_DEVICE: [&str; 17] = [
    "no kernel image is available for execution on the device",
    "no CUDA-capable device is detected",
    "CUDA-capable device(s) is/are busy or unavailable",
    "CUDA driver version is insufficient for CUDA runtime version",
    "CUDA driver is a stub library",
    "CUDA driver initialization failed",
    "system has unsupported display driver / cuda driver combination",
    "system not yet initialized",
    "forward compatibility was attempted on non supported HW",
    "uncorrectable ECC error encountered",
    "uncorrectable NVLink error",
    "hardware stack error",
    // A card that fell off the bus, as a rule.
    "CUDA error: unknown error",
    "CUDA unknown error",
    "NVIDIA driver on your system is too old",
    "Found no NVIDIA driver",
    "is not linked with support for cuda devices",
];

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
            let model = path.join(CHECKPOINT_MODEL);
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

    /// As libtorch 2.11 and CUDA 13 put them: c10's and cuBLAS's messages, cudaGetErrorString's texts after
    /// "CUDA error: ", cuDNN 9's names.
    #[test]
    fn errors_of_cuda_are_told_apart() {
        let recipe = run_record::Recipe::parse(include_str!("../../../recipes/quick/vit.toml")).unwrap();
        let advice = "\nSearch for `cudaError' in the CUDA documentation for more information.\nCUDA kernel errors might \
                      be asynchronously reported at some other API call, so the stacktrace below might be incorrect.";
        let named = |text: &str| {
            Error::Torch(TchError::Torch(format!("{text}{advice}"))).or_out_of_memory(&recipe.train)
        };
        for text in [
            "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 12.31 GiB \
             is free. Including non-PyTorch memory, this process has 66.78 GiB memory in use.",
            "CUDA error: out of memory",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
            "GET was unable to find an engine to execute this computation",
            "FIND was unable to find an engine to execute this computation",
        ] {
            let error = named(text);
            assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
            assert!(
                error.to_string().contains("train.accumulate=2") && !error.to_string().contains('\n'),
                "{error}"
            );
            let placing = Error::Torch(TchError::Torch(text.to_owned())).or_placing();
            let placing = placing.or_out_of_memory(&recipe.train);
            assert!(placing.to_string().contains("--stream"), "{placing}");
        }
        for text in [
            "CUDA error: no kernel image is available for execution on the device",
            "CUDA error: no CUDA-capable device is detected",
            "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
            "CUDA error: CUDA driver version is insufficient for CUDA runtime version",
            "CUDA error: system has unsupported display driver / cuda driver combination",
            "CUDA error: system not yet initialized",
            "CUDA error: uncorrectable ECC error encountered",
            "CUDA error: unknown error",
            "CUDA unknown error - this may be due to an incorrectly set up environment, e.g. changing env variable \
             CUDA_VISIBLE_DEVICES after program start. Setting the available devices to be zero.",
            "The NVIDIA driver on your system is too old (found version 12080). Please update your GPU driver",
            "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU",
            "PyTorch is not linked with support for cuda devices",
        ] {
            let error = named(text);
            let line = error.to_string();
            assert!(matches!(error, Error::Device { .. }) && line.starts_with(DEVICE_FAILED), "{line}");
            assert!(line.contains(first_line(text)) && !line.contains('\n'), "{line}");
            assert_eq!(error.exit_code(), 1);
        }
        // The fault of a program or a file: another network may do.
        for text in [
            "CUDA error: an illegal memory access was encountered",
            "CUDA error: device-side assert triggered",
            "CUDA error: unspecified launch failure",
            "CUDA error: invalid device ordinal",
            "cuDNN error: CUDNN_STATUS_BAD_PARAM",
            "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
        ] {
            let error = named(text);
            assert!(matches!(error, Error::Torch(_)), "{error}");
        }
        // Panics of tch say the same.
        let panic =
            "called `Result::unwrap()` on an `Err` value: Torch(\"CUDA error: unknown error\\nSearch\")";
        assert!(matches!(from_panic(&panic.to_owned()).or_device(), Error::Device { .. }));
        assert!(matches!(
            Error::Usage("out of memory".into()).or_out_of_memory(&recipe.train),
            Error::Usage(_)
        ));
    }

    #[test]
    fn libtorch_speaks_one_line() {
        let cpp = "[enforce fail at alloc_cpu.cpp:127] data. not enough memory\nframe #0: c10::\nframe #1";
        let want = "[enforce fail at alloc_cpu.cpp:127] data. not enough memory";
        assert_eq!(first_line(cpp), want);
        let panic = format!("called `Result::unwrap()` on an `Err` value: Torch({cpp:?})");
        assert_eq!(first_line(&panic), want);
    }
}
