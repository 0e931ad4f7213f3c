//! Images to train or evaluate on, wherever they are kept, and batches of them.

use ndarray::ArrayView4;
use tch::{Device, Tensor};

use crate::augment::normalize::ChannelStats;
use crate::batches::at_once;
use crate::batches::device::{DeviceSet, gather};
use crate::batches::stream::{DecodedAhead, StreamSet};
use crate::error::DataError;
use crate::sets::dataset::Labelled;
use crate::sets::statistics::{Sums, channel_stats};

/// Images and labels to train or evaluate on, wherever they are kept.
#[derive(Debug)]
pub enum ImageSet {
    /// All in main memory, for the processor.
    Held(Labelled),
    /// All on the device.
    Resident(DeviceSet),
    /// Decoded batch by batch.
    Streamed(StreamSet),
}

impl ImageSet {
    /// Images for `device`. The processor has their pixels in common with `set`; any other device gets a copy.
    ///
    /// # Errors
    /// Those of [`DeviceSet::new`].
    pub fn new(set: &Labelled, device: Device) -> Result<Self, DataError> {
        Ok(match device {
            Device::Cpu => Self::Held(set.clone()),
            device => Self::Resident(DeviceSet::new(set, device)?),
        })
    }

    /// The number of images.
    pub fn len(&self) -> usize {
        match self {
            Self::Held(set) => set.len(),
            Self::Resident(set) => set.len(),
            Self::Streamed(set) => set.len(),
        }
    }

    /// `true` without images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pixels of an image as it is stored.
    pub(crate) fn image_pixels(&self) -> usize {
        match self {
            Self::Held(set) => set.images.shape()[2..].iter().product(),
            Self::Resident(set) => set.images.size()[2..].iter().product::<i64>() as usize,
            Self::Streamed(set) => set.image_pixels(),
        }
    }

    /// The device of the batches.
    pub fn device(&self) -> Device {
        match self {
            Self::Held(_) => Device::Cpu,
            Self::Resident(set) => set.images.device(),
            Self::Streamed(set) => set.device(),
        }
    }

    /// The images of `order` in batches of `batch_size`; the last one holds what is left.
    ///
    /// # Errors
    /// When the batch size is 0, an index is out of range, or no thread can be started to decode pictures.
    pub fn batches(&self, order: &[i64], batch_size: usize) -> Result<Batches<'_>, DataError> {
        self.batches_from(order, batch_size, 0)
    }

    /// As [`ImageSet::batches`], from batch number `first` on, numbered as if the others had been there.
    ///
    /// # Errors
    /// Those of [`ImageSet::batches`].
    pub fn batches_from(
        &self,
        order: &[i64],
        batch_size: usize,
        first: usize,
    ) -> Result<Batches<'_>, DataError> {
        check_order(order, batch_size, self.len())?;
        let number = first.min(order.len().div_ceil(batch_size));
        let images = match self {
            Self::Held(set) => Images::Held(set),
            Self::Resident(set) => {
                // On the host: once for the epoch.
                let order = Tensor::f_from_slice(order)?.f_to_device(set.images.device())?;
                Images::Resident(set, order)
            }
            Self::Streamed(set) => {
                let start = number.saturating_mul(batch_size).min(order.len());
                Images::Streamed(set.decode_ahead(order[start..].to_vec(), batch_size)?)
            }
        };
        Ok(Batches { images, order: order.to_vec(), batch_size, number })
    }

    /// What [`channel_stats`] says of the images.
    ///
    /// # Errors
    /// When there is no image, or one can no longer be read.
    pub fn channel_stats(&self) -> Result<ChannelStats, DataError> {
        if let Self::Held(set) = self {
            return channel_stats(set);
        }
        let order: Vec<i64> = (0..self.len() as i64).collect();
        let at_once = match self {
            Self::Streamed(set) => set.threads(), // each decodes an image
            _ => 1,
        };
        let mut sums = Sums::default();
        for batch in self.batches(&order, at_once::batches(1, self.image_pixels(), 1).max(at_once))? {
            let images = batch?.images;
            let shape = images.size4()?;
            let shape = <[i64; 4]>::from(shape).map(|size| size as usize);
            let pixels: Vec<u8> = Vec::try_from(images.f_to_device(Device::Cpu)?.f_flatten(0, -1)?)?;
            let images = ArrayView4::from_shape(shape, &pixels);
            sums.add(images.map_err(|error| DataError::Argument(error.to_string()))?);
        }
        sums.stats()
    }
}

