//! `train-all`: one training run per recipe of a preset, then the table.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use run_record::{DatasetName, Recipe, STATUS_COMPLETE, STATUS_RUNNING, duration, write_atomically};

use crate::datasets::{self, CIFAR10, CIFAR100, Source};
use crate::libtorch::{self, FlavorChoice};
use crate::process::{Place, Usage, build_trainer, cannot_start, ending, exit_code, note, say};
use crate::report::{self, read_record};

/// What 128 + SIGINT is to a shell.
const INTERRUPTED: u8 = 130;

/// `cargo xtask train-all`.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Sweep {
    /// A directory of recipes/ [default: reference where a CUDA device is usable, else quick]
    #[arg(long)]
    pub(crate) preset: Option<String>,
    /// Only these models, by model or recipe name, separated by commas
    #[arg(long, value_delimiter = ',')]
    pub(crate) models: Vec<String>,
    /// Where the data set is, if not in datasets/
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Seed of every random draw
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// auto, cpu or cuda:N, passed to the trainer
    #[arg(long)]
    pub(crate) device: Option<String>,
    /// Train again what is finished, from the start
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Where runs and tables go [default: results/ in the workspace]
    #[arg(long, value_name = "DIR")]
    pub(crate) results: Option<PathBuf>,
}

/// A recipe and the name of its file.
struct Named {
    stem: String,
    recipe: Recipe,
}

pub(crate) fn train_all(place: &Place, sweep: &Sweep) -> Result<u8> {
    let start = Instant::now();
    let on_cpu = sweep.device.as_deref() == Some("cpu");
    let chosen_for_cuda = sweep.preset.is_none() && !on_cpu && libtorch::cuda_expected(place);
    let (preset, why) = match &sweep.preset {
        Some(preset) => (preset.as_str(), ""),
        None if chosen_for_cuda => {
            ("reference", " (a CUDA device is there; --preset quick for the short one)")
        }
        None => ("quick", " (for the processor; --preset reference for the published recipes)"),
    };
    // Hours on the processor are not what was forecast: a device that turns out unusable is an error.
    let device = sweep.device.as_deref().or(chosen_for_cuda.then_some("cuda:0"));
    let recipes = select(recipes_of(&place.root, preset)?, &sweep.models)?;
    note(format!("preset {preset}{why}: {}", forecast(&recipes)));

    let there = libtorch::in_use(place).is_ok_and(|tree| tree.is_some());
    let tree = libtorch::ensure(place, FlavorChoice::Auto, None)?;
    if there {
        let (flavor, dir) = (tree.flavor.as_str(), tree.dir.display());
        note(format!("libtorch {} ({flavor}): reused from {dir}", libtorch::VERSION));
    }
    if sweep.data_dir.is_none() {
        fetch_data(place, &recipes)?;
    }
    let code = build_trainer(place)?;
    if code != 0 {
        return Ok(code);
    }

    let results = sweep.results.clone().unwrap_or_else(|| place.root.join("results"));
    fs::create_dir_all(&results).with_context(|| format!("cannot create {}", results.display()))?;
    // A Ctrl-C reaches the trainer as well, which stops; what is done here is not to start the next.
    let interrupt = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGINT, interrupt.clone())
        .context("cannot listen for Ctrl-C")?;
    let mut worst = 0;
    for (index, named) in recipes.iter().enumerate() {
        let model = &named.recipe.model.name;
        note(format!("[{}/{}] {model}", index + 1, recipes.len()));
        let run = results.join("runs").join(format!("{model}--{preset}--s{}", sweep.seed));
        let code = match train(place.trainer_command(), sweep, device, preset, model, &run) {
            Ok(code) => code,
            Err(error) => {
                note(format!("error: {model}: {error:#}"));
                1
            }
        };
        if interrupt.load(Ordering::Relaxed) || code == INTERRUPTED {
            worst = INTERRUPTED;
            note("stopped; the same command goes on from here");
            break;
        }
        worst = worst.max(code);
    }
    let reported = report::report(&results)?;
    say(format!("total time {}, set-up included", duration(start.elapsed().as_secs_f64())));
    Ok(if worst == 0 { reported } else { worst })
}

