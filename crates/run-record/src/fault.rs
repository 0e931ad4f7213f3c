//! What can be wrong with a recipe, where, and what to do about it.

use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};

use toml::de::DeTable;

/// One thing that is wrong with a recipe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct RecipeError {
    /// The file, if the text came from one.
    pub file: Option<PathBuf>,
    /// The line of the text, from 1, of the key or of the table it is missing from.
    pub line: Option<usize>,
    /// The key with its tables, as `--set` would name it; empty for a text that is no TOML.
    pub field: String,
    /// What it was set to; `None` for what is missing.
    pub value: Option<String>,
    /// What it has to be.
    pub remedy: String,
}

/// `FILE: line 12: train.epochs = 0: 1 to 100000`, as far as it is known.
impl fmt::Display for RecipeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, field, value, remedy } = self;
        if let Some(file) = file {
            write!(f, "{}: ", file.display())?;
        }
        if let Some(line) = line {
            write!(f, "line {line}: ")?;
        }
        match value {
            _ if field.is_empty() => {}
            Some(value) => write!(f, "{field} = {value}: ")?,
            None => write!(f, "{field}: ")?,
        }
        f.write_str(remedy)
    }
}

/// All that is wrong with a recipe, as far as it could be checked; one thing at least.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct RecipeErrors(pub Vec<RecipeError>);

impl RecipeErrors {
    /// The errors, of the text of this file.
    pub fn in_file(mut self, file: &Path) -> Self {
        self.0.iter_mut().for_each(|fault| fault.file = Some(file.to_owned()));
        self
    }

    /// What the parser refused in `text`.
    pub(crate) fn of_text(error: &toml::de::Error, text: &str) -> Self {
        let remedy = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        let start = error.span().map(|span| span.start);
        let key = start.and_then(|start| {
            let mut keys = keys(text);
            keys.retain(|key| key.name.contains(&start) || key.value.contains(&start));
            // Tables begin before what is in them.
            keys.into_iter().max_by_key(|key| key.path.len())
        });
        let line = start.and_then(|start| line(text, start));
        let value = key.as_ref().filter(|key| !key.is_table).and_then(|key| text.get(key.value.clone()));
        let value = value.filter(|value| !value.contains('\n')).map(str::to_owned);
        let field = key.map(|key| key.path).unwrap_or_default();
        Self(vec![RecipeError { file: None, line, field, value, remedy }])
    }

    /// The errors, each with the line of its key in `text`, or of the nearest table that is there.
    pub(crate) fn with_lines(mut self, text: &str) -> Self {
        let keys = keys(text);
        for fault in &mut self.0 {
            let mut path = fault.field.as_str();
            fault.line = loop {
                if let Some(key) = keys.iter().find(|key| key.path == path) {
                    break line(text, key.name.start);
                }
                let Some((table, _)) = path.rsplit_once('.') else { break None };
                path = table;
            };
        }
        self
    }
}

/// The line, from 1, of a place in a text.
fn line(text: &str, start: usize) -> Option<usize> {
    text.get(..start).map(|before| before.matches('\n').count() + 1)
}

/// A key of a TOML text: its path, and where in the text its name and its value are.
struct Key {
    path: String,
    name: Range<usize>,
    value: Range<usize>,
    is_table: bool,
}

/// All keys of a text; none if it is no TOML.
fn keys(text: &str) -> Vec<Key> {
    fn add(table: &DeTable<'_>, prefix: &str, keys: &mut Vec<Key>) {
        for (name, value) in table {
            let path = format!("{prefix}{}", name.get_ref());
            if let Some(inner) = value.get_ref().as_table() {
                add(inner, &format!("{path}."), keys);
            }
            let is_table = value.get_ref().is_table();
            keys.push(Key { path, name: name.span(), value: value.span(), is_table });
        }
    }
    let mut keys = Vec::new();
    if let Ok(table) = DeTable::parse(text) {
        add(table.get_ref(), "", &mut keys);
    }
    keys
}

/// What is wrong with a recipe, as far as it was checked. Every kind of range is said in one place.
#[derive(Debug, Default)]
pub(crate) struct Faults(Vec<RecipeError>);

impl Faults {
    /// Notes a value unless it holds.
    pub fn check(&mut self, field: &str, value: impl fmt::Display, holds: bool, remedy: &str) {
        if !holds {
            let (field, value, remedy) = (field.to_owned(), Some(value.to_string()), remedy.to_owned());
            self.0.push(RecipeError { file: None, line: None, field, value, remedy });
        }
    }

    /// Both ends included.
    pub fn within<T: PartialOrd + fmt::Display>(&mut self, field: &str, value: T, range: RangeInclusive<T>) {
        let holds = range.contains(&value);
        self.check(field, value, holds, &format!("{} to {}", range.start(), range.end()));
    }

    /// 0 to 1.
    pub fn probability(&mut self, field: &str, value: f64) {
        self.check(field, value, (0.0..=1.0).contains(&value), "a probability, 0 to 1");
    }

    /// 0 to below 1.
    pub fn fraction(&mut self, field: &str, value: f64) {
        self.check(field, value, (0.0..1.0).contains(&value), "0 or more, below 1");
    }

    /// Above 0 and below 1.
    pub fn share(&mut self, field: &str, value: f64, remedy: &str) {
        self.check(field, value, value > 0.0 && value < 1.0, remedy);
    }

    /// Above 0.
    pub fn positive(&mut self, field: &str, value: f64) {
        self.check(field, value, value.is_finite() && value > 0.0, "a finite number above 0");
    }

    /// Above 0 and up to 1.
    pub fn factor(&mut self, field: &str, value: f64) {
        self.check(field, value, value > 0.0 && value <= 1.0, "above 0, at most 1");
    }

    /// 0 and above.
    pub fn non_negative(&mut self, field: &str, value: f64) {
        self.check(field, value, value.is_finite() && value >= 0.0, "a finite number, 0 or more");
    }

    /// Above 0, up to `most`, in order.
    pub fn rising(&mut self, field: &str, [low, high]: [f64; 2], most: f64, remedy: &str) {
        let holds = 0.0 < low && low <= high && high.is_finite() && high <= most;
        self.check(field, format!("{:?}", [low, high]), holds, remedy);
    }

    /// Ends the check.
    pub fn result(self) -> Result<(), RecipeErrors> {
        if self.0.is_empty() { Ok(()) } else { Err(RecipeErrors(self.0)) }
    }
}
