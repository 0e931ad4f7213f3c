//! Two runs: the keys of their recipes that differ, their circumstances and their numbers.

use std::collections::BTreeMap;

use run_record::{Recipe, ResultRow};
use serde::Serialize;
use serde_json::{Value, json};

use super::chance::{Chance, of_two};
use super::side::Row;
use crate::comparison::judged;

/// What differs between two runs.
#[derive(Debug, Serialize)]
pub struct TwoRuns {
    /// Which of them has no recipe to compare: `A`, `B`.
    pub without_recipe: Vec<&'static str>,
    /// Keys of the recipe that differ.
    pub recipe: Vec<Difference>,
    /// Data, place and software, where they differ.
    pub circumstances: Vec<Difference>,
    pub numbers: Vec<Number>,
    #[serde(flatten)]
    pub chance: Chance,
    pub verdict: Option<&'static str>,
}

/// A value that is not the same; null where there is none.
#[derive(Debug, PartialEq, Serialize)]
pub struct Difference {
    pub key: String,
    pub a: Value,
    pub b: Value,
}

/// A measured value.
#[derive(Debug, Serialize)]
pub struct Number {
    /// Its column in results.csv.
    pub column: &'static str,
    pub a: Option<f64>,
    pub b: Option<f64>,
    /// B − A.
    pub difference: Option<f64>,
}

/// Compares two runs.
pub fn two_runs(a: &Row, b: &Row, images: Option<usize>) -> TwoRuns {
    let recipes = [a, b].map(|row| row.run.as_ref().and_then(|run| run.recipe.as_ref()));
    let without_recipe: Vec<_> = ["A", "B"]
        .into_iter()
        .zip(recipes)
        .filter(|(_, recipe)| recipe.is_none())
        .map(|(of, _)| of)
        .collect();
    let recipe = match recipes {
        [Some(a), Some(b)] => differences(&keys(a), &keys(b)),
        _ => Vec::new(),
    };
    let known = without_recipe.is_empty();
    let chance = of_two(a, b, images);
    TwoRuns {
        without_recipe,
        recipe,
        circumstances: differences(&circumstances(a, known), &circumstances(b, known)),
        numbers: numbers(&a.result, &b.result),
        verdict: chance.p().map(judged),
        chance,
    }
}

/// A recipe's values by their keys, `train.epochs`. The two ways to name a model are one.
fn keys(recipe: &Recipe) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    flatten("", serde_json::to_value(recipe).unwrap_or_default(), &mut found);
    if let Some(name) = found.remove("model.name") {
        found.insert("model".to_owned(), name);
    }
    found
}

fn flatten(above: &str, value: Value, found: &mut BTreeMap<String, Value>) {
    let Value::Object(table) = value else {
        found.insert(above.to_owned(), value);
        return;
    };
    for (key, value) in table {
        flatten(&if above.is_empty() { key } else { format!("{above}.{key}") }, value, found);
    }
}

/// What else a run depends on. A known recipe tells the model and the length of training.
fn circumstances(row: &Row, recipe_is_known: bool) -> BTreeMap<String, Value> {
    let result = &row.result;
    let record = row.run.as_ref().map(|run| &run.record);
    let mut found = vec![
        ("preset", json!(result.preset)),
        ("seed", json!(result.seed)),
        ("data_sha256", json!(result.data_sha256)),
        ("device", json!(result.device)),
        ("cpu", json!(record.map(|record| &record.cpu))),
        ("gpu", json!(record.map(|record| &record.gpu))),
        ("precision", json!(result.precision)),
        ("threads", json!(result.threads)),
        ("libtorch", json!(result.libtorch)),
        ("git_commit", json!(result.git_commit)),
        ("status", json!(result.status)),
    ];
    if !recipe_is_known {
        found.extend([
            ("model", json!(result.model)),
            ("dataset", json!(result.dataset)),
            ("image_size", json!(result.image_size)),
            ("epochs", json!(result.epochs)),
            ("batch_size", json!(result.batch_size)),
        ]);
    }
    found.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The keys whose values differ, in alphabetical order.
fn differences(a: &BTreeMap<String, Value>, b: &BTreeMap<String, Value>) -> Vec<Difference> {
    let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let value = |of: &BTreeMap<String, Value>, key| of.get(key).cloned().unwrap_or_default();
    keys.into_iter()
        .map(|key| Difference { key: key.clone(), a: value(a, key), b: value(b, key) })
        .filter(|found| found.a != found.b)
        .collect()
}

fn numbers(a: &ResultRow, b: &ResultRow) -> Vec<Number> {
    let of = |row: &ResultRow| {
        [
            ("params", Some(row.params as f64)),
            ("macs", Some(row.macs as f64)),
            ("best_epoch", row.best_epoch.map(f64::from)),
            ("val_top1", row.val_top1),
            ("test_top1", row.test_top1),
            ("test_top5", row.test_top5),
            ("test_loss", row.test_loss),
            ("train_seconds", row.train_seconds),
            ("images_per_second", row.images_per_second),
            ("peak_memory_mb", row.peak_memory_mb),
        ]
    };
    of(a)
        .into_iter()
        .zip(of(b))
        .map(|((column, a), (_, b))| Number { column, a, b, difference: a.zip(b).map(|(a, b)| b - a) })
        .collect()
}
