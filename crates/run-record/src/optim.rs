//! The part of a recipe that says how weights move: optimiser, schedule, averaging, what to do when it fails.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::recipe::{Faults, RecipeError};

/// The optimisers a recipe may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// Adam with decoupled weight decay (Loshchilov & Hutter, arXiv:1711.05101).
    AdamW,
    /// Gradient descent with momentum; weight decay is added to the gradient.
    Sgd,
    /// LAMB (You et al., arXiv:1904.00962) as timm has it: Adam's step, scaled per tensor to the length of the tensor.
    Lamb,
    /// Lion (Chen et al., arXiv:2302.06675): the sign of a running mean.
    Lion,
}

/// The optimiser and its constants. [`OptimizerRecipe::algorithm`] tells which of them an optimiser has; it has to
/// have all of those and no other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerRecipe {
    /// Which optimiser.
    pub name: OptimizerName,
    /// Learning rate, which the schedule multiplies.
    pub lr: f64,
    /// Decay of the running mean of gradients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta1: Option<f64>,
    /// Decay of the running mean of squared gradients; for Lion, of the gradients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta2: Option<f64>,
    /// Added to the root of the second moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eps: Option<f64>,
    /// Weight decay λ.
    pub weight_decay: f64,
    /// `true`: a step shrinks weights by lr·λ (PyTorch, Keras 3). `false`: by λ alone, as
    /// TensorFlow Addons' AdamW does, with which some of the published numbers were made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_decay_by_lr: Option<bool>,
    /// Decay of SGD's running sum of gradients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// Whether SGD steps along the gradient and the momentum after it (Nesterov).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nesterov: Option<bool>,
    /// `true`: λ is for matrices and kernels only, not for biases, norms, layer scales, tokens and embeddings.
    /// Otherwise for every trainable tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decay_weights_only: Option<bool>,
    /// The learning rate of a block is this times that of the block after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_decay: Option<f64>,
}

/// An optimiser with the constants it has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Algorithm {
    /// See [`OptimizerName::AdamW`].
    AdamW {
        /// [`OptimizerRecipe::beta1`].
        beta1: f64,
        /// [`OptimizerRecipe::beta2`].
        beta2: f64,
        /// [`OptimizerRecipe::eps`].
        eps: f64,
        /// [`OptimizerRecipe::scale_decay_by_lr`].
        scale_decay_by_lr: bool,
    },
    /// See [`OptimizerName::Sgd`].
    Sgd {
        /// [`OptimizerRecipe::momentum`].
        momentum: f64,
        /// [`OptimizerRecipe::nesterov`].
        nesterov: bool,
    },
    /// See [`OptimizerName::Lamb`].
    Lamb {
        /// [`OptimizerRecipe::beta1`].
        beta1: f64,
        /// [`OptimizerRecipe::beta2`].
        beta2: f64,
        /// [`OptimizerRecipe::eps`].
        eps: f64,
    },
    /// See [`OptimizerName::Lion`].
    Lion {
        /// [`OptimizerRecipe::beta1`].
        beta1: f64,
        /// [`OptimizerRecipe::beta2`].
        beta2: f64,
    },
}

impl OptimizerRecipe {
    /// The optimiser with its constants.
    ///
    /// # Errors
    /// One it needs and the recipe lacks, one it has no use for, or one out of its range.
    pub fn algorithm(&self) -> Result<Algorithm, RecipeError> {
        let mut given = self.clone();
        let algorithm = match self.name {
            OptimizerName::AdamW => Algorithm::AdamW {
                beta1: share("optimizer.beta1", given.beta1.take())?,
                beta2: share("optimizer.beta2", given.beta2.take())?,
                eps: positive("optimizer.eps", given.eps.take())?,
                scale_decay_by_lr: need("optimizer.scale_decay_by_lr", given.scale_decay_by_lr.take())?,
            },
            OptimizerName::Sgd => Algorithm::Sgd {
                momentum: share("optimizer.momentum", given.momentum.take())?,
                nesterov: need("optimizer.nesterov", given.nesterov.take())?,
            },
            OptimizerName::Lamb => Algorithm::Lamb {
                beta1: share("optimizer.beta1", given.beta1.take())?,
                beta2: share("optimizer.beta2", given.beta2.take())?,
                eps: positive("optimizer.eps", given.eps.take())?,
            },
            OptimizerName::Lion => Algorithm::Lion {
                beta1: share("optimizer.beta1", given.beta1.take())?,
                beta2: share("optimizer.beta2", given.beta2.take())?,
            },
        };
        let numbers = [
            ("optimizer.beta1", given.beta1),
            ("optimizer.beta2", given.beta2),
            ("optimizer.eps", given.eps),
            ("optimizer.momentum", given.momentum),
        ];
        for (field, left) in numbers {
            without(field, left)?;
        }
        without("optimizer.scale_decay_by_lr", given.scale_decay_by_lr)?;
        without("optimizer.nesterov", given.nesterov)?;
        if let Algorithm::Sgd { momentum: 0.0, nesterov: true } = algorithm {
            return fault("optimizer.nesterov", true, "Nesterov's step needs a momentum above 0");
        }
        Ok(algorithm)
    }

