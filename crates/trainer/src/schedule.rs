//! Learning rates as pure functions of the step.
//!
//! Every function gives the rate of the update before which `step` updates were made, or of the epoch before
//! which `epoch` were finished: both count from 0. For finite rates of 0 or more the result is one too, whatever
//! the counts.

use std::f64::consts::PI;

use run_record::{Anneal, Recipe, Schedule};

/// A run's schedule; see [`Schedule`].
#[derive(Debug, Clone)]
pub struct LearningRate {
    schedule: Schedule,
    base: f64,
    epochs: u64,
    /// Updates of an epoch.
    per_epoch: u64,
    /// Updates of the run, the last batch of an epoch counted by its share of a batch.
    steps: u64,
}

impl LearningRate {
    /// The recipe's schedule for a run over `images` training images in an epoch.
    pub fn new(recipe: &Recipe, images: usize) -> Self {
        let batch_size = recipe.train.batch_size.max(1);
        // Counted with the fraction of a batch that ends an epoch, as the published schedule does.
        let batches = images as f64 / batch_size as f64;
        Self {
            schedule: recipe.schedule.clone(),
            base: recipe.optimizer.lr,
            epochs: recipe.train.epochs.into(),
            per_epoch: images.div_ceil(batch_size).max(1) as u64,
            steps: (batches * f64::from(recipe.train.epochs)).floor() as u64,
        }
    }

