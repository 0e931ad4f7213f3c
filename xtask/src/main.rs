//! The workspace's task runner: set-up, data, training runs, tables and checks in one program that
//! needs no libtorch itself.

#[cfg(not(unix))]
compile_error!("only Linux and macOS are supported");

mod bench;
mod check;
mod machine;
mod process;
mod report;
mod reporter;
mod summary;
mod sweeps;
mod table;
mod test;
mod trainer;
mod verify;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use machine::{doctor, fetch, setup};
use process::{Place, Usage, note, show};
use sweeps::{plan, search, soak, train_all};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Sets up, trains, evaluates and compares compact vision architectures",
    after_help = "Start with:\n  cargo xtask train-all    from nothing to the table of results\n  \
                  cargo xtask test         every test of the workspace"
)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Prepare libtorch; every command that needs it does this first
    #[command(after_help = "Example:\n  cargo xtask setup --flavor cpu")]
    Setup(setup::Setup),
    /// Diagnose this machine and suggest fixes
    #[command(after_help = "Example:\n  cargo xtask doctor")]
    Doctor,
    /// Fetch a data set into the cache and link it in datasets/
    #[command(after_help = "Examples:\n  cargo xtask fetch cifar10\n  \
                            cargo xtask fetch cifar10 --archive cifar-10-binary.tar.gz\n  \
                            cargo xtask fetch cifar10 --dir ~/data/cifar-10-batches-bin")]
    Fetch(fetch::Fetch),
    /// Train one model; the arguments are the trainer's
    #[command(
        disable_help_flag = true,
        after_help = "Examples:\n  cargo xtask train --help\n  \
                            cargo xtask train --model convmixer_reference --preset quick"
    )]
    Train(Passed),
    /// Train every model of a preset and print the table of results
    #[command(
        after_help = "Examples:\n  cargo xtask train-all\n  cargo xtask train-all --preset quick --models convmixer\n  \
                            cargo xtask train-all --seeds 0..3"
    )]
    TrainAll(train_all::Sweep),
    /// Write the runs of a sweep as jobs for a scheduler
    #[command(after_help = "Example:\n  cargo xtask sweep plan --preset quick --seeds 0..3 --format slurm")]
    Sweep {
        /// What becomes of it
        #[command(subcommand)]
        sweep: plan::Sweep,
    },
    /// Find a better recipe: many trials for few epochs, the best of them for more
    #[command(
        after_help = "Examples:\n  cargo xtask search --recipe recipes/quick/cct.toml --space space.toml --dry-run\n  \
                            cargo xtask search --recipe recipes/quick/cct.toml --space space.toml --trials 9 --first-epochs 2\n  \
                            cargo xtask search ablate --recipe best.toml --base recipes/quick/cct.toml"
    )]
    Search(search::Search),
    /// Evaluate trained weights; the arguments are the trainer's
    #[command(
        disable_help_flag = true,
        after_help = "Examples:\n  cargo xtask evaluate --help\n  \
                            cargo xtask evaluate --weights results/runs/convmixer_reference--quick--s0/last.safetensors"
    )]
    Evaluate(Passed),
    /// Say what a network sees in pictures; the arguments are the trainer's
    #[command(
        disable_help_flag = true,
        after_help = "Examples:\n  cargo xtask predict --help\n  cargo xtask predict photo.jpg"
    )]
    Predict(Passed),
    /// Draw what a network's answers rest on; the arguments are the trainer's
    #[command(
        disable_help_flag = true,
        after_help = "Examples:\n  cargo xtask explain --help\n  cargo xtask explain photo.jpg"
    )]
    Explain(Passed),
    /// Write a trained network for other programs; the arguments are the trainer's
    #[command(
        disable_help_flag = true,
        after_help = "Examples:\n  cargo xtask export --help\n  \
                            cargo xtask export results/runs/convmixer_reference--quick--s0 --format onnx --normalize-inside --out convmixer.onnx"
    )]
    Export(Passed),
    /// List the models; the arguments are the trainer's
    #[command(
        disable_help_flag = true,
        after_help = "Examples:\n  cargo xtask list\n  cargo xtask list 'convmixer*'"
    )]
    List(Passed),
    /// Show a network layer by layer; the arguments are the trainer's
    #[command(
        disable_help_flag = true,
        after_help = "Examples:\n  cargo xtask summary --help\n  cargo xtask summary vit_reference"
    )]
    Summary(Passed),
    /// Run images from a file through a network; the arguments are the trainer's
    #[command(
        disable_help_flag = true,
        after_help = "Examples:\n  cargo xtask forward --help\n  \
                            cargo xtask forward vit_tiny_patch16_224 --weights vit.safetensors --input images.safetensors --output logits.safetensors"
    )]
    Forward(Passed),
    /// Show a recipe's data set and augmented images; the arguments are the trainer's
    #[command(
        disable_help_flag = true,
        after_help = "Examples:\n  cargo xtask inspect --help\n  \
                            cargo xtask inspect --model cct_reference --preset quick --output sheet.png"
    )]
    Inspect(Passed),
    /// Write a network's initial weights; the arguments are the trainer's
    #[command(
        disable_help_flag = true,
        after_help = "Examples:\n  cargo xtask init --help\n  cargo xtask init gcvit_xxtiny --output fresh.safetensors"
    )]
    Init(Passed),
    /// Describe a device and test that it computes; the arguments are the trainer's
    #[command(
        disable_help_flag = true,
        after_help = "Examples:\n  cargo xtask device --help\n  cargo xtask device cuda:0"
    )]
    Device(Passed),
    /// Rebuild results.csv, summary.csv and report.html from the runs and print the tables
    #[command(after_help = "Example:\n  cargo xtask report --results results")]
    Report {
        /// Where the runs are [default: results/ in the workspace]
        #[arg(long, value_name = "DIR")]
        results: Option<PathBuf>,
    },
    /// Check the tables against the runs, and compute every run's numbers again from weights and data
    #[command(after_help = "Example:\n  cargo xtask verify-results --results results")]
    VerifyResults(verify::Verify),
    /// Say what differs between two runs, results directories or results.csv files, and whether that is chance
    #[command(
        after_help = "Examples:\n  cargo xtask compare results/runs/vit_reference--quick--s0 results/runs/cct_reference--quick--s0\n  \
                            cargo xtask compare results/results.csv other/results.csv --format json"
    )]
    Compare(reporter::Compare),
    /// Measure how fast networks train or answer here, also beside PyTorch and ONNX Runtime
    #[command(after_help = "Examples:\n  cargo xtask bench --models cct --precision bf16\n  \
                            cargo xtask bench --against pytorch --rounds 5\n  \
                            cargo xtask bench --work infer --batch 1 --against onnxruntime")]
    Bench(bench::Bench),
    /// Kill trainers at random moments and check that they resume without loss
    #[command(after_help = "Examples:\n  cargo xtask soak --kills 10 --models vit\n  \
                            cargo xtask soak --kills 100 --set train.epochs=2")]
    Soak(soak::Soak),
    /// Run every test of the workspace; further arguments are those of `cargo test`
    #[command(after_help = "Examples:\n  cargo xtask test\n  cargo xtask test -- --nocapture")]
    Test(Passed),
    /// Check formatting, lints, licences, dependencies and files
    #[command(after_help = "Example:\n  cargo xtask check")]
    Check,
}

