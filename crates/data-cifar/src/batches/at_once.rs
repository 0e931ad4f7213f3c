//! How much is worked on at once: enough that starting an operation costs little beside doing it, and no more where
//! pictures are stored larger than they are shown.

/// Bytes of images that go through the pipeline together: 1,024 images of 32×32 pixels.
const TOGETHER: usize = 3 << 20;
/// Bytes of decoded batches that wait for the network, the one in the making aside.
const WAITING: usize = 16 << 20;

/// Bytes of an image of `pixels` pixels.
fn image_bytes(pixels: usize) -> usize {
    3 * pixels.max(1)
}

/// How many batches are augmented together: images of `stored` pixels, of which `shown` are shown.
pub(crate) fn batches(batch_size: usize, stored: usize, shown: usize) -> usize {
    (TOGETHER / batch_size.max(1).saturating_mul(image_bytes(stored.max(shown)))).max(1)
}

/// How many of a batch's images are worked on together: all, where they are not stored larger than they are shown.
pub(crate) fn images(batch: usize, stored: usize, shown: usize) -> usize {
    let bytes = TOGETHER.max(batch * image_bytes(shown));
    (bytes / image_bytes(stored.max(shown))).max(1)
}

/// How many decoded batches of so many bytes wait for the network.
pub(crate) fn waiting(batch_bytes: usize) -> usize {
    WAITING / batch_bytes.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_images_go_together_and_large_ones_one_by_one() {
        let square = |side: usize| side * side;
        // 1,024 images of 32×32, whether they are stored or shown so.
        assert_eq!([(32, 32), (8, 32), (32, 8)].map(|(s, t)| batches(96, square(s), square(t))), [10; 3]);
        assert_eq!(batches(8, square(1024), square(32)), 1);
        assert_eq!(images(960, square(32), square(32)), 1024);
        assert_eq!(images(8, square(1024), square(32)), 1);
        // A batch's share of what is shown of it, or all of it.
        assert_eq!(images(64, square(256), square(224)), 49);
        assert_eq!(images(4096, square(32), square(32)), 4096);
        assert_eq!(images(0, 0, 0), TOGETHER / 3);
        assert_eq!([8, 1].map(|count| waiting(count * image_bytes(square(1024)))), [0, 5]);
    }
}
