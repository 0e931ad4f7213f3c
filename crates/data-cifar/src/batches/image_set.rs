//! Images to train or evaluate on, wherever they are kept.

use ndarray::ArrayView4;
use tch::Device;

use crate::augment::normalize::ChannelStats;
use crate::batches::at_once;
use crate::batches::device::{Batch, Batches, DeviceSet};
use crate::batches::stream::{StreamBatches, StreamSet};
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
    /// Those of [`DeviceSet::batches`] and [`StreamSet::batches`].
    pub fn batches(&self, order: &[i64], batch_size: usize) -> Result<ImageBatches<'_>, DataError> {
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
    ) -> Result<ImageBatches<'_>, DataError> {
        Ok(match self {
            Self::Held(set) => ImageBatches::InMemory(Batches::of_held(set, order, batch_size, first)?),
            Self::Resident(set) => ImageBatches::InMemory(set.batches_from(order, batch_size, first)?),
            Self::Streamed(set) => ImageBatches::Streamed(set.batches_from(order, batch_size, first)?),
        })
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

/// The batches of one pass over an [`ImageSet`].
#[derive(Debug)]
pub enum ImageBatches<'a> {
    /// Of images that are in memory.
    InMemory(Batches<'a>),
    /// Received from a [`StreamSet`].
    Streamed(StreamBatches),
}

impl Iterator for ImageBatches<'_> {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::InMemory(batches) => batches.next(),
            Self::Streamed(batches) => batches.next(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match self {
            Self::InMemory(batches) => batches.size_hint(),
            Self::Streamed(batches) => batches.size_hint(),
        }
    }
}

impl ExactSizeIterator for ImageBatches<'_> {}
