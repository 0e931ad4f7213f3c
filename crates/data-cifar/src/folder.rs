//! Folders of pictures: which files belong to which class and part, and in what order.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use run_record::{FolderRecipe, OnError};
use sha2::{Digest, Sha256};
use unicode_normalization::UnicodeNormalization;

use crate::decode::FORMATS;
use crate::error::DataError;
use crate::host::{Skipped, hex};
use crate::layout::{
    Layout, Listing, PartDirectory, Place, extension, is_picture, layout, problem, read_directory, some,
};
use crate::rng::{keyed_rng, shuffle};

/// Bytes of one image.
pub(crate) fn image_bytes(options: &FolderRecipe) -> usize {
    3 * options.stored_size as usize * options.stored_size as usize
}

/// A picture file that was found, not yet opened.
#[derive(Debug, Clone)]
pub(crate) struct PictureFile {
    /// Below the root, with `/` between names.
    pub path: String,
    pub place: Place,
    pub label: u16,
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: i128,
}

/// A folder of pictures whose files are listed and not yet opened; [`list_folder`] makes one, [`Folder::load`]
/// or [`Folder::index`] decodes it.
#[derive(Debug, Clone)]
pub struct Folder {
    pub(crate) root: PathBuf,
    pub(crate) options: FolderRecipe,
    pub(crate) class_names: Vec<String>,
    /// Whether the classes were given and not found.
    pub(crate) classes_given: bool,
    /// By place, class and path.
    pub(crate) files: Vec<PictureFile>,
    /// Pictures that are left out for their names.
    pub(crate) unnameable: Vec<Skipped>,
    has_test: bool,
    ignored: BTreeMap<String, usize>,
    notes: Vec<String>,
}

/// The class of each image by part, in the order of the images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartLabels {
    /// Of the training images, those of the folder's own validation part at their end.
    pub train: Vec<u16>,
    /// How many of the last of them come from there.
    pub validation: usize,
    /// Of the test images.
    pub test: Vec<u16>,
}

/// Lists the pictures of a folder: its files whose names end as those of JPEG, PNG, WebP, BMP, GIF and TIFF do.
///
/// `root` holds one directory per class with its pictures (`ROOT/CLASS/*`), or directories named after the parts train,
/// test and validation with the classes in each (`ROOT/train/CLASS/*`), in any spelling people use (`Training_Set`,
/// `valid`, `test2017`). If all that `root` holds is one directory of directories, as an unpacked archive does, that one
/// is taken. Directories inside a class belong to it; hidden files and the folders that systems leave (`@eaDir`,
/// `lost+found`, …) do not. A part without a picture in a class, such as a directory of unlabelled test pictures, is no
/// part.
///
/// The classes are the training part's directories by name, sorted by their bytes, or `classes`, if the folder is
/// to be labelled for a network that knows those; then it needs no training part, and need not hold all of them.
///
/// The images of a part are shuffled, always alike, such that every stretch of them holds the classes in
/// proportion: the r-th of a class's n images, in an order drawn for the class, takes the position
/// (r + 1/2)/n, and equal positions go by class. Without a test part, the last training images, `test_fraction` of
/// all, become the test part; images of a validation part are appended to the training ones. What the order of a
/// directory itself is does not matter.
///
/// # Errors
/// When a directory is missing or cannot be read, when there are fewer than two classes, classes without
/// pictures or of a part other than training that are no classes, names that are not UTF-8 (unless such pictures are
/// to be skipped), a link back to a directory it lies in, or an option out of range.
pub fn list_folder(
    root: &Path,
    options: &FolderRecipe,
    classes: Option<&[String]>,
) -> Result<Folder, DataError> {
    options.validate()?;
    let root = fs::canonicalize(root).map_err(|source| match source.kind() {
        ErrorKind::NotFound => {
            DataError::Missing { file: root.to_path_buf(), hint: "it must be a folder of pictures".into() }
        }
        _ => DataError::Read { file: root.to_path_buf(), source },
    })?;
    let Layout { parts, beside, notes } = layout(&root)?;
    let mut folder = Folder {
        root,
        options: *options,
        class_names: classes.unwrap_or_default().to_vec(),
        classes_given: classes.is_some(),
        files: Vec::new(),
        unnameable: Vec::new(),
        has_test: false,
        ignored: BTreeMap::new(),
        notes,
    };
    if let Some(listing) = &beside {
        folder.count_strays(listing);
    }
    match (parts.first(), classes) {
        (Some(PartDirectory { place: Place::Train, path, listing, .. }), None) => {
            folder.find_classes(path, listing)?;
        }
        (Some(other), None) => {
            let text = format!("is there and no train beside it; {} holds no train", folder.root.display());
            return Err(problem(&other.path, text));
        }
        (_, Some(_)) => {}
        (None, None) => return Err(problem(&folder.root, "holds no class directories".into())),
    }
    for part in &parts {
        folder.add_part(part)?;
    }
    if folder.is_empty() {
        return Err(problem(&folder.root, format!("holds no picture of any class; read are {FORMATS}")));
    }
    if options.on_error == OnError::Fail
        && let Some(skipped) = folder.unnameable.first()
    {
        return Err(problem(&folder.root.join(&skipped.file), skipped.reason.clone()));
    }
    Ok(folder)
}

