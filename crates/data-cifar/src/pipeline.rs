//! From the bytes of a data set to what a network is shown, in training and in evaluation.

use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use crate::device::{Batch, resize, upload};
use crate::erase::{RandomErasing, erase};
use crate::error::DataError;
use crate::keras::{flip, rotate, zoom};
use crate::normalize::Normalizer;
use crate::ops::{Filter, Op, apply_ops};
use crate::policy::{ColorJitter, Policy};
use crate::resample::{
    RandomResizedCrop, center_crop, crop, crop_offset, mirrored_resized_crop, pad_crop, pil_resize,
};
use crate::rng::{chance, keyed_rng, uniform};
use crate::stream::{ImageBatches, ImageSet};

/// What is random about training images. The order is that of [`Pipeline::augmented`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Augmentation {
    /// Cutting a part out, if any.
    pub cut: Option<Cut>,
    /// Probability of mirroring left to right.
    pub hflip: f64,
    /// Probability of mirroring top to bottom.
    pub vflip: f64,
    /// The policy, if any.
    pub policy: Option<Policy>,
    /// Apply the policy before everything else.
    pub policy_first: bool,
    /// Changes of colour, if any.
    pub color_jitter: Option<ColorJitter>,
    /// Turn by up to this many degrees either way.
    pub rotation_degrees: Option<f64>,
    /// Zoom each axis by a factor from 1 − zoom to 1 + zoom.
    pub zoom: Option<f64>,
    /// Random erasing, if any.
    pub erasing: Option<RandomErasing>,
}

/// How a part is cut out of an image.
#[derive(Debug, Clone, PartialEq)]
pub enum Cut {
    /// Images are resized to `from` pixels a side and the final size is cut out (Keras's `RandomCrop`).
    Enlarged {
        /// Side in pixels.
        from: i64,
        /// Each image at its own place, not all of a batch at one.
        per_image: bool,
    },
    /// Images get this many black pixels on each side and are cut to their former size.
    Padded(i64),
    /// A part of random area and shape is resized to the final size.
    Resized(RandomResizedCrop),
}

/// A run's draws in one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// The run's seed.
    pub seed: u64,
    /// Counted from 1.
    pub epoch: u64,
    /// How often each image follows itself in the order; see [`crate::repeated`].
    pub repeats: usize,
}

/// How images become what a network is shown.
#[derive(Debug)]
pub struct Pipeline {
    /// Bytes to floats.
    pub normalizer: Normalizer,
    /// Side of what the network is shown, in pixels.
    pub image_size: i64,
    /// PIL's filter, on bytes; `None` is Keras's bilinear resizing, on floats.
    pub interpolation: Option<Filter>,
    /// Share of the side of an image that evaluation shows, with a filter of PIL's.
    pub crop_pct: f64,
    /// What is random in training.
    pub augmentation: Augmentation,
    /// Red, green and blue of what timm's policies draw beyond the border: the mean.
    pub fill: [u8; 3],
}

impl Pipeline {
    /// Images for evaluation: u8 `[B, 3, H, W]` to f32 `[B, 3, image_size, image_size]`.
    ///
    /// With a filter they are resized to ⌊image_size / crop_pct⌋ and their middle is cut out, as in timm.
    ///
    /// # Errors
    /// When the images are not bytes of that shape.
    pub fn plain(&self, images: &Tensor) -> Result<Tensor, DataError> {
        let Some(filter) = self.interpolation else {
            return resize(&self.normalizer.apply(images)?, self.image_size);
        };
        let side = (self.image_size as f64 / self.crop_pct).floor() as i64;
        let bytes = pil_resize(images, filter, (side, side))?;
        self.normalizer.apply(&center_crop(&bytes, (self.image_size, self.image_size))?)
    }

