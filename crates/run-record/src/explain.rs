//! What a recipe has drawn of the network while it trains.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::fault::Faults;

/// Explanations of a few validation pictures every so many epochs. They change nothing of the training, so two recipes
/// that differ here only are the same run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainRecipe {
    /// Epochs from one drawing to the next; the last epoch is always drawn.
    pub every: u32,
    /// The first so many validation pictures.
    pub pictures: usize,
    /// What is drawn, in this order.
    pub methods: Vec<ExplainMethod>,
}

/// A way to look into a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExplainMethod {
    /// How much the class token, the pooling or the global queries attend to each patch.
    Attention,
    /// Attention followed through all blocks (Abnar & Zuidema, arXiv:2005.00928).
    Rollout,
    /// Where features raise the logit of a class (Selvaraju et al., arXiv:1610.02391).
    GradCam,
    /// How alike the learned embeddings of two positions are.
    Positions,
    /// The kernels of convolutions.
    Kernels,
}

impl ExplainMethod {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Attention, Self::Rollout, Self::GradCam, Self::Positions, Self::Kernels];

    /// The name in a recipe and on a command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Rollout => "rollout",
            Self::GradCam => "gradcam",
            Self::Positions => "positions",
            Self::Kernels => "kernels",
        }
    }
}

impl FromStr for ExplainMethod {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::as_str).join(", ");
        let found = Self::ALL.into_iter().find(|method| method.as_str() == text);
        found.ok_or_else(|| format!("expected one of {names}"))
    }
}

/// The most pictures that are drawn side by side while training.
const MOST_PICTURES: usize = 16;

impl ExplainRecipe {
    /// Whether an epoch of so many, counted from 1, is drawn.
    pub fn is_due(&self, epoch: u32, epochs: u32) -> bool {
        epoch == epochs || epoch.is_multiple_of(self.every)
    }

    pub(crate) fn check(&self, faults: &mut Faults) {
        faults.check("explain.every", self.every, self.every > 0, "1 or more");
        faults.within("explain.pictures", self.pictures, 1..=MOST_PICTURES);
        let names: Vec<&str> = self.methods.iter().map(|method| method.as_str()).collect();
        faults.check("explain.methods", names.join(", "), !names.is_empty(), "one or more");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_nth_epoch_and_the_last_are_drawn() {
        let recipe = ExplainRecipe { every: 5, pictures: 2, methods: vec![ExplainMethod::GradCam] };
        let due: Vec<u32> = (1..=12).filter(|epoch| recipe.is_due(*epoch, 12)).collect();
        assert_eq!(due, [5, 10, 12]);
        for method in ExplainMethod::ALL {
            assert_eq!(method.as_str().parse(), Ok(method));
            let word = serde_json::to_string(&method).unwrap();
            assert_eq!(word, format!("{:?}", method.as_str()));
        }
        assert!("cam".parse::<ExplainMethod>().unwrap_err().contains("attention, rollout, gradcam"));
    }
}
