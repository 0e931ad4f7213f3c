//! `verification.json`: whether a run was found to be what its record says.

use serde::{Deserialize, Serialize};

/// What became of checking a run: its numbers computed again from weights and data, its files against its record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verification {
    /// SHA-256 of the `record.json` that was checked: another one was not.
    pub record_sha256: String,
    /// When, RFC 3339 in UTC.
    pub verified_at: String,
    /// Test images that the network was shown again.
    pub images: usize,
    /// What does not hold; of nothing, all does.
    pub findings: Vec<String>,
}

impl Verification {
    /// Whether all of it holds.
    pub fn holds(&self) -> bool {
        self.findings.is_empty()
    }
}