    /// Images for training: a batch of u8 `[B, 3, H, W]` to f32 `[B, 3, image_size, image_size]`.
    ///
    /// On bytes: the policy if it comes first; padding or RandomResizedCrop; with a filter of PIL's, resizing;
    /// mirroring, then the policy, then colour jitter. On floats: normalisation, Keras's resizing and crop, rotation,
    /// zoom, erasing. Without a policy in its place and without jitter, mirroring comes after the crop.
    ///
    /// What an image goes through depends on nothing but the seed, the epoch, its index and its repetition, a
    /// crop at one place per batch on the batch's number instead of the image's.
    ///
    /// # Errors
    /// When the images are not bytes of that shape, or a parameter is out of its range.
    pub fn augmented(&self, batch: &Batch, draw: Draw) -> Result<Tensor, DataError> {
        let Augmentation { cut, policy, policy_first, color_jitter, hflip, .. } = &self.augmentation;
        // RandomResizedCrop mirrors left to right on the way: nothing comes in between, and there it costs nothing.
        let (at_cut, later) =
            if matches!(cut, Some(Cut::Resized(_))) { (*hflip, 0.0) } else { (0.0, *hflip) };
        let keys = Keys { draw, batch };
        let final_size = (self.image_size, self.image_size);
        let mut bytes = batch.images.shallow_clone();
        if let (Some(policy), true) = (policy, policy_first) {
            bytes = self.policy(&bytes, policy, &keys)?;
        }
        let (height, width) = height_and_width(&bytes)?;
        match cut {
            Some(Cut::Resized(resized)) => {
                let draws = keys.each("resized crop", |rng| resized.draw(rng, height, width));
                let (boxes, filters): (Vec<_>, Vec<_>) = draws.into_iter().unzip();
                let mirrored = keys.each("flip", |rng| chance(rng, at_cut));
                bytes = mirrored_resized_crop(&bytes, &boxes, &filters, &mirrored, final_size)?;
            }
            Some(Cut::Padded(padding)) => {
                let place = |rng: &mut ChaCha8Rng| crop_offset(rng, (2 * padding, 2 * padding));
                bytes = pad_crop(&bytes, *padding, &keys.each("padded crop", place))?;
            }
            Some(Cut::Enlarged { .. }) | None => {}
        }
        let side = match cut {
            Some(Cut::Enlarged { from, .. }) => *from,
            _ => self.image_size,
        };
        if let Some(filter) = self.interpolation {
            bytes = pil_resize(&bytes, filter, (side, side))?;
        }
        let changes_colour = color_jitter.is_some() || (policy.is_some() && !policy_first);
        if changes_colour {
            bytes = self.mirrored(&bytes, &keys, later)?;
            if let (Some(policy), false) = (policy, policy_first) {
                bytes = self.policy(&bytes, policy, &keys)?;
            }
            if let Some(jitter) = color_jitter {
                bytes = layers(&bytes, &keys.each("color jitter", |rng| jitter.draw(rng)))?;
            }
        }

        let mut floats = resize(&self.normalizer.apply(&bytes)?, side)?;
        if let Some(Cut::Enlarged { per_image, .. }) = cut {
            let room = side - self.image_size;
            floats = if *per_image {
                let place = |rng: &mut ChaCha8Rng| crop_offset(rng, (room, room));
                crop(&floats, final_size, &keys.each("image crop", place))?
            } else {
                let rng = &mut keyed_rng(draw.seed, "crop", draw.epoch, batch.number);
                let (top, left) = crop_offset(rng, (room, room));
                floats.f_narrow(2, top, self.image_size)?.f_narrow(3, left, self.image_size)?
            };
        }
        if !changes_colour {
            floats = self.mirrored(&floats, &keys, later)?;
        }
        self.warped_and_erased(floats, &keys)
    }

