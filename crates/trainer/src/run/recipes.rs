//! Finding a recipe, changing it from the command line, and saying what is wrong with it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

use run_record::{Difference, FieldValue, Recipe, RecipeErrors, literal, remove_key, set_key, sha256};
use serde::Deserialize;
use toml::{Table, Value};

use crate::Error;
use crate::network::registry;

/// The preset of a run that follows no preset.
const CUSTOM: &str = "custom";

/// A recipe ready to run, with the label it goes by.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The recipe, overrides applied and ranges checked.
    pub recipe: Recipe,
    /// The preset it came from, or `custom`.
    pub preset: String,
}

/// The workspace: the directory with `recipes/` and the digits, looked for from the current
/// directory upwards, then from the program's own.
///
/// # Errors
/// Where it was looked for.
pub fn workspace_root() -> Result<PathBuf, Error> {
    let starts = [std::env::current_dir().ok(), std::env::current_exe().ok()];
    let is_root = |dir: &&Path| dir.join("recipes").is_dir() && dir.join("datasets/digits").is_dir();
    for start in starts.iter().flatten() {
        if let Some(root) = start.ancestors().find(is_root) {
            return Ok(root.to_owned());
        }
    }
    let looked: Vec<String> = starts.iter().flatten().map(|p| p.display().to_string()).collect();
    Err(Error::Usage(format!(
        "no directory with recipes/ and datasets/digits above {}; run inside the workspace",
        looked.join(" or ")
    )))
}

/// The recipe of a preset for the family of `model`, with `model` as its network.
///
/// # Errors
/// An unknown preset or model, a family the preset has no recipe for, or a recipe that is wrong.
pub fn from_preset(root: &Path, preset: &str, model: &str, sets: &[String]) -> Result<Resolved, Error> {
    let directory = root.join("recipes").join(preset);
    if !directory.is_dir() || preset.contains(['/', '\\']) {
        let known = presets(root)?;
        return Err(Error::Usage(format!("there is no preset {preset:?}; there are {}", known.join(", "))));
    }
    let family = registry::find(model)?.facts.family;
    let file = directory.join(family).with_extension("toml");
    if !file.is_file() {
        return Err(Error::Usage(format!(
            "preset {preset:?} has no recipe for {family}: {} does not exist",
            file.display()
        )));
    }
    let published = parse(&file)?;
    let mut recipe = change(&published, Some(model), sets)?;
    // A changed run is not the preset's, and the published numbers are of the published network.
    let changed = !sets.is_empty() && published.without_commentary() != recipe.without_commentary();
    if changed || recipe.model != published.model {
        recipe.reference = None;
        recipe.estimate = None;
    }
    let preset = if changed { CUSTOM } else { preset };
    Ok(Resolved { recipe, preset: preset.to_owned() })
}

/// The recipe in a file of the user's, optionally with another network.
///
/// # Errors
/// A file that cannot be read, or a recipe that is wrong.
pub fn from_file(file: &Path, model: Option<&str>, sets: &[String]) -> Result<Resolved, Error> {
    Ok(Resolved { recipe: change(&parse(file)?, model, sets)?, preset: CUSTOM.to_owned() })
}

impl Resolved {
    /// Says that the run is no preset's any more.
    pub fn make_custom(&mut self) {
        self.recipe.reference = None;
        self.preset = CUSTOM.to_owned();
    }
}

/// SHA-256 of what decides the run, as lower-case hexadecimal.
pub fn digest(recipe: &Recipe) -> Result<String, Error> {
    Ok(sha256(to_toml(&recipe.without_commentary())?))
}

/// The recipe as TOML.
pub fn to_toml(recipe: &Recipe) -> Result<String, Error> {
    recipe.to_toml().map_err(Error::Usage)
}

/// Every key whose value differs, as `key: old -> new`.
pub fn differences(old: &Recipe, new: &Recipe) -> Result<Vec<String>, Error> {
    let told = |value: Option<Value>| value.map_or("(none)".to_owned(), |value| value.to_string());
    let found = old.differences(new).map_err(Error::Usage)?;
    Ok(found
        .into_iter()
        .map(|Difference { key, old, new }| format!("{key}: {} -> {}", told(old), told(new)))
        .collect())
}

