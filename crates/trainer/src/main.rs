//! The command line of the trainer.

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use trainer::process::lines::{note, show};
use trainer::{Error, error, process::signals};

use commands::{
    device, evaluate, explain, export, forward, init, inspect, list, measure, predict, summary, train, verify,
};

// libtorch allocates and frees large blocks every step, which the C library's allocator hands back
// to the kernel each time. With its `override` feature, mimalloc serves libtorch's C++ too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Trains, evaluates and compares compact vision architectures.
#[derive(Debug, Parser)]
#[command(name = "trainer", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a network with a preset or your own recipe.
    #[command(
        after_help = "Example: trainer train --model convmixer_reference --preset quick --set train.epochs=2"
    )]
    Train(train::Args),
    /// Evaluate trained weights on a split of their data.
    #[command(
        after_help = "Example: trainer evaluate --weights results/runs/convmixer_reference--quick--s0/last.safetensors"
    )]
    Evaluate(evaluate::Args),
    /// Measure how fast a network trains or answers, on made-up pictures.
    #[command(
        after_help = "Example: trainer measure --model cct_reference --preset reference --precision bf16 --profile"
    )]
    Measure(measure::Args),
    /// Say what a network sees in pictures.
    #[command(
        after_help = "Examples: trainer predict photo.jpg\n          find photos -name '*.jpg' | trainer predict --format json -"
    )]
    Predict(predict::Args),
    /// Check that finished runs are what their records say: numbers from weights and data again, files by checksums.
    #[command(after_help = "Example: trainer verify results/runs/*")]
    Verify(verify::Args),
    /// Draw what a network's answers rest on: attention, Grad-CAM, kernels, position embeddings.
    #[command(after_help = "Example: trainer explain --method gradcam photo.jpg")]
    Explain(explain::Args),
    /// Write a trained network for other programs: ONNX, TorchScript, timm, safetensors.
    #[command(
        after_help = "Example: trainer export results/runs/convmixer_reference--quick--s0 --format onnx --normalize-inside --out convmixer.onnx"
    )]
    Export(export::Args),
    /// List the networks: name, family, parameters, multiply-accumulates, image size, classes.
    #[command(after_help = "Example: trainer list 'convmixer_256*'")]
    List(list::Args),
    /// Show a network layer by layer: output shapes, parameters, multiply-accumulates.
    #[command(after_help = "Example: trainer summary vit_reference")]
    Summary(summary::Args),
    /// Run images from a safetensors file through a network and write logits, features and attention.
    #[command(
        after_help = "Example: trainer forward vit_tiny_patch16_224 --weights vit.safetensors --input images.safetensors --output logits.safetensors"
    )]
    Forward(forward::Args),
    /// Show a recipe's data set and augmented images.
    #[command(
        after_help = "Example: trainer inspect --model cct_reference --preset reference --output sheet.png"
    )]
    Inspect(inspect::Args),
    /// Write the initial weights of a network.
    #[command(after_help = "Example: trainer init gcvit_xxtiny --output fresh.safetensors")]
    Init(init::Args),
    /// Describe a device and test that it computes.
    #[command(after_help = "Example: trainer device cuda:0")]
    Device(device::Args),
}

/// The option of mimalloc that says how long freed memory waits before it goes back to the kernel.
const PURGE_DELAY: &str = "MIMALLOC_PURGE_DELAY";

/// The option of GNU's OpenMP that says how often a thread without work looks for some before it sleeps, and that of OpenMP
/// which decides the same in words.
const SPIN_COUNT: &str = "GOMP_SPINCOUNT";
const WAIT_POLICY: &str = "OMP_WAIT_POLICY";

/// The option of cuBLAS for its working memory, on which the order of its sums depends.
const CUBLAS_WORKSPACE: &str = "CUBLAS_WORKSPACE_CONFIG";

/// The commands that compute for long. Others are sooner done than started again, which takes as long as to load libtorch.
const LONG: [&str; 4] = ["train", "measure", "evaluate", "verify"];

