//! `sweep plan`: a sweep as jobs for a scheduler, each of which can be started anywhere, any number of times.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;
use run_record::layout;
use serde::Serialize;

use crate::process::{Place, show};
use crate::sweeps::presets::{recipes_of, select};
use crate::sweeps::seeds::Seeds;

/// What becomes of a sweep.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Sweep {
    /// Write independent jobs for a scheduler: every model of a preset with every seed
    #[command(
        after_help = "Examples:\n  cargo xtask sweep plan --preset best --seeds 0..3 --format slurm > sweep.sh\n  \
                            cargo xtask sweep plan --preset quick --seeds 0..3 --format shell | parallel -j 2"
    )]
    Plan(Plan),
}

/// `cargo xtask sweep plan`.
#[derive(Debug, clap::Args)]
pub(crate) struct Plan {
    /// A directory of recipes/
    #[arg(long)]
    preset: String,
    /// Only these models, by model or recipe name, separated by commas
    #[arg(long, value_delimiter = ',')]
    models: Vec<String>,
    /// Seeds, each for every model: 0..3, 0..=2 or 0,1,5
    #[arg(long, default_value = "0")]
    seeds: Seeds,
    /// Where the data set is, if not in datasets/
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// auto, cpu or cuda:N, passed to the trainer
    #[arg(long)]
    device: Option<String>,
    /// Arithmetic of the networks, passed to the trainer
    #[arg(long, value_parser = ["auto", "f32", "bf16", "tf32"])]
    precision: Option<String>,
    /// Where runs go, on a file system that all machines share [default: results/ in the workspace]
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
    /// For whom the jobs are
    #[arg(long, value_enum)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A script for sbatch: an array of jobs that save and queue again when their time is up
    Slurm,
    /// A command per line, as GNU parallel and xargs take them
    Shell,
    /// A list of objects
    Json,
}

/// One training run.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Job {
    model: String,
    preset: String,
    seed: u64,
    /// The run's directory.
    out: String,
    /// Program and arguments.
    command: Vec<String>,
}

pub(crate) fn sweep(place: &Place, sweep: &Sweep) -> Result<u8> {
    let Sweep::Plan(plan) = sweep;
    let jobs = jobs(place, plan)?;
    match plan.format {
        Format::Slurm => show(slurm(&jobs)),
        Format::Shell => show(jobs.iter().map(|job| line(&job.command)).collect::<Vec<_>>().join("\n")),
        Format::Json => show(serde_json::to_string_pretty(&jobs).context("the jobs are no JSON")?),
    }
    Ok(0)
}

/// The jobs, one seed after the other. Their paths hold from anywhere.
fn jobs(place: &Place, plan: &Plan) -> Result<Vec<Job>> {
    let recipes = select(recipes_of(&place.root, &plan.preset)?, &plan.models)?;
    let results = plan.results.clone().unwrap_or_else(|| place.root.join("results"));
    let absolute = |path: &PathBuf| {
        let path = std::path::absolute(path).with_context(|| format!("the path {}", path.display()))?;
        path.into_os_string().into_string().map_err(|path| anyhow::anyhow!("{} is not UTF-8", path.display()))
    };
    let (trainer, results) = (absolute(&place.trainer())?, absolute(&results)?);
    let data_dir = plan.data_dir.as_ref().map(absolute).transpose()?;
    let options = [("--data-dir", &data_dir), ("--device", &plan.device), ("--precision", &plan.precision)];
    let job = |seed: u64, model: &str| {
        let out = format!("{results}/{}/{model}--{}--s{seed}", layout::RUNS, plan.preset);
        let seed_text = seed.to_string();
        let fixed = [
            &trainer,
            "train",
            "--model",
            model,
            "--preset",
            &plan.preset,
            "--seed",
            &seed_text,
            "--out",
            &out,
        ];
        let mut command = fixed.map(str::to_owned).to_vec();
        for (name, value) in options {
            command.extend(value.iter().flat_map(|value| [name.to_owned(), value.clone()]));
        }
        Job { model: model.to_owned(), preset: plan.preset.clone(), seed, out, command }
    };
    let each = plan.seeds.0.iter().flat_map(|seed| recipes.iter().map(|named| job(*seed, named.model())));
    Ok(each.collect())
}

/// A command as a shell reads it.
fn line(command: &[String]) -> String {
    let quoted = |word: &String| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
        match !word.is_empty() && word.chars().all(is_plain) {
            true => word.clone(),
            false => format!("'{}'", word.replace('\'', r"'\''")),
        }
    };
    command.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// A script for `sbatch`. Two minutes before a job's time is up, or when it makes room for another, its trainer is asked
