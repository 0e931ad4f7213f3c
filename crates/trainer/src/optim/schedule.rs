//! Learning rates as pure functions of the step.
//!
//! Every function gives the rate of the update before which `step` updates were made, or of the epoch before
//! which `epoch` were finished: both count from 0. For finite rates of 0 or more the result is one too, whatever
//! the counts.

use std::f64::consts::PI;

use run_record::{Anneal, Recipe, Schedule};

use crate::Error;

/// A run's schedule; see [`Schedule`].
#[derive(Debug, Clone)]
pub struct LearningRate {
    schedule: Schedule,
    base: f64,
    /// Images of an epoch.
    images: usize,
    batch_size: usize,
    epochs: u32,
}

impl LearningRate {
    /// The recipe's schedule for a run over `images` training images in an epoch.
    pub fn new(recipe: &Recipe, images: usize) -> Self {
        Self {
            schedule: recipe.schedule.clone(),
            base: recipe.optimizer.lr,
            images,
            batch_size: recipe.train.batch_size.max(1),
            epochs: recipe.train.epochs,
        }
    }

    /// Updates of an epoch.
    pub fn per_epoch(&self) -> u64 {
        self.images.div_ceil(self.batch_size).max(1) as u64
    }

    /// Steps of the run as [`Schedule::WarmupCosine`] counts them.
    fn steps(&self, tutorial_steps: bool) -> u64 {
        if tutorial_steps {
            let batches = self.images as f64 / self.batch_size as f64;
            (batches * f64::from(self.epochs)).floor() as u64
        } else {
            u64::from(self.epochs) * self.per_epoch()
        }
    }

    /// The rate of the update before which `step` were made.
    pub fn at(&self, step: u64) -> f64 {
        let (base, per_epoch, epochs) = (self.base, self.per_epoch(), u64::from(self.epochs));
        let epoch = step / per_epoch;
        match &self.schedule {
            Schedule::Constant {} => base,
            Schedule::WarmupCosine { warmup, tutorial_steps } => {
                let steps = self.steps(*tutorial_steps);
                let warm = (warmup * steps as f64).floor() as u64;
                // Otherwise the two zeros lie before the first update and after the last: a run may have few.
                let shift = u64::from(!*tutorial_steps);
                warmup_cosine(step.saturating_add(shift), warm + shift, steps + shift, base)
            }
            Schedule::Cosine { min_lr, warmup_lr, warmup_epochs, cooldown_epochs, on_updates } => {
                let (t, each) = if *on_updates { (step, per_epoch) } else { (epoch, 1) };
                let cosine = epochs.saturating_sub((*cooldown_epochs).into()) * each;
                timm_cosine(t, base, cosine, *min_lr, u64::from(*warmup_epochs) * each, *warmup_lr)
            }
            Schedule::PiecewiseLinear { points } => {
                // The time an update ends.
                base * piecewise_linear((step + 1) as f64 / per_epoch as f64, points)
            }
            Schedule::OneCycle { pct_start, div_factor, final_div_factor, anneal_strategy } => one_cycle(
                step,
                epochs * per_epoch,
                base,
                *pct_start,
                *div_factor,
                *final_div_factor,
                *anneal_strategy,
            ),
            Schedule::HarmonicWarmupCosine { warmup_epochs } => {
                harmonic_warmup_cosine(epoch, (*warmup_epochs).into(), epochs, base)
            }
        }
    }

    /// Refuses a run in which the weights would not move: at a rate of 0 in all of its updates or, where the tutorial's
    /// way of counting steps is to blame, in all updates of one of its epochs.
    ///
    /// # Errors
    /// [`Error::Usage`] with the keys of the recipe to change.
    pub fn check(&self) -> Result<(), Error> {
        let per_epoch = self.per_epoch();
        let stands_still =
            |epoch: &u64| (epoch * per_epoch..(epoch + 1) * per_epoch).all(|step| self.at(step) == 0.0);
        let still = (0..u64::from(self.epochs)).filter(stands_still).count();
        let Self { images, batch_size, epochs, .. } = self;
        match self.schedule {
            Schedule::WarmupCosine { tutorial_steps: true, .. } if still > 0 => {
                let steps = self.steps(true);
                Err(Error::Usage(format!(
                    "schedule.tutorial_steps = true: {images} images in batches of {batch_size} count as {steps} steps in \
                     {epochs} epochs, and the learning rate would be 0 throughout {still} of them; leave the key out"
                )))
            }
            _ if still == *epochs as usize => Err(Error::Usage(format!(
                "schedule: the learning rate would be 0 throughout all {epochs} epochs of the run; raise train.epochs or \
                 change the schedule"
            ))),
            _ => Ok(()),
        }
    }
}

/// From 0 to `peak` in a line, then to 0 along half a cosine.
///
/// `peak · step / warmup` before step `warmup`, `peak · ½(1 + cos(π (step − warmup) / (total − warmup)))` up to
/// step `total`, 0 beyond. The phase of the cosine starts where the warm-up ends. From the published
/// PatchConvNet tutorial (keras.io/examples/vision/patch_convnet).
pub fn warmup_cosine(step: u64, warmup: u64, total: u64, peak: f64) -> f64 {
    if step < warmup {
        peak * step as f64 / warmup as f64
    } else if step <= total {
        let done = (step - warmup) as f64 / (total - warmup).max(1) as f64;
        0.5 * peak * (1.0 + (PI * done).cos())
    } else {
        0.0
    }
}

