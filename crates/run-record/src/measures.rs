//! What a classifier's answers are worth: by class, and as probabilities.

use serde::Serialize;

/// How often images of one class were called another: `[label][called]`.
///
/// Labels and answers are class numbers below `classes`; others are left out.
pub fn confusion(labels: &[usize], called: &[usize], classes: usize) -> Vec<Vec<u64>> {
    let mut counts = vec![vec![0; classes]; classes];
    for (label, called) in labels.iter().zip(called) {
        if let Some(count) = counts.get_mut(*label).and_then(|row| row.get_mut(*called)) {
            *count += 1;
        }
    }
    counts
}

/// What the answers about one class are worth. A number that would be a share of nothing is absent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ClassMeasures {
    /// Images of the class.
    pub images: u64,
    /// Of the images called so, the share that is of the class.
    pub precision: Option<f64>,
    /// Of the images of the class, the share that was called so.
    pub recall: Option<f64>,
    /// The harmonic mean of both.
    pub f1: Option<f64>,
}

/// [`ClassMeasures`] of every class of a square [`confusion`].
pub fn class_measures(confusion: &[Vec<u64>]) -> Vec<ClassMeasures> {
    let share = |part: u64, of: u64| (of > 0).then(|| part as f64 / of as f64);
    let of_class = |(class, row): (usize, &Vec<u64>)| {
        let right = row[class];
        let images = row.iter().sum();
        let called: u64 = confusion.iter().map(|row| row[class]).sum();
        ClassMeasures {
            images,
            precision: share(right, called),
            recall: share(right, images),
            f1: share(2 * right, images + called),
        }
    };
    confusion.iter().enumerate().map(of_class).collect()
}

/// Answers of about the same confidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CalibrationBin {
    /// How many there are.
    pub images: u64,
    /// Their mean confidence; 0 of none.
    pub confidence: f64,
    /// The share of them that is right; 0 of none.
    pub accuracy: f64,
}

/// Bins that confidence is divided into, as in the paper.
pub const CALIBRATION_BINS: usize = 15;

/// Answers by confidence (the probability of the class that was said) in [`CALIBRATION_BINS`] bins of equal width, each
/// without its lower end (Guo et al., arXiv:1706.04599, §2).
pub fn calibration(confidences: &[f64], right: &[bool]) -> Vec<CalibrationBin> {
    let mut bins = [(0u64, 0.0, 0u64); CALIBRATION_BINS];
    for (confidence, right) in confidences.iter().zip(right) {
        let bin = (confidence * CALIBRATION_BINS as f64).ceil() as usize;
        let (images, sum, hits) = &mut bins[bin.clamp(1, CALIBRATION_BINS) - 1];
        *images += 1;
        *sum += confidence;
        *hits += u64::from(*right);
    }
    let mean = |sum: f64, images: u64| if images > 0 { sum / images as f64 } else { 0.0 };
    bins.into_iter()
        .map(|(images, sum, hits)| CalibrationBin {
            images,
            confidence: mean(sum, images),
            accuracy: mean(hits as f64, images),
        })
        .collect()
}

/// Expected calibration error (Guo et al., eq. 3): how far confidence and accuracy of a bin lie apart, on average over
/// images; 0 to 1.
pub fn calibration_error(bins: &[CalibrationBin]) -> f64 {
    let images: u64 = bins.iter().map(|bin| bin.images).sum();
    let gaps = bins.iter().map(|bin| bin.images as f64 * (bin.accuracy - bin.confidence).abs());
    if images > 0 { gaps.sum::<f64>() / images as f64 } else { 0.0 }
}