    /// The training batches of an epoch from number `first` on: the images of `order`, augmented as by
    /// [`Pipeline::augmented`]. A batch is the same wherever one starts.
    ///
    /// Several small batches are augmented at once, which takes less time and gives the same images.
    ///
    /// # Errors
    /// Those of [`ImageSet::batches`], or an augmentation with numbers out of range.
    pub fn epoch<'a>(
        &'a self,
        set: &'a ImageSet,
        order: &[i64],
        batch_size: usize,
        draw: Draw,
        first: usize,
    ) -> Result<Epoch<'a>, DataError> {
        match &self.augmentation.cut {
            Some(Cut::Resized(resized)) => resized.validate()?,
            Some(Cut::Enlarged { .. } | Cut::Padded(_)) | None => {}
        }
        self.augmentation.erasing.as_ref().map_or(Ok(()), RandomErasing::validate)?;
        let pixels = batch_size.max(1) * (self.image_size * self.image_size).max(1) as usize;
        let at_once = match self.augmentation.cut {
            // Drawn for each batch.
            Some(Cut::Enlarged { per_image: false, .. }) => 1,
            _ => (PIXELS_AT_ONCE / pixels).max(1),
        };
        let chunks = set.batches_from(order, batch_size.saturating_mul(at_once), first / at_once)?;
        let left = order.len().div_ceil(batch_size).saturating_sub(first); // `batches_from` refused a size of 0
        // Augmented together with those before it, a batch is the same to the last bit.
        let skipped = first % at_once * batch_size;
        let number = first as u64;
        Ok(Epoch { pipeline: self, draw, chunks, batch_size, current: None, skipped, number, left })
    }

    fn warped_and_erased(&self, floats: Tensor, keys: &Keys) -> Result<Tensor, DataError> {
        let Augmentation { rotation_degrees, zoom: factor, erasing, .. } = &self.augmentation;
        let device = floats.device();
        let mut floats = floats;
        if let Some(degrees) = rotation_degrees {
            let limit = degrees.to_radians();
            floats = rotate(&floats, &upload(&keys.uniform("rotation", -limit, limit), device)?)?;
        }
        if let Some(factor) = factor {
            let axis = |purpose| keys.uniform(purpose, 1.0 - factor, 1.0 + factor);
            let factors = [axis("zoom rows"), axis("zoom columns")].concat();
            floats = zoom(&floats, &upload(&factors, device)?.f_view([2, -1])?)?;
        }
        if let Some(erasing) = erasing {
            let (height, width) = height_and_width(&floats)?;
            let draws = keys.each("erasing", |rng| erasing.draw(rng, height, width));
            floats = erase(&floats, &draws, erasing.remode)?;
        }
        Ok(floats)
    }

    fn policy(&self, bytes: &Tensor, policy: &Policy, keys: &Keys) -> Result<Tensor, DataError> {
        let (height, width) = height_and_width(bytes)?;
        let ops = |rng: &mut ChaCha8Rng| policy.draw(rng, height, width, self.fill).collect::<Vec<_>>();
        layers(bytes, &keys.each("policy", ops))
    }

    /// Mirrored left to right with probability `hflip`, and top to bottom.
    fn mirrored(&self, images: &Tensor, keys: &Keys, hflip: f64) -> Result<Tensor, DataError> {
        let mut images = images.shallow_clone();
        for (purpose, p, dimension) in [("flip", hflip, 3), ("vertical flip", self.augmentation.vflip, 2)] {
            if p > 0.0 {
                let mask = keys.each(purpose, |rng| chance(rng, p));
                images = flip(&images, &upload(&mask, images.device())?, dimension)?;
            }
        }
        Ok(images)
    }
}

/// Enough work for the time that starting an operation takes: a million pixels, 1,024 images of 32×32.
const PIXELS_AT_ONCE: usize = 1 << 20;

/// The augmented batches of an epoch; see [`Pipeline::epoch`].
#[derive(Debug)]
pub struct Epoch<'a> {
    pipeline: &'a Pipeline,
    draw: Draw,
    chunks: ImageBatches<'a>,
    batch_size: usize,
    /// Several batches in one, augmented, and how many of its images were handed out.
    current: Option<(Augmented, usize)>,
    /// Images at the start of the first of them that are not handed out.
    skipped: usize,
    number: u64,
    left: usize,
}

/// A training batch as it leaves the pipeline.
#[derive(Debug)]
pub struct Augmented {
    /// f32 `[B, 3, S, S]`.
    pub images: Tensor,
    /// Classes as i64, `[B]`.
    pub labels: Tensor,
    /// Each image's index in the set.
    pub indices: Vec<i64>,
    /// The batch's number in the epoch, from 0.
    pub number: u64,
}

