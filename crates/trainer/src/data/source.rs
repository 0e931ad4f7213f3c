//! A recipe's data: found and divided first, decoded later.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use data_cifar::{
    ChannelStats, DataError, Dataset, Folder, FolderIndex, FolderProgress, ImageSet, PartLabels, Skipped,
    list_folder,
};
use run_record::{ClassCounts, DataRecipe, DatasetName, HeldOut, Normalize, Recipe, Validation, first_few};
use tch::Device;

use crate::Error;
use crate::process::memory;
use crate::process::signals::Stop;

/// Decoded batches that wait for the network.
const PREFETCH: usize = 4;

/// What a data set is wanted for.
#[derive(Debug, Clone, Copy)]
pub enum Purpose<'a> {
    /// To learn its classes.
    Training,
    /// To measure a network that knows these classes.
    Evaluation(&'a [String]),
}

/// A data set that was found and divided. The pictures of a folder are not opened yet, everything else is read.
#[derive(Debug)]
pub struct Listing {
    /// The data set.
    pub name: String,
    /// Name of each class, in label order.
    pub class_names: Vec<String>,
    /// How the images are divided.
    pub parts: Parts,
    /// What is worth saying of how they were.
    pub notes: Vec<String>,
    contents: Unread,
}

#[derive(Debug)]
enum Unread {
    Read(Arc<Dataset>),
    Pictures(Box<Folder>),
}

/// How a data set's images are divided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// Positions of the images to learn from.
    pub train: Range<usize>,
    /// Positions of the images held out of the same set.
    pub validation: Range<usize>,
    /// The class of every image.
    pub labels: PartLabels,
}

/// A recipe's data set, read or indexed, and divided; not yet on a device.
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
    /// Whether the data set itself says which images are for testing.
    pub has_test: bool,
    /// How the images are divided.
    pub parts: Parts,
    contents: Contents,
}

#[derive(Debug)]
enum Contents {
    Held(Arc<Dataset>),
    Streamed(Box<FolderIndex>),
}

/// Finds a recipe's data in `data_dir`, or where `cargo xtask fetch` puts it under `root`, and divides it.
///
/// # Errors
/// A missing or damaged file, a folder that is laid out as no data set, or more images held out than there are.
pub fn list(
    recipe: &Recipe,
    root: &Path,
    data_dir: Option<&Path>,
    purpose: Purpose,
) -> Result<Listing, Error> {
    let fetched = |name: &str| data_dir.map_or_else(|| root.join("datasets").join(name), Path::to_owned);
    let set = match recipe.dataset {
        DatasetName::Digits => data_cifar::load_digits(&fetched("digits"))?,
        DatasetName::Cifar10 => data_cifar::load_cifar10(&fetched("cifar10"))?,
        DatasetName::Cifar100 => data_cifar::load_cifar100(&fetched("cifar100"))?,
        DatasetName::Cifar100Coarse => {
            data_cifar::load_cifar100(&fetched("cifar100"))?.with_coarse_labels()?
        }
        DatasetName::Folder => return list_pictures(recipe, data_dir, purpose),
    };
    if let Purpose::Evaluation(classes) = purpose
        && classes != set.class_names
    {
        let text =
            format!("the network knows the classes {}, not those of {}", classes.join(", "), recipe.dataset);
        return Err(DataError::Argument(text).into());
    }
    let labels = PartLabels {
        train: set.train.labels.to_vec(),
        validation: set.validation,
        test: set.test.labels.to_vec(),
    };
    let parts = Parts::new(&recipe.data, labels, purpose, &mut Vec::new())?;
    let (name, class_names) = (recipe.dataset.to_string(), set.class_names.clone());
    Ok(Listing { name, class_names, parts, notes: Vec::new(), contents: Unread::Read(Arc::new(set)) })
}

