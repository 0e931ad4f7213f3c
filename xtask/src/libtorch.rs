//! Which libtorch is in use: `.libtorch` in the workspace is a link to it, and every command that
//! needs it makes sure of that first.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::disk::replace_link;
use crate::gpu::Gpus;
use crate::install;
use crate::pins::{Flavor, platform_here};
use crate::process::{Place, cargo, note, output, python, user_libtorch};

/// The version the bindings are made for.
pub(crate) const VERSION: &str = "2.11.0";

/// Name of the list of files that is written last into a cache entry.
pub(crate) const MANIFEST: &str = "manifest.json";

/// What is asked for on the command line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum FlavorChoice {
    /// What is linked already; else cuda where an NVIDIA card can be used, else cpu.
    #[default]
    Auto,
    /// For the processor alone: about 0.5 GB to download.
    Cpu,
    /// With CUDA: about 2.5 GB to download. Linux only.
    Cuda,
}

impl FlavorChoice {
    fn admits(self, flavor: Flavor) -> bool {
        match self {
            Self::Auto => true,
            Self::Cpu => flavor == Flavor::Cpu,
            Self::Cuda => flavor == Flavor::Cuda,
        }
    }

    fn resolve(self, gpus: &Gpus) -> Flavor {
        match self {
            Self::Cpu => Flavor::Cpu,
            Self::Cuda => Flavor::Cuda,
            Self::Auto if platform_here().is_some_and(|p| p.has_cuda()) && gpus.usable() => Flavor::Cuda,
            Self::Auto => Flavor::Cpu,
        }
    }
}

/// A libtorch directory that was looked at and found usable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tree {
    pub(crate) dir: PathBuf,
    pub(crate) flavor: Flavor,
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

/// An upstream archive to use in place of the wheels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ArchiveChoice {
    /// A path or an http(s) address.
    pub(crate) source: String,
    pub(crate) sha256: String,
}

/// Makes sure that `.libtorch` leads to a usable libtorch; silent when it does already.
pub(crate) fn ensure(place: &Place, choice: FlavorChoice, archive: Option<&ArchiveChoice>) -> Result<Tree> {
    // It may be meant for another machine.
    if choice == FlavorChoice::Cuda
        && let Some(problem) = Gpus::here().problem()
    {
        note(format!("warning: {problem}: this libtorch will train on the processor here"));
    }
    if let Some((variable, dir)) = users_own(place)? {
        if archive.is_some() {
            bail!("{variable} is set, and wins over --archive: unset it, or leave --archive out");
        }
        return use_own(place, choice, variable, &dir);
    }
    if archive.is_none() {
        match linked(place) {
            Ok(Some(tree)) if choice.admits(tree.flavor) => return Ok(tree),
            Ok(_) => {}
            Err(error) => note(format!(".libtorch cannot be used and is set up anew: {error:#}")),
        }
    }
    let dir = match archive {
        Some(archive) => install::from_archive(&place.cache, archive)?,
        None => {
            let gpus = Gpus::here();
            if let (FlavorChoice::Auto, Some(problem)) = (choice, gpus.problem()) {
                note(format!("{problem}: libtorch is set up for the processor"));
            }
            install::from_wheels(&place.cache, choice.resolve(&gpus))?
        }
    };
    let tree = inspect(&dir)?;
    link(place, &tree)?;
    Ok(tree)
}

/// The libtorch the next command would use, without providing one; `None` where one has to be.
pub(crate) fn in_use(place: &Place) -> Result<Option<Tree>> {
    match users_own(place)? {
        Some((variable, dir)) => {
            inspect(&dir).with_context(|| format!("{variable} points to {}", dir.display())).map(Some)
        }
        None => linked(place),
    }
}