impl Folder {
    /// The folder with all links resolved.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Name of each class, in label order.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// The number of picture files, those that cannot be decoded included.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// `true` without files, which [`list_folder`] does not allow.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Bytes of all images once decoded, to decide between [`Folder::load`] and streaming.
    pub fn bytes(&self) -> u64 {
        self.len() as u64 * image_bytes(&self.options) as u64
    }

    /// Whether the folder has a test part of its own.
    pub fn has_test(&self) -> bool {
        self.has_test
    }

    /// How many files were passed over, by their extension in lower case; `hidden` for names that begin with a
    /// dot, `none` for names without extension, `outside a class` for pictures that lie beside the classes, `folder X`
    /// for a directory of the system.
    pub fn ignored(&self) -> &BTreeMap<String, usize> {
        &self.ignored
    }

    /// What a person should know of how the folder was understood.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The labels the parts have if every file can be decoded.
    ///
    /// # Errors
    /// Those of the division into parts: nothing left to train on.
    pub fn expected_labels(&self) -> Result<PartLabels, DataError> {
        Ok(self.labels(&self.arrange(&vec![true; self.len()])?))
    }

    pub(crate) fn labels(&self, Arrangement { train, validation, test }: &Arrangement) -> PartLabels {
        let of = |files: &[usize]| files.iter().map(|&file| self.files[file].label).collect();
        PartLabels { train: of(train), validation: *validation, test: of(test) }
    }

    /// SHA-256 of path, size and time of change of every file, and the paths of those left out: whether the folder is still the same.
    pub(crate) fn listing_digest(&self) -> String {
        let mut digest = Sha256::new();
        for file in &self.files {
            digest.update((file.path.len() as u64).to_le_bytes());
            digest.update(&file.path);
            digest.update(file.bytes.to_le_bytes());
            digest.update(file.modified.to_le_bytes());
        }
        for skipped in &self.unnameable {
            digest.update(&skipped.file);
            digest.update([0]); // in no path
        }
        hex(&digest.finalize())
    }

    /// Takes the directories of the training part for the classes.
    fn find_classes(&mut self, directory: &Path, listing: &Listing) -> Result<(), DataError> {
        self.class_names.clone_from(&listing.directories);
        let found = listing.directories.len();
        if !(2..=1 << 16).contains(&found) {
            let what = match found {
                0 => "no class directories".to_owned(),
                1 => format!("only one class directory, {}", listing.directories[0]),
                _ => format!("{found} class directories"),
            };
            let text = format!("holds {what}; it must hold 2 to 65536, with the pictures in them");
            return Err(problem(directory, text));
        }
        let mut seen = HashMap::new();
        for name in &self.class_names {
            if let Some(other) = seen.insert(look(name), name) {
                let (one, two) = (spelt(other), spelt(name));
                if other.to_lowercase() == name.to_lowercase() {
                    self.notes.push(format!("{one} and {two} are two classes"));
                } else {
                    let text = format!("holds two classes that look the same, {one} and {two}; rename one");
                    return Err(problem(directory, text));
                }
            }
        }
        Ok(())
    }

    /// Lists the pictures of a part. One that has none is no part.
    fn add_part(&mut self, part: &PartDirectory) -> Result<(), DataError> {
        let PartDirectory { place, path, prefix, listing } = part;
        self.count_strays(listing);
        let labels: HashMap<String, usize> = self.class_names.iter().cloned().zip(0..).collect();
        let (before, mut without, mut unknown) = (self.files.len(), Vec::new(), Vec::new());
        let mut passed_over_here = listing.passed_over.clone();
        for class in &listing.directories {
            let Some(&label) = labels.get(class) else {
                unknown.push(self.unknown(class));
                continue;
            };
            let first = self.files.len();
            let mut walk = Walk {
                folder: self,
                place: *place,
                label: label as u16,
                ancestors: Vec::new(),
                passed_over: BTreeMap::new(),
            };
            walk.directory(&path.join(class), &format!("{prefix}{class}/"))?;
            let passed_over = walk.passed_over;
            if self.files.len() == first {
                without.push(format!("{class}{}", in_brackets(&passed_over)));
            }
            add_counts(&mut self.ignored, &passed_over);
            add_counts(&mut passed_over_here, &passed_over);
            self.files[first..].sort_by(|a, b| a.path.cmp(&b.path));
        }
        if !unknown.is_empty() {
            let text = format!(
                "holds {} that {} not; the classes are {}",
                some(&unknown),
                if self.classes_given { "the network knows" } else { "the training part has" },
                some(&self.class_names)
            );
            return Err(problem(path, text));
        }
        if self.files.len() > before {
            self.has_test |= *place == Place::Test;
        } else if *place != Place::Train {
            let what = match listing.directories.is_empty() {
                true if listing.has_pictures() => {
                    "holds pictures without class directories, so without labels"
                }
                true => "is empty",
                false => "holds no picture in its classes",
            };
            let formats = in_brackets(&passed_over_here);
            self.notes.push(format!("{prefix} {what}{formats}: it is no part of the data set"));
            return Ok(());
        }
        if *place == Place::Train && !self.classes_given && !without.is_empty() {
            let text = format!("holds classes without pictures: {}; read are {FORMATS}", some(&without));
            return Err(problem(path, text));
        }
        Ok(())
    }

