//! The training loop.

use std::time::Instant;

use core_layers::Model;
use data_cifar::{Draw, keyed_seed, permutation, repeated};
use run_record::{EpochStats, OptimizerName, OptimizerRecipe, Recipe};
use tch::nn::{self, OptimizerConfig, VarStore};
use tch::{TchError, Tensor, no_grad};

use crate::Error;
use crate::data::Part;
use crate::evaluate::{Sums, cross_entropy, evaluate};
use crate::presentation::Presentation;
use crate::progress::Progress;
use crate::schedule::LearningRate;

/// Everything a run trains with.
#[derive(Debug)]
pub struct Job<'a> {
    /// What to do.
    pub recipe: &'a Recipe,
    /// Seed of every draw.
    pub seed: u64,
    /// The network.
    pub network: &'a dyn Model,
    /// Its tensors.
    pub vs: &'a VarStore,
    /// Images to learn from.
    pub train: Part<'a>,
    /// Images to choose the best epoch by.
    pub validation: Part<'a>,
    /// How images are fed.
    pub presentation: Presentation,
}

/// Trains for the recipe's epochs. After each, `epoch_done` is given the history so far and whether
/// its last epoch is the best yet, to save what must last.
///
/// # Errors
/// A loss that is no longer a number, libtorch's refusal, or what `epoch_done` answers.
pub fn fit(
    job: &Job,
    progress: &Progress,
    mut epoch_done: impl FnMut(&[EpochStats], bool) -> Result<(), Error>,
) -> Result<Vec<EpochStats>, Error> {
    let Job { recipe, seed, network, .. } = *job;
    let smoothing = recipe.train.label_smoothing;
    let mut optimizer = Optimizer::new(job.vs, &recipe.optimizer)?;
    // Repetition rounds an epoch's length down, and the schedule with it.
    let epoch_len = repeated(&job.train.indices(), job.presentation.repeats).len();
    let lr = LearningRate::new(recipe, epoch_len);
    let mut updates = 0;
    let mut history: Vec<EpochStats> = Vec::new();
    let mut best_top1 = f64::NEG_INFINITY;

    for epoch in 1..=recipe.train.epochs {
        progress.epoch(epoch);
        let started = Instant::now();
        let draw = Draw { seed, epoch: epoch.into(), repeats: job.presentation.repeats };
        let order = repeated(&permutation(seed, draw.epoch, job.train.range.clone()), draw.repeats);
        let mut sums = Sums::new(job.vs.device());

        for shown in job.presentation.epoch(job.train.set, &order, recipe.train.batch_size, draw)? {
            let shown = shown?;
            // Whatever the network draws inside depends on the seed and the step alone.
            tch::manual_seed(keyed_seed(seed, "network", epoch.into(), shown.number));
            let logits = network.forward_t(&shown.images, true);
            let loss = cross_entropy(&logits, &shown.targets, shown.smoothing)?;
            optimizer.step(&loss, lr.at(updates))?;
            updates += 1;
            sums.add(&loss, &logits, &shown.labels);
            progress.step(shown.labels.size()[0] as usize);
        }

        // The only place in an epoch that waits for the device.
        let train = sums.read();
        let train_seconds = started.elapsed().as_secs_f64();
        require_finite("training", train.loss, epoch, recipe)?;

        let started = Instant::now();
        let batch_size = recipe.train.batch_size;
        let validation = evaluate(network, &job.validation, &job.presentation, batch_size, smoothing)?;
        require_finite("validation", validation.loss, epoch, recipe)?;
        let best = validation.top1 > best_top1; // a tie keeps the earlier epoch
        best_top1 = best_top1.max(validation.top1);
        history.push(EpochStats {
            epoch,
            lr: lr.at(updates.saturating_sub(1)),
            train_loss: train.loss,
            train_top1: train.top1,
            val_loss: validation.loss,
            val_top1: validation.top1,
            val_top5: validation.top5,
            images_per_second: order.len() as f64 / train_seconds,
            train_seconds,
            val_seconds: started.elapsed().as_secs_f64(),
        });
        epoch_done(&history, best)?;
        if let Some(stats) = history.last() {
            progress.epoch_done(stats, best);
        }
    }
    Ok(history)
}

