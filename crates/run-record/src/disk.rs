//! Where the cache is, and writing a file so that a reader, or a restart, sees the old content or the new,
//! never a part.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// How the name of a half-written file ends.
const PARTIAL: &str = ".partial";

/// What all clones of the project share: `COMPACT_VISION_CACHE`, or `compact-vision` in the user's cache
/// directory. `None` where neither is known.
pub fn cache_dir() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    match (set("COMPACT_VISION_CACHE"), set("XDG_CACHE_HOME"), set("HOME")) {
        (Some(cache), ..) => Some(cache),
        (_, Some(xdg), _) if xdg.is_absolute() => Some(xdg.join("compact-vision")),
        (_, _, home) => home.map(|home| home.join(".cache/compact-vision")),
    }
}

/// Replaces the file at `path` by `bytes`: writes beside it, flushes to the disk, renames.
///
/// When writing or renaming fails (a full disk, a read-only directory) the old file is untouched
/// and the half-written one is removed. A process that is killed in between leaves a file that
/// [`remove_partial_files`] knows.
///
/// # Errors
/// Whatever the file system answers; the message does not name the path, so add it.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (directory, beside) = beside(path)?;
    let written = write_and_flush(&beside, bytes).and_then(|()| fs::rename(&beside, path));
    if let Err(error) = written {
        // The first error is the one to report; a leftover that cannot be removed is only litter.
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    // The rename itself is durable only once its directory is.
    File::open(directory)?.sync_all()
}

/// Whether [`write_atomically`] can begin to write the file at `path`; writes nothing that stays. A disk that is full
/// shows only when it fills.
///
/// # Errors
/// Whatever the file system answers: there is no such directory, it cannot be written, the name is too long.
pub fn check_writable(path: &Path) -> io::Result<()> {
    let (_, beside) = beside(path)?;
    File::create(&beside)?;
    fs::remove_file(beside)
}

/// The directory of the file at `path`, and where in it the file is written before it is whole.
fn beside(path: &Path) -> io::Result<(&Path, PathBuf)> {
    let mut name = OsString::from(".");
    name.push(path.file_name().ok_or_else(|| io::Error::other("the path names no file"))?);
    name.push(format!(".{}{PARTIAL}", std::process::id()));
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    Ok((directory, directory.join(name)))
}

/// Removes what killed processes left half-written in `directory`; only for who holds its lock.
///
/// # Errors
/// Whatever the file system answers.
pub fn remove_partial_files(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(PARTIAL) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn write_and_flush(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_litter() {
        let directory = std::env::temp_dir().join(format!("run-record-disk-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("history.csv");
        write_atomically(&path, b"first").unwrap();
        write_atomically(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        check_writable(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        // No directory, a file in its place, a name that is too long with what is added to it, none at all.
        for wrong in ["none/file", "history.csv/file", &"x".repeat(250), ".."] {
            assert!(check_writable(&directory.join(wrong)).is_err(), "{wrong}");
        }

        // A directory cannot be replaced by a file: the rename fails after the bytes are written.
        let occupied = directory.join("occupied");
        fs::create_dir_all(occupied.join("inside")).unwrap();
        assert!(write_atomically(&occupied, b"third").is_err());
        // A killed process cannot clean up behind itself.
        fs::write(directory.join(".history.csv.1.partial"), "half").unwrap();
        remove_partial_files(&directory).unwrap();
        let mut names: Vec<_> =
            fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["history.csv", "occupied"]);
        fs::remove_dir_all(&directory).unwrap();
    }
}
