//! A recipe's data: where it is read and how it is split.

use std::ops::Range;
use std::path::Path;
use std::thread;

use data_cifar::{
    ChannelStats, Dataset, DeviceSet, FolderIndex, FolderOptions, FolderProgress, ImageSet, Skipped,
    channel_stats, list_folder,
};
use run_record::{DataRecipe, DatasetName, FolderRecipe, Normalize, Recipe, ValidationFrom};
use tch::{Device, Kind};

use crate::presentation::filter;
use crate::{Error, environment};

/// Decoded batches that wait for the network.
const PREFETCH: usize = 4;

/// A recipe's data set, read or indexed, and split; not yet on a device.
#[derive(Debug)]
pub struct Source {
    /// The data set.
    pub name: String,
    /// Name of each class, in label order.
    pub class_names: Vec<String>,
    /// SHA-256 of what was read.
    pub sha256: String,
    /// Files of a folder that were left out.
    pub skipped: Vec<Skipped>,
    /// Positions of the images to learn from.
    pub train: Range<usize>,
    /// Positions of the images held out of the same set.
    pub validation: Range<usize>,
    contents: Contents,
}

#[derive(Debug)]
enum Contents {
    Held(Box<Dataset>),
    Streamed(Box<FolderIndex>),
}

/// Reads a recipe's data from `data_dir`, or from where `cargo xtask fetch` puts it under `root`.
///
/// The pictures of a folder are decoded as they are needed if `stream` says so or they would take more than
/// half of the memory, and held otherwise; batches are the same. `tell` is given what is worth saying.
///
/// # Errors
/// A missing or damaged file, or more images held out than there are.
pub fn load(
    recipe: &Recipe,
    root: &Path,
    data_dir: Option<&Path>,
    stream: bool,
    tell: &mut dyn FnMut(&str),
) -> Result<Source, Error> {
    let fetched = |name: &str| data_dir.map_or_else(|| root.join("datasets").join(name), Path::to_owned);
    let held = |set| Contents::Held(Box::new(set));
    let contents = match recipe.dataset {
        DatasetName::Digits => held(data_cifar::load_digits(&fetched("digits"))?),
        DatasetName::Cifar10 => held(data_cifar::load_cifar10(&fetched("cifar10"))?),
        DatasetName::Cifar100 => held(data_cifar::load_cifar100(&fetched("cifar100"))?),
        DatasetName::Cifar100Coarse => {
            held(data_cifar::load_cifar100(&fetched("cifar100"))?.with_coarse_labels()?)
        }
        DatasetName::Folder => folder(recipe, data_dir, stream, tell)?,
    };
    let (class_names, sha256, skipped, len, own_validation) = match &contents {
        Contents::Held(set) => (
            set.class_names.clone(),
            set.sha256.clone(),
            set.skipped.clone(),
            set.train.len(),
            set.validation,
        ),
        Contents::Streamed(index) => (
            index.folder().class_names().to_vec(),
            index.sha256().to_owned(),
            index.skipped(),
            index.train_len(),
            index.validation(),
        ),
    };
    let (train, validation) = split(&recipe.data, len, own_validation)?;
    let name = recipe.dataset.to_string();
    Ok(Source { name, class_names, sha256, skipped, train, validation, contents })
}

/// How many classes a data set has, where that is known without reading it.
pub fn class_count(name: DatasetName) -> Option<i64> {
    match name {
        DatasetName::Digits | DatasetName::Cifar10 => Some(10),
        DatasetName::Cifar100 => Some(100),
        DatasetName::Cifar100Coarse => Some(20),
        DatasetName::Folder => None,
    }
}

impl Source {
    /// The training images, those held out included, and the test images, on or for a device.
    ///
    /// # Errors
    /// libtorch's refusal, mostly for want of memory.
    pub fn sets(&self, device: Device) -> Result<(ImageSet, ImageSet), Error> {
        Ok(match &self.contents {
            Contents::Held(set) => (
                ImageSet::Resident(DeviceSet::new(&set.train, device)?),
                ImageSet::Resident(DeviceSet::new(&set.test, device)?),
            ),
            Contents::Streamed(index) => {
                let part =
                    |part| index.clone().stream(part, device, threads(), PREFETCH).map(ImageSet::Streamed);
                (part(data_cifar::Part::Train)?, part(data_cifar::Part::Test)?)
            }
        })
    }

