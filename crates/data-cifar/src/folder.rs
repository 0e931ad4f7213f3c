//! Folders of pictures: which files belong to which class and part, and in what order.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use crate::decode::EXTENSIONS;
use crate::error::DataError;
use crate::fit::{CropMode, check};
use crate::host::hex;
use crate::ops::Filter;
use crate::rng::{keyed_rng, shuffle};

const VALIDATION: [&str; 3] = ["val", "valid", "validation"];

/// What to do about a picture that cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnError {
    /// Leave it out and say so in [`Dataset::skipped`](crate::Dataset::skipped).
    Skip,
    /// Stop; the error is that of the first such file by name.
    Fail,
}

/// How the pictures of a folder become a data set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FolderOptions {
    /// Width and height of every image, in pixels, 1 to 4096.
    pub side: u32,
    /// How a picture becomes square.
    pub crop_mode: CropMode,
    /// How it is resized: [`Filter::Bilinear`] or [`Filter::Bicubic`].
    pub filter: Filter,
    /// What to do about a picture that cannot be decoded.
    pub on_error: OnError,
    /// The share of the images of a folder without `test` that is cut off for testing, from 0 to below 1, rounded
    /// to whole images; 0 where there is a `test`.
    pub test_fraction: f64,
}

impl FolderOptions {
    /// Bytes of one image.
    pub(crate) fn image_bytes(&self) -> usize {
        3 * self.side as usize * self.side as usize
    }

    /// The options in words that no other options have; part of a cache's key.
    pub(crate) fn describe(&self) -> String {
        let crop = match self.crop_mode {
            CropMode::Center => "center".to_owned(),
            CropMode::Squash => "squash".to_owned(),
            CropMode::Border { fill: [red, green, blue] } => format!("border {red} {green} {blue}"),
        };
        let filter = match self.filter {
            Filter::Nearest => "nearest",
            Filter::Bilinear => "bilinear",
            Filter::Bicubic => "bicubic",
        };
        let on_error = match self.on_error {
            OnError::Skip => "skip",
            OnError::Fail => "fail",
        };
        let (side, test) = (self.side, self.test_fraction);
        format!("side {side}, {crop}, {filter}, {on_error}, test {test}")
    }
}

/// Where a file lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Train,
    Validation,
    Test,
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
    pub(crate) options: FolderOptions,
    pub(crate) class_names: Vec<String>,
    /// By place, class and path.
    pub(crate) files: Vec<PictureFile>,
    has_test: bool,
    ignored: BTreeMap<String, usize>,
}

