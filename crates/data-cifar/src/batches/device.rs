//! A data set on the training device, and batches of it: after one transfer per epoch, everything
//! about a batch happens on the device.

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
    /// When an index is out of range or `indices` is of another kind or device. (CUDA reports an index out
    /// of range only later, and for good; [`DeviceSet::batches`] checks on the host, once per epoch.)
    pub fn batch(&self, indices: &Tensor) -> Result<(Tensor, Tensor), DataError> {
        Ok((self.images.f_index_select(0, indices)?, self.labels.f_index_select(0, indices)?))
    }

    /// The images of `order` in batches of `batch_size`; the last one holds what is left.
    ///
    /// # Errors
    /// When the batch size is 0 or an index is out of range.
    pub fn batches(&self, order: &[i64], batch_size: usize) -> Result<Batches<'_>, DataError> {
        self.batches_from(order, batch_size, 0)
    }

    /// As [`DeviceSet::batches`], from batch number `first` on, numbered as if the others had been there.
    ///
    /// # Errors
    /// Those of [`DeviceSet::batches`].
    pub fn batches_from(
        &self,
        order: &[i64],
        batch_size: usize,
        first: usize,
    ) -> Result<Batches<'_>, DataError> {
        check_order(order, batch_size, self.len())?;
        // On the host: once for the epoch.
        let on_device = Tensor::f_from_slice(order)?.f_to_device(self.images.device())?;
        Ok(Batches::new(Images::Device { set: self, order: on_device }, order, batch_size, first))
    }
}

/// Whether the images of an order can be had in batches of a size.
pub(crate) fn check_order(order: &[i64], batch_size: usize, n: usize) -> Result<(), DataError> {
    if batch_size == 0 {
        return Err(DataError::Argument("the batch size must be at least 1, not 0".into()));
    }
    let is_there = |index: &&i64| usize::try_from(**index).is_ok_and(|index| index < n);
    match order.iter().find(|index| !is_there(index)) {
        Some(index) => Err(DataError::Argument(format!("there is no image {index} in a set of {n}"))),
        None => Ok(()),
    }
}

/// One batch on the device.
#[derive(Debug)]
pub struct Batch {
    /// Bytes, `[B, 3, H, W]`.
    pub images: Tensor,
    /// Classes as i64, `[B]`.
    pub labels: Tensor,
    /// Each image's index in the set.
    pub indices: Vec<i64>,
    /// Position of the first image in the order.
    pub start: usize,
    /// The batch's number in the order, from 0.
    pub number: u64,
}

impl Batch {
    /// So many images of the batch from one on.
    pub(crate) fn slice(&self, start: i64, len: i64) -> Result<Self, DataError> {
        let first = start as usize;
        Ok(Self {
            images: self.images.f_narrow(0, start, len)?,
            labels: self.labels.f_narrow(0, start, len)?,
            indices: self.indices[first..first + len as usize].to_vec(),
            start: self.start + first,
            number: self.number,
        })
    }
}

/// The batches of one pass over a [`DeviceSet`], or over images in main memory for the processor.
#[derive(Debug)]
pub struct Batches<'a> {
    images: Images<'a>,
    order: Vec<i64>,
    batch_size: usize,
    number: usize,
}

/// Where images are.
#[derive(Debug)]
enum Images<'a> {
    Device {
        set: &'a DeviceSet,
        /// The order, where the images are.
        order: Tensor,
    },
    Held(&'a Labelled),
}

impl<'a> Batches<'a> {
    /// Of images in main memory, for the processor.
    pub(crate) fn of_held(
        set: &'a Labelled,
        order: &[i64],
        batch_size: usize,
        first: usize,
    ) -> Result<Self, DataError> {
        check_order(order, batch_size, set.len())?;
        Ok(Self::new(Images::Held(set), order, batch_size, first))
    }

    fn new(images: Images<'a>, order: &[i64], batch_size: usize, first: usize) -> Self {
        let number = first.min(order.len().div_ceil(batch_size));
        Self { images, order: order.to_vec(), batch_size, number }
    }

