//! Checkpoints: a directory each, which is either whole or not there.
//!
//! `checkpoints/epoch-0007/` is the state at the end of epoch 7, `checkpoints/epoch-0007-step-000120/` the state
//! inside it, after its step 120. A checkpoint is some files, whose content is the caller's, and a
//! `manifest.json` with the length and the SHA-256 of each and, as its last key, the SHA-256 of its own text
//! before that key. It is written under another name and renamed when every byte is on the disk.
//!
//! Names that start with a dot are unfinished work: `.NAME.PID.partial` is being written or removed, and
//! `.NAME.PID.replaced` is what a checkpoint of the same position takes the place of. [`tidy`] settles what
//! killed processes left of them. Everything here but reading is only for who holds the run's lock.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::recipes::hex;

/// The newest format of a checkpoint, which is the one written.
const FORMAT: u32 = 1;

const MANIFEST: &str = "manifest.json";

/// No manifest is nearly as long; what is, need not be read.
const MANIFEST_LIMIT: u64 = 1 << 24;

const PARTIAL: &str = "partial";
const REPLACED: &str = "replaced";

/// Where in a run a checkpoint was taken; ordered as training goes. Shown as the name of its directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// The epoch, from 1.
    pub epoch: u32,
    /// How many steps of the epoch were done; `None` at its end.
    pub step: Option<u64>,
}

impl Ord for Position {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let key = |position: &Self| (position.epoch, position.step.is_none(), position.step);
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "epoch-{:04}", self.epoch)?;
        self.step.map_or(Ok(()), |step| write!(f, "-step-{step:06}"))
    }
}

/// A checkpoint's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Where it was taken.
    pub position: Position,
    /// The bytes of each file by name. A name is ASCII letters, digits, `.`, `_` and `-`, and does not start
    /// with a dot; `manifest.json` is taken.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// What [`find`] found.
#[derive(Debug)]
pub struct Found {
    /// The newest whole checkpoint.
    pub checkpoint: Option<Checkpoint>,
    /// Why each newer one is not it, and what killed processes left.
    pub passed_over: Vec<CheckpointError>,
}

/// Why a checkpoint cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It could not be written or removed.
    #[error("{}: {source}; {}, the older checkpoints are as they were", path.display(), remedy(source))]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// The directory of the checkpoints cannot be listed.
    #[error("{}: {source}; make it a directory this user can read", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// Something in it is missing or not what was written.
    #[error("{}: not a whole checkpoint ({problem}); use an older one, this can be deleted", path.display())]
    Damaged {
        /// The checkpoint's directory.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// It was written by a later release.
    #[error(
        "{}: written in format {format}, this program reads up to {FORMAT}; use the release that wrote it",
        path.display()
    )]
    Newer {
        /// The checkpoint's directory.
        path: PathBuf,
        /// The format it names.
        format: u32,
    },
    /// A file of a checkpoint to save has a name that it cannot have.
    #[error(
        "{name:?} cannot be the name of a file in a checkpoint; use letters, digits, '.', '_' and '-', no dot \
         in front, not {MANIFEST}"
    )]
    Name {
        /// The name.
        name: String,
    },
}

impl CheckpointError {
    fn write(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Write { path: path.to_owned(), source }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "make room on that disk or keep fewer checkpoints"
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => "make the directory writable",
        _ => "see that the directory can be written",
    }
}

/// What `manifest.json` says, besides its own digest.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    position: Position,
    files: BTreeMap<String, FileEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEntry {
    bytes: u64,
    sha256: String,
}

/// Saves a checkpoint, in place of one at the same position if there is one, and returns its directory.
///
/// When it returns, every byte is on the disk. `directory` is the run's `checkpoints`, made if need be.
///
/// # Errors
/// A file name that cannot be, or what the file system says, such as a full disk; what was written so far is
/// then removed again, and the checkpoints that are there stay as they are.
pub fn save(directory: &Path, checkpoint: &Checkpoint) -> Result<PathBuf, CheckpointError> {
    if let Some(name) = checkpoint.files.keys().find(|name| !is_file_name(name)) {
        return Err(CheckpointError::Name { name: name.clone() });
    }
    let target = directory.join(checkpoint.position.to_string());
    create_durably(directory).map_err(CheckpointError::write(directory))?;
    let partial = unfinished(directory, checkpoint.position, PARTIAL);
    // A process of this number may have been killed here before.
    remove(&partial).map_err(CheckpointError::write(&target))?;
    let replaced = unfinished(directory, checkpoint.position, REPLACED);
    let saved = write_files(&partial, &target, checkpoint)
        .and_then(|()| put_in_place(&partial, &target, &replaced).map_err(CheckpointError::write(&target)));
    if let Err(error) = saved {
        // The first error is the one to report; a leftover that cannot be removed is only litter.
        let _ = remove(&partial);
        return Err(error);
    }
    // The rename itself is durable only once its directory is; until then the old one must stay.
    sync(directory).map_err(CheckpointError::write(&target))?;
    let _ = remove(&replaced);
    Ok(target)
}

