//! The training loop.

use std::time::Instant;

use core_layers::Model;
use data_cifar::{flip_mask, keyed_seed, permutation};
use run_record::{EpochStats, OptimizerName, OptimizerRecipe, Recipe};
use tch::nn::{self, OptimizerConfig, VarStore};

use crate::Error;
use crate::data::{Part, Presentation};
use crate::evaluate::{Sums, cross_entropy, evaluate};
use crate::progress::Progress;

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
    let mut optimizer = optimizer(job.vs, &recipe.optimizer)?;
    let mut history: Vec<EpochStats> = Vec::new();
    let mut best_top1 = f64::NEG_INFINITY;

    for epoch in 1..=recipe.train.epochs {
        progress.epoch(epoch);
        let started = Instant::now();
        let order = permutation(seed, epoch.into(), job.train.range.clone());
        let flips = recipe.data.flip.then(|| flip_mask(seed, epoch.into(), &order));
        let mut sums = Sums::new(job.vs.device());

        let batches = job.train.set.batches(&order, flips.as_deref(), recipe.train.batch_size)?;
        for (step, batch) in batches.enumerate() {
            let batch = batch?;
            // Whatever the network draws inside depends on the seed and the step alone.
            tch::manual_seed(keyed_seed(seed, "network", epoch.into(), step as u64));
            let logits = network.forward_t(&job.presentation.apply(&batch.images)?, true);
            let loss = cross_entropy(&logits, &batch.labels, smoothing)?;
            optimizer.zero_grad();
            loss.f_backward()?;
            optimizer.step();
            sums.add(&loss, &logits, &batch.labels);
            progress.step(batch.labels.size()[0] as usize);
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
            lr: recipe.optimizer.lr,
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

/// The recipe's optimiser over every trainable tensor of `vs`.
fn optimizer(vs: &VarStore, recipe: &OptimizerRecipe) -> Result<nn::Optimizer, Error> {
    let OptimizerRecipe { name, lr, beta1, beta2, eps, weight_decay, scale_decay_by_lr } = *recipe;
    match name {
        OptimizerName::AdamW => {
            // libtorch shrinks weights by lr·wd per step; with a constant lr, wd = λ/lr makes that λ.
            let wd = if scale_decay_by_lr { weight_decay } else { weight_decay / lr };
            Ok(nn::AdamW { beta1, beta2, wd, eps, amsgrad: false }.build(vs, lr)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

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

    /// Two steps on one weight of 1 with gradients 1 and −2, in f64 by hand.
    fn by_hand(decay: f64) -> f64 {
        let (mut theta, mut m, mut v) = (1.0f64, 0.0f64, 0.0f64);
        for (t, g) in [(1, 1.0f64), (2, -2.0)] {
            theta *= 1.0 - decay;
            m += 0.1 * (g - m);
            v += 0.001 * (g * g - v);
            let (m_hat, v_hat) = (m / (1.0 - 0.9f64.powi(t)), v / (1.0 - 0.999f64.powi(t)));
            theta -= 1e-3 * m_hat / (v_hat.sqrt() + 1e-7);
        }
        theta
    }

    #[test]
    fn adamw_decays_by_lr_times_lambda_or_by_lambda_alone() {
        for (scaled, decay) in [(true, 1e-7), (false, 1e-4)] {
            let vs = nn::VarStore::new(Device::Cpu);
            let weight = vs.root().add("w", Tensor::from_slice(&[1f64]), true);
            let mut optimizer = optimizer(&vs, &recipe(scaled)).unwrap();
            for gradient in [1.0, -2.0] {
                optimizer.backward_step(&(&weight * gradient).sum(Kind::Double));
            }
            let (got, want) = (weight.double_value(&[0]), by_hand(decay));
            assert!((got - want).abs() < 1e-9, "{got} {want}");
        }
    }
}
