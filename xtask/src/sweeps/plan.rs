//! `sweep plan`: a sweep as jobs for a scheduler, each of which can be started anywhere, any number of times.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;
use run_record::layout;
use serde::Serialize;

use crate::process::{Place, Usage, show};
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
    /// Kubernetes: the image that the jobs run in, with a C++ runtime, and for cards their driver's libraries
    #[arg(long, value_name = "IMAGE", required_if_eq("format", "kubernetes"))]
    image: Option<String>,
    /// Kubernetes: the claim of a volume with this workspace in workspace/ and the cache in cache/
    #[arg(long, value_name = "CLAIM", required_if_eq("format", "kubernetes"))]
    claim: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A script for sbatch: an array of jobs that save and queue again when their time is up
    Slurm,
    /// An Indexed Job as YAML, a pod for each run
    Kubernetes,
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
        Format::Kubernetes => show(kubernetes(place, plan, &jobs)?),
        Format::Shell => show(jobs.iter().map(|job| line(&job.command)).collect::<Vec<_>>().join("\n")),
        Format::Json => show(serde_json::to_string_pretty(&jobs).context("the jobs are no JSON")?),
    }
    Ok(0)
}

/// A path that holds from anywhere, as text.
fn absolute(path: &Path) -> Result<String> {
    let path = std::path::absolute(path).with_context(|| format!("the path {}", path.display()))?;
    path.into_os_string().into_string().map_err(|path| anyhow::anyhow!("{} is not UTF-8", path.display()))
}

/// The jobs, one seed after the other. Their paths hold from anywhere.
fn jobs(place: &Place, plan: &Plan) -> Result<Vec<Job>> {
    let recipes = select(recipes_of(&place.root, &plan.preset)?, &plan.models)?;
    let results = plan.results.clone().unwrap_or_else(|| place.root.join("results"));
    let (trainer, results) = (absolute(&place.trainer())?, absolute(&results)?);
    let data_dir = plan.data_dir.as_deref().map(absolute).transpose()?;
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

/// Shell: makes the command of the job whose number a variable holds the script's arguments.
fn choose(variable: &str, jobs: &[Job]) -> String {
    let cases: Vec<String> =
        jobs.iter().enumerate().map(|(n, job)| format!("{n}) set -- {} ;;\n", line(&job.command))).collect();
    format!(
        r#"case "${variable}" in
{}*) echo "there is no job ${variable}" >&2; exit 2 ;;
esac"#,
        cases.concat(),
    )
}

/// A script for `sbatch`. Two minutes before a job's time is up, or when it makes room for another, its trainer is asked
/// to stop; it saves, and the job is queued again. What else a cluster needs goes on the command line of `sbatch`.
fn slurm(jobs: &[Job]) -> String {
    format!(
        r#"#!/bin/sh
#SBATCH --job-name=compact-vision
#SBATCH --array=0-{last}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
{choose}
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
        choose = choose("SLURM_ARRAY_TASK_ID", jobs),
    )
}

/// An Indexed Job for `kubectl create`. A pod that is evicted asks its trainer to stop, which saves; the pod that takes
/// its place goes on, and does not count as a failure.
///
/// # Errors
/// A path that is neither in the workspace nor in the cache, which are what the volume holds.
fn kubernetes(place: &Place, plan: &Plan, jobs: &[Job]) -> Result<String> {
    let (root, cache) = (absolute(&place.root)?, absolute(&place.cache)?);
    let flags = [("--results", &plan.results), ("--data-dir", &plan.data_dir)];
    for (flag, path) in flags.into_iter().filter_map(|(flag, path)| path.as_ref().map(|path| (flag, path))) {
        let path = absolute(path)?;
        if ![&root, &cache].into_iter().any(|held| Path::new(&path).starts_with(held)) {
            return Err(Usage(format!(
                "{flag} {path}: pods see {root} and {cache} alone; choose a directory in one of them"
            ))
            .into());
        }
    }
    let of = |name: &Option<String>| quoted(name.as_deref().unwrap_or_default());
    let name: String = plan.preset.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let card = plan.device.as_deref().is_some_and(|device| device.starts_with("cuda"));
    let resources = if card { "\n        resources: {limits: {nvidia.com/gpu: 1}}" } else { "" };
    let script = format!("{}\nexec \"$@\"", choose("JOB_COMPLETION_INDEX", jobs));
    Ok(format!(
        r#"apiVersion: batch/v1
kind: Job
metadata:
  generateName: compact-vision-{name}-
spec:
  completionMode: Indexed
  completions: {count}
  parallelism: {count}
  backoffLimit: {failures}
  podFailurePolicy:
    rules:
    - action: Ignore
      onPodConditions: [{{type: DisruptionTarget, status: "True"}}]
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 120
      containers:
      - name: trainer
        image: {image}
        workingDir: {workspace}
        command:
        - /bin/sh
        - -c
        - |
          {script}{resources}
        volumeMounts:
        - {{name: shared, subPath: workspace, mountPath: {workspace}}}
        - {{name: shared, subPath: cache, mountPath: {cache}}}
      volumes:
      - name: shared
        persistentVolumeClaim: {{claimName: {claim}}}"#,
        name = name.to_ascii_lowercase(),
        count = jobs.len(),
        failures = FAILURES * jobs.len(),
        image = of(&plan.image),
        workspace = quoted(&root),
        cache = quoted(&cache),
        claim = of(&plan.claim),
        script = script.replace('\n', "\n          "),
    ))
}

