//! Which libtorch is in use: `.libtorch` in the workspace is a link to it, and every command that
//! needs it makes sure of that first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::machine::disk::replace_link;
use crate::machine::gpu::Gpus;
use crate::machine::install::{self, ArchiveChoice};
use crate::machine::pins::{Flavor, platform_here};
use crate::machine::tree::{MANIFEST, Tree, VERSION, has_cuda, inspect, manifest_of};
use crate::process::{Place, cargo, note, output, python, user_libtorch};

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
    note(format!(".libtorch -> {}: {tree}", tree.dir.display()));
    // torch-sys looks at the libraries when it is built, and again only when LIBTORCH changes.
    if flavor_before.is_some_and(|before| before != tree.flavor) && place.target().is_dir() {
        for profile in [&["--release"][..], &[]] {
            output(cargo(place).args(["clean", "--quiet", "--package", "torch-sys"]).args(profile));
        }
    }
    Ok(())
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
