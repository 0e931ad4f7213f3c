//! Loss and accuracies of a network over images, each counted once.

use core_layers::Model;
use data_cifar::ImageSet;
use run_record::TrainRecipe;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use torch_ext::Frozen;

use crate::Error;
use crate::data::presentation::Presentation;
use crate::data::source::Subset;
use crate::optim::loss::loss;
use crate::process::signals::Stop;
use crate::run::peers::Peers;
use crate::run::replay::Replayed;

/// Means over images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metrics {
    /// The recipe's loss, smoothed as in training; all classes count alike.
    pub loss: f64,
    /// Share of images whose label has the largest logit.
    pub top1: f64,
    /// Share of images whose label is among the five largest logits.
    pub top5: f64,
}

/// Sums that stay on the device until they are read.
#[derive(Debug)]
pub struct Sums {
    loss: Tensor,
    top1: Tensor,
    top5: Tensor,
    count: i64,
    batches: u64,
    /// The first batch whose loss was not a finite number, counted from 1; infinite for none.
    broken: Tensor,
}

/// [`Sums`] on the host: adding to them goes on as if it had never stopped.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedSums {
    loss: f64,
    top1: f64,
    top5: f64,
    count: i64,
    batches: u64,
}

impl Sums {
    /// What was saved.
    ///
    /// # Errors
    /// libtorch's refusal to place it on the device.
    pub fn new(device: Device, saved: SavedSums) -> Result<Self, Error> {
        let number = |value: f64| Tensor::f_full([], value, (Kind::Double, device));
        let SavedSums { loss, top1, top5, count, batches } = saved;
        let (loss, top1, top5) = (number(loss)?, number(top1)?, number(top5)?);
        Ok(Self { loss, top1, top5, count, batches, broken: number(f64::INFINITY)? })
    }

    /// Counts a batch: its mean loss, logits `[B, K]` and labels `[B]`.
    ///
    /// # Errors
    /// libtorch's refusal.
    pub fn add(&mut self, loss: &Tensor, logits: &Tensor, labels: &Tensor) -> Result<(), Error> {
        let batch = logits.size()[0];
        self.add_sums(&sums_of(loss, batch, logits, labels)?, batch)
    }

    /// Counts a batch of so many images by its [`sums_of`].
    ///
    /// # Errors
    /// libtorch's refusal.
    pub fn add_sums(&mut self, sums: &Tensor, batch: i64) -> Result<(), Error> {
        let (loss, top1, top5) = (sums.f_get(0)?, sums.f_get(1)?, sums.f_get(2)?);
        self.top1 += top1;
        self.top5 += top5;
        self.count += batch;
        self.batches += 1;
        let here = self.broken.f_clamp_max(self.batches as f64)?;
        self.broken = self.broken.f_where_self(&loss.f_isfinite()?, &here)?;
        self.loss += loss;
        Ok(())
    }

    /// Makes them the sums over all processes.
    ///
    /// # Errors
    /// A process that is gone.
    fn add_up(&mut self, peers: &Peers) -> Result<(), Error> {
        if !peers.are_several() {
            return Ok(());
        }
        let count = Tensor::from(self.count as f64).f_to_device(self.loss.device())?;
        let all = Tensor::f_stack(&[&self.loss, &self.top1, &self.top5, &count], 0)?;
        peers.sum(std::slice::from_ref(&all))?;
        (self.loss, self.top1, self.top5) = (all.f_get(0)?, all.f_get(1)?, all.f_get(2)?);
        self.count = all.f_double_value(&[3])? as i64;
        Ok(())
    }

    /// The means; waits for the device. NaN where nothing was counted.
    pub fn read(&self) -> Metrics {
        let mean = |sum: &Tensor| sum.double_value(&[]) / self.count as f64;
        Metrics { loss: mean(&self.loss), top1: mean(&self.top1), top5: mean(&self.top5) }
    }

    /// How many images were counted.
    pub fn images(&self) -> i64 {
        self.count
    }