    pub(crate) fn check(&self, faults: &mut Faults) {
        let Self { lr, weight_decay, .. } = *self;
        faults.check("optimizer.lr", lr, lr.is_finite() && lr > 0.0, "a finite number above 0");
        let holds = weight_decay.is_finite() && weight_decay >= 0.0;
        faults.check("optimizer.weight_decay", weight_decay, holds, "a finite number, 0 or more");
        if let Some(decay) = self.layer_decay {
            let holds = decay > 0.0 && decay <= 1.0;
            faults.check("optimizer.layer_decay", decay, holds, "above 0, at most 1");
        }
        faults.0.extend(self.algorithm().err());
    }
}

fn fault<T>(field: &'static str, value: impl fmt::Display, expected: &'static str) -> Result<T, RecipeError> {
    Err(RecipeError { field, value: value.to_string(), expected })
}

fn need<T>(field: &'static str, value: Option<T>) -> Result<T, RecipeError> {
    value.map_or_else(|| fault(field, "(missing)", "this optimizer needs it"), Ok)
}

/// Refuses what the optimiser has no use for.
fn without(field: &'static str, left: Option<impl fmt::Display>) -> Result<(), RecipeError> {
    let expected = "this optimizer has no such constant; leave it out";
    left.map_or(Ok(()), |value| fault(field, value, expected))
}

fn share(field: &'static str, value: Option<f64>) -> Result<f64, RecipeError> {
    let value = need(field, value)?;
    if (0.0..1.0).contains(&value) { Ok(value) } else { fault(field, value, "0 or more, below 1") }
}

fn positive(field: &'static str, value: Option<f64>) -> Result<f64, RecipeError> {
    let value = need(field, value)?;
    if value.is_finite() && value > 0.0 { Ok(value) } else { fault(field, value, "a finite number above 0") }
}

/// How the learning rate moves over a run. Warm-ups and ends count from the run's first step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// `optimizer.lr` throughout.
    Constant {},
    /// From 0 to `optimizer.lr` in a line, then to 0 along half a cosine: 0 before the run's first update and after
    /// its last one, and above 0 in all of them.
    WarmupCosine {
        /// Share of the run's steps that warm up, rounded down to whole steps.
        warmup: f64,
        /// `true`: count steps as the published PatchConvNet tutorial does. The last, smaller batch of an epoch counts by
        /// its share of a batch, ⌊images / batch size · epochs⌋ steps in all; the first update is at rate 0, and so are
        /// those that the run makes beyond that number. Otherwise a step is an update.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tutorial_steps: Option<bool>,
    },
    /// timm's cosine: a line from `warmup_lr` towards `optimizer.lr`, half a cosine to `min_lr`, then `min_lr`. The
    /// cosine's phase counts from the first epoch, so the rate jumps where the warm-up ends.
    Cosine {
        /// Where it ends.
        min_lr: f64,
        /// Where the warm-up starts.
        warmup_lr: f64,
        /// Epochs of warm-up.
        warmup_epochs: u32,
        /// Epochs at the end that stay at `min_lr`; part of `train.epochs`.
        cooldown_epochs: u32,
        /// Whether the rate moves with every update, not from epoch to epoch.
        on_updates: bool,
    },
    /// A line from point to point; ConvMixer's published CIFAR-10 schedule is one.
    PiecewiseLinear {
        /// Epochs, whole or not, and what `optimizer.lr` is multiplied by then; epochs ascend.
        points: Vec<(f64, f64)>,
    },
    /// One rise and one fall (Smith & Topin, arXiv:1708.07120), as PyTorch's `OneCycleLR` with two phases.
    OneCycle {
        /// Share of the run's steps that rise.
        pct_start: f64,
        /// The first rate is `optimizer.lr` divided by this.
        div_factor: f64,
        /// The last rate is the first divided by this.
        final_div_factor: f64,
        /// The curve between.
        anneal_strategy: Anneal,
    },
    /// `optimizer.lr` divided by the epochs of warm-up that are left, then half a cosine to 0 from epoch to epoch: the
    /// small training script of the Compact Transformers.
    HarmonicWarmupCosine {
        /// Epochs of warm-up.
        warmup_epochs: u32,
    },
}

