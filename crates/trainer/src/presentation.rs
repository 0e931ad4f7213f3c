//! How a recipe's images are shown to a network: the recipe's words turned into a pipeline.

use data_cifar::{
    Augmentation, Augmented, ChannelStats, ColorJitter, Cut, Draw, Filter, ImageSet, Mix, Normalizer,
    Pipeline, Policy, RandomErasing, RandomResizedCrop,
};
use run_record::{AugmentRecipe, CropOffset, EraseMode, Interpolation, MixMode, Recipe, TrainInterpolation};
use tch::{Device, Tensor};
use torch_ext::channels_last;

use crate::Error;

/// Turns bytes into what the network is fed.
#[derive(Debug)]
pub struct Presentation {
    pipeline: Pipeline,
    mix: Option<Mix>,
    /// The last epoch that mixes.
    mix_until: u64,
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
    /// A policy there is not, or libtorch's refusal to place the statistics on the device.
    pub fn new(
        recipe: &Recipe,
        stats: &ChannelStats,
        num_classes: i64,
        device: Device,
    ) -> Result<Self, Error> {
        let Recipe { data, augment, train, .. } = recipe;
        let off = augment.mixup_off_epoch.unwrap_or_default();
        Ok(Self {
            pipeline: Pipeline {
                normalizer: Normalizer::new(stats, device)?,
                image_size: data.image_size,
                interpolation: data.interpolation.map(filter),
                crop_pct: data.crop_pct.unwrap_or(1.0),
                augmentation: augmentation(augment)?,
                fill: stats.mean.map(|mean| mean.round().clamp(0.0, 255.0) as u8),
            },
            mix: mix(augment)?,
            mix_until: if off == 0 { u64::MAX } else { off.into() },
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
        let Some(mix) = self.mix.as_ref().filter(|_| draw.epoch <= self.mix_until) else {
            let (images, smoothing) = (channels_last(&images)?, self.label_smoothing);
            let targets = labels.shallow_clone();
            return Ok(Shown { images, targets, smoothing, labels, number });
        };
        let size = (self.pipeline.image_size, self.pipeline.image_size);
        let mixings = mix.draw(draw.seed, draw.epoch, number, &indices, size);
        let (images, targets) =
            data_cifar::mix(&images, &labels, &mixings, self.num_classes, self.label_smoothing)?;
        let labels = targets.f_argmax(1, false)?;
        Ok(Shown { images: channels_last(&images)?, targets, smoothing: 0.0, labels, number })
    }
}

/// PIL's filter of a name.
pub fn filter(interpolation: Interpolation) -> Filter {
    match interpolation {
        Interpolation::Bilinear => Filter::Bilinear,
        Interpolation::Bicubic => Filter::Bicubic,
    }
}

fn augmentation(recipe: &AugmentRecipe) -> Result<Augmentation, Error> {
    let cut = match (recipe.crop_from, recipe.padding, recipe.scale) {
        (Some(from), ..) => {
            Some(Cut::Enlarged { from, per_image: recipe.crop_offset == Some(CropOffset::Image) })
        }
        (_, Some(padding), _) => Some(Cut::Padded(padding)),
        (_, _, Some(scale)) => {
            let [narrow, wide] = recipe.ratio.unwrap_or([1.0; 2]);
            let interpolation = match recipe.train_interpolation {
                Some(TrainInterpolation::Bilinear) | None => data_cifar::Interpolation::Bilinear,
                Some(TrainInterpolation::Bicubic) => data_cifar::Interpolation::Bicubic,
                Some(TrainInterpolation::Random) => data_cifar::Interpolation::Random,
            };
            let ratio = (narrow, wide);
            Some(Cut::Resized(RandomResizedCrop { scale: scale.into(), ratio, interpolation }))
        }
        (None, None, None) => None,
    };
    let policy = recipe.aa.as_deref().map(Policy::parse).transpose();
    Ok(Augmentation {
        cut,
        hflip: recipe.hflip,
        vflip: recipe.vflip.unwrap_or_default(),
        policy: policy.map_err(|error| Error::Usage(format!("augment.aa: {error}")))?,
        policy_first: recipe.aa_first.unwrap_or_default(),
        color_jitter: recipe.color_jitter.map(|[b, c, s, h]| ColorJitter::new(b, c, s, h)).transpose()?,
        rotation_degrees: recipe.rotation_degrees,
        zoom: recipe.zoom,
        erasing: recipe.reprob.map(|reprob| {
            let mode = match recipe.remode {
                Some(EraseMode::Const) | None => data_cifar::EraseMode::Const,
                Some(EraseMode::Rand) => data_cifar::EraseMode::Rand,
                Some(EraseMode::Pixel) => data_cifar::EraseMode::Pixel,
            };
            RandomErasing::timm(reprob, mode, recipe.recount.unwrap_or(1))
        }),
    })
}

fn mix(recipe: &AugmentRecipe) -> Result<Option<Mix>, Error> {
    let (Some(mixup), Some(cutmix)) = (recipe.mixup, recipe.cutmix) else { return Ok(None) };
    let mix = Mix {
        mixup,
        cutmix,
        cutmix_minmax: recipe.cutmix_minmax.map(Into::into),
        mixup_prob: recipe.mixup_prob.unwrap_or(1.0),
        mixup_switch_prob: recipe.mixup_switch_prob.unwrap_or(0.5),
        mode: match recipe.mixup_mode {
            Some(MixMode::Batch) | None => data_cifar::MixMode::Batch,
            Some(MixMode::Pair) => data_cifar::MixMode::Pair,
            Some(MixMode::Elem) => data_cifar::MixMode::Elem,
        },
    };
    mix.validate()?;
    Ok(Some(mix))
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
        crate::recipes::from_preset(&root, "reference", model, &sets).unwrap().recipe
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
            "augment.mixup=0.8",
            "augment.cutmix=1.0",
            "augment.mixup_prob=1.0",
            "augment.mixup_switch_prob=0.5",
            "augment.mixup_mode=batch",
            "augment.mixup_off_epoch=2",
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

    #[test]
    fn a_policy_there_is_not_is_named() {
        let recipe = recipe("cct_reference", &["augment.aa=rand-m9-x1"]);
        let message =
            Presentation::new(&recipe, &ChannelStats::UNIT, 10, Device::Cpu).unwrap_err().to_string();
        assert!(message.contains("augment.aa") && message.contains('x'), "{message}");
    }
}