/// The temperature T that makes probabilities softmax(logits / T) fit labels best: the least mean negative
/// log-likelihood (Guo et al., §4.2). For logits of images that were not trained on, one per class, finite.
///
/// In 1 / T the likelihood is convex, so its slope has one root, found by halving; where there is none (every answer right,
/// or no answer better than chance) T ends at 0.01 or 100. 1 of no image.
pub fn temperature(logits: &[Vec<f64>], labels: &[usize]) -> f64 {
    if logits.is_empty() {
        return 1.0;
    }
    // What the label's logit lacks of the mean logit, of probabilities at 1 / T; summed over images.
    let slope = |inverse: f64| {
        let of_image = |(logits, label): (&Vec<f64>, &usize)| {
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights = logits.iter().map(|logit| ((logit - largest) * inverse).exp());
            let (sum, weighted) = weights
                .zip(logits)
                .fold((0.0, 0.0), |(sum, weighted), (w, z)| (sum + w, weighted + w * (z - largest)));
            weighted / sum - logits.get(*label).map_or(0.0, |logit| logit - largest)
        };
        logits.iter().zip(labels).map(of_image).sum::<f64>()
    };
    let (mut low, mut high) = (0.01f64, 100.0f64);
    for _ in 0..40 {
        let middle = (low * high).sqrt();
        if slope(middle) > 0.0 { high = middle } else { low = middle }
    }
    1.0 / (low * high).sqrt()
}

/// Half the width of a 95 % interval of the normal distribution, in standard deviations.
const Z95: f64 = 1.959_963_984_540_054;

