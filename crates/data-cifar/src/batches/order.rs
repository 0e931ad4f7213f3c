//! The order of images in an epoch, beyond a permutation.

/// The first images of `order`, each `repeats` times in a row (repeated augmentation; Hoffer et al.,
/// arXiv:1901.09335), as timm's `RepeatAugSampler` serves them to a single process.
///
/// An epoch has as many images as `order` does, or the multiple of 256 below that where there are 256 or more.
/// So it shows only one in `repeats` of the images; a shuffled order makes them others in every epoch. Draws
/// that are keyed by an image's index alone would be the same for all its copies. Without repetition the order
/// stays as it is.
///
/// ```
/// use data_cifar::repeated;
/// assert_eq!(repeated(&[4, 2, 0, 1, 3], 3), [4, 4, 4, 2, 2]);
/// ```
pub fn repeated(order: &[i64], repeats: usize) -> Vec<i64> {
    if repeats < 2 {
        return order.to_vec();
    }
    const ROUND: usize = 256;
    let len = if order.len() >= ROUND { order.len() / ROUND * ROUND } else { order.len() };
    order.iter().flat_map(|&index| std::iter::repeat_n(index, repeats)).take(len).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_cut_to_a_multiple_of_256() {
        let order: Vec<i64> = (0..50_000).rev().collect();
        let epoch = repeated(&order, 3);
        assert_eq!(epoch.len(), 49_920); // 195 · 256
        assert_eq!(epoch[..7], [49_999, 49_999, 49_999, 49_998, 49_998, 49_998, 49_997]);
        assert_eq!(epoch[49_919], 49_999 - 49_919 / 3);
        for (n, len) in [(0, 0), (1, 1), (255, 255), (256, 256), (257, 256), (511, 256), (512, 512)] {
            assert_eq!(repeated(&order[..n], 2).len(), len);
        }
        assert_eq!(repeated(&order[..300], 1), order[..300]);
    }
}
