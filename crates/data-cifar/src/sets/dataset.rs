//! A data set in main memory, as plain data.

use std::fmt;

use ndarray::{ArcArray, Array1, Ix4};
use serde::{Deserialize, Serialize};

use crate::DataError;

/// Pixels of images, `[N, 3, H, W]`, which several may hold without a copy.
pub type Pixels = ArcArray<u8, Ix4>;

/// Images with one label each. Clones have their pixels in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labelled {
    /// Pixels, 0 to 255, `[N, 3, H, W]`: image, channel (red, green, blue), row from the top, column
    /// from the left.
    pub images: Pixels,
    /// Class of each image, from 0, `[N]`.
    pub labels: Array1<u16>,
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
    pub train: Array1<u16>,
    /// Coarse class of each test image, `[N]`.
    pub test: Array1<u16>,
}

/// A picture that was left out of a data set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its path below the folder, with `/` between names.
    pub file: String,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file, self.reason)
    }
}

/// A data set with its own training and test parts: a published one in the order of its files, a folder in
/// the order [`list_folder`](crate::list_folder) describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// `digits`, `cifar10`, `cifar100` or a folder's name.
    pub name: String,
    /// Name of each class, in label order.
    pub class_names: Vec<String>,
    /// The training part; who uses it holds validation images out of it.
    pub train: Labelled,
    /// The test part.
    pub test: Labelled,
    /// The coarse labels, for a data set that has them (CIFAR-100).
    pub coarse: Option<CoarseLabels>,
    /// How many of the last training images the set itself holds out for validation (a folder's `val`).
    pub validation: usize,
    /// The pictures of a folder that could not be decoded.
    pub skipped: Vec<Skipped>,
    /// SHA-256 of the files' bytes, one after the other in reading order, in lower-case hexadecimal; of a folder
    /// that of its labels and pixels, see [`FolderIndex::sha256`](crate::FolderIndex::sha256).
    pub sha256: String,
}

impl Dataset {
    /// The same images with their coarse labels.
    ///
    /// # Errors
    /// When there are none.
    pub fn with_coarse_labels(mut self) -> Result<Self, DataError> {
        let Some(CoarseLabels { class_names, train, test }) = self.coarse.take() else {
            return Err(DataError::Argument(format!("{} has no coarse labels", self.name)));
        };
        self.class_names = class_names;
        (self.train.labels, self.test.labels) = (train, test);
        Ok(self)
    }
}
