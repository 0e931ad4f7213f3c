//! The part of a recipe that says how weights move: optimiser, schedule, averaging, what to do when it fails.

use serde::{Deserialize, Serialize};

use crate::fault::Faults;

/// The optimiser: what all have, and which it is with what it has by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OptimizerRecipe {
    /// Which, with its own constants.
    #[serde(flatten)]
    pub algorithm: Algorithm,
    /// Learning rate, which the schedule multiplies.
    pub lr: f64,
    /// Weight decay λ.
    pub weight_decay: f64,
    /// `true`: λ is for matrices and kernels only, not for biases, norms, layer scales, tokens and embeddings.
    /// Otherwise for every trainable tensor.
    #[serde(default)]
    pub decay_weights_only: bool,
    /// The learning rate of a block is this times that of the block after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_decay: Option<f64>,
    /// Slow weights that follow, and that the optimiser returns to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lookahead: Option<Lookahead>,
}

/// Lookahead (Zhang et al., arXiv:1907.08610) as timm has it: after every `k` updates slow weights move towards the
/// network's, which then go on from there. The first `k` updates only say where the slow weights begin.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lookahead {
    /// Updates between two moves.
    pub k: u64,
    /// Share of the way that a move goes.
    pub alpha: f64,
}

/// An optimiser by name, with the constants it has. Those that [`OptimizerRecipe`] does not know come here, so that an
/// unknown key is an error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase", deny_unknown_fields)]
pub enum Algorithm {
    /// Adam with decoupled weight decay (Loshchilov & Hutter, arXiv:1711.05101).
    AdamW {
        /// Decay of the running mean of gradients.
        beta1: f64,
        /// Decay of the running mean of squared gradients.
        beta2: f64,
        /// Added to the root of the second moment.
        eps: f64,
        /// `true`: a step shrinks weights by lr·λ (PyTorch, Keras 3). `false`: by λ alone, as
        /// TensorFlow Addons' AdamW does, with which some of the published numbers were made.
        scale_decay_by_lr: bool,
    },
    /// Gradient descent with momentum; weight decay is added to the gradient.
    Sgd {
        /// Decay of the running sum of gradients.
        momentum: f64,
        /// Whether it steps along the gradient and the momentum after it (Nesterov).
        nesterov: bool,
    },
    /// LAMB (You et al., arXiv:1904.00962) as timm has it: Adam's step, scaled per tensor to the length of the tensor.
    Lamb {
        /// Decay of the running mean of gradients.
        beta1: f64,
        /// Decay of the running mean of squared gradients.
        beta2: f64,
        /// Added to the root of the second moment.
        eps: f64,
    },
    /// Lion (Chen et al., arXiv:2302.06675): the sign of a running mean.
    Lion {
        /// Share of the running mean in the step.
        beta1: f64,
        /// Decay of the running mean of gradients.
        beta2: f64,
    },
    /// Muon (Jordan et al., 2024) as timm has it: matrices and kernels move by the orthogonal matrix nearest to a running
    /// mean of gradients, at a rate scaled so that it suits AdamW too (Liu et al., arXiv:2502.16982); all else by AdamW.
    Muon {
        /// Decay of the running mean of gradients of matrices.
        momentum: f64,
        /// Whether matrices step along the gradient and the mean after it (Nesterov).
        nesterov: bool,
        /// AdamW's decay of the running mean of gradients.
        beta1: f64,
        /// AdamW's decay of the running mean of squared gradients.
        beta2: f64,
        /// Added to the root of AdamW's second moment, and the least length that a matrix is divided by.
        eps: f64,
    },
}

impl OptimizerRecipe {
    pub(crate) fn check(&self, faults: &mut Faults) {
        faults.positive("optimizer.lr", self.lr);
        faults.non_negative("optimizer.weight_decay", self.weight_decay);
        if let Some(decay) = self.layer_decay {
            faults.factor("optimizer.layer_decay", decay);
        }
        if let Some(Lookahead { k, alpha }) = self.lookahead {
            faults.within("optimizer.lookahead.k", k, 1..=1_000_000);
            faults.factor("optimizer.lookahead.alpha", alpha);
        }
        match self.algorithm {
            Algorithm::AdamW { beta1, beta2, eps, .. } | Algorithm::Lamb { beta1, beta2, eps } => {
                faults.fraction("optimizer.beta1", beta1);
                faults.fraction("optimizer.beta2", beta2);
                faults.positive("optimizer.eps", eps);
            }
            Algorithm::Lion { beta1, beta2 } => {
                faults.fraction("optimizer.beta1", beta1);
                faults.fraction("optimizer.beta2", beta2);
            }
            Algorithm::Muon { momentum, beta1, beta2, eps, .. } => {
                faults.fraction("optimizer.momentum", momentum);
                faults.fraction("optimizer.beta1", beta1);
                faults.fraction("optimizer.beta2", beta2);
                faults.positive("optimizer.eps", eps);
            }
            Algorithm::Sgd { momentum, nesterov } => {
                faults.fraction("optimizer.momentum", momentum);
                let holds = !nesterov || momentum != 0.0;
                faults.check(
                    "optimizer.nesterov",
                    nesterov,
                    holds,
                    "Nesterov's step needs a momentum above 0",
                );
            }
        }
    }
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
        #[serde(default)]
        tutorial_steps: bool,
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