/// The newest whole checkpoint in a run's `checkpoints`, with every byte compared to its manifest.
///
/// A directory that does not exist holds none. The bytes returned are those that were compared.
///
/// # Errors
/// A directory that cannot be listed. A checkpoint that cannot be read is passed over.
pub fn find(directory: &Path) -> Result<Found, CheckpointError> {
    let (positions, mut passed_over) = list(directory)?;
    for &position in positions.iter().rev() {
        match load(directory, position) {
            Ok(checkpoint) => return Ok(Found { checkpoint: Some(checkpoint), passed_over }),
            Err(error) => passed_over.push(error),
        }
    }
    Ok(Found { checkpoint: None, passed_over })
}

/// The positions of all checkpoints, whole or not, in the order of training.
///
/// # Errors
/// A directory that cannot be listed; one that does not exist holds none.
pub fn positions(directory: &Path) -> Result<Vec<Position>, CheckpointError> {
    Ok(list(directory)?.0)
}

/// The checkpoint at a position, with every byte compared to its manifest.
///
/// # Errors
/// One that is not there, cannot be read, is not whole, or is in a later release's format.
pub fn load(directory: &Path, position: Position) -> Result<Checkpoint, CheckpointError> {
    let path = directory.join(position.to_string());
    let damaged = |problem: String| CheckpointError::Damaged { path: path.clone(), problem };
    if !fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
        return Err(damaged("there is no such directory".to_owned()));
    }
    let manifest = read_manifest(&path)?;
    if manifest.position != position {
        return Err(damaged(format!("its {MANIFEST} is that of {}", manifest.position)));
    }
    let mut files = BTreeMap::new();
    for (name, entry) in manifest.files {
        if !is_file_name(&name) {
            return Err(damaged(format!("its {MANIFEST} lists {name:?}, which is no name of a file")));
        }
        let bytes = read_file(&path.join(&name), entry.bytes)
            .map_err(|problem| damaged(format!("its {name} {problem}")))?;
        if hex(&Sha256::digest(&bytes)) != entry.sha256 {
            return Err(damaged(format!("its {name} is not the one that was written: the SHA-256 differs")));
        }
        files.insert(name, bytes);
    }
    Ok(Checkpoint { position, files })
}

/// Removes all checkpoints but the newest `last` ones and those at the positions in `best`, and returns what it
/// removed.
///
/// The newest whole checkpoint stays in any case; if none is whole, all stay. So do damaged ones that are newer
/// than it, which training replaces when it gets there; they do not count among the last. Older ones do, whole or not:
/// they are not read. Reads the newest
/// checkpoint where something is to be removed.
///
/// # Errors
/// What the file system says; the checkpoint that could not be removed is named.
pub fn retain(directory: &Path, last: usize, best: &[Position]) -> Result<Vec<Position>, CheckpointError> {
    let all = positions(directory)?;
    let surplus = |upto: usize| {
        let count = upto.saturating_sub(last.max(1));
        all[..count].iter().copied().filter(|position| !best.contains(position)).collect::<Vec<_>>()
    };
    if surplus(all.len()).is_empty() {
        return Ok(Vec::new());
    }
    let newest = all.iter().rposition(|&position| load(directory, position).is_ok());
    let surplus = newest.map_or(Vec::new(), |newest| surplus(newest + 1));
    surplus.iter().try_for_each(|&position| take_away(directory, position))?;
    Ok(surplus)
}

/// Removes all checkpoints after a position, whole or not: what follows it will be another training's.
///
/// # Errors
/// What the file system says; the checkpoint that could not be removed is named.
pub fn discard_after(directory: &Path, position: Position) -> Result<(), CheckpointError> {
    let later = positions(directory)?.into_iter().rev().take_while(|&other| other > position);
    later.into_iter().try_for_each(|position| take_away(directory, position))
}

