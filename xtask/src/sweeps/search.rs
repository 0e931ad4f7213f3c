//! `search`: better recipes by successive halving, judged by validation images alone.

mod ablate;
mod halving;
mod space;
mod trials;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use run_record::{Recipe, STATUS_COMPLETE, duration, grouped, visible, write_atomically};
use serde::{Deserialize, Serialize};

use crate::process::{Place, Usage, note, say, show};
use crate::sweeps::presets::{Named, read_recipe};
use crate::sweeps::train_all::{device, prepare};
use crate::table::{markdown, percent};

use ablate::Ablation;
use halving::{Rung, Score, most_epochs, ranked, rungs, survivors};
use space::{Space, values_of, with_values};
use trials::{Ended, Row, TRIALS, Training, Trial, Trials};

/// `cargo xtask search`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Search {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    halving: Halving,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Measure what each ingredient of a recipe is worth: a run without each, and with none of them
    #[command(
        after_help = "Example:\n  cargo xtask search ablate --recipe best.toml --base recipes/reference/cct.toml --epochs 10"
    )]
    Ablate(Ablation),
}

#[derive(Debug, Clone, clap::Args)]
struct Halving {
    /// The recipe to begin with, which is trial 0
    #[arg(long, value_name = "FILE", required = true)]
    recipe: Option<PathBuf>,
    /// What may be changed: keys of a recipe with lists of choices or ranges
    #[arg(long, value_name = "FILE", required = true)]
    space: Option<PathBuf>,
    /// Trials of the first rung, the recipe itself among them
    #[arg(long, default_value_t = 27, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    trials: u32,
    /// Of each rung 1/N of the trials go on, to N times the epochs
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=1000))]
    eta: u32,
    /// Epochs of the first rung; the last one has those of the recipe
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    first_epochs: u32,
    /// Where runs, tables and the recipe that is found go [default: results/searches/<model>--s<seed>]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Check and print the plan and its trials, and stop
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    training: Training,
}

/// The recipe a search ends with.
const BEST: &str = "best.toml";

/// What a search was begun with, besides the recipe and the space.
const SETTINGS: &str = "search.json";

/// The recipe it was begun with.
const BASE: &str = "base.toml";

/// The space it was begun with.
const SPACE: &str = "space.toml";

/// What two searches that are to be one agree in.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    trials: u32,
    eta: u32,
    first_epochs: u32,
    seed: u64,
    precision: Option<String>,
}

pub(crate) fn search(place: &Place, search: &Search) -> Result<u8> {
    match &search.what {
        Some(What::Ablate(ablation)) => ablate::ablate(place, ablation),
        None => halve(place, &search.halving),
    }
}

/// A search before it begins.
struct Plan {
    base: Named,
    space: Space,
    space_text: String,
    rungs: Vec<Rung>,
    /// Each trial at the recipe's own epochs.
    trials: Vec<Recipe>,
}

impl Plan {
    /// Reads and draws, and checks every recipe that could be trained.
    fn new(halving: &Halving) -> Result<Self> {
        let usage = |problem: anyhow::Error| anyhow!(Usage(format!("{problem:#}")));
        // The parser has seen to both, unless there is a subcommand.
        let (Some(recipe), Some(space_file)) = (&halving.recipe, &halving.space) else {
            return Err(usage(anyhow!("search needs --recipe and --space")));
        };
        let base = read_recipe(recipe).map_err(usage)?;
        let full = base.recipe.train.epochs;
        if halving.first_epochs > full {
            return Err(usage(anyhow!(
                "--first-epochs {}: the recipe has {full} epochs",
                halving.first_epochs
            )));
        }
        let in_space = |problem: anyhow::Error| usage(anyhow!("{}: {problem:#}", space_file.display()));
        let space_text = fs::read_to_string(space_file)
            .with_context(|| format!("cannot read {}", space_file.display()))
            .map_err(usage)?;
        let space = Space::parse(&space_text).map_err(in_space)?;
        if let Some(key) =
            space.keys().find(|key| *key == "train.epochs" || *key == "model.name" || *key == "model")
        {
            return Err(in_space(anyhow!(
                "{key} cannot be searched over: trials differ in nothing else that costs time"
            )));
        }
        let rungs = rungs(halving.trials as usize, halving.eta, halving.first_epochs, full);
        let mut trials = vec![base.recipe.lasting(full)];
        for trial in 1..halving.trials as usize {
            let values = space.draw(halving.training.seed, trial);
            let recipe = with_values(&base.recipe, &values)
                .and_then(|recipe| {
                    let fits = |rung: &Rung| recipe.lasting(rung.epochs).validate();
                    rungs.iter().try_for_each(fits).map_err(|errors| anyhow!("{errors}"))?;
                    Ok(recipe.lasting(full))
                })
                .with_context(|| format!("trial {trial}"))
                .map_err(in_space)?;
            trials.push(recipe);
        }
        Ok(Self { base, space, space_text, rungs, trials })
    }

