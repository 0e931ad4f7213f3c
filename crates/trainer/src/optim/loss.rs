//! What training makes small.

use run_record::{Bce, TrainRecipe};
use tch::{Kind, Reduction, Tensor};

use crate::Error;

/// The recipe's loss of logits `[B, K]`, a mean over the batch, f32 without dimensions.
///
/// Targets are classes, i64 `[B]`, and stand for (1 − s)·onehot + s/K with the smoothing s, or shares of every class,
/// f32 `[B, K]`, of which s is taken likewise. With `class_weights`, f32 `[K]`, the share of each class counts so many
/// times. The mean stays one over images, as Keras has it, where PyTorch divides by the weights of the targets: so the
/// means of parts of a batch add up to its own.
///
/// # Errors
/// libtorch's refusal of logits and targets that do not fit each other.
pub fn loss(
    recipe: &TrainRecipe,
    logits: &Tensor,
    targets: &Tensor,
    smoothing: f64,
    class_weights: Option<&Tensor>,
) -> Result<Tensor, Error> {
    // Losses need the range and the digits of f32, whatever the network computes in.
    let logits = logits.f_to_kind(Kind::Float)?;
    match recipe.bce {
        None => cross_entropy(&logits, targets, smoothing, class_weights),
        Some(bce) => binary_cross_entropy(&logits, targets, smoothing, bce),
    }
}

fn cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
    smoothing: f64,
    class_weights: Option<&Tensor>,
) -> Result<Tensor, Error> {
    let of = |reduction| logits.f_cross_entropy_loss(targets, class_weights, reduction, -100, smoothing);
    match class_weights {
        None => Ok(of(Reduction::Mean)?),
        Some(_) => Ok(of(Reduction::Sum)?.f_div_scalar(logits.size()[0] as f64)?),
    }
}

/// As timm's `BinaryCrossEntropy`.
fn binary_cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
    smoothing: f64,
    Bce { sum, target_thresh }: Bce,
) -> Result<Tensor, Error> {
    let classes = logits.size().last().copied().unwrap_or(1);
    let shares = match targets.dim() {
        1 => targets.f_one_hot(classes)?.f_to_kind(Kind::Float)?,
        _ => targets.shallow_clone(),
    };
    let mut shares = shares * (1.0 - smoothing) + smoothing / classes as f64;
    if let Some(threshold) = target_thresh {
        shares = shares.f_gt(threshold)?.f_to_kind(Kind::Float)?;
    }
    let none: Option<Tensor> = None;
    let mean =
        logits.f_binary_cross_entropy_with_logits(&shares, none.as_ref(), none.as_ref(), Reduction::Mean)?;
    Ok(if sum { mean * classes as f64 } else { mean })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits() -> Tensor {
        Tensor::from_slice(&[0f32, 3f32.ln()]).reshape([1, 2])
    }

    #[test]
    fn smoothing_spreads_the_target_over_all_classes() {
        let label = Tensor::from_slice(&[1i64]);
        let of = |smoothing| cross_entropy(&logits(), &label, smoothing, None).unwrap().double_value(&[]);
        assert!((of(0.0) + 0.75f64.ln()).abs() < 1e-6);
        assert!((of(0.1) + 0.95 * 0.75f64.ln() + 0.05 * 0.25f64.ln()).abs() < 1e-6);
        // The same shares, written out.
        let shares = Tensor::from_slice(&[0.05f32, 0.95]).reshape([1, 2]);
        let soft = cross_entropy(&logits(), &shares, 0.0, None).unwrap().double_value(&[]);
        assert!((of(0.1) - soft).abs() < 1e-6);
    }

    #[test]
    fn class_weights_count_shares_and_the_mean_is_over_images() {
        let logits = Tensor::from_slice(&[0f32, 3f32.ln(), 0.0, 0.0]).reshape([2, 2]);
        let weights = Tensor::from_slice(&[3f32, 0.5]);
        let of = |targets: &Tensor, smoothing| {
            cross_entropy(&logits, targets, smoothing, Some(&weights)).unwrap().double_value(&[])
        };
        // Softmax 1/4, 3/4 of a second class, and 1/2, 1/2 of a first.
        let labels = Tensor::from_slice(&[1i64, 0]);
        let want = 0.5 * (0.5 * (4.0f64 / 3.0).ln() + 3.0 * 2f64.ln());
        assert!((of(&labels, 0.0) - want).abs() < 1e-6);
        let second = 0.9 * 0.5 * (4.0f64 / 3.0).ln() + 0.1 * 3.0 * 4f64.ln();
        let first = 0.9 * 3.0 * 2f64.ln() + 0.1 * 0.5 * 2f64.ln();
        assert!((of(&labels, 0.2) - 0.5 * (second + first)).abs() < 1e-6);
        let shares = Tensor::from_slice(&[0.1f32, 0.9, 0.9, 0.1]).reshape([2, 2]);
        assert!((of(&shares, 0.0) - of(&labels, 0.2)).abs() < 1e-6);
    }

    #[test]
    fn binary_cross_entropy_looks_at_every_class_by_itself() {
        let label = Tensor::from_slice(&[1i64]);
        let of = |smoothing, target_thresh, sum| {
            let bce = Bce { sum, target_thresh };
            binary_cross_entropy(&logits(), &label, smoothing, bce).unwrap().double_value(&[])
        };
        // Sigmoids 1/2 and 3/4.
        let (first, second) = (
            |y: f64| -(y * 0.5f64.ln() + (1.0 - y) * 0.5f64.ln()),
            |y: f64| -(y * 0.75f64.ln() + (1.0 - y) * 0.25f64.ln()),
        );
        let want = |a: f64, b: f64| 0.5 * (first(a) + second(b));
        for (got, want) in [
            (of(0.0, None, false), want(0.0, 1.0)),
            (of(0.2, None, false), want(0.1, 0.9)),
            (of(0.2, Some(0.5), false), want(0.0, 1.0)),
            (of(0.2, Some(0.05), true), 2.0 * want(1.0, 1.0)),
        ] {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
        let shares = Tensor::from_slice(&[0.25f32, 0.75]).reshape([1, 2]);
        let mean = Bce { sum: false, target_thresh: None };
        let soft = binary_cross_entropy(&logits(), &shares, 0.0, mean).unwrap().double_value(&[]);
        assert!((soft - want(0.25, 0.75)).abs() < 1e-6);
    }
}
