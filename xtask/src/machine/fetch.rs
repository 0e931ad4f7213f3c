//! `fetch`: provides a data set, from the network, an archive or a directory, and links it in datasets/.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use flate2::read::GzDecoder;
use tar::EntryType;

use crate::machine::archive::{copy_exactly, require_plain_name};
use crate::machine::datasets::{CIFAR10, CIFAR100, Layout};
use crate::machine::disk::{
    self, megabytes, parse_sha256, partial_directory, publish, replace_link, require_space,
};
use crate::machine::download;
use crate::process::{Place, note, say};

/// The files of names are far below this.
const NAMES_LIMIT: u64 = 4096;

/// `cargo xtask fetch`.
#[derive(clap::Args)]
pub(crate) struct Fetch {
    /// Which data set
    #[arg(value_enum)]
    dataset: Dataset,
    #[command(flatten)]
    source: Source,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Dataset {
    Digits,
    Cifar10,
    Cifar100,
}

/// Where a data set is to come from.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Source {
    /// The archive, downloaded already
    #[arg(long, value_name = "FILE", conflicts_with_all = ["url", "dir"], group = "given")]
    archive: Option<PathBuf>,
    /// A mirror of the archive
    #[arg(long, conflicts_with = "dir", group = "given")]
    url: Option<String>,
    /// A directory with the unpacked binary files, to be linked where it is
    #[arg(long, conflicts_with = "sha256")]
    dir: Option<PathBuf>,
    /// Checksum of an archive that is not the official one
    #[arg(long, value_name = "HEX", value_parser = parse_sha256, requires = "given")]
    sha256: Option<String>,
}

pub(crate) fn fetch(place: &Place, args: &Fetch) -> Result<u8> {
    match args.dataset {
        Dataset::Cifar10 => provide(place, &CIFAR10, &args.source)?,
        Dataset::Cifar100 => provide(place, &CIFAR100, &args.source)?,
        Dataset::Digits => say("digits come with the project, in datasets/digits: there is nothing to fetch"),
    }
    Ok(0)
}

/// Provides a data set at `datasets/<name>`.
pub(crate) fn provide(place: &Place, layout: &Layout, source: &Source) -> Result<()> {
    let link = layout.link(place);
    let dir = match &source.dir {
        Some(dir) => dir.canonicalize().with_context(|| format!("--dir {}", dir.display()))?,
        None if is_there(layout, source, &link)? => {
            say(format!("{} is already there: {}", layout.name, link.display()));
            return Ok(());
        }
        None => in_cache(&place.cache, layout, source)?,
    };
    let sha256 = layout
        .check_content(&dir)
        .with_context(|| format!("{} is not {} in its binary layout", dir.display(), layout.name))?;
    let parent = link.parent().context("the link has no directory")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    replace_link(&link, &dir)?;
    say(format!("{}: {} -> {}", layout.name, link.display(), dir.display()));
    say(format!("{}: SHA-256 of the data {sha256}", layout.name));
    Ok(())
}

/// Whether the data set is at `link` and stays as it is.
fn is_there(layout: &Layout, source: &Source, link: &Path) -> Result<bool> {
    let own = link.symlink_metadata().is_ok_and(|metadata| !metadata.is_symlink());
    let chosen = source.archive.is_some() || source.url.is_some();
    if !own && (chosen || !link.exists()) {
        return Ok(false);
    }
    let yours = || format!("{} is your own directory and is not replaced", link.display());
    match layout.check_sizes(link) {
        Ok(()) if !chosen => return Ok(true),
        Ok(()) => bail!("{}: move it away first", yours()),
        Err(error) if own => return Err(error.context(format!("{}: repair it, or move it away", yours()))),
        Err(error) => note(format!("{} is fetched anew: {error:#}", layout.name)),
    }
    Ok(false)
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
        download::fetch(url, &archive, &sha256, Some(layout.archive_size)).with_context(|| {
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
