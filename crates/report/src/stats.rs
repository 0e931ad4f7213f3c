//! Whether a difference is more than chance.

use serde::Serialize;
use statrs::function::beta::checked_beta_reg;

/// Mean and, of two or more, sample standard deviation.
pub fn mean_and_deviation(values: &[f64]) -> Option<(f64, Option<f64>)> {
    let n = values.len() as f64;
    let mean = (!values.is_empty()).then(|| values.iter().sum::<f64>() / n)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((mean, (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt())))
}

/// How likely two equal shares, each seen over so many images of its own, lie at least so far apart: the pooled
/// two-sided z-test.
pub fn two_shares((ours, n): (f64, usize), (theirs, m): (f64, usize)) -> f64 {
    let (n, m) = (n as f64, m as f64);
    let pooled = (ours * n + theirs * m) / (n + m);
    let deviation = (pooled * (1.0 - pooled) * (1.0 / n + 1.0 / m)).sqrt();
    if deviation > 0.0 {
        libm::erfc((ours - theirs).abs() / deviation / std::f64::consts::SQRT_2)
    } else {
        1.0
    }
}

/// How likely two samples of equal means have means at least so far apart, whatever their variances: the two-sided
/// t-test (Welch, Biometrika 34, 1947). `None` if a sample has fewer than two values, or neither varies.
pub fn welch(ours: &[f64], theirs: &[f64]) -> Option<f64> {
    let (mean, deviation) = mean_and_deviation(ours)?;
    let (other_mean, other_deviation) = mean_and_deviation(theirs)?;
    let (n, m) = (ours.len() as f64, theirs.len() as f64);
    let (one, other) = (deviation?.powi(2) / n, other_deviation?.powi(2) / m);
    let variance = one + other;
    let freedom = variance.powi(2) / (one.powi(2) / (n - 1.0) + other.powi(2) / (m - 1.0));
    let t_squared = (mean - other_mean).powi(2) / variance;
    // Both tails of Student's distribution. Without variance an argument is no number, and there is no value.
    checked_beta_reg(freedom / 2.0, 0.5, freedom / (freedom + t_squared)).ok()
}

/// Fewer images than this on which two networks differ are counted out exactly.
const FEW: usize = 25;

/// Two networks on the same images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct McNemar {
    /// Images only the first has right.
    pub first_only: usize,
    /// Images only the second has right.
    pub second_only: usize,
    /// How likely equal networks differ at least so much.
    pub p: f64,
}

/// McNemar's two-sided test: exact binomial below 25 images that differ, else chi-squared with continuity correction
/// (McNemar, Psychometrika 12, 1947; Edwards, Psychometrika 13, 1948).
pub fn mcnemar(first_only: usize, second_only: usize) -> McNemar {
    let n = first_only + second_only;
    let p = if n == 0 {
        1.0
    } else if n < FEW {
        let choose = |k: usize| {
            let log = |x: usize| libm::lgamma(x as f64 + 1.0);
            (log(n) - log(k) - log(n - k) - n as f64 * std::f64::consts::LN_2).exp()
        };
        (2.0 * (0..=first_only.min(second_only)).map(choose).sum::<f64>()).min(1.0)
    } else {
        let gap = (first_only.abs_diff(second_only) as f64 - 1.0).max(0.0);
        libm::erfc((gap * gap / n as f64 / 2.0).sqrt())
    };
    McNemar { first_only, second_only, p }
}

/// Corrects probabilities for there being several of them (Holm, Scand. J. Statist. 6, 1979), in their order.
pub fn holm(ps: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..ps.len()).collect();
    order.sort_by(|a, b| ps[*a].total_cmp(&ps[*b]));
    let (mut corrected, mut largest) = (vec![0.0; ps.len()], 0.0f64);
    for (rank, index) in order.into_iter().enumerate() {
        largest = largest.max(ps[index] * (ps.len() - rank) as f64).min(1.0);
        corrected[index] = largest;
    }
    corrected
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, want: f64) {
        assert!((found - want).abs() < 1e-10 * want.abs().max(1e-3), "{found} is not {want}");
    }

    /// `docs/parity/significance.py`: statsmodels 0.14.5.
    #[test]
    fn tests_are_those_of_statsmodels() {
        for (a, n, b, m, p) in [
            (8271.0, 10000, 8352.0, 10000, 0.12628862238224678),
            (350.0, 360, 352.0, 360, 0.6330702545034995),
            (8271.0, 10000, 1702.0, 2000, 0.009210607670276434),
            (9.0, 10, 340.0, 360, 0.5490621266113571),
        ] {
            near(two_shares((a / n as f64, n), (b / m as f64, m)), p);
        }
        for (first, second, p) in [
            (2, 8, 0.109375),
            (12, 12, 1.0),
            (3, 21, 0.0002771615982055664),
            (150, 86, 4.114562281345944e-05),
            (30, 31, 1.0),
        ] {
            near(mcnemar(first, second).p, p);
            assert_eq!(mcnemar(second, first).p, mcnemar(first, second).p);
        }
        for (found, want) in
            holm(&[0.01, 0.04, 0.03, 0.005, 0.5]).into_iter().zip([0.04, 0.09, 0.09, 0.025, 0.5])
        {
            near(found, want);
        }
    }

    /// `docs/parity/significance.py`: SciPy 1.17.1.
    #[test]
    fn the_test_of_unequal_variances_is_that_of_scipy() {
        for (a, b, p) in [
            (&[0.82, 0.83, 0.825][..], &[0.84, 0.835, 0.85][..], 0.041914517471453035),
            (&[0.9, 0.95], &[0.91, 0.93, 0.92, 0.9, 0.97], 0.9754632654609805),
            (&[0.5, 0.5, 0.5], &[0.5, 0.51, 0.53], 0.2697032566597795),
            (&[0.7001, 0.7003, 0.7002, 0.7004], &[0.8, 0.8002, 0.8001], 1.1822200995094644e-14),
        ] {
            near(welch(a, b).unwrap(), p);
            near(welch(b, a).unwrap(), p);
        }
        assert_eq!(welch(&[0.5], &[0.4, 0.6]), None);
        assert_eq!(welch(&[], &[]), None);
        assert_eq!(welch(&[0.5, 0.5], &[0.5, 0.5]), None);
        assert_eq!(welch(&[0.5, 0.5], &[0.75, 0.75]), None);
        assert_eq!(welch(&[0.4, 0.6], &[0.6, 0.4]), Some(1.0));
    }

    #[test]
    fn ends_are_no_trouble() {
        assert_eq!(mcnemar(0, 0).p, 1.0);
        assert_eq!(two_shares((1.0, 10), (1.0, 20)), 1.0);
        assert_eq!(two_shares((1.0, 0), (0.5, 0)), 1.0);
        assert_eq!(mean_and_deviation(&[]), None);
        assert_eq!(mean_and_deviation(&[0.5]), Some((0.5, None)));
        assert_eq!(mean_and_deviation(&[1.0, 2.0, 3.0]), Some((2.0, Some(1.0))));
    }
}
