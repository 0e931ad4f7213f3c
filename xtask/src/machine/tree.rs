//! What makes a directory a usable libtorch: its libraries, its headers, its version, and the manifest of a cache entry.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::machine::pins::Flavor;

/// The version the bindings are made for.
pub(crate) const VERSION: &str = "2.11.0";

/// Name of the list of files that is written last into a cache entry.
pub(crate) const MANIFEST: &str = "manifest.json";

/// A libtorch directory that was looked at and found usable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tree {
    pub(crate) dir: PathBuf,
    pub(crate) flavor: Flavor,
}

impl Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "libtorch {VERSION} ({})", self.flavor.as_str())
    }
}

/// What a cache entry is made of and holds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) version: String,
    pub(crate) flavor: String,
    pub(crate) platform: String,
    /// SHA-256 of the archives it was unpacked from.
    pub(crate) sources: Vec<String>,
    /// Path below the entry, and size.
    pub(crate) files: BTreeMap<PathBuf, u64>,
}

/// Checks version, libraries, headers and, for an entry of the cache, that it is whole.
pub(crate) fn inspect(dir: &Path) -> Result<Tree> {
    let extension = if cfg!(target_os = "macos") { "dylib" } else { "so" };
    for needed in
        [format!("lib/libtorch_cpu.{extension}"), "include/torch/csrc/api/include/torch/torch.h".into()]
    {
        if !dir.join(&needed).is_file() {
            bail!("{} is no libtorch directory: it has no {needed}", dir.display());
        }
    }
    let version = version_of(dir)?;
    if version.split('+').next() != Some(VERSION) {
        bail!("{} is libtorch {version}, and {VERSION} is needed", dir.display());
    }
    if let Some(path) = manifest_of(dir) {
        check_manifest(&path)?;
    }
    let flavor = if has_cuda(dir) { Flavor::Cuda } else { Flavor::Cpu };
    Ok(Tree { dir: dir.to_path_buf(), flavor })
}

pub(crate) fn has_cuda(dir: &Path) -> bool {
    dir.join("lib/libtorch_cuda.so").exists()
}

/// The manifest of the cache entry `dir` is, or is the `torch` directory of.
pub(crate) fn manifest_of(dir: &Path) -> Option<PathBuf> {
    let above = (dir.file_name() == Some("torch".as_ref())).then(|| dir.parent()).flatten();
    [Some(dir), above].into_iter().flatten().map(|dir| dir.join(MANIFEST)).find(|path| path.is_file())
}

/// Names and sizes only: reading half a gigabyte at each start would be noticed.
pub(crate) fn check_manifest(path: &Path) -> Result<()> {
    let entry = path.parent().unwrap_or(Path::new("."));
    let reading = || format!("{} cannot be read", path.display());
    let bytes = fs::read(path).with_context(reading)?;
    let manifest: Manifest = serde_json::from_slice(&bytes).with_context(reading)?;
    for (name, size) in &manifest.files {
        let file = entry.join(name);
        let found = fs::metadata(&file).with_context(|| format!("{} is missing", file.display()))?.len();
        if found != *size {
            bail!("{} has {found} bytes, and its manifest says {size}", file.display());
        }
    }
    Ok(())
}

/// Version of a tree, from whichever of the usual places tells it.
fn version_of(dir: &Path) -> Result<String> {
    if let Ok(version) = fs::read_to_string(dir.join("build-version")) {
        return Ok(version.trim().to_owned());
    }
    if let Ok(python) = fs::read_to_string(dir.join("version.py")) {
        let assigned = python.lines().find_map(|line| line.strip_prefix("__version__ = "));
        if let Some(version) = assigned {
            return Ok(version.trim_matches(['\'', '"', ' ']).to_owned());
        }
    }
    for header in ["include/torch/headeronly/version.h", "include/torch/csrc/api/include/torch/version.h"] {
        let text = fs::read_to_string(dir.join(header)).unwrap_or_default();
        let number = |macro_name: &str| {
            let defined =
                text.lines().find_map(|line| line.strip_prefix("#define ")?.strip_prefix(macro_name));
            defined.and_then(|value| value.trim().parse::<u32>().ok())
        };
        let parts = ["TORCH_VERSION_MAJOR", "TORCH_VERSION_MINOR", "TORCH_VERSION_PATCH"].map(number);
        if let [Some(major), Some(minor), Some(patch)] = parts {
            return Ok(format!("{major}.{minor}.{patch}"));
        }
    }
    bail!("{} does not say which version it is (no build-version, version.py or version.h)", dir.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found_wherever_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        assert!(version_of(dir.path()).is_err());
        let header = dir.path().join("include/torch/headeronly/version.h");
        fs::create_dir_all(header.parent().unwrap()).unwrap();
        let text =
            "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 11\n#define TORCH_VERSION_PATCH 0\n";
        fs::write(&header, text).unwrap();
        assert_eq!(version_of(dir.path()).unwrap(), "2.11.0");
        fs::write(dir.path().join("version.py"), "x = 1\n__version__ = '2.11.1+cu130'\n").unwrap();
        assert_eq!(version_of(dir.path()).unwrap(), "2.11.1+cu130");
        fs::write(dir.path().join("build-version"), "2.11.2\n").unwrap();
        assert_eq!(version_of(dir.path()).unwrap(), "2.11.2");
    }
}
