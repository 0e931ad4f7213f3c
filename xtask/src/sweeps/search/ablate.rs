//! `search ablate`: what each ingredient of a recipe is worth, by taking it away.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use run_record::{Recipe, duration, remove_key, set_key, value_of, visible, write_atomically};

use crate::process::{Place, Usage, note, say, show};
use crate::sweeps::presets::read_recipe;
use crate::sweeps::search::space::parse;
use crate::sweeps::search::trials::{Ended, Row, Training, Trial, Trials};
use crate::sweeps::train_all::{device, prepare};
use crate::table::{markdown, percent, points};

/// `cargo xtask search ablate`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Ablation {
    /// The recipe whose ingredients are taken away
    #[arg(long, value_name = "FILE")]
    recipe: PathBuf,
    /// The recipe without them; it names the same network and data set
    #[arg(long, value_name = "FILE")]
    base: PathBuf,
    /// Epochs of each run [default: those of --recipe]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    epochs: Option<u32>,
    /// Where runs and tables go [default: results/ablations/<model>--s<seed>]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the ingredients, and stop
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    training: Training,
}

/// What is replaced together: tables whose keys make sense only with each other.
const TOGETHER: [(&str, &[&str]); 6] = [
    ("optimizer", &["optimizer"]),
    ("schedule", &["schedule"]),
    ("crop", &["augment.padding", "augment.resized_crop", "augment.enlarged_crop"]),
    ("mixing", &["augment.mixup", "augment.cutmix", "augment.mix"]),
    ("ema", &["ema"]),
    ("validation", &["data.validation"]),
];

/// A part of a recipe, and the keys it is made of.
#[derive(Debug, PartialEq)]
struct Ingredient {
    name: String,
    keys: Vec<String>,
}