/// Removes every checkpoint and what killed processes left of some, and nothing else; the directory too, if that is
/// all it held.
///
/// # Errors
/// What the file system says.
pub fn clear(directory: &Path) -> Result<(), CheckpointError> {
    tidy(directory)?;
    positions(directory)?.into_iter().rev().try_for_each(|position| take_away(directory, position))?;
    match fs::remove_dir(directory) {
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
            Err(CheckpointError::write(directory)(error))
        }
        _ => Ok(()),
    }
}

fn take_away(directory: &Path, position: Position) -> Result<(), CheckpointError> {
    let path = directory.join(position.to_string());
    let partial = unfinished(directory, position, PARTIAL);
    // Without its name before the first file goes: it is whole, or it is no checkpoint.
    remove(&partial)
        .and_then(|()| fs::rename(&path, &partial))
        .and_then(|()| sync(directory))
        .and_then(|()| remove(&partial))
        .map_err(CheckpointError::write(&path))
}

/// Settles what killed processes left: half-written and half-removed checkpoints go, and a checkpoint that was
/// about to be replaced gets its name back if its successor did not.
///
/// # Errors
/// What the file system says.
pub fn tidy(directory: &Path) -> Result<(), CheckpointError> {
    let mut changed = false;
    for name in names(directory)? {
        let Some((position, kind)) = parse_unfinished(&name) else { continue };
        let path = directory.join(&name);
        let target = directory.join(position.to_string());
        let settled =
            if kind == REPLACED && !is_there(&target) { fs::rename(&path, &target) } else { remove(&path) };
        settled.map_err(CheckpointError::write(&path))?;
        changed = true;
    }
    if changed { sync(directory).map_err(CheckpointError::write(directory)) } else { Ok(()) }
}

/// Writes every file of a checkpoint into `partial`, the manifest last, and has all of it on the disk. Errors
/// name what it would be called at the end.
fn write_files(partial: &Path, target: &Path, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
    fs::create_dir(partial).map_err(CheckpointError::write(target))?;
    let write = |name: &str, bytes: &[u8]| {
        let written = File::create_new(partial.join(name)).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        written.map_err(CheckpointError::write(&target.join(name)))
    };
    let mut files = BTreeMap::new();
    for (name, bytes) in &checkpoint.files {
        write(name, bytes)?;
        let entry = FileEntry { bytes: bytes.len() as u64, sha256: hex(&Sha256::digest(bytes)) };
        files.insert(name.clone(), entry);
    }
    let manifest = Manifest { format: FORMAT, position: checkpoint.position, files };
    let text =
        seal(&manifest).map_err(|error| CheckpointError::write(&target.join(MANIFEST))(error.into()))?;
    write(MANIFEST, text.as_bytes())?;
    sync(partial).map_err(CheckpointError::write(target))
}

/// Gives `partial` its name. What has that name is at every moment there as `target` or as `replaced`.
fn put_in_place(partial: &Path, target: &Path, replaced: &Path) -> io::Result<()> {
    if !is_there(target) {
        return fs::rename(partial, target);
    }
    remove(replaced)?;
    fs::rename(target, replaced)?;
    fs::rename(partial, target).inspect_err(|_| {
        // If even this fails, `tidy` does it.
        let _ = fs::rename(replaced, target);
    })
}

/// What ends the text of a manifest: the digest of everything before.
fn ending(body: &[u8]) -> String {
    format!(",\n  \"sha256\": \"{}\"\n}}\n", hex(&Sha256::digest(body)))
}

/// The text of a manifest, its own digest last.
fn seal(manifest: &Manifest) -> serde_json::Result<String> {
    let mut text = serde_json::to_string_pretty(manifest)?;
    text.truncate(text.trim_end_matches('}').trim_end().len());
    let ending = ending(text.as_bytes());
    Ok(text + &ending)
}