/// to stop; it saves, and the job is queued again. What else a cluster needs goes on the command line of `sbatch`.
fn slurm(jobs: &[Job]) -> String {
    let cases: Vec<String> =
        jobs.iter().enumerate().map(|(n, job)| format!("{n}) set -- {} ;;", line(&job.command))).collect();
    format!(
        r#"#!/bin/sh
#SBATCH --job-name=compact-vision
#SBATCH --array=0-{last}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
case "$SLURM_ARRAY_TASK_ID" in
{cases}
*) echo "there is no job $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;
esac
# Before there is a trainer, so that no signal ends this script alone.
trap 'kill -USR1 "$!"' USR1
trap 'kill -TERM "$!"' TERM
"$@" &
trainer=$!
wait "$trainer"
code=$?
# A signal ends the wait, and not the trainer.
while kill -0 "$trainer" 2>/dev/null; do
  wait "$trainer"
  code=$?
done
# Stopped by SIGUSR1, with everything saved.
if [ "$code" -eq 138 ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code""#,
        last = jobs.len().saturating_sub(1),
        cases = cases.join("\n"),
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::sweeps::presets::tests::workspace;

    fn plan(root: &Path, results: &str) -> Vec<Job> {
        let plan = Plan {
            preset: "quick".to_owned(),
            models: Vec::new(),
            seeds: "0..2".parse().unwrap(),
            data_dir: None,
            device: Some("cpu".to_owned()),
            precision: None,
            results: Some(root.join(results)),
            format: Format::Json,
        };
        jobs(&Place { root: root.to_owned(), cache: root.join("cache") }, &plan).unwrap()
    }

    #[test]
    fn every_model_has_a_job_for_every_seed_with_a_directory_of_its_own() {
        let root = workspace();
        let jobs = plan(root.path(), "my results");
        let runs: Vec<(&str, u64)> = jobs.iter().map(|job| (job.model.as_str(), job.seed)).collect();
        assert_eq!(runs, [("a_model", 0), ("b_model", 0), ("a_model", 1), ("b_model", 1)]);
        let place = root.path().display();
        assert_eq!(jobs[3].out, format!("{place}/my results/runs/b_model--quick--s1"));
        // The shell reads it back as it was.
        let line = line(&jobs[3].command);
        let told = Command::new("sh").args(["-c", &format!("printf '%s\\n' {line}")]).output().unwrap();
        let words: Vec<String> = String::from_utf8(told.stdout).unwrap().lines().map(str::to_owned).collect();
        assert_eq!(words, jobs[3].command);
        assert_eq!(words[words.len() - 2..], ["--device", "cpu"]);
        let odd = ["it's", "", "a b", "$HOME"].map(str::to_owned);
        assert_eq!(super::line(&odd), r"'it'\''s' '' 'a b' '$HOME'");
    }

    /// Runs job 1 of the script with a trainer that ends with `code` when it is asked to stop, and tells what was queued.
    fn ran(signal: Option<&str>, code: i32) -> (Option<i32>, String) {
        let root = workspace();
        let (trainer, scontrol) = (root.path().join("target/release/trainer"), root.path().join("scontrol"));
        fs::create_dir_all(trainer.parent().unwrap()).unwrap();
        let (started, queued) = (root.path().join("started"), root.path().join("queued"));
        let ends = match signal {
            Some(_) => format!(
                "trap 'exit {code}' USR1 TERM; echo $* > {}; while :; do sleep 0.05; done",
                started.display()
            ),
            None => format!("echo $* > {}; exit {code}", started.display()),
        };
        for (file, text) in [(&trainer, ends), (&scontrol, format!("echo $* > {}", queued.display()))] {
            fs::write(file, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let path = format!("{}:{}", root.path().display(), std::env::var("PATH").unwrap());
        let mut child = Command::new("sh")
            .args(["-c", &slurm(&plan(root.path(), "results"))])
            .envs([("SLURM_ARRAY_TASK_ID", "1"), ("SLURM_ARRAY_JOB_ID", "77"), ("PATH", &path)])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        if let Some(signal) = signal {
            let waited = Instant::now();
            while !started.exists() {
                assert!(waited.elapsed() < Duration::from_secs(60), "it does not start");
                std::thread::sleep(Duration::from_millis(10));
            }
            let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
            assert!(sent.success());
        }
        let ended = child.wait().unwrap().code();
        assert!(fs::read_to_string(&started).unwrap().contains("--model b_model --preset quick --seed 0"));
        (ended, fs::read_to_string(queued).unwrap_or_default())
    }

    #[test]
    fn a_job_of_slurm_is_queued_again_when_its_time_is_up_and_only_then() {
        assert_eq!(ran(None, 0), (Some(0), String::new()));
        assert_eq!(ran(None, 1), (Some(1), String::new()));
        assert_eq!(ran(Some("-USR1"), 138), (Some(138), "requeue 77_1\n".to_owned()));
        assert_eq!(ran(Some("-TERM"), 143), (Some(143), String::new()));
    }
}
