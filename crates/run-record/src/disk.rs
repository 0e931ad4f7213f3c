//! Where the cache is, and writing a file so that a reader, or a restart, sees the old content or the new,
//! never a part.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

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

/// Replaces the file at `path` by `bytes`; see [`write_atomically_with`].
///
/// # Errors
/// Whatever the file system answers; the message does not name the path, so add it.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_atomically_with(path, |file| file.write_all(bytes))
}

/// Replaces the file at `path` by what `fill` writes: beside it, under a name of its own, flushed to the disk and
/// renamed. Whoever writes the same file at the same time, in this process or another, the file is one's or the other's.
///
/// When filling, flushing or renaming fails (a full disk, a read-only directory) the old file is untouched
/// and the half-written one is removed. A process that is killed in between leaves a file that
/// [`remove_partial_files`] knows.
///
/// # Errors
/// What `fill` or the file system answers; the message does not name the path, so add it.
pub fn write_atomically_with<T, E: From<io::Error>>(
    path: &Path,
    fill: impl FnOnce(&mut File) -> Result<T, E>,
) -> Result<T, E> {
    let (directory, mut beside) = beside(path)?;
    let filled = fill(beside.as_file_mut())?;
    beside.as_file().sync_all()?;
    beside.persist(path).map_err(|refused| refused.error)?;
    // The rename itself is durable only once its directory is.
    sync_directory(directory)?;
    Ok(filled)
}

/// Has the names in a directory on the disk.
///
/// # Errors
/// Whatever the file system answers.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Whether [`write_atomically`] can begin to write the file at `path`; writes nothing that stays. A disk that is full
/// shows only when it fills.
///
/// # Errors
/// Whatever the file system answers: there is no such directory, it cannot be written, the name is too long.
pub fn check_writable(path: &Path) -> io::Result<()> {
    beside(path)?.1.close()
}

/// The directory of the file at `path`, and a new file in it to write before it is whole.
fn beside(path: &Path) -> io::Result<(&Path, NamedTempFile)> {
    let mut name = OsString::from(".");
    name.push(path.file_name().ok_or_else(|| io::Error::other("the path names no file"))?);
    name.push(".");
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    // Made as any other file is, where `tempfile` would let nobody else read it.
    let file = builder.prefix(&name).suffix(PARTIAL).make_in(directory, |path| File::create_new(path))?;
    Ok((directory, file))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<OsString> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_litter() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path();
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
        let half = write_atomically_with(&path, |file| {
            file.write_all(b"half")?;
            Err::<(), _>(io::Error::other("no more"))
        });
        assert_eq!(half.unwrap_err().to_string(), "no more");
        assert_eq!(fs::read(&path).unwrap(), b"second");

        // A directory cannot be replaced by a file: the rename fails after the bytes are written.
        let occupied = directory.join("occupied");
        fs::create_dir_all(occupied.join("inside")).unwrap();
        assert!(write_atomically(&occupied, b"third").is_err());
        // A killed process cannot clean up behind itself.
        fs::write(directory.join(".history.csv.1.partial"), "half").unwrap();
        remove_partial_files(directory).unwrap();
        assert_eq!(names(directory), ["history.csv", "occupied"]);
    }

    #[test]
    fn writers_of_one_file_do_not_mix_and_others_may_read_it() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("record.json");
        let texts = [vec![b'a'; 100_000], vec![b'b'; 70_000]];
        std::thread::scope(|scope| {
            for text in &texts {
                scope.spawn(|| (0..50).for_each(|_| write_atomically(&path, text).unwrap()));
            }
            for _ in 0..200 {
                let read = fs::read(&path).unwrap_or_else(|_| texts[0].clone());
                assert!(texts.contains(&read), "{} bytes", read.len());
            }
        });
        assert_eq!(names(place.path()), ["record.json"]);
        let plain = place.path().join("plain");
        fs::write(&plain, "").unwrap();
        let permissions = |path: &Path| fs::metadata(path).unwrap().permissions();
        assert_eq!(permissions(&path), permissions(&plain));
    }
}
