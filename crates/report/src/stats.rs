//! Whether a difference is more than chance.

use serde::Serialize;

/// Half the width of a 95 % interval of the normal distribution, in standard deviations.
const Z95: f64 = 1.959_963_984_540_054;

/// The 95 % interval of a share of which `hits` of `n` were seen, without continuity correction (Wilson, JASA 22, 1927).
/// `None` of nothing.
pub fn wilson(hits: usize, n: usize) -> Option<(f64, f64)> {
    if n == 0 || hits > n {
        return None;
    }
    let (share, n, square) = (hits as f64 / n as f64, n as f64, Z95 * Z95);
    let middle = share + square / (2.0 * n);
    let half = Z95 * (share * (1.0 - share) / n + square / (4.0 * n * n)).sqrt();
    let scale = 1.0 + square / n;
    // The ends of a share of none or all are exact, whatever rounding makes of them.
    let low = if hits == 0 { 0.0 } else { (middle - half) / scale };
    let high = if share == 1.0 { 1.0 } else { (middle + half) / scale };
    Some((low, high))
}

/// Mean and, of two or more, sample standard deviation.
pub fn mean_and_deviation(values: &[f64]) -> Option<(f64, Option<f64>)> {
    let n = values.len() as f64;
    let mean = (!values.is_empty()).then(|| values.iter().sum::<f64>() / n)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((mean, (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt())))
}

/// How likely two equal shares, each seen over `n` images, lie at least so far apart: the pooled two-sided z-test.
pub fn two_shares(ours: f64, theirs: f64, n: usize) -> f64 {
    let pooled = f64::midpoint(ours, theirs);
    let deviation = (pooled * (1.0 - pooled) * 2.0 / n as f64).sqrt();
    if deviation > 0.0 {
        libm::erfc((ours - theirs).abs() / deviation / std::f64::consts::SQRT_2)
    } else {
        1.0
    }
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

    /// `docs/parity/statistics.py`: statsmodels 0.14.5.
    #[test]
    fn intervals_and_tests_are_those_of_statsmodels() {
        for (hits, n, low, high) in [
            (8271, 10000, 0.819562937434604, 0.8343858508312992),
            (352, 360, 0.9567691737312188, 0.988697571908474),
            (0, 10, 0.0, 0.27753279986288926),
        ] {
            let found = wilson(hits, n).unwrap();
            near(found.0, low);
            near(found.1, high);
        }
        for (a, b, n, p) in
            [(8271.0, 8352.0, 10000, 0.12628862238224678), (350.0, 352.0, 360, 0.6330702545034995)]
        {
            near(two_shares(a / n as f64, b / n as f64, n), p);
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

    #[test]
    fn ends_are_no_trouble() {
        assert_eq!(wilson(0, 0), None);
        assert_eq!(wilson(3, 2), None);
        assert_eq!(wilson(0, 10).unwrap().0, 0.0);
        assert_eq!(wilson(10, 10).unwrap().1, 1.0);
        assert_eq!(mcnemar(0, 0).p, 1.0);
        assert_eq!(two_shares(1.0, 1.0, 10), 1.0);
        assert_eq!(mean_and_deviation(&[]), None);
        assert_eq!(mean_and_deviation(&[0.5]), Some((0.5, None)));
        assert_eq!(mean_and_deviation(&[1.0, 2.0, 3.0]), Some((2.0, Some(1.0))));
    }
}
