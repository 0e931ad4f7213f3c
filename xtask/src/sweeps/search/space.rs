//! What a search may change: a recipe with choices and ranges in the place of values, and the draws from it.

use anyhow::{Result, anyhow, bail};
use run_record::{Recipe, remove_key, set_key, sha256, value_of};
use toml::{Table, Value};

/// The words for a range, each with a low and a high end, both included.
const RANGES: [&str; 4] = ["linear", "log", "integers", "log_integers"];

/// Keys of a recipe, each with a list of choices or a range, in alphabetical order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Space(Vec<(String, Value)>);

/// The values of one trial; an empty string takes the key, or the whole table, away.
pub(crate) type Draw = Vec<(String, Value)>;

impl Space {
    /// Reads a space.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let table: Table = toml::from_str(text).map_err(|error| anyhow!("{}", error.to_string().trim()))?;
        let mut keys = Vec::new();
        read("", &table, &mut keys)?;
        if keys.is_empty() {
            bail!("there is no key to search over; one looks like `optimizer.lr = {{ log = [1e-4, 1e-2] }}`");
        }
        Ok(Self(keys))
    }

    /// The keys that are searched over.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(key, _)| key.as_str())
    }

    /// What a trial, from 1, tries. A key's value follows from the seed, the trial and the key alone: more trials, or
    /// another key, change none of the others.
    pub(crate) fn draw(&self, seed: u64, trial: usize) -> Draw {
        let value = |(key, of): &(String, Value)| (key.clone(), drawn(of, &format!("{seed} {trial} {key}")));
        self.0.iter().map(value).collect()
    }
}

/// Collects the keys of a table.
fn read(prefix: &str, table: &Table, keys: &mut Vec<(String, Value)>) -> Result<()> {
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        match value {
            Value::Array(choices) => {
                if choices.is_empty() {
                    bail!("{key} = []: a list needs a choice at least");
                }
                choices.iter().try_for_each(|choice| check(&key, choice))?;
                keys.push((key, value.clone()));
            }
            Value::Table(inner) => match range(inner) {
                Some(_) => {
                    check(&key, value)?;
                    keys.push((key, value.clone()));
                }
                None => read(&format!("{key}."), inner, keys)?,
            },
            single => bail!(
                "{key} = {single}: expected a list of choices, or a range such as {{ log = [1e-4, 1e-2] }}; the words are {}",
                RANGES.join(", ")
            ),
        }
    }
    Ok(())
}

/// The word and the ends of a range, if a table is one.
fn range(table: &Table) -> Option<(&str, &Value)> {
    let (word, ends) = table.iter().next().filter(|_| table.len() == 1)?;
    RANGES.contains(&word.as_str()).then_some((word.as_str(), ends))
}

/// Refuses ranges without inside, also those within a choice.
fn check(key: &str, value: &Value) -> Result<()> {
    let Value::Table(table) = value else { return Ok(()) };
    let Some((word, ends)) = range(table) else {
        return table.iter().try_for_each(|(name, value)| check(&format!("{key}.{name}"), value));
    };
    let wrong = |what: &str| anyhow!("{key}.{word} = {ends}: {what}");
    let (low, high) = bounds(ends).ok_or_else(|| wrong("expected two numbers, the lower one first"))?;
    if !(low.is_finite() && high.is_finite() && low < high) {
        return Err(wrong("expected two numbers, the lower one first"));
    }
    let is_whole = |value: f64| value.fract() == 0.0 && value.abs() < 1e15;
    if word.ends_with("integers") && !(is_whole(low) && is_whole(high)) {
        return Err(wrong("expected whole numbers"));
    }
    if word.starts_with("log") && low <= 0.0 {
        return Err(wrong("a logarithmic range begins above 0"));
    }
    Ok(())
}

fn bounds(ends: &Value) -> Option<(f64, f64)> {
    let number = |value: &Value| value.as_float().or_else(|| value.as_integer().map(|value| value as f64));
    match ends.as_array()?.as_slice() {
        [low, high] => Some((number(low)?, number(high)?)),
        _ => None,
    }
}

