//! The data sets that are downloaded: fetching, checking and linking them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};
use tar::EntryType;

use crate::archive::{copy_exactly, require_plain_name};
use crate::disk::{self, hash_into, megabytes, partial_directory, publish, replace_link, require_space};
use crate::download;
use crate::process::{Place, note, say};

/// A data set in CIFAR's binary layout: records of label bytes and 3×32×32 pixels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) name: &'static str,
    /// Directory in the archive that holds the files.
    directory: &'static str,
    /// The files of records, in the order in which the data's own checksum reads them.
    files: &'static [&'static str],
    /// Records per file, in the same order.
    records: &'static [u64],
    /// What each label byte of a record is called, and its largest value.
    labels: &'static [(&'static str, u8)],
    /// Small files of names that are kept when they are there.
    names: &'static [&'static str],
    url: &'static str,
    sha256: &'static str,
    archive_size: u64,
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
/// The files of names are far below this.
const NAMES_LIMIT: u64 = 4096;

/// Where a data set is to come from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Source {
    pub(crate) archive: Option<PathBuf>,
    pub(crate) url: Option<String>,
    pub(crate) dir: Option<PathBuf>,
    pub(crate) sha256: Option<String>,
}

impl Layout {
    fn record_size(&self) -> u64 {
        self.labels.len() as u64 + PIXELS
    }

    fn size_of(&self, file: &str) -> Option<u64> {
        let index = self.files.iter().position(|name| *name == file)?;
        Some(self.records[index] * self.record_size())
    }

    fn total_size(&self) -> u64 {
        self.records.iter().sum::<u64>() * self.record_size()
    }

    /// Where the workspace looks for it.
    pub(crate) fn link(&self, place: &Place) -> PathBuf {
        place.root.join("datasets").join(self.name)
    }

