//! The recipes of a preset: which there are, which are chosen, and how long they take.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use run_record::{Recipe, duration};

use crate::process::Usage;

/// A recipe and the name of its file.
pub(crate) struct Named {
    pub(crate) stem: String,
    pub(crate) recipe: Recipe,
}

impl Named {
    pub(crate) fn model(&self) -> &str {
        &self.recipe.model.name
    }
}

/// How much is ahead when each recipe is trained with so many seeds. How long that takes is known for the processor only.
pub(crate) fn forecast(recipes: &[Named], seeds: usize, on_cuda: bool) -> String {
    let mut datasets: Vec<&str> = recipes.iter().map(|named| named.recipe.dataset.as_str()).collect();
    datasets.sort_unstable();
    datasets.dedup();
    let minutes = |named: &Named| named.recipe.estimate.as_ref().and_then(|estimate| estimate.cpu_minutes);
    let time = match recipes.iter().map(minutes).sum::<Option<f64>>() {
        _ if on_cuda => String::new(),
        Some(minutes) => {
            format!(", about {} of training on two CPU cores", duration(minutes * 60.0 * seeds as f64))
        }
        None => ", no estimate of the time".to_owned(),
    };
    let plural = if recipes.len() == 1 { "model" } else { "models" };
    let times = if seeds == 1 { String::new() } else { format!(" × {seeds} seeds") };
    format!("{} {plural}{times} on {}{time}", recipes.len(), datasets.join(" and "))
}

/// The recipes of a preset, sorted by file name. One that is named after another of them (`gcvit_flowers` beside `gcvit`) is
/// none of the preset's, but for `train --recipe`.
pub(crate) fn recipes_of(root: &Path, preset: &str) -> Result<Vec<Named>> {
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
    let is_after = |file: &str, other: &String| {
        let stem = other.trim_end_matches(".toml");
        file.strip_prefix(stem).is_some_and(|rest| rest.starts_with('_'))
    };
    let own = files.iter().filter(|file| !files.iter().any(|other| is_after(file, other)));
    own.map(|file| read_recipe(&dir.join(file))).collect()
}

/// The recipe in a file.
pub(crate) fn read_recipe(path: &Path) -> Result<Named> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let recipe = Recipe::parse(&text).map_err(|errors| errors.in_file(path))?;
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
pub(crate) fn select(recipes: Vec<Named>, models: &[String]) -> Result<Vec<Named>> {
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
pub(crate) mod tests {
    use super::*;

    const RECIPE: &str = r#"
model = "MODEL"
dataset = "digits"
[data]
image_size = 32
normalize = "unit"
validation.end.count = 100
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

    pub(crate) fn workspace() -> tempfile::TempDir {
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
    fn a_recipe_named_after_another_is_none_of_the_preset() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        assert!(root.join("recipes/finetune/gcvit_flowers.toml").is_file());
        let stems: Vec<String> =
            recipes_of(&root, "finetune").unwrap().into_iter().map(|named| named.stem).collect();
        assert_eq!(stems, ["cct", "convmixer", "gcvit", "patchconvnet", "vit"]);
    }

    #[test]
    fn recipes_are_sorted_selected_by_either_name_and_summed() {
        let root = workspace();
        let recipes = recipes_of(root.path(), "quick").unwrap();
        assert_eq!(recipes.iter().map(|named| named.stem.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(
            forecast(&recipes, 1, false),
            "2 models on digits, about 3 min 00 s of training on two CPU cores"
        );
        assert_eq!(
            forecast(&recipes, 30, false),
            "2 models × 30 seeds on digits, about 1 h 30 min of training on two CPU cores"
        );
        assert_eq!(forecast(&recipes, 2, true), "2 models × 2 seeds on digits");
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
        assert!(error.contains("quick/b.toml: line 9: ") && !error.contains('\n'), "{error}");
        fs::write(&path, RECIPE.replace("epochs = 1", "epochs = 0")).unwrap();
        let error = format!("{:#}", recipes_of(root.path(), "quick").map(|_| ()).unwrap_err());
        assert!(error.contains("quick/b.toml: line 11: train.epochs = 0"), "{error}");
    }
}
