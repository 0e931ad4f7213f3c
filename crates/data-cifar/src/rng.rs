//! Keyed randomness: every draw comes from a generator made for it, so that nothing depends on what
//! was drawn before, and a resumed run draws what an uninterrupted one would have drawn.
//!
//! What these functions return for a key is part of their contract, and tested as such.

use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The generator for one draw: `seed` is the run's, `purpose` says what is drawn ("order", "flip"),
/// and `epoch` and `step` when; `step` may also be an image's index, for a draw per image.
///
/// The four make up the 256-bit key of a ChaCha8 stream (the purpose by its FNV-1a hash), so
/// that different draws are independent of each other.
pub fn keyed_rng(seed: u64, purpose: &str, epoch: u64, step: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (part, word) in key.chunks_exact_mut(8).zip([seed, fnv1a(purpose), epoch, step]) {
        part.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// The first 64 bits of [`keyed_rng`], to seed a generator that takes one number (`tch::manual_seed`).
pub fn keyed_seed(seed: u64, purpose: &str, epoch: u64, step: u64) -> i64 {
    keyed_rng(seed, purpose, epoch, step).next_u64().cast_signed()
}

/// The images of `range`, shuffled for one epoch: every index of the range once.
pub fn permutation(seed: u64, epoch: u64, range: Range<usize>) -> Vec<i64> {
    let mut rng = keyed_rng(seed, "order", epoch, 0);
    let mut order: Vec<i64> = range.map(|index| index as i64).collect();
    shuffle(&mut rng, &mut order);
    order
}

/// All orders equally likely (Fisher–Yates).
pub(crate) fn shuffle<T>(rng: &mut ChaCha8Rng, items: &mut [T]) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(rng, last as u64 + 1) as usize);
    }
}

/// A number uniform on `range`, with 24 bits.
pub(crate) fn uniform(rng: &mut ChaCha8Rng, range: Range<f64>) -> f32 {
    let bits = rng.next_u32() >> 8;
    (range.start + (range.end - range.start) * f64::from(bits) / f64::from(1 << 24)) as f32
}

/// `true` with probability `p`; at one half the highest bit decides.
pub(crate) fn chance(rng: &mut ChaCha8Rng, p: f64) -> bool {
    f64::from(rng.next_u32()) >= (1.0 - p) * 2f64.powi(32)
}

/// A number below `bound`, all equally likely: the high half of a 64×64-bit product, drawn again in
/// the few cases that would favour some numbers (Lemire, arXiv:1805.10941). `bound` is not 0.
///
/// Written out here because a library may change its sampling, and with it every run, in any release.
pub(crate) fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    let uneven = bound.wrapping_neg() % bound; // 2^64 mod bound
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(bound);
        if product as u64 >= uneven {
            return (product >> 64) as u64;
        }
    }
}

/// A number on [0, 1) with 53 bits.
pub(crate) fn unit(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// A number drawn from N(0, 1), by Box and Muller's transform of two uniform ones.
pub(crate) fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - unit(rng)).ln()).sqrt(); // 1 − u is never 0
    radius * (std::f64::consts::TAU * unit(rng)).cos()
}

/// A number drawn from the symmetric distribution Beta(`alpha`, `alpha`), `alpha` above 0.
pub(crate) fn symmetric_beta(rng: &mut ChaCha8Rng, alpha: f64) -> f64 {
    // Logarithms, because a small alpha draws gamma variates too small for an f64.
    let (x, y) = (log_gamma_variate(rng, alpha), log_gamma_variate(rng, alpha));
    1.0 / (1.0 + (y - x).exp())
}

/// The logarithm of a number drawn from Gamma(`shape`, 1) (Marsaglia & Tsang, 2000).
fn log_gamma_variate(rng: &mut ChaCha8Rng, shape: f64) -> f64 {
    // Below 1, Gamma(shape) is Gamma(shape + 1) times the power 1/shape of a uniform number.
    let boost = if shape < 1.0 { (1.0 - unit(rng)).ln() / shape } else { 0.0 };
    let d = if shape < 1.0 { shape + 1.0 } else { shape } - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(rng);
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && (1.0 - unit(rng)).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return boost + (d * v).ln();
        }
    }
}

