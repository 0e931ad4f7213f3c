//! The data sets that are downloaded: which files they have, where they are linked, and whether they are whole.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use run_record::Hashing;

use crate::process::Place;

/// A data set in CIFAR's binary layout: records of label bytes and 3×32×32 pixels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) name: &'static str,
    /// Directory in the archive that holds the files.
    pub(crate) directory: &'static str,
    /// The files of records, in the order in which the data's own checksum reads them.
    pub(crate) files: &'static [&'static str],
    /// Records per file, in the same order.
    pub(crate) records: &'static [u64],
    /// What each label byte of a record is called, and its largest value.
    pub(crate) labels: &'static [(&'static str, u8)],
    /// Small files of names that are kept when they are there.
    pub(crate) names: &'static [&'static str],
    pub(crate) url: &'static str,
    pub(crate) sha256: &'static str,
    pub(crate) archive_size: u64,
}

pub(crate) const CIFAR10: Layout = Layout {
    name: "cifar10",
    directory: "cifar-10-batches-bin",
    files: &[
        "data_batch_1.bin",
        "data_batch_2.bin",
        "data_batch_3.bin",
        "data_batch_4.bin",
        "data_batch_5.bin",
        "test_batch.bin",
    ],
    records: &[10_000; 6],
    labels: &[("label", 9)],
    names: &["batches.meta.txt"],
    url: "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    sha256: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    archive_size: 170_052_171,
};

pub(crate) const CIFAR100: Layout = Layout {
    name: "cifar100",
    directory: "cifar-100-binary",
    files: &["train.bin", "test.bin"],
    records: &[50_000, 10_000],
    labels: &[("coarse label", 19), ("fine label", 99)],
    names: &["fine_label_names.txt", "coarse_label_names.txt"],
    url: "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    sha256: "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    archive_size: 168_513_733,
};

/// Bytes of one image.
const PIXELS: u64 = 3 * 32 * 32;

impl Layout {
    pub(crate) fn record_size(&self) -> u64 {
        self.labels.len() as u64 + PIXELS
    }

    pub(crate) fn size_of(&self, file: &str) -> Option<u64> {
        let index = self.files.iter().position(|name| *name == file)?;
        Some(self.records[index] * self.record_size())
    }

    pub(crate) fn total_size(&self) -> u64 {
        self.records.iter().sum::<u64>() * self.record_size()
    }

    /// Where the workspace looks for it.
    pub(crate) fn link(&self, place: &Place) -> PathBuf {
        place.root.join("datasets").join(self.name)
    }

    /// The directory with the files: `dir` itself, or the archive's directory in it.
    pub(crate) fn files_in(&self, dir: &Path) -> PathBuf {
        let below = dir.join(self.directory);
        if below.is_dir() { below } else { dir.to_path_buf() }
    }

    /// Checks that every file is there with the right size.
    pub(crate) fn check_sizes(&self, dir: &Path) -> Result<()> {
        let dir = self.files_in(dir);
        for file in self.files {
            let path = dir.join(file);
            let found = fs::metadata(&path).with_context(|| format!("{} is missing", path.display()))?.len();
            let expected = self.size_of(file).unwrap_or_default();
            if found != expected {
                bail!("{} has {found} bytes, and {expected} are expected", path.display());
            }
        }
        Ok(())
    }

    /// Checks sizes and labels and returns the data's own SHA-256: over the bytes of all files of
    /// records, in order.
    pub(crate) fn check_content(&self, dir: &Path) -> Result<String> {
        self.check_sizes(dir)?;
        let dir = self.files_in(dir);
        let mut all = Hashing::new(io::sink());
        for file in self.files {
            let path = dir.join(file);
            self.check_labels(&path)?;
            io::copy(
                &mut File::open(&path).with_context(|| format!("cannot read {}", path.display()))?,
                &mut all,
            )?;
        }
        Ok(all.finish().1.sha256)
    }

    fn check_labels(&self, path: &Path) -> Result<()> {
        let reading = || format!("cannot read {}", path.display());
        let mut reader = BufReader::with_capacity(1 << 20, File::open(path).with_context(reading)?);
        let mut record = vec![0; usize::try_from(self.record_size())?];
        for index in 0..fs::metadata(path).with_context(reading)?.len() / self.record_size() {
            reader.read_exact(&mut record).with_context(reading)?;
            for ((what, largest), value) in self.labels.iter().zip(&record) {
                if value > largest {
                    bail!(
                        "{}: record {index} has the {what} {value}, and {largest} is the largest there is",
                        path.display()
                    );
                }
            }
        }
        Ok(())
    }
}
