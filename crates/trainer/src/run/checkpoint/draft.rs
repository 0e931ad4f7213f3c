//! A checkpoint that is being written: file by file, each hashed on the way, under a name that is none of a checkpoint.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use core_layers::weights::WriteError;
use run_record::{Hashed, Hashing, sync_directory};

use super::manifest::{FORMAT, FileEntry, MANIFEST, Manifest};
use super::position::{PARTIAL, REPLACED, unfinished};
use super::{CheckpointError, Position, is_there, remove};

/// A checkpoint that is being written. Until [`Draft::finish`] the checkpoints that are there stay as they are, and of a
/// draft that is dropped nothing stays.
#[derive(Debug)]
pub struct Draft {
    directory: PathBuf,
    position: Position,
    partial: PathBuf,
    /// What it will be called, and what errors call it.
    target: PathBuf,
    files: BTreeMap<String, FileEntry>,
}

impl Draft {
    /// A checkpoint of this position without any files, in a run's `checkpoints`, made if need be.
    ///
    /// # Errors
    /// What the file system says.
    pub fn begin(directory: &Path, position: Position) -> Result<Self, CheckpointError> {
        create_durably(directory).map_err(CheckpointError::write(directory))?;
        let partial = unfinished(directory, position, PARTIAL);
        let target = directory.join(position.to_string());
        // A process of this number may have been killed here before.
        remove(&partial).and_then(|()| fs::create_dir(&partial)).map_err(CheckpointError::write(&target))?;
        Ok(Self { directory: directory.to_owned(), position, partial, target, files: BTreeMap::new() })
    }

    /// Adds the file that `fill` writes, and has it on the disk. A name is ASCII letters, digits, `.`, `_` and `-`, and
    /// does not start with a dot; `manifest.json` is taken.
    ///
    /// # Errors
    /// A name that cannot be, what `fill` answers, or what the file system says, such as a full disk.
    pub fn file(
        &mut self,
        name: &str,
        fill: impl FnOnce(&mut dyn Write) -> Result<(), WriteError>,
    ) -> Result<Hashed, CheckpointError> {
        if !is_file_name(name) {
            return Err(CheckpointError::Name { name: name.to_owned() });
        }
        let hashed = self.write(name, fill)?;
        self.files.insert(name.to_owned(), hashed.clone().into());
        Ok(hashed)
    }

    /// Adds a copy of the first of the files at `sources` that has this SHA-256.
    ///
    /// # Errors
    /// None that has, or those of [`Draft::file`].
    pub fn copy(&mut self, name: &str, sources: &[PathBuf], sha256: &str) -> Result<(), CheckpointError> {
        for mut source in sources.iter().filter_map(|path| File::open(path).ok()) {
            let copied = self.file(name, |out| {
                io::copy(&mut source, out)?;
                Ok(())
            })?;
            if copied.sha256 == sha256 {
                return Ok(());
            }
            self.files.remove(name);
            let path = self.partial.join(name);
            fs::remove_file(path).map_err(CheckpointError::write(&self.target.join(name)))?;
        }
        Err(CheckpointError::Lost { sources: sources.to_vec(), sha256: sha256.to_owned() })
    }

    /// Gives the checkpoint its name, in place of one at the same position if there is one, and returns its directory.
    /// When it returns, every byte is on the disk.
    ///
    /// # Errors
    /// What the file system says.
    pub fn finish(mut self) -> Result<PathBuf, CheckpointError> {
        let files = std::mem::take(&mut self.files);
        let manifest = Manifest { format: FORMAT, position: self.position, files };
        self.write(MANIFEST, |out| Ok(out.write_all(manifest.seal().map_err(io::Error::from)?.as_bytes())?))?;
        let replaced = unfinished(&self.directory, self.position, REPLACED);
        sync_directory(&self.partial)
            .and_then(|()| put_in_place(&self.partial, &self.target, &replaced))
            // The rename itself is durable only once its directory is; until then the old one must stay.
            .and_then(|()| sync_directory(&self.directory))
            .map_err(CheckpointError::write(&self.target))?;
        // A leftover that cannot be removed is only litter.
        let _ = remove(&replaced);
        Ok(self.target.clone())
    }

    fn write(
        &self,
        name: &str,
        fill: impl FnOnce(&mut dyn Write) -> Result<(), WriteError>,
    ) -> Result<Hashed, CheckpointError> {
        let path = self.target.join(name);
        let file = File::create_new(self.partial.join(name)).map_err(CheckpointError::write(&path))?;
        let mut out = Hashing::new(BufWriter::new(file));
        fill(&mut out).map_err(|error| match error {
            WriteError::Io(source) => CheckpointError::Write { path: path.clone(), source },
            source => CheckpointError::Content { path: path.clone(), source },
        })?;
        let (out, hashed) = out.finish();
        let file = out.into_inner().map_err(io::IntoInnerError::into_error);
        file.and_then(|file| file.sync_all()).map_err(CheckpointError::write(&path))?;
        Ok(hashed)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // The first error is the one to report; a leftover that cannot be removed is only litter.
        let _ = remove(&self.partial);
    }
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

fn create_durably(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(directory)?;
    match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_directory(parent),
        _ => sync_directory(Path::new(".")),
    }
}

/// Whether a file of a checkpoint may be called this.
pub(super) fn is_file_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=200).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.') && name != MANIFEST
}