/// Trains one model and sees to it that its record tells how that ended. Returns 0, 2 for bad
/// usage, 130 after Ctrl-C, 1 for any other failure.
fn train(
    mut command: Command,
    sweep: &Sweep,
    device: Option<&str>,
    preset: &str,
    model: &str,
    run: &Path,
) -> Result<u8> {
    command.args(["train", "--model", model, "--preset", preset, "--seed", &sweep.seed.to_string()]);
    if let Some(dir) = &sweep.data_dir {
        command.arg("--data-dir").arg(dir);
    }
    if let Some(device) = device {
        command.args(["--device", device]);
    }
    if sweep.fresh {
        command.arg("--fresh");
    }
    command.arg("--out").arg(run);
    let status = command.status().with_context(|| cannot_start(&command))?;
    let settled = settle(run, status)?;
    Ok(match exit_code(status) {
        0 if settled.as_deref() == Some(STATUS_COMPLETE) => 0,
        0 => return Err(anyhow!("the trainer ended, but {} records no finished run", run.display())),
        code @ (2 | INTERRUPTED) => code,
        _ => {
            // A trainer that could speak has said what is wrong; one that was killed has not.
            if status.code().is_none() {
                note(format!("error: {model}: the trainer {}", ending(status)));
            }
            1
        }
    })
}

/// Returns the status a run's record ends with. A trainer that was killed could not write how it
/// ended, so that is done here.
fn settle(run: &Path, status: ExitStatus) -> Result<Option<String>> {
    let path = run.join("record.json");
    if !path.exists() {
        return Ok(None);
    }
    let mut record = read_record(&path)?;
    // After a usage error nothing was started: the record is that of an earlier run. And a run that
    // another trainer holds the lock of is that one's to settle.
    let held = File::open(run.join("run.lock")).is_ok_and(|lock| lock.try_lock().is_err());
    if record.result.status == STATUS_RUNNING && !held && !matches!(status.code(), Some(0 | 2)) {
        record.result.status = format!("failed: the trainer {}", ending(status));
        let text = serde_json::to_vec_pretty(&record)?;
        write_atomically(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(Some(record.result.status))
}

/// Fetches the downloaded data sets the recipes name and the workspace lacks.
fn fetch_data(place: &Place, recipes: &[Named]) -> Result<()> {
    for layout in [&CIFAR10, &CIFAR100] {
        let named = recipes.iter().any(|named| match named.recipe.dataset {
            DatasetName::Cifar10 => layout.name == CIFAR10.name,
            DatasetName::Cifar100 | DatasetName::Cifar100Coarse => layout.name == CIFAR100.name,
            DatasetName::Digits | DatasetName::Folder => false,
        });
        if named && layout.link(place).exists() {
            note(format!("{}: reused from {}", layout.name, layout.link(place).display()));
        } else if named {
            datasets::fetch(place, layout, &Source::default())?;
        }
    }
    Ok(())
}

/// How much is ahead.
fn forecast(recipes: &[Named]) -> String {
    let mut datasets: Vec<&str> = recipes.iter().map(|named| named.recipe.dataset.as_str()).collect();
    datasets.sort_unstable();
    datasets.dedup();
    let minutes = |named: &Named| named.recipe.estimate.as_ref().and_then(|estimate| estimate.cpu_minutes);
    let time = match recipes.iter().map(minutes).sum::<Option<f64>>() {
        Some(minutes) => format!("about {} of training on two CPU cores", duration(minutes * 60.0)),
        None => "no estimate of the time".to_owned(),
    };
    let plural = if recipes.len() == 1 { "model" } else { "models" };
    format!("{} {plural} on {}, {time}", recipes.len(), datasets.join(" and "))
}

/// The recipes of a preset, sorted by file name.
fn recipes_of(root: &Path, preset: &str) -> Result<Vec<Named>> {
    let all = root.join("recipes");
    let dir = all.join(preset);
    let is_plain = Path::new(preset).file_name().is_some_and(|name| name == preset);
    if !is_plain || !dir.is_dir() {
        let known = names_in(&all, |path| path.is_dir())?.join(", ");
        return Err(Usage(format!("--preset {preset} is unknown; recipes/ has: {known}")).into());
    }
    let files = names_in(&dir, |path| path.extension().is_some_and(|extension| extension == "toml"))?;
    if files.is_empty() {
        return Err(anyhow!("{} holds no recipe", dir.display()));
    }
    files.iter().map(|file| read_recipe(&dir.join(file))).collect()
}

fn read_recipe(path: &Path) -> Result<Named> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let recipe = Recipe::parse(&text).map_err(|problem| anyhow!("{}: {problem}", path.display()))?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Named { stem, recipe })
}