    fn keys(&self) -> impl Iterator<Item = &str> {
        self.space.keys()
    }

    /// The plan in words, one line per rung.
    fn in_words(&self) -> String {
        let is_last = |n: usize| n + 1 == self.rungs.len();
        let line = |(n, rung): (usize, &Rung)| {
            let base = if is_last(n) && n > 0 { ", and the recipe to begin with" } else { "" };
            let trials = if rung.trials == 1 { "trial" } else { "trials" };
            let epochs = if rung.epochs == 1 { "epoch" } else { "epochs" };
            format!("rung {}: {} {trials} of {} {epochs}{base}", n + 1, rung.trials, rung.epochs)
        };
        let lines: Vec<String> = self.rungs.iter().enumerate().map(line).collect();
        let total = grouped(most_epochs(&self.rungs));
        format!("{}\nat most {total} epochs of {} in all", lines.join("\n"), visible(self.base.model()))
    }

    /// The runs of a rung.
    fn runs(&self, n: usize, rung: Rung, trials: &[usize]) -> Result<Vec<Trial>> {
        let run = |trial: &usize| {
            let recipe = self.trials.get(*trial).context("a trial that was not drawn")?.lasting(rung.epochs);
            let mut cells = vec![(n + 1).to_string(), trial.to_string(), rung.epochs.to_string()];
            cells.extend(values_of(&recipe, self.keys())?);
            Ok(Trial { name: format!("rung{}-trial{trial:03}", n + 1), cells, recipe })
        };
        trials.iter().map(run).collect()
    }
}

fn halve(place: &Place, halving: &Halving) -> Result<u8> {
    let plan = Plan::new(halving)?;
    let default = || {
        place.root.join("results/searches").join(format!("{}--s{}", plan.base.model(), halving.training.seed))
    };
    let dir = halving.out.clone().unwrap_or_else(default);
    show(plan.in_words());
    if halving.dry_run {
        let rows = plan.trials.iter().enumerate().map(|(trial, recipe)| {
            let values = values_of(recipe, plan.keys())?;
            Ok(std::iter::once(trial.to_string())
                .chain(values.iter().map(|value| visible(value).into_owned()))
                .collect())
        });
        let rows = rows.collect::<Result<Vec<Vec<String>>>>()?;
        let header = std::iter::once("trial").chain(plan.keys()).collect::<Vec<_>>().join("|");
        show(markdown(&header, 0..1, rows.into_iter()));
        return Ok(0);
    }
    let device = device(place, halving.training.device.as_deref())?;
    let with_data = halving.training.data_dir.is_none();
    let code = prepare(place, std::slice::from_ref(&plan.base), with_data)?;
    if code != 0 {
        return Ok(code);
    }
    let columns = ["rung", "trial", "epochs"].into_iter().chain(plan.keys()).map(str::to_owned).collect();
    let mut trials = Trials::open(place, &halving.training, dir.clone(), columns, device)?;
    begin(&dir, &plan, halving)?;
    note(format!("runs and tables go to {}", dir.display()));

    let mut going: Vec<usize> = (0..plan.trials.len()).collect();
    for (n, rung) in plan.rungs.iter().enumerate() {
        let runs = plan.runs(n, *rung, &going)?;
        let rows = match trials.run_all(&format!("rung {} of {}", n + 1, plan.rungs.len()), &runs)? {
            Ended::Done(rows) => rows,
            Ended::Stopped(code) => return Ok(code),
        };
        if n == 0 && rows.first().is_some_and(|row| row.state != STATUS_COMPLETE) {
            bail!(
                "the recipe to begin with cannot be trained: {}",
                rows.first().map_or("", |row| &row.state)
            );
        }
        match plan.rungs.get(n + 1) {
            Some(next) => going = survivors(scores(&going, &rows), *next, n + 2 == plan.rungs.len()),
            None => return end(&dir, &plan, &going, &runs, &rows),
        }
    }
    bail!("a search without a rung")
}

