//! Downloading pinned wheels through the machine's own pip, so that its proxies, mirrors and
//! certificates apply.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::machine::disk::verify_sha256;
use crate::machine::pins::Wheel;
use crate::machine::progress::watched;
use crate::process::python;

const ALTERNATIVES: &str = "or set LIBTORCH to a libtorch directory, or use `cargo xtask setup --archive`";

/// Bytes of `wheels` that are in `downloads` already, judged by size.
pub(crate) fn downloaded_size(wheels: &[Wheel], downloads: &Path) -> u64 {
    let there =
        |wheel: &&Wheel| fs::metadata(downloads.join(wheel.file)).is_ok_and(|m| m.len() == wheel.size);
    wheels.iter().filter(there).map(|wheel| wheel.size).sum()
}

/// Downloads what is missing of `wheels` into `downloads`, checks every checksum, and returns the
/// paths. One wheel at a time, so that an interruption costs at most one.
pub(crate) fn download(wheels: &[Wheel], downloads: &Path) -> Result<Vec<PathBuf>> {
    let python = python();
    require_pip(&python)?;
    fs::create_dir_all(downloads).with_context(|| format!("cannot create {}", downloads.display()))?;
    // Not the system's temporary directory: it may be a small one in memory.
    let scratch = downloads.join(".pip");
    let mut paths = Vec::new();
    for wheel in wheels {
        let path = downloads.join(wheel.file);
        if !path.exists() || verify_sha256(&path, wheel.sha256).is_err() {
            let _ = fs::remove_dir_all(&scratch);
            fs::create_dir_all(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
            let done = run_pip(&python, wheel, downloads, &scratch);
            let _ = fs::remove_dir_all(&scratch);
            done.and_then(|()| verify_sha256(&path, wheel.sha256)).inspect_err(|_| {
                let _ = fs::remove_file(&path);
            })?;
        }
        paths.push(path);
    }
    Ok(paths)
}

fn require_pip(python: &Path) -> Result<()> {
    let version = Command::new(python).args(["-m", "pip", "--version"]).stdin(Stdio::null()).output();
    match version {
        Ok(output) if output.status.success() => Ok(()),
        Ok(_) => bail!(
            "{} has no pip, which downloads libtorch: install it (Debian and Ubuntu: apt install python3-pip; \
             elsewhere: python3 -m ensurepip), {ALTERNATIVES}",
            python.display()
        ),
        Err(error) => bail!(
            "{} cannot be started ({error}), and its pip downloads libtorch: install Python 3 with pip (Debian and \
             Ubuntu: apt install python3-pip), {ALTERNATIVES}",
            python.display()
        ),
    }
}

fn run_pip(python: &Path, wheel: &Wheel, downloads: &Path, scratch: &Path) -> Result<()> {
    let requirements = scratch.join("requirements.txt");
    fs::write(&requirements, format!("{} --hash=sha256:{}\n", wheel.requirement(), wheel.sha256))
        .with_context(|| format!("cannot write {}", requirements.display()))?;
    let mut command = Command::new(python);
    command
        .args(["-m", "pip", "download", "--quiet", "--progress-bar", "off", "--no-input", "--no-deps"])
        .args(["--no-cache-dir", "--only-binary=:all:", "--require-hashes", "--disable-pip-version-check"])
        // One fixed interpreter, so that one checksum per platform holds whatever Python runs this.
        .args(["--python-version", "3.12", "--implementation", "cp", "--abi", "cp312"]);
    for tag in wheel.platform_tags() {
        command.args(["--platform", tag]);
    }
    command.arg("--dest").arg(downloads).arg("--requirement").arg(&requirements);
    // Nothing is installed, so the wish for a virtual environment does not apply. Newer pips resume.
    command.env("TMPDIR", scratch).env("PIP_REQUIRE_VIRTUALENV", "false").env("PIP_RESUME_RETRIES", "5");
    let output = watched(&mut command, &wheel.requirement(), Some(wheel.size), || size_below(scratch))?;
    if output.status.success() {
        return Ok(());
    }
    bail!(
        "pip could not download {}: {}; mend that (network, proxy, disk) and run it again, {ALTERNATIVES}",
        wheel.requirement(),
        condense(&String::from_utf8_lossy(&output.stderr))
    )
}

/// The telling lines of pip's messages, as one: the reason of the last failed connection, if any,
/// and the last error.
fn condense(messages: &str) -> String {
    let last =
        |start: &str| messages.lines().rev().find_map(|line| line.trim().strip_prefix(start)).map(str::trim);
    let retry = last("WARNING: Retrying").and_then(|line| {
        let (_, reason) = line.split_once("connection broken by ")?;
        // Without the name and address of pip's object, and the path it asked for.
        let reason = reason.rsplit_once("': ").map_or(reason, |(reason, _)| reason);
        let reason = reason.rsplit_once(">: ").map_or(reason, |(_, reason)| reason);
        Some(reason.trim_matches(['\'', '"', ')']))
    });
    let os_error = messages.contains("No space left on device").then_some("No space left on device");
    let error = last("ERROR:").or(messages.lines().rev().map(str::trim).find(|line| !line.is_empty()));
    let parts: Vec<&str> = [retry, os_error.or(error)].into_iter().flatten().collect();
    if parts.is_empty() { "it gave no reason".to_owned() } else { parts.join("; ") }
}

/// Bytes in all files below `dir`; what vanishes while looking counts as nothing.
fn size_below(dir: &Path) -> u64 {
    let Ok(items) = fs::read_dir(dir) else { return 0 };
    let size = |item: fs::DirEntry| match item.file_type() {
        Ok(kind) if kind.is_dir() => size_below(&item.path()),
        _ => item.metadata().map_or(0, |metadata| metadata.len()),
    };
    items.flatten().map(size).sum()
}

/// Whether the machine's Python has pip, for `doctor`.
pub(crate) fn problem() -> Option<String> {
    require_pip(&python()).err().map(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_pip_become_one_line() {
        let offline = "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError(refused)': /simple/torch/\n\
            WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('<x.Connection object at 0x7f>: Failed to connect: [Errno -3] no name')': /simple/torch/\n\
            ERROR: Could not find a version that satisfies the requirement torch==2.11.0 (from versions: none)\n\
            ERROR: No matching distribution found for torch==2.11.0\n\n[notice] a newer pip exists\n";
        let line = condense(offline);
        assert!(
            line.starts_with("Failed to connect: [Errno -3] no name; ")
                && line.ends_with("found for torch==2.11.0"),
            "{line}"
        );
        assert!(!line.contains('\n'));
        assert_eq!(
            condense("Traceback\n  File\nOSError: [Errno 28] No space left on device\n"),
            "No space left on device"
        );
        assert_eq!(condense(""), "it gave no reason");
    }

    #[test]
    fn a_python_without_pip_is_told_what_to_install() {
        let error = require_pip(Path::new("/nonexistent/python3")).unwrap_err().to_string();
        assert!(error.contains("apt install python3-pip") && error.contains("LIBTORCH"), "{error}");
        // A program that fails whatever it is asked stands for a Python without pip.
        let error = require_pip(Path::new("false")).unwrap_err().to_string();
        assert!(error.contains("has no pip") && error.contains("--archive"), "{error}");
    }
}