    /// A directory that is no class, with the class that it may be meant to be.
    fn unknown(&self, directory: &str) -> String {
        match self.class_names.iter().find(|class| look(class) == look(directory)) {
            Some(class) => format!("{} (not the same as {})", spelt(directory), spelt(class)),
            None => directory.to_owned(),
        }
    }

    fn count_strays(&mut self, listing: &Listing) {
        add_counts(&mut self.ignored, &listing.passed_over);
        let unnameable = listing.unnameable.iter().map(|_| "outside a class".to_owned());
        let files = listing.files.iter().map(|name| match is_picture(name) {
            true => "outside a class".to_owned(),
            false => extension(name),
        });
        for kind in files.chain(unnameable) {
            *self.ignored.entry(kind).or_default() += 1;
        }
    }

    /// The order of the images whose files are `decoded`, as indices of `files`.
    pub(crate) fn arrange(&self, decoded: &[bool]) -> Result<Arrangement, DataError> {
        let mut of_class = vec![0; self.class_names.len()];
        let mut places = [Vec::new(), Vec::new(), Vec::new()];
        for (index, file) in self.files.iter().enumerate().filter(|(index, _)| decoded[*index]) {
            places[file.place as usize].push(index);
            if file.place == Place::Train {
                of_class[usize::from(file.label)] += 1;
            }
        }
        if let Some(class) = of_class.iter().position(|&count| count == 0)
            && !self.classes_given
        {
            let name = &self.class_names[class];
            return Err(problem(&self.root, format!("no picture of class {name} could be decoded")));
        }
        let labels: Vec<u16> = self.files.iter().map(|file| file.label).collect();
        let [mut train, validation, mut test] = places.map(|place| stratified(&place, &labels));
        if let (false, Some(share), n @ 1..) = (self.has_test, self.options.test_fraction, train.len()) {
            let count = ((n as f64 * share).round() as usize).max(1);
            if count >= n {
                let text = format!(
                    "cannot cut {count} of {n} images off for testing: none would be left to train on"
                );
                return Err(problem(&self.root, text));
            }
            test = train.split_off(n - count);
        }
        let validation_count = validation.len();
        train.extend(validation);
        Ok(Arrangement { train, validation: validation_count, test })
    }
}

fn add_counts(total: &mut BTreeMap<String, usize>, counts: &BTreeMap<String, usize>) {
    for (kind, count) in counts {
        *total.entry(kind.clone()).or_default() += count;
    }
}

/// What a person sees of a name, more or less: names that differ and look alike have this in common.
fn look(name: &str) -> String {
    name.nfc().collect::<String>().to_lowercase()
}

/// A name with its characters beyond ASCII by number.
fn spelt(name: &str) -> String {
    let escaped =
        name.chars().map(|c| if c.is_ascii() { c.to_string() } else { c.escape_unicode().to_string() });
    format!("\"{}\"", escaped.collect::<String>())
}

/// ` (3 heic, 1 txt passed over)`, or nothing.
fn in_brackets(passed_over: &BTreeMap<String, usize>) -> String {
    if passed_over.is_empty() {
        return String::new();
    }
    let counts: Vec<String> = passed_over.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    format!(" ({} passed over)", counts.join(", "))
}

/// The images of each part, as indices of a folder's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arrangement {
    pub train: Vec<usize>,
    /// How many at the end of `train` come from the validation directory.
    pub validation: usize,
    pub test: Vec<usize>,
}