/// Lists the pictures (`jpg`, `jpeg`, `png`, `webp`, `bmp`) of a folder.
///
/// `root` holds one directory per class with its pictures (`ROOT/CLASS/*`), or the directories `train` and, if
/// it has them, `test` and `val` (or `valid`, `validation`) with the classes in each (`ROOT/train/CLASS/*`). If
/// all that `root` holds is one directory of directories, as an unpacked archive does, that one is taken.
/// Directories inside a class belong to it. The classes are the training part's directories by name; names
/// are sorted by their bytes everywhere, and what a directory's own order is does not matter.
///
/// The images of a part are shuffled, always alike, such that every stretch of them holds the classes in
/// proportion: the r-th of a class's n images, in an order drawn for the class, takes the position
/// (r + 1/2)/n, and equal positions go by class. Without `test`, the last training images, `test_fraction` of all, become
/// the test part; images of `val` are appended to the training ones.
///
/// # Errors
/// When a directory is missing or cannot be read, when there are fewer than two classes, a class without
/// pictures or one of `test` or `val` that `train` does not have, a name that is not UTF-8, a link back to a
/// directory it lies in, or an option out of range.
pub fn list_folder(root: &Path, options: &FolderOptions) -> Result<Folder, DataError> {
    if !(0.0..1.0).contains(&options.test_fraction) {
        let share = options.test_fraction;
        return Err(DataError::Argument(format!("test_fraction must be from 0 to below 1, not {share}")));
    }
    check(options.side, options.filter)?;
    let root = fs::canonicalize(root).map_err(|source| match source.kind() {
        ErrorKind::NotFound => {
            DataError::Missing { file: root.to_path_buf(), hint: "it must be a folder of pictures".into() }
        }
        _ => DataError::Read { file: root.to_path_buf(), source },
    })?;
    let mut folder = Folder {
        root: root.clone(),
        options: *options,
        class_names: Vec::new(),
        files: Vec::new(),
        has_test: false,
        ignored: BTreeMap::new(),
    };
    let (base, prefix) = unpacked(&root)?;
    let listing = read_directory(&base)?;
    let parts = parts(&base, &listing)?;
    for (place, name) in &parts {
        let directory = base.join(name);
        let classes = read_directory(&directory)?;
        folder.has_test |= *place == Place::Test;
        folder.add_part(*place, &directory, &format!("{prefix}{name}/"), &classes)?;
    }
    if parts.is_empty() {
        folder.add_part(Place::Train, &base, &prefix, &listing)?;
    } else {
        folder.count_strays(&listing);
    }
    if folder.has_test && options.test_fraction > 0.0 {
        let share = options.test_fraction;
        return Err(problem(
            &base,
            format!("has a test folder: test_fraction must be 0 or absent, not {share}"),
        ));
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
        self.len() as u64 * self.options.image_bytes() as u64
    }

    /// How many files were passed over, by their extension in lower case; `hidden` for names that begin with a
    /// dot, `none` for names without extension, `outside a class` for pictures that lie beside the classes.
    pub fn ignored(&self) -> &BTreeMap<String, usize> {
        &self.ignored
    }

    /// SHA-256 of path, size and time of change of every file: whether the folder is still the same.
    pub(crate) fn listing_digest(&self) -> String {
        let mut digest = Sha256::new();
        for file in &self.files {
            digest.update((file.path.len() as u64).to_le_bytes());
            digest.update(&file.path);
            digest.update(file.bytes.to_le_bytes());
            digest.update(file.modified.to_le_bytes());
        }
        hex(&digest.finalize())
    }

    fn add_part(
        &mut self,
        place: Place,
        directory: &Path,
        prefix: &str,
        classes: &Listing,
    ) -> Result<(), DataError> {
        self.count_strays(classes);
        if place == Place::Train {
            self.class_names.clone_from(&classes.directories);
            let found = classes.directories.len();
            if !(2..=1 << 16).contains(&found) {
                let what = match found {
                    0 => "no class directories".to_owned(),
                    1 => format!("only one class directory, {}", classes.directories[0]),
                    _ => format!("{found} class directories"),
                };
                return Err(problem(
                    directory,
                    format!("holds {what}; it must hold 2 to 65536, with the pictures in them"),
                ));
            }
        }
        for class in &classes.directories {
            let path = directory.join(class);
            let Ok(label) = self.class_names.binary_search(class) else {
                return Err(problem(&path, "is a class that the training part does not have".into()));
            };
            let before = self.files.len();
            let mut walk = Walk { folder: self, place, label: label as u16, ancestors: Vec::new() };
            walk.directory(&path, &format!("{prefix}{class}/"))?;
            if self.files.len() == before && place == Place::Train {
                return Err(problem(&path, "is a class without pictures".into()));
            }
            self.files[before..].sort_by(|a, b| a.path.cmp(&b.path));
        }
        Ok(())
    }

    fn count_strays(&mut self, listing: &Listing) {
        self.ignore("hidden", listing.hidden);
        for name in &listing.files {
            let extension = extension(name);
            let is_picture = EXTENSIONS.contains(&extension.as_str());
            self.ignore(if is_picture { "outside a class" } else { &extension }, 1);
        }
    }

    fn ignore(&mut self, kind: &str, count: usize) {
        if count > 0 {
            *self.ignored.entry(kind.to_owned()).or_default() += count;
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
        if let Some(class) = of_class.iter().position(|&count| count == 0) {
            let name = &self.class_names[class];
            return Err(problem(&self.root, format!("no picture of class {name} could be decoded")));
        }
        let labels: Vec<u16> = self.files.iter().map(|file| file.label).collect();
        let [mut train, validation, mut test] = places.map(|place| stratified(&place, &labels));
        if !self.has_test {
            let n = train.len();
            let count = (n as f64 * self.options.test_fraction).round() as usize;
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

/// What a directory holds, each by name.
struct Listing {
    directories: Vec<String>,
    files: Vec<String>,
    hidden: usize,
}

impl Listing {
    fn has_pictures(&self) -> bool {
        self.files.iter().any(|name| EXTENSIONS.contains(&extension(name).as_str()))
    }
}

fn read_directory(directory: &Path) -> Result<Listing, DataError> {
    let unreadable = |source| DataError::Read { file: directory.to_path_buf(), source };
    let mut listing = Listing { directories: Vec::new(), files: Vec::new(), hidden: 0 };
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let Ok(name) = entry.file_name().into_string() else {
            return Err(problem(&entry.path(), "its name is not UTF-8".into()));
        };
        // Through links; where one leads nowhere, opening the file will say so.
        let is_directory = fs::metadata(entry.path()).is_ok_and(|metadata| metadata.is_dir());
        if name.starts_with('.') || name == "__MACOSX" {
            listing.hidden += usize::from(!is_directory);
        } else if is_directory {
            listing.directories.push(name);
        } else {
            listing.files.push(name);
        }
    }
    listing.directories.sort_unstable();
    listing.files.sort_unstable();
    Ok(listing)
}

/// The directory that holds the classes or parts, and its path below the root: the root itself, or the only
/// directory in it where that holds directories and no pictures.
fn unpacked(root: &Path) -> Result<(PathBuf, String), DataError> {
    let listing = read_directory(root)?;
    if let [only] = listing.directories.as_slice()
        && !listing.has_pictures()
        && !is_part(only)
    {
        let inner = root.join(only);
        let inside = read_directory(&inner)?;
        if !inside.directories.is_empty() && !inside.has_pictures() {
            return Ok((inner, format!("{only}/")));
        }
    }
    Ok((root.to_path_buf(), String::new()))
}

fn is_part(name: &str) -> bool {
    name == "train" || name == "test" || VALIDATION.contains(&name)
}

/// The directories of the training, validation and test part, as far as there are; none where the directories
/// are classes. A class may be called `train`: a part is one that holds directories and no pictures, or has
/// none but parts beside it.
fn parts(base: &Path, listing: &Listing) -> Result<Vec<(Place, String)>, DataError> {
    let (parts, others): (Vec<_>, Vec<_>) = listing.directories.iter().partition(|name| is_part(name));
    let mut is_divided = !parts.is_empty() && others.is_empty();
    for name in &parts {
        let inside = read_directory(&base.join(name))?;
        is_divided |= !inside.directories.is_empty() && !inside.has_pictures();
    }
    if !is_divided {
        return Ok(Vec::new());
    }
    if let Some(other) = others.first() {
        let text = format!("holds {} and also {other}; beside train there can be test and val", parts[0]);
        return Err(problem(base, text));
    }
    let mut found = Vec::new();
    for name in parts {
        let place = match name.as_str() {
            "train" => Place::Train,
            "test" => Place::Test,
            _ => Place::Validation,
        };
        if let Some((_, other)) = found.iter().find(|(taken, _)| *taken == place) {
            return Err(problem(base, format!("holds both {other} and {name}")));
        }
        found.push((place, name.clone()));
    }
    found.sort_unstable();
    match found.first() {
        Some((Place::Train, _)) => Ok(found),
        _ => Err(problem(base, format!("holds {} and no train", found[0].1))),
    }
}

/// On the way through the directories of one class.
struct Walk<'a> {
    folder: &'a mut Folder,
    place: Place,
    label: u16,
    /// The directories entered and not left, links resolved.
    ancestors: Vec<PathBuf>,
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
        self.folder.ignore("hidden", listing.hidden);
        for name in &listing.files {
            let extension = extension(name);
            let metadata = fs::metadata(directory.join(name)).ok();
            // Not a pipe, which would be waited for.
            let is_file = metadata.as_ref().is_none_or(fs::Metadata::is_file);
            if !is_file || !EXTENSIONS.contains(&extension.as_str()) {
                self.folder.ignore(&extension, 1);
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

fn extension(name: &str) -> String {
    name.rsplit_once('.').map_or_else(|| "none".to_owned(), |(_, extension)| extension.to_ascii_lowercase())
}

fn problem(folder: &Path, problem: String) -> DataError {
    DataError::Folder { folder: folder.to_path_buf(), problem }
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