/// The curve a rate follows between two values; `anneal_strategy` of PyTorch's `OneCycleLR`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Anneal {
    /// Half a cosine.
    Cos,
    /// A line.
    Linear,
}

impl Schedule {
    /// The name in recipes.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Constant {} => "constant",
            Self::WarmupCosine { .. } => "warmup_cosine",
            Self::Cosine { .. } => "cosine",
            Self::PiecewiseLinear { .. } => "piecewise_linear",
            Self::OneCycle { .. } => "one_cycle",
            Self::HarmonicWarmupCosine { .. } => "harmonic_warmup_cosine",
        }
    }

    pub(crate) fn check(&self, epochs: u32, faults: &mut Faults) {
        let finite = |x: f64| x.is_finite() && x >= 0.0;
        let within = "at most train.epochs";
        match self {
            Self::Constant {} => {}
            Self::WarmupCosine { warmup, .. } => {
                faults.check("schedule.warmup", warmup, (0.0..1.0).contains(warmup), "0 or more, below 1")
            }
            Self::Cosine { min_lr, warmup_lr, warmup_epochs, cooldown_epochs, .. } => {
                faults.check("schedule.min_lr", min_lr, finite(*min_lr), "a finite number, 0 or more");
                faults.check(
                    "schedule.warmup_lr",
                    warmup_lr,
                    finite(*warmup_lr),
                    "a finite number, 0 or more",
                );
                faults.check("schedule.warmup_epochs", warmup_epochs, *warmup_epochs <= epochs, within);
                faults.check(
                    "schedule.cooldown_epochs",
                    cooldown_epochs,
                    *cooldown_epochs < epochs,
                    "below train.epochs",
                )
            }
            Self::PiecewiseLinear { points } => {
                let shown = || format!("{points:?}");
                let ascending = points.windows(2).all(|pair| pair[0].0 <= pair[1].0);
                let numbers = points.iter().all(|&(at, factor)| finite(at) && finite(factor));
                let holds = !points.is_empty() && ascending && numbers;
                let expected =
                    "one or more pairs [epoch, factor], numbers of 0 or more, the epochs ascending";
                faults.check("schedule.points", shown(), holds, expected)
            }
            Self::OneCycle { pct_start, div_factor, final_div_factor, .. } => {
                faults.check("schedule.pct_start", pct_start, (0.0..=1.0).contains(pct_start), "0 to 1");
                for (field, factor) in
                    [("schedule.div_factor", div_factor), ("schedule.final_div_factor", final_div_factor)]
                {
                    faults.check(
                        field,
                        factor,
                        factor.is_finite() && *factor >= 1.0,
                        "a finite number, 1 or more",
                    );
                }
            }
            Self::HarmonicWarmupCosine { warmup_epochs } => {
                faults.check("schedule.warmup_epochs", warmup_epochs, *warmup_epochs <= epochs, within)
            }
        }
    }
}

/// A running average of the weights, which is then what is validated, kept and tested.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmaRecipe {
    /// What is left of the average after an update; the rest is the new weights.
    pub decay: f64,
    /// Whether the decay grows to that from 0: after n updates it is at most 1 − (1 + n)^(−2/3), as timm's
    /// `ModelEmaV3` has it.
    pub warmup: bool,
}