/// A number from 0 to below 1 that follows from a name.
fn fraction(name: &str) -> f64 {
    let digits: String = sha256(name).chars().take(13).collect();
    u64::from_str_radix(&digits, 16).unwrap_or_default() as f64 / (1u64 << 52) as f64
}

/// A choice out of a list, with what is to be drawn within it, or a number out of a range.
fn drawn(of: &Value, name: &str) -> Value {
    match of {
        Value::Array(choices) => {
            let index = (fraction(name) * choices.len() as f64) as usize;
            choices.get(index).map_or_else(|| of.clone(), |choice| within(choice, &format!("{name} {index}")))
        }
        _ => within(of, name),
    }
}

/// A value with a number in the place of each range; a list in it is a list.
fn within(value: &Value, name: &str) -> Value {
    let Value::Table(table) = value else { return value.clone() };
    match range(table).and_then(|(word, ends)| Some((word, bounds(ends)?))) {
        Some((word, ends)) => number(word, ends, fraction(name)),
        None => {
            let of = |(key, value): (&String, &Value)| (key.clone(), within(value, &format!("{name} {key}")));
            Value::Table(table.iter().map(of).collect())
        }
    }
}

/// The number at a fraction of a range; one that is not whole has four digits.
fn number(word: &str, (low, high): (f64, f64), at: f64) -> Value {
    let log = |low: f64, high: f64| (low.ln() + at * (high / low).ln()).exp();
    let four_digits = |value: f64| format!("{value:.3e}").parse().unwrap_or(value).clamp(low, high);
    match word {
        "linear" => Value::Float(four_digits(low + at * (high - low))),
        "log" => Value::Float(four_digits(log(low, high))),
        "integers" => Value::Integer((low + at * (high - low + 1.0)).floor().clamp(low, high) as i64),
        // Each whole number has its share of the logarithms up to the next one.
        _ => Value::Integer(log(low, high + 1.0).floor().clamp(low, high) as i64),
    }
}

/// A recipe with the values of a trial.
pub(crate) fn with_values(base: &Recipe, values: &Draw) -> Result<Recipe> {
    let mut table = base.to_table().map_err(|problem| anyhow!(problem))?;
    for (key, value) in values {
        match value {
            Value::String(text) if text.is_empty() => drop(remove_key(&mut table, key)),
            _ => set_key(&mut table, key, value.clone()).map_err(|problem| anyhow!("{key}: {problem}"))?,
        }
    }
    parse(&table)
}

/// The recipe in a table.
pub(crate) fn parse(table: &Table) -> Result<Recipe> {
    let text = toml::to_string(table)?;
    let without_line = |mut fault: run_record::RecipeError| {
        fault.line = None;
        fault.to_string()
    };
    Recipe::parse(&text).map_err(|errors| {
        let faults: Vec<String> = errors.0.into_iter().map(without_line).collect();
        anyhow!("{}", faults.join("; "))
    })
}