/// The manifest of the checkpoint at `path`, if it is, byte for byte, one that was written.
fn read_manifest(path: &Path) -> Result<Manifest, CheckpointError> {
    let damaged = |problem| CheckpointError::Damaged { path: path.to_owned(), problem };
    let text = read_manifest_text(&path.join(MANIFEST))
        .map_err(|problem| damaged(format!("its {MANIFEST} {problem}")))?;
    // The format comes first: another one may be sealed in another way.
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    if let Ok(Format { format }) = serde_json::from_slice(&text)
        && format > FORMAT
    {
        return Err(CheckpointError::Newer { path: path.to_owned(), format });
    }
    let body = text.len().checked_sub(ending(b"").len()).and_then(|end| text.get(..end));
    let Some(body) = body.filter(|body| text[body.len()..] == *ending(body).as_bytes()) else {
        return Err(damaged(format!("its {MANIFEST} is not the one that was written")));
    };
    let manifest: Manifest = serde_json::from_slice(&[body, b"}"].concat())
        .map_err(|error| damaged(format!("its {MANIFEST} cannot be read: {error}")))?;
    if manifest.format == FORMAT {
        Ok(manifest)
    } else {
        Err(damaged(format!("its {MANIFEST} names format {}, which never was", manifest.format)))
    }
}

fn read_manifest_text(path: &Path) -> Result<Vec<u8>, String> {
    let length = file_length(path)?;
    if length > MANIFEST_LIMIT {
        return Err(format!("is {length} bytes long, more than any manifest"));
    }
    read_file(path, length)
}

/// The file at `path`, which must have this length, or what is wrong with it.
fn read_file(path: &Path, length: u64) -> Result<Vec<u8>, String> {
    let found = file_length(path)?;
    if found != length {
        return Err(format!("is {found} bytes long, not {length}"));
    }
    let mut bytes = Vec::new();
    usize::try_from(length)
        .ok()
        .and_then(|length| bytes.try_reserve_exact(length).ok())
        .ok_or_else(|| format!("is {length} bytes long, more than there is memory"))?;
    let read = File::open(path).and_then(|file| file.take(length).read_to_end(&mut bytes));
    match read {
        Ok(read) if read as u64 == length => Ok(bytes),
        Ok(read) => Err(format!("ends after {read} of {length} bytes")),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

/// The length of a plain file, or what is wrong. Anything else, such as a pipe, could block its reader.
fn file_length(path: &Path) -> Result<u64, String> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(metadata.len()),
        Ok(_) => Err("is not a file".to_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => Err("is missing".to_owned()),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

/// All checkpoints in the order of training, and what is there besides.
fn list(directory: &Path) -> Result<(Vec<Position>, Vec<CheckpointError>), CheckpointError> {
    let (mut positions, mut others) = (Vec::new(), Vec::new());
    for name in names(directory)? {
        let problem = if let Some(position) = parse_name(&name) {
            positions.push(position);
            continue;
        } else if parse_unfinished(&name).is_some() {
            "whoever wrote, replaced or removed it was stopped"
        } else if name.starts_with('.') {
            continue;
        } else {
            "no checkpoint has such a name"
        };
        others.push(CheckpointError::Damaged { path: directory.join(&name), problem: problem.to_owned() });
    }
    positions.sort();
    Ok((positions, others))
}

/// The names in a directory, in order; none if it does not exist.
fn names(directory: &Path) -> Result<Vec<String>, CheckpointError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries,
    };
    let names = entries.and_then(|entries| {
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    });
    let mut names: Vec<String> =
        names.map_err(|source| CheckpointError::List { path: directory.to_owned(), source })?;
    names.sort();
    Ok(names)
}

/// The position whose checkpoint has this name.
fn parse_name(name: &str) -> Option<Position> {
    let numbers = name.strip_prefix("epoch-")?;
    let (epoch, step) = match numbers.split_once("-step-") {
        Some((epoch, step)) => (epoch, Some(step.parse().ok()?)),
        None => (numbers, None),
    };
    let position = Position { epoch: epoch.parse().ok()?, step };
    // One name for each: no other number of zeros, no sign.
    (position.to_string() == name).then_some(position)
}

fn unfinished(directory: &Path, position: Position, kind: &str) -> PathBuf {
    directory.join(format!(".{position}.{}.{kind}", std::process::id()))
}

fn parse_unfinished(name: &str) -> Option<(Position, &'static str)> {
    let (rest, ending) = name.strip_prefix('.')?.rsplit_once('.')?;
    let kind = [PARTIAL, REPLACED].into_iter().find(|kind| *kind == ending)?;
    let (name, pid) = rest.rsplit_once('.')?;
    pid.parse::<u32>().ok()?;
    Some((parse_name(name)?, kind))
}

fn is_file_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=200).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.') && name != MANIFEST
}

fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Removes a file, or a directory with all it holds, if there is one.
fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn create_durably(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(directory)?;
    match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync(parent),
        _ => sync(Path::new(".")),
    }
}

/// Has the names in a directory on the disk.
fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests;
