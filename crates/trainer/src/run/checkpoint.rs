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

mod draft;
mod manifest;
mod position;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use core_layers::weights::WriteError;
use run_record::sync_directory;

use draft::is_file_name;
use manifest::{FORMAT, MANIFEST, Manifest};
use position::{PARTIAL, REPLACED, parse_name, parse_unfinished, unfinished};

pub use draft::Draft;
pub use position::Position;

/// A checkpoint that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Where it was taken.
    pub position: Position,
    /// The bytes of each file by name, but for those that were only to be compared.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// What [`find`] found.
#[derive(Debug)]
pub struct Newest {
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
    /// What is to be in a file cannot be had.
    #[error(
        "{}: {}; the older checkpoints are as they were",
        path.display(),
        source.to_string().lines().next().unwrap_or_default() // what follows is a C++ stack
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// Which tensor, and why.
        source: WriteError,
    },
    /// A file to copy is not there any more.
    #[error(
        "none of {} is the file with the SHA-256 {sha256} any more; the older checkpoints are as they were",
        sources.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    Lost {
        /// Where it was looked for.
        sources: Vec<PathBuf>,
        /// What it has.
        sha256: String,
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

/// The newest whole checkpoint in a run's `checkpoints`, with every byte compared to its manifest.
///
/// A directory that does not exist holds none. The bytes returned are those that were compared; of the files that are
/// named in `compared_only`, none are.
///
/// # Errors
/// A directory that cannot be listed. A checkpoint that cannot be read is passed over.
pub fn find(directory: &Path, compared_only: &[&str]) -> Result<Newest, CheckpointError> {
    let (positions, mut passed_over) = list(directory)?;
    for &position in positions.iter().rev() {
        match load(directory, position, compared_only) {
            Ok(checkpoint) => return Ok(Newest { checkpoint: Some(checkpoint), passed_over }),
            Err(error) => passed_over.push(error),
        }
    }
    Ok(Newest { checkpoint: None, passed_over })
}

/// The positions of all checkpoints, whole or not, in the order of training.
///
/// # Errors
/// A directory that cannot be listed; one that does not exist holds none.
pub fn positions(directory: &Path) -> Result<Vec<Position>, CheckpointError> {
    Ok(list(directory)?.0)
}

/// The checkpoint at a position, with every byte compared to its manifest. Each is read once; those of the files named in
/// `compared_only` are not kept.
///
/// # Errors
/// One that is not there, cannot be read, is not whole, or is in a later release's format.
pub fn load(
    directory: &Path,
    position: Position,
    compared_only: &[&str],
) -> Result<Checkpoint, CheckpointError> {
    let path = directory.join(position.to_string());
    let damaged = |problem: String| CheckpointError::Damaged { path: path.clone(), problem };
    if !fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
        return Err(damaged("there is no such directory".to_owned()));
    }
    let manifest = Manifest::read(&path)?;
    if manifest.position != position {
        return Err(damaged(format!("its {MANIFEST} is that of {}", manifest.position)));
    }
    let mut files = BTreeMap::new();
    for (name, entry) in manifest.files {
        if !is_file_name(&name) {
            return Err(damaged(format!("its {MANIFEST} lists {name:?}, which is no name of a file")));
        }
        let wrong = |problem: String| damaged(format!("its {name} {problem}"));
        if compared_only.contains(&name.as_str()) {
            entry.check(&path.join(&name)).map_err(wrong)?;
        } else {
            let bytes = entry.read(&path.join(&name)).map_err(wrong)?;
            files.insert(name, bytes);
        }
    }
    Ok(Checkpoint { position, files })
}

/// Removes all checkpoints up to `whole` but the `last` newest of them and those at the positions in `best`, and returns
/// what it removed.
///
/// `whole` is one that is known to be whole: it was just written, or read. It stays in any case, and so do those that are
/// newer, which are damaged: training replaces them when it gets there. Without it, all stay. Nothing is read.
///
/// # Errors
/// What the file system says; the checkpoint that could not be removed is named.
pub fn retain(
    directory: &Path,
    whole: Position,
    last: usize,
    best: &[Position],
) -> Result<Vec<Position>, CheckpointError> {
    let all = positions(directory)?;
    let upto = all.iter().position(|&position| position == whole).map_or(0, |index| index + 1);
    let surplus = all[..upto.saturating_sub(last.max(1))].iter().copied();
    let surplus: Vec<_> = surplus.filter(|position| !best.contains(position)).collect();
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
        .and_then(|()| sync_directory(directory))
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
    if changed { sync_directory(directory).map_err(CheckpointError::write(directory)) } else { Ok(()) }
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

#[cfg(test)]
mod tests;