/// A libtorch the user named by a variable, and the variable.
fn users_own(place: &Place) -> Result<Option<(&'static str, PathBuf)>> {
    // The order of the build script of torch-sys, for which the mere presence of the second counts.
    if std::env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        let find = "import torch, os; print(os.path.dirname(torch.__file__))";
        let dir = output(Command::new(python()).args(["-c", find])).with_context(|| {
            let wish = format!("install torch {VERSION} there, or unset it");
            format!("LIBTORCH_USE_PYTORCH is set, but {} cannot import torch: {wish}", python().display())
        })?;
        return Ok(Some(("LIBTORCH_USE_PYTORCH", dir.into())));
    }
    Ok(user_libtorch(place).map(|dir| ("LIBTORCH", dir)))
}

fn use_own(place: &Place, choice: FlavorChoice, variable: &str, dir: &Path) -> Result<Tree> {
    if !dir.is_absolute() {
        bail!("{variable} = {} has to be an absolute path", dir.display());
    }
    let tree = inspect(dir).with_context(|| {
        format!("{variable} points to {}: correct it, or unset it to have libtorch provided", dir.display())
    })?;
    if !choice.admits(tree.flavor) {
        let flavor = tree.flavor.as_str();
        bail!(
            "{variable} = {} is a {flavor} build: leave --flavor out, or unset the variable",
            dir.display()
        );
    }
    link(place, &tree)?;
    Ok(tree)
}

/// The usable tree `.libtorch` leads to; `None` without a link, an error for an unusable one.
pub(crate) fn linked(place: &Place) -> Result<Option<Tree>> {
    let link = place.libtorch_link();
    if link.symlink_metadata().is_err() {
        return Ok(None);
    }
    let dir = link.canonicalize().with_context(|| match fs::read_link(&link) {
        Ok(target) => format!(".libtorch leads to {}, which is not there", target.display()),
        Err(_) => ".libtorch".to_owned(),
    })?;
    // An entry of the cache without its manifest is one that was never finished, or half removed.
    let cache = place.cache.join("libtorch").canonicalize();
    if cache.is_ok_and(|cache| dir.starts_with(cache)) && manifest_of(&dir).is_none() {
        bail!("{} has no {MANIFEST}: it is not whole", dir.display());
    }
    inspect(&dir).map(Some)
}

fn link(place: &Place, tree: &Tree) -> Result<()> {
    let link = place.libtorch_link();
    let before = fs::read_link(&link).ok();
    if before.as_deref() == Some(&tree.dir) {
        return Ok(());
    }
    let flavor_before = before.map(|dir| if has_cuda(&dir) { Flavor::Cuda } else { Flavor::Cpu });
    replace_link(&link, &tree.dir)?;
    note(format!(".libtorch -> {} (libtorch {VERSION}, {})", tree.dir.display(), tree.flavor.as_str()));
    // torch-sys looks at the libraries when it is built, and again only when LIBTORCH changes.
    if flavor_before.is_some_and(|before| before != tree.flavor) && place.target().is_dir() {
        for profile in [&["--release"][..], &[]] {
            output(cargo(place).args(["clean", "--quiet", "--package", "torch-sys"]).args(profile));
        }
    }
    Ok(())
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

fn has_cuda(dir: &Path) -> bool {
    dir.join("lib/libtorch_cuda.so").exists()
}

/// The manifest of the cache entry `dir` is, or is the `torch` directory of.
fn manifest_of(dir: &Path) -> Option<PathBuf> {
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

/// Whether training would run on a GPU, judged before anything is set up.
pub(crate) fn cuda_expected(place: &Place, gpus: &Gpus) -> bool {
    if !gpus.usable() {
        return false;
    }
    let own = users_own(place).ok().flatten().map(|(_, dir)| dir);
    match (own, linked(place)) {
        (Some(dir), _) => has_cuda(&dir),
        (None, Ok(Some(tree))) => tree.flavor == Flavor::Cuda,
        (None, _) => FlavorChoice::Auto.resolve(gpus) == Flavor::Cuda,
    }
}

#[cfg(test)]
pub(crate) mod tests;