    /// The first batch whose loss was not a finite number, counted from 1; waits for the device.
    pub fn broken(&self) -> Option<u64> {
        let batch = self.broken.double_value(&[]);
        batch.is_finite().then_some(batch as u64)
    }

    /// The sums, to go on from; waits for the device.
    pub fn save(&self) -> SavedSums {
        let [loss, top1, top5] = [&self.loss, &self.top1, &self.top5].map(|sum| sum.double_value(&[]));
        SavedSums { loss, top1, top5, count: self.count, batches: self.batches }
    }
}

/// Sums over the images of a batch, f64 `[3]`: of a loss, which counts `images` times, of labels with the largest logit,
/// and of those with one of the five largest. The logits `[B, K]` and labels `[B]` may be those of a share of the batch.
///
/// # Errors
/// libtorch's refusal.
pub fn sums_of(loss: &Tensor, images: i64, logits: &Tensor, labels: &Tensor) -> Result<Tensor, Error> {
    let classes = logits.size()[1];
    let loss = loss.f_detach()?.f_to_kind(Kind::Double)? * images;
    let (_, best) = logits.f_detach()?.f_topk(classes.min(5), 1, true, true)?; // [B, K] -> [B, 5]
    let hits = best.f_eq_tensor(&labels.f_unsqueeze(1)?)?.f_to_kind(Kind::Double)?;
    let (top1, top5) = (hits.f_narrow(1, 0, 1)?.f_sum(Kind::Double)?, hits.f_sum(Kind::Double)?);
    Ok(Tensor::f_stack(&[loss, top1, top5], 0)?)
}

/// Runs the network over a part in eval mode and in f32. Every process computes some of the batches, as one would compute
/// them, and all get the means.
///
/// # Errors
/// libtorch's refusal to make a batch, a picture that cannot be read, somebody who wants to stop, or a process that is
/// gone.
pub fn evaluate(
    network: &dyn Model,
    part: &Subset<'_>,
    presentation: &Presentation,
    train: &TrainRecipe,
    stop: &Stop,
    peers: &Peers,
) -> Result<Metrics, Error> {
    let pass = Pass { network, presentation, batch_size: batch_size(train), train, mirror: false };
    tch::no_grad(|| {
        let mut sums = Sums::new(part.set.device(), SavedSums::default())?;
        let order = peers.turns(&part.indices(), pass.batch_size);
        let mut replayed = Replayed::new(part.set.device())?;
        pass.add(&mut sums, part.set, &order, &mut replayed, stop, &mut |_, _| Ok(()))?;
        sums.add_up(peers)?;
        Ok(sums.read())
    })
}

/// What training passes through the network in parts may not fit in one.
fn batch_size(train: &TrainRecipe) -> usize {
    train.batch_size.div_ceil(train.accumulate.unwrap_or(1))
}

/// How images pass through a network to be measured.
struct Pass<'a> {
    network: &'a dyn Model,
    presentation: &'a Presentation,
    batch_size: usize,
    train: &'a TrainRecipe,
    mirror: bool,
}

/// What is given each batch's logits `[B, K]` and labels `[B]`.
type Each<'a> = dyn FnMut(&Tensor, &Tensor) -> Result<(), Error> + 'a;

impl Pass<'_> {
    /// Adds the images of `order` to the sums.
    fn add(
        &self,
        sums: &mut Sums,
        set: &ImageSet,
        order: &[i64],
        replayed: &mut Replayed,
        stop: &Stop,
        each: &mut Each,
    ) -> Result<(), Error> {
        let Self { network, presentation, batch_size, train, mirror } = *self;
        let _frozen = Frozen::new()?;
        for batch in set.batches(order, batch_size)? {
            stop.check()?;
            let batch = batch?;
            let images = presentation.plain(&batch.images)?;
            let answers = replayed.run(&[&images], [0, 0], &mut |images| {
                let logits = network.forward_t(images[0], false);
                if !mirror {
                    return Ok(vec![logits]);
                }
                let mirrored = network.forward_t(&images[0].f_flip([3])?, false);
                Ok(vec![(logits + mirrored) / 2.0])
            })?;
            let logits = &answers[0];
            let loss = loss(train, logits, &batch.labels, train.label_smoothing, None)?;
            sums.add(&loss, logits, &batch.labels)?;
            each(logits, &batch.labels)?;
        }
        Ok(())
    }
}

