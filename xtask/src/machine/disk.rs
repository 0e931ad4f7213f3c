//! The cache on disk: its lock, free space, checksums, and how a directory appears in it at once
//! or not at all.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;

use anyhow::{Context, Result, bail};
use run_record::sha256_file;
use tempfile::TempDir;

use crate::process::note;

/// What a directory is called until it is whole.
const PARTIAL: &str = ".partial-";

/// Takes the cache's lock; it is held until the file is dropped, or the process dies.
pub(crate) fn lock(cache: &Path) -> Result<File> {
    fs::create_dir_all(cache).with_context(|| {
        format!("cannot create the cache {} (COMPACT_VISION_CACHE moves it)", cache.display())
    })?;
    let path = cache.join("lock");
    let at = || format!("the lock {}", path.display());
    let file = File::options().create(true).truncate(false).write(true).open(&path).with_context(at)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            note(format!("another set-up is using {}; waiting for it to end", cache.display()));
            file.lock().with_context(at)?;
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(at),
    }
    Ok(file)
}

/// A new directory beside the final ones in `parent`, after removing what killed runs left there.
/// Only for the holder of the lock.
pub(crate) fn partial_directory(parent: &Path) -> Result<TempDir> {
    let at = || format!("cannot prepare {}", parent.display());
    fs::create_dir_all(parent).with_context(at)?;
    for entry in fs::read_dir(parent).with_context(at)? {
        let entry = entry.with_context(at)?;
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("cannot remove the leftover {}", entry.path().display()))?;
        }
    }
    tempfile::Builder::new().prefix(PARTIAL).tempdir_in(parent).with_context(at)
}

/// Flushes `whole` to the disk and gives it its final name, in place of what had that name.
pub(crate) fn publish(whole: TempDir, target: &Path) -> Result<()> {
    let at = || format!("cannot complete {}", target.display());
    flush(whole.path()).with_context(at)?;
    // mkdtemp makes directories private; the cache follows the user's umask like any other file.
    let parent = target.parent().with_context(at)?;
    fs::set_permissions(whole.path(), fs::metadata(parent).with_context(at)?.permissions())
        .with_context(at)?;
    let mut replaced = None;
    if target.symlink_metadata().is_ok() {
        let aside = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(parent).with_context(at)?;
        fs::rename(target, aside.path().join("replaced")).with_context(at)?;
        replaced = Some(aside);
    }
    fs::rename(whole.path(), target).with_context(at)?;
    // It has left the name that would be removed on drop.
    let _ = whole.keep();
    drop(replaced);
    File::open(parent).and_then(|dir| dir.sync_all()).with_context(at)
}

/// Waits until everything below `directory` is on the disk. One call for the file system is far
/// quicker than one for each of ten thousand headers.
fn flush(directory: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::fs::syncfs(File::open(directory)?)?;
    #[cfg(not(target_os = "linux"))]
    {
        let _ = directory;
        rustix::fs::sync();
    }
    Ok(())
}

/// Bytes free to us on the file system that holds `path`, or will hold it.
pub(crate) fn free_space(path: &Path) -> Result<u64> {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(existing)
        .with_context(|| format!("cannot ask for the free space at {}", existing.display()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Fails unless `needed` bytes are free at `path`.
pub(crate) fn require_space(path: &Path, needed: u64, what: &str) -> Result<()> {
    let free = free_space(path)?;
    if free < needed {
        bail!(
            "{what} needs {} of free disk at {}, and {} are left: free some, or set COMPACT_VISION_CACHE to \
             a directory on another disk",
            megabytes(needed),
            path.display(),
            megabytes(free)
        );
    }
    Ok(())
}

/// A size for people.
pub(crate) fn megabytes(bytes: u64) -> String {
    match bytes {
        0..10_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        10_000_000..10_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.0} GB", bytes as f64 / 1e9),
    }
}

/// A SHA-256 of the command line.
pub(crate) fn parse_sha256(text: &str) -> Result<String, String> {
    let valid = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if valid { Ok(text.to_ascii_lowercase()) } else { Err("a SHA-256 is 64 hexadecimal digits".to_owned()) }
}

/// Compares a file's SHA-256 with the expected one.
pub(crate) fn verify_sha256(path: &Path, expected: &str) -> Result<()> {
    let found = sha256_file(path).with_context(|| format!("cannot read {}", path.display()))?;
    if !found.eq_ignore_ascii_case(expected) {
        bail!("{}: the SHA-256 is {found}, expected {expected}", path.display());
    }
    Ok(())
}

/// Makes `link` a symbolic link to `target`, in place of a link that is there already. Anything
/// else at that path belongs to the user and stays.
pub(crate) fn replace_link(link: &Path, target: &Path) -> Result<()> {
    let at = || format!("cannot link {} to {}", link.display(), target.display());
    match link.symlink_metadata() {
        Ok(found) if !found.is_symlink() => {
            bail!(
                "{} is not a link but your own {}: move it away first, it is not replaced",
                link.display(),
                { if found.is_dir() { "directory" } else { "file" } }
            );
        }
        Ok(_) if fs::read_link(link).with_context(at)? == target => return Ok(()),
        _ => {}
    }
    let mut beside = link.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = Path::new(&beside);
    let _ = fs::remove_file(beside);
    std::os::unix::fs::symlink(target, beside).with_context(at)?;
    fs::rename(beside, link).with_context(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_appears_whole_and_leftovers_of_killed_runs_go() {
        let parent = tempfile::tempdir().unwrap();
        let killed = parent.path().join(".partial-killed");
        fs::create_dir_all(killed.join("half")).unwrap();
        let target = parent.path().join("entry");
        for content in ["first", "second"] {
            let partial = partial_directory(parent.path()).unwrap();
            fs::write(partial.path().join("file"), content).unwrap();
            publish(partial, &target).unwrap();
            assert_eq!(fs::read_to_string(target.join("file")).unwrap(), content);
        }
        let names: Vec<_> = fs::read_dir(parent.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["entry"]);
    }

    #[test]
    fn links_are_replaced_and_everything_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        replace_link(&link, Path::new("/nonexistent/a")).unwrap();
        replace_link(&link, Path::new("/nonexistent/b")).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("/nonexistent/b"));

        let own = dir.path().join("own");
        fs::create_dir(&own).unwrap();
        let error = replace_link(&own, Path::new("/nonexistent/a")).unwrap_err().to_string();
        assert!(error.contains("your own directory"), "{error}");
        assert!(own.is_dir());
    }

    #[test]
    fn the_lock_excludes_a_second_holder() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        let second = File::options().write(true).open(dir.path().join("lock")).unwrap();
        assert!(matches!(second.try_lock(), Err(TryLockError::WouldBlock)));
        drop(held);
        second.try_lock().unwrap();
    }

    #[test]
    fn too_little_space_is_said_with_both_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let error = require_space(&dir.path().join("not/yet/there"), u64::MAX, "x").unwrap_err().to_string();
        assert!(error.starts_with("x needs ") && error.contains("COMPACT_VISION_CACHE"), "{error}");
        require_space(dir.path(), 1, "x").unwrap();
    }

    #[test]
    fn a_wrong_checksum_names_file_expected_and_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        fs::write(&path, "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        verify_sha256(&path, &abc.to_uppercase()).unwrap();
        let error = verify_sha256(&path, "00").unwrap_err().to_string();
        assert!(error.contains(abc) && error.contains("expected 00") && error.contains("/abc:"), "{error}");
    }
}
