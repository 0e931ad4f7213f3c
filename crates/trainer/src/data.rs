//! A recipe's data, split, normalised and on the device.

use std::ops::Range;
use std::path::Path;

use data_cifar::{Augmentation, Batch, ChannelStats, Dataset, DeviceSet, Draws, Normalizer, channel_stats};
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
    crop_from: Option<i64>,
    augmentation: Augmentation,
}

impl Presentation {
    /// The recipe's, with the statistics to normalise by.
    ///
    /// # Errors
    /// libtorch's refusal to place the statistics on the device.
    pub fn new(recipe: &DataRecipe, stats: &ChannelStats, device: Device) -> Result<Self, Error> {
        let augmentation = Augmentation {
            crop: recipe.crop_from.map(|_| recipe.image_size),
            flip: recipe.flip,
            rotation_degrees: recipe.rotation_degrees,
            zoom: recipe.zoom,
        };
        Ok(Self {
            normalizer: Normalizer::new(stats, device)?,
            image_size: recipe.image_size,
            crop_from: recipe.crop_from,
            augmentation,
        })
    }

    /// What the training images of `order` go through in an epoch.
    ///
    /// # Errors
    /// libtorch's refusal to place it on the device.
    pub fn draw(&self, seed: u64, epoch: u64, order: &[i64], device: Device) -> Result<Draws, Error> {
        Ok(self.augmentation.draw(seed, epoch, order, device)?)
    }

    /// Images for evaluation: u8 `[B, 3, H, W]` to f32 `[B, 3, image_size, image_size]`.
    ///
    /// # Errors
    /// libtorch's refusal.
    pub fn plain(&self, images: &Tensor) -> Result<Tensor, Error> {
        channels_last(&data_cifar::resize(&self.normalizer.apply(images)?, self.image_size)?)
    }

    /// Images for training: those of the epoch's batch number `step`, augmented as drawn.
    ///
    /// # Errors
    /// libtorch's refusal.
    pub fn augmented(&self, batch: &Batch, draws: &Draws, step: u64) -> Result<Tensor, Error> {
        let floats = self.normalizer.apply(&batch.images)?;
        let floats = data_cifar::resize(&floats, self.crop_from.unwrap_or(self.image_size))?;
        channels_last(&draws.apply(&floats, step, batch.start)?)
    }
}

/// The same images, channels last in memory: a convolution passes that order on, and libtorch's CPU
/// convolutions are faster in it.
fn channels_last(images: &Tensor) -> Result<Tensor, Error> {
    Ok(images.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])?)
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

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn training_images_are_enlarged_and_cut_and_others_only_resized() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let recipe = crate::recipes::from_preset(&root, "reference", "patchconvnet_reference", &[]);
        let mut recipe = recipe.unwrap().recipe.data;
        recipe.flip = false;
        let presentation = Presentation::new(&recipe, &ChannelStats::UNIT, Device::Cpu).unwrap();
        let digits = load(DatasetName::Digits, &root, None).unwrap();
        let set = DeviceSet::new(&digits.test, Device::Cpu).unwrap();
        let batch = set.batches(&[0], 1).unwrap().next().unwrap().unwrap();
        let floats = batch.images.to_kind(Kind::Float) / 255.0;

        let plain = presentation.plain(&batch.images).unwrap();
        assert_eq!(plain, data_cifar::resize(&floats, 48).unwrap());
        let large = data_cifar::resize(&floats, 52).unwrap();
        let draws = presentation.draw(7, 1, &[0], Device::Cpu).unwrap();
        let mut places = std::collections::BTreeSet::new();
        for step in 0..20 {
            let cut = presentation.augmented(&batch, &draws, step).unwrap();
            assert_eq!(cut.size(), [1, 3, 48, 48]);
            let place = (0..25).find(|n| cut == large.narrow(2, n / 5, 48).narrow(3, n % 5, 48));
            places.insert(place.expect("it is cut out of the large image"));
        }
        assert!(places.len() > 5, "{places:?}");
    }
}