impl Epoch<'_> {
    fn batch(&mut self) -> Option<Result<Augmented, DataError>> {
        if self.current.as_ref().is_none_or(|(chunk, done)| *done == chunk.indices.len()) {
            let augmented = |batch: Batch| {
                let images = self.pipeline.augmented(&batch, self.draw)?;
                Ok(Augmented { images, labels: batch.labels, indices: batch.indices, number: batch.number })
            };
            match self.chunks.next()?.and_then(augmented) {
                Ok(chunk) => self.current = Some((chunk, std::mem::take(&mut self.skipped))),
                Err(error) => return Some(Err(error)),
            }
        }
        let (chunk, done) = self.current.as_mut()?;
        let (start, len) = (*done, self.batch_size.min(chunk.indices.len() - *done));
        *done += len;
        let part = |tensor: &Tensor| tensor.f_narrow(0, start as i64, len as i64);
        let batch = part(&chunk.images).and_then(|images| {
            let indices = chunk.indices[start..start + len].to_vec();
            Ok(Augmented { images, labels: part(&chunk.labels)?, indices, number: self.number })
        });
        self.number += 1;
        Some(batch.map_err(DataError::from))
    }
}

impl Iterator for Epoch<'_> {
    type Item = Result<Augmented, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let batch = self.batch();
        // Nothing comes after an error.
        self.left = if matches!(batch, Some(Ok(_))) { self.left - 1 } else { 0 };
        batch
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Epoch<'_> {}

/// Applies to each image its operations, one after the other; all images have as many.
fn layers(bytes: &Tensor, draws: &[impl AsRef<[Option<Op>]>]) -> Result<Tensor, DataError> {
    let mut bytes = bytes.shallow_clone();
    for layer in 0..draws.first().map_or(0, |ops| ops.as_ref().len()) {
        let ops: Vec<Option<Op>> = draws.iter().map(|ops| ops.as_ref()[layer]).collect();
        bytes = apply_ops(&bytes, &ops)?;
    }
    Ok(bytes)
}

/// What the draws of a batch's images are keyed by.
struct Keys<'a> {
    draw: Draw,
    batch: &'a Batch,
}

impl Keys<'_> {
    /// One draw for each image, from a generator of its own.
    fn each<T>(&self, purpose: &str, mut draw: impl FnMut(&mut ChaCha8Rng) -> T) -> Vec<T> {
        let Draw { seed, epoch, repeats } = self.draw;
        let positions = self.batch.start as u64..;
        let images = positions.zip(&self.batch.indices).map(|(position, index)| {
            // Repetitions of an image in an epoch differ; no run has 2³² epochs.
            let epoch = epoch + ((position % repeats.max(1) as u64) << 32);
            draw(&mut keyed_rng(seed, purpose, epoch, index.cast_unsigned()))
        });
        images.collect()
    }

    fn uniform(&self, purpose: &str, low: f64, high: f64) -> Vec<f32> {
        self.each(purpose, |rng| uniform(rng, low..high))
    }
}

