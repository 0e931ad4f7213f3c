//! A data set on the training device, and single batches of it or of one in main memory.

use ndarray::Axis;
use tch::{Device, Kind, Tensor};

use crate::error::DataError;
use crate::sets::dataset::Labelled;

/// All images and labels of a set on one device; CIFAR-10's training images take 154 MB there.
#[derive(Debug)]
pub struct DeviceSet {
    /// Bytes, `[N, 3, H, W]`.
    pub images: Tensor,
    /// Classes as i64, `[N]`.
    pub labels: Tensor,
}

impl DeviceSet {
    /// Copies `set` to `device`.
    ///
    /// # Errors
    /// When the numbers of images and labels differ, or the device is not there or full.
    pub fn new(set: &Labelled, device: Device) -> Result<Self, DataError> {
        let (images, labels) = (set.images.shape(), set.labels.len());
        if images[0] != labels {
            return Err(DataError::Argument(format!("{} images with {labels} labels", images[0])));
        }
        let shape: Vec<i64> = images.iter().map(|&size| size as i64).collect();
        let layout = set.images.as_standard_layout(); // copies only what is not in that order already
        let pixels = layout.as_slice().unwrap_or_default();
        let labels: Vec<i64> = set.labels.iter().map(|&label| i64::from(label)).collect();
        // On the host: once for the set.
        let (images, labels) = (Tensor::f_from_slice(pixels)?, Tensor::f_from_slice(&labels)?);
        Ok(Self {
            images: images.f_view(shape.as_slice())?.f_to_device(device)?,
            labels: labels.f_to_device(device)?,
        })
    }

    /// The number of images.
    pub fn len(&self) -> usize {
        self.labels.size().first().map_or(0, |&n| n as usize)
    }

    /// `true` without images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The images `[B, 3, H, W]` and labels `[B]` at `indices`, i64 `[B]` on the set's device.
    ///
    /// # Errors
    /// When an index is out of range (CUDA reports that only later, and for good) or `indices` is of another kind or
    /// device.
    pub(crate) fn batch(&self, indices: &Tensor) -> Result<(Tensor, Tensor), DataError> {
        Ok((self.images.f_index_select(0, indices)?, self.labels.f_index_select(0, indices)?))
    }
}

/// The images `[B, 3, H, W]` and labels `[B]` at `indices`, which are in range.
pub(crate) fn gather(set: &Labelled, indices: &[i64]) -> Result<(Tensor, Tensor), DataError> {
    let [_, channels, height, width] = <[usize; 4]>::from(set.images.dim());
    let mut pixels = Vec::with_capacity(indices.len() * channels * height * width);
    for &index in indices {
        let image = set.images.index_axis(Axis(0), index as usize);
        match image.as_slice() {
            Some(image) => pixels.extend_from_slice(image),
            None => pixels.extend(image), // in another order in memory
        }
    }
    let shape = [indices.len(), channels, height, width].map(|size| size as i64);
    let labels: Vec<i64> = indices.iter().map(|&index| set.labels[index as usize].into()).collect();
    // On the host: that is where such a set is worked on.
    let labels = Tensor::f_from_slice(&labels)?;
    Ok((Tensor::f_from_data_size(&pixels, &shape, Kind::Uint8)?, labels))
}

#[cfg(test)]
mod tests {
    use ndarray::{ArcArray, Array1};

    use super::*;

    /// Up to 13 images of 2×3 pixels; image i holds the bytes from 20·i on.
    fn set(n: usize) -> Labelled {
        Labelled {
            images: ArcArray::from_shape_fn((n, 3, 2, 3), |(n, c, y, x)| (n * 20 + c * 6 + y * 3 + x) as u8),
            labels: Array1::from_shape_fn(n, |n| (n % 10) as u16),
        }
    }

    fn bytes(tensor: &Tensor) -> Vec<u8> {
        Vec::try_from(tensor.flatten(0, -1)).unwrap()
    }

    fn labels(tensor: &Tensor) -> Vec<i64> {
        Vec::try_from(tensor).unwrap()
    }

    #[test]
    fn the_device_holds_the_same_values() {
        let host = set(12);
        let device = DeviceSet::new(&host, Device::Cpu).unwrap();
        assert_eq!((device.images.kind(), device.images.size()), (Kind::Uint8, vec![12, 3, 2, 3]));
        assert_eq!((device.labels.kind(), device.len()), (Kind::Int64, 12));
        assert_eq!(bytes(&device.images), host.images.iter().copied().collect::<Vec<_>>());
        assert_eq!(labels(&device.labels), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]);
        // Another memory layout is the same data set.
        let mut columns = host.clone();
        columns.images = columns.images.permuted_axes([0, 1, 3, 2]).as_standard_layout().to_shared();
        columns.images.swap_axes(2, 3);
        assert!(columns.images.as_slice().is_none());
        assert_eq!(bytes(&DeviceSet::new(&columns, Device::Cpu).unwrap().images), bytes(&device.images));
    }

    #[test]
    fn a_batch_holds_the_images_asked_for() {
        let host = set(12);
        let device = DeviceSet::new(&host, Device::Cpu).unwrap();
        let (images, classes) = device.batch(&Tensor::from_slice(&[11i64, 0, 11])).unwrap();
        assert_eq!((images.size(), labels(&classes)), (vec![3, 3, 2, 3], vec![1, 0, 1]));
        for (place, n) in [11, 0, 11].into_iter().enumerate() {
            let expected: Vec<u8> = host.images.index_axis(ndarray::Axis(0), n).iter().copied().collect();
            assert_eq!(bytes(&images.get(place as i64)), expected);
        }
        assert!(device.batch(&Tensor::from_slice(&[12i64])).is_err());
    }

    #[test]
    fn every_image_needs_a_label() {
        let unequal = Labelled { labels: Array1::zeros(3), ..set(2) };
        let message = DeviceSet::new(&unequal, Device::Cpu).unwrap_err().to_string();
        assert!(message.contains("2 images with 3 labels"), "{message}");
    }
}
