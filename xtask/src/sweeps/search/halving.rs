//! Successive halving: how many trials are trained for how long, and which of them go on.

/// Trials of equal length. The best of them go on to the next rung.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rung {
    pub(crate) trials: usize,
    pub(crate) epochs: u32,
}

/// The rungs from `first` epochs to `full` ones: each has 1/`eta` of the trials of the one before it, rounded down, and
/// `eta` times the epochs. Rungs of a single trial would decide nothing, so that goes to the full length at once.
/// (Jamieson & Talwalkar, arXiv:1502.07943.)
pub(crate) fn rungs(trials: usize, eta: u32, first: u32, full: u32) -> Vec<Rung> {
    let mut rungs = Vec::new();
    let (mut trials, mut epochs) = (trials, first);
    while epochs < full && trials > 1 {
        rungs.push(Rung { trials, epochs });
        trials = (trials / eta as usize).max(1);
        epochs = epochs.saturating_mul(eta);
    }
    rungs.push(Rung { trials, epochs: full });
    rungs
}

/// What a trial came to in a rung.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Score {
    pub(crate) trial: usize,
    pub(crate) val_top1: f64,
    pub(crate) val_loss: f64,
}

/// The best first: by validation top-1, then by validation loss, then the trial that was drawn earlier.
pub(crate) fn ranked(mut scores: Vec<Score>) -> Vec<Score> {
    scores.sort_by(|a, b| {
        let by_top1 = b.val_top1.total_cmp(&a.val_top1);
        by_top1.then(a.val_loss.total_cmp(&b.val_loss)).then(a.trial.cmp(&b.trial))
    });
    scores
}

/// The trials of a rung, in order, given the scores of the one before it, in which those that failed have none. The base
/// recipe, trial 0, is in the last rung whatever came before, so that nothing worse than it can win.
pub(crate) fn survivors(scores: Vec<Score>, rung: Rung, is_last: bool) -> Vec<usize> {
    let mut trials: Vec<usize> =
        ranked(scores).into_iter().take(rung.trials).map(|score| score.trial).collect();
    if is_last && !trials.contains(&0) {
        trials.push(0);
    }
    trials.sort_unstable();
    trials
}

/// Epochs of all rungs together, the base recipe in the last one included.
pub(crate) fn most_epochs(rungs: &[Rung]) -> u64 {
    let epochs = |rung: &Rung| rung.trials as u64 * u64::from(rung.epochs);
    let base = rungs.last().filter(|_| rungs.len() > 1).map_or(0, |last| u64::from(last.epochs));
    rungs.iter().map(epochs).sum::<u64>() + base
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(trials: usize, eta: u32, first: u32, full: u32) -> Vec<(usize, u32)> {
        rungs(trials, eta, first, full).iter().map(|rung| (rung.trials, rung.epochs)).collect()
    }

    #[test]
    fn trials_fall_and_epochs_rise_by_eta_up_to_the_full_length() {
        assert_eq!(plan(27, 3, 1, 30), [(27, 1), (9, 3), (3, 9), (1, 30)]);
        assert_eq!(plan(27, 3, 1, 9), [(27, 1), (9, 3), (3, 9)]);
        assert_eq!(plan(10, 3, 2, 10), [(10, 2), (3, 6), (1, 10)]);
        assert_eq!(plan(4, 2, 1, 100), [(4, 1), (2, 2), (1, 100)]);
        assert_eq!(plan(5, 2, 10, 10), [(5, 10)]);
        assert_eq!(plan(1, 2, 1, 10), [(1, 10)]);
        assert_eq!(plan(2, 1000, 3_000_000_000, 4_000_000_000), [(2, 3_000_000_000), (1, 4_000_000_000)]);
        // 27 + 27 + 27 + 30, and 30 of the base recipe.
        assert_eq!(most_epochs(&rungs(27, 3, 1, 30)), 141);
        assert_eq!(most_epochs(&rungs(5, 2, 10, 10)), 50);
    }

    fn score(trial: usize, val_top1: f64, val_loss: f64) -> Score {
        Score { trial, val_top1, val_loss }
    }

    #[test]
    fn the_best_go_on_and_the_base_recipe_always_ends_with_them() {
        let scores = || {
            vec![
                score(0, 0.5, 1.0),
                score(1, 0.7, 1.0),
                score(2, 0.7, 0.9),
                score(4, 0.7, 0.9),
                score(5, 0.6, 0.1),
            ]
        };
        let order: Vec<usize> = ranked(scores()).iter().map(|score| score.trial).collect();
        assert_eq!(order, [2, 4, 1, 5, 0]);
        let rung = |trials| Rung { trials, epochs: 9 };
        assert_eq!(survivors(scores(), rung(3), false), [1, 2, 4]);
        assert_eq!(survivors(scores(), rung(1), true), [0, 2]);
        assert_eq!(survivors(scores(), rung(5), true), [0, 1, 2, 4, 5]);
        // All but two failed.
        assert_eq!(survivors(scores().split_off(3), rung(3), false), [4, 5]);
    }
}
