//! Where in a run a checkpoint is, and the names that its directory has for that.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The ending of a directory that is being written or removed.
pub(super) const PARTIAL: &str = "partial";

/// The ending of a checkpoint that another takes the place of.
pub(super) const REPLACED: &str = "replaced";

/// Where in a run a checkpoint was taken; ordered as training goes. Shown as the name of its directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// The epoch, from 1.
    pub epoch: u32,
    /// How many steps of the epoch were done; `None` at its end.
    pub step: Option<u64>,
}

impl Ord for Position {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let key = |position: &Self| (position.epoch, position.step.is_none(), position.step);
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "epoch-{:04}", self.epoch)?;
        self.step.map_or(Ok(()), |step| write!(f, "-step-{step:06}"))
    }
}

/// The position whose checkpoint has this name.
pub(super) fn parse_name(name: &str) -> Option<Position> {
    let numbers = name.strip_prefix("epoch-")?;
    let (epoch, step) = match numbers.split_once("-step-") {
        Some((epoch, step)) => (epoch, Some(step.parse().ok()?)),
        None => (numbers, None),
    };
    let position = Position { epoch: epoch.parse().ok()?, step };
    // One name for each: no other number of zeros, no sign.
    (position.to_string() == name).then_some(position)
}

/// The name of unfinished work on the checkpoint of a position.
pub(super) fn unfinished(directory: &Path, position: Position, kind: &str) -> PathBuf {
    directory.join(format!(".{position}.{}.{kind}", std::process::id()))
}

/// The position and the ending of such a name.
pub(super) fn parse_unfinished(name: &str) -> Option<(Position, &'static str)> {
    let (rest, ending) = name.strip_prefix('.')?.rsplit_once('.')?;
    let kind = [PARTIAL, REPLACED].into_iter().find(|kind| *kind == ending)?;
    let (name, pid) = rest.rsplit_once('.')?;
    pid.parse::<u32>().ok()?;
    Some((parse_name(name)?, kind))
}