/// Starts this program again with the environment that long commands need and nobody has set, which is read before `main`.
///
/// An allocator that keeps freed memory: every training step frees and asks for the same large blocks, and getting them
/// back page by page takes a fifth of its time (ConvMixer-256/8, batch 128, two cores). Threads that spin for
/// microseconds between two operations instead of milliseconds: as fast on idle cores, and beside another busy process
/// CCT trains 1.7 times as fast on two. For `--deterministic`, the working memory with which cuBLAS sums in the same
/// order every time.
#[cfg(unix)]
fn set_environment() {
    use std::os::unix::process::CommandExt;
    let command = std::env::args_os().nth(1);
    if !command.is_some_and(|command| LONG.iter().any(|long| command == *long)) {
        return;
    }
    let deterministic = std::env::args_os().any(|argument| argument == "--deterministic");
    let wanted = [
        (PURGE_DELAY, "-1", true),
        (SPIN_COUNT, "10000", std::env::var_os(WAIT_POLICY).is_none()),
        (CUBLAS_WORKSPACE, ":4096:8", deterministic),
    ];
    let missing = wanted.into_iter().filter(|(name, _, needed)| *needed && std::env::var_os(name).is_none());
    let missing: Vec<_> = missing.map(|(name, value, _)| (name, value)).collect();
    if missing.is_empty() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        let arguments = std::env::args_os().skip(1);
        // Comes back only if it failed, which costs nothing but the time.
        let _ = std::process::Command::new(program).args(arguments).envs(missing).exec();
    }
}

fn main() -> ExitCode {
    #[cfg(unix)]
    set_environment();
    // A panic is a bug or libtorch giving up; either is one line here, not a backtrace.
    error::quiet_panics();
    // Without it, a file that is too large is an end without a word; that is all there is to be done about it here.
    let _ = signals::survive_file_limit();
    let outcome = std::panic::catch_unwind(|| match Cli::try_parse() {
        Ok(Cli { command: Command::Train(args) }) => train::run(args),
        Ok(Cli { command: Command::Measure(args) }) => measure::run(&args),
        Ok(Cli { command: Command::Evaluate(args) }) => evaluate::run(&args),
        Ok(Cli { command: Command::Predict(args) }) => predict::run(&args),
        Ok(Cli { command: Command::Verify(args) }) => verify::run(&args),
        Ok(Cli { command: Command::Explain(args) }) => explain::run(&args),
        Ok(Cli { command: Command::Export(args) }) => export::run(&args),
        Ok(Cli { command: Command::List(args) }) => list::run(&args),
        Ok(Cli { command: Command::Summary(args) }) => summary::run(&args),
        Ok(Cli { command: Command::Forward(args) }) => forward::run(&args),
        Ok(Cli { command: Command::Inspect(args) }) => inspect::run(&args),
        Ok(Cli { command: Command::Init(args) }) => init::run(&args),
        Ok(Cli { command: Command::Device(args) }) => device::run(&args),
        // Help and version go where they belong; a mistake becomes one line.
        Err(help) if !help.use_stderr() => {
            show(help.render().to_string().trim_end());
            Ok(())
        }
        Err(mistake) => Err(Error::Usage(run_record::complaint(&mistake.render().to_string()))),
    });
    let error = match outcome {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(error)) => error,
        Err(panic) => error::from_panic(panic.as_ref()),
    };
    let error = error.or_device();
    if let Error::Elsewhere { .. } = error {
        // Another process tells what it is.
        return ExitCode::from(error.exit_code());
    }
    // To have been asked to stop is none.
    let label = if matches!(error, Error::Stopped(_)) { "" } else { "error: " };
    error.each().iter().for_each(|error| note(&format!("{label}{error}")));
    ExitCode::from(error.exit_code())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_documentation_gives_arguments_that_exist() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
        let pages = docs.filter(|path| path.extension().is_some_and(|ending| ending == "md"));
        let ours: Vec<String> =
            Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect();
        let mut seen = 0;
        for page in pages.chain([root.join("README.md"), root.join("datasets/README.md")]) {
            let text = std::fs::read_to_string(&page).unwrap();
            // Those of blocks, to be copied: in sentences a command may be named without its arguments.
            for line in text.lines().filter(|line| !line.contains('`')) {
                let Some((_, command)) = line.split_once("cargo xtask ") else { continue };
                let command = command.split(['#', '|', '>', '&']).next().unwrap_or_default();
                let words: Vec<&str> =
                    command.split_whitespace().map(|word| word.trim_matches('\'')).collect();
                if !words.first().is_some_and(|word| ours.iter().any(|name| name == word)) {
                    continue;
                }
                if let Err(error) = Cli::try_parse_from(["trainer"].into_iter().chain(words)) {
                    panic!("{}: {line}\n{error}", page.display());
                }
                seen += 1;
            }
        }
        assert!(seen > 15, "{seen} commands");
    }
}
