//! Dropout and stochastic depth, drawn for an image whoever computes it.

use tch::{Kind, Tensor};
use torch_ext::batch_share;

/// libtorch's dropout of `x` `[B, ..]`, in training.
///
/// Where this thread computes a share of a batch, values of the whole batch are drawn, and its images get theirs. They are
/// those of one process if that has `x` contiguous.
pub(crate) fn dropout(x: Tensor, rate: f64, train: bool) -> Tensor {
    let Some(share) = batch_share().filter(|_| train && rate > 0.0) else { return x.dropout(rate, train) };
    let mut shape = x.size();
    [_, shape[0]] = share.scaled(shape[0]);
    let drawn = Tensor::ones(shape.as_slice(), (x.kind(), x.device())).dropout(rate, true);
    x * share.rows(&drawn)
}

/// One draw of stochastic depth (Huang et al., arXiv:1603.09382) for a batch: `[B, 1, ..]` factors
/// that are 0 with probability `rate` and 1/(1 − rate) otherwise, broadcastable to `like`. `None`
/// where nothing is dropped: in eval mode or at rate 0.
///
/// Two branches that share a draw are dropped together.
pub fn drop_path_mask(like: &Tensor, rate: f64, train: bool) -> Option<Tensor> {
    if !train || rate <= 0.0 {
        return None;
    }
    let share = batch_share();
    let mut shape = vec![1; like.dim()];
    shape[0] = share.map_or(like.size()[0], |share| share.scaled(like.size()[0])[1]);
    let keep = 1.0 - rate;
    let draw = Tensor::rand(shape.as_slice(), (Kind::Float, like.device()));
    let draw = share.map_or_else(|| draw.shallow_clone(), |share| share.rows(&draw));
    Some((draw + keep).floor() / keep)
}

/// A residual branch with a draw of stochastic depth applied.
pub fn apply_drop_path(branch: Tensor, mask: Option<&Tensor>) -> Tensor {
    match mask {
        Some(mask) => branch * mask,
        None => branch,
    }
}

/// A residual branch with its own draw of stochastic depth.
pub fn drop_path(branch: Tensor, rate: f64, train: bool) -> Tensor {
    let mask = drop_path_mask(&branch, rate, train);
    apply_drop_path(branch, mask.as_ref())
}

/// `count` rates evenly spaced from 0 to `last`, one per block.
pub fn drop_path_rates(last: f64, count: i64) -> Vec<f64> {
    let steps = (count - 1).max(1) as f64;
    (0..count).map(|i| last * i as f64 / steps).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn samples_are_dropped_whole_and_kept_ones_scaled() {
        let x = Tensor::ones([4000, 2, 3], (Kind::Float, Device::Cpu));
        let y = drop_path(x.shallow_clone(), 0.25, true);
        let per_sample = y.reshape([4000, 6]);
        // Within a sample all values are alike: 0, or 1/0.75.
        let (low, high) =
            (per_sample.amin([1i64].as_slice(), false), per_sample.amax([1i64].as_slice(), false));
        assert_eq!(low, high);
        let kept = high.gt(0.0);
        let share = kept.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
        assert!((share - 0.75).abs() < 0.04, "{share}");
        assert!((high.max().double_value(&[]) - 1.0 / 0.75).abs() < 1e-6);
    }

    /// Whatever is drawn before: all processes draw for the whole batch.
    #[test]
    fn shares_of_a_batch_are_dropped_as_the_whole_batch_is() {
        use torch_ext::{BatchShare, Gelu, attention, gelu, with_batch_share};
        let x = Tensor::randn([6, 5, 12], (Kind::Float, Device::Cpu));
        let draw = |x: &Tensor| {
            tch::manual_seed(7);
            // In windows, two for each image.
            let windows = x.reshape([-1, 5, 6]);
            [
                gelu(x, Gelu::Erf, 0.3).unwrap(),
                attention(x, None, None, 2, 0.3).unwrap(),
                drop_path(x.shallow_clone(), 0.5, true),
                dropout(x.relu(), 0.4, true),
                attention(&windows, None, None, 2, 0.3).unwrap(),
                dropout(windows, 0.4, true),
                gelu(x, Gelu::Tanh, 0.3).unwrap(),
            ]
        };
        let whole = draw(&x);
        for (first, len) in [(0, 6), (0, 2), (2, 3), (5, 1)] {
            let share = BatchShare { first, len, whole: 6 };
            let part = with_batch_share(share, || draw(&x.narrow(0, first, len)));
            for (n, (part, whole)) in part.iter().zip(&whole).enumerate() {
                let each = whole.size()[0] / 6;
                assert_eq!(*part, whole.narrow(0, first * each, len * each), "{n}: {first}, {len}");
            }
        }
        assert_eq!(torch_ext::batch_share(), None);
        assert_ne!(draw(&x.narrow(0, 2, 3))[0], whole[0].narrow(0, 2, 3));
    }

    #[test]
    fn nothing_is_dropped_in_eval_mode_or_at_rate_0() {
        let x = Tensor::ones([8, 1], (Kind::Float, Device::Cpu));
        assert!(drop_path_mask(&x, 0.5, false).is_none() && drop_path_mask(&x, 0.0, true).is_none());
        assert_eq!(drop_path(x.shallow_clone(), 0.5, false), x);
    }

    #[test]
    fn rates_rise_evenly_from_zero() {
        assert_eq!(drop_path_rates(0.1, 2), [0.0, 0.1]);
        assert_eq!(drop_path_rates(0.2, 5), [0.0, 0.05, 0.1, 0.15000000000000002, 0.2]);
        assert_eq!(drop_path_rates(0.2, 1), [0.0]);
    }
}
