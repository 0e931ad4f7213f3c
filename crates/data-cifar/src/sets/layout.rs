//! How a directory of pictures is laid out: which of its directories are parts, which are classes, and what is none
//! of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::sets::decode::EXTENSIONS;

/// Directories that systems, network storages and tools leave among people's files, in lower case.
const SYSTEM: [&str; 11] = [
    "$recycle.bin",
    "#recycle",
    "#snapshot",
    "@eadir",
    "@recently-snapshot",
    "@recycle",
    "@tmp",
    "__macosx",
    "__pycache__",
    "lost+found",
    "system volume information",
];

/// The words that name a part.
const PARTS: [(Part, &[&str]); 3] = [
    (Part::Train, &["train", "training", "trainset"]),
    (Part::Validation, &["val", "valid", "validation", "valset", "dev", "eval"]),
    (Part::Test, &["test", "testing", "testset"]),
];

/// The words that may stand beside them.
const FILLERS: [&str; 8] = ["set", "data", "dataset", "split", "part", "images", "imgs", "pictures"];

/// A part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Train,
    Validation,
    Test,
}

/// What a directory holds, each by name.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub directories: Vec<String>,
    pub files: Vec<String>,
    /// Pictures whose names are not UTF-8, as far as they can be shown.
    pub unnameable: Vec<String>,
    /// How many of what else: `hidden`, a system's folder.
    pub passed_over: BTreeMap<String, usize>,
}

impl Listing {
    pub(crate) fn has_pictures(&self) -> bool {
        !self.unnameable.is_empty() || self.files.iter().any(|name| is_picture(name))
    }

    /// `true` for directories without a picture beside them, as parts are.
    fn is_nested(&self) -> bool {
        !self.directories.is_empty() && !self.has_pictures()
    }
}

/// Lists a directory, system folders and hidden files left out.
///
/// # Errors
/// When it cannot be read, or holds a directory whose name is not UTF-8.
pub(crate) fn read_directory(directory: &Path) -> Result<Listing, DataError> {
    let unreadable = |source| DataError::Read { file: directory.to_path_buf(), source };
    let mut listing = Listing::default();
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        // Through links; where one leads nowhere, opening the file will say so.
        let is_directory = fs::metadata(entry.path()).is_ok_and(|metadata| metadata.is_dir());
        let name = entry.file_name();
        let shown = name.to_string_lossy();
        let kind = if shown.starts_with('.') {
            if is_directory {
                continue;
            }
            "hidden".to_owned()
        } else if is_directory && SYSTEM.contains(&shown.to_lowercase().as_str()) {
            format!("folder {shown}")
        } else {
            match (name.to_str(), is_directory) {
                (Some(name), true) => listing.directories.push(name.to_owned()),
                (Some(name), false) => listing.files.push(name.to_owned()),
                (None, true) => {
                    return Err(problem(&entry.path(), "its name is not UTF-8; rename it".into()));
                }
                (None, false) if is_picture(&shown) => listing.unnameable.push(shown.into_owned()),
                (None, false) => {
                    *listing.passed_over.entry(extension(&shown)).or_default() += 1;
                }
            }
            continue;
        };
        *listing.passed_over.entry(kind).or_default() += 1;
    }
    listing.directories.sort_unstable();
    listing.files.sort_unstable();
    listing.unnameable.sort_unstable();
    Ok(listing)
}

/// The directory of one part, or of all classes.
#[derive(Debug)]
pub(crate) struct PartDirectory {
    pub part: Part,
    pub path: PathBuf,
    /// Its path below the root, with `/` after every name.
    pub prefix: String,
    pub listing: Listing,
}

/// A directory's parts.
#[derive(Debug)]
pub(crate) struct Layout {
    /// One for each part at most, in their order; a directory of classes is one of [`Part::Train`].
    pub parts: Vec<PartDirectory>,
    /// What lies beside the parts.
    pub beside: Option<Listing>,
    /// What a person should know of how the directories were understood.
    pub notes: Vec<String>,
}

