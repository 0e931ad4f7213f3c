//! Putting libtorch into the cache: downloading, unpacking, and making it appear there whole.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::machine::archive::unpack_zip;
use crate::machine::disk::{self, megabytes, partial_directory, publish, require_space, verify_sha256};
use crate::machine::download;
use crate::machine::pins::{Flavor, Platform, platform_here};
use crate::machine::pip;
use crate::machine::tree::{MANIFEST, Manifest, VERSION, check_manifest, inspect};
use crate::process::note;

/// An upstream archive to use in place of the wheels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ArchiveChoice {
    /// A path or an http(s) address.
    pub(crate) source: String,
    pub(crate) sha256: String,
}

/// In place of the shared library that would pull in libtorch_cuda as well.
const CPU_LINKER_SCRIPT: &str = "INPUT(-ltorch_cpu)\n";

/// The libtorch directory of the pinned wheels in the cache, put there if need be.
pub(crate) fn from_wheels(cache: &Path, flavor: Flavor) -> Result<PathBuf> {
    let Some(platform) = platform_here() else {
        bail!(
            "libtorch for {} {} is not pinned here (Linux x86-64 and aarch64 and macOS on Apple silicon are): set \
             LIBTORCH to a libtorch {VERSION} directory, or use `cargo xtask setup --archive FILE_OR_URL --sha256 HEX`",
            std::env::consts::OS,
            std::env::consts::ARCH
        );
    };
    if flavor == Flavor::Cuda && !platform.has_cuda() {
        bail!("there is no cuda flavour for {}: use --flavor cpu", platform.name);
    }
    let parent = cache.join("libtorch");
    let entry = parent.join(format!("{VERSION}-{}-{}", flavor.as_str(), platform.name));
    let _lock = disk::lock(cache)?;
    if is_whole(&entry) {
        return Ok(libtorch_in(&entry));
    }

    let wheels = platform.wheels(flavor);
    let download_size: u64 = wheels.iter().map(|wheel| wheel.size).sum();
    let largest = wheels.iter().map(|wheel| wheel.size).max().unwrap_or(0);
    let downloads = cache.join("downloads");
    // Cleans up first: what a killed run left must not count as used space.
    let partial = partial_directory(&parent)?;
    let missing = download_size - pip::downloaded_size(&wheels, &downloads);
    let unpacked = platform.unpacked_size(flavor);
    note(format!(
        "libtorch {VERSION} ({}): downloading {} with pip, for {} on disk in {}",
        flavor.as_str(),
        megabytes(missing),
        megabytes(unpacked),
        entry.display()
    ));
    // pip holds the wheel it is busy with twice; unpacking begins after that.
    require_space(cache, missing + largest.max(unpacked), &format!("libtorch ({})", flavor.as_str()))?;

    let files = pip::download(&wheels, &downloads)?;
    fill(&partial, platform, flavor, &files)?;
    let sources = wheels.iter().map(|wheel| wheel.sha256.to_owned()).collect();
    finish(partial, &entry, flavor, platform.name, sources)?;
    for file in files {
        // The checksummed copy served its purpose; one that cannot be removed only takes space.
        let _ = fs::remove_file(file);
    }
    Ok(libtorch_in(&entry))
}

/// Unpacks the wheels into `partial`.
fn fill(partial: &TempDir, platform: &Platform, flavor: Flavor, wheels: &[PathBuf]) -> Result<()> {
    for wheel in wheels {
        unpack_zip(wheel, partial.path(), |name| platform.destination(flavor, name))?;
    }
    let lib = libtorch_in(partial.path()).join("lib");
    if flavor == Flavor::Cpu && platform.has_cuda() {
        fs::write(lib.join("libtorch.so"), CPU_LINKER_SCRIPT)
            .with_context(|| format!("cannot write to {}", lib.display()))?;
    }
    for library in platform.required_libraries(flavor) {
        if !lib.join(library).is_file() {
            bail!("the wheels hold no {library}: the pins of {} do not fit together", platform.name);
        }
    }
    Ok(())
}

/// The libtorch directory of an upstream archive in the cache, put there if need be.
pub(crate) fn from_archive(cache: &Path, archive: &ArchiveChoice) -> Result<PathBuf> {
    let sha256 = archive.sha256.to_ascii_lowercase();
    let parent = cache.join("libtorch");
    let entry = parent.join(format!("{VERSION}-archive-{}", &sha256[..12]));
    let _lock = disk::lock(cache)?;
    if is_whole(&entry) {
        return Ok(libtorch_in(&entry));
    }
    let partial = partial_directory(&parent)?;
    let is_url = archive.source.starts_with("http://") || archive.source.starts_with("https://");
    let file = if is_url {
        note(format!("libtorch {VERSION}: downloading {} for {}", archive.source, entry.display()));
        let file = cache.join("downloads").join(format!("libtorch-{}.zip", &sha256[..12]));
        download::fetch(&archive.source, &file, &sha256, None)?;
        file
    } else {
        let file = PathBuf::from(&archive.source);
        note(format!("libtorch {VERSION}: unpacking {} for {}", file.display(), entry.display()));
        verify_sha256(&file, &sha256)?;
        file
    };
    unpack_zip(&file, partial.path(), upstream_destination)?;
    let tree = inspect(partial.path())
        .with_context(|| format!("{} is no libtorch {VERSION} archive", archive.source))?;
    finish(partial, &entry, tree.flavor, std::env::consts::OS, vec![sha256])?;
    if is_url {
        let _ = fs::remove_file(file);
    }
    Ok(libtorch_in(&entry))
}

/// Upstream archives hold everything below `libtorch/`.
fn upstream_destination(name: &str) -> Option<PathBuf> {
    let name = name.strip_prefix("libtorch/")?;
    let taken = name.starts_with("lib/") || name.starts_with("include/") || name == "build-version";
    taken.then(|| name.into())
}

/// Writes the manifest and gives the entry its name.
fn finish(
    partial: TempDir,
    entry: &Path,
    flavor: Flavor,
    platform: &str,
    sources: Vec<String>,
) -> Result<()> {
    let mut files = BTreeMap::new();
    list_files(partial.path(), partial.path(), &mut files)
        .with_context(|| format!("cannot list {}", partial.path().display()))?;
    let manifest = Manifest {
        version: VERSION.into(),
        flavor: flavor.as_str().into(),
        platform: platform.into(),
        sources,
        files,
    };
    let path = partial.path().join(MANIFEST);
    fs::write(&path, serde_json::to_vec(&manifest)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    publish(partial, entry)
}

fn list_files(top: &Path, dir: &Path, files: &mut BTreeMap<PathBuf, u64>) -> Result<()> {
    for item in fs::read_dir(dir)? {
        let item = item?;
        if item.file_type()?.is_dir() {
            list_files(top, &item.path(), files)?;
        } else {
            files.insert(item.path().strip_prefix(top)?.to_path_buf(), item.metadata()?.len());
        }
    }
    Ok(())
}

/// Whether a cache entry was finished and still is what its manifest says.
fn is_whole(entry: &Path) -> bool {
    match check_manifest(&entry.join(MANIFEST)) {
        Ok(()) => true,
        Err(error) => {
            if entry.exists() {
                note(format!("{} is not whole and is made anew: {error:#}", entry.display()));
            }
            false
        }
    }
}

/// The directory with include/ and lib/ in a cache entry.
fn libtorch_in(entry: &Path) -> PathBuf {
    let torch = entry.join("torch");
    if torch.is_dir() { torch } else { entry.to_path_buf() }
}
