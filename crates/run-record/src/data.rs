//! The parts of a recipe that say which images a run trains on, and how they are split and presented.

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::fault::{Faults, RecipeErrors};

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
    /// Side of the square image the network sees, in pixels.
    pub image_size: i64,
    /// How bytes become floats.
    pub normalize: Normalize,
    /// Which images of the training set are held out for validation.
    pub validation: Validation,
    /// How images are resized. Absent: bilinear without antialiasing, on normalised floats, as Keras's `Resizing`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize: Option<Resize>,
}

/// Resizing of bytes, as by PIL. Images for evaluation are resized to `image_size` / `crop_pct`, and their middle is
/// cut out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// The filter.
    pub interpolation: Interpolation,
    /// Share of an image's side that evaluation shows; 1: the whole.
    pub crop_pct: f64,
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
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
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
    /// Share of the images to cut from the end for testing, rounded to whole images but one at least, where there is
    /// no folder `test`.
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
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Normalize {
    /// Divided by 255.
    Unit,
    /// Zero mean and unit variance per channel over all training images, the held-out part
    /// included (what Keras's `Normalization` layer adapts to in the published tutorials).
    Adapt,
    /// (x/255 − mean) / std.
    Fixed {
        /// Mean per channel on the scale 0 to 1.
        mean: [f64; 3],
        /// Standard deviation per channel on the scale 0 to 1.
        std: [f64; 3],
    },
}

/// Which images of the training set, in file order, are held out for validation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Validation {
    /// The first.
    Start(HeldOut),
    /// The last.
    End(HeldOut),
    /// None: the images of the folder `val` are for validation.
    Folder,
}

/// How many images are held out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeldOut {
    /// So many.
    Count(usize),
    /// This share, rounded to whole images but one at least.
    Fraction(f64),
}

impl DataRecipe {
    /// Checks ranges and what goes together; `dataset` and `folder` are the recipe's.
    pub(crate) fn check(&self, dataset: DatasetName, folder: Option<&FolderRecipe>, faults: &mut Faults) {
        faults.within("data.image_size", self.image_size, 1..=1024);
        if let Normalize::Fixed { mean, std } = self.normalize {
            let scaled = mean.iter().all(|m| (0.0..=1.0).contains(m));
            let remedy = "three numbers on the scale 0 to 1; of the scale 0 to 255, divide by 255";
            faults.check("data.normalize.fixed.mean", format!("{mean:?}"), scaled, remedy);
            let scaled = std.iter().all(|s| *s > 0.0 && *s <= 1.0);
            let remedy = "three numbers above 0, up to 1; of the scale 0 to 255, divide by 255";
            faults.check("data.normalize.fixed.std", format!("{std:?}"), scaled, remedy);
        }
        if let Some(Resize { crop_pct, .. }) = self.resize {
            let holds = crop_pct > 0.1 && crop_pct <= 1.0;
            faults.check("data.resize.crop_pct", crop_pct, holds, "above 0.1, up to 1");
        }
        let is_folder = dataset == DatasetName::Folder;
        let (end, held_out) = match self.validation {
            Validation::Start(held_out) => ("start", Some(held_out)),
            Validation::End(held_out) => ("end", Some(held_out)),
            Validation::Folder => ("folder", None),
        };
        match held_out {
            Some(HeldOut::Count(count)) => {
                let field = format!("data.validation.{end}.count");
                faults.check(&field, count, count > 0, "1 or more");
            }
            Some(HeldOut::Fraction(share)) => {
                faults.share(&format!("data.validation.{end}.fraction"), share, "above 0, below 1");
            }
            None => faults.check("data.validation", end, is_folder, "only goes with dataset = \"folder\""),
        }
        let given = if folder.is_some() { "given" } else { "absent" };
        let fits = is_folder == folder.is_some();
        faults.check("folder", given, fits, "goes with dataset = \"folder\", and with no other");
        if let Some(folder) = folder {
            folder.check(faults);
        }
    }
}

impl FolderRecipe {
    /// What [`FolderRecipe::stored_size`] may be.
    pub const STORED_SIZES: RangeInclusive<u32> = 1..=2048;

    /// Checks ranges.
    ///
    /// # Errors
    /// All values out of range, with their ranges.
    pub fn validate(&self) -> Result<(), RecipeErrors> {
        let mut faults = Faults::default();
        self.check(&mut faults);
        faults.result()
    }

    fn check(&self, faults: &mut Faults) {
        faults.within("folder.stored_size", self.stored_size, Self::STORED_SIZES);
        if let Some(share) = self.test_fraction {
            let remedy = "above 0, below 1; leave the key out to cut none off";
            faults.share("folder.test_fraction", share, remedy);
        }
    }
}
