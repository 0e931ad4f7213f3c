//! `classes.csv`: how many images of each class the parts of a data set have.

use serde::{Deserialize, Serialize};

/// One row: a class, in the order of the logits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassCounts {
    /// The class.
    pub name: String,
    /// Images to train on.
    pub train: usize,
    /// Images held out.
    pub validation: usize,
    /// Images to test on.
    pub test: usize,
}

impl ClassCounts {
    /// All classes together.
    pub fn total(classes: &[Self]) -> Self {
        let sum = |count: fn(&Self) -> usize| classes.iter().map(count).sum();
        let (train, validation) = (sum(|class| class.train), sum(|class| class.validation));
        Self { name: "total".to_owned(), train, validation, test: sum(|class| class.test) }
    }
}
