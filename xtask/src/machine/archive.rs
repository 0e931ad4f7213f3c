//! Reading zip archives by name and size. Nothing an archive says decides where a file goes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use zip::ZipArchive;

use crate::machine::progress::Meter;

/// Fails for a name that could lead out of the directory it is unpacked in.
pub(crate) fn require_plain_name(name: &str) -> Result<()> {
    let parts_are_plain = name.trim_end_matches('/').split('/').all(|part| !matches!(part, "" | "." | ".."));
    if name.is_empty() || !parts_are_plain || name.contains(['\\', '\0', ':']) {
        bail!("the entry {name:?} is not a plain relative path; the archive is refused");
    }
    Ok(())
}

/// Unpacks the files for which `destination` gives a path below `into`, and returns those paths
/// with their sizes. All entries are checked before the first byte is written.
pub(crate) fn unpack_zip(
    archive: &Path,
    into: &Path,
    destination: impl Fn(&str) -> Option<PathBuf>,
) -> Result<BTreeMap<PathBuf, u64>> {
    unpack(archive, into, destination).with_context(|| format!("cannot unpack {}", archive.display()))
}

fn unpack(
    archive: &Path,
    into: &Path,
    destination: impl Fn(&str) -> Option<PathBuf>,
) -> Result<BTreeMap<PathBuf, u64>> {
    let mut zip = ZipArchive::new(BufReader::new(File::open(archive)?))
        .context("it is no zip archive, or not a whole one")?;
    let mut wanted = Vec::new();
    for index in 0..zip.len() {
        let entry = zip.by_index_raw(index)?;
        let name = entry.name().map_err(|_| anyhow!("entry {index} has a name that is not UTF-8"))?;
        require_plain_name(&name)?;
        // Of the Unix file types only a regular file and a directory may occur; 0 is "not said".
        let kind = entry.unix_mode().unwrap_or(0) & 0o170_000;
        if entry.is_symlink() || !matches!(kind, 0 | 0o100_000 | 0o040_000) {
            bail!("the entry {name:?} is neither a file nor a directory; the archive is refused");
        }
        if let Some(path) = destination(&name).filter(|_| !entry.is_dir()) {
            wanted.push((index, path, entry.size()));
        }
    }

    let total = wanted.iter().map(|(_, _, size)| size).sum();
    let label = archive.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut meter = Meter::new(&format!("unpacking {label}"), Some(total));
    let mut done = 0;
    let mut unpacked = BTreeMap::new();
    for (index, path, size) in wanted {
        let entry = zip.by_index(index)?;
        let target = into.join(&path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
        // One byte more than declared is enough to see that there is more.
        copy_exactly(entry.take(size.saturating_add(1)), &target, size, |bytes| meter.set(done + bytes))?;
        done += size;
        unpacked.insert(path, size);
    }
    Ok(unpacked)
}

/// Writes a new file of exactly `size` bytes.
pub(crate) fn copy_exactly(
    mut from: impl Read,
    target: &Path,
    size: u64,
    mut progress: impl FnMut(u64),
) -> Result<()> {
    let writing = || format!("cannot write {}", target.display());
    let mut file = BufWriter::new(File::create_new(target).with_context(writing)?);
    let mut buffer = vec![0; 1 << 20];
    let mut written = 0;
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read the entry for {}", target.display()));
            }
        };
        written += n as u64;
        if written > size {
            bail!("the entry for {} is larger than the {size} bytes it declares", target.display());
        }
        file.write_all(&buffer[..n]).with_context(writing)?;
        progress(written);
    }
    if written < size {
        bail!("the entry for {} has {written} of the {size} bytes it declares", target.display());
    }
    file.flush().with_context(writing)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use zip::write::SimpleFileOptions;

    /// A zip archive of `files`.
    pub(crate) fn zip_of(path: &Path, files: &[(&str, &[u8])]) {
        let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
        for (name, bytes) in files {
            zip.start_file(*name, SimpleFileOptions::default()).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
    }

    /// Replaces every occurrence of `old` in a file, for names the writer would not write.
    fn patch(path: &Path, old: &str, new: &str) {
        assert_eq!(old.len(), new.len());
        let mut bytes = fs::read(path).unwrap();
        let mut found = 0;
        for at in 0..bytes.len() - old.len() {
            if &bytes[at..at + old.len()] == old.as_bytes() {
                bytes[at..at + new.len()].copy_from_slice(new.as_bytes());
                found += 1;
            }
        }
        assert_eq!(found, 2, "the local and the central header");
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused_and_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        for evil in ["../x", "/abs", "a/../b", "..\\x", "a//b", "./x", "C:/x"] {
            let path = dir.path().join("evil.zip");
            let placeholder = "Q".repeat(evil.len());
            zip_of(&path, &[("good", b"good"), (&placeholder, b"evil")]);
            patch(&path, &placeholder, evil);
            let into = dir.path().join("into");
            let error = unpack_zip(&path, &into, |name| Some(name.into())).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains("is refused") && error.contains(&format!("{evil:?}")), "{error}");
            assert!(!into.exists());
        }
    }

    #[test]
    fn links_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("link.zip");
        let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
        zip.add_symlink("lib/link", "/etc/passwd", SimpleFileOptions::default()).unwrap();
        zip.finish().unwrap();
        let error = format!("{:#}", unpack_zip(&path, dir.path(), |_| None).unwrap_err());
        assert!(error.contains("\"lib/link\" is neither"), "{error}");
    }

    #[test]
    fn a_truncated_archive_and_a_wrong_size_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cut.zip");
        zip_of(&path, &[("a", &[7; 1000]), ("b", b"b")]);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let error = format!("{:#}", unpack_zip(&path, dir.path(), |name| Some(name.into())).unwrap_err());
        assert!(error.contains("not a whole one"), "{error}");

        let target = dir.path().join("target");
        let long = copy_exactly(&[0; 11][..], &target, 10, |_| {}).unwrap_err().to_string();
        assert!(long.contains("larger than the 10 bytes"), "{long}");
        fs::remove_file(&target).unwrap();
        let short = copy_exactly(&[0; 9][..], &target, 10, |_| {}).unwrap_err().to_string();
        assert!(short.contains("9 of the 10 bytes"), "{short}");
    }

    #[test]
    fn only_the_wanted_files_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("some.zip");
        zip_of(&path, &[("top/lib/a.so", b"library"), ("top/bin/protoc", b"tool")]);
        let into = dir.path().join("into");
        let keep =
            |name: &str| name.strip_prefix("top/").filter(|n| n.starts_with("lib/")).map(PathBuf::from);
        let unpacked = unpack_zip(&path, &into, keep).unwrap();
        assert_eq!(unpacked, BTreeMap::from([(PathBuf::from("lib/a.so"), 7)]));
        assert_eq!(fs::read(into.join("lib/a.so")).unwrap(), b"library");
        assert!(!into.join("bin").exists());
    }
}
