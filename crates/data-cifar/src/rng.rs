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

/// The images of `range`, shuffled for one epoch: every index of the range once (Fisher–Yates).
pub fn permutation(seed: u64, epoch: u64, range: Range<usize>) -> Vec<i64> {
    let mut rng = keyed_rng(seed, "order", epoch, 0);
    let mut order: Vec<i64> = range.map(|index| index as i64).collect();
    for last in (1..order.len()).rev() {
        order.swap(last, below(&mut rng, last as u64 + 1) as usize);
    }
    order
}

/// Whether each image of `indices` is mirrored in an epoch, with probability one half.
///
/// Drawn per image: the answer for an image depends on nothing but seed, epoch and its index, and so
/// neither on the batch size nor on the order.
pub(crate) fn flip_mask(seed: u64, epoch: u64, indices: &[i64]) -> Vec<bool> {
    indices
        .iter()
        .map(|&index| keyed_rng(seed, "flip", epoch, index.cast_unsigned()).next_u32() >> 31 == 1)
        .collect()
}

/// A number for each image of `indices` in an epoch, uniform on `range` with 24 bits; drawn per image, as
/// [`flip_mask`] is.
pub(crate) fn uniform(seed: u64, purpose: &str, epoch: u64, indices: &[i64], range: Range<f64>) -> Vec<f32> {
    let draw = |index: &i64| {
        let bits = keyed_rng(seed, purpose, epoch, index.cast_unsigned()).next_u32() >> 8;
        range.start + (range.end - range.start) * f64::from(bits) / f64::from(1 << 24)
    };
    indices.iter().map(|index| draw(index) as f32).collect()
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
        let indices: Vec<i64> = (0..32).collect();
        let flips: String =
            flip_mask(42, 3, &indices).iter().map(|&flip| if flip { '1' } else { '0' }).collect();
        assert_eq!(flips, "01011010100001010011100011111111");
        assert_eq!(uniform(42, "rotation", 3, &[0, 7], -1.0..1.0), [0.041_646_004, -0.986_965_54]);
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
    fn a_flip_belongs_to_its_image() {
        let all = flip_mask(7, 1, &(0..10_000).collect::<Vec<_>>());
        let some = [9_999, 3, 4_321, 3];
        assert_eq!(flip_mask(7, 1, &some), some.map(|index| all[index as usize]));
        let flipped = all.iter().filter(|&&flip| flip).count();
        assert!((4_800..5_200).contains(&flipped), "{flipped} of 10000"); // 4 sigma
        assert_ne!(all, flip_mask(7, 2, &(0..10_000).collect::<Vec<_>>()));
    }
}