fn height_and_width(images: &Tensor) -> Result<(i64, i64), DataError> {
    match images.size()[..] {
        [_, _, height, width] => Ok((height, width)),
        ref shape => Err(DataError::Argument(format!("expected images [B, 3, H, W], not {shape:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erase::EraseMode;
    use crate::normalize::ChannelStats;
    use crate::resample::Interpolation;
    use ndarray::{Array1, Array4};
    use proptest::prelude::*;
    use tch::{Device, Kind};

    use crate::device::DeviceSet;
    use crate::host::Labelled;

    fn pipeline(image_size: i64, augmentation: Augmentation) -> Pipeline {
        let normalizer = Normalizer::new(&ChannelStats::UNIT, Device::Cpu).unwrap();
        let fill = [125, 123, 114];
        Pipeline { normalizer, image_size, interpolation: None, crop_pct: 1.0, augmentation, fill }
    }

    /// Images of noise and flat parts.
    fn set(n: usize, side: usize) -> DeviceSet {
        DeviceSet::new(&labelled(n, side), Device::Cpu).unwrap()
    }

    fn labelled(n: usize, side: usize) -> Labelled {
        let pixel = |(n, c, y, x): (usize, usize, usize, usize)| {
            let noise = ((n * 7919 + c * 104_729 + y * 1299 + x * 15_485) * 2_654_435_761) >> 7;
            if (y / 4 + n) % 3 == 0 { (n * 37 % 256) as u8 } else { noise as u8 }
        };
        let images = Array4::from_shape_fn((n, 3, side, side), pixel);
        let labels = Array1::from_shape_fn(n, |n| (n % 10) as u16);
        Labelled { images, labels }
    }

    fn draw(seed: u64, epoch: u64) -> Draw {
        Draw { seed, epoch, repeats: 1 }
    }

    /// All batches of an epoch, one after the other.
    fn epoch(pipeline: &Pipeline, set: &DeviceSet, order: &[i64], batch_size: usize, at: Draw) -> Tensor {
        let batches = set.batches(order, batch_size).unwrap();
        let shown: Vec<Tensor> =
            batches.map(|batch| pipeline.augmented(&batch.unwrap(), at).unwrap()).collect();
        Tensor::cat(&shown, 0)
    }

    fn everything() -> Augmentation {
        Augmentation {
            cut: Some(Cut::Resized(RandomResizedCrop {
                scale: (0.3, 1.0),
                ratio: (0.75, 4.0 / 3.0),
                interpolation: Interpolation::Random,
            })),
            hflip: 0.5,
            vflip: 0.3,
            policy: Some(Policy::parse("rand-m9-mstd0.5-inc1").unwrap()),
            policy_first: false,
            color_jitter: Some(ColorJitter::new(0.4, 0.4, 0.4, 0.1).unwrap()),
            rotation_degrees: Some(7.2),
            zoom: Some(0.2),
            erasing: Some(RandomErasing::timm(0.5, EraseMode::Pixel, 2)),
        }
    }

    #[test]
    fn what_an_image_goes_through_does_not_depend_on_the_batch_or_the_order() {
        let set = set(23, 12);
        let pipelines = [
            pipeline(10, everything()),
            pipeline(12, Augmentation { cut: Some(Cut::Padded(2)), policy_first: true, ..everything() }),
            pipeline(
                9,
                Augmentation { cut: Some(Cut::Enlarged { from: 13, per_image: true }), ..everything() },
            ),
        ];
        for pipeline in &pipelines {
            let order: Vec<i64> = (0..23).collect();
            let whole = epoch(pipeline, &set, &order, 23, draw(5, 2));
            let side = pipeline.image_size;
            assert_eq!(whole.size(), [23, 3, side, side]);
            for batch_size in [1, 4, 22] {
                assert_eq!(epoch(pipeline, &set, &order, batch_size, draw(5, 2)), whole, "{batch_size}");
            }
            let reversed: Vec<i64> = (0..23).rev().collect();
            assert_eq!(epoch(pipeline, &set, &reversed, 5, draw(5, 2)), whole.flip([0]));
            assert_ne!(epoch(pipeline, &set, &order, 23, draw(5, 3)), whole);
            assert_ne!(epoch(pipeline, &set, &order, 23, draw(6, 2)), whole);
        }
    }

    #[test]
    fn batches_are_the_same_whether_augmented_one_by_one_or_several_at_once() {
        let everything = pipeline(32, everything());
        let cut = Some(Cut::Enlarged { from: 34, per_image: false });
        let per_batch = pipeline(32, Augmentation { cut, ..Augmentation::default() });
        let small = set(300, 16);
        let order = crate::rng::permutation(3, 1, 10..290);
        for pipeline in [everything, per_batch] {
            let expected = epoch(&pipeline, &small, &order, 96, draw(3, 1));
            let images = ImageSet::Resident(DeviceSet::new(&labelled(300, 16), Device::Cpu).unwrap());
            let batches = pipeline.epoch(&images, &order, 96, draw(3, 1), 0).unwrap();
            assert_eq!(batches.len(), 3);
            let batches: Vec<Augmented> = batches.collect::<Result<_, _>>().unwrap();
            assert_eq!(batches.iter().map(|b| b.indices.len()).collect::<Vec<_>>(), [96, 96, 88]);
            assert_eq!(batches.iter().map(|b| b.number).collect::<Vec<_>>(), [0, 1, 2]);
            assert_eq!(batches.iter().flat_map(|b| b.indices.clone()).collect::<Vec<_>>(), order);
            let labels: Vec<i64> =
                batches.iter().flat_map(|b| Vec::<i64>::try_from(&b.labels).unwrap()).collect();
            assert_eq!(labels, order.iter().map(|index| index % 10).collect::<Vec<_>>());
            let found = Tensor::cat(&batches.into_iter().map(|b| b.images).collect::<Vec<_>>(), 0);
            // Products of matrices of other batches may round the last bit otherwise: one level in few values.
            let difference = (found - expected).abs();
            assert!(difference.max().double_value(&[]) <= 3.0 / 255.0);
            assert!(difference.gt(1e-6).to_kind(Kind::Float).mean(Kind::Float).double_value(&[]) < 1e-4);
        }
        let images = ImageSet::Resident(small);
        assert!(pipeline(32, Augmentation::default()).epoch(&images, &[0], 0, draw(1, 1), 0).is_err());
    }

    #[test]
    fn an_epoch_that_starts_later_has_the_same_batches_to_the_last_bit() {
        let cut = Some(Cut::Enlarged { from: 34, per_image: false });
        let per_batch = Augmentation { cut, ..Augmentation::default() };
        // 1,024 images of 32×32 are augmented at once: ten batches of 96.
        let images = ImageSet::Resident(set(1_300, 16));
        let order = crate::rng::permutation(3, 1, 0..1_300);
        for augmentation in [everything(), per_batch] {
            let pipeline = pipeline(32, augmentation);
            let from = |first| pipeline.epoch(&images, &order, 96, draw(3, 1), first).unwrap();
            let whole: Vec<Augmented> = from(0).map(Result::unwrap).collect();
            for first in [1, 9, 10, 11, 13] {
                assert_eq!(from(first).len(), 14 - first);
                for (found, expected) in from(first).map(Result::unwrap).zip(&whole[first..]) {
                    assert_eq!((found.number, &found.indices), (expected.number, &expected.indices));
                    assert_eq!(
                        (found.images, found.labels),
                        (expected.images.shallow_clone(), expected.labels.shallow_clone())
                    );
                }
            }
            assert_eq!([14, 15, usize::MAX].map(|first| from(first).count()), [0; 3]);
        }
    }

    #[test]
    fn repetitions_of_an_image_differ_and_the_first_is_what_it_is_without_them() {
        let set = set(2, 12);
        let pipeline = pipeline(12, everything());
        let thrice = Draw { repeats: 3, ..draw(1, 1) };
        let shown = epoch(&pipeline, &set, &[1, 1, 1, 0, 0, 0], 4, thrice);
        let once = epoch(&pipeline, &set, &[1, 0], 2, draw(1, 1));
        assert_eq!((shown.get(0), shown.get(3)), (once.get(0), once.get(1)));
        assert!(shown.get(0) != shown.get(1) && shown.get(1) != shown.get(2) && shown.get(0) != shown.get(2));
    }

    /// The batch's place is drawn once: all images lose the same border.
    #[test]
    fn a_batch_is_cropped_at_one_place_and_every_place_is_drawn() {
        let bytes = Tensor::arange(36, (Kind::Uint8, Device::Cpu)).view([1, 1, 6, 6]).repeat([3, 3, 1, 1]);
        let cut = Some(Cut::Enlarged { from: 6, per_image: false });
        let pipeline = pipeline(4, Augmentation { cut, ..Augmentation::default() });
        let mut places = std::collections::BTreeSet::new();
        for number in 0..100 {
            let (images, labels) = (bytes.shallow_clone(), Tensor::zeros([3], (Kind::Int64, Device::Cpu)));
            let batch = Batch { images, labels, indices: vec![0, 1, 2], start: 0, number };
            let cut = pipeline.augmented(&batch, draw(1, 1)).unwrap();
            assert_eq!(cut.size(), [3, 3, 4, 4]);
            assert_eq!(cut.get(0), cut.get(2));
            places.insert((cut.double_value(&[0, 0, 0, 0]) * 255.0).round() as i64);
        }
        assert_eq!(places.into_iter().collect::<Vec<_>>(), [0, 1, 2, 6, 7, 8, 12, 13, 14]);
    }

    /// Computed from the ChaCha8 and FNV-1a definitions by a separate program.
    #[test]
    fn where_a_batch_is_cropped_never_changes() {
        let rows =
            Tensor::arange(52, (Kind::Uint8, Device::Cpu)).view([1, 1, 52, 1]).expand([1, 1, 52, 52], false);
        let bytes = Tensor::cat(&[&rows, &rows.transpose(2, 3), &rows], 1).contiguous();
        let cut = Some(Cut::Enlarged { from: 52, per_image: false });
        let pipeline = pipeline(48, Augmentation { cut, ..Augmentation::default() });
        for (number, (top, left)) in (0..).zip([(0, 2), (1, 2), (2, 4), (2, 4)]) {
            let (images, labels) = (bytes.shallow_clone(), Tensor::zeros([1], (Kind::Int64, Device::Cpu)));
            let batch = Batch { images, labels, indices: vec![0], start: 0, number };
            let cut = pipeline.augmented(&batch, draw(42, 3)).unwrap() * 255.0;
            let corner = [0, 1].map(|channel| cut.double_value(&[0, channel, 0, 0]).round() as i64);
            assert_eq!(corner, [top, left], "batch {number}");
        }
    }

    #[test]
    fn evaluation_shows_the_middle_as_timm_does() {
        let set = set(3, 16);
        let bytes = set.images.shallow_clone();
        let mut pipeline = pipeline(12, Augmentation::default());
        let keras = pipeline.plain(&bytes).unwrap();
        assert_eq!(keras, resize(&(bytes.to_kind(Kind::Float) / 255.0), 12).unwrap());
        // 12/0.75 is 16: no resizing, and two pixels fall away on each side.
        (pipeline.interpolation, pipeline.crop_pct) = (Some(Filter::Bicubic), 0.75);
        let middle = bytes.narrow(2, 2, 12).narrow(3, 2, 12).to_kind(Kind::Float) / 255.0;
        assert_eq!(pipeline.plain(&bytes).unwrap(), middle);
        pipeline.crop_pct = 1.0;
        let shrunk = pil_resize(&bytes, Filter::Bicubic, (12, 12)).unwrap();
        assert_eq!(pipeline.plain(&bytes).unwrap(), shrunk.to_kind(Kind::Float) / 255.0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Without noise, whatever is drawn stays within the range of bytes.
        #[test]
        fn images_stay_in_range(seed in any::<u64>(), side in 1usize..20, size in 1i64..20, policy in 0usize..3, cut in 0..4) {
            let policy = ["rand-m9-mstd0.5-inc1", "torchvision-n2-m12", "cifar10"][policy];
            let augmentation = Augmentation {
                cut: match cut {
                    0 => None,
                    1 => Some(Cut::Padded(3)),
                    2 => Some(Cut::Enlarged { from: size + 3, per_image: seed % 2 == 0 }),
                    _ => everything().cut,
                },
                policy: Some(Policy::parse(policy).unwrap()),
                policy_first: seed % 3 == 0,
                erasing: Some(RandomErasing::timm(0.5, EraseMode::Const, 1)),
                ..everything()
            };
            let interpolation = (seed % 5 < 2).then_some(Filter::Bilinear);
            let pipeline = Pipeline { interpolation, ..pipeline(size, augmentation) };
            let shown = epoch(&pipeline, &set(9, side), &[3, 1, 4, 5, 8], 3, draw(seed, 1));
            prop_assert_eq!(shown.size(), [5, 3, size, size]);
            let (low, high) = (shown.min().double_value(&[]), shown.max().double_value(&[]));
            // Bilinear weights add up to one only to the last bits.
            prop_assert!((0.0..=1.000_001).contains(&low) && high <= 1.000_001, "{low} {high}");
            prop_assert_eq!(shown.isnan().any().int64_value(&[]), 0);
        }
    }
}
