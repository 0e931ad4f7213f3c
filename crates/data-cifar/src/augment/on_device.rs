//! How numbers get to a device, and how work on many pixels is shared out there.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::error::DataError;

/// Pixels that a GPU works on at a time: 1,024 images of 32×32.
const TOGETHER: i64 = 1 << 20;
/// Pixels that stay in a processor's cache with what is computed of them: 64 images of 32×32.
const CACHED: i64 = 1 << 16;

/// Values on a device, without waiting for what the device is doing.
pub(crate) fn upload<T: tch::kind::Element>(values: &[T], device: Device) -> Result<Tensor, DataError> {
    let host = Tensor::f_from_slice(values)?;
    if device == Device::Cpu {
        return Ok(host);
    }
    // Only from pinned memory does a copy not wait.
    let pinned = host.f_internal_pin_memory(device)?;
    Ok(pinned.f_to_device_(device, host.kind(), true, false)?)
}

/// `[B, H, W]` of bytes `[B, 3, H, W]`.
pub(crate) fn check_bytes(images: &Tensor) -> Result<[i64; 3], DataError> {
    match (images.kind(), images.size().as_slice()) {
        (Kind::Uint8, &[batch, 3, height, width]) => Ok([batch, height, width]),
        (kind, shape) => {
            Err(DataError::Argument(format!("images must be bytes [B, 3, H, W], not {kind:?} {shape:?}")))
        }
    }
}

/// How many pixels an operation takes at a time of which much is computed for each. A GPU has no use for the cache, and
/// starting an operation there takes longer.
pub(crate) fn pixels(device: Device) -> i64 {
    if device.is_cuda() { TOGETHER } else { CACHED }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_all_pixels_once() {
        for (n, height, width) in [(3, 2, 2), (130, 32, 32), (2, 300, 301), (1, 1, 70_000), (0, 4, 4)] {
            let images = Tensor::zeros([n, 3, height, width], (Kind::Uint8, Device::Cpu));
            in_parts(&images, |part, which, first_row| {
                let (count, _, rows, _) = part.size4()?;
                assert_eq!(count, which.len() as i64);
                assert!(count * rows * width <= pixels(Device::Cpu).max(width), "{n} of {height}x{width}");
                assert!(rows == height || count == 1);
                let wanted = images.narrow(0, which.start as i64, count).narrow(2, first_row, rows);
                assert_eq!(part.data_ptr(), wanted.data_ptr());
                let _ = part.shallow_clone().g_add_scalar_(1);
                Ok(())
            })
            .unwrap();
            assert_eq!(images.ne(1).any().int64_value(&[]), 0, "{n} of {height}x{width}");
        }
    }

    #[test]
    fn slices_are_put_together_in_order() {
        for at_once in [1, 3, 4, 10, 11] {
            let made = in_slices(10, at_once, |start, len| {
                assert!(len <= at_once);
                Ok(Tensor::arange_start(start, start + len, (Kind::Int64, Device::Cpu)))
            });
            assert_eq!(made.unwrap(), Tensor::arange(10, (Kind::Int64, Device::Cpu)));
        }
    }
}