/// Whether the images of an order can be had in batches of a size.
fn check_order(order: &[i64], batch_size: usize, n: usize) -> Result<(), DataError> {
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
    /// Each image's position in the order.
    pub positions: Vec<usize>,
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
            positions: self.positions[first..first + len as usize].to_vec(),
            number: self.number,
        })
    }
}

/// The batches of one pass over an [`ImageSet`]; see [`ImageSet::batches`].
///
/// A batch of a [`StreamSet`] is an error when one of its files cannot be decoded any more or has other pixels than it
/// had; the error names it. Nothing comes after an error. Dropping the iterator stops the decoding.
#[derive(Debug)]
pub struct Batches<'a> {
    images: Images<'a>,
    order: Vec<i64>,
    batch_size: usize,
    /// That of the next batch.
    number: usize,
}

/// Where the images come from.
#[derive(Debug)]
enum Images<'a> {
    Held(&'a Labelled),
    /// With the order, where the images are.
    Resident(&'a DeviceSet, Tensor),
    Streamed(DecodedAhead),
}

impl Batches<'_> {
    fn batch(&self, start: usize, len: usize) -> Result<Batch, DataError> {
        let indices = self.order[start..start + len].to_vec();
        let (images, labels) = match &self.images {
            Images::Held(set) => gather(set, &indices)?,
            Images::Resident(set, order) => set.batch(&order.f_narrow(0, start as i64, len as i64)?)?,
            Images::Streamed(decoded) => decoded.receive()?,
        };
        let positions = (start..start + len).collect();
        Ok(Batch { images, labels, indices, positions, number: self.number as u64 })
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.number.saturating_mul(self.batch_size);
        let len = self.batch_size.min(self.order.len().saturating_sub(start));
        if len == 0 {
            return None;
        }
        let batch = self.batch(start, len);
        self.number =
            if batch.is_ok() { self.number + 1 } else { self.order.len().div_ceil(self.batch_size) };
        Some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.order.len().div_ceil(self.batch_size) - self.number;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Batches<'_> {}

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

    fn resident(set: &Labelled) -> ImageSet {
        ImageSet::Resident(DeviceSet::new(set, Device::Cpu).unwrap())
    }

    fn bytes(tensor: &Tensor) -> Vec<u8> {
        Vec::try_from(tensor.flatten(0, -1)).unwrap()
    }

    fn labels(tensor: &Tensor) -> Vec<i64> {
        Vec::try_from(tensor).unwrap()
    }

    #[test]
    fn every_index_comes_once_and_the_last_batch_is_kept() {
        let device = resident(&set(12));
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
            let (device, held) = (resident(&host), ImageSet::Held(host));
            for first in 0..5 {
                let found = held.batches_from(&order, 2, first).unwrap();
                let wanted = device.batches_from(&order, 2, first).unwrap();
                assert_eq!(found.len(), wanted.len());
                for (found, wanted) in found.map(Result::unwrap).zip(wanted.map(Result::unwrap)) {
                    let Batch { images, labels, indices, positions, number } = wanted;
                    assert_eq!((found.images, found.labels, found.indices), (images, labels, indices));
                    assert_eq!((found.positions, found.number), (positions, number));
                }
            }
            for (order, batch_size) in [(vec![12], 2), (vec![-1], 2), (order, 0)] {
                assert!(held.batches(&order, batch_size).is_err());
            }
        }
    }

    #[test]
    fn bad_arguments_are_errors() {
        for set in [resident(&set(12)), ImageSet::Held(set(12))] {
            for (result, part) in [
                (set.batches(&[0], 0), "at least 1, not 0"),
                (set.batches(&[0, 12], 4), "no image 12 in a set of 12"),
                (set.batches(&[-1], 4), "no image -1"),
            ] {
                let message = result.unwrap_err().to_string();
                assert!(message.contains(part), "{message}");
            }
        }
    }
}