/// Finds the parts of `root`: of the directory itself, or of the only one in it where that holds directories and no
/// pictures, as an unpacked archive does.
///
/// A directory is a part by its name, in any mixture of upper and lower case, such as `train`, `Training_Set`,
/// `val2017` or `seg_test`. A class may have such a name too: parts are told by holding directories and no pictures,
/// and where other words stand in the name also by holding the same ones.
///
/// # Errors
/// When a directory cannot be read, two are the same part, or there is another beside parts.
pub(crate) fn layout(root: &Path) -> Result<Layout, DataError> {
    let (base, prefix, listing) = unpacked(root)?;
    let mut named = Vec::new();
    let mut others = Vec::new();
    for name in &listing.directories {
        match part_of(name) {
            Some((part, is_plain)) => {
                let directory = part_directory(part, &base.join(name), &format!("{prefix}{name}/"), name)?;
                named.push((directory, is_plain, name));
            }
            None => others.push(name),
        }
    }
    let same_classes = |a: &PartDirectory, b: &PartDirectory| {
        let names: BTreeSet<_> = a.listing.directories.iter().collect();
        b.listing.directories.iter().any(|name| names.contains(name))
    };
    let nested = || named.iter().filter(|(directory, ..)| directory.listing.is_nested());
    let is_divided = nested().any(|(_, is_plain, _)| *is_plain)
        || nested().any(|(a, _, name)| {
            nested().any(|(b, _, other)| name != other && a.part != b.part && same_classes(a, b))
        })
        || (others.is_empty() && named.len() > 1 && named.iter().all(|(_, is_plain, _)| *is_plain));
    if !is_divided {
        let notes = looks_divided(&base, &listing)?;
        let all = PartDirectory { part: Part::Train, path: base, prefix, listing };
        return Ok(Layout { parts: vec![all], beside: None, notes });
    }
    if let Some(other) = others.first() {
        let text = format!("holds {} and also {other}; beside train there can be test and val", named[0].2);
        return Err(problem(&base, text));
    }
    named.sort_by_key(|(directory, ..)| directory.part);
    if let Some([(.., one), (.., other)]) = named.array_windows().find(|[a, b]| a.0.part == b.0.part) {
        return Err(problem(&base, format!("holds both {one} and {other}, which are the same part")));
    }
    let parts = named.into_iter().map(|(directory, ..)| directory).collect();
    Ok(Layout { parts, beside: Some(listing), notes: Vec::new() })
}

/// The directory that holds classes or parts, its path below the root and what is in it.
fn unpacked(root: &Path) -> Result<(PathBuf, String, Listing), DataError> {
    let listing = read_directory(root)?;
    if let [only] = listing.directories.as_slice()
        && listing.is_nested()
        && !matches!(part_of(only), Some((_, true)))
    {
        let inner = root.join(only);
        let inside = read_directory(&inner)?;
        if inside.is_nested() {
            return Ok((inner, format!("{only}/"), inside));
        }
    }
    Ok((root.to_path_buf(), String::new(), listing))
}

/// A part's directory, or the one of the same name in it that holds everything: `seg_train/seg_train/CLASS`.
fn part_directory(part: Part, path: &Path, prefix: &str, name: &str) -> Result<PartDirectory, DataError> {
    let listing = read_directory(path)?;
    if let [only] = listing.directories.as_slice()
        && listing.is_nested()
        && only.eq_ignore_ascii_case(name)
    {
        let (path, prefix) = (path.join(only), format!("{prefix}{only}/"));
        let listing = read_directory(&path)?;
        return Ok(PartDirectory { part, path, prefix, listing });
    }
    Ok(PartDirectory { part, path: path.to_path_buf(), prefix: prefix.to_owned(), listing })
}

/// The part a directory's name says, and whether it says nothing else.
fn part_of(name: &str) -> Option<(Part, bool)> {
    let name = name.to_lowercase();
    let words: Vec<&str> = name.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()).collect();
    let part = |word: &str| PARTS.iter().find(|(_, names)| names.contains(&word)).map(|(part, _)| *part);
    let mut parts = words.iter().filter_map(|word| part(word));
    let first = parts.next()?;
    if parts.any(|other| other != first) {
        return None;
    }
    Some((first, words.iter().all(|word| part(word).is_some() || FILLERS.contains(word))))
}

/// A note where directories that are taken for classes look like parts: all hold the same directories.
fn looks_divided(base: &Path, listing: &Listing) -> Result<Vec<String>, DataError> {
    let mut common: Option<Vec<String>> = None;
    for name in &listing.directories {
        let inside = read_directory(&base.join(name))?;
        if !inside.is_nested() || common.as_ref().is_some_and(|names| *names != inside.directories) {
            return Ok(Vec::new());
        }
        common = Some(inside.directories);
    }
    Ok(match common {
        Some(names) if names.len() > 1 && listing.directories.len() > 1 => vec![format!(
            "{} are taken for classes, but all hold the same folders ({}); if they are parts of one data set, \
             call them train, val and test",
            some(&listing.directories),
            some(&names)
        )],
        _ => Vec::new(),
    })
}

/// The first few names of a list.
pub(crate) fn some(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

pub(crate) fn is_picture(name: &str) -> bool {
    EXTENSIONS.contains(&extension(name).as_str())
}

pub(crate) fn extension(name: &str) -> String {
    name.rsplit_once('.').map_or_else(|| "none".to_owned(), |(_, extension)| extension.to_ascii_lowercase())
}

pub(crate) fn problem(folder: &Path, problem: String) -> DataError {
    DataError::Folder { folder: folder.to_path_buf(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_parts() {
        use Part::{Test, Train, Validation};
        for (name, part) in [
            ("train", Some((Train, true))),
            ("TRAIN", Some((Train, true))),
            ("Training_Set", Some((Train, true))),
            ("train2017", Some((Train, true))),
            ("val images", Some((Validation, true))),
            ("Validation", Some((Validation, true))),
            ("dev", Some((Validation, true))),
            ("seg_test", Some((Test, false))),
            ("test-tube", Some((Test, false))),
            ("train-test", None),
            ("trainer", None),
            ("valley", None),
            ("cat", None),
            ("2017", None),
        ] {
            assert_eq!(part_of(name), part, "{name}");
        }
    }
}