/// As [`evaluate`] alone, of several parts, with each batch's logits `[B, K]` and labels `[B]` given to `each`. With
/// `mirror`, logits are the means of an image's and its mirror image's.
///
/// # Errors
/// Those of [`evaluate`], and of `each`.
pub fn evaluate_each(
    network: &dyn Model,
    parts: &[Subset<'_>],
    presentation: &Presentation,
    train: &TrainRecipe,
    stop: &Stop,
    mirror: bool,
    each: &mut Each,
) -> Result<Metrics, Error> {
    let pass = Pass { network, presentation, batch_size: batch_size(train), train, mirror };
    tch::no_grad(|| {
        let device = parts.first().map_or(Device::Cpu, |part| part.set.device());
        let mut sums = Sums::new(device, SavedSums::default())?;
        let mut replayed = Replayed::new(device)?;
        for part in parts {
            pass.add(&mut sums, part.set, &part.indices(), &mut replayed, stop, each)?;
        }
        Ok(sums.read())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_weigh_batches_by_their_size() {
        let mut sums = Sums::new(Device::Cpu, SavedSums::default()).unwrap();
        // Seven classes; the label's rank is 1st, 2nd and 6th.
        let row = [7f32, 6., 5., 4., 3., 2., 1.];
        let logits = Tensor::from_slice(&[row, row].concat()).reshape([2, 7]);
        sums.add(&Tensor::from(1.0), &logits, &Tensor::from_slice(&[0i64, 1])).unwrap();
        sums.add(&Tensor::from(4.0), &logits.narrow(0, 0, 1), &Tensor::from_slice(&[5i64])).unwrap();
        let metrics = sums.read();
        assert!((metrics.loss - 2.0).abs() < 1e-12);
        assert!((metrics.top1 - 1.0 / 3.0).abs() < 1e-12 && (metrics.top5 - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn fewer_than_five_classes_are_all_in_the_top_five() {
        let mut sums = Sums::new(Device::Cpu, SavedSums::default()).unwrap();
        let logits = Tensor::from_slice(&[1f32, 2., 3.]).reshape([1, 3]);
        sums.add(&Tensor::from(0.0), &logits, &Tensor::from_slice(&[0i64])).unwrap();
        assert_eq!((sums.read().top1, sums.read().top5), (0.0, 1.0));
    }

    #[test]
    fn the_first_broken_batch_is_known_and_sums_go_on_where_they_were_saved() {
        let logits = Tensor::from_slice(&[1f32, 2., 3.]).reshape([1, 3]);
        let label = Tensor::from_slice(&[0i64]);
        let mut whole = Sums::new(Device::Cpu, SavedSums::default()).unwrap();
        let mut half = Sums::new(Device::Cpu, SavedSums::default()).unwrap();
        for (n, loss) in [0.1, 1.0 / 3.0, 2.0 / 7.0].into_iter().enumerate() {
            whole.add(&Tensor::from(loss), &logits, &label).unwrap();
            half.add(&Tensor::from(loss), &logits, &label).unwrap();
            if n == 1 {
                let text = serde_json::to_string(&half.save()).unwrap();
                half = Sums::new(Device::Cpu, serde_json::from_str(&text).unwrap()).unwrap();
            }
        }
        assert_eq!(whole.save(), half.save());
        assert_eq!(half.broken(), None);
        for loss in [f64::NAN, 1.0, f64::INFINITY] {
            half.add(&Tensor::from(loss), &logits, &label).unwrap();
        }
        assert_eq!(half.broken(), Some(4));
    }
}