/// timm's cosine: from `warmup_lr_init` towards `lr` in a line, then along half a cosine to `lr_min`, which it
/// keeps.
///
/// `warmup_lr_init + t (lr − warmup_lr_init) / warmup_t` before `warmup_t`,
/// `lr_min + ½(lr − lr_min)(1 + cos(π t / t_initial))` before `t_initial`, `lr_min` from there on: the epochs
/// beyond are the cooldown. The phase counts from 0 and not from the end of the warm-up, so with a warm-up
/// the rate jumps down a little there and never is `lr`.
///
/// `t` is the epoch, for a rate that stays within an epoch, or the step; `t_initial` and `warmup_t` are in the
/// same unit. As `timm.scheduler.CosineLRScheduler` with one cycle and `warmup_prefix=False`, the defaults.
pub fn timm_cosine(t: u64, lr: f64, t_initial: u64, lr_min: f64, warmup_t: u64, warmup_lr_init: f64) -> f64 {
    if t < warmup_t {
        warmup_lr_init + t as f64 * ((lr - warmup_lr_init) / warmup_t as f64)
    } else if t < t_initial {
        lr_min + 0.5 * (lr - lr_min) * (1.0 + (PI * t as f64 / t_initial as f64).cos())
    } else {
        lr_min
    }
}

/// A line from point to point; before the first point its rate, after the last one that one's.
///
/// `points` are times and rates, the times ascending; of two points at one time the later one counts from
/// there on. `time` is in the unit of the points, such as fractional epochs. Without any point the result is
/// not a number, so that the mistake shows.
///
/// ConvMixer on CIFAR-10 (github.com/locuslab/convmixer-cifar10) trains with (0, 0), (0.4 E, 0.05),
/// (0.8 E, 0.0025), (E, 0) over E epochs, at the time an update ends: with `s` updates made in epoch `e` and
/// `n` updates per epoch, `e + (s + 1) / n`. There 0.4 E and 0.8 E are whole, rounded down.
pub fn piecewise_linear(time: f64, points: &[(f64, f64)]) -> f64 {
    let next = points.partition_point(|&(at, _)| at <= time);
    match (points.get(next.wrapping_sub(1)), points.get(next)) {
        (Some(&(from, start)), Some(&(to, end))) => start + (end - start) * ((time - from) / (to - from)),
        (Some(&(_, rate)), None) | (None, Some(&(_, rate))) => rate,
        (None, None) => f64::NAN,
    }
}

/// One rise and one fall over `total` steps: from `max_lr / div_factor` to `max_lr`, then to
/// `max_lr / (div_factor · final_div_factor)` at the last step, which it keeps.
///
/// The peak is at step `pct_start · total − 1`, which may lie between two steps; `pct_start` is from 0 to 1,
/// the factors are above 0.
/// As `torch.optim.lr_scheduler.OneCycleLR` with its two phases (Smith & Topin, arXiv:1708.07120, in the
/// variant of fast.ai), whose defaults are 0.3, 25, 10⁴ and the cosine. Only the learning rate moves, as with
/// `cycle_momentum=False`.
pub fn one_cycle(
    step: u64,
    total: u64,
    max_lr: f64,
    pct_start: f64,
    div_factor: f64,
    final_div_factor: f64,
    anneal: Anneal,
) -> f64 {
    let initial = max_lr / div_factor;
    let last = total.saturating_sub(1) as f64;
    let peak = pct_start * total as f64 - 1.0;
    let step = (step as f64).min(last);
    // PyTorch divides by the length of the rise, and so refuses one of a single step: that step is the peak.
    let share = |from: f64, to: f64| if to > from { ((step - from) / (to - from)).min(1.0) } else { 1.0 };
    let (start, end, done) = if step <= peak {
        (initial, max_lr, share(0.0, peak))
    } else {
        (max_lr, initial / final_div_factor, share(peak, last))
    };
    match anneal {
        Anneal::Cos => end + (start - end) / 2.0 * ((PI * done).cos() + 1.0),
        Anneal::Linear => (end - start) * done + start,
    }
}

/// From `lr / warmup` to `lr` along a hyperbola, then towards 0 along half a cosine, epoch by epoch.
///
/// `lr / (warmup − epoch)` before epoch `warmup`, then `lr · ½(1 + cos(π (epoch − warmup) / (epochs − warmup)))`:
/// 0 only after the last epoch. From the small training script of the Compact Transformers
/// (github.com/SHI-Labs/Compact-Transformers, `examples/main.py`).
pub fn harmonic_warmup_cosine(epoch: u64, warmup: u64, epochs: u64, lr: f64) -> f64 {
    if epoch < warmup { lr / (warmup - epoch) as f64 } else { warmup_cosine(epoch, warmup, epochs, lr) }
}

#[cfg(test)]
mod tests;