    /// The schedule of a run of `epochs`, with all that counts in epochs multiplied by `factor`. One epoch at least does
    /// not belong to the warm-up or the cooldown.
    pub(crate) fn stretched(&self, factor: f64, epochs: u32) -> Self {
        let share = |count: u32, most: u32| ((f64::from(count) * factor).round() as u32).min(most);
        let mut stretched = self.clone();
        match &mut stretched {
            Self::Constant {} | Self::WarmupCosine { .. } | Self::OneCycle { .. } => {}
            Self::Cosine { warmup_epochs, cooldown_epochs, .. } => {
                *warmup_epochs = share(*warmup_epochs, epochs.saturating_sub(1));
                *cooldown_epochs = share(*cooldown_epochs, epochs.saturating_sub(1 + *warmup_epochs));
            }
            Self::HarmonicWarmupCosine { warmup_epochs } => {
                *warmup_epochs = share(*warmup_epochs, epochs.saturating_sub(1));
            }
            Self::PiecewiseLinear { points } => points.iter_mut().for_each(|(epoch, _)| *epoch *= factor),
        }
        stretched
    }

    pub(crate) fn check(&self, epochs: u32, faults: &mut Faults) {
        match *self {
            Self::Constant {} => {}
            Self::WarmupCosine { warmup, .. } => faults.fraction("schedule.warmup", warmup),
            Self::Cosine { min_lr, warmup_lr, warmup_epochs, cooldown_epochs, .. } => {
                faults.non_negative("schedule.min_lr", min_lr);
                faults.non_negative("schedule.warmup_lr", warmup_lr);
                Self::check_warmup(warmup_epochs, epochs, faults);
                let holds = cooldown_epochs < epochs;
                faults.check("schedule.cooldown_epochs", cooldown_epochs, holds, "below train.epochs");
            }
            Self::PiecewiseLinear { ref points } => {
                let ascending = points.windows(2).all(|pair| pair[0].0 <= pair[1].0);
                let number = |x: f64| x.is_finite() && x >= 0.0;
                let numbers = points.iter().all(|&(at, factor)| number(at) && number(factor));
                let remedy = "one or more pairs [epoch, factor], numbers of 0 or more, the epochs ascending";
                let holds = !points.is_empty() && ascending && numbers;
                faults.check("schedule.points", format!("{points:?}"), holds, remedy);
            }
            Self::OneCycle { pct_start, div_factor, final_div_factor, .. } => {
                faults.within("schedule.pct_start", pct_start, 0.0..=1.0);
                for (field, factor) in
                    [("schedule.div_factor", div_factor), ("schedule.final_div_factor", final_div_factor)]
                {
                    let holds = factor.is_finite() && factor >= 1.0;
                    faults.check(field, factor, holds, "a finite number, 1 or more");
                }
            }
            Self::HarmonicWarmupCosine { warmup_epochs } => Self::check_warmup(warmup_epochs, epochs, faults),
        }
    }

