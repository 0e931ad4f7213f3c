//! Bytes to floats: per-channel mean and standard deviation.

use ndarray::{ArrayView4, Axis};
use tch::{Device, Kind, Tensor};

use crate::error::DataError;
use crate::sets::dataset::Labelled;

/// Mean and standard deviation per channel (red, green, blue) on the scale of the bytes, 0 to 255.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChannelStats {
    /// Subtracted from a byte.
    pub mean: [f64; 3],
    /// What is left is divided by this.
    pub std: [f64; 3],
}

impl ChannelStats {
    /// x/255 and nothing else.
    pub const UNIT: Self = Self { mean: [0.0; 3], std: [255.0; 3] };

    /// (x/255 − mean)/std: `mean` and `std` on the scale 0 to 1, on which they are usually published.
    pub fn from_unit_scale(mean: [f64; 3], std: [f64; 3]) -> Self {
        Self { mean: mean.map(|value| value * 255.0), std: std.map(|value| value * 255.0) }
    }
}

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

/// [`ChannelStats`] on a device, ready for batches.
#[derive(Debug)]
pub struct Normalizer {
    mean: Tensor,
    std: Tensor,
}

impl Normalizer {
    /// Moves `stats` to `device`, once: batches need no transfer.
    ///
    /// # Errors
    /// When a mean is not finite or a standard deviation not a positive number, or the device is not there.
    pub fn new(stats: &ChannelStats, device: Device) -> Result<Self, DataError> {
        if !stats.mean.iter().all(|mean| mean.is_finite()) {
            return Err(DataError::Argument(format!("channel means must be finite, not {:?}", stats.mean)));
        }
        if !stats.std.iter().all(|&std| std.is_finite() && std > 0.0) {
            let message = format!("channel standard deviations must be positive, not {:?}", stats.std);
            return Err(DataError::Argument(message));
        }
        let tensor = |values: &[f64; 3]| {
            // On the host: once for all batches.
            Tensor::f_from_slice(&values.map(|value| value as f32))?.f_view([3, 1, 1])?.f_to_device(device)
        };
        Ok(Self { mean: tensor(&stats.mean)?, std: tensor(&stats.std)? })
    }

    /// (x − mean)/std in f32: bytes `[B, 3, H, W]` to floats of the same shape.
    ///
    /// # Errors
    /// When `images` are not bytes, or have another shape or device.
    pub fn apply(&self, images: &Tensor) -> Result<Tensor, DataError> {
        let (kind, shape) = (images.f_kind()?, images.size());
        if kind != Kind::Uint8 || shape.len() != 4 || shape[1] != 3 {
            return Err(DataError::Argument(format!("expected bytes [B, 3, H, W], not {kind:?} {shape:?}")));
        }
        // Divided by a tensor on the device: by a plain number, CUDA multiplies by its reciprocal,
        // and x/255 would differ in the last bit from one device to the other.
        let mut floats = images.f_to_kind(Kind::Float)?; // a new tensor, so that it may be changed in place
        let mut centred = floats.f_sub_(&self.mean)?;
        Ok(centred.f_div_(&self.std)?)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{ArcArray, Array1};

    use super::*;

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
    fn unit_is_exactly_division_by_255() {
        let bytes: Vec<u8> = (0..=255).cycle().take(3 * 256).collect();
        for device in torch_ext::test_devices() {
            let images = Tensor::from_slice(&bytes).view([1, 3, 16, 16]).to_device(device);
            let unit = Normalizer::new(&ChannelStats::UNIT, device).unwrap();
            for (byte, found) in bytes.iter().zip(floats(&unit.apply(&images).unwrap())) {
                assert_eq!(found.to_bits(), (f32::from(*byte) / 255.0).to_bits(), "{byte} on {device:?}");
            }
            assert_eq!(images.kind(), Kind::Uint8); // untouched
        }
    }

    #[test]
    fn values_worked_out_by_hand() {
        let images = Tensor::from_slice(&[0u8, 255, 100, 101, 10, 20]).view([1, 3, 1, 2]);
        let stats = ChannelStats { mean: [51.0, 100.0, 15.0], std: [2.0, 4.0, 5.0] };
        let found = Normalizer::new(&stats, Device::Cpu).unwrap().apply(&images).unwrap();
        assert_eq!((found.kind(), found.size()), (Kind::Float, vec![1, 3, 1, 2]));
        assert_eq!(floats(&found), [-25.5, 102.0, 0.0, 0.25, -1.0, 1.0]);
    }

    #[test]
    fn fixed_statistics_are_on_the_unit_scale() {
        let stats = ChannelStats::from_unit_scale([0.5, 0.2, 0.0], [0.25, 0.1, 1.0]);
        let images = Tensor::from_slice(&[255u8, 51, 51]).view([1, 3, 1, 1]);
        let found = floats(&Normalizer::new(&stats, Device::Cpu).unwrap().apply(&images).unwrap());
        for (found, expected) in found.iter().zip([2.0, 0.0, 0.2]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
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

    #[test]
    fn bad_arguments_are_errors() {
        for (stats, part) in [
            (ChannelStats { mean: [f64::NAN, 0.0, 0.0], ..ChannelStats::UNIT }, "NaN"),
            (ChannelStats { std: [1.0, 0.0, 1.0], ..ChannelStats::UNIT }, "[1.0, 0.0, 1.0]"),
            (ChannelStats { std: [1.0, -1.0, 1.0], ..ChannelStats::UNIT }, "-1.0"),
        ] {
            let message = Normalizer::new(&stats, Device::Cpu).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
        let unit = Normalizer::new(&ChannelStats::UNIT, Device::Cpu).unwrap();
        for images in [
            Tensor::zeros([1, 3, 2, 2], (Kind::Float, Device::Cpu)),
            Tensor::zeros([1, 1, 2, 2], (Kind::Uint8, Device::Cpu)),
            Tensor::zeros([3, 2, 2], (Kind::Uint8, Device::Cpu)),
        ] {
            let message = unit.apply(&images).unwrap_err().to_string();
            assert!(message.contains(&format!("{:?}", images.size())), "{message}");
        }
    }
}
