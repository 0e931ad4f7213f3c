//! How a recipe's images are shown to a network: the recipe's words turned into a pipeline.

use data_cifar::{Augmented, ChannelStats, Draw, ImageSet, Normalizer, Pipeline, Share, Slice, draw_mixings};
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

/// A process's share of a training batch as the network sees it, with B images: all of the batch, where it is alone.
#[derive(Debug)]
pub struct Shown {
    /// f32 `[B, 3, S, S]`, channels last in memory: a convolution passes that order on, and libtorch's CPU convolutions
    /// are faster in it.
    pub images: Tensor,
    /// Classes, i64 `[B]`, or shares of every class, f32 `[B, K]`.
    pub targets: Tensor,
    /// What the targets have still to be smoothed by.
    pub smoothing: f64,
    /// The class with the largest share, i64, of each image that counts.
    pub labels: Tensor,
    /// What part of the batch the images are.
    pub slices: Vec<Slice>,
    /// Images of the batch.
    pub batch: usize,
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

    /// The training batches of an epoch from number `first` on, of the images of `order`: a process's share of each.
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
        share: Share,
    ) -> Result<impl Iterator<Item = Result<Shown, Error>> + 'a, Error> {
        let order = order.to_vec();
        let batches = match share.processes {
            1 => self.pipeline.epoch(set, &order, batch_size, draw, first)?,
            _ => {
                let mixed = self.pipeline.augment.mixes(draw.epoch);
                let (positions, len) = needed(order.len(), batch_size, share, mixed);
                let images: Vec<i64> = positions.iter().map(|&position| order[position]).collect();
                self.pipeline.epoch_of(set, &images, Some(positions), len, draw, first)?
            }
        };
        Ok(batches.map(move |batch| {
            let batch = batch?;
            let start = batch.number as usize * batch_size;
            let whole = &order[start..order.len().min(start + batch_size)];
            self.shown(batch, draw, whole, share)
        }))
    }

    /// Of the augmented images that a share of the batch `whole` needs, those that are its own, mixed if they are to be.
    fn shown(&self, needed: Augmented, draw: Draw, whole: &[i64], share: Share) -> Result<Shown, Error> {
        let Augmented { mut images, mut labels, number, .. } = needed;
        let Pipeline { augment, image_size, .. } = &self.pipeline;
        let mixed = augment.mixes(draw.epoch);
        let (slices, batch) = (share.slices(whole.len()), whole.len());
        let places = share.places(batch, mixed);
        if (places.len() as i64) < images.size()[0] {
            // The others fill up a batch that is smaller than another one.
            images = images.f_narrow(0, 0, places.len() as i64)?;
            labels = labels.f_narrow(0, 0, places.len() as i64)?;
        }
        let mut targets = labels.shallow_clone();
        if mixed {
            let size = (*image_size, *image_size);
            let mixings = draw_mixings(augment, draw.seed, draw.epoch, number, whole, size);
            let mixings: Vec<_> = places.iter().map(|&place| mixings[place]).collect();
            (images, targets) =
                data_cifar::mix(&images, &labels, &mixings, self.num_classes, self.label_smoothing)?;
            labels = targets.f_argmax(1, false)?;
        }
        // The rows of the images that are its own, and of those that count.
        let rows = |counting: bool| -> Vec<i64> {
            let slices = slices.iter().filter(|slice| slice.counts || !counting);
            let row = |place| places.partition_point(|&other| other < place) as i64;
            slices.flat_map(|slice| slice.own.clone()).map(row).collect()
        };
        let select = |tensor: &Tensor, rows: &[i64]| -> Result<Tensor, Error> {
            if rows.iter().copied().eq(0..tensor.size()[0]) {
                return Ok(tensor.shallow_clone());
            }
            // On the host: only several processes select.
            let rows = Tensor::f_from_slice(rows)?.f_to_device(tensor.device())?;
            Ok(tensor.f_index_select(0, &rows)?)
        };
        let own = rows(false);
        Ok(Shown {
            images: channels_last(&select(&images, &own)?)?,
            targets: select(&targets, &own)?,
            smoothing: if mixed { 0.0 } else { self.label_smoothing },
            labels: select(&labels, &rows(true))?,
            slices,
            batch,
            number,
        })
    }
}

