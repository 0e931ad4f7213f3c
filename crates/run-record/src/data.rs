//! The parts of a recipe that say which images a run trains on, and how they are split and presented.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::recipe::{Faults, show};

/// The data sets a recipe may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatasetName {
    /// 1,797 handwritten digits that come with the project, as 3×32×32.
    Digits,
    /// CIFAR-10: 50,000 + 10,000 images of 3×32×32 in ten classes.
    Cifar10,
    /// CIFAR-100: 50,000 + 10,000 images of 3×32×32 in a hundred classes (the fine labels).
    Cifar100,
    /// CIFAR-100 with its twenty coarse labels.
    Cifar100Coarse,
    /// Pictures in folders named after their classes.
    Folder,
}

impl DatasetName {
    /// The name in recipes, directories and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Digits => "digits",
            Self::Cifar10 => "cifar10",
            Self::Cifar100 => "cifar100",
            Self::Cifar100Coarse => "cifar100_coarse",
            Self::Folder => "folder",
        }
    }
}

impl fmt::Display for DatasetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How images are split and presented to the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRecipe {
    /// Side of the square image the network sees, in pixels; other sizes are resized bilinearly.
    pub image_size: i64,
    /// How bytes become floats.
    pub normalize: Normalize,
    /// Mean per channel on the scale 0 to 1, for `normalize = "fixed"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<[f64; 3]>,
    /// Standard deviation per channel on the scale 0 to 1, for `normalize = "fixed"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub std: Option<[f64; 3]>,
    /// How images are resized; PIL's filters, antialiased, on bytes. Absent: bilinear without antialiasing,
    /// on normalised floats, as Keras's `Resizing`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interpolation: Option<Interpolation>,
    /// With `interpolation`: images for evaluation are resized to `image_size` / `crop_pct`, and their middle
    /// is cut out. Absent: they are shown whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop_pct: Option<f64>,
    /// The end of the training set that is held out for validation.
    pub validation_from: ValidationFrom,
    /// How many images are held out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_count: Option<usize>,
    /// Or which share of the training set, rounded to whole images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_fraction: Option<f64>,
}

/// One of PIL's antialiased filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// A triangle over two pixels, wider when shrinking.
    Bilinear,
    /// Keys's cubic over four pixels, wider when shrinking.
    Bicubic,
}

/// How pictures of any size become the square images a run starts from, and how they are split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FolderRecipe {
    /// Side of the stored images in pixels; `data.image_size` is what the network sees.
    pub stored_size: u32,
    /// How another shape becomes a square.
    pub crop_mode: CropMode,
    /// How pictures are resized.
    pub interpolation: Interpolation,
    /// What becomes of a file that is not an image, or damaged.
    pub on_error: OnError,
    /// Share of the images to cut from the end for testing, where there is no folder `test`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_fraction: Option<f64>,
}

/// How a picture becomes a square, by timm's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CropMode {
    /// The shorter side fits, and the middle is cut out.
    Center,
    /// Both sides fit; the shape changes.
    Squash,
    /// The longer side fits, and the rest is black.
    Border,
}

/// What becomes of a file that cannot be read as an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// It is named, left out and counted in the record.
    Skip,
    /// It is named, and nothing is trained.
    Fail,
}

/// How bytes become floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Normalize {
    /// Divided by 255.
    Unit,
    /// Zero mean and unit variance per channel over all training images, the held-out part
    /// included (what Keras's `Normalization` layer adapts to in the published tutorials).
    Adapt,
    /// (x/255 − mean) / std with the recipe's `mean` and `std`.
    Fixed,
}

/// Which end of the training set, in file order, is held out for validation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ValidationFrom {
    /// The first images.
    Start,
    /// The last images.
    End,
    /// Neither: the images of the folder `val`.
    Folder,
}

impl DataRecipe {
    /// Checks ranges and what goes together; `dataset` and `folder` are the recipe's.
    pub(crate) fn check(&self, dataset: DatasetName, folder: Option<&FolderRecipe>, faults: &mut Faults) {
        let fraction = |x: f64| (0.0..1.0).contains(&x);
        faults.check(
            "data.image_size",
            self.image_size,
            (1..=1024).contains(&self.image_size),
            "1 to 1024 pixels",
        );
        match (self.normalize, self.mean, self.std) {
            (Normalize::Fixed, Some(mean), Some(std)) => {
                let scaled = mean.iter().all(|m| (0.0..=1.0).contains(m));
                let expected = "three numbers on the scale 0 to 1; of the scale 0 to 255, divide by 255";
                faults.check("data.mean", show(mean), scaled, expected);
                let scaled = std.iter().all(|s| *s > 0.0 && *s <= 1.0);
                let expected = "three numbers above 0, up to 1; of the scale 0 to 255, divide by 255";
                faults.check("data.std", show(std), scaled, expected);
            }
            (Normalize::Fixed, ..) => {
                faults.check("data.normalize", "\"fixed\"", false, "needs data.mean and data.std beside it");
            }
            (_, None, None) => {}
            (_, mean, _) => {
                let field = if mean.is_some() { "data.mean" } else { "data.std" };
                faults.check(
                    field,
                    show(mean.or(self.std)),
                    false,
                    "only goes with data.normalize = \"fixed\"",
                );
            }
        }
        let crop_pct = self.crop_pct.unwrap_or(1.0);
        faults.check("data.crop_pct", crop_pct, crop_pct > 0.1 && crop_pct <= 1.0, "above 0.1, up to 1");
        let beside = self.crop_pct.is_none() || self.interpolation.is_some();
        faults.check("data.crop_pct", crop_pct, beside, "only goes with data.interpolation");
        let held_out = (self.validation_count, self.validation_fraction);
        if self.validation_from == ValidationFrom::Folder {
            let is_folder = dataset == DatasetName::Folder;
            faults.check("data.validation_from", "folder", is_folder, "only goes with dataset = \"folder\"");
            let absent = held_out == (None, None);
            faults.check(
                "data.validation_from",
                "folder",
                absent,
                "decides how many images are held out by itself",
            );
        } else if let (None, Some(share)) = held_out {
            faults.check(
                "data.validation_fraction",
                share,
                share > 0.0 && fraction(share),
                "above 0, below 1",
            );
        } else {
            let count = self.validation_count.unwrap_or_default();
            faults.check(
                "data.validation_count",
                count,
                count > 0,
                "at least 1, or data.validation_fraction",
            );
            let one = self.validation_fraction.is_none();
            faults.check("data.validation_count", count, one, "not beside data.validation_fraction");
        }
        let is_folder = dataset == DatasetName::Folder;
        let given = if folder.is_some() { "given" } else { "absent" };
        let fits = is_folder == folder.is_some();
        faults.check("folder", given, fits, "goes with dataset = \"folder\", and with no other");
        if let Some(&FolderRecipe { stored_size, test_fraction, .. }) = folder {
            faults.check(
                "folder.stored_size",
                stored_size,
                (1..=2048).contains(&stored_size),
                "1 to 2048 pixels",
            );
            let share = test_fraction.unwrap_or(0.5);
            let expected = "above 0, below 1; leave the key out to cut none off";
            faults.check("folder.test_fraction", share, share > 0.0 && fraction(share), expected);
        }
    }
}