fn require_finite(what: &str, loss: f64, epoch: u32, recipe: &Recipe) -> Result<(), Error> {
    if loss.is_finite() {
        return Ok(());
    }
    let lr = recipe.optimizer.lr;
    Err(Error::Training(format!("the {what} loss became {loss} in epoch {epoch}; lower optimizer.lr ({lr})")))
}

/// The recipe's optimiser over every trainable tensor.
#[derive(Debug)]
struct Optimizer {
    inner: nn::Optimizer,
    /// What every step shrinks by, whatever the learning rate, and by how much of itself.
    unscaled_decay: Option<(Vec<Tensor>, f64)>,
}

impl Optimizer {
    fn new(vs: &VarStore, recipe: &OptimizerRecipe) -> Result<Self, Error> {
        let OptimizerRecipe { name, lr, beta1, beta2, eps, weight_decay, scale_decay_by_lr } = *recipe;
        let wd = if scale_decay_by_lr { weight_decay } else { 0.0 };
        let inner = match name {
            OptimizerName::AdamW => nn::AdamW { beta1, beta2, wd, eps, amsgrad: false }.build(vs, lr)?,
        };
        let unscaled_decay = (!scale_decay_by_lr).then(|| (vs.trainable_variables(), weight_decay));
        Ok(Self { inner, unscaled_decay })
    }

    /// One update down the gradient of `loss`.
    fn step(&mut self, loss: &Tensor, lr: f64) -> Result<(), TchError> {
        self.inner.zero_grad();
        loss.f_backward()?;
        if let Some((weights, decay)) = &mut self.unscaled_decay {
            no_grad(|| {
                weights.iter_mut().try_for_each(|weight| weight.f_mul_scalar_(1.0 - *decay).map(drop))
            })?;
        }
        self.inner.set_lr(lr);
        self.inner.step();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn recipe(scale_decay_by_lr: bool) -> OptimizerRecipe {
        let name = OptimizerName::AdamW;
        OptimizerRecipe {
            name,
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-7,
            weight_decay: 1e-4,
            scale_decay_by_lr,
        }
    }

    /// Three steps on one weight of 1 with gradients 1, −2 and 0.5 at three rates, in f64 by hand.
    fn by_hand(scaled: bool) -> f64 {
        let (mut theta, mut m, mut v) = (1.0f64, 0.0f64, 0.0f64);
        for (t, (g, lr)) in (1..).zip(STEPS) {
            theta *= 1.0 - if scaled { lr * 1e-4 } else { 1e-4 };
            m += 0.1 * (g - m);
            v += 0.001 * (g * g - v);
            let (m_hat, v_hat) = (m / (1.0 - 0.9f64.powi(t)), v / (1.0 - 0.999f64.powi(t)));
            theta -= lr * m_hat / (v_hat.sqrt() + 1e-7);
        }
        theta
    }

    /// Gradient and learning rate; at a rate of 0 only the unscaled decay acts.
    const STEPS: [(f64, f64); 3] = [(1.0, 1e-3), (-2.0, 2e-3), (0.5, 0.0)];

    #[test]
    fn adamw_decays_by_lr_times_lambda_or_by_lambda_alone() {
        for scaled in [true, false] {
            let vs = nn::VarStore::new(Device::Cpu);
            let weight = vs.root().add("w", Tensor::from_slice(&[1f64]), true);
            let mut optimizer = Optimizer::new(&vs, &recipe(scaled)).unwrap();
            for (gradient, lr) in STEPS {
                optimizer.step(&(&weight * gradient).sum(Kind::Double), lr).unwrap();
            }
            let (got, want) = (weight.double_value(&[0]), by_hand(scaled));
            assert!((got - want).abs() < 1e-9, "{got} {want}");
        }
        assert!(by_hand(true) - by_hand(false) > 2.9e-4);
    }
}
