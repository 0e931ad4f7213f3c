//! How much is worked on at once: enough that starting an operation costs little beside doing it, and no more where
//! pictures are stored larger than they are shown.

use std::ops::Range;

use tch::{Device, Tensor};

use crate::error::DataError;

/// Bytes of images that go through the pipeline together: 1,024 images of 32×32 pixels.
const TOGETHER: usize = 3 << 20;
/// Bytes of images that stay in a processor's cache with what is computed of them: 64 images of 32×32.
const CACHED: usize = 3 << 16;
/// Bytes of decoded batches that wait for the network, if it is more than one.
const WAITING: usize = 32 << 20;
/// Bytes that are computed on the way for each byte of the images that are worked on together, at most.
const WORK_PER_BYTE: usize = 32;

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

/// How many pixels an operation takes at a time of which much is computed for each. A GPU has no use for the cache, and
/// starting an operation there takes longer.
pub(crate) fn pixels(device: Device) -> i64 {
    let bytes = if device.is_cuda() { TOGETHER } else { CACHED };
    (bytes / image_bytes(1)) as i64
}

/// How many decoded batches of so many bytes wait for the network.
pub(crate) fn waiting(batch_bytes: usize) -> usize {
    (WAITING / batch_bytes.max(1)).max(1)
}

/// What `work` makes of so many images at a time, by the first and their number, one after the other.
pub(crate) fn in_slices(
    images: i64,
    at_once: i64,
    work: impl Fn(i64, i64) -> Result<Tensor, DataError>,
) -> Result<Tensor, DataError> {
    if images <= at_once {
        return work(0, images);
    }
    let slices = (0..images).step_by(at_once as usize);
    let made: Vec<Tensor> =
        slices.map(|start| work(start, at_once.min(images - start))).collect::<Result<_, _>>()?;
    Ok(Tensor::f_cat(&made, 0)?)
}

/// Has `work` done to images `[n, 3, H, W]` in parts of a few images or, where one is too much, of some of its rows: it is
/// given a part, which images those are, and the first of their rows.
pub(crate) fn in_parts(
    images: &Tensor,
    work: impl Fn(&Tensor, Range<usize>, i64) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let (n, _, height, width) = images.size4()?;
    let pixels = pixels(images.device());
    let (count, rows) = ((pixels / (height * width)).max(1), (pixels / width).clamp(1, height));
    for first in (0..n).step_by(count as usize) {
        let count = count.min(n - first);
        let those = images.f_narrow(0, first, count)?;
        for row in (0..height).step_by(rows as usize) {
            let part = those.f_narrow(2, row, rows.min(height - row))?;
            work(&part, first as usize..(first + count) as usize, row)?;
        }
    }
    Ok(())
}
