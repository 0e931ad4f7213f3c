//! From the bytes of a data set to what a network is shown, in training and in evaluation.

use rand_chacha::ChaCha8Rng;
use run_record::{AugmentRecipe, CropOffset, EnlargedCrop, Policy, PolicyRecipe, Resize};
use tch::Tensor;

use crate::augment::apply::apply_ops;
use crate::augment::erase::{draw_erasure, erase};
use crate::augment::keras::{flip, resize, rotate, zoom};
use crate::augment::normalize::Normalizer;
use crate::augment::on_device::{in_slices, upload};
use crate::augment::ops::Op;
use crate::augment::policy::{draw_jitter, draw_ops};
use crate::augment::resample::{
    center_crop, crop, crop_offset, draw_crop, mirrored_resized_crop, pad_crop, pil_resize,
};
use crate::batches::at_once;
use crate::batches::image_set::{Batch, Batches, ImageSet};
use crate::error::DataError;
use crate::rng::{chance, keyed_rng, uniform};

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
    /// PIL's resizing, on bytes; `None` is Keras's bilinear resizing, on floats.
    pub resize: Option<Resize>,
    /// What is random in training.
    pub augment: AugmentRecipe,
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
        let (n, at_once) = self.at_once(images)?;
        in_slices(n, at_once, |start, len| self.plain_slice(&images.f_narrow(0, start, len)?))
    }

    fn plain_slice(&self, images: &Tensor) -> Result<Tensor, DataError> {
        let Some(Resize { interpolation, crop_pct }) = self.resize else {
            return resize(&self.normalizer.apply(images)?, self.image_size);
        };
        let side = (self.image_size as f64 / crop_pct).floor() as i64;
        let bytes = pil_resize(images, interpolation.into(), (side, side))?;
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
        let (n, at_once) = self.at_once(&batch.images)?;
        in_slices(n, at_once, |start, len| self.augmented_slice(&batch.slice(start, len)?, draw))
    }

    /// How many images there are, and how many of them are worked on together.
    fn at_once(&self, images: &Tensor) -> Result<(i64, i64), DataError> {
        let (height, width) = height_and_width(images)?;
        let n = images.size()[0];
        Ok((n, at_once::images(n as usize, (height * width) as usize, self.shown()) as i64))
    }

    /// Pixels of an image as it is shown.
    fn shown(&self) -> usize {
        (self.image_size * self.image_size).max(1) as usize
    }

    fn augmented_slice(&self, batch: &Batch, draw: Draw) -> Result<Tensor, DataError> {
        let AugmentRecipe { enlarged_crop, resized_crop, policy, color_jitter, hflip, .. } = self.augment;
        // RandomResizedCrop mirrors left to right on the way: nothing comes in between, and there it costs nothing.
        let hflip = if resized_crop.is_some() { 0.0 } else { hflip };
        let keys = Keys { draw, batch };
        let mut bytes = batch.images.shallow_clone();
        if let Some(PolicyRecipe { name, first: true }) = policy {
            bytes = self.policy(&bytes, &name, &keys)?;
        }
        bytes = self.cut_bytes(&bytes, &keys)?;
        let side = enlarged_crop.map_or(self.image_size, |crop| crop.from);
        if let Some(Resize { interpolation, .. }) = self.resize {
            bytes = pil_resize(&bytes, interpolation.into(), (side, side))?;
        }
        let changes_colour = color_jitter.is_some() || policy.is_some_and(|policy| !policy.first);
        if changes_colour {
            bytes = self.mirrored(&bytes, &keys, hflip)?;
            if let Some(PolicyRecipe { name, first: false }) = policy {
                bytes = self.policy(&bytes, &name, &keys)?;
            }
            if let Some(jitter) = color_jitter {
                bytes = layers(&bytes, &keys.each("color jitter", |rng| draw_jitter(&jitter, rng)))?;
            }
        }

        let mut floats = resize(&self.normalizer.apply(&bytes)?, side)?;
        floats = self.cut_floats(floats, &keys)?;
        if !changes_colour {
            floats = self.mirrored(&floats, &keys, hflip)?;
        }
        self.warped_and_erased(floats, &keys)
    }

    /// Padding or RandomResizedCrop, which mirrors too.
    fn cut_bytes(&self, bytes: &Tensor, keys: &Keys) -> Result<Tensor, DataError> {
        let AugmentRecipe { resized_crop, padding, hflip, .. } = self.augment;
        if let Some(resized) = resized_crop {
            let (height, width) = height_and_width(bytes)?;
            let draws = keys.each("resized crop", |rng| draw_crop(&resized, rng, height, width));
            let (boxes, filters): (Vec<_>, Vec<_>) = draws.into_iter().unzip();
            let mirrored = self.flips(keys, "flip", hflip);
            let size = (self.image_size, self.image_size);
            return mirrored_resized_crop(bytes, &boxes, &filters, &mirrored, size);
        }
        let Some(padding) = padding else { return Ok(bytes.shallow_clone()) };
        let place = |rng: &mut ChaCha8Rng| crop_offset(rng, (2 * padding, 2 * padding));
        pad_crop(bytes, padding, &keys.each("padded crop", place))
    }

    /// Keras's crop of the enlarged images.
    fn cut_floats(&self, floats: Tensor, keys: &Keys) -> Result<Tensor, DataError> {
        let Some(EnlargedCrop { from, offset }) = self.augment.enlarged_crop else { return Ok(floats) };
        let room = (from - self.image_size, from - self.image_size);
        if offset == CropOffset::Image {
            let offsets = keys.each("image crop", |rng| crop_offset(rng, room));
            return crop(&floats, (self.image_size, self.image_size), &offsets);
        }
        let rng = &mut keyed_rng(keys.draw.seed, "crop", keys.draw.epoch, keys.batch.number);
        let (top, left) = crop_offset(rng, room);
        Ok(floats.f_narrow(2, top, self.image_size)?.f_narrow(3, left, self.image_size)?)
    }

    /// The training batches of an epoch from number `first` on: the images of `order`, augmented as by
    /// [`Pipeline::augmented`]. A batch is the same wherever one starts.
    ///
    /// Several small batches are augmented at once, which takes less time and gives the same images; of a batch that is
    /// stored large, a few images at a time.
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
        self.epoch_of(set, order, None, batch_size, draw, first)
    }

    /// As [`Pipeline::epoch`], for an `order` of some images of another one, in which they have these `positions`.
    ///
    /// # Errors
    /// Those of [`Pipeline::epoch`], or not as many positions as images.
    pub fn epoch_of<'a>(
        &'a self,
        set: &'a ImageSet,
        order: &[i64],
        positions: Option<Vec<usize>>,
        batch_size: usize,
        draw: Draw,
        first: usize,
    ) -> Result<Epoch<'a>, DataError> {
        if let Some(positions) = positions.as_ref().filter(|positions| positions.len() != order.len()) {
            let (images, positions) = (order.len(), positions.len());
            return Err(DataError::Argument(format!("{images} images with {positions} positions")));
        }
        self.augment.validate(self.image_size)?;
        let at_once = match self.augment.enlarged_crop {
            // Drawn for each batch.
            Some(EnlargedCrop { offset: CropOffset::Batch, .. }) => 1,
            _ => at_once::batches(batch_size, set.image_pixels(), self.shown()),
        };
        let chunks = set.batches_from(order, batch_size.saturating_mul(at_once), first / at_once)?;
        let left = order.len().div_ceil(batch_size).saturating_sub(first); // `batches_from` refused a size of 0
        // Augmented together with those before it, a batch is the same to the last bit.
        let skipped = first % at_once * batch_size;
        let number = first as u64;
        Ok(Epoch {
            pipeline: self,
            draw,
            chunks,
            positions,
            batch_size,
            current: None,
            skipped,
            number,
            left,
        })
    }

    fn warped_and_erased(&self, floats: Tensor, keys: &Keys) -> Result<Tensor, DataError> {
        let AugmentRecipe { rotation_degrees, zoom: factor, erasing, .. } = self.augment;
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
            let draws = keys.each("erasing", |rng| draw_erasure(&erasing, rng, height, width));
            floats = erase(&floats, &draws, erasing.mode)?;
        }
        Ok(floats)
    }

    fn policy(&self, bytes: &Tensor, policy: &Policy, keys: &Keys) -> Result<Tensor, DataError> {
        let (height, width) = height_and_width(bytes)?;
        let ops = |rng: &mut ChaCha8Rng| draw_ops(policy, rng, height, width, self.fill).collect::<Vec<_>>();
        layers(bytes, &keys.each("policy", ops))
    }

    /// Which images are mirrored, each with a probability; left to right in every other epoch, if the recipe wants that.
    fn flips(&self, keys: &Keys, purpose: &str, probability: f64) -> Vec<bool> {
        match self.augment.hflip_alternates && purpose == "flip" {
            true => keys.alternating("alternating flip"),
            false => keys.each(purpose, |rng| chance(rng, probability)),
        }
    }

    /// Mirrored left to right with probability `hflip`, and top to bottom.
    fn mirrored(&self, images: &Tensor, keys: &Keys, hflip: f64) -> Result<Tensor, DataError> {
        let mut images = images.shallow_clone();
        let vflip = self.augment.vflip.unwrap_or_default();
        for (purpose, p, dimension) in [("flip", hflip, 3), ("vertical flip", vflip, 2)] {
            if p > 0.0 {
                let mask = self.flips(keys, purpose, p);
                images = flip(&images, &upload(&mask, images.device())?, dimension)?;
            }
        }
        Ok(images)
    }
}