/// Sorted names of what `keep` admits in a directory.
fn names_in(dir: &Path, keep: impl Fn(&Path) -> bool) -> Result<Vec<String>> {
    let listing = || format!("cannot list {}", dir.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).with_context(listing)? {
        let entry = entry.with_context(listing)?;
        if keep(&entry.path()) {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The recipes whose model or file has one of the names; all of them for no names.
fn select(recipes: Vec<Named>, models: &[String]) -> Result<Vec<Named>> {
    let matches = |named: &Named, model: &str| named.stem == model || named.recipe.model.name == model;
    if let Some(unknown) = models.iter().find(|model| !recipes.iter().any(|named| matches(named, model))) {
        let known: Vec<&str> = recipes.iter().map(|named| named.recipe.model.name.as_str()).collect();
        return Err(Usage(format!(
            "--models {unknown}: the preset has no such model, but {}",
            known.join(", ")
        ))
        .into());
    }
    let chosen = |named: &Named| models.is_empty() || models.iter().any(|model| matches(named, model));
    Ok(recipes.into_iter().filter(chosen).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{record, write_record};
    use std::os::unix::fs::PermissionsExt;

    const RECIPE: &str = r#"
model = "MODEL"
dataset = "digits"
[data]
image_size = 32
normalize = "unit"
validation_from = "end"
validation_count = 100
[augment]
hflip = 0.0
[train]
epochs = 1
batch_size = 64
label_smoothing = 0.0
select = "best"
[optimizer]
name = "adamw"
lr = 1e-3
beta1 = 0.9
beta2 = 0.999
eps = 1e-7
weight_decay = 1e-4
scale_decay_by_lr = false
[schedule]
name = "constant"
[estimate]
cpu_minutes = 1.5
"#;

    fn workspace() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (preset, stem) in [("quick", "b"), ("quick", "a"), ("reference", "a")] {
            let dir = root.path().join("recipes").join(preset);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(format!("{stem}.toml")), RECIPE.replace("MODEL", &format!("{stem}_model")))
                .unwrap();
        }
        root
    }

    #[test]
    fn recipes_are_sorted_selected_by_either_name_and_summed() {
        let root = workspace();
        let recipes = recipes_of(root.path(), "quick").unwrap();
        assert_eq!(recipes.iter().map(|named| named.stem.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(forecast(&recipes), "2 models on digits, about 3 min 00 s of training on two CPU cores");
        let chosen = select(recipes, &["b".into(), "a_model".into()]).unwrap();
        assert_eq!(chosen.len(), 2);
        let chosen = select(chosen, &["b_model".into()]).unwrap();
        assert_eq!(chosen[0].stem, "b");
    }

    #[test]
    fn unknown_names_are_usage_errors_that_list_the_known_ones() {
        let root = workspace();
        for preset in ["quik", "../recipes/quick", ""] {
            let error = recipes_of(root.path(), preset).map(|_| ()).unwrap_err();
            assert!(error.is::<Usage>() && error.to_string().contains("quick, reference"), "{error}");
        }
        let recipes = recipes_of(root.path(), "quick").unwrap();
        let error = select(recipes, &["vit".into()]).map(|_| ()).unwrap_err();
        assert!(error.is::<Usage>() && error.to_string().contains("a_model, b_model"), "{error}");
    }

    #[test]
    fn a_bad_recipe_is_named_with_its_line() {
        let root = workspace();
        let path = root.path().join("recipes/quick/b.toml");
        fs::write(&path, RECIPE.replace("hflip = 0.0", "hflip = true")).unwrap();
        let error = format!("{:#}", recipes_of(root.path(), "quick").map(|_| ()).unwrap_err());
        assert!(error.contains("quick/b.toml: line 10: ") && !error.contains('\n'), "{error}");
        fs::write(&path, RECIPE.replace("epochs = 1", "epochs = 0")).unwrap();
        let error = format!("{:#}", recipes_of(root.path(), "quick").map(|_| ()).unwrap_err());
        assert!(error.contains("quick/b.toml: train.epochs = 0"), "{error}");
    }

    /// A script in the trainer's place that leaves `status` in the record and then runs `end`.
    fn trained(status: &str, end: &str) -> (Result<u8>, Option<String>) {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("runs/run");
        if !status.is_empty() {
            write_record(dir.path(), "run", &record("a", "quick", 0, status));
        }
        let trainer = dir.path().join("trainer");
        fs::write(&trainer, format!("#!/bin/sh\n{end}\n")).unwrap();
        fs::set_permissions(&trainer, fs::Permissions::from_mode(0o755)).unwrap();
        let code = train(Command::new(&trainer), &Sweep::default(), None, "quick", "a", &run);
        (code, read_record(&run.join("record.json")).ok().map(|record| record.result.status))
    }

    #[test]
    fn a_killed_trainer_is_recorded_as_failed() {
        let (code, status) = trained(STATUS_RUNNING, "kill -9 $$");
        assert_eq!(code.unwrap(), 1);
        assert_eq!(status.unwrap(), "failed: the trainer was killed by signal 9");
        let (code, status) = trained(STATUS_RUNNING, "exit 3");
        assert_eq!(code.unwrap(), 1);
        assert_eq!(status.unwrap(), "failed: the trainer ended with exit code 3");
        // Not by the signal itself, which a background job may have been started to ignore.
        let (code, status) = trained(STATUS_RUNNING, "exit 130");
        assert_eq!(code.unwrap(), INTERRUPTED);
        assert_eq!(status.unwrap(), "failed: the trainer ended with exit code 130");
    }

    #[test]
    fn a_run_another_trainer_is_busy_with_is_left_to_it() {
        let results = tempfile::tempdir().unwrap();
        write_record(results.path(), "run", &record("a", "quick", 0, STATUS_RUNNING));
        let run = results.path().join("runs/run");
        let lock = File::create(run.join("run.lock")).unwrap();
        lock.lock().unwrap();
        let refused = Command::new("false").status().unwrap();
        assert_eq!(settle(&run, refused).unwrap().as_deref(), Some(STATUS_RUNNING));
        drop(lock);
        assert!(settle(&run, refused).unwrap().is_some_and(|status| status.starts_with("failed: ")));
    }

    #[test]
    fn what_the_trainer_settled_itself_stays() {
        let (code, status) = trained(STATUS_COMPLETE, "exit 0");
        assert_eq!((code.unwrap(), status.as_deref()), (0, Some(STATUS_COMPLETE)));
        let (code, status) = trained("failed: the loss is NaN", "exit 1");
        assert_eq!((code.unwrap(), status.as_deref()), (1, Some("failed: the loss is NaN")));
        // Bad usage starts nothing, so an older record is not judged by it.
        let (code, status) = trained(STATUS_RUNNING, "exit 2");
        assert_eq!((code.unwrap(), status.as_deref()), (2, Some(STATUS_RUNNING)));
        let (code, status) = trained("", "exit 0");
        assert!(code.unwrap_err().to_string().contains("records no finished run") && status.is_none());
    }
}