    /// The rate of the update before which `step` were made.
    pub fn at(&self, step: u64) -> f64 {
        let Self { base, epochs, per_epoch, .. } = *self;
        let epoch = step / per_epoch;
        match &self.schedule {
            Schedule::Constant {} => base,
            Schedule::WarmupCosine { warmup } => {
                let warm = (warmup * self.steps as f64).floor() as u64;
                warmup_cosine(step, warm, self.steps, base)
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rates(schedule: Schedule, lr: f64, images: usize, batch_size: usize, epochs: u32) -> LearningRate {
        let text = include_str!("../../../recipes/quick/convmixer.toml");
        let mut recipe = Recipe::parse(text).unwrap();
        (recipe.schedule, recipe.optimizer.lr) = (schedule, lr);
        (recipe.train.batch_size, recipe.train.epochs) = (batch_size, epochs);
        LearningRate::new(&recipe, images)
    }

    #[test]
    fn a_runs_rates_are_counted_in_its_updates_and_epochs() {
        // Three updates an epoch, the last of which is short.
        let epochs = |lr: &LearningRate| (0..4).map(|epoch| lr.at(3 * epoch)).collect::<Vec<_>>();
        let cosine = |on_updates, cooldown_epochs| Schedule::Cosine {
            min_lr: 0.0,
            warmup_lr: 0.1,
            warmup_epochs: 1,
            cooldown_epochs,
            on_updates,
        };
        let by_epoch = rates(cosine(false, 1), 1.0, 5, 2, 4);
        let want = [0.1, 0.75, 0.25, 0.0];
        assert!(epochs(&by_epoch).iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-12));
        assert_eq!(by_epoch.at(3), by_epoch.at(5));
        let by_update = rates(cosine(true, 1), 1.0, 5, 2, 4);
        assert_eq!([by_update.at(1), by_update.at(9)], [timm_cosine(1, 1.0, 9, 0.0, 3, 0.1), 0.0]);

        let points = vec![(0.0, 0.0), (2.0, 1.0), (4.0, 0.0)];
        let line = rates(Schedule::PiecewiseLinear { points }, 0.5, 5, 2, 4);
        let near = |got: f64, want: f64| assert!((got - want).abs() < 1e-12, "{got} {want}");
        near(line.at(0), 0.5 / 6.0);
        near(line.at(5), 0.5);
        near(line.at(11), 0.0);

        let harmonic = rates(Schedule::HarmonicWarmupCosine { warmup_epochs: 2 }, 1.0, 5, 2, 4);
        assert_eq!(epochs(&harmonic), [0.5, 1.0, 1.0, 0.5]);
        let anneal_strategy = Anneal::Linear;
        let cycle = Schedule::OneCycle {
            pct_start: 0.25,
            div_factor: 10.0,
            final_div_factor: 100.0,
            anneal_strategy,
        };
        let cycle = rates(cycle, 1.0, 5, 2, 4);
        near(cycle.at(0), 0.1);
        near(cycle.at(2), 1.0);
        near(cycle.at(11), 1e-3);
    }

    fn assert_close(name: &str, step: f64, got: f64, want: f64) {
        assert!((got - want).abs() <= 1e-15 + 1e-13 * want, "{name} at {step}: {got:e}, want {want:e}");
    }

    #[test]
    fn warmup_cosine_is_the_published_one() {
        // 40,000 images in batches of 128 for 50 epochs, 15 % warm-up.
        let lr = rates(Schedule::WarmupCosine { warmup: 0.15 }, 1e-3, 40_000, 128, 50);
        assert_eq!(lr.steps, 15_625);
        for (step, want) in [
            (0, 0.0),
            (1, 4.26803e-7),
            (2_342, 9.99573e-4),
            (2_343, 1e-3),
            (5_000, 9.044668e-4),
            (10_000, 3.809959e-4),
            (15_000, 5.453581e-6),
            (15_624, 1.3987e-11),
        ] {
            let got = lr.at(step);
            assert!((got - want).abs() <= 5e-5 * want, "{step}: {got} {want}");
        }
        // The batches that are not whole make 15,650 steps; the last 25 change nothing.
        assert!([15_625, 15_626, 15_649].iter().all(|&step| lr.at(step).abs() < 1e-18));
    }

    #[test]
    fn a_run_of_one_step_has_a_rate() {
        for warmup in [0.0, 0.9] {
            let lr = rates(Schedule::WarmupCosine { warmup }, 0.5, 1, 1, 1);
            assert!((0..3).all(|step| lr.at(step).is_finite()));
            assert_eq!(lr.at(0), 0.5);
        }
        let constant = rates(Schedule::Constant {}, 0.5, 10, 1, 1);
        assert_eq!([0, 9, 100].map(|step| constant.at(step)), [0.5; 3]);
        assert_eq!(one_cycle(0, 1, 0.5, 0.3, 25.0, 1e4, Anneal::Cos), 0.5 / 25.0 / 1e4);
        assert_eq!(one_cycle(0, 1, 0.5, 1.0, 25.0, 1e4, Anneal::Cos), 0.5);
        assert_eq!(timm_cosine(0, 0.5, 1, 0.0, 0, 0.0), 0.5);
        assert_eq!(harmonic_warmup_cosine(0, 0, 1, 0.5), 0.5);
    }

    // The wanted values below are what docs/parity/schedules.py prints.

    #[test]
    fn timm_cosine_is_timms() {
        for (epoch, want) in [
            (0, 1e-05),
            (1, 6.4e-05),
            (9, 0.000496),
            (10, 0.0005485209117494338),
            (11, 0.0005482106467121071),
            (150, 0.00028000000000000003),
            (299, 1.0014804271311723e-05),
            (300, 1e-05),
            (309, 1e-05),
        ] {
            assert_close("CCT", epoch as f64, timm_cosine(epoch, 5.5e-4, 300, 1e-5, 10, 1e-5), want);
        }
        for (step, want) in [
            (0, 1e-06),
            (1, 1.1998001598721023e-06),
            (25_019, 0.0049998001998401275),
            (25_020, 0.004948876028278105),
            (200_000, 0.0023792367531146144),
            (387_809, 5.000000081947909e-06),
            (387_810, 5e-06),
            (400_000, 5e-06),
        ] {
            let got = timm_cosine(step, 5e-3, 310 * 1251, 5e-6, 20 * 1251, 1e-6);
            assert_close("GCViT", step as f64, got, want);
        }
        for (epoch, want) in
            [(0, 1.0), (1, 0.8535533905932737), (2, 0.5), (3, 0.14644660940672627), (4, 0.0), (5, 0.0)]
        {
            assert_close("no warm-up", epoch as f64, timm_cosine(epoch, 1.0, 4, 0.0, 0, 0.0), want);
        }
    }

    #[test]
    fn one_cycle_is_pytorchs() {
        for (step, want) in [
            (0, 0.0003999999999999993),
            (1, 0.00042813780565907275),
            (28, 0.009971862194340927),
            (29, 0.01),
            (30, 0.009994965352845242),
            (60, 0.005892800902855287),
            (98, 5.07464715475788e-06),
            (99, 4e-08),
        ] {
            let got = one_cycle(step, 100, 0.01, 0.3, 25.0, 1e4, Anneal::Cos);
            assert_close("cosine", step as f64, got, want);
        }
        for (step, want) in [
            (0, 0.01),
            (5, 0.0491304347826087),
            (11, 0.09608695652173914),
            (12, 0.098668),
            (13, 0.096004),
            (30, 0.050716000000000004),
            (49, 0.00010000000000000286),
        ] {
            let got = one_cycle(step, 50, 0.1, 0.25, 10.0, 100.0, Anneal::Linear);
            assert_close("linear", step as f64, got, want);
        }
        for (step, want) in
            [(0, 0.09755283560345443), (1, 0.0904508879153485), (5, 0.03454941208465151), (9, 4e-07)]
        {
            let got = one_cycle(step, 10, 0.1, 0.0, 25.0, 1e4, Anneal::Cos);
            assert_close("no rise", step as f64, got, want);
        }
    }

    #[test]
    fn piecewise_linear_is_the_published_one() {
        let points = [(0.0, 0.0), (10.0, 0.05), (20.0, 0.0025), (25.0, 0.0)];
        for (time, want) in [
            (0.0, 0.0),
            (0.01020408163265306, 5.10204081632653e-05),
            (5.5, 0.0275),
            (10.0, 0.05),
            (15.25, 0.025062500000000005),
            (20.0, 0.0025),
            (22.5, 0.00125),
            (25.0, 0.0),
            (26.0, 0.0),
        ] {
            assert_close("piecewise", time, piecewise_linear(time, &points), want);
        }
        // A jump, and times outside the points.
        let jump = [(1.0, 0.5), (2.0, 0.5), (2.0, 0.25)];
        assert_eq!([0.0, 1.999, 2.0, 3.0].map(|time| piecewise_linear(time, &jump)), [0.5, 0.5, 0.25, 0.25]);
        assert!(piecewise_linear(1.0, &[]).is_nan());
    }

    #[test]
    fn harmonic_warmup_cosine_is_the_published_one() {
        for (epoch, want) in [
            (0, 5e-05),
            (1, 5.555555555555556e-05),
            (8, 0.00025),
            (9, 0.0005),
            (10, 0.0005),
            (11, 0.0004999658262481172),
            (105, 0.00025),
            (199, 3.417375188274896e-08),
        ] {
            assert_close("harmonic", epoch as f64, harmonic_warmup_cosine(epoch, 10, 200, 5e-4), want);
        }
    }

    fn count() -> impl Strategy<Value = u64> {
        prop_oneof![0_u64..40, 0_u64..1_000_000, Just(u64::MAX)]
    }

    fn anneal() -> impl Strategy<Value = Anneal> {
        prop_oneof![Just(Anneal::Cos), Just(Anneal::Linear)]
    }

    /// Neither negative nor infinite, and not above the largest rate it was given.
    fn assert_between(rate: f64, peak: f64) {
        assert!(rate >= 0.0 && rate <= peak * (1.0 + 1e-12), "{rate:e} is not from 0 to {peak:e}");
    }

    proptest! {
        #[test]
        fn rates_stay_between_0_and_the_peak(
            step in count(), total in count(), warmup in count(),
            peak in 0.0_f64..10.0, shares in [0.0_f64..1.0, 0.0_f64..1.0], pct_start in 0.0_f64..=1.0,
            factors in [1.0_f64..1e6, 1.0_f64..1e6], anneal in anneal(),
        ) {
            let [low, init] = shares.map(|share| share * peak);
            assert_between(warmup_cosine(step, warmup, total, peak), peak);
            assert_between(harmonic_warmup_cosine(step, warmup, total, peak), peak);
            assert_between(timm_cosine(step, peak, total, low, warmup, init), peak);
            // A warm-up from above, and a minimum above the peak, are odd but no reason to break.
            assert_between(timm_cosine(step, low, total, peak, warmup, peak), peak);
            assert_between(one_cycle(step, total, peak, pct_start, factors[0], factors[1], anneal), peak);
        }

        #[test]
        fn piecewise_rates_stay_between_the_points(
            time in -10.0_f64..400.0,
            mut points in prop::collection::vec((0.0_f64..300.0, 0.0_f64..1.0), 1..8),
        ) {
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            let peak = points.iter().map(|point| point.1).fold(0.0, f64::max);
            assert_between(piecewise_linear(time, &points), peak);
            let ends = [points[0].1, points[points.len() - 1].1];
            prop_assert_eq!(piecewise_linear(-1.0, &points), ends[0]);
            prop_assert_eq!(piecewise_linear(300.0, &points), ends[1]);
            for (from, to) in points.iter().zip(&points[1..]) {
                if from.0 < to.0 {
                    prop_assert_eq!(piecewise_linear(from.0, &points), from.1);
                }
            }
        }

        #[test]
        fn the_peak_is_reached_and_the_end_is_where_it_should_be(
            total in 2_u64..100_000, share in 0.0_f64..0.99, peak in 1e-6_f64..10.0, anneal in anneal(),
        ) {
            let warmup = (share * total as f64) as u64;
            for (name, schedule) in [
                ("cosine", &(|step| warmup_cosine(step, warmup, total, peak)) as &dyn Fn(u64) -> f64),
                ("harmonic", &|epoch| harmonic_warmup_cosine(epoch, warmup, total, peak)),
            ] {
                prop_assert_eq!(schedule(warmup), peak, "{}", name);
                prop_assert!(schedule(total) < 1e-15 && schedule(total + 1) == 0.0, "{}", name);
            }
            prop_assert_eq!(warmup_cosine(0, warmup, total, peak), if warmup == 0 { peak } else { 0.0 });

            let low = 0.01 * peak;
            let cosine = |t| timm_cosine(t, peak, total, low, warmup, low);
            let before = if warmup == 0 { peak } else { low };
            prop_assert!((cosine(0) - before).abs() <= 1e-12 * peak);
            prop_assert!(cosine(warmup) <= peak && cosine(total - 1) >= low);
            prop_assert_eq!([total, total + 1, u64::MAX].map(cosine), [low; 3]);

            // A peak that is a step.
            let cycle = |step| {
                one_cycle(step, total, peak, (warmup + 1) as f64 / total as f64, 25.0, 1e4, anneal)
            };
            let near = |got: f64, want: f64| (got - want).abs() <= 1e-9 * peak;
            prop_assert!(near(cycle(warmup), peak), "{} at {}", cycle(warmup), warmup);
            prop_assert!(warmup == 0 || near(cycle(0), peak / 25.0), "{}", cycle(0));
            let end = if warmup == total - 1 { peak } else { peak / 25.0 / 1e4 };
            prop_assert!([total - 1, total, u64::MAX].iter().all(|&step| near(cycle(step), end)));
        }
    }
}