    /// The class of each image, by position: of the training images, those held out included, and of the test
    /// images.
    pub fn labels(&self) -> (Vec<u16>, Vec<u16>) {
        match &self.contents {
            Contents::Held(set) => (set.train.labels.to_vec(), set.test.labels.to_vec()),
            Contents::Streamed(index) => {
                (index.labels(data_cifar::Part::Train), index.labels(data_cifar::Part::Test))
            }
        }
    }

    /// What a recipe normalises by, on the scale 0 to 255.
    ///
    /// # Errors
    /// No image to take statistics of.
    pub fn normalization(&self, recipe: &DataRecipe) -> Result<ChannelStats, Error> {
        Ok(match (recipe.normalize, recipe.mean, recipe.std) {
            (Normalize::Unit, ..) => ChannelStats::UNIT,
            (Normalize::Adapt, ..) => self.channel_stats()?,
            (Normalize::Fixed, Some(mean), Some(std)) => ChannelStats::from_unit_scale(mean, std),
            (Normalize::Fixed, ..) => {
                return Err(Error::Usage(
                    "data.normalize = \"fixed\" needs data.mean and data.std".to_owned(),
                ));
            }
        })
    }

    /// Mean and standard deviation per channel of all training images, those held out included, 0 to 255.
    ///
    /// # Errors
    /// No image, or a picture that can no longer be read.
    pub fn channel_stats(&self) -> Result<ChannelStats, Error> {
        if let Contents::Held(set) = &self.contents {
            return Ok(channel_stats(&set.train)?);
        }
        let (train, _) = self.sets(Device::Cpu)?;
        let order: Vec<i64> = (0..train.len() as i64).collect();
        let (mut sums, mut squares, mut count) = ([0; 3], [0; 3], 0);
        for batch in train.batches(&order, 64)? {
            let images = batch?.images.f_to_kind(Kind::Int64)?;
            count += images.numel() as u64 / 3;
            for (totals, values) in [(&mut sums, &images), (&mut squares, &images.f_mul(&images)?)] {
                let part = values.f_sum_dim_intlist([0i64, 2, 3].as_slice(), false, Kind::Int64)?;
                for (total, part) in totals.iter_mut().zip(Vec::<i64>::try_from(part)?) {
                    *total += part as u64;
                }
            }
        }
        Ok(ChannelStats::from_sums(sums, squares, count))
    }
}

/// Opens a folder of pictures.
fn folder(
    recipe: &Recipe,
    data_dir: Option<&Path>,
    stream: bool,
    tell: &mut dyn FnMut(&str),
) -> Result<Contents, Error> {
    let missing = |what: &str| Error::Usage(format!("dataset = \"folder\" needs {what}"));
    let root = data_dir.ok_or_else(|| missing("--data-dir, the directory of the pictures"))?;
    let options = recipe.folder.as_ref().ok_or_else(|| missing("a table [folder] in the recipe"))?;
    let cache = run_record::cache_dir().ok_or_else(|| missing("HOME or COMPACT_VISION_CACHE to be set"))?;
    let cache = Some(cache.join("folders"));

    let folder = list_folder(root, &folder_options(options))?;
    let passed_over: Vec<String> = folder.ignored().iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    if !passed_over.is_empty() {
        tell(&format!("{}: files passed over: {}", root.display(), passed_over.join(", ")));
    }
    let half = environment::memory().map(|bytes| bytes / 2);
    let stream = stream || half.is_some_and(|half| folder.bytes() > half);
    let mut tenths = 0;
    let mut progress = |progress: FolderProgress<'_>| match progress {
        FolderProgress::Note(note) => tell(note),
        FolderProgress::Decoded { done, total } => {
            // A line for every tenth, and none for what is done at once.
            if total > 2000 && done * 10 / total > tenths {
                tenths = done * 10 / total;
                tell(&format!("{}: {done} of {total} pictures decoded", root.display()));
            }
        }
    };
    Ok(if stream {
        Contents::Streamed(Box::new(folder.index(cache.as_deref(), threads(), &mut progress)?))
    } else {
        Contents::Held(Box::new(folder.load(cache.as_deref(), threads(), &mut progress)?))
    })
}

