//! Against the published schedules' own values, and over runs of few updates.

use super::*;
use proptest::prelude::*;

fn rates(schedule: Schedule, lr: f64, images: usize, batch_size: usize, epochs: u32) -> LearningRate {
    let text = include_str!("../../../../../recipes/quick/convmixer.toml");
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
    let cycle =
        Schedule::OneCycle { pct_start: 0.25, div_factor: 10.0, final_div_factor: 100.0, anneal_strategy };
    let cycle = rates(cycle, 1.0, 5, 2, 4);
    near(cycle.at(0), 0.1);
    near(cycle.at(2), 1.0);
    near(cycle.at(11), 1e-3);
}

/// Images of an epoch in batches of 32: one, far from a batch, all but one, a batch, one more, many batches.
const IMAGES: [usize; 6] = [1, 5, 31, 32, 33, 1_000];
const EPOCHS: [u32; 3] = [1, 2, 20];

/// Runs of all these sizes in batches of 32 at a rate of 1: the schedule, epochs, updates of an epoch, and the rate of
/// every update.
fn runs(schedule: impl Fn(u32) -> Schedule) -> impl Iterator<Item = (LearningRate, usize, usize, Vec<f64>)> {
    let sizes = EPOCHS.into_iter().flat_map(|epochs| IMAGES.map(|images| (epochs, images)));
    sizes.map(move |(epochs, images)| {
        let lr = rates(schedule(epochs), 1.0, images, 32, epochs);
        let per_epoch = images.div_ceil(32);
        let all = (0..u64::from(epochs) * per_epoch as u64).map(|step| lr.at(step)).collect();
        (lr, epochs as usize, per_epoch, all)
    })
}

/// Half a cosine from 1 to 0.
fn fall(done: f64) -> f64 {
    (PI / 2.0 * done).cos().powi(2)
}

/// Every rate is the wanted one.
fn assert_rates(found: &[f64], wanted: impl Fn(usize) -> f64) {
    for (step, rate) in found.iter().enumerate() {
        let wanted = wanted(step);
        assert!((rate - wanted).abs() < 1e-12, "step {step} of {}: {rate:e}, want {wanted:e}", found.len());
    }
}

#[test]
fn warmup_cosine_moves_the_weights_in_every_update_and_falls_to_the_end() {
    for warmup in [0.0, 0.1, 0.5, 0.99] {
        for (lr, _, _, found) in runs(|_| Schedule::WarmupCosine { warmup, tutorial_steps: false }) {
            let total = found.len();
            let warm = (warmup * total as f64) as usize;
            assert_rates(&found, |step| {
                if step <= warm {
                    (step + 1) as f64 / (warm + 1) as f64
                } else {
                    fall((step - warm) as f64 / (total - warm) as f64)
                }
            });
            assert!(found.iter().all(|&rate| rate > 0.0) && found[warm] == 1.0);
            assert!(lr.at(total as u64) < 1e-15 && lr.at(u64::MAX) == 0.0);
            lr.check().unwrap();
        }
    }
}

#[test]
fn the_tutorials_steps_are_used_only_where_they_leave_no_epoch_without_a_rate() {
    let schedule = |_| Schedule::WarmupCosine { warmup: 0.1, tutorial_steps: true };
    let mut fit = Vec::new();
    for (lr, epochs, per_epoch, found) in runs(schedule) {
        let total = lr.images * epochs / 32;
        let warm = total / 10;
        assert_rates(&found, |step| match step {
            _ if step < warm => step as f64 / warm as f64,
            _ if step <= total => fall((step - warm) as f64 / (total - warm).max(1) as f64),
            _ => 0.0,
        });
        let is_idle = found.chunks(per_epoch).any(|epoch| epoch.iter().all(|&rate| rate == 0.0));
        assert_eq!(lr.check().is_err(), is_idle, "{lr:?}");
        if !is_idle {
            fit.push((epochs, lr.images));
        }
    }
    // Runs of one step at most, and those whose epochs have several.
    assert_eq!(fit, [(1, 1), (1, 5), (1, 31), (1, 32), (1, 33), (1, 1000), (2, 32), (2, 1000), (20, 1000)]);
    let message = rates(schedule(20), 1.0, 20, 32, 20).check().unwrap_err().to_string();
    let (found, remedy) = ("20 images in batches of 32 count as 12 steps in 20 epochs", "leave the key out");
    assert!(message.starts_with("schedule.tutorial_steps = true: "), "{message}");
    assert!(
        message.contains(found) && message.contains("9 of them") && message.contains(remedy),
        "{message}"
    );
}

#[test]
fn timms_cosine_counts_epochs_or_updates_in_runs_of_any_length() {
    // A warm-up may be longer than the run, and the cooldown leave room for nothing else.
    for (warmup_epochs, cooldown_epochs) in [(0, 0), (1, 0), (5, 0), (0, 1), (5, 1), (3, 18)] {
        for on_updates in [false, true] {
            let (min_lr, warmup_lr) = (0.01, 0.1);
            let schedule =
                |_| Schedule::Cosine { min_lr, warmup_lr, warmup_epochs, cooldown_epochs, on_updates };
            for (lr, epochs, per_epoch, found) in runs(schedule) {
                let each = if on_updates { per_epoch } else { 1 };
                let end = (epochs.saturating_sub(cooldown_epochs as usize) * each) as f64;
                let warm = (warmup_epochs as usize * each) as f64;
                assert_rates(&found, |step| {
                    let t = (if on_updates { step } else { step / per_epoch }) as f64;
                    match t {
                        _ if t < warm => warmup_lr + (1.0 - warmup_lr) * t / warm,
                        _ if t < end => min_lr + (1.0 - min_lr) * fall(t / end),
                        _ => min_lr,
                    }
                });
                lr.check().unwrap();
            }
        }
    }
}