/// Failures of a run that Kubernetes makes up for with another pod.
const FAILURES: usize = 3;

/// Text as YAML reads it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
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

    fn of_workspace(root: &Path, results: &Path) -> (Place, Plan) {
        let plan = Plan {
            preset: "quick".to_owned(),
            models: Vec::new(),
            seeds: "0..2".parse().unwrap(),
            data_dir: None,
            device: Some("cpu".to_owned()),
            precision: None,
            results: Some(results.to_owned()),
            format: Format::Json,
            image: Some("registry/it's:1".to_owned()),
            claim: Some("disk".to_owned()),
        };
        (Place { root: root.to_owned(), cache: root.join("cache") }, plan)
    }

    fn plan(root: &Path, results: &str) -> Vec<Job> {
        let (place, plan) = of_workspace(root, &root.join(results));
        jobs(&place, &plan).unwrap()
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
    fn a_pod_of_kubernetes_becomes_the_trainer_of_its_index() {
        let root = workspace();
        let trainer = root.path().join("target/release/trainer");
        fs::create_dir_all(trainer.parent().unwrap()).unwrap();
        fs::write(&trainer, "#!/bin/sh\necho $$ \"$@\"\nexit 7\n").unwrap();
        fs::set_permissions(&trainer, fs::Permissions::from_mode(0o755)).unwrap();
        let (place, mut plan) = of_workspace(root.path(), &root.path().join("my results"));
        let all = jobs(&place, &plan).unwrap();
        let yaml = kubernetes(&place, &plan, &all).unwrap();
        let workspace = root.path().display();
        for part in [
            "  generateName: compact-vision-quick-\n".to_owned(),
            "  completionMode: Indexed\n  completions: 4\n  parallelism: 4\n  backoffLimit: 12\n".to_owned(),
            "        image: 'registry/it''s:1'\n".to_owned(),
            format!("{{name: shared, subPath: workspace, mountPath: '{workspace}'}}"),
            format!("{{name: shared, subPath: cache, mountPath: '{workspace}/cache'}}"),
            "persistentVolumeClaim: {claimName: 'disk'}".to_owned(),
        ] {
            assert!(yaml.contains(&part), "{part}\n{yaml}");
        }
        assert!(!yaml.contains("nvidia.com/gpu"));
        plan.device = Some("cuda".to_owned());
        let with_card = kubernetes(&place, &plan, &jobs(&place, &plan).unwrap()).unwrap();
        assert!(
            with_card.contains("\n        resources: {limits: {nvidia.com/gpu: 1}}\n        volumeMounts:")
        );

        // The script is what is indented deeper than its key, until the next one.
        let script = yaml.split_once("        - |\n").unwrap().1.lines();
        let script: Vec<&str> = script.map_while(|line| line.strip_prefix("          ")).collect();
        let run = |index: &str| {
            let mut shell = Command::new("sh");
            shell.args(["-c", &script.join("\n")]).env("JOB_COMPLETION_INDEX", index);
            let child = shell.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let id = child.id().to_string();
            (id, child.wait_with_output().unwrap())
        };
        // In the shell's own process, so that it is the one that is asked to stop.
        let (id, output) = run("2");
        let words = format!("{id} {}\n", all[2].command[1..].join(" "));
        assert_eq!((output.status.code(), String::from_utf8(output.stdout).unwrap()), (Some(7), words));
        let (_, output) = run("4");
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "there is no job 4\n");
    }

    #[test]
    fn what_pods_would_not_see_is_refused() {
        let root = workspace();
        let (place, plan) = of_workspace(root.path(), Path::new("/elsewhere"));
        let error = kubernetes(&place, &plan, &jobs(&place, &plan).unwrap()).unwrap_err();
        assert!(error.is::<Usage>());
        assert!(error.to_string().starts_with("--results /elsewhere: pods see "), "{error}");
    }

    #[test]
    fn a_job_of_slurm_is_queued_again_when_its_time_is_up_and_only_then() {
        assert_eq!(ran(None, 0), (Some(0), String::new()));
        assert_eq!(ran(None, 1), (Some(1), String::new()));
        assert_eq!(ran(Some("-USR1"), 138), (Some(138), "requeue 77_1\n".to_owned()));
        assert_eq!(ran(Some("-TERM"), 143), (Some(143), String::new()));
    }
}