fn list_pictures(recipe: &Recipe, data_dir: Option<&Path>, purpose: Purpose) -> Result<Listing, Error> {
    let missing = |what: &str| Error::Usage(format!("dataset = \"folder\" needs {what}"));
    let root = data_dir.ok_or_else(|| missing("--data-dir, the directory of the pictures"))?;
    let options = recipe.folder.as_ref().ok_or_else(|| missing("a table [folder] in the recipe"))?;
    let classes = match purpose {
        Purpose::Training => None,
        Purpose::Evaluation(classes) => Some(classes),
    };
    let folder = list_folder(root, options, classes)?.with_memory(memory::most());
    let mut notes = folder.notes().to_vec();
    let passed_over: Vec<String> = folder.ignored().iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    if !passed_over.is_empty() {
        notes.push(format!("passed over: {}", passed_over.join(", ")));
    }
    if let (true, Some(share)) = (folder.has_test(), options.test_fraction) {
        notes.push(format!(
            "the folder has a test part of its own; folder.test_fraction = {share} cuts none off"
        ));
    }
    let parts = Parts::new(&recipe.data, folder.expected_labels()?, purpose, &mut notes)?;
    let notes = notes.into_iter().map(|note| format!("{}: {note}", root.display())).collect();
    let (name, class_names) = (recipe.dataset.to_string(), folder.class_names().to_vec());
    Ok(Listing { name, class_names, parts, notes, contents: Unread::Pictures(Box::new(folder)) })
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

impl Parts {
    /// Divides images as a recipe says, or as a folder does that has a validation part of its own, which is noted. For
    /// an evaluation a training part is not needed.
    fn new(
        recipe: &DataRecipe,
        labels: PartLabels,
        purpose: Purpose,
        notes: &mut Vec<String>,
    ) -> Result<Self, Error> {
        let (images, own) = (labels.train.len(), labels.validation);
        let (train, validation) = match (split(recipe, images, own), purpose) {
            (Err(_), Purpose::Evaluation(_)) => (0..images - own, images - own..images),
            (divided, _) => divided?,
        };
        if own > 0 && recipe.validation != Validation::Folder {
            notes.push(format!(
                "the folder has a validation part of its own ({own} images), which is used; \
                 data.validation = \"folder\" says so in the recipe"
            ));
        }
        Ok(Self { train, validation, labels })
    }

    /// How many images of each class each part has.
    pub fn counts(&self, class_names: &[String]) -> Vec<ClassCounts> {
        let class = |name: &String| ClassCounts { name: name.clone(), train: 0, validation: 0, test: 0 };
        let mut classes: Vec<ClassCounts> = class_names.iter().map(class).collect();
        for (position, label) in self.labels.train.iter().enumerate() {
            let counts = &mut classes[usize::from(*label)];
            if self.train.contains(&position) {
                counts.train += 1;
            } else if self.validation.contains(&position) {
                counts.validation += 1;
            }
        }
        for label in &self.labels.test {
            classes[usize::from(*label)].test += 1;
        }
        classes
    }

    /// What keeps a run from these images, and what is only worth saying.
    pub fn judge(&self, class_names: &[String], recipe: &Recipe) -> (Vec<Error>, Vec<String>) {
        let (mut problems, mut notes) = (Vec::new(), Vec::new());
        let mut refuse = |text: String| problems.push(Error::Data(DataError::Argument(text)));
        let is_folder = recipe.dataset == DatasetName::Folder;
        if self.labels.test.is_empty() {
            let remedy = match is_folder {
                true => {
                    "add a directory test with the classes in it, or set folder.test_fraction to cut some off"
                }
                false => "the data set has no test part",
            };
            refuse(format!("there is no picture to test on; {remedy}"));
        }
        if self.validation.is_empty() {
            refuse("there is no picture to validate on; hold some out with data.validation".into());
        }
        let counts = self.counts(class_names);
        let without = |count: fn(&ClassCounts) -> usize| {
            let without = counts.iter().filter(move |class| count(class) == 0);
            without.map(|class| class.name.clone()).collect::<Vec<_>>()
        };
        let untrained = without(|class| class.train);
        if !untrained.is_empty() {
            let remedy = match is_folder {
                true => {
                    "add pictures, or set lower shares (folder.test_fraction, data.validation.end.fraction)"
                }
                false => "hold fewer out for validation",
            };
            refuse(format!(
                "no picture of {} is left to train on: all are in validation or test; {remedy}",
                classes(&untrained)
            ));
        } else {
            for (part, names) in
                [("validation", without(|class| class.validation)), ("test", without(|class| class.test))]
            {
                if !names.is_empty() && names.len() < counts.len() {
                    notes.push(format!("no picture of {} is in {part}", classes(&names)));
                }
            }
        }
        (problems, notes)
    }
}

/// `class a`, or `2 classes (a, b)`.
fn classes(names: &[String]) -> String {
    match names {
        [only] => format!("class {only}"),
        _ => format!("{} classes ({})", names.len(), first_few(names)),
    }
}

impl Listing {
    /// Bytes of all images in memory.
    pub fn bytes(&self) -> u64 {
        match &self.contents {
            Unread::Read(set) => (set.train.images.len() + set.test.images.len()) as u64,
            Unread::Pictures(folder) => folder.bytes(),
        }
    }

    /// Whether its pictures can be decoded as they are needed.
    pub fn can_stream(&self) -> bool {
        matches!(self.contents, Unread::Pictures(_))
    }

    /// Decodes the pictures of a folder: all into memory, or with `stream` once through, and then again as they are
    /// needed; batches are the same. `tell` is given what is worth saying.
    ///
    /// # Errors
    /// Pictures that cannot be decoded, if the recipe does not leave them out, too little memory, or `stop`.
    pub fn read(
        &self,
        recipe: &Recipe,
        stream: bool,
        stop: &Stop,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Source, Error> {
        let (contents, has_test) = match &self.contents {
            Unread::Read(set) => (Contents::Held(Arc::clone(set)), true),
            Unread::Pictures(folder) => (decode(folder, stream, stop, tell)?, folder.has_test()),
        };
        let (sha256, skipped, labels) = match &contents {
            Contents::Held(set) => {
                let (train, test) = (set.train.labels.to_vec(), set.test.labels.to_vec());
                let labels = PartLabels { train, validation: set.validation, test };
                (set.sha256.clone(), set.skipped.clone(), labels)
            }
            Contents::Streamed(index) => (index.sha256().to_owned(), index.skipped(), index.labels()),
        };
        let parts = match labels == self.parts.labels {
            true => self.parts.clone(),
            // Some could not be decoded. What there is to note was noted when they were listed.
            false => {
                let purpose = Purpose::Evaluation(&self.class_names);
                Parts::new(&recipe.data, labels, purpose, &mut Vec::new())?
            }
        };
        let (name, class_names) = (self.name.clone(), self.class_names.clone());
        Ok(Source { name, class_names, sha256, skipped, has_test, parts, contents })
    }
}

fn decode(folder: &Folder, stream: bool, stop: &Stop, tell: &mut dyn FnMut(&str)) -> Result<Contents, Error> {
    let cache = run_record::cache_dir().map(|cache| cache.join("folders"));
    if cache.is_none() {
        tell("decoded pictures are not kept for the next run: HOME and COMPACT_VISION_CACHE are not set");
    }
    let mut tenths = 0;
    let mut progress = |progress: FolderProgress<'_>| match progress {
        FolderProgress::Note(note) => tell(note),
        FolderProgress::Decoded { done, total } => {
            // A line for every tenth, and none for what is done at once.
            if total > 2000 && done * 10 / total > tenths {
                tenths = done * 10 / total;
                tell(&format!("{}: {done} of {total} pictures decoded", folder.root().display()));
            }
        }
    };
    let (cache, flag) = (cache.as_deref(), stop.flag());
    let contents = if stream {
        folder.index(cache, threads(), flag, &mut progress).map(|index| Contents::Streamed(Box::new(index)))
    } else {
        folder.load(cache, threads(), flag, &mut progress).map(|set| Contents::Held(Arc::new(set)))
    };
    stop.check()?;
    Ok(contents?)
}

impl Source {
    /// The training images, those held out included, and the test images, on or for a device.
    ///
    /// # Errors
    /// libtorch's refusal, mostly for want of memory.
    pub fn sets(&self, device: Device) -> Result<(ImageSet, ImageSet), Error> {
        Ok(match &self.contents {
            Contents::Held(set) => (ImageSet::new(&set.train, device)?, ImageSet::new(&set.test, device)?),
            Contents::Streamed(index) => {
                let (train, test) = index.stream(device, threads(), PREFETCH)?;
                (ImageSet::Streamed(train), ImageSet::Streamed(test))
            }
        })
    }

    /// What a recipe normalises by, on the scale 0 to 255.
    ///
    /// # Errors
    /// No image to take statistics of.
    pub fn normalization(&self, recipe: &DataRecipe) -> Result<ChannelStats, Error> {
        Ok(match recipe.normalize {
            Normalize::Unit => ChannelStats::UNIT,
            Normalize::Adapt => self.channel_stats()?,
            Normalize::Fixed { mean, std } => ChannelStats::from_unit_scale(mean, std),
        })
    }

    /// Mean and standard deviation per channel of all training images, those held out included, 0 to 255.
    ///
    /// # Errors
    /// No image, or a picture that can no longer be read.
    pub fn channel_stats(&self) -> Result<ChannelStats, Error> {
        let (train, _) = self.sets(Device::Cpu)?;
        Ok(train.channel_stats()?)
    }
}

/// Threads that decode pictures: as many as there are cores.
fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// The parts of the training set by position: (train, validation). `own` images at its end are held out by
/// the set itself, whatever the recipe says.
///
/// # Errors
/// More held out than there is, or a folder's part that is not there.
fn split(recipe: &DataRecipe, images: usize, own: usize) -> Result<(Range<usize>, Range<usize>), Error> {
    let (end, held_out) = match (recipe.validation, own) {
        (_, 1..) => return Ok((0..images - own, images - own..images)),
        (Validation::Folder, 0) => {
            return Err(Error::Usage(
                "data.validation: there is no directory val with pictures in classes; \
                 --set data.validation.end.fraction=0.1 holds a tenth of the training pictures out"
                    .to_owned(),
            ));
        }
        (Validation::Start(held_out), 0) => ("start", held_out),
        (Validation::End(held_out), 0) => ("end", held_out),
    };
    let (key, count) = match held_out {
        HeldOut::Count(count) => (format!("count = {count}"), count),
        // Of very few images one at least, or nothing could be validated.
        HeldOut::Fraction(share) => {
            (format!("fraction = {share}"), ((images as f64 * share).round() as usize).max(1))
        }
    };
    match end {
        _ if count >= images => Err(Error::Usage(format!(
            "data.validation.{end}.{key}: cannot hold out {count} of {images} images for validation: none would be \
             left to train on"
        ))),
        "start" => Ok((count..images, 0..count)),
        _ => Ok((0..images - count, images - count..images)),
    }
}

/// One part of a data set on the device: which images of `set`, in order.
#[derive(Debug, Clone)]
pub struct Subset<'a> {
    /// All images the part indexes into.
    pub set: &'a ImageSet,
    /// Positions of the part's images.
    pub range: Range<usize>,
}

