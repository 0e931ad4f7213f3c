//! The manifest of a checkpoint: what files it has, and whether they are those that were written.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use run_record::{Hashed, Hashing, sha256};
use serde::{Deserialize, Serialize};

use super::{CheckpointError, Position};

/// The newest format of a checkpoint, which is the one written.
pub(super) const FORMAT: u32 = 1;

/// The manifest's file.
pub(super) const MANIFEST: &str = "manifest.json";

/// No manifest is nearly as long; what is, need not be read.
const MANIFEST_LIMIT: u64 = 1 << 24;

/// What `manifest.json` says, besides its own digest.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub(super) format: u32,
    pub(super) position: Position,
    pub(super) files: BTreeMap<String, FileEntry>,
}

/// Length and SHA-256 of a file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileEntry {
    bytes: u64,
    sha256: String,
}

impl From<Hashed> for FileEntry {
    fn from(Hashed { bytes, sha256 }: Hashed) -> Self {
        Self { bytes, sha256 }
    }
}

impl Manifest {
    /// The manifest's text, its own digest last.
    pub(super) fn seal(&self) -> serde_json::Result<String> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.truncate(text.trim_end_matches('}').trim_end().len());
        let ending = ending(text.as_bytes());
        Ok(text + &ending)
    }

    /// The manifest of the checkpoint at `path`, if it is, byte for byte, one that was written.
    ///
    /// # Errors
    /// One that is not, or is in a later release's format.
    pub(super) fn read(path: &Path) -> Result<Self, CheckpointError> {
        let damaged = |problem| CheckpointError::Damaged { path: path.to_owned(), problem };
        let text = read_text(&path.join(MANIFEST))
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
        let manifest: Self = serde_json::from_slice(&[body, b"}"].concat())
            .map_err(|error| damaged(format!("its {MANIFEST} cannot be read: {error}")))?;
        if manifest.format == FORMAT {
            Ok(manifest)
        } else {
            Err(damaged(format!("its {MANIFEST} names format {}, which never was", manifest.format)))
        }
    }
}

impl FileEntry {
    /// The bytes of the file at `path`, which must be this one, or what is wrong with it.
    pub(super) fn read(&self, path: &Path) -> Result<Vec<u8>, String> {
        self.check_length(path)?;
        let mut bytes = Vec::new();
        usize::try_from(self.bytes)
            .ok()
            .and_then(|length| bytes.try_reserve_exact(length).ok())
            .ok_or_else(|| format!("is {} bytes long, more than there is memory", self.bytes))?;
        self.pass(path, |file| file.read_to_end(&mut bytes).map(drop))?;
        Ok(bytes)
    }

    /// Reads the file at `path`, which must be this one, and keeps nothing of it.
    pub(super) fn check(&self, path: &Path) -> Result<(), String> {
        self.pass(path, |file| io::copy(file, &mut io::sink()).map(drop))
    }

    fn check_length(&self, path: &Path) -> Result<(), String> {
        match file_length(path)? {
            length if length == self.bytes => Ok(()),
            length => Err(format!("is {length} bytes long, not {}", self.bytes)),
        }
    }

    fn pass(&self, path: &Path, read: impl FnOnce(&mut dyn Read) -> io::Result<()>) -> Result<(), String> {
        self.check_length(path)?;
        let length = self.bytes;
        let unread = |error| format!("cannot be read: {error}");
        let mut file = Hashing::new(File::open(path).map_err(unread)?.take(length));
        read(&mut file).map_err(unread)?;
        match file.finish().1 {
            Hashed { bytes, .. } if bytes != length => Err(format!("ends after {bytes} of {length} bytes")),
            Hashed { sha256, .. } if sha256 != self.sha256 => {
                Err("is not the one that was written: the SHA-256 differs".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// What ends the text of a manifest: the digest of everything before.
pub(super) fn ending(body: &[u8]) -> String {
    format!(",\n  \"sha256\": \"{}\"\n}}\n", sha256(body))
}

fn read_text(path: &Path) -> Result<Vec<u8>, String> {
    let length = file_length(path)?;
    if length > MANIFEST_LIMIT {
        return Err(format!("is {length} bytes long, more than any manifest"));
    }
    fs::read(path).map_err(|error| format!("cannot be read: {error}"))
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
