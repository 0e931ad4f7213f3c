//! What a folder of pictures holds: what became of every file, and which images are in which part, in which order.

use sha2::{Digest, Sha256};

use crate::error::DataError;
use crate::sets::arrangement::{Arrangement, PartLabels};
use crate::sets::dataset::Skipped;
use crate::sets::folder::Folder;

/// What became of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// SHA-256 of its pixels.
    Pixels([u8; 32]),
    /// Why it has none.
    Skipped(String),
}

impl Outcome {
    /// Zeros for a skipped file.
    pub(crate) fn digest(&self) -> &[u8; 32] {
        match self {
            Self::Pixels(digest) => digest,
            Self::Skipped(_) => &[0; 32],
        }
    }
}

/// A folder of which every file was decoded once: what is in it, in which order, without the pixels.
#[derive(Debug, Clone)]
pub struct FolderIndex {
    pub(crate) folder: Folder,
    pub(crate) outcomes: Vec<Outcome>,
    pub(crate) arrangement: Arrangement,
    sha256: String,
}

impl FolderIndex {
    pub(crate) fn new(folder: &Folder, outcomes: Vec<Outcome>) -> Result<Self, DataError> {
        let decoded: Vec<bool> =
            outcomes.iter().map(|outcome| matches!(outcome, Outcome::Pixels(_))).collect();
        let arrangement = folder.arrange(&decoded)?;
        let mut digest = Sha256::new();
        digest.update(folder.options.stored_size.to_le_bytes());
        for part in [&arrangement.train, &arrangement.test] {
            digest.update((part.len() as u64).to_le_bytes());
            for &n in part {
                digest.update(folder.files[n].label.to_le_bytes());
                digest.update(outcomes[n].digest());
            }
        }
        let sha256 = base16ct::lower::encode_string(&digest.finalize());
        Ok(Self { folder: folder.clone(), outcomes, arrangement, sha256 })
    }

    /// The folder and its files.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// The number of training images, those of `val` at their end included.
    pub fn train_len(&self) -> usize {
        self.arrangement.train.len()
    }

    /// How many of the last training images come from the folder's `val`.
    pub fn validation(&self) -> usize {
        self.arrangement.validation
    }

    /// The number of test images.
    pub fn test_len(&self) -> usize {
        self.arrangement.test.len()
    }

    /// The files that are left out: those that cannot be named, and those that could not be decoded, in the order of
    /// part, class and name.
    pub fn skipped(&self) -> Vec<Skipped> {
        let files = self.folder.files.iter().zip(&self.outcomes);
        let undecoded = files.filter_map(|(file, outcome)| match outcome {
            Outcome::Pixels(_) => None,
            Outcome::Skipped(reason) => Some(Skipped { file: file.path.clone(), reason: reason.clone() }),
        });
        self.folder.unnameable.iter().cloned().chain(undecoded).collect()
    }

    /// SHA-256 in lower-case hexadecimal over the images' side (u32) and, of the training and then the test part,
    /// the number of images (u64) and each image's label (u16) and SHA-256 of its pixels `[3, S, S]`; numbers
    /// little-endian. It depends on labels, pixels and their order, and on no file's name or format.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The class of each image.
    pub fn labels(&self) -> PartLabels {
        self.folder.labels(&self.arrangement)
    }
}