fn presets(root: &Path) -> Result<Vec<String>, Error> {
    let directory = root.join("recipes");
    let mut names: Vec<String> = fs::read_dir(&directory)
        .map_err(Error::io(&directory))?
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names)
}

fn parse(file: &Path) -> Result<Recipe, Error> {
    let text = fs::read_to_string(file).map_err(Error::io(file))?;
    Recipe::parse(&text).map_err(|errors| {
        Error::several(errors.in_file(file).0.into_iter().map(|fault| Error::Usage(fault.to_string())))
    })
}

/// The recipe with another network and with values replaced.
fn change(recipe: &Recipe, model: Option<&str>, sets: &[String]) -> Result<Recipe, Error> {
    let mut table = recipe.to_table().map_err(Error::Usage)?;
    if let Some(model) = model {
        set_key(&mut table, "model.name", Value::String(model.to_owned())).map_err(Error::Usage)?;
    }
    let judge = |table: &Table| {
        Recipe::deserialize(Value::Table(table.clone()))
            .map_err(|error| error.to_string().split_whitespace().collect::<Vec<_>>().join(" "))
    };
    let mut changed = table.clone();
    assign(&mut changed, sets)?;
    let recipe = judge(&changed).map_err(|problem| {
        // Names and types are judged together, since some keys go with others only; what is wrong by itself
        // is named by itself.
        let alone = |set: &&String| {
            let mut table = table.clone();
            let one = std::slice::from_ref(*set);
            assign(&mut table, one).is_ok() && judge(&table).is_err_and(|this| this == problem)
        };
        let guilty: Vec<&String> = match sets.iter().find(alone) {
            Some(set) => vec![set],
            None => sets.iter().collect(),
        };
        Error::Usage(blamed(guilty, &problem))
    })?;
    recipe.validate().map_err(|RecipeErrors(faults)| {
        Error::several(faults.into_iter().map(|fault| {
            // What was set may be the value, or the table it is in.
            let within = |key: &str| {
                fault.field.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            let guilty =
                sets.iter().filter(|set| set.split_once('=').is_some_and(|(key, _)| within(key.trim())));
            Error::Usage(blamed(guilty, &fault))
        }))
    })?;
    Ok(recipe)
}

/// A problem with the assignments it comes from; a value of the recipe's own has none.
fn blamed<'a>(sets: impl IntoIterator<Item = &'a String>, problem: &dyn Display) -> String {
    let sets: String = sets.into_iter().map(|set| format!("--set {set}: ")).collect();
    format!("{sets}{problem}")
}

/// Carries out assignments `key=value`.
fn assign(table: &mut Table, sets: &[String]) -> Result<(), Error> {
    let mut parsed = Vec::new();
    for assignment in sets {
        let wrong = |problem: &str| Error::Usage(format!("--set {assignment}: {problem}"));
        let (key, value) = assignment.split_once('=').ok_or_else(|| wrong("expected key=value"))?;
        let key = key.trim();
        if matches!(key, "model" | "model.name") {
            return Err(wrong("the network is chosen with --model"));
        }
        // Nothing is no value: the key, or the whole table, goes away.
        let value = value.trim();
        parsed.push((assignment, key, (!value.is_empty()).then(|| literal(value))));
    }
    // Another schedule has other keys, so it comes first and empty.
    parsed.sort_by_key(|(_, key, _)| *key != "schedule.name");
    for (assignment, key, value) in parsed {
        if key == "schedule.name" {
            table.insert("schedule".to_owned(), Value::Table(Table::new()));
        }
        match value {
            Some(value) => set_key(table, key, value),
            None => remove_key(table, key).map(drop).ok_or_else(|| format!("there is no {key} to take away")),
        }
        .map_err(|problem| Error::Usage(format!("--set {assignment}: {problem}")))?;
    }
    Ok(())
}