/// FNV-1a, 64 bits.
fn fnv1a(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed from the ChaCha8, FNV-1a and Fisher–Yates definitions by a separate program.
    #[test]
    fn what_a_key_draws_never_changes() {
        assert_eq!(keyed_seed(42, "order", 0, 0), 1494165762858831656);
        assert_eq!(keyed_seed(1, "dropout", 2, 3), -952167475579749453);
        assert_eq!(permutation(42, 0, 0..10), [6, 2, 3, 1, 5, 8, 7, 9, 4, 0]);
        assert_eq!(permutation(42, 1, 0..10), [2, 7, 5, 4, 9, 6, 8, 0, 1, 3]);
        assert_eq!(permutation(43, 0, 5..15), [6, 9, 7, 12, 5, 14, 10, 13, 8, 11]);
        let flip = |index| chance(&mut keyed_rng(42, "flip", 3, index), 0.5);
        let flips: String = (0..32).map(|index| if flip(index) { '1' } else { '0' }).collect();
        assert_eq!(flips, "01011010100001010011100011111111");
        let angle = |index| uniform(&mut keyed_rng(42, "rotation", 3, index), -1.0..1.0);
        assert_eq!([angle(0), angle(7)], [0.041_646_004, -0.986_965_54]);
    }

    #[test]
    fn every_part_of_the_key_counts() {
        let base = keyed_seed(1, "flip", 2, 3);
        for other in [
            keyed_seed(0, "flip", 2, 3),
            keyed_seed(1, "order", 2, 3),
            keyed_seed(1, "flip", 3, 3),
            keyed_seed(1, "flip", 2, 2),
        ] {
            assert_ne!(base, other);
        }
        assert_ne!(keyed_seed(1, "flip", 2, 3), keyed_seed(1, "flip", 3, 2));
    }

    #[test]
    fn a_permutation_has_every_index_once() {
        for range in [0..0, 7..8, 0..1000, 5_000..6_000] {
            let order = permutation(3, 4, range.clone());
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, range.clone().map(|index| index as i64).collect::<Vec<_>>());
            assert_eq!(order, permutation(3, 4, range.clone()));
            assert!(range.len() < 2 || order != permutation(3, 5, range));
        }
    }

    /// All 24 orders of four images, each about as often as the others.
    #[test]
    fn orders_are_equally_likely() {
        let mut counts = std::collections::BTreeMap::new();
        for epoch in 0..24_000 {
            *counts.entry(permutation(9, epoch, 0..4)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 24);
        assert!(counts.values().all(|count| (850..1150).contains(count)), "{counts:?}"); // 1000 ± 4.8 sigma
    }

    #[test]
    fn a_chance_is_taken_as_often_as_it_says() {
        for p in [0.0, 0.1, 0.5, 1.0] {
            let taken =
                (0..10_000).filter(|&index| chance(&mut keyed_rng(7, "flip", 1, index), p)).count() as f64;
            assert!(
                (taken - 10_000.0 * p).abs() <= 4.0 * (10_000.0 * p * (1.0 - p)).sqrt(),
                "{taken} at {p}"
            );
        }
    }

    /// Mean and variance of a hundred thousand.
    fn moments(mut draw: impl FnMut(&mut ChaCha8Rng) -> f64) -> (f64, f64) {
        let mut rng = keyed_rng(8, "test", 0, 0);
        let values: Vec<f64> = (0..100_000).map(|_| draw(&mut rng)).collect();
        assert!(values.iter().all(|value| value.is_finite()));
        let mean = values.iter().sum::<f64>() / 1e5;
        (mean, values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 1e5)
    }

    #[test]
    fn unit_numbers_are_uniform() {
        let (mean, variance) = moments(unit);
        assert!((mean - 0.5).abs() < 0.005 && (variance - 1.0 / 12.0).abs() < 0.0012, "{mean} {variance}");
    }

    /// Moments to the fourth within 5 sigma, and the share beyond two standard deviations.
    #[test]
    fn normal_numbers_are_normal() {
        let (mean, variance) = moments(normal);
        assert!(mean.abs() < 0.016 && (variance - 1.0).abs() < 0.023, "{mean} {variance}");
        let (third, _) = moments(|rng| normal(rng).powi(3));
        let (fourth, _) = moments(|rng| normal(rng).powi(4));
        assert!(third.abs() < 0.062 && (fourth - 3.0).abs() < 0.155, "{third} {fourth}");
        let (beyond, _) = moments(|rng| if normal(rng).abs() > 2.0 { 1.0 } else { 0.0 });
        assert!((beyond - 0.0455).abs() < 0.0033, "{beyond}");
    }

    /// Mean 1/2 and variance 1/(8α + 4), within 5 sigma or more; also the share below one tenth where it is known.
    #[test]
    fn beta_numbers_are_beta() {
        for alpha in [0.001, 0.1, 0.2, 0.4, 0.8, 1.0, 2.0, 8.0, 1000.0] {
            let (mean, variance) = moments(|rng| symmetric_beta(rng, alpha));
            let want = 1.0 / (8.0 * alpha + 4.0);
            assert!((mean - 0.5).abs() < 5.0 * (want / 1e5).sqrt(), "alpha {alpha}: mean {mean}");
            assert!((variance / want - 1.0).abs() < 0.025, "alpha {alpha}: variance {variance}, not {want}");
        }
        for (alpha, share) in [(1.0, 0.1), (2.0, 0.028), (0.5, 0.204_833)] {
            // x, 3x² − 2x³ and 2/π · arcsin √x
            let (below, _) = moments(|rng| if symmetric_beta(rng, alpha) < 0.1 { 1.0 } else { 0.0 });
            assert!((below - share).abs() < 5.0 * (share / 1e5).sqrt(), "alpha {alpha}: {below}");
        }
    }

    /// Computed from the definitions by a separate program.
    #[test]
    fn what_distributions_draw_never_changes() {
        let mut rng = keyed_rng(42, "test", 3, 7);
        let drawn = [
            unit(&mut rng),
            normal(&mut rng),
            symmetric_beta(&mut rng, 0.2),
            symmetric_beta(&mut rng, 1.0),
            symmetric_beta(&mut rng, 8.0),
        ];
        let want = [
            0.065_103_962_677_945,
            0.843_068_489_614_732,
            0.876_363_819_030_434,
            0.136_067_297_120_428,
            0.538_360_718_076_613,
        ];
        // The last bits of logarithms and cosines are the platform's.
        assert!(drawn.iter().zip(want).all(|(drawn, want)| (drawn - want).abs() < 1e-12), "{drawn:?}");
    }
}