/// The 95 % interval of a share of which `hits` of `n` were seen, without continuity correction (Wilson, JASA 22, 1927).
/// `None` of nothing.
pub fn wilson(hits: usize, n: usize) -> Option<(f64, f64)> {
    if n == 0 || hits > n {
        return None;
    }
    let (share, n, square) = (hits as f64 / n as f64, n as f64, Z95 * Z95);
    let middle = share + square / (2.0 * n);
    let half = Z95 * (share * (1.0 - share) / n + square / (4.0 * n * n)).sqrt();
    let scale = 1.0 + square / n;
    // The ends of a share of none or all are exact, whatever rounding makes of them.
    let low = if hits == 0 { 0.0 } else { (middle - half) / scale };
    let high = if share == 1.0 { 1.0 } else { (middle + half) / scale };
    Some((low, high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_measured_by_what_they_are_and_what_is_called_so() {
        // Three cats, one of them called a dog; two dogs, one of them called a cat; no fox, and nothing called one.
        let counts = confusion(&[0, 0, 0, 1, 1, 7], &[0, 0, 1, 1, 0, 0], 3);
        assert_eq!(counts, [[2, 1, 0], [1, 1, 0], [0, 0, 0]]);
        let [cat, dog, fox] = class_measures(&counts)[..] else { panic!("three classes") };
        assert_eq!(
            (cat.images, cat.precision, cat.recall, cat.f1),
            (3, Some(2.0 / 3.0), Some(2.0 / 3.0), Some(4.0 / 6.0))
        );
        assert_eq!((dog.images, dog.precision, dog.recall, dog.f1), (2, Some(0.5), Some(0.5), Some(0.5)));
        assert_eq!(fox, ClassMeasures { images: 0, precision: None, recall: None, f1: None });
    }

    #[test]
    fn calibration_compares_confidence_with_accuracy_bin_by_bin() {
        // Fifteen bins: (0.6, 0.667] holds the first two, (0.933, 1] the others.
        let (confidences, right) = ([0.61, 0.65, 0.95, 1.0, 0.94], [true, false, true, true, false]);
        let bins = calibration(&confidences, &right);
        assert_eq!((bins[9].images, bins[14].images), (2, 3));
        assert!((bins[9].confidence - 0.63).abs() < 1e-12 && bins[9].accuracy == 0.5);
        let want = (2.0 * (0.63 - 0.5) + 3.0 * (2.89 / 3.0 - 2.0 / 3.0)) / 5.0;
        assert!((calibration_error(&bins) - want).abs() < 1e-12);
        // An end belongs to the bin below it, and 0 to the first.
        let bins = calibration(&[0.0, 1.0 / 15.0, 2.0 / 15.0], &[false; 3]);
        assert_eq!((bins[0].images, bins[1].images), (2, 1));
        assert_eq!(calibration_error(&calibration(&[], &[])), 0.0);
    }

    #[test]
    fn the_temperature_makes_confidence_the_share_that_is_right() {
        // Two classes, always the same margin of 4: three of four are right, so the best probability is 3/4, at a
        // margin of ln 3.
        let logits = vec![vec![4.0, 0.0]; 4];
        let found = temperature(&logits, &[0, 0, 0, 1]);
        assert!((found - 4.0 / 3f64.ln()).abs() < 1e-9, "{found}");
        // Shifted logits say the same, and scaled ones as much hotter.
        let shifted: Vec<Vec<f64>> =
            logits.iter().map(|row| row.iter().map(|z| 10.0 * z + 1e3).collect()).collect();
        assert!((temperature(&shifted, &[0, 0, 0, 1]) - 40.0 / 3f64.ln()).abs() < 1e-8);
        // No finite best: all right, or as often wrong as right.
        assert!((temperature(&logits, &[0; 4]) - 0.01).abs() < 1e-6);
        assert!((temperature(&logits, &[0, 0, 1, 1]) - 100.0).abs() < 1e-3);
        assert_eq!(temperature(&[], &[]), 1.0);
    }

    /// `docs/parity/calibration.py`: torchmetrics 1.9.0, and L-BFGS of PyTorch 2.11.
    #[test]
    fn error_and_temperature_are_the_published_implementations() {
        let mut state = 12345u64;
        let mut next = || {
            state = (1_103_515_245 * state + 12345) % (1 << 31);
            state
        };
        let largest =
            |row: &[f64]| (0..3).fold(0, |best, class| if row[class] > row[best] { class } else { best });
        let (mut logits, mut labels) = (Vec::new(), Vec::new());
        for _ in 0..40 {
            let row: Vec<f64> = (0..3).map(|_| 8.0 * (next() as f64 / f64::from(1u32 << 31)) - 4.0).collect();
            let best = largest(&row);
            labels.push(if next() % 30 < 20 { best } else { (best + 1) % 3 });
            logits.push(row);
        }
        let error = |temperature: f64| {
            let confidence = |row: &Vec<f64>| {
                let exp = |class: usize| (row[class] / temperature).exp();
                exp(largest(row)) / (exp(0) + exp(1) + exp(2))
            };
            let confidences: Vec<f64> = logits.iter().map(confidence).collect();
            let right: Vec<bool> =
                logits.iter().zip(&labels).map(|(row, label)| largest(row) == *label).collect();
            calibration_error(&calibration(&confidences, &right))
        };
        let found = temperature(&logits, &labels);
        assert!((found - 1.282003630178448).abs() < 1e-6, "{found}");
        // torchmetrics sums in f32.
        assert!((error(1.0) - 0.19995157420635223).abs() < 1e-5, "{}", error(1.0));
        assert!((error(found) - 0.19306260347366333).abs() < 1e-5, "{}", error(found));
    }

    /// `docs/parity/significance.py`: statsmodels 0.14.5.
    #[test]
    fn intervals_are_those_of_statsmodels() {
        for (hits, n, low, high) in [
            (8271, 10000, 0.819562937434604, 0.8343858508312992),
            (352, 360, 0.9567691737312188, 0.988697571908474),
            (0, 10, 0.0, 0.27753279986288926),
        ] {
            let found = wilson(hits, n).unwrap();
            assert!((found.0 - low).abs() < 1e-12 && (found.1 - high).abs() < 1e-12, "{found:?}");
        }
        assert_eq!((wilson(0, 0), wilson(3, 2)), (None, None));
        assert_eq!(wilson(10, 10).unwrap().1, 1.0);
    }
}