/// The files shuffled within their classes and then merged in proportion; see [`list_folder`].
fn stratified(files: &[usize], labels: &[u16]) -> Vec<usize> {
    let mut classes = BTreeMap::<u16, Vec<usize>>::new();
    for &file in files {
        classes.entry(labels[file]).or_default().push(file);
    }
    // (2r + 1, n, class, file): the position is the first over twice the second.
    let mut placed = Vec::with_capacity(files.len());
    for (class, mut members) in classes {
        let mut rng = keyed_rng(0, "folder", class.into(), 0);
        shuffle(&mut rng, &mut members);
        let count = members.len() as u64;
        placed.extend(members.into_iter().zip(0u64..).map(|(file, rank)| (2 * rank + 1, count, class, file)));
    }
    placed.sort_by(|a, b| (a.0 * b.1).cmp(&(b.0 * a.1)).then(a.2.cmp(&b.2)));
    placed.into_iter().map(|(.., file)| file).collect()
}

/// On the way through the directories of one class.
struct Walk<'a> {
    folder: &'a mut Folder,
    place: Place,
    label: u16,
    /// The directories entered and not left, links resolved.
    ancestors: Vec<PathBuf>,
    /// What is no picture, by extension.
    passed_over: BTreeMap<String, usize>,
}

impl Walk<'_> {
    fn directory(&mut self, directory: &Path, prefix: &str) -> Result<(), DataError> {
        let resolved = fs::canonicalize(directory)
            .map_err(|source| DataError::Read { file: directory.to_path_buf(), source })?;
        if self.ancestors.contains(&resolved) || self.folder.root.starts_with(&resolved) {
            let text = format!("is a link to {}, which it lies in", resolved.display());
            return Err(problem(directory, text));
        }
        self.ancestors.push(resolved);
        let listing = read_directory(directory)?;
        add_counts(&mut self.passed_over, &listing.passed_over);
        self.folder.unnameable.extend(listing.unnameable.into_iter().map(|name| Skipped {
            file: format!("{prefix}{name}"),
            reason: "its name is not UTF-8; rename it".to_owned(),
        }));
        for name in &listing.files {
            let metadata = fs::metadata(directory.join(name)).ok();
            // Not a pipe, which would be waited for.
            let is_file = metadata.as_ref().is_none_or(fs::Metadata::is_file);
            if !is_file || !is_picture(name) {
                *self.passed_over.entry(extension(name)).or_default() += 1;
                continue;
            }
            self.folder.files.push(PictureFile {
                path: format!("{prefix}{name}"),
                place: self.place,
                label: self.label,
                bytes: metadata.as_ref().map_or(0, fs::Metadata::len),
                modified: metadata.and_then(|metadata| metadata.modified().ok()).map_or(0, nanoseconds),
            });
        }
        for name in &listing.directories {
            self.directory(&directory.join(name), &format!("{prefix}{name}/"))?;
        }
        self.ancestors.pop();
        Ok(())
    }
}

fn nanoseconds(time: SystemTime) -> i128 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_nanos().cast_signed(),
        Err(before) => -before.duration().as_nanos().cast_signed(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Four of one class and two of another by hand: positions 1/8, 3/8, 5/8, 7/8 and 1/4, 3/4.
    #[test]
    fn classes_are_merged_in_proportion() {
        let labels = [0, 0, 0, 0, 1, 1];
        let order = stratified(&[0, 1, 2, 3, 4, 5], &labels);
        assert_eq!(order.iter().map(|&file| labels[file]).collect::<Vec<_>>(), [0, 1, 0, 0, 1, 0]);
        let twice = stratified(&[0, 1, 2, 4, 5], &[1, 1, 1, 9, 0, 0]);
        assert_eq!(twice.iter().map(|&file| [1, 1, 1, 9, 0, 0][file]).collect::<Vec<_>>(), [1, 0, 1, 0, 1]);
    }

    /// Every result on a folder rests on it. Computed from the definitions by a separate program.
    #[test]
    fn the_order_never_changes() {
        let files: Vec<usize> = (0..12).collect();
        let labels = [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1];
        assert_eq!(stratified(&files, &labels), [5, 8, 1, 9, 3, 11, 0, 10, 2, 7, 4, 6]);
    }

    proptest! {
        #[test]
        fn every_stretch_has_the_classes_in_proportion(labels in prop::collection::vec(0u16..5, 1..300), cut in any::<prop::sample::Index>()) {
            let n = labels.len();
            let order = stratified(&(0..n).collect::<Vec<_>>(), &labels);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            let tail = &order[cut.index(n)..];
            for class in 0..5 {
                let of_class = labels.iter().filter(|&&label| label == class).count();
                let found = tail.iter().filter(|&&file| labels[file] == class).count();
                let expected = of_class as f64 * tail.len() as f64 / n as f64;
                // Each class is within one half of its share at every position on [0, 1], and the number of images
                // up to a position within one half per class.
                prop_assert!((found as f64 - expected).abs() <= 0.5 + 2.5, "{} of {}", found, expected);
            }
        }
    }
}