    fn batch(&self, start: usize, len: usize) -> Result<Batch, DataError> {
        let indices = self.order[start..start + len].to_vec();
        let (images, labels) = match &self.images {
            Images::Device { set, order } => set.batch(&order.f_narrow(0, start as i64, len as i64)?)?,
            Images::Held(set) => gather(set, &indices)?,
        };
        Ok(Batch { images, labels, indices, start, number: self.number as u64 })
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.number * self.batch_size;
        let len = self.batch_size.min(self.order.len().saturating_sub(start));
        if len == 0 {
            return None;
        }
        let batch = self.batch(start, len);
        self.number += 1;
        Some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.order.len().div_ceil(self.batch_size) - self.number;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Batches<'_> {}

/// The images `[B, 3, H, W]` and labels `[B]` at `indices`, which are in range.
fn gather(set: &Labelled, indices: &[i64]) -> Result<(Tensor, Tensor), DataError> {
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
    fn every_index_comes_once_and_the_last_batch_is_kept() {
        let device = DeviceSet::new(&set(12), Device::Cpu).unwrap();
        let order = [11, 3, 5, 0, 1, 2, 4, 10, 9, 6, 7];
        for (batch_size, sizes) in [(4, vec![4, 4, 3]), (11, vec![11]), (100, vec![11]), (1, vec![1; 11])] {
            let batches = device.batches(&order, batch_size).unwrap();
            assert_eq!(batches.len(), sizes.len());
            let batches: Vec<Batch> = batches.collect::<Result<_, _>>().unwrap();
            assert_eq!(batches.iter().map(|batch| batch.images.size()[0]).collect::<Vec<_>>(), sizes);
            let first: Vec<u8> = batches
                .iter()
                .flat_map(|batch| bytes(&batch.images.select(1, 0).select(1, 0).select(1, 0)))
                .collect();
            assert_eq!(first, order.map(|index| index as u8 * 20));
            let classes: Vec<i64> = batches.iter().flat_map(|batch| labels(&batch.labels)).collect();
            assert_eq!(classes, order.map(|index| index % 10));
        }
        assert_eq!(device.batches(&[], 4).unwrap().count(), 0);
    }

    #[test]
    fn batches_from_main_memory_are_those_of_the_device() {
        let mut columns = set(12);
        columns.images = columns.images.permuted_axes([0, 1, 3, 2]).as_standard_layout().to_shared();
        columns.images.swap_axes(2, 3);
        for (host, order) in [(set(12), vec![11, 3, 3, 0, 1, 2, 4]), (columns, vec![5, 11, 0])] {
            let device = DeviceSet::new(&host, Device::Cpu).unwrap();
            for first in 0..5 {
                let found = Batches::of_held(&host, &order, 2, first).unwrap();
                let wanted = device.batches_from(&order, 2, first).unwrap();
                assert_eq!(found.len(), wanted.len());
                for (found, wanted) in found.map(Result::unwrap).zip(wanted.map(Result::unwrap)) {
                    let Batch { images, labels, indices, start, number } = wanted;
                    assert_eq!((found.images, found.labels, found.indices), (images, labels, indices));
                    assert_eq!((found.start, found.number), (start, number));
                }
            }
            for (order, batch_size) in [(vec![12], 2), (vec![-1], 2), (order, 0)] {
                assert!(Batches::of_held(&host, &order, batch_size, 0).is_err());
            }
        }
    }

    #[test]
    fn bad_arguments_are_errors() {
        let device = DeviceSet::new(&set(12), Device::Cpu).unwrap();
        for (result, part) in [
            (device.batches(&[0], 0), "at least 1, not 0"),
            (device.batches(&[0, 12], 4), "no image 12 in a set of 12"),
            (device.batches(&[-1], 4), "no image -1"),
        ] {
            let message = result.unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
        let unequal = Labelled { labels: Array1::zeros(3), ..set(2) };
        let message = DeviceSet::new(&unequal, Device::Cpu).unwrap_err().to_string();
        assert!(message.contains("2 images with 3 labels"), "{message}");
    }
}