pub(crate) fn ablate(place: &Place, ablation: &Ablation) -> Result<u8> {
    let usage = |problem: anyhow::Error| anyhow!(Usage(format!("{problem:#}")));
    let (whole, base) =
        (read_recipe(&ablation.recipe).map_err(usage)?, read_recipe(&ablation.base).map_err(usage)?);
    if whole.model() != base.model() || whole.recipe.dataset != base.recipe.dataset {
        return Err(Usage("--recipe and --base name different networks or data sets".to_owned()).into());
    }
    let epochs = ablation.epochs.unwrap_or(whole.recipe.train.epochs);
    let (full, bare) = (whole.recipe.lasting(epochs), base.recipe.lasting(epochs));
    let found = ingredients(&full, &bare)?;
    if found.is_empty() {
        return Err(Usage("the two recipes do not differ: there is nothing to take away".to_owned()).into());
    }
    let mut trials =
        vec![Trial { name: "all".to_owned(), cells: vec!["–".to_owned()], recipe: full.clone() }];
    for ingredient in &found {
        let recipe =
            without(&full, &bare, ingredient).with_context(|| format!("without {}", ingredient.name));
        let cells = vec![ingredient.name.clone()];
        trials.push(Trial {
            name: format!("without-{}", ingredient.name),
            cells,
            recipe: recipe.map_err(usage)?,
        });
    }
    trials.push(Trial { name: "none".to_owned(), cells: vec!["all of them".to_owned()], recipe: bare });
    say(format!("{} runs of {epochs} epochs; the ingredients are", trials.len()));
    for Ingredient { name, keys } in &found {
        say(format!("  {name}: {}", keys.join(", ")));
    }
    if ablation.dry_run {
        return Ok(0);
    }
    let default = || {
        place.root.join("results/ablations").join(format!("{}--s{}", whole.model(), ablation.training.seed))
    };
    let dir = ablation.out.clone().unwrap_or_else(default);
    let device = device(place, ablation.training.device.as_deref())?;
    let code = prepare(place, std::slice::from_ref(&whole), ablation.training.data_dir.is_none())?;
    if code != 0 {
        return Ok(code);
    }
    let columns = vec!["without".to_owned()];
    let mut runs = Trials::open(place, &ablation.training, dir.clone(), columns, device)?;
    runs.check_recipes(&trials)?;
    match runs.run_all("ablation", &trials)? {
        Ended::Stopped(code) => Ok(code),
        Ended::Done(rows) => {
            let table = table(&trials, &rows);
            let path = dir.join("ablation.md");
            write_atomically(&path, format!("{table}\n").as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
            show(table);
            note(format!("written to {}", path.display()));
            Ok(u8::from(rows.iter().any(|row| row.val_top1.is_none())))
        }
    }
}

/// The ingredients in which two recipes differ, in alphabetical order. Epochs are no ingredient.
fn ingredients(full: &Recipe, bare: &Recipe) -> Result<Vec<Ingredient>> {
    let mut found: Vec<Ingredient> = Vec::new();
    for difference in full.differences(bare).map_err(|problem| anyhow!(problem))? {
        let is_in = |table: &str| {
            difference.key.strip_prefix(table).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let together = TOGETHER.iter().find(|(_, tables)| tables.iter().any(|table| is_in(table)));
        let ingredient = match together {
            Some((name, tables)) => Ingredient {
                name: (*name).to_owned(),
                keys: tables.iter().map(|table| (*table).to_owned()).collect(),
            },
            None => {
                // A table within [augment] or [data] is one thing.
                let key: Vec<&str> = difference.key.splitn(3, '.').take(2).collect();
                Ingredient { name: key.join("."), keys: vec![key.join(".")] }
            }
        };
        if !found.contains(&ingredient) {
            found.push(ingredient);
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The recipe with an ingredient as the other has it, or not at all where that has none.
fn without(full: &Recipe, bare: &Recipe, ingredient: &Ingredient) -> Result<Recipe> {
    let tables = |recipe: &Recipe| recipe.to_table().map_err(|problem| anyhow!(problem));
    let (mut table, other) = (tables(full)?, tables(bare)?);
    for key in &ingredient.keys {
        match value_of(&other, key) {
            Some(value) => set_key(&mut table, key, value.clone()).map_err(|problem| anyhow!(problem))?,
            None => drop(remove_key(&mut table, key)),
        }
    }
    parse(&table)
}

fn table(trials: &[Trial], rows: &[Row]) -> comfy_table::Table {
    let whole = rows.first().and_then(|row| row.val_top1);
    let cells = |(trial, row): (&Trial, &Row)| {
        let is_whole = trial.name == "all";
        let difference = row.val_top1.zip(whole).map(|(top1, whole)| top1 - whole).filter(|_| !is_whole);
        vec![
            visible(&trial.cells.join(" ")).into_owned(),
            percent(row.val_top1),
            points(difference),
            row.val_loss.map_or_else(String::new, |loss| format!("{loss:.4}")),
            row.train_seconds.map_or_else(String::new, duration),
            visible(&row.state).into_owned(),
        ]
    };
    let header = "without|val top-1|delta|val loss|time|status";
    markdown(header, 1..5, trials.iter().zip(rows).map(cells))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipes() -> (Recipe, Recipe) {
        let base = Recipe::parse(include_str!("../../../../recipes/reference/cct.toml")).unwrap();
        let mut table = base.to_table().unwrap();
        for (key, value) in [
            ("augment.mixup", "{ alpha = 0.8 }"),
            ("augment.cutmix", "{ alpha = 1.0 }"),
            ("augment.mix", "{ prob = 1.0, switch_prob = 0.5, mode = \"batch\" }"),
            ("augment.padding", "4"),
            ("train.label_smoothing", "0.2"),
            ("optimizer.lr", "2e-3"),
            ("optimizer.weight_decay", "0.05"),
            ("schedule", "{ name = \"warmup_cosine\", warmup = 0.1 }"),
            ("model.attn_drop", "0.0"),
            ("ema", "{ decay = 0.99, warmup = true }"),
        ] {
            set_key(&mut table, key, run_record::literal(value)).unwrap();
        }
        (parse(&table).unwrap(), base)
    }

    #[test]
    fn related_keys_are_one_ingredient_and_all_of_them_make_the_base() {
        let (full, base) = recipes();
        let found = ingredients(&full, &base).unwrap();
        let names: Vec<&str> = found.iter().map(|ingredient| ingredient.name.as_str()).collect();
        assert_eq!(
            names,
            ["crop", "ema", "mixing", "model.attn_drop", "optimizer", "schedule", "train.label_smoothing"]
        );
        let mut left = full.clone();
        for (taken, ingredient) in found.iter().enumerate() {
            // By itself it takes only its own keys away.
            let alone = without(&full, &base, ingredient).unwrap();
            assert_eq!(ingredients(&alone, &base).unwrap().len(), found.len() - 1, "{ingredient:?}");
            assert_eq!(
                ingredients(&full, &alone).unwrap(),
                [found
                    .get(taken)
                    .map(|i| Ingredient { name: i.name.clone(), keys: i.keys.clone() })
                    .unwrap()]
            );
            left = without(&left, &base, ingredient).unwrap();
        }
        assert_eq!(left.differences(&base).unwrap(), []);
    }
}
