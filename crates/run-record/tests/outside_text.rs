//! Recipes and records come from outside: whatever the text, reading it gives a value or an error.

use std::path::Path;

use proptest::prelude::*;
use run_record::{Recipe, RecipeErrors, RunRecord};

const RECORD: &str = r#"{
  "format": 1,
  "result": {
    "model": "convmixer_reference", "family": "convmixer", "preset": "reference", "dataset": "cifar10",
    "image_size": 32, "seed": 0, "epochs": 10, "batch_size": 128, "params": 594186, "macs": 148113920,
    "best_epoch": 8, "val_top1": 0.8352, "test_top1": 0.8271, "test_top5": null, "test_loss": 0.5329,
    "reference_top1": 0.8271, "reference_top5": null, "delta_top1": 0.0, "train_seconds": 12.5,
    "images_per_second": 60.0, "peak_memory_mb": null, "device": "cpu", "precision": "f32", "threads": 2,
    "libtorch": "2.11.0", "data_sha256": "aa", "recipe_sha256": "bb", "git_commit": "",
    "started_at": "2026-01-01T00:00:00Z", "status": "complete"
  },
  "weights_sha256": null, "command": ["train"], "trainer_version": "0.1.0", "cpu": "some"
}"#;

/// Every optional table that can stand beside the others.
const TABLES: &str = r#"
[train.bce]
sum = true
target_thresh = 0.2
[data.resize]
interpolation = "bicubic"
crop_pct = 0.875
[augment.resized_crop]
scale = [0.8, 1.0]
ratio = [0.75, 1.3333]
interpolation = "random"
[augment.policy]
name = "rand-m9-mstd0.5-inc1"
first = true
[augment.color_jitter]
brightness = 0.4
contrast = 0.4
saturation = 0.4
hue = 0.1
[augment.erasing]
prob = 0.25
mode = "pixel"
count = 1
[augment.mixup]
alpha = 0.8
[augment.cutmix]
minmax = [0.2, 0.8]
[augment.mix]
prob = 1.0
switch_prob = 0.5
mode = "batch"
off_epoch = 175
[ema]
decay = 0.9999
warmup = true
[rollback]
times = 3
lr_factor = 0.5
"#;

/// The recipes that come with the project, and one with every table.
fn recipes() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    let mut recipes = Vec::new();
    for preset in ["quick", "reference", "folder"] {
        for family in ["cct", "convmixer", "gcvit", "patchconvnet", "vit"] {
            let file = root.join(preset).join(family).with_extension("toml");
            recipes
                .push(std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display())));
        }
    }
    let weights =
        format!("[initial_weights]\nfile = \"best.safetensors\"\nsha256 = \"{}\"\n", "0a".repeat(32));
    let last = recipes[0].clone() + "\n" + TABLES + &weights;
    recipes.push(last);
    recipes
}

/// Pieces that mean something in TOML or JSON, or nearly do.
const PIECES: [&str; 32] = [
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    "\"",
    "\"\"\"",
    "'",
    "#",
    "\\",
    "\\u0000",
    "\\n",
    "\n",
    "\r",
    "\0",
    ".",
    ",",
    ":",
    "-1",
    "nan",
    "inf",
    "1e999",
    "9223372036854775808",
    "0x_",
    "null",
    "true",
    "1979-05-27",
    "é",
    "name = 1\n",
    "format",
];

/// A change of a text at a place given as a share of its length.
#[derive(Debug, Clone)]
enum Change {
    Insert(String),
    Delete(usize),
    Replace(usize, String),
    Cut,
    Repeat(usize, usize),
}

fn change() -> impl Strategy<Value = (f64, Change)> {
    let piece = prop_oneof![
        3 => prop::sample::select(PIECES.to_vec()).prop_map(str::to_owned),
        1 => "\\PC{0,4}",
        1 => "[0-9]{1,25}",
    ];
    let change = prop_oneof![
        piece.clone().prop_map(Change::Insert),
        (1..20usize).prop_map(Change::Delete),
        (1..20usize, piece).prop_map(|(length, piece)| Change::Replace(length, piece)),
        Just(Change::Cut),
        (1..60usize, 1..4usize).prop_map(|(length, times)| Change::Repeat(length, times)),
    ];
    (0.0..1.0, change)
}

