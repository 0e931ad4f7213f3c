//! Mean and standard deviation of the pixels of a data set.

use ndarray::{ArrayView4, Axis};

use crate::augment::normalize::ChannelStats;
use crate::error::DataError;
use crate::sets::dataset::Labelled;

/// The population mean and standard deviation of each channel over all pixels of all images, 0 to 255.
///
/// A standard deviation below 1e-7 becomes 1e-7, so that a channel of one colour can be divided by it
/// (as Keras's `Normalization` layer does). Sums are exact integers; rounding happens once, at the end.
///
/// # Errors
/// When there is no image, or the images have not three channels.
pub fn channel_stats(set: &Labelled) -> Result<ChannelStats, DataError> {
    let shape = set.images.shape();
    if set.images.is_empty() || shape[1] != 3 {
        return Err(DataError::Argument(format!(
            "channel statistics need images of shape [N, 3, H, W], N at least 1, not {shape:?}"
        )));
    }
    let mut sums = Sums::default();
    sums.add(set.images.view());
    sums.stats()
}

/// Sums of the bytes of each channel and of their squares, and over how many pixels.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    sums: [u64; 3],
    squares: [u64; 3],
    count: u64,
}

impl Sums {
    /// Adds images `[N, 3, H, W]`.
    pub(crate) fn add(&mut self, images: ArrayView4<'_, u8>) {
        self.count += images.len() as u64 / 3;
        for (channel, pixels) in images.axis_iter(Axis(1)).enumerate().take(3) {
            for &pixel in pixels {
                self.sums[channel] += u64::from(pixel);
                self.squares[channel] += u64::from(pixel) * u64::from(pixel);
            }
        }
    }

    /// Population mean and standard deviation; one below 1e-7 becomes 1e-7.
    pub(crate) fn stats(&self) -> Result<ChannelStats, DataError> {
        let Self { sums, squares, count } = *self;
        if count == 0 {
            return Err(DataError::Argument("channel statistics need one image at least".into()));
        }
        let mut stats = ChannelStats { mean: [0.0; 3], std: [0.0; 3] };
        for (channel, (sum, squares)) in sums.into_iter().zip(squares).enumerate() {
            let variance = u128::from(count) * u128::from(squares) - u128::from(sum) * u128::from(sum); // times count²
            stats.mean[channel] = sum as f64 / count as f64;
            stats.std[channel] = ((variance as f64).sqrt() / count as f64).max(1e-7);
        }
        Ok(stats)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{ArcArray, Array1};
    use tch::{Device, Tensor};

    use super::*;
    use crate::augment::normalize::Normalizer;

    fn floats(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).unwrap()
    }

    /// Two images of 1×2 pixels: red 0, 2 and 4, 6; green 255 throughout; blue 0, 0 and 0, 255.
    fn small() -> Labelled {
        Labelled {
            images: ArcArray::from_shape_vec(
                (2, 3, 1, 2),
                vec![0, 2, 255, 255, 0, 0, 4, 6, 255, 255, 0, 255],
            )
            .unwrap(),
            labels: Array1::zeros(2),
        }
    }

    #[test]
    fn statistics_worked_out_by_hand() {
        let stats = channel_stats(&small()).unwrap();
        assert_eq!(stats.mean, [3.0, 255.0, 63.75]);
        // Red: (9 + 1 + 1 + 9)/4 = 5. Blue: 255²·(1/4)(3/4), so 255·√3/4.
        let expected = [5f64.sqrt(), 1e-7, 255.0 * 3f64.sqrt() / 4.0];
        for (found, expected) in stats.std.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
    }

    #[test]
    fn statistics_of_nothing_are_an_error() {
        for shape in [(0, 3, 2, 2), (2, 1, 2, 2), (2, 3, 0, 2)] {
            let set = Labelled { images: ArcArray::zeros(shape), labels: Array1::zeros(shape.0) };
            let message = channel_stats(&set).unwrap_err().to_string();
            assert!(
                message.contains(&format!("[{}, {}, {}, {}]", shape.0, shape.1, shape.2, shape.3)),
                "{message}"
            );
        }
    }

    #[test]
    fn adapted_images_have_mean_zero_and_variance_one() {
        let stats = channel_stats(&small()).unwrap();
        let images = Tensor::from_slice(small().images.as_slice().unwrap()).view([2, 3, 1, 2]);
        let found = Normalizer::new(&stats, Device::Cpu).unwrap().apply(&images).unwrap();
        let red = floats(&found.select(1, 0));
        let step = 1.0 / 5f32.sqrt();
        for (found, expected) in red.iter().zip([-3.0 * step, -step, step, 3.0 * step]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        assert_eq!(floats(&found.select(1, 1)), [0.0; 4]); // one colour: 0, not NaN
    }
}
