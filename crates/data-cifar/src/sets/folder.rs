//! Folders of pictures: which files belong to which class and part, and in what order.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use run_record::{FolderRecipe, OnError};
use sha2::{Digest, Sha256};
use unicode_normalization::UnicodeNormalization;

use crate::error::DataError;
use crate::sets::dataset::Skipped;
use crate::sets::decode::FORMATS;
use crate::sets::layout::{
    Layout, Listing, Part, PartDirectory, extension, is_picture, layout, problem, read_directory, some,
};

/// Bytes of one image.
pub(crate) fn image_bytes(options: &FolderRecipe) -> usize {
    3 * options.stored_size as usize * options.stored_size as usize
}

/// A picture file that was found, not yet opened.
#[derive(Debug, Clone)]
pub(crate) struct PictureFile {
    /// Below the root, with `/` between names.
    pub path: String,
    pub part: Part,
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
    /// Bytes that decoding a picture may take.
    pub(crate) memory: u64,
    pub(crate) class_names: Vec<String>,
    /// Whether the classes were given and not found.
    pub(crate) classes_given: bool,
    /// By part, class and path.
    pub(crate) files: Vec<PictureFile>,
    /// Pictures that are left out for their names.
    pub(crate) unnameable: Vec<Skipped>,
    pub(crate) has_test: bool,
    ignored: BTreeMap<String, usize>,
    notes: Vec<String>,
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
        memory: u64::MAX,
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
        (Some(PartDirectory { part: Part::Train, path, listing, .. }), None) => {
            folder.find_classes(path, listing)?;
        }
        (Some(other), None) => {
            let text = format!("is there and no train beside it; {} holds no train", folder.root.display());
            return Err(problem(&other.path, text));
        }
        (_, Some(_)) => {}
        (None, None) => return Err(problem(&folder.root, "holds no class directories".into())),
    }
    for directory in &parts {
        folder.add_part(directory)?;
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
    /// The same folder, of which decoding a picture may take so many bytes of memory; at first there is no limit. A larger
    /// picture is an error even where those that cannot be decoded are left out: what a data set holds does not depend on
    /// the machine.
    pub fn with_memory(self, bytes: u64) -> Self {
        Self { memory: bytes, ..self }
    }

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
        base16ct::lower::encode_string(&digest.finalize())
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
    fn add_part(&mut self, directory: &PartDirectory) -> Result<(), DataError> {
        let PartDirectory { part, path, prefix, listing } = directory;
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
                part: *part,
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
            self.has_test |= *part == Part::Test;
        } else if *part != Part::Train {
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
        if *part == Part::Train && !self.classes_given && !without.is_empty() {
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

/// On the way through the directories of one class.
struct Walk<'a> {
    folder: &'a mut Folder,
    part: Part,
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
                part: self.part,
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
