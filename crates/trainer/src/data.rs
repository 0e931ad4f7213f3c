//! A recipe's data, split, normalised and on the device.

use std::ops::Range;
use std::path::Path;

use data_cifar::{ChannelStats, Dataset, DeviceSet, Normalizer, channel_stats};
use run_record::{DataRecipe, DatasetName, Normalize, ValidationFrom};
use tch::{Device, Tensor};

use crate::Error;

/// Reads a data set from `data_dir`, or from where `cargo xtask fetch` puts it under `root`.
///
/// # Errors
/// A missing or damaged file.
pub fn load(name: DatasetName, root: &Path, data_dir: Option<&Path>) -> Result<Dataset, Error> {
    let default = root.join("datasets").join(name.as_str());
    let directory = data_dir.unwrap_or(&default);
    Ok(match name {
        DatasetName::Digits => data_cifar::load_digits(directory)?,
        DatasetName::Cifar10 => data_cifar::load_cifar10(directory)?,
        DatasetName::Cifar100 => data_cifar::load_cifar100(directory)?,
    })
}

/// How many classes a data set has.
pub fn class_count(name: DatasetName) -> i64 {
    match name {
        DatasetName::Digits | DatasetName::Cifar10 => 10,
        DatasetName::Cifar100 => 100,
    }
}

/// The parts of the training set by position: (train, validation).
///
/// # Errors
/// More held out than there is.
pub fn split(recipe: &DataRecipe, images: usize) -> Result<(Range<usize>, Range<usize>), Error> {
    let from = match recipe.validation_from {
        ValidationFrom::Start => data_cifar::ValidationFrom::Start,
        ValidationFrom::End => data_cifar::ValidationFrom::End,
    };
    data_cifar::split(images, from, recipe.validation_count).map_err(|error| {
        Error::Usage(format!("data.validation_count = {}: {error}", recipe.validation_count))
    })
}

/// The statistics a recipe normalises by, on the scale 0 to 255.
///
/// # Errors
/// An empty training set.
pub fn channel_statistics(recipe: &DataRecipe, data: &Dataset) -> Result<ChannelStats, Error> {
    Ok(match (recipe.normalize, recipe.mean, recipe.std) {
        (Normalize::Unit, ..) => ChannelStats::UNIT,
        (Normalize::Adapt, ..) => channel_stats(&data.train)?,
        (Normalize::Fixed, Some(mean), Some(std)) => ChannelStats::from_unit_scale(mean, std),
        (Normalize::Fixed, ..) => {
            return Err(Error::Usage("data.normalize = \"fixed\" needs data.mean and data.std".to_owned()));
        }
    })
}

/// Turns bytes into what the network is fed.
#[derive(Debug)]
pub struct Presentation {
    normalizer: Normalizer,
    image_size: i64,
}

impl Presentation {
    /// # Errors
    /// libtorch's refusal to place the statistics on the device.
    pub fn new(stats: &ChannelStats, image_size: i64, device: Device) -> Result<Self, Error> {
        Ok(Self { normalizer: Normalizer::new(stats, device)?, image_size })
    }

    /// u8 `[B, 3, H, W]` to f32 `[B, 3, image_size, image_size]`, channels last in memory: a
    /// convolution passes that order on, and libtorch's CPU convolutions are faster in it.
    ///
    /// # Errors
    /// libtorch's refusal.
    pub fn apply(&self, images: &Tensor) -> Result<Tensor, Error> {
        let floats = self.normalizer.apply(images)?;
        let floats = data_cifar::resize(&floats, self.image_size)?;
        Ok(floats.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])?)
    }
}

/// One part of a data set on the device: which images of `set`, in order.
#[derive(Debug, Clone)]
pub struct Part<'a> {
    /// All images the part indexes into.
    pub set: &'a DeviceSet,
    /// Positions of the part's images.
    pub range: Range<usize>,
}

impl Part<'_> {
    /// The part's positions in file order.
    pub fn indices(&self) -> Vec<i64> {
        (self.range.start as i64..self.range.end as i64).collect()
    }
}
