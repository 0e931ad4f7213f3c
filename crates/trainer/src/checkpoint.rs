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
/// than it, which training replaces when it gets there; they do not count among the last. Reads the newest
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
    for &position in &surplus {
        let path = directory.join(position.to_string());
        let partial = unfinished(directory, position, PARTIAL);
        // Without its name before the first file goes: it is whole, or it is no checkpoint.
        remove(&partial)
            .and_then(|()| fs::rename(&path, &partial))
            .and_then(|()| sync(directory))
            .and_then(|()| remove(&partial))
            .map_err(CheckpointError::write(&path))?;
    }
    Ok(surplus)
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
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::Index;
    use std::io::BufRead;
    use std::process::{Command, Stdio};
    use std::time::Duration;
    use tempfile::TempDir;

    const FILES: [&str; 4] = [MANIFEST, "ema.safetensors", "model.safetensors", "state.json"];

    fn epoch(epoch: u32) -> Position {
        Position { epoch, step: None }
    }

    fn inside(epoch: u32, step: u64) -> Position {
        Position { epoch, step: Some(step) }
    }

    fn checkpoint(position: Position, word: &str) -> Checkpoint {
        let files = [
            ("ema.safetensors", Vec::new()),
            ("model.safetensors", format!("weights of {position}, {word}").into_bytes()),
            ("state.json", format!("{{\"word\":\"{word}\"}}").into_bytes()),
        ];
        Checkpoint { position, files: files.map(|(name, bytes)| (name.to_owned(), bytes)).into() }
    }

    /// Without the moment of length 0 that has file systems flush the file when it is closed.
    fn overwrite(path: &Path, bytes: &[u8]) {
        let mut file = File::options().write(true).open(path).unwrap();
        file.write_all(bytes).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
    }

    /// A run with whole checkpoints at the ends of three epochs.
    fn three() -> (TempDir, PathBuf) {
        let run = TempDir::new().unwrap();
        let directory = run.path().join("checkpoints");
        for number in 1..=3 {
            let path = save(&directory, &checkpoint(epoch(number), "first")).unwrap();
            assert_eq!(path, directory.join(format!("epoch-000{number}")));
        }
        (run, directory)
    }

    fn found(directory: &Path) -> (Option<Checkpoint>, Vec<String>) {
        let Found { checkpoint, passed_over } = find(directory).unwrap();
        (checkpoint, passed_over.iter().map(ToString::to_string).collect())
    }

    /// The last of the three is not loaded but named, and the one before is used.
    fn assert_last_is_passed_over(directory: &Path, damage: &str) {
        let (checkpoint, passed_over) = found(directory);
        assert_eq!(checkpoint, Some(super::tests::checkpoint(epoch(2), "first")), "{damage}");
        assert_eq!(passed_over.len(), 1, "{damage}: {passed_over:?}");
        assert!(passed_over[0].contains("epoch-0003: "), "{damage}: {passed_over:?}");
    }

    #[test]
    fn positions_are_ordered_as_training_goes_and_have_one_name_each() {
        let order =
            [epoch(0), inside(1, 0), inside(1, 120), epoch(1), inside(2, 1), inside(10_000, u64::MAX)];
        assert!(order.is_sorted());
        assert!(order[5] < epoch(10_000));
        let names = order.map(|position| position.to_string());
        assert_eq!(names[1..4], ["epoch-0001-step-000000", "epoch-0001-step-000120", "epoch-0001"]);
        assert_eq!(names.map(|name| parse_name(&name)), order.map(Some));
        for name in
            ["epoch-1", "epoch-00001", "epoch-+001", "epoch-0001-step-1", "epoch-", "epoch-4294967296"]
        {
            assert_eq!(parse_name(name), None, "{name}");
        }
        assert_eq!(parse_unfinished(".epoch-0001-step-000120.77.partial"), Some((order[2], PARTIAL)));
        for name in
            ["epoch-0001.77.partial", ".epoch-0001.partial", ".epoch-0001.x.partial", ".epoch-0001.7.swp"]
        {
            assert_eq!(parse_unfinished(name), None, "{name}");
        }
    }

    #[test]
    fn what_was_saved_is_found() {
        let (run, directory) = three();
        assert_eq!(found(&directory), (Some(checkpoint(epoch(3), "first")), vec![]));
        save(&directory, &checkpoint(inside(3, 7), "first")).unwrap();
        assert_eq!(found(&directory).0, Some(checkpoint(epoch(3), "first")));
        save(&directory, &checkpoint(inside(4, 7), "first")).unwrap();
        assert_eq!(found(&directory).0, Some(checkpoint(inside(4, 7), "first")));
        assert_eq!(load(&directory, epoch(1)).unwrap(), checkpoint(epoch(1), "first"));
        // Saved again, as after a resume, over one that is whole and over one that is not.
        save(&directory, &checkpoint(inside(4, 7), "second")).unwrap();
        fs::remove_file(directory.join("epoch-0004-step-000007/state.json")).unwrap();
        save(&directory, &checkpoint(inside(4, 7), "third")).unwrap();
        assert_eq!(found(&directory), (Some(checkpoint(inside(4, 7), "third")), vec![]));
        fs::write(directory.join("epoch-0005"), "a file").unwrap();
        save(&directory, &checkpoint(epoch(5), "first")).unwrap();
        let names = ["epoch-0001", "epoch-0002", "epoch-0003", "epoch-0003-step-000007"];
        assert_eq!(super::names(&directory).unwrap()[..4], names);
        assert_eq!(super::names(&directory).unwrap().len(), 6, "nothing is left behind");

        let nowhere = run.path().join("nowhere");
        assert_eq!(found(&nowhere), (None, vec![]));
        assert!(retain(&nowhere, 1, &[]).unwrap().is_empty());
        tidy(&nowhere).unwrap();
        let message = load(&directory, epoch(9)).unwrap_err().to_string();
        assert!(
            message.contains("epoch-0009: not a whole checkpoint (there is no such directory)"),
            "{message}"
        );
    }

    #[test]
    fn a_manifest_reads_as_documented() {
        let (_run, directory) = three();
        let text = fs::read_to_string(directory.join("epoch-0002").join(MANIFEST)).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["format"], 1);
        assert_eq!(value["position"], serde_json::json!({"epoch": 2, "step": null}));
        // SHA-256 of nothing.
        let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(value["files"]["ema.safetensors"], serde_json::json!({"bytes": 0, "sha256": nothing}));
        assert!(text.ends_with("\"\n}\n") && value["sha256"].as_str().unwrap().len() == 64);
    }

    #[test]
    fn any_bit_flipped_and_any_cut_is_seen() {
        let (_run, directory) = three();
        let last = directory.join("epoch-0003");
        for name in FILES {
            let path = last.join(name);
            let whole = fs::read(&path).unwrap();
            for at in 0..whole.len() {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << (at % 8);
                overwrite(&path, &flipped);
                assert_last_is_passed_over(&directory, &format!("{name}, byte {at} flipped"));
                overwrite(&path, &whole[..at]);
                assert_last_is_passed_over(&directory, &format!("{name}, cut at {at}"));
            }
            overwrite(&path, &whole);
        }
        assert_eq!(found(&directory), (Some(checkpoint(epoch(3), "first")), vec![]));
    }

    #[derive(Debug, Clone)]
    enum Damage {
        FlipBit(Index, Index, u32),
        Truncate(Index, Index),
        Extend(Index, Vec<u8>),
        SwapBytes(Index, Index, Index),
        Overwrite(Index, Vec<u8>),
        Remove(Index),
        SwapFiles(Index, Index),
        TakeFromBefore(Index),
        MakeDirectory(Index),
    }

    fn damage() -> impl Strategy<Value = Damage> {
        let index = any::<Index>;
        let bytes = || prop::collection::vec(any::<u8>(), 1..900);
        prop_oneof![
            (index(), index(), 0_u32..8).prop_map(|(file, at, bit)| Damage::FlipBit(file, at, bit)),
            (index(), index()).prop_map(|(file, at)| Damage::Truncate(file, at)),
            (index(), bytes()).prop_map(|(file, more)| Damage::Extend(file, more)),
            (index(), index(), index()).prop_map(|(file, a, b)| Damage::SwapBytes(file, a, b)),
            (index(), bytes()).prop_map(|(file, other)| Damage::Overwrite(file, other)),
            index().prop_map(Damage::Remove),
            (index(), index()).prop_map(|(a, b)| Damage::SwapFiles(a, b)),
            index().prop_map(Damage::TakeFromBefore),
            index().prop_map(Damage::MakeDirectory),
        ]
    }

    fn inflict(damage: &Damage, directory: &Path) {
        let path = |file: &Index| directory.join("epoch-0003").join(file.get(&FILES));
        let change = |file: &Index, change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = fs::read(path(file)).unwrap();
            change(&mut bytes);
            overwrite(&path(file), &bytes);
        };
        match damage {
            Damage::FlipBit(file, at, bit) => change(file, &|bytes| {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] ^= 1 << bit;
                }
            }),
            Damage::Truncate(file, at) => change(file, &|bytes| bytes.truncate(at.index(bytes.len() + 1))),
            Damage::Extend(file, more) => change(file, &|bytes| bytes.extend(more)),
            Damage::SwapBytes(file, a, b) => change(file, &|bytes| {
                if !bytes.is_empty() {
                    let length = bytes.len();
                    bytes.swap(a.index(length), b.index(length));
                }
            }),
            Damage::Overwrite(file, other) => overwrite(&path(file), other),
            Damage::Remove(file) => fs::remove_file(path(file)).unwrap(),
            Damage::SwapFiles(a, b) => {
                let (first, second) = (fs::read(path(a)).unwrap(), fs::read(path(b)).unwrap());
                overwrite(&path(a), &second);
                overwrite(&path(b), &first);
            }
            Damage::TakeFromBefore(file) => {
                fs::copy(directory.join("epoch-0002").join(file.get(&FILES)), path(file)).unwrap();
            }
            Damage::MakeDirectory(file) => {
                fs::remove_file(path(file)).unwrap();
                fs::create_dir(path(file)).unwrap();
            }
        }
    }

    #[test]
    fn a_damaged_checkpoint_is_never_loaded() {
        let (_run, directory) = three();
        let last = directory.join("epoch-0003");
        let contents =
            || FILES.map(|name| fs::read(last.join(name)).map_err(|error| error.kind().to_string()));
        let whole = contents();
        proptest!(ProptestConfig::with_cases(500), |(damages in prop::collection::vec(damage(), 1..3))| {
            fs::remove_dir_all(&last).unwrap();
            fs::create_dir(&last).unwrap();
            for (name, bytes) in FILES.iter().zip(&whole) {
                fs::write(last.join(name), bytes.as_ref().unwrap()).unwrap();
            }
            // A second damage may need what the first one took.
            inflict(&damages[0], &directory);
            if let [Damage::FlipBit(..) | Damage::Overwrite(..) | Damage::Extend(..), second] = &damages[..] {
                inflict(second, &directory);
            }
            if contents() == whole {
                prop_assert_eq!(found(&directory).0, Some(checkpoint(epoch(3), "first")));
            } else {
                assert_last_is_passed_over(&directory, &format!("{damages:?}"));
            }
        });
    }

    #[test]
    fn arbitrary_manifests_are_refused() {
        let (_run, directory) = three();
        let manifest = directory.join("epoch-0003").join(MANIFEST);
        let digest = "0".repeat(64);
        let jsons = [
            "{}",
            "[]",
            "null",
            "\"\"",
            "{\"format\":1}",
            "{\"format\":0}",
            "{\"format\":-1}",
            "{\"format\":1e99}",
            "{\"format\":1,\"position\":{\"epoch\":3,\"step\":null},\"files\":{}}",
            "{\"format\":1,\"position\":{\"epoch\":3,\"step\":null},\"files\":{},\"sha256\":\"\"}",
        ];
        for text in jsons.map(str::to_owned).into_iter().chain(["[".repeat(100_000)]) {
            overwrite(&manifest, text.as_bytes());
            assert_last_is_passed_over(&directory, &text);
        }
        // Sealed rightly, wrong inside: none of these was written by a program like this.
        let file = format!("{{ \"bytes\": 0, \"sha256\": \"{digest}\" }}");
        let huge = file.replace(": 0,", ": 18446744073709551615,");
        for (format, position, files) in [
            (0, "\"epoch\": 3", String::new()),
            (1, "\"epoch\": 4294967296", String::new()),
            (1, "\"epoch\": 2", String::new()),
            (1, "\"epoch\": 3, \"step\": 1", String::new()),
            (1, "\"epoch\": 3, \"steps\": 1", String::new()),
            (1, "\"epoch\": 3", format!("\"../epoch-0002/state.json\": {file}")),
            (1, "\"epoch\": 3", format!("\"/etc/hostname\": {file}")),
            (1, "\"epoch\": 3", format!("\"\": {file}")),
            (1, "\"epoch\": 3", format!("\"..\": {file}")),
            (1, "\"epoch\": 3", format!("\"absent\": {file}")),
            (1, "\"epoch\": 3", format!("\"state.json\": {file}")),
            (1, "\"epoch\": 3", format!("\"state.json\": {huge}")),
            (1, "\"epoch\": 3", "\"state.json\": 7".to_owned()),
        ] {
            let body = format!(
                "{{\n  \"format\": {format},\n  \"position\": {{ {position} }},\n  \"files\": {{ {files} }}"
            );
            let text = format!("{body}{}", ending(body.as_bytes()));
            assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text}");
            overwrite(&manifest, text.as_bytes());
            assert_last_is_passed_over(&directory, &text);
        }
        proptest!(ProptestConfig::with_cases(500), |(bytes in prop::collection::vec(any::<u8>(), 0..2_000))| {
            overwrite(&manifest, &bytes);
            assert_last_is_passed_over(&directory, "arbitrary bytes");
            let sealed = [&bytes[..], ending(&bytes).as_bytes()].concat();
            overwrite(&manifest, &sealed);
            assert_last_is_passed_over(&directory, "arbitrary bytes, sealed");
        });
    }

    #[test]
    fn a_later_format_is_said_to_be_one() {
        let (_run, directory) = three();
        let manifest = directory.join("epoch-0003").join(MANIFEST);
        fs::write(&manifest, "{\"format\": 2, \"compression\": \"zstd\"}").unwrap();
        assert_last_is_passed_over(&directory, "format 2");
        let message = load(&directory, epoch(3)).unwrap_err().to_string();
        assert!(message.contains("written in format 2, this program reads up to 1"), "{message}");
    }

    #[test]
    fn every_message_names_the_place_and_the_trouble() {
        let (_run, directory) = three();
        let last = directory.join("epoch-0003");
        fs::write(last.join("state.json"), "").unwrap();
        fs::remove_file(directory.join("epoch-0002/model.safetensors")).unwrap();
        fs::rename(directory.join("epoch-0001"), directory.join("epoch-0004")).unwrap();
        fs::create_dir(directory.join("notes")).unwrap();
        fs::create_dir(directory.join(".epoch-0005.1.partial")).unwrap();
        fs::write(directory.join(".DS_Store"), "").unwrap();
        let (checkpoint, passed_over) = found(&directory);
        assert_eq!(checkpoint, None);
        for (message, (name, problem)) in passed_over.iter().zip([
            (".epoch-0005.1.partial", "whoever wrote, replaced or removed it was stopped"),
            ("notes", "no checkpoint has such a name"),
            ("epoch-0004", "its manifest.json is that of epoch-0001"),
            ("epoch-0003", "its state.json is 0 bytes long, not 16"),
            ("epoch-0002", "its model.safetensors is missing"),
        ]) {
            let path = directory.join(name);
            let want = format!(
                "{}: not a whole checkpoint ({problem}); use an older one, this can be deleted",
                path.display()
            );
            assert_eq!(message, &want);
        }
        assert_eq!(passed_over.len(), 5);
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        let (_run, directory) = three();
        for name in ["", ".", "..", "../x", "a/b", "/x", ".hidden", "a b", "ä", "manifest.json", "x\0"] {
            let mut bad = checkpoint(epoch(4), "first");
            bad.files.insert(name.to_owned(), vec![1]);
            assert!(matches!(save(&directory, &bad), Err(CheckpointError::Name { .. })), "{name:?}");
        }
        assert_eq!(positions(&directory).unwrap(), [1, 2, 3].map(epoch));
    }

    #[test]
    fn a_directory_that_cannot_be_is_named() {
        let run = TempDir::new().unwrap();
        let directory = run.path().join("checkpoints");
        fs::write(&directory, "a file").unwrap();
        for message in [
            save(&directory, &checkpoint(epoch(1), "first")).unwrap_err().to_string(),
            find(&directory).unwrap_err().to_string(),
            tidy(&directory).unwrap_err().to_string(),
        ] {
            assert!(message.starts_with(&format!("{}: ", directory.display())), "{message}");
        }
    }

    #[test]
    fn the_last_and_the_best_are_kept() {
        let (_run, directory) = three();
        for position in [epoch(4), inside(5, 10), inside(5, 20), epoch(5)] {
            save(&directory, &checkpoint(position, "first")).unwrap();
        }
        assert_eq!(retain(&directory, 7, &[]).unwrap(), []);
        let removed = retain(&directory, 2, &[epoch(2), epoch(9)]).unwrap();
        assert_eq!(removed, [epoch(1), epoch(3), epoch(4), inside(5, 10)]);
        assert_eq!(names(&directory).unwrap(), ["epoch-0002", "epoch-0005", "epoch-0005-step-000020"]);
        // Even if none is asked for, the newest stays.
        assert_eq!(retain(&directory, 0, &[]).unwrap(), [epoch(2), inside(5, 20)]);
        assert_eq!(found(&directory), (Some(checkpoint(epoch(5), "first")), vec![]));
    }

    #[test]
    fn the_newest_whole_one_is_never_removed() {
        let (_run, directory) = three();
        for number in 4..=5 {
            save(&directory, &checkpoint(epoch(number), "first")).unwrap();
        }
        for name in ["epoch-0004", "epoch-0005"] {
            fs::write(directory.join(name).join("state.json"), "damage").unwrap();
        }
        assert_eq!(retain(&directory, 1, &[]).unwrap(), [epoch(1), epoch(2)]);
        assert_eq!(found(&directory).0, Some(checkpoint(epoch(3), "first")));
        assert_eq!(positions(&directory).unwrap(), [3, 4, 5].map(epoch));
        // Where none is whole, each may be worth a look.
        fs::remove_file(directory.join("epoch-0003").join(MANIFEST)).unwrap();
        assert_eq!(retain(&directory, 1, &[]).unwrap(), []);
    }

    #[test]
    fn what_a_killed_process_left_is_settled() {
        let (_run, directory) = three();
        let at = |name: &str| directory.join(name);
        // Killed while writing, in whatever state; while removing; before and after replacing.
        fs::create_dir(at(".epoch-0004.1.partial")).unwrap();
        fs::write(at(".epoch-0004.1.partial/model.safetensors"), "half").unwrap();
        fs::rename(at("epoch-0001"), at(".epoch-0001.1.partial")).unwrap();
        fs::rename(at("epoch-0003"), at(".epoch-0003.1.replaced")).unwrap();
        fs::create_dir(at(".epoch-0003.1.partial")).unwrap();
        fs::create_dir(at(".epoch-0002.1.replaced")).unwrap();
        fs::write(at(".mine.partial"), "").unwrap();
        let (checkpoint, passed_over) = found(&directory);
        assert_eq!((checkpoint.unwrap().position, passed_over.len()), (epoch(2), 5));
        tidy(&directory).unwrap();
        assert_eq!(names(&directory).unwrap(), [".mine.partial", "epoch-0002", "epoch-0003"]);
        assert_eq!(found(&directory), (Some(super::tests::checkpoint(epoch(3), "first")), vec![]));
    }

    /// Where the process that is killed saves.
    const KILLED: &str = "CHECKPOINT_TEST_DIRECTORY";

    #[test]
    #[ignore = "the process that the next test kills"]
    fn saves_until_killed() {
        let Some(directory) = std::env::var_os(KILLED) else { return };
        for number in 1_u32.. {
            // Each position twice, so that half of the saves replace one.
            let mut checkpoint = checkpoint(epoch(number.div_ceil(2)), "first");
            checkpoint.files.insert("number".to_owned(), number.to_string().into_bytes());
            checkpoint.files.insert("large".to_owned(), vec![number as u8; 200_000]);
            save(Path::new(&directory), &checkpoint).unwrap();
            println!("saved {number}.");
            if number.is_multiple_of(4) {
                retain(Path::new(&directory), 1, &[]).unwrap();
            }
        }
    }

    #[test]
    fn a_killed_process_costs_no_checkpoint_that_was_saved() {
        let this = module_path!().split_once("::").unwrap().1;
        for milliseconds in (0..8).map(|number| 7 * number) {
            let run = TempDir::new().unwrap();
            let directory = run.path().join("checkpoints");
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args([&format!("{this}::saves_until_killed"), "--exact", "--ignored", "--nocapture"])
                .env(KILLED, &directory)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let lines = io::BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
            let number = |line: String| line.strip_suffix('.')?.rsplit_once("saved ")?.1.parse::<u32>().ok();
            let mut told = lines.filter_map(number);
            // Programs start in their own time; what matters is what happens after the first save.
            let first = told.next().unwrap();
            std::thread::sleep(Duration::from_millis(milliseconds));
            child.kill().unwrap();
            child.wait().unwrap();
            let told = told.last().unwrap_or(first);
            tidy(&directory).unwrap();
            let (checkpoint, passed_over) = found(&directory);
            assert_eq!(passed_over, Vec::<String>::new());
            let newest = checkpoint.map_or(0, |checkpoint| {
                String::from_utf8_lossy(&checkpoint.files["number"]).parse::<u32>().unwrap()
            });
            assert!(newest >= told && newest <= told + 1, "told of {told}, found {newest}");
        }
    }

    /// A mounted file system of one megabyte, gone with this value.
    struct SmallDisk(TempDir);

    impl SmallDisk {
        fn mount() -> Option<Self> {
            let directory = TempDir::new().unwrap();
            let mount = Command::new("mount")
                .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
                .arg(directory.path())
                .stderr(Stdio::null())
                .status();
            mount.is_ok_and(|status| status.success()).then_some(Self(directory))
        }
    }

    impl Drop for SmallDisk {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(self.0.path()).status();
        }
    }

    #[test]
    fn a_full_disk_costs_no_older_checkpoint() {
        let Some(disk) = SmallDisk::mount() else {
            println!("skipped: mounting a small file system is refused here");
            return;
        };
        let directory = disk.0.path().join("checkpoints");
        let first = checkpoint(epoch(1), "first");
        save(&directory, &first).unwrap();
        let mut failures = Vec::new();
        // The disk is full at a large file, at a small one, at the manifest, and not at all.
        for pages in (200..260).rev() {
            let mut second = checkpoint(epoch(2), "first");
            second.files.insert("large".to_owned(), vec![7; pages * 4096]);
            match save(&directory, &second) {
                Ok(_) => {
                    assert_eq!(found(&directory), (Some(second.clone()), vec![]));
                    // There is no room for a second one, not even in place of the first.
                    save(&directory, &second).unwrap_err();
                    assert_eq!(found(&directory), (Some(second), vec![]));
                    fs::remove_dir_all(directory.join("epoch-0002")).unwrap();
                    break;
                }
                Err(error) => failures.push(error.to_string()),
            }
            assert_eq!(found(&directory), (Some(first.clone()), vec![]));
            assert_eq!(names(&directory).unwrap(), ["epoch-0001"]);
        }
        for name in ["large", "model.safetensors", "state.json", MANIFEST] {
            let path = directory.join("epoch-0002").join(name);
            let start = format!("{}: No space left on device", path.display());
            assert!(failures.iter().any(|failure| failure.starts_with(&start)), "{name}: {failures:#?}");
        }
        assert!(failures[0].ends_with(
            "; make room on that disk or keep fewer checkpoints, the older checkpoints are as they were"
        ));

        let read_only = Command::new("mount").args(["-o", "remount,ro"]).arg(disk.0.path()).status();
        assert!(read_only.unwrap().success());
        let message = save(&directory, &checkpoint(epoch(2), "first")).unwrap_err().to_string();
        assert!(message.contains("epoch-0002: Read-only file system"), "{message}");
        assert_eq!(found(&directory), (Some(first), vec![]));
    }
}