fn changed(text: &str, changes: &[(f64, Change)]) -> String {
    let mut text: Vec<char> = text.chars().collect();
    for (share, change) in changes {
        let start = (share * text.len() as f64) as usize;
        let end = |length: usize| (start + length).min(text.len());
        match change {
            Change::Insert(piece) => drop(text.splice(start..start, piece.chars())),
            Change::Delete(length) => drop(text.drain(start..end(*length))),
            Change::Replace(length, piece) => drop(text.splice(start..end(*length), piece.chars())),
            Change::Cut => text.truncate(start),
            Change::Repeat(length, times) => {
                let part = text[start..end(*length)].repeat(*times);
                drop(text.splice(start..start, part));
            }
        }
    }
    text.into_iter().collect()
}

/// A recipe that was read is in range, and is written and read again as the same.
fn check_recipe(text: &str) -> Result<(), TestCaseError> {
    match Recipe::parse(text) {
        Ok(recipe) => {
            prop_assert!(recipe.validate().is_ok());
            let written = toml::to_string(&recipe).map_err(|error| TestCaseError::fail(error.to_string()))?;
            let again = Recipe::parse(&written).map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert_eq!(toml::to_string(&again).ok(), Some(written)); // a field may be NaN, unlike itself
        }
        Err(RecipeErrors(faults)) => {
            prop_assert!(!faults.is_empty());
            let lines = text.matches('\n').count() + 1;
            prop_assert!(
                faults.iter().all(|fault| fault.line.is_none_or(|line| (1..=lines).contains(&line)))
            );
            prop_assert!(faults.iter().all(|fault| !fault.remedy.is_empty()));
        }
    }
    Ok(())
}

fn check_record(text: &str) -> Result<(), TestCaseError> {
    match RunRecord::parse(text) {
        Ok(record) => {
            let written =
                serde_json::to_string(&record).map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert_eq!(RunRecord::parse(&written), Ok(record));
        }
        Err(error) => prop_assert!(!error.is_empty()),
    }
    Ok(())
}

#[test]
fn the_unchanged_texts_are_read() {
    for recipe in recipes() {
        Recipe::parse(&recipe).unwrap_or_else(|error| panic!("{error}\n{recipe}"));
    }
    RunRecord::parse(RECORD).unwrap_or_else(|error| panic!("{error}"));
}

/// Brackets deeper than any stack are refused rather than followed.
#[test]
fn deep_nesting_is_an_error() {
    for deep in [100, 10_000, 1_000_000] {
        let list = "[".repeat(deep) + &"]".repeat(deep);
        let table = "{a = ".repeat(deep) + "1" + &"}".repeat(deep);
        for value in [&list, &table] {
            assert!(Recipe::parse(&format!("model = {value}")).is_err());
            assert!(Recipe::parse(&format!("model = {{ name = \"vit\", depth = {value} }}")).is_err());
        }
        assert!(Recipe::parse(&("a.".repeat(deep) + "b = 1")).is_err());
        assert!(Recipe::parse(&format!("[{}b]", "a.".repeat(deep))).is_err());
        assert!(RunRecord::parse(&list).is_err());
        assert!(RunRecord::parse(&("{\"format\":".repeat(deep) + "1" + &"}".repeat(deep))).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_a_value_or_an_error(text in "(\\PC|\n|\0){0,200}") {
        check_recipe(&text)?;
        check_record(&text)?;
    }

    #[test]
    fn any_pieces_are_a_value_or_an_error(
        pieces in prop::collection::vec(prop::sample::select(PIECES.to_vec()), 0..40),
    ) {
        check_recipe(&pieces.concat())?;
        check_record(&pieces.concat())?;
    }

    #[test]
    fn a_changed_recipe_is_a_value_or_an_error(
        recipe in prop::sample::select(recipes()), changes in prop::collection::vec(change(), 1..4),
    ) {
        check_recipe(&changed(&recipe, &changes))?;
    }

    #[test]
    fn a_changed_record_is_a_value_or_an_error(changes in prop::collection::vec(change(), 1..4)) {
        check_record(&changed(RECORD, &changes))?;
    }
}
