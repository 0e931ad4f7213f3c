//! A recipe as a table of keys: setting one, taking one away, and telling in which two differ.

use toml::{Table, Value};

use crate::recipe::Recipe;

/// A TOML value, or the text itself where it is none: `--set optimizer.name=adamw` needs no quotes.
pub fn literal(text: &str) -> Value {
    let parsed: Result<Table, _> = toml::from_str(&format!("value = {text}"));
    parsed.ok().and_then(|mut table| table.remove("value")).unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Sets a key of a recipe, named with its tables (`train.epochs`). Missing tables are made.
///
/// # Errors
/// A key below a single value.
pub fn set_key(recipe: &mut Table, key: &str, value: Value) -> Result<(), String> {
    // `model = "name"` is short for a table with that name; a field needs the table.
    if key.starts_with("model.")
        && let Some(Value::String(name)) = recipe.get("model").cloned()
    {
        let named = Table::from_iter([("name".to_owned(), Value::String(name))]);
        recipe.insert("model".to_owned(), Value::Table(named));
    }
    match key.split_once('.') {
        None => {
            recipe.insert(key.to_owned(), value);
            Ok(())
        }
        Some((head, rest)) => match recipe.entry(head).or_insert_with(|| Value::Table(Table::new())) {
            Value::Table(inner) => set_key(inner, rest, value),
            _ => Err(format!("{head} is a single value, not a table")),
        },
    }
}

/// Takes a key, or a whole table, away, and returns what it was.
pub fn remove_key(recipe: &mut Table, key: &str) -> Option<Value> {
    match key.split_once('.') {
        None => recipe.remove(key),
        Some((head, rest)) => remove_key(recipe.get_mut(head)?.as_table_mut()?, rest),
    }
}

/// What a key, or a whole table, of a recipe is.
pub fn value_of<'a>(recipe: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        None => recipe.get(key),
        Some((head, rest)) => value_of(recipe.get(head)?.as_table()?, rest),
    }
}

/// A key of which two recipes have different values.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// With its tables.
    pub key: String,
    /// Its value in the first, if it is there.
    pub old: Option<Value>,
    /// Its value in the second.
    pub new: Option<Value>,
}

impl Recipe {
    /// The recipe as TOML.
    ///
    /// # Errors
    /// A value that TOML cannot hold.
    pub fn to_toml(&self) -> Result<String, String> {
        toml::to_string(self).map_err(|error| format!("the recipe cannot be written as TOML: {error}"))
    }

    /// The recipe as a table.
    ///
    /// # Errors
    /// A value that TOML cannot hold.
    pub fn to_table(&self) -> Result<Table, String> {
        toml::from_str(&self.to_toml()?).map_err(|error| format!("the recipe: {}", error.message()))
    }

    /// The keys in which another recipe differs, commentary left out, in alphabetical order.
    ///
    /// # Errors
    /// A value that TOML cannot hold.
    pub fn differences(&self, new: &Self) -> Result<Vec<Difference>, String> {
        let flat = |recipe: &Self| -> Result<Vec<(String, Value)>, String> {
            let mut rows = Vec::new();
            flatten("", &Value::Table(recipe.without_commentary().to_table()?), &mut rows);
            // The two ways to name a model are one.
            rows.iter_mut()
                .filter(|(key, _)| key == "model.name")
                .for_each(|(key, _)| *key = "model".to_owned());
            Ok(rows)
        };
        let (old, new) = (flat(self)?, flat(new)?);
        let value = |rows: &[(String, Value)], key: &str| {
            rows.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())
        };
        let mut keys: Vec<&String> = old.iter().chain(&new).map(|(key, _)| key).collect();
        keys.sort();
        keys.dedup();
        let differences = keys.into_iter().map(|key| Difference {
            key: key.clone(),
            old: value(&old, key),
            new: value(&new, key),
        });
        Ok(differences.filter(|found| found.old != found.new).collect())
    }
}

fn flatten(prefix: &str, value: &Value, rows: &mut Vec<(String, Value)>) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&key, value, rows);
            }
        }
        other => rows.push((prefix.to_owned(), other.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_set_read_and_taken_away_at_every_depth() {
        let mut table: Table = toml::from_str("model = \"vit\"\n[train]\nepochs = 3").unwrap();
        for (key, text) in
            [("train.epochs", "5"), ("model.depth", "2"), ("augment.mixup", "{ alpha = 0.2 }"), ("a", "b c")]
        {
            set_key(&mut table, key, literal(text)).unwrap();
        }
        let read = |key: &str| value_of(&table, key).map(ToString::to_string);
        assert_eq!(read("train.epochs").as_deref(), Some("5"));
        assert_eq!(
            (read("model.name").as_deref(), read("model.depth").as_deref()),
            (Some("\"vit\""), Some("2"))
        );
        assert_eq!(
            (read("augment.mixup.alpha").as_deref(), read("a").as_deref()),
            (Some("0.2"), Some("\"b c\""))
        );
        assert_eq!((read("augment.cutmix"), read("train.epochs.x")), (None, None));
        assert_eq!(set_key(&mut table, "a.b", literal("1")).unwrap_err(), "a is a single value, not a table");
        assert!(remove_key(&mut table, "augment.mixup").is_some_and(|gone| gone.is_table()));
        assert_eq!(remove_key(&mut table, "augment.mixup"), None);
        assert_eq!(remove_key(&mut table, "a.b"), None);
    }
}
