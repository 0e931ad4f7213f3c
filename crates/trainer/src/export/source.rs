//! What is exported: a run's network, or weights that say or are told what they belong to.

use std::path::{Path, PathBuf};

use core_layers::Model;
use serde::Deserialize;
use serde_json::Value;
use tch::Device;
use tch::nn::VarStore;

use crate::Error;
use crate::network::located;
use crate::network::registry::{self, Architecture};
use crate::network::weights::{self, Card, Head, WeightsFile};

/// A network with its tensors.
#[derive(Debug)]
pub struct Source {
    /// The weights file.
    pub path: PathBuf,
    /// The network's description.
    pub architecture: Architecture,
    /// Its tensors.
    pub vs: VarStore,
    /// The network.
    pub network: Box<dyn Model>,
    /// What the file says of data and training; `None` for weights that no run of this program made.
    pub card: Option<Card>,
    /// How the weights were read.
    pub notes: Vec<String>,
}

/// What even initial weights say of themselves.
#[derive(Deserialize)]
struct Described {
    model: String,
    family: String,
    config: Value,
}

impl Source {
    /// The network of a weights file or of a run's directory. `given` is for a file that does not say which it belongs
    /// to.
    ///
    /// # Errors
    /// A file that is damaged or does not say what it belongs to, or one that says something else than `given`.
    pub fn open(path: &Path, given: Option<Architecture>) -> Result<Self, Error> {
        let path = located::locate(path)?.path;
        let wrong = |problem: String| Error::Weights { path: path.clone(), problem };
        let file = WeightsFile::open(&path)?;
        let described = file.card().map(serde_json::from_str::<Described>).transpose();
        let described = described.map_err(|error| wrong(format!("its description is damaged: {error}")))?;
        let (architecture, card) = match (described, given) {
            (Some(Described { model, family, config }), given) => {
                let described = registry::from_config(&family, &model, &config)
                    .map_err(|problem| wrong(format!("written for {model}: {problem}")))?;
                if let Some(given) = given
                    && (given.facts.family, given.config.to_json()) != (described.facts.family, config)
                {
                    return Err(wrong(format!(
                        "these are weights of {model}, not of {} as --model says; leave --model out",
                        given.model
                    )));
                }
                // Initial weights have no recipe, and say so when asked for one.
                let trained = serde_json::from_str::<Value>(file.card().unwrap_or_default())
                    .is_ok_and(|card| card.get("recipe").is_some());
                (described, trained.then(|| Card::of(&file)).transpose()?)
            }
            (None, Some(given)) => (given, None),
            (None, None) => {
                return Err(wrong(
                    "these weights do not say which network they belong to; name it with --model".to_owned(),
                ));
            }
        };
        let vs = VarStore::new(Device::Cpu);
        let network = architecture.init(&vs.root())?;
        let notes = weights::load_opened(&vs, &architecture, &file, Head::Same)?;
        Ok(Self { path, architecture, vs, network, card, notes })
    }

    /// Mean and standard deviation per channel on the scale 0 to 1.
    ///
    /// # Errors
    /// Weights that do not say how pictures are normalised.
    pub fn stats(&self) -> Result<[[f64; 3]; 2], Error> {
        let card = self.card.as_ref().ok_or_else(|| Error::Weights {
            path: self.path.clone(),
            problem: "these weights do not say how pictures were normalised; leave --normalize-inside out and normalise \
                      before the network"
                .to_owned(),
        })?;
        Ok([card.channel_mean, card.channel_std].map(|values| values.map(|value| value / 255.0)))
    }
}
