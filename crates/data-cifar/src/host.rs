//! A data set in main memory, as plain data, and how its training part is split.

use std::ops::Range;

use ndarray::{Array1, Array4};

use crate::DataError;

/// Images with one label each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labelled {
    /// Pixels, 0 to 255, `[N, 3, H, W]`: image, channel (red, green, blue), row from the top, column
    /// from the left.
    pub images: Array4<u8>,
    /// Class of each image, from 0, `[N]`.
    pub labels: Array1<u8>,
}

impl Labelled {
    /// The number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// `true` without images.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// A second, coarser set of labels for the images of a [`Dataset`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoarseLabels {
    /// Name of each coarse class, in label order.
    pub class_names: Vec<String>,
    /// Coarse class of each training image, `[N]`.
    pub train: Array1<u8>,
    /// Coarse class of each test image, `[N]`.
    pub test: Array1<u8>,
}

/// A data set as it was published: its own training and test parts, in the order of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// `digits`, `cifar10` or `cifar100`.
    pub name: String,
    /// Name of each class, in label order.
    pub class_names: Vec<String>,
    /// The training part; validation images are cut from it with [`split`].
    pub train: Labelled,
    /// The test part.
    pub test: Labelled,
    /// The coarse labels, for a data set that has them (CIFAR-100).
    pub coarse: Option<CoarseLabels>,
    /// SHA-256 of the files' bytes, one after the other in reading order, in lower-case hexadecimal.
    pub sha256: String,
}

/// Which end of the training part is held out for validation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValidationFrom {
    /// The first images.
    Start,
    /// The last images.
    End,
}

/// Cuts `count` validation images from one end of `n`, by position: `(train, validation)`.
///
/// # Errors
/// When nothing would be left to train on (`count >= n`).
///
/// ```
/// use data_cifar::{ValidationFrom, split};
/// assert_eq!(split(50_000, ValidationFrom::End, 5_000)?, (0..45_000, 45_000..50_000));
/// # Ok::<(), data_cifar::DataError>(())
/// ```
pub fn split(
    n: usize,
    from: ValidationFrom,
    count: usize,
) -> Result<(Range<usize>, Range<usize>), DataError> {
    if count >= n {
        return Err(DataError::Split { n, count });
    }
    Ok(match from {
        ValidationFrom::Start => (count..n, 0..count),
        ValidationFrom::End => (0..n - count, n - count..n),
    })
}

/// A digest in lower-case hexadecimal.
pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The splits of the published tutorials on CIFAR-10's 50,000 training images.
    #[test]
    fn the_tutorials_splits() {
        for (from, count, train, validation) in [
            (ValidationFrom::End, 5_000, 0..45_000, 45_000..50_000), // CCT, ViT
            (ValidationFrom::Start, 5_000, 5_000..50_000, 0..5_000), // ConvMixer
            (ValidationFrom::End, 10_000, 0..40_000, 40_000..50_000), // PatchConvNet
            (ValidationFrom::End, 0, 0..50_000, 50_000..50_000),
        ] {
            assert_eq!(split(50_000, from, count).unwrap(), (train, validation));
        }
    }

    #[test]
    fn nothing_left_to_train_on_is_an_error() {
        for (n, count) in [(10, 10), (10, 11), (0, 0)] {
            let message = split(n, ValidationFrom::Start, count).unwrap_err().to_string();
            assert!(message.contains(&format!("{count} of {n} images")), "{message}");
        }
    }
}