#[test]
fn piecewise_lines_are_read_where_an_update_ends() {
    let points = |epochs: u32| {
        let epochs = f64::from(epochs);
        vec![(0.0, 0.0), (0.5 * epochs, 1.0), (epochs, 0.0)]
    };
    for (lr, _, _, found) in runs(|epochs| Schedule::PiecewiseLinear { points: points(epochs) }) {
        let total = found.len() as f64;
        assert_rates(&found, |step| 1.0 - ((step + 1) as f64 / total * 2.0 - 1.0).abs());
        // The last update ends where the line does, and where it is the only one nothing moves.
        assert_eq!(found.iter().filter(|&&rate| rate < 1e-12).count(), 1);
        let refusal = lr.check().map_err(|error| error.to_string());
        if found.len() > 1 {
            assert_eq!(refusal, Ok(()));
        } else {
            assert!(refusal.unwrap_err().contains("0 throughout all 1 epochs"));
        }
    }
}

#[test]
fn one_cycle_rises_and_falls_over_all_updates() {
    let schedule = |_| Schedule::OneCycle {
        pct_start: 0.25,
        div_factor: 10.0,
        final_div_factor: 100.0,
        anneal_strategy: Anneal::Linear,
    };
    for (lr, _, _, found) in runs(schedule) {
        let (total, last) = (found.len() as f64, 1e-3);
        let peak = 0.25 * total - 1.0;
        assert_rates(&found, |step| {
            let step = step as f64;
            match step {
                _ if found.len() == 1 => last,
                _ if step <= peak && peak > 0.0 => 0.1 + 0.9 * step / peak,
                _ => 1.0 - (1.0 - last) * (step - peak) / (total - 1.0 - peak),
            }
        });
        assert!((found[found.len() - 1] - last).abs() < 1e-12);
        lr.check().unwrap();
    }
}

#[test]
fn the_harmonic_warmup_and_the_constant_rate_do_not_depend_on_the_number_of_updates() {
    for warmup in [0, 1, 5] {
        let schedule = |_| Schedule::HarmonicWarmupCosine { warmup_epochs: warmup as u32 };
        for (lr, epochs, per_epoch, found) in runs(schedule) {
            assert_rates(&found, |step| match step / per_epoch {
                epoch if epoch < warmup => 1.0 / (warmup - epoch) as f64,
                epoch => fall((epoch - warmup) as f64 / (epochs - warmup) as f64),
            });
            assert!(found.iter().all(|&rate| rate > 0.0));
            lr.check().unwrap();
        }
    }
    for (lr, _, _, found) in runs(|_| Schedule::Constant {}) {
        assert_rates(&found, |_| 1.0);
        lr.check().unwrap();
    }
}

#[test]
fn repeated_augmentation_leaves_the_epochs_their_length() {
    let order: Vec<i64> = (0..1_000).collect();
    let images = data_cifar::repeated(&order, 3).len();
    let lr = rates(Schedule::WarmupCosine { warmup: 0.5, tutorial_steps: false }, 1.0, images, 32, 2);
    // 768 images are 24 updates.
    assert_eq!([lr.at(0), lr.at(24)], [1.0 / 25.0, 1.0]);
    assert!(lr.at(47) > 0.0 && lr.at(48) < 1e-15);
}

#[test]
fn a_run_that_would_not_move_is_refused() {
    let cosine = |warmup_lr| Schedule::Cosine {
        min_lr: 0.0,
        warmup_lr,
        warmup_epochs: 1,
        cooldown_epochs: 0,
        on_updates: false,
    };
    let message = rates(cosine(0.0), 1.0, 100, 32, 1).check().unwrap_err().to_string();
    assert!(message.contains("0 throughout all 1 epochs") && message.contains("train.epochs"), "{message}");
    rates(cosine(0.0), 1.0, 100, 32, 2).check().unwrap();
    rates(cosine(1e-6), 1.0, 100, 32, 1).check().unwrap();
}

fn assert_close(name: &str, step: f64, got: f64, want: f64) {
    assert!((got - want).abs() <= 1e-15 + 1e-13 * want, "{name} at {step}: {got:e}, want {want:e}");
}

#[test]
fn warmup_cosine_is_the_published_one() {
    // 40,000 images in batches of 128 for 50 epochs, 15 % warm-up.
    let lr = rates(Schedule::WarmupCosine { warmup: 0.15, tutorial_steps: true }, 1e-3, 40_000, 128, 50);
    assert_eq!(lr.steps(true), 15_625);
    lr.check().unwrap(); // of the last epoch, 288 updates change something
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
        let lr = rates(Schedule::WarmupCosine { warmup, tutorial_steps: false }, 0.5, 1, 1, 1);
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