/// Arguments that go to another program as they are. They are accepted here, and taken from the process where they
/// are passed on, because the parser drops a `--` among them.
#[derive(Args)]
struct Passed {
    /// Arguments of the program that is run
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

fn main() -> ExitCode {
    // A file that grows past the limit on the size of files is then an error of writing it, not the end of this program.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help goes where it belongs; a mistake becomes one line.
        Err(help) if !help.use_stderr() => {
            show(help.render().to_string().trim_end());
            return ExitCode::SUCCESS;
        }
        Err(mistake) => {
            note(format!("error: {}", run_record::complaint(&mistake.render().to_string())));
            return ExitCode::from(2);
        }
    };
    match run(cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // Some libraries spread one message over several lines.
            let text = format!("{error:#}");
            let line =
                text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
            note(format!("error: {line}"));
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

/// Runs one command and returns the exit code.
fn run(task: Task) -> Result<u8> {
    let place = Place::from_env()?;
    match task {
        Task::Setup(args) => setup::setup(&place, args),
        Task::Doctor => doctor::doctor(&place),
        Task::Fetch(args) => fetch::fetch(&place, &args),
        Task::Train(_)
        | Task::Evaluate(_)
        | Task::Predict(_)
        | Task::Explain(_)
        | Task::Export(_)
        | Task::List(_)
        | Task::Summary(_)
        | Task::Forward(_)
        | Task::Inspect(_)
        | Task::Init(_)
        | Task::Device(_) => trainer::become_trainer(&place),
        Task::TrainAll(args) => train_all::train_all(&place, &args),
        Task::Sweep { sweep } => plan::sweep(&place, &sweep),
        Task::Search(args) => search::search(&place, &args),
        Task::Report { results } => {
            report::report(&place, &results.unwrap_or_else(|| place.root.join("results")))
        }
        Task::VerifyResults(args) => verify::verify(&place, &args),
        Task::Compare(args) => reporter::compare(&place, &args),
        Task::Bench(args) => bench::bench(&place, &args),
        Task::Soak(args) => soak::soak(&place, &args),
        Task::Test(_) => test::test(&place),
        Task::Check => check::check(&place),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_names_commands_that_exist() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
        let pages = docs.filter(|path| path.extension().is_some_and(|ending| ending == "md"));
        let mut seen = 0;
        for page in pages.chain([root.join("README.md"), root.join("datasets/README.md")]) {
            let text = std::fs::read_to_string(&page).unwrap();
            // Tables show what is optional in brackets.
            for line in text.lines().filter(|line| !line.starts_with('|')) {
                let Some((_, command)) = line.split_once("cargo xtask ") else { continue };
                // In a sentence a command ends with its quotes.
                let command = command.split(['`', '#', '|', '>', '&']).next().unwrap_or_default();
                let words = command.split_whitespace().map(|word| word.trim_matches('\''));
                if let Err(error) = Cli::try_parse_from(["cargo xtask"].into_iter().chain(words)) {
                    panic!("{}: {line}\n{error}", page.display());
                }
                seen += 1;
            }
        }
        assert!(seen > 40, "{seen} commands");
    }

    #[test]
    fn the_command_line_is_consistent_and_every_command_shows_an_example() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("cargo xtask"), "{} has no example", command.get_name());
        }
    }
}
