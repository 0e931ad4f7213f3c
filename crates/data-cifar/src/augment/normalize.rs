//! Bytes to floats: per-channel mean and standard deviation.

use tch::{Device, Kind, Tensor};

use crate::augment::on_device::check_bytes;
use crate::error::DataError;

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
        check_bytes(images)?;
        // Divided by a tensor on the device: by a plain number, CUDA multiplies by its reciprocal,
        // and x/255 would differ in the last bit from one device to the other.
        let mut floats = images.f_to_kind(Kind::Float)?; // a new tensor, so that it may be changed in place
        let mut centred = floats.f_sub_(&self.mean)?;
        Ok(centred.f_div_(&self.std)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).unwrap()
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
