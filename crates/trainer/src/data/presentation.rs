//! How a recipe's images are shown to a network: the recipe's words turned into a pipeline.

use data_cifar::{Augmented, ChannelStats, Draw, ImageSet, Normalizer, Pipeline, draw_mixings};
use run_record::Recipe;
use tch::{Device, Tensor};
use torch_ext::channels_last;

use crate::Error;

/// Turns bytes into what the network is fed.
#[derive(Debug)]
pub struct Presentation {
    pipeline: Pipeline,
    num_classes: i64,
    label_smoothing: f64,
    /// How often each image follows itself in an epoch.
    pub repeats: usize,
}

/// A training batch as the network sees it.
#[derive(Debug)]
pub struct Shown {
    /// f32 `[B, 3, S, S]`, channels last in memory: a convolution passes that order on, and libtorch's CPU convolutions
    /// are faster in it.
    pub images: Tensor,
    /// Classes, i64 `[B]`, or shares of every class, f32 `[B, K]`.
    pub targets: Tensor,
    /// What the targets have still to be smoothed by.
    pub smoothing: f64,
    /// The class with the largest share, i64 `[B]`.
    pub labels: Tensor,
    /// The batch's number in the epoch, from 0.
    pub number: u64,
}

impl Presentation {
    /// The recipe's, for so many classes, with the statistics to normalise by.
    ///
    /// # Errors
    /// libtorch's refusal to place the statistics on the device.
    pub fn new(
        recipe: &Recipe,
        stats: &ChannelStats,
        num_classes: i64,
        device: Device,
    ) -> Result<Self, Error> {
        let Recipe { data, augment, train, .. } = recipe;
        Ok(Self {
            pipeline: Pipeline {
                normalizer: Normalizer::new(stats, device)?,
                image_size: data.image_size,
                resize: data.resize,
                augment: augment.clone(),
                fill: stats.mean.map(|mean| mean.round().clamp(0.0, 255.0) as u8),
            },
            num_classes,
            label_smoothing: train.label_smoothing,
            repeats: augment.aug_repeats.unwrap_or(1),
        })
    }

    /// Images for evaluation: u8 `[B, 3, H, W]` to f32 `[B, 3, image_size, image_size]`.
    ///
    /// # Errors
    /// libtorch's refusal.
    pub fn plain(&self, images: &Tensor) -> Result<Tensor, Error> {
        Ok(channels_last(&self.pipeline.plain(images)?)?)
    }

    /// The training batches of an epoch from number `first` on: the images of `order`.
    ///
    /// # Errors
    /// libtorch's refusal.
    pub fn epoch<'a>(
        &'a self,
        set: &'a ImageSet,
        order: &[i64],
        batch_size: usize,
        draw: Draw,
        first: usize,
    ) -> Result<impl Iterator<Item = Result<Shown, Error>> + 'a, Error> {
        let batches = self.pipeline.epoch(set, order, batch_size, draw, first)?;
        Ok(batches.map(move |batch| self.shown(batch?, draw)))
    }

    fn shown(&self, batch: Augmented, draw: Draw) -> Result<Shown, Error> {
        let Augmented { images, labels, indices, number } = batch;
        let Pipeline { augment, image_size, .. } = &self.pipeline;
        if !augment.mixes(draw.epoch) {
            let (images, smoothing) = (channels_last(&images)?, self.label_smoothing);
            let targets = labels.shallow_clone();
            return Ok(Shown { images, targets, smoothing, labels, number });
        }
        let size = (*image_size, *image_size);
        let mixings = draw_mixings(augment, draw.seed, draw.epoch, number, &indices, size);
        let (images, targets) =
            data_cifar::mix(&images, &labels, &mixings, self.num_classes, self.label_smoothing)?;
        let labels = targets.f_argmax(1, false)?;
        Ok(Shown { images: channels_last(&images)?, targets, smoothing: 0.0, labels, number })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_cifar::{ChannelStats, DeviceSet, load_digits};
    use std::path::Path;
    use tch::Kind;

    fn recipe(model: &str, sets: &[&str]) -> Recipe {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        crate::run::recipes::from_preset(&root, "reference", model, &sets).unwrap().recipe
    }

    fn digits() -> ImageSet {
        let digits =
            load_digits(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/digits")).unwrap();
        ImageSet::Resident(DeviceSet::new(&digits.test, Device::Cpu).unwrap())
    }

    fn draw(epoch: u64) -> Draw {
        Draw { seed: 7, epoch, repeats: 1 }
    }

    #[test]
    fn training_images_are_enlarged_and_cut_and_others_only_resized() {
        let recipe = recipe("patchconvnet_reference", &["augment.hflip=0.0"]);
        let presentation = Presentation::new(&recipe, &ChannelStats::UNIT, 10, Device::Cpu).unwrap();
        let set = digits();
        let bytes = set.batches(&[0], 1).unwrap().next().unwrap().unwrap().images;
        let floats = bytes.to_kind(Kind::Float) / 255.0;
        assert_eq!(presentation.plain(&bytes).unwrap(), data_cifar::resize(&floats, 48).unwrap());
        let large = data_cifar::resize(&floats, 52).unwrap();
        let mut places = std::collections::BTreeSet::new();
        // The same image in twenty batches of one epoch.
        for shown in presentation.epoch(&set, &[0; 20], 1, draw(1), 0).unwrap() {
            let cut = shown.unwrap().images;
            assert_eq!(cut.size(), [1, 3, 48, 48]);
            let place = (0..25).find(|n| cut == large.narrow(2, n / 5, 48).narrow(3, n % 5, 48));
            places.insert(place.expect("it is cut out of the large image"));
        }
        assert!(places.len() > 5, "{places:?}");
    }

    #[test]
    fn mixed_batches_have_shares_of_classes_until_the_last_epoch_that_mixes() {
        let mixing = [
            "augment.mixup.alpha=0.8",
            "augment.cutmix.alpha=1.0",
            "augment.mix.prob=1.0",
            "augment.mix.switch_prob=0.5",
            "augment.mix.mode=batch",
            "augment.mix.off_epoch=2",
        ];
        let recipe = recipe("cct_reference", &mixing);
        let presentation = Presentation::new(&recipe, &ChannelStats::UNIT, 10, Device::Cpu).unwrap();
        let set = digits();
        let order: Vec<i64> = (0..32).collect();
        for epoch in [1, 2, 3] {
            let mut batches = presentation.epoch(&set, &order, 16, draw(epoch), 0).unwrap();
            let shown = batches.next().unwrap().unwrap();
            if epoch == 3 {
                assert_eq!((shown.targets.kind(), shown.smoothing), (Kind::Int64, 0.1));
                assert_eq!(shown.targets, shown.labels);
                continue;
            }
            assert_eq!((shown.targets.size(), shown.smoothing), (vec![16, 10], 0.0));
            let sums = shown.targets.sum_dim_intlist(1, false, Kind::Float);
            assert!((sums - 1.0).abs().max().double_value(&[]) < 1e-6);
            assert_eq!(shown.labels, shown.targets.argmax(1, false));
            // Smoothed, no class has nothing.
            assert!((shown.targets.min().double_value(&[]) - 0.01).abs() < 1e-6);
        }
    }
}