    /// The directory with the files: `dir` itself, or the archive's directory in it.
    fn files_in(&self, dir: &Path) -> PathBuf {
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
    fn check_content(&self, dir: &Path) -> Result<String> {
        self.check_sizes(dir)?;
        let dir = self.files_in(dir);
        let mut hasher = Sha256::new();
        for file in self.files {
            let path = dir.join(file);
            self.check_labels(&path)?;
            hash_into(&mut hasher, &path)?;
        }
        Ok(disk::hex(hasher))
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

/// Provides a data set at `datasets/<name>`.
pub(crate) fn fetch(place: &Place, layout: &Layout, source: &Source) -> Result<()> {
    let link = layout.link(place);
    if let Some(dir) = &source.dir {
        let dir = dir.canonicalize().with_context(|| format!("--dir {}", dir.display()))?;
        let sha256 = layout.check_content(&dir).with_context(|| {
            format!("--dir {} is not {} in its binary layout", dir.display(), layout.name)
        })?;
        require_link_parent(&link)?;
        replace_link(&link, &dir)?;
        announce(layout, &link, &dir, &sha256);
        return Ok(());
    }
    let own = link.symlink_metadata().is_ok_and(|metadata| !metadata.is_symlink());
    let chosen = source.archive.is_some() || source.url.is_some();
    if own || (!chosen && link.exists()) {
        match layout.check_sizes(&link) {
            Ok(()) if !chosen => {
                say(format!("{} is already there: {}", layout.name, link.display()));
                return Ok(());
            }
            Ok(()) => {
                bail!("{} is your own directory and is not replaced: move it away first", link.display())
            }
            Err(error) if own => {
                return Err(error.context(format!(
                    "{} is your own directory and is not replaced: repair it, or move it away",
                    link.display()
                )));
            }
            Err(error) => note(format!("{} is fetched anew: {error:#}", layout.name)),
        }
    }
    let dir = in_cache(&place.cache, layout, source)?;
    let sha256 = layout.check_content(&dir)?;
    require_link_parent(&link)?;
    replace_link(&link, &dir)?;
    announce(layout, &link, &dir, &sha256);
    Ok(())
}

fn require_link_parent(link: &Path) -> Result<()> {
    let parent = link.parent().context("the link has no directory")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))
}

fn announce(layout: &Layout, link: &Path, dir: &Path, sha256: &str) {
    say(format!("{}: {} -> {}", layout.name, link.display(), dir.display()));
    say(format!("{}: SHA-256 of the data {sha256}", layout.name));
}

/// The data set's directory in the cache, unpacked there if need be. Data from an archive with
/// another checksum than the official one gets a directory of its own.
fn in_cache(cache: &Path, layout: &Layout, source: &Source) -> Result<PathBuf> {
    let sha256 = source.sha256.as_deref().unwrap_or(layout.sha256).to_ascii_lowercase();
    let parent = cache.join("datasets");
    let target = if sha256 == layout.sha256 {
        parent.join(layout.name)
    } else {
        parent.join(format!("{}-{}", layout.name, &sha256[..12]))
    };
    let _lock = disk::lock(cache)?;
    // A file that was given is judged even when what it would give is there.
    if let Some(archive) = &source.archive {
        if !archive.is_file() {
            bail!("--archive {} is not a file", archive.display());
        }
        disk::verify_sha256(archive, &sha256)
            .context("the archive is not the expected one; --sha256 HEX names another on purpose")?;
    }
    if layout.check_sizes(&target).is_ok() {
        return Ok(target);
    }
    let partial = partial_directory(&parent)?;
    let download_size = if source.archive.is_none() { layout.archive_size } else { 0 };
    require_space(cache, layout.total_size() + download_size, layout.name)?;
    if let Some(archive) = &source.archive {
        unpack(layout, archive, partial.path())?;
    } else {
        let url = source.url.as_deref().unwrap_or(layout.url);
        let archive = cache.join("downloads").join(format!("{}-{}.tar.gz", layout.name, &sha256[..12]));
        note(format!("{}: downloading {url} to {}", layout.name, archive.display()));
        download::fetch(url, &archive, &sha256).with_context(|| {
            format!("{} could not be fetched; with the archive at hand, use --archive FILE", layout.name)
        })?;
        unpack(layout, &archive, partial.path())?;
        // The cache keeps the unpacked files; a download that cannot be removed only takes space.
        let _ = fs::remove_file(&archive);
    }
    note(format!("{}: {} unpacked", layout.name, megabytes(layout.total_size())));
    publish(partial, &target)?;
    Ok(target)
}

/// Unpacks the expected files of `archive` into `into`.
fn unpack(layout: &Layout, archive: &Path, into: &Path) -> Result<()> {
    unpack_entries(layout, archive, into).with_context(|| format!("cannot unpack {}", archive.display()))
}

fn unpack_entries(layout: &Layout, archive: &Path, into: &Path) -> Result<()> {
    let directory = into.join(layout.directory);
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let mut tar = tar::Archive::new(GzDecoder::new(BufReader::new(File::open(archive)?)));
    let mut unpacked = BTreeSet::new();
    for entry in tar.entries()? {
        let mut entry = entry.context("the archive is damaged or not whole")?;
        let name = String::from_utf8(entry.path_bytes().into_owned())
            .map_err(|_| anyhow!("an entry has a name that is not UTF-8"))?;
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::Directory => {}
            EntryType::XGlobalHeader => continue,
            kind => bail!(
                "the entry {name:?} is neither a file nor a directory ({kind:?}); the archive is refused"
            ),
        }
        require_plain_name(name.strip_prefix("./").filter(|rest| !rest.is_empty()).unwrap_or(&name))?;
        let plain = name.strip_prefix("./").unwrap_or(&name);
        let Some(file) = plain.strip_prefix(layout.directory).and_then(|rest| rest.strip_prefix('/')) else {
            continue;
        };
        let size = entry.size();
        match layout.size_of(file) {
            Some(expected) if size != expected => {
                bail!("the entry {name:?} has {size} bytes, and {expected} are expected");
            }
            None if !layout.names.contains(&file) => continue,
            None if size > NAMES_LIMIT => {
                bail!("the entry {name:?} has {size} bytes, far more than names take")
            }
            _ => {}
        }
        copy_exactly(&mut entry, &directory.join(file), size, |_| {})?;
        unpacked.insert(file.to_owned());
    }
    match layout.files.iter().find(|file| !unpacked.contains(**file)) {
        Some(missing) => bail!("the archive has no {}/{missing}", layout.directory),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
