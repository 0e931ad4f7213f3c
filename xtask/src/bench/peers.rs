//! PyTorch and ONNX Runtime: an environment with both, and the variants a Python user could choose.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Against, Bench, Contestant, Network, Precision, Work};
use crate::process::{Place, cannot_start, note, python};

/// What pip installs. PyTorch is the release whose libtorch this workspace uses.
const PACKAGES: [&str; 6] = [
    "torch==2.11.0",
    "timm==1.0.31",
    "onnx==1.23.2",
    "onnxruntime==1.32.0",
    "numpy==2.4.6",
    "safetensors==0.8.0",
];

/// The environment's Python; pip fills the environment the first time.
pub(super) fn environment(place: &Place) -> Result<PathBuf> {
    let home = place.cache.join("bench-python");
    let (found, wanted) = (home.join("packages.txt"), PACKAGES.join("\n"));
    let interpreter = home.join("bin/python");
    if fs::read_to_string(&found).is_ok_and(|text| text == wanted) {
        return Ok(interpreter);
    }
    note(format!("filling {} with {}; some gigabytes the first time", home.display(), PACKAGES.join(", ")));
    let run = |command: &mut Command| -> Result<()> {
        let status = command.status().with_context(|| cannot_start(command))?;
        if status.success() {
            Ok(())
        } else {
            bail!("{} failed; its messages are above", command.get_program().display())
        }
    };
    run(Command::new(python()).args(["-m", "venv", "--clear"]).arg(&home))?;
    run(Command::new(&interpreter).args(["-m", "pip", "install", "--quiet"]).args(PACKAGES))?;
    run_record::write_atomically(&found, wanted.as_bytes())
        .with_context(|| format!("cannot write {}", found.display()))?;
    Ok(interpreter)
}

/// Where distributions put the allocators that people preload.
const ALLOCATORS: [(&str, &[&str]); 2] =
    [("tcmalloc", &["libtcmalloc.so.4", "libtcmalloc_minimal.so.4"]), ("jemalloc", &["libjemalloc.so.2"])];

const LIBRARIES: [&str; 4] =
    ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/local/lib"];

/// A contestant with each allocator that is installed.
pub(super) fn with_allocators(one: &Contestant) -> Vec<Contestant> {
    let found = ALLOCATORS.into_iter().filter_map(|(name, files)| {
        let mut paths = files.iter().flat_map(|file| LIBRARIES.map(|library| Path::new(library).join(file)));
        paths.find(|path| path.exists()).map(|path| (name, path))
    });
    let with = |(allocator, library)| {
        let name = format!("{}, {allocator}", one.name);
        let plain = Contestant::new(name, one.precision, one.program.clone(), one.words.clone());
        Contestant { preload: Some(library), ..plain }
    };
    found.map(with).collect()
}

/// Every variant for a network, those in bf16 beside those in f32 where bf16 is asked for.
pub(super) fn contestants(
    place: &Place,
    args: &Bench,
    python: &Path,
    against: Against,
    network: &'static Network,
    precision: Precision,
) -> Vec<Contestant> {
    let script = place.root.join("docs/parity/peers/bench.py");
    let mut fixed = vec![
        script.display().to_string(),
        format!("--model={}", network.model),
        format!("--work={}", args.work.name()),
        format!("--batch={}", args.batch.unwrap_or(network.batch)),
        format!("--seconds={}", args.seconds),
        format!("--label-smoothing={}", network.label_smoothing),
        format!("--device={}", args.device),
    ];
    fixed.extend(args.threads.map(|threads| format!("--threads={threads}")));
    let one = |name: String, precision, options: &[&str]| {
        let options = options.iter().map(|option| (*option).to_owned());
        Contestant::new(name, precision, python.to_owned(), fixed.iter().cloned().chain(options).collect())
    };
    if against == Against::Onnxruntime {
        return vec![one("ONNX Runtime".to_owned(), Precision::F32, &["--onnxruntime"])];
    }
    let cuda = args.device != "cpu";
    let mut variants: Vec<(String, Vec<&str>)> = vec![
        ("eager".to_owned(), vec![]),
        ("eager, channels last".to_owned(), vec!["--channels-last"]),
        ("eager, plain attention".to_owned(), vec!["--plain-attention"]),
        ("compiled".to_owned(), vec!["--compile=default", "--channels-last"]),
        ("compiled, plain attention".to_owned(), vec!["--compile=default", "--plain-attention"]),
    ];
    if cuda {
        variants.push(("CUDA graphs".to_owned(), vec!["--compile=reduce-overhead"]));
    }
    let attends = network.name != "convmixer";
    variants.retain(|(_, options)| attends || !options.contains(&"--plain-attention"));
    let mut kinds = vec![precision];
    // Whoever asks for bf16 would keep to f32 where that is faster.
    if precision == Precision::Bf16 && args.work == Work::Infer {
        kinds.push(Precision::F32);
    }
    let mut all = Vec::new();
    for kind in kinds {
        for (name, options) in &variants {
            let mut options = options.clone();
            options.extend(match kind {
                Precision::F32 => None,
                Precision::Tf32 => Some("--tf32"),
                Precision::Bf16 => Some("--bf16"),
            });
            all.push(one(format!("PyTorch {name}"), kind, &options));
        }
    }
    all
}