/// The augmented batches of an epoch; see [`Pipeline::epoch`].
#[derive(Debug)]
pub struct Epoch<'a> {
    pipeline: &'a Pipeline,
    draw: Draw,
    chunks: Batches<'a>,
    /// Where the images are in the whole order, if this is not it.
    positions: Option<Vec<usize>>,
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
            let positions = &self.positions;
            let augmented = |mut batch: Batch| {
                if let Some(positions) = positions {
                    batch.positions.iter_mut().for_each(|position| *position = positions[*position]);
                }
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
        let images = self.batch.positions.iter().zip(&self.batch.indices).map(|(position, index)| {
            // Repetitions of an image in an epoch differ; no run has 2³² epochs.
            let epoch = epoch + (((position % repeats.max(1)) as u64) << 32);
            draw(&mut keyed_rng(seed, purpose, epoch, index.cast_unsigned()))
        });
        images.collect()
    }

    /// For each image the opposite of an epoch ago, and of its repetition before in the same epoch; half of the images begin
    /// with `true`.
    fn alternating(&self, purpose: &str) -> Vec<bool> {
        let Draw { seed, epoch, repeats } = self.draw;
        let images = self.batch.positions.iter().zip(&self.batch.indices).map(|(position, index)| {
            let begins = chance(&mut keyed_rng(seed, purpose, 0, index.cast_unsigned()), 0.5);
            let turns = epoch + (position % repeats.max(1)) as u64;
            begins == turns.is_multiple_of(2)
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
mod tests;