/// What to do when the loss is no longer a number, instead of giving up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackRecipe {
    /// How often in a run to go back to the last good checkpoint.
    pub times: u32,
    /// What the learning rate is multiplied by each time.
    pub lr_factor: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adamw() -> OptimizerRecipe {
        OptimizerRecipe {
            name: OptimizerName::AdamW,
            lr: 1e-3,
            beta1: Some(0.9),
            beta2: Some(0.999),
            eps: Some(1e-8),
            weight_decay: 0.05,
            scale_decay_by_lr: Some(true),
            momentum: None,
            nesterov: None,
            decay_weights_only: None,
            layer_decay: None,
        }
    }

    fn refusal(recipe: &OptimizerRecipe) -> String {
        let mut faults = Faults::default();
        recipe.check(&mut faults);
        let [fault] = faults.0.as_slice() else { panic!("{faults:?}") };
        fault.to_string()
    }

    #[test]
    fn an_optimiser_has_its_constants_and_no_others() {
        let whole = Algorithm::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, scale_decay_by_lr: true };
        assert_eq!(adamw().algorithm(), Ok(whole));
        assert_eq!(
            refusal(&OptimizerRecipe { eps: None, ..adamw() }),
            "optimizer.eps = (missing): this optimizer needs it"
        );
        let foreign = OptimizerRecipe { momentum: Some(0.9), ..adamw() };
        assert_eq!(
            refusal(&foreign),
            "optimizer.momentum = 0.9: this optimizer has no such constant; leave it out"
        );
        let lion = OptimizerRecipe { name: OptimizerName::Lion, eps: None, ..adamw() };
        assert!(refusal(&lion).starts_with("optimizer.scale_decay_by_lr = true: this optimizer has no"));
        let sgd = OptimizerRecipe {
            name: OptimizerName::Sgd,
            beta1: None,
            beta2: None,
            eps: None,
            scale_decay_by_lr: None,
            momentum: Some(0.0),
            nesterov: Some(false),
            ..adamw()
        };
        assert_eq!(sgd.algorithm(), Ok(Algorithm::Sgd { momentum: 0.0, nesterov: false }));
        assert!(refusal(&OptimizerRecipe { nesterov: Some(true), ..sgd }).contains("momentum above 0"));
    }

    #[test]
    fn constants_have_ranges() {
        for (recipe, field) in [
            (OptimizerRecipe { beta1: Some(1.0), ..adamw() }, "optimizer.beta1"),
            (OptimizerRecipe { eps: Some(0.0), ..adamw() }, "optimizer.eps"),
            (OptimizerRecipe { lr: f64::NAN, ..adamw() }, "optimizer.lr"),
            (OptimizerRecipe { weight_decay: -1.0, ..adamw() }, "optimizer.weight_decay"),
            (OptimizerRecipe { layer_decay: Some(1.5), ..adamw() }, "optimizer.layer_decay"),
        ] {
            assert!(refusal(&recipe).starts_with(field), "{}", refusal(&recipe));
        }
    }

    #[test]
    fn schedules_are_read_by_name_and_have_ranges() {
        let read = |text: &str| {
            let mut faults = Faults::default();
            toml::from_str::<Schedule>(text).map(|schedule| schedule.check(10, &mut faults))?;
            Ok::<_, toml::de::Error>(faults.0.into_iter().map(|fault| fault.field).collect::<Vec<_>>())
        };
        let one_cycle = "name = \"one_cycle\"\npct_start = 0.3\ndiv_factor = 25.0\nfinal_div_factor = 1e4\n";
        for good in [
            "name = \"constant\"",
            "name = \"piecewise_linear\"\npoints = [[0, 0], [4, 1], [8, 0.05], [10, 0]]",
            "name = \"harmonic_warmup_cosine\"\nwarmup_epochs = 10",
            "name = \"warmup_cosine\"\nwarmup = 0.0\ntutorial_steps = true",
            &format!("{one_cycle}anneal_strategy = \"cos\""),
            "name = \"cosine\"\nmin_lr = 1e-5\nwarmup_lr = 1e-6\nwarmup_epochs = 5\ncooldown_epochs = 2\non_updates = true",
        ] {
            assert_eq!(read(good), Ok(Vec::new()), "{good}");
        }
        for (bad, field) in [
            ("name = \"piecewise_linear\"\npoints = [[4, 1], [2, 0]]", "schedule.points"),
            ("name = \"piecewise_linear\"\npoints = []", "schedule.points"),
            ("name = \"harmonic_warmup_cosine\"\nwarmup_epochs = 11", "schedule.warmup_epochs"),
            ("name = \"warmup_cosine\"\nwarmup = 1.0", "schedule.warmup"),
        ] {
            assert_eq!(read(bad), Ok(vec![field]), "{bad}");
        }
        assert!(read("name = \"constant\"\nwarmup = 1").is_err());
    }
}
