//! Which test a pair allows, and what it says.

use serde::Serialize;

use super::side::Row;
use crate::comparison::on_same_images;
use crate::stats::{two_shares, welch};

/// A test of a difference in test top-1.
#[derive(Debug, PartialEq, Serialize)]
#[serde(tag = "test", rename_all = "snake_case")]
pub enum Chance {
    /// Of two networks on the same images.
    #[serde(rename = "mcnemar")]
    McNemar {
        /// Images only A has right.
        a_only: usize,
        /// Images only B has right.
        b_only: usize,
        /// Images both answered.
        images: usize,
        p: f64,
    },
    /// Of two networks, each on images of its own.
    TwoProportions { a_images: usize, b_images: usize, p: f64 },
    /// Of the seeds' means.
    Welch { p: f64 },
    /// There is not enough to judge by.
    None { reason: String },
}

impl Chance {
    /// How likely equal networks differ at least so much.
    pub fn p(&self) -> Option<f64> {
        match self {
            Self::McNemar { p, .. } | Self::TwoProportions { p, .. } | Self::Welch { p } => Some(*p),
            Self::None { .. } => None,
        }
    }

    /// What the test is called.
    pub fn name(&self) -> &'static str {
        match self {
            Self::McNemar { .. } => "McNemar",
            Self::TwoProportions { .. } => "two proportions",
            Self::Welch { .. } => "Welch",
            Self::None { .. } => "none",
        }
    }
}

fn none(reason: impl Into<String>) -> Chance {
    Chance::None { reason: reason.into() }
}

/// Two networks.
pub fn of_two(a: &Row, b: &Row, given: Option<usize>) -> Chance {
    let (ours, theirs) = match (a.result.test_top1, b.result.test_top1) {
        (Some(ours), Some(theirs)) => (ours, theirs),
        (None, Some(_)) => return none("A has no test top-1"),
        (Some(_), None) => return none("B has no test top-1"),
        (None, None) => return none("neither has a test top-1"),
    };
    if let (Some(a), Some(b)) = (&a.run, &b.run)
        && a.has_same_images(b)
    {
        let test = on_same_images(a, b);
        let images = a.predictions.len();
        return Chance::McNemar { a_only: test.first_only, b_only: test.second_only, images, p: test.p };
    }
    let unknown =
        |of: &str| none(format!("the number of test images of {of} is not known; --images gives it"));
    match (a.test_images(given), b.test_images(given)) {
        (Some(a_images), Some(b_images)) => {
            let p = two_shares((ours, a_images), (theirs, b_images));
            Chance::TwoProportions { a_images, b_images, p }
        }
        (None, Some(_)) => unknown("A"),
        (Some(_), None) => unknown("B"),
        (None, None) => unknown("both"),
    }
}

/// Seeds of one network against those of another: their test top-1.
pub fn of_seeds(a: &[f64], b: &[f64]) -> Chance {
    if a.len().min(b.len()) < 2 {
        return none("two or more seeds on one side and a single one on the other");
    }
    match welch(a, b) {
        Some(p) => Chance::Welch { p },
        None => none("all seeds of a side have the same test top-1, so there is no spread to judge by"),
    }
}
