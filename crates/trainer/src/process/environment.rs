//! What a record says of the machine, the program and the working tree.

use std::env;
use std::path::Path;
use std::process::Command;

use run_record::machine;
use tch::{Cuda, Device};
use torch_ext::{Determinism, Switch, memory_stats, set_determinism};

use crate::Error;

/// Version of the libtorch this program was built against.
pub const LIBTORCH: &str = env!("LIBTORCH_VERSION");

/// The device `auto`, `cpu`, `cuda` or `cuda:N` names. From here on, f32 means f32 on all of them: cuDNN's convolutions
/// would take TF32 for it.
///
/// # Errors
/// A name that is none of these, or a CUDA device that is not there.
pub fn device(name: &str) -> Result<Device, Error> {
    Switch::Tf32Cudnn.set(false)?;
    let index = match name {
        "auto" => return Ok(Device::cuda_if_available()),
        "cpu" => return Ok(Device::Cpu),
        "cuda" => Some(0),
        other => other.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
    };
    let Some(index) = index else {
        return Err(Error::Usage(format!("--device {name}: expected auto, cpu, cuda or cuda:N")));
    };
    let count = Cuda::device_count();
    if i64::try_from(index).is_ok_and(|index| index < count) {
        return Ok(Device::Cuda(index));
    }
    Err(Error::Usage(format!(
        "--device {name}: libtorch sees {count} CUDA devices; use --device cpu, or ask `cargo xtask doctor` why"
    )))
}

/// From here on only algorithms that give the same bytes every time run on a CUDA device, and an operation that has none
/// is an error; changes nothing for other devices. cuBLAS also needs `CUBLAS_WORKSPACE_CONFIG`, which has to be set
/// before the program starts.
///
/// # Errors
/// libtorch's refusal.
pub fn deterministic(device: Device) -> Result<(), Error> {
    if !device.is_cuda() {
        return Ok(());
    }
    set_determinism(Determinism::Error)?;
    // What it tries may win or lose by chance.
    Switch::CudnnBenchmark.set(false)?;
    // Nothing here reads memory that was not written.
    Ok(Switch::FillUninitializedMemory.set(false)?)
}

/// `cpu` or `cuda:N`.
pub fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        Device::Cpu => "cpu".to_owned(),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// Commit of the working tree at `root`, `-dirty` appended if tracked files are changed; empty
/// outside a checkout or without git.
pub fn git_commit(root: &Path) -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "HEAD"]) else { return String::new() };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if changes.is_empty() => commit,
        _ => format!("{commit}-dirty"),
    }
}

/// Largest memory so far, in bytes: that of all tensors on the card for CUDA, else this process's resident memory, where
/// the system tells it.
pub fn peak_memory(device: Device) -> Option<u64> {
    if device.is_cuda() {
        return memory_stats(device).ok().flatten().map(|stats| stats.peak_allocated);
    }
    machine::peak_memory()
}

/// The same in MiB, as a record has it.
pub fn peak_memory_mb(device: Device) -> Option<f64> {
    peak_memory(device).map(|bytes| (bytes as f64 / f64::from(1 << 20)).round())
}

/// The command line as given, of the program its name alone: where it lies says nothing to whoever reads the record elsewhere.
pub fn command() -> Vec<String> {
    let words = env::args_os().map(|word| word.to_string_lossy().into_owned());
    let name = |program: String| program.rsplit('/').next().map(str::to_owned).unwrap_or_default();
    words.enumerate().map(|(n, word)| if n == 0 { name(word) } else { word }).collect()
}