/// The values of a recipe by these keys, as TOML; empty where there is none.
pub(crate) fn values_of<'a>(recipe: &Recipe, keys: impl Iterator<Item = &'a str>) -> Result<Vec<String>> {
    let table = recipe.to_table().map_err(|problem| anyhow!(problem))?;
    let text = |key: &str| value_of(&table, key).map_or_else(String::new, ToString::to_string);
    Ok(keys.map(text).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACE: &str = r#"
train.label_smoothing = [0.0, 0.1]
[optimizer]
lr = { log = [1e-4, 1e-2] }
weight_decay = { linear = [0.0, 0.5] }
[model]
depth = { integers = [2, 5] }
patch = { log_integers = [1, 8] }
[augment]
mixup = ["", { alpha = { log = [0.1, 1.0] } }]
resized_crop = [{ scale = [0.8, 1.0], ratio = [0.75, 1.3333], interpolation = "random" }]
"#;

    fn value(draw: &Draw, key: &str) -> Value {
        draw.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone()).unwrap()
    }

    #[test]
    fn draws_are_the_same_every_time_in_range_and_spread_over_it() {
        let space = Space::parse(SPACE).unwrap();
        let draws: Vec<Draw> = (1..=400).map(|trial| space.draw(7, trial)).collect();
        assert_eq!(draws[41], space.draw(7, 42));
        assert_ne!(draws[41], space.draw(8, 42));
        let floats = |key: &str| -> Vec<f64> {
            draws.iter().map(|draw| value(draw, key).as_float().unwrap()).collect()
        };
        let lr = floats("optimizer.lr");
        assert!(lr.iter().all(|lr| (1e-4..=1e-2).contains(lr)));
        // Half of the logarithms lie below the geometric mean: 200 of 400, with a standard deviation of 10.
        let below = lr.iter().filter(|lr| **lr < 1e-3).count();
        assert!((150..=250).contains(&below), "{below}");
        let decay = floats("optimizer.weight_decay");
        assert!(decay.iter().all(|decay| (0.0..=0.5).contains(decay)));
        let below = decay.iter().filter(|decay| **decay < 0.25).count();
        assert!((150..=250).contains(&below), "{below}");
        for (key, low, high) in [("model.depth", 2, 5), ("model.patch", 1, 8)] {
            let mut found: Vec<i64> =
                draws.iter().map(|draw| value(draw, key).as_integer().unwrap()).collect();
            found.sort_unstable();
            found.dedup();
            assert_eq!(found, (low..=high).collect::<Vec<_>>(), "{key}");
        }
        let on = draws.iter().filter_map(|draw| value(draw, "augment.mixup").as_table().cloned());
        let alphas: Vec<f64> = on.map(|table| table["alpha"].as_float().unwrap()).collect();
        assert!((150..=250).contains(&alphas.len()), "{}", alphas.len());
        assert!(alphas.iter().all(|alpha| (0.1..=1.0).contains(alpha)) && alphas[0] != alphas[1]);
        let crop = value(&draws[0], "augment.resized_crop");
        assert_eq!(crop["scale"].to_string(), "[0.8, 1.0]");
    }

    #[test]
    fn another_key_changes_no_draw_of_the_others() {
        let one = Space::parse("optimizer.lr = { log = [1e-4, 1e-2] }").unwrap();
        let two = Space::parse("optimizer.lr = { log = [1e-4, 1e-2] }\naugment.hflip = [0.0, 0.5]").unwrap();
        for trial in 1..10 {
            assert_eq!(
                value(&one.draw(0, trial), "optimizer.lr"),
                value(&two.draw(0, trial), "optimizer.lr")
            );
        }
        // These numbers are what a search that was begun by an earlier version goes on with.
        let lr: Vec<String> =
            (1..4).map(|trial| value(&one.draw(0, trial), "optimizer.lr").to_string()).collect();
        assert_eq!(lr, LR);
    }

    /// 1e-4 · 100^f to four digits, f being the first 13 hexadecimal digits of the SHA-256 of `0 TRIAL optimizer.lr`
    /// over 16^13, by Python's hashlib.
    const LR: [&str; 3] = ["0.0005913", "0.001809", "0.007784"];

    #[test]
    fn what_is_no_space_is_said_to_be_none() {
        for (text, words) in [
            ("", "there is no key"),
            ("[optimizer]", "there is no key"),
            ("optimizer.lr = 1e-3", "optimizer.lr = 0.001: expected a list of choices, or a range"),
            ("optimizer.lr = []", "optimizer.lr = []: a list needs a choice"),
            (
                "optimizer.lr = { log = [0.0, 1.0] }",
                "optimizer.lr.log = [0.0, 1.0]: a logarithmic range begins above 0",
            ),
            (
                "optimizer.lr = { linear = [2, 1] }",
                "optimizer.lr.linear = [2, 1]: expected two numbers, the lower",
            ),
            ("optimizer.lr = { linear = [1, 2, 3] }", "expected two numbers"),
            ("optimizer.lr = { linear = [1, inf] }", "expected two numbers"),
            ("model.depth = { integers = [1.5, 3] }", "expected whole numbers"),
            ("a = [{ b = { log = [0, 1] } }]", "a.b.log = [0, 1]: a logarithmic range"),
            ("a = ", "a = "),
        ] {
            let said = Space::parse(text).unwrap_err().to_string();
            assert!(said.contains(words), "{text}: {said}");
        }
    }
}