/// The scores of the trials that ended well.
fn scores(trials: &[usize], rows: &[Row]) -> Vec<Score> {
    let score = |(trial, row): (&usize, &Row)| {
        Some(Score { trial: *trial, val_top1: row.val_top1?, val_loss: row.val_loss? })
    };
    trials.iter().zip(rows).filter_map(score).collect()
}

/// Writes down what the search begins with, or checks that it is what was begun.
fn begin(dir: &Path, plan: &Plan, halving: &Halving) -> Result<()> {
    let settings = Settings {
        trials: halving.trials,
        eta: halving.eta,
        first_epochs: halving.first_epochs,
        seed: halving.training.seed,
        precision: halving.training.precision.clone(),
    };
    let path = dir.join(SETTINGS);
    if !path.exists() {
        let base = plan.base.recipe.to_toml().map_err(|problem| anyhow!(problem))?;
        write(&dir.join(BASE), &base)?;
        write(&dir.join(SPACE), &plan.space_text)?;
        return write(&path, &serde_json::to_string_pretty(&settings)?);
    }
    let read = |name: &str| {
        fs::read_to_string(dir.join(name))
            .with_context(|| format!("cannot read {}", dir.join(name).display()))
    };
    let differs = |what: &str| {
        Usage(format!("{} holds a search with {what}; --out names another directory", dir.display()))
    };
    let earlier: Settings =
        serde_json::from_str(&read(SETTINGS)?).with_context(|| path.display().to_string())?;
    if earlier != settings {
        let told = serde_json::to_string(&earlier)?;
        return Err(differs(&format!("other settings ({told})")).into());
    }
    let base = Recipe::parse(&read(BASE)?).map_err(|errors| errors.in_file(&dir.join(BASE)))?;
    let differences = base.differences(&plan.base.recipe).map_err(|problem| anyhow!(problem))?;
    if let Some(first) = differences.first() {
        return Err(differs(&format!("another recipe ({} differs)", first.key)).into());
    }
    if Space::parse(&read(SPACE)?)? != plan.space {
        return Err(differs("another space").into());
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    write_atomically(path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes the winner's recipe and shows how the last rung ended.
fn end(dir: &Path, plan: &Plan, trials: &[usize], runs: &[Trial], rows: &[Row]) -> Result<u8> {
    let scores = scores(trials, rows);
    let ranking = ranked(scores.clone());
    let Some(winner) = ranking.first() else {
        bail!("every run of the last rung failed; {} says why", dir.join(TRIALS).display());
    };
    let best = dir.join(BEST);
    let recipe = plan.trials.get(winner.trial).context("a trial that was not drawn")?;
    // What is drawn while it trains is no part of a trial, and is wanted again.
    let recipe = Recipe { explain: plan.base.recipe.explain.clone(), ..recipe.clone() };
    write(&best, &recipe.to_toml().map_err(|problem| anyhow!(problem))?)?;

    // Those that failed come last.
    let place = |trial: usize| ranking.iter().position(|score| score.trial == trial).unwrap_or(usize::MAX);
    let mut order: Vec<_> = trials.iter().zip(runs.iter().zip(rows)).collect();
    order.sort_by_key(|(trial, _)| place(**trial));
    let cells = |(_, (trial, row)): (&usize, (&Trial, &Row))| {
        let shown = trial.cells.iter().skip(1).map(|cell| visible(cell).into_owned());
        let loss = row.val_loss.map_or_else(String::new, |loss| format!("{loss:.4}"));
        let time = row.train_seconds.map_or_else(String::new, duration);
        shown.chain([percent(row.val_top1), loss, time, visible(&row.state).into_owned()]).collect()
    };
    let header =
        ["trial", "epochs"].into_iter().chain(plan.keys()).chain(["val top-1", "val loss", "time", "status"]);
    let header = header.collect::<Vec<_>>().join("|");
    show(markdown(&header, 0..2, order.into_iter().map(cells)));
    let base = scores.iter().find(|score| score.trial == 0);
    let base = base.map_or("failed".to_owned(), |base| percent(Some(base.val_top1)));
    let told = percent(Some(winner.val_top1));
    say(match winner.trial {
        0 => format!(
            "no trial is better than the recipe to begin with (validation top-1 {told}), which is {}",
            best.display()
        ),
        trial => format!(
            "trial {trial} is best: validation top-1 {told}, the recipe to begin with {base}; written to {}",
            best.display()
        ),
    });
    say("the best of several validation numbers promises too much; what it is worth says a test:");
    say(format!("  cargo xtask train --recipe {}", best.display()));
    Ok(0)
}