/// The model fields that assignments `model.FIELD=VALUE` give.
///
/// # Errors
/// An assignment to anything else.
pub fn model_fields(sets: &[String]) -> Result<BTreeMap<String, FieldValue>, Error> {
    let field = |assignment: &String| {
        let wrong = |problem: &dyn Display| Error::Usage(format!("--set {assignment}: {problem}"));
        let (key, value) = assignment.split_once('=').ok_or_else(|| wrong(&"expected model.FIELD=VALUE"))?;
        let name = key.trim().strip_prefix("model.").filter(|name| *name != "name");
        let name = name.ok_or_else(|| wrong(&"expected model.FIELD=VALUE"))?;
        let value = FieldValue::deserialize(literal(value.trim())).map_err(|error| wrong(&error))?;
        Ok((name.to_owned(), value))
    };
    sets.iter().map(field).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use run_record::{Cutmix, FieldValue, HeldOut, Mixup, Schedule, Validation};

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    fn reference(sets: &[&str]) -> Result<Recipe, Error> {
        let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
        from_preset(&root(), "reference", "convmixer_reference", &sets).map(|resolved| resolved.recipe)
    }

    #[test]
    fn every_committed_recipe_is_valid_and_names_a_model_of_its_family() {
        for preset in presets(&root()).unwrap() {
            let mut families = Vec::new();
            for entry in fs::read_dir(root().join("recipes").join(&preset)).unwrap() {
                let path = entry.unwrap().path();
                let recipe = from_file(&path, None, &[]).unwrap().recipe;
                let network = crate::network::build::architecture(&recipe, None).unwrap();
                // Others of a family, which are used by --recipe, are named after it too.
                let stem = path.file_stem().unwrap().to_str().unwrap();
                let (name, other) = stem.split_once('_').map_or((stem, false), |(family, _)| (family, true));
                assert_eq!(name, network.facts.family, "{}", path.display());
                if !other {
                    families.push(network.facts.family);
                }
            }
            families.sort_unstable();
            let mut all: Vec<&str> = registry::FAMILIES.iter().map(|family| family.name()).collect();
            all.sort_unstable();
            assert_eq!(families, all, "{preset}");
        }
    }

    #[test]
    fn overrides_reach_every_level() {
        let recipe =
            reference(&["train.epochs=2", "model.embed_dim = 64", "optimizer.lr=1", "dataset=digits"])
                .unwrap();
        assert_eq!(recipe.train.epochs, 2);
        assert_eq!(recipe.model.fields["embed_dim"], FieldValue::Integer(64));
        assert_eq!(recipe.model.name, "convmixer_reference");
        assert_eq!(recipe.optimizer.lr, 1.0);
        // Another schedule, in any order, and back.
        let cosine = Schedule::WarmupCosine { warmup: 0.1, tutorial_steps: false };
        for sets in [
            ["schedule.name=warmup_cosine", "schedule.warmup=0.1"],
            ["schedule.warmup=0.1", "schedule.name=warmup_cosine"],
        ] {
            assert_eq!(reference(&sets).unwrap().schedule, cosine);
        }
        let patchconvnet = from_preset(
            &root(),
            "reference",
            "patchconvnet_reference",
            &["schedule.name=constant".to_owned()],
        );
        assert_eq!(patchconvnet.unwrap().recipe.schedule, Schedule::Constant {});
        assert_eq!(recipe.dataset, run_record::DatasetName::Digits);
    }

    #[test]
    fn mistakes_are_usage_errors_on_one_line_that_name_the_key() {
        for (set, words) in [
            ("train.epoch=2", "unknown field `epoch`"),
            ("train.epochs=0", "--set train.epochs=0: train.epochs = 0: 1 to 100000"),
            ("model=vit", "the network is chosen with --model"),
            ("=3", "unknown field ``"),
            ("train.epochs=many", "invalid type: string \"many\""),
            ("epochs", "expected key=value"),
            ("dataset.name=digits", "dataset is a single value"),
        ] {
            let error = reference(&[set]).unwrap_err();
            let message = error.to_string();
            assert!(message.contains(words) && !message.contains('\n'), "{set}: {message}");
            assert_eq!(error.exit_code(), 2);
        }
        let both = reference(&["train.epochs=3", "augment.flips=true"]).unwrap_err().to_string();
        assert!(both.starts_with("--set augment.flips=true: unknown field `flips`"), "{both}");
        let preset = from_preset(&root(), "quik", "convmixer_reference", &[]).unwrap_err().to_string();
        assert!(preset.contains("there are best, finetune, folder, quick, reference"), "{preset}");
    }

    #[test]
    fn a_key_without_value_is_taken_away() {
        let recipe = reference(&["data.validation.start=", "data.validation.end.fraction=0.25"]).unwrap();
        assert_eq!(recipe.data.validation, Validation::End(HeldOut::Fraction(0.25)));
        for set in ["augment.zoom=", "nowhere.at.all=", "train.epochs.x="] {
            let message = reference(&[set]).unwrap_err().to_string();
            assert!(message.starts_with(&format!("--set {set}: there is no ")), "{message}");
        }
        assert!(reference(&["train.epochs="]).unwrap_err().to_string().contains("missing field `epochs`"));
    }

    #[test]
    fn tables_are_made_changed_and_taken_away() {
        let mixup = reference(&["augment.mixup.alpha=0.2"]).unwrap();
        assert_eq!(mixup.augment.mixup, Some(Mixup { alpha: 0.2 }));
        let both = reference(&["augment.mixup={ alpha = 0.2 }", "augment.cutmix.minmax=[0.2, 0.8]"]).unwrap();
        assert_eq!(
            (both.augment.mixup, both.augment.cutmix),
            (mixup.augment.mixup, Some(Cutmix::Minmax([0.2, 0.8])))
        );
        let changed = |sets: &[&str]| {
            let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
            change(&both, None, &sets).map(|recipe| recipe.augment)
        };
        let augment = changed(&["augment.mixup.alpha=1", "augment.cutmix="]).unwrap();
        assert_eq!((augment.mixup, augment.cutmix), (Some(Mixup { alpha: 1.0 }), None));
        assert_eq!(changed(&["augment.mixup=", "augment.cutmix="]).unwrap(), reference(&[]).unwrap().augment);
        for (set, words) in [
            ("augment.erasing.prob=0.5", "--set augment.erasing.prob=0.5: missing field `mode`"),
            ("augment.cutmix.alpha=1", "--set augment.cutmix.alpha=1: "),
            (
                "augment.mixup={ alpha = 0 }",
                "--set augment.mixup={ alpha = 0 }: augment.mixup.alpha = 0: 0.001 to 1000",
            ),
            ("augment.mixup.beta=1", "--set augment.mixup.beta=1: unknown field `beta`"),
            (
                "augment.policy.name=foo",
                "--set augment.policy.name=foo: augmentation policy \"foo\": \"foo\" is not known",
            ),
        ] {
            let message = changed(&[set]).unwrap_err().to_string();
            assert!(message.starts_with(words), "{message}");
        }
    }

    #[test]
    fn a_wrong_file_is_named_with_every_line_that_is_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("own.toml");
        let text = to_toml(&reference(&[]).unwrap()).unwrap();
        fs::write(&path, text.replace("epochs = 10", "epochs = 0").replace("hflip = 0.5", "hflip = 7"))
            .unwrap();
        let error = from_file(&path, None, &[]).unwrap_err();
        let lines = error.to_string();
        let lines: Vec<&str> = lines.lines().collect();
        assert_eq!((lines.len(), error.exit_code()), (2, 2));
        for (line, words) in
            lines.iter().zip(["augment.hflip = 7: a probability", "train.epochs = 0: 1 to 100000"])
        {
            assert!(
                line.starts_with(&format!("{}: line ", path.display())) && line.contains(words),
                "{line}"
            );
        }
    }

    #[test]
    fn a_changed_recipe_is_not_called_the_presets() {
        let resolve = |model: &str, sets: &[&str]| {
            let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
            let resolved = from_preset(&root(), "reference", model, &sets).unwrap();
            (resolved.preset, resolved.recipe.reference.is_some())
        };
        assert_eq!(resolve("convmixer_reference", &[]), ("reference".to_owned(), true));
        assert_eq!(resolve("convmixer_reference", &["train.epochs=10"]), ("reference".to_owned(), true));
        assert_eq!(resolve("convmixer_reference", &["train.epochs=9"]), ("custom".to_owned(), false));
        assert_eq!(resolve("convmixer_256_8_k5_p1", &[]), ("reference".to_owned(), false));
    }

    #[test]
    fn the_digest_follows_the_run_and_not_the_commentary() {
        let recipe = reference(&[]).unwrap();
        let mut commented = recipe.clone();
        commented.estimate = None;
        assert_eq!(digest(&recipe).unwrap(), digest(&commented).unwrap());
        let changed = reference(&["train.epochs=2"]).unwrap();
        assert_ne!(digest(&recipe).unwrap(), digest(&changed).unwrap());
        assert_eq!(differences(&recipe, &changed).unwrap(), ["train.epochs: 10 -> 2"]);
    }
}