impl Subset<'_> {
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
        crate::run::recipes::from_preset(&root, "reference", "patchconvnet_reference", &sets).unwrap().recipe
    }

    #[test]
    fn validation_is_cut_by_count_share_or_folder_and_by_one_of_them_only() {
        let cut = |sets: &[&str], images, own| split(&recipe(sets).data, images, own);
        assert_eq!(cut(&[], 50_000, 0).unwrap(), (0..40_000, 40_000..50_000));
        let share = ["data.validation.end=", "data.validation.start.fraction=0.1"];
        assert_eq!(cut(&share, 1234, 0).unwrap(), (123..1234, 0..123));
        assert_eq!(cut(&share, 3, 0).unwrap(), (1..3, 0..1));
        let too_many = cut(&[], 10_000, 0).unwrap_err().to_string();
        assert!(
            too_many.starts_with("data.validation.end.count = 10000: cannot hold out 10000 of"),
            "{too_many}"
        );
        assert_eq!(cut(&[], 50_000, 7).unwrap(), (0..49_993, 49_993..50_000));
        let mut folder = recipe(&[]).data;
        folder.validation = Validation::Folder;
        assert_eq!(split(&folder, 100, 7).unwrap(), (0..93, 93..100));
        assert!(split(&folder, 100, 0).unwrap_err().to_string().contains("there is no directory val"));
    }
}