fn folder_options(recipe: &FolderRecipe) -> FolderOptions {
    use data_cifar::{CropMode, OnError};
    FolderOptions {
        side: recipe.stored_size,
        crop_mode: match recipe.crop_mode {
            run_record::CropMode::Center => CropMode::Center,
            run_record::CropMode::Squash => CropMode::Squash,
            run_record::CropMode::Border => CropMode::Border { fill: [0; 3] },
        },
        filter: filter(recipe.interpolation),
        on_error: match recipe.on_error {
            run_record::OnError::Skip => OnError::Skip,
            run_record::OnError::Fail => OnError::Fail,
        },
        test_fraction: recipe.test_fraction.unwrap_or_default(),
    }
}

/// Threads that decode pictures: as many as there are cores.
fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// The parts of the training set by position: (train, validation). `own` images at its end are held out by
/// the set itself.
///
/// # Errors
/// More held out than there is, or two rules for it.
fn split(recipe: &DataRecipe, images: usize, own: usize) -> Result<(Range<usize>, Range<usize>), Error> {
    let wrong = |key: &str, problem: &str| Error::Usage(format!("data.{key}: {problem}"));
    let from = match (recipe.validation_from, own) {
        (ValidationFrom::Folder, 0) => return Err(wrong("validation_from", "there is no folder val")),
        (ValidationFrom::Folder, own) => return Ok((0..images - own, images - own..images)),
        (_, 1..) => {
            let problem =
                "there is a folder val; say \"folder\", and how many images are held out is decided by it";
            return Err(wrong("validation_from", problem));
        }
        (ValidationFrom::Start, 0) => data_cifar::ValidationFrom::Start,
        (ValidationFrom::End, 0) => data_cifar::ValidationFrom::End,
    };
    let (key, count) = match (recipe.validation_count, recipe.validation_fraction) {
        (Some(count), _) => (format!("validation_count = {count}"), count),
        // Of very few images one at least, or nothing could be validated.
        (None, share) => {
            let share = share.unwrap_or_default();
            let count = (images as f64 * share).round() as usize;
            (format!("validation_fraction = {share}"), count.max(1))
        }
    };
    data_cifar::split(images, from, count).map_err(|error| wrong(&key, &error.to_string()))
}

/// One part of a data set on the device: which images of `set`, in order.
#[derive(Debug, Clone)]
pub struct Part<'a> {
    /// All images the part indexes into.
    pub set: &'a ImageSet,
    /// Positions of the part's images.
    pub range: Range<usize>,
}

impl Part<'_> {
    /// The part's positions in file order.
    pub fn indices(&self) -> Vec<i64> {
        (self.range.start as i64..self.range.end as i64).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(sets: &[&str]) -> Recipe {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        crate::recipes::from_preset(&root, "reference", "patchconvnet_reference", &sets).unwrap().recipe
    }

    #[test]
    fn validation_is_cut_by_count_share_or_folder_and_by_one_of_them_only() {
        let cut = |sets: &[&str], images, own| split(&recipe(sets).data, images, own);
        assert_eq!(cut(&[], 50_000, 0).unwrap(), (0..40_000, 40_000..50_000));
        let share = ["data.validation_count=", "data.validation_fraction=0.1", "data.validation_from=start"];
        assert_eq!(cut(&share, 1234, 0).unwrap(), (123..1234, 0..123));
        assert_eq!(cut(&share, 3, 0).unwrap(), (1..3, 0..1));
        let too_many = cut(&[], 10_000, 0).unwrap_err().to_string();
        assert!(too_many.contains("data.validation_count") && too_many.contains("10000"), "{too_many}");
        let two_rules = cut(&[], 50_000, 7).unwrap_err().to_string();
        assert!(two_rules.contains("there is a folder val"), "{two_rules}");
        let mut folder = recipe(&[]).data;
        (folder.validation_from, folder.validation_count) = (ValidationFrom::Folder, None);
        assert_eq!(split(&folder, 100, 7).unwrap(), (0..93, 93..100));
        assert!(split(&folder, 100, 0).unwrap_err().to_string().contains("there is no folder val"));
    }
}