    fn check_warmup(warmup_epochs: u32, epochs: u32, faults: &mut Faults) {
        let holds = warmup_epochs <= epochs;
        faults.check("schedule.warmup_epochs", warmup_epochs, holds, "at most train.epochs");
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

impl EmaRecipe {
    pub(crate) fn check(&self, faults: &mut Faults) {
        faults.fraction("ema.decay", self.decay);
    }
}

impl RollbackRecipe {
    pub(crate) fn check(&self, faults: &mut Faults) {
        faults.check("rollback.times", self.times, self.times > 0, "1 or more");
        faults.factor("rollback.lr_factor", self.lr_factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADAMW: &str = "name = \"adamw\"\nlr = 1e-3\nweight_decay = 0.05\nbeta1 = 0.9\nbeta2 = 0.999\neps = 1e-8\n\
        scale_decay_by_lr = true\n";
    const SGD: &str = "name = \"sgd\"\nlr = 1\nweight_decay = 0\nmomentum = 0.9\nnesterov = true\n";
    const LION: &str = "name = \"lion\"\nlr = 1e-4\nweight_decay = 0\nbeta1 = 0.9\nbeta2 = 0.99\n";
    const LAMB: &str =
        "name = \"lamb\"\nlr = 5e-3\nweight_decay = 0\nbeta1 = 0.9\nbeta2 = 0.99\neps = 1e-6\n";

    const MUON: &str = "name = \"muon\"\nlr = 1e-3\nweight_decay = 0.05\nmomentum = 0.95\nnesterov = true\nbeta1 = 0.9\n\
        beta2 = 0.95\neps = 1e-7\n";

    fn read(text: &str) -> Result<OptimizerRecipe, toml::de::Error> {
        toml::from_str(text)
    }

    /// The fields that are out of range.
    fn wrong(check: impl Fn(&mut Faults)) -> Vec<String> {
        let mut faults = Faults::default();
        check(&mut faults);
        let faults = faults.result().err().map_or_else(Vec::new, |errors| errors.0);
        faults.into_iter().map(|fault| fault.field).collect()
    }

    #[test]
    fn an_optimiser_has_its_constants_and_no_others() {
        let adamw = Algorithm::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, scale_decay_by_lr: true };
        for (text, algorithm) in [
            (ADAMW, adamw),
            (SGD, Algorithm::Sgd { momentum: 0.9, nesterov: true }),
            (LION, Algorithm::Lion { beta1: 0.9, beta2: 0.99 }),
            (LAMB, Algorithm::Lamb { beta1: 0.9, beta2: 0.99, eps: 1e-6 }),
            (MUON, Algorithm::Muon { momentum: 0.95, nesterov: true, beta1: 0.9, beta2: 0.95, eps: 1e-7 }),
        ] {
            let recipe = read(text).unwrap();
            assert_eq!((recipe.algorithm, recipe.layer_decay), (algorithm, None));
            assert!(!recipe.decay_weights_only);
            assert_eq!(wrong(|faults| recipe.check(faults)), [""; 0]);
            assert_eq!(read(&toml::to_string(&recipe).unwrap()).unwrap(), recipe);
        }
        for (text, words) in [
            (ADAMW.replace("eps = 1e-8\n", ""), "missing field `eps`"),
            (ADAMW.replace("lr = 1e-3\n", ""), "missing field `lr`"),
            (ADAMW.replace("name = \"adamw\"\n", ""), "missing field `name`"),
            (ADAMW.to_owned() + "momentum = 0.9", "unknown field `momentum`"),
            (ADAMW.to_owned() + "decay_weight_only = true", "unknown field `decay_weight_only`"),
            (LION.to_owned() + "scale_decay_by_lr = true", "unknown field `scale_decay_by_lr`"),
            (SGD.replace("sgd", "sdg"), "unknown variant `sdg`"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.message().contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn constants_have_ranges() {
        for (text, from, to, field) in [
            (ADAMW, "0.9\n", "1.0\n", "optimizer.beta1"),
            (LAMB, "0.99", "nan", "optimizer.beta2"),
            (LION, "0.99", "-0.1", "optimizer.beta2"),
            (ADAMW, "1e-8", "0.0", "optimizer.eps"),
            (MUON, "momentum = 0.95", "momentum = 1", "optimizer.momentum"),
            (MUON, "beta2 = 0.95", "beta2 = -1", "optimizer.beta2"),
            (MUON, "1e-7", "0", "optimizer.eps"),
            (ADAMW, "lr = 1e-3", "lr = nan", "optimizer.lr"),
            (ADAMW, "weight_decay = 0.05", "weight_decay = -1", "optimizer.weight_decay"),
            (ADAMW, "lr = 1e-3", "lr = 1e-3\nlayer_decay = 1.5", "optimizer.layer_decay"),
            (SGD, "0.9", "0.0", "optimizer.nesterov"),
        ] {
            let recipe = read(&text.replacen(from, to, 1)).unwrap();
            assert_eq!(wrong(|faults| recipe.check(faults)), [field]);
        }
        let rollback = RollbackRecipe { times: 0, lr_factor: 0.0 };
        assert_eq!(wrong(|faults| rollback.check(faults)), ["rollback.times", "rollback.lr_factor"]);
        assert_eq!(wrong(|faults| EmaRecipe { decay: 1.0, warmup: true }.check(faults)), ["ema.decay"]);
    }

    #[test]
    fn schedules_are_read_by_name_and_have_ranges() {
        let read = |text: &str| {
            let schedule = toml::from_str::<Schedule>(text)?;
            Ok::<_, toml::de::Error>(wrong(|faults| schedule.check(10, faults)))
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
            (
                &format!("{}anneal_strategy = \"linear\"", one_cycle.replace("25.0", "0.5")),
                "schedule.div_factor",
            ),
        ] {
            assert_eq!(read(bad), Ok(vec![field.to_owned()]), "{bad}");
        }
        assert!(read("name = \"constant\"\nwarmup = 1").is_err());
    }
}
