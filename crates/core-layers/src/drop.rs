//! Stochastic depth.

use tch::{Kind, Tensor};

/// One draw of stochastic depth (Huang et al., arXiv:1603.09382) for a batch: `[B, 1, ..]` factors
/// that are 0 with probability `rate` and 1/(1 − rate) otherwise, broadcastable to `like`. `None`
/// where nothing is dropped: in eval mode or at rate 0.
///
/// Two branches that share a draw are dropped together.
pub fn drop_path_mask(like: &Tensor, rate: f64, train: bool) -> Option<Tensor> {
    if !train || rate <= 0.0 {
        return None;
    }
    let mut shape = vec![1; like.dim()];
    shape[0] = like.size()[0];
    let keep = 1.0 - rate;
    let draw = Tensor::rand(shape.as_slice(), (Kind::Float, like.device()));
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