/// The positions in an epoch's order of the images that a share of each batch needs, so many for every batch but perhaps
/// the last.
fn needed(images: usize, batch_size: usize, share: Share, mixed: bool) -> (Vec<usize>, usize) {
    let places = |start: usize| share.places(batch_size.min(images - start), mixed);
    let starts = (0..images).step_by(batch_size.max(1));
    // The last one, of fewer images, may need one more than the others.
    let len = starts.clone().next_back().map_or(1, |last| places(last).len().max(places(0).len()));
    let of_batch = |start: usize| {
        let mut positions: Vec<usize> = places(start).into_iter().map(|place| start + place).collect();
        if let (true, Some(&last)) = (start + batch_size < images, positions.last()) {
            positions.resize(len, last);
        }
        positions
    };
    (starts.flat_map(of_batch).collect(), len)
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
        for shown in presentation.epoch(&set, &[0; 20], 1, draw(1), 0, Share::alone(1)).unwrap() {
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
            let mut batches = presentation.epoch(&set, &order, 16, draw(epoch), 0, Share::alone(1)).unwrap();
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

    /// Also where batches do not divide evenly, images repeat or are mixed, and batches are augmented together.
    #[test]
    fn shares_are_what_one_process_is_shown_of_their_images() {
        let crop = "augment.enlarged_crop.offset=image";
        let often = ["augment.mix.prob=1.0", "augment.mix.switch_prob=0.5", "augment.mixup.alpha=0.8"];
        let mix = &[&often[..], &["augment.cutmix.alpha=1.0", "augment.mix.mode=pair"]].concat()[..];
        let repeated = &[&often[..], &["augment.aug_repeats=3", "augment.mix.mode=batch"]].concat()[..];
        let set = digits();
        for (sets, batch_size) in [(&[][..], 8), (&[crop][..], 10), (mix, 9), (mix, 16), (repeated, 8)] {
            let recipe = recipe("patchconvnet_reference", sets);
            let presentation = Presentation::new(&recipe, &ChannelStats::UNIT, 10, Device::Cpu).unwrap();
            let draw = Draw { repeats: presentation.repeats, ..draw(1) };
            let order = data_cifar::repeated(&(0..28).rev().collect::<Vec<_>>(), draw.repeats);
            for (processes, parts, first) in [(2, 1, 0), (3, 2, 1), (4, 1, 2)] {
                let epoch = |share| {
                    let epoch = presentation.epoch(&set, &order, batch_size, draw, first, share).unwrap();
                    epoch.map(Result::unwrap).collect::<Vec<_>>()
                };
                let whole = epoch(Share::alone(parts));
                assert_eq!(whole.len(), order.len().div_ceil(batch_size) - first);
                for rank in 0..processes {
                    let shares = epoch(Share { rank, processes, parts });
                    assert_eq!(shares.len(), whole.len());
                    for (share, whole) in shares.iter().zip(&whole) {
                        assert_eq!(
                            (share.number, share.batch, share.smoothing),
                            (whole.number, whole.batch, whole.smoothing)
                        );
                        let rows = |counting: bool| -> Vec<i64> {
                            let slices = share.slices.iter().filter(|slice| slice.counts || !counting);
                            slices.flat_map(|slice| slice.own.clone()).map(|row| row as i64).collect()
                        };
                        let (own, counting) =
                            (Tensor::from_slice(&rows(false)), Tensor::from_slice(&rows(true)));
                        assert_eq!(share.images, whole.images.index_select(0, &own), "{sets:?}");
                        assert_eq!(share.targets, whole.targets.index_select(0, &own), "{sets:?}");
                        assert_eq!(share.labels, whole.labels.index_select(0, &counting), "{sets:?}");
                    }
                }
            }
        }
    }
}
