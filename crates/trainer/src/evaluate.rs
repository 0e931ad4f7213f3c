//! Loss and accuracies of a network over images it does not train on, each counted once.

use core_layers::Model;
use tch::{Device, Kind, Reduction, Tensor};

use crate::Error;
use crate::data::Part;
use crate::presentation::Presentation;

/// Means over images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metrics {
    /// Cross-entropy, smoothed as in training.
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
}

impl Sums {
    /// Nothing counted.
    pub fn new(device: Device) -> Self {
        let zero = || Tensor::zeros([], (Kind::Double, device));
        Self { loss: zero(), top1: zero(), top5: zero(), count: 0 }
    }

    /// Counts a batch: its mean loss, logits `[B, K]` and labels `[B]`.
    pub fn add(&mut self, loss: &Tensor, logits: &Tensor, labels: &Tensor) {
        let (batch, classes) = (logits.size()[0], logits.size()[1]);
        self.loss += loss.detach().to_kind(Kind::Double) * batch;
        let (_, best) = logits.detach().topk(classes.min(5), 1, true, true); // [B, K] -> [B, 5]
        let hits = best.eq_tensor(&labels.unsqueeze(1)).to_kind(Kind::Double);
        self.top1 += hits.narrow(1, 0, 1).sum(Kind::Double);
        self.top5 += hits.sum(Kind::Double);
        self.count += batch;
    }

    /// The means; waits for the device. NaN where nothing was counted.
    pub fn read(&self) -> Metrics {
        let mean = |sum: &Tensor| sum.double_value(&[]) / self.count as f64;
        Metrics { loss: mean(&self.loss), top1: mean(&self.top1), top5: mean(&self.top5) }
    }
}

/// Mean cross-entropy of logits `[B, K]`. Targets are classes, i64 `[B]`, and stand for
/// (1 − s)·onehot + s/K, or shares of every class, f32 `[B, K]`, of which s is taken likewise.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, smoothing: f64) -> Result<Tensor, Error> {
    Ok(logits.f_cross_entropy_loss::<Tensor>(targets, None, Reduction::Mean, -100, smoothing)?)
}

/// Runs the network over a part in eval mode.
///
/// # Errors
/// libtorch's refusal to make a batch.
pub fn evaluate(
    network: &dyn Model,
    part: &Part<'_>,
    presentation: &Presentation,
    batch_size: usize,
    smoothing: f64,
) -> Result<Metrics, Error> {
    tch::no_grad(|| {
        let mut sums = Sums::new(part.set.device());
        for batch in part.set.batches(&part.indices(), batch_size)? {
            let batch = batch?;
            let logits = network.forward_t(&presentation.plain(&batch.images)?, false);
            sums.add(&cross_entropy(&logits, &batch.labels, smoothing)?, &logits, &batch.labels);
        }
        Ok(sums.read())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_weigh_batches_by_their_size() {
        let mut sums = Sums::new(Device::Cpu);
        // Seven classes; the label's rank is 1st, 2nd and 6th.
        let row = [7f32, 6., 5., 4., 3., 2., 1.];
        let logits = Tensor::from_slice(&[row, row].concat()).reshape([2, 7]);
        sums.add(&Tensor::from(1.0), &logits, &Tensor::from_slice(&[0i64, 1]));
        sums.add(&Tensor::from(4.0), &logits.narrow(0, 0, 1), &Tensor::from_slice(&[5i64]));
        let metrics = sums.read();
        assert!((metrics.loss - 2.0).abs() < 1e-12);
        assert!((metrics.top1 - 1.0 / 3.0).abs() < 1e-12 && (metrics.top5 - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn fewer_than_five_classes_are_all_in_the_top_five() {
        let mut sums = Sums::new(Device::Cpu);
        let logits = Tensor::from_slice(&[1f32, 2., 3.]).reshape([1, 3]);
        sums.add(&Tensor::from(0.0), &logits, &Tensor::from_slice(&[0i64]));
        assert_eq!((sums.read().top1, sums.read().top5), (0.0, 1.0));
    }

    #[test]
    fn smoothing_spreads_the_target_over_all_classes() {
        let logits = Tensor::from_slice(&[0f64, (3f64).ln()]).reshape([1, 2]);
        let label = Tensor::from_slice(&[1i64]);
        let plain = cross_entropy(&logits, &label, 0.0).unwrap().double_value(&[]);
        assert!((plain - -(0.75f64.ln())).abs() < 1e-12);
        let smooth = cross_entropy(&logits, &label, 0.1).unwrap().double_value(&[]);
        assert!((smooth - -(0.95 * 0.75f64.ln() + 0.05 * 0.25f64.ln())).abs() < 1e-12);
    }
}
