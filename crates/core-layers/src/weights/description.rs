//! What a weights file of this project says of itself, as far as a program needs it that computes with the network.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::WeightsError;
use super::file::WeightsFile;

/// How to build the network that weights belong to, and how to use it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Description {
    /// Name of the network, and of its architecture.
    pub model: String,
    /// See [`Self::model`].
    pub family: String,
    /// The network's configuration; [`WeightsFile::config`] reads it.
    pub config: Value,
    /// Mean of each channel that images are normalised with, on the scale 0 to 255.
    pub channel_mean: [f64; 3],
    /// Standard deviation of each channel, likewise.
    pub channel_std: [f64; 3],
    /// Name of each class, in the order of the logits.
    pub class_names: Vec<String>,
}

impl WeightsFile {
    /// What the file says of its network.
    ///
    /// # Errors
    /// A file that says nothing of itself (it is no run's and was not exported from one), or something else.
    pub fn description(&self) -> Result<Description, WeightsError> {
        let card =
            self.card().ok_or_else(|| self.wrong("it does not say which network it is for".to_owned()))?;
        serde_json::from_str(card).map_err(|error| self.wrong(format!("its description is damaged: {error}")))
    }

    /// The configuration of its network, whose architecture the caller knows.
    ///
    /// # Errors
    /// Those of [`Self::description`], or the network of another architecture.
    pub fn config<C: DeserializeOwned>(&self) -> Result<C, WeightsError> {
        let Description { family, config, .. } = self.description()?;
        let other = |error| format!("its network, a {family}, has another configuration: {error}");
        serde_json::from_value(config).map_err(|error| self.wrong(other(error)))
    }
}
