//! Fetching data sets: made-up archives and directories in temporary places.

use super::*;
use crate::machine::download::tests::{Serve, server};
use crate::machine::libtorch::tests::place;
use flate2::{Compression, write::GzEncoder};
use run_record::{sha256, sha256_file};

/// CIFAR-10's layout with two records per file.
fn small() -> Layout {
    Layout { records: &[2; 6], sha256: "00", archive_size: 100_000, ..CIFAR10 }
}

fn records(label: u8) -> Vec<u8> {
    let record = |label: u8| [vec![label], vec![label.wrapping_mul(20); 3072]].concat();
    [record(label), record(9)].concat()
}

/// Writes the files into `dir` and returns the data's SHA-256.
fn write_files(dir: &Path) -> String {
    fs::create_dir_all(dir).unwrap();
    let mut all = Vec::new();
    for (index, file) in CIFAR10.files.iter().enumerate() {
        let bytes = records(u8::try_from(index).unwrap());
        fs::write(dir.join(file), &bytes).unwrap();
        all.extend(bytes);
    }
    sha256(all)
}

type Entry<'a> = (&'a str, EntryType, Vec<u8>);

fn tar_gz(path: &Path, entries: &[Entry]) -> String {
    let mut tar = tar::Builder::new(GzEncoder::new(File::create(path).unwrap(), Compression::fast()));
    for (name, kind, bytes) in entries {
        let mut header = tar::Header::new_ustar();
        // Not set_path, which refuses the names this is about.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        tar.append(&header, bytes.as_slice()).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap();
    sha256_file(path).unwrap()
}

fn good_entries() -> Vec<Entry<'static>> {
    let names = [
        "cifar-10-batches-bin/data_batch_1.bin",
        "cifar-10-batches-bin/data_batch_2.bin",
        "cifar-10-batches-bin/data_batch_3.bin",
        "cifar-10-batches-bin/data_batch_4.bin",
        "cifar-10-batches-bin/data_batch_5.bin",
        "cifar-10-batches-bin/test_batch.bin",
    ];
    let mut entries = vec![
        ("cifar-10-batches-bin/", EntryType::Directory, Vec::new()),
        ("cifar-10-batches-bin/readme.html", EntryType::Regular, b"not needed".to_vec()),
        ("cifar-10-batches-bin/batches.meta.txt", EntryType::Regular, b"airplane\n".to_vec()),
    ];
    entries.extend((0..6).map(|i| (names[i], EntryType::Regular, records(u8::try_from(i).unwrap()))));
    entries
}

#[test]
fn the_official_sizes_are_the_official_sizes() {
    assert_eq!(CIFAR10.size_of("test_batch.bin"), Some(30_730_000));
    assert_eq!(CIFAR100.size_of("train.bin"), Some(153_700_000));
    assert_eq!(CIFAR100.size_of("test.bin"), Some(30_740_000));
}

#[test]
fn an_archive_is_unpacked_by_name_checked_and_linked() {
    let (dir, place) = place();
    let archive = dir.path().join("mirror.tar.gz");
    let sha256 = tar_gz(&archive, &good_entries());
    let source = Source { archive: Some(archive.clone()), sha256: Some(sha256), ..Source::default() };
    provide(&place, &small(), &source).unwrap();
    let link = place.root.join("datasets/cifar10");
    let mut names: Vec<_> = fs::read_dir(link.join("cifar-10-batches-bin"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, [&["batches.meta.txt"][..], CIFAR10.files].concat());
    assert_eq!(small().check_content(&link).unwrap(), write_files(&dir.path().join("same")));
    assert!(archive.exists(), "the user's file stays");
    // A plain fetch finds it there and asks for nothing.
    provide(&place, &small(), &Source::default()).unwrap();
}

#[test]
fn a_download_is_unpacked_and_then_removed() {
    let (dir, place) = place();
    let path = dir.path().join("mirror.tar.gz");
    let sha256 = tar_gz(&path, &good_entries());
    let (url, _) = server(fs::read(&path).unwrap(), vec![Serve::Cut(500), Serve::Whole]);
    provide(&place, &small(), &Source { url: Some(url), sha256: Some(sha256), ..Source::default() }).unwrap();
    assert!(small().check_sizes(&place.root.join("datasets/cifar10")).is_ok());
    assert_eq!(fs::read_dir(place.cache.join("downloads")).unwrap().count(), 0);
}

#[test]
fn an_archive_with_one_evil_entry_is_refused_as_a_whole() {
    let evil = [
        ("../escaped", EntryType::Regular, "\"../escaped\" is not a plain"),
        ("/absolute", EntryType::Regular, "\"/absolute\" is not a plain"),
        ("cifar-10-batches-bin/../../x", EntryType::Regular, "is not a plain"),
        ("cifar-10-batches-bin/link", EntryType::Symlink, "link\" is neither a file nor"),
        ("cifar-10-batches-bin/hard", EntryType::Link, "hard\" is neither a file nor"),
        ("device", EntryType::Char, "\"device\" is neither a file nor"),
    ];
    for (name, kind, expected) in evil {
        let (dir, place) = place();
        let archive = dir.path().join("evil.tar.gz");
        let mut entries = good_entries();
        entries.push((name, kind, Vec::new()));
        let sha256 = tar_gz(&archive, &entries);
        let source = Source { archive: Some(archive), sha256: Some(sha256), ..Source::default() };
        let error = format!("{:#}", provide(&place, &small(), &source).unwrap_err());
        assert!(error.contains(expected) && error.contains("refused"), "{error}");
        assert_eq!(fs::read_dir(place.cache.join("datasets")).unwrap().count(), 0, "{name}");
        assert!(!place.root.join("datasets/cifar10").exists());
    }
}

#[test]
fn wrong_checksums_sizes_and_truncation_are_named() {
    let attempt = |entries: &[Entry], cut: bool, sha256: Option<&str>| {
        let (dir, place) = place();
        let archive = dir.path().join("some.tar.gz");
        let mut right = tar_gz(&archive, entries);
        if cut {
            let bytes = fs::read(&archive).unwrap();
            fs::write(&archive, &bytes[..bytes.len() / 2]).unwrap();
            right = sha256_file(&archive).unwrap();
        }
        let sha256 = Some(sha256.map_or(right, str::to_owned));
        let source = Source { archive: Some(archive), sha256, ..Source::default() };
        let error = format!("{:#}", provide(&place, &small(), &source).unwrap_err());
        assert!(!place.root.join("datasets/cifar10").exists());
        error
    };
    let zeros = "0".repeat(64);
    let error = attempt(&good_entries(), false, Some(&zeros));
    assert!(error.contains("some.tar.gz: the SHA-256 is") && error.contains(&zeros), "{error}");
    let error = attempt(&good_entries(), true, None);
    assert!(error.contains("some.tar.gz"), "{error}");
    let mut entries = good_entries();
    entries[3].2.pop();
    let error = attempt(&entries, false, None);
    assert!(error.contains("data_batch_1.bin\" has 6145 bytes, and 6146 are expected"), "{error}");
    let error = attempt(&good_entries()[..8], false, None);
    assert!(error.contains("no cifar-10-batches-bin/test_batch.bin"), "{error}");
}

#[test]
fn an_unpacked_directory_is_checked_and_linked_where_it_is() {
    let (dir, place) = place();
    for own in [dir.path().join("a/cifar-10-batches-bin"), dir.path().join("b/renamed")] {
        let sha256 = write_files(&own);
        let given = if own.ends_with("renamed") { own.clone() } else { dir.path().join("a") };
        provide(&place, &small(), &Source { dir: Some(given), ..Source::default() }).unwrap();
        assert_eq!(small().check_content(&place.root.join("datasets/cifar10")).unwrap(), sha256);
    }

    let own = dir.path().join("b/renamed");
    fs::write(own.join("data_batch_2.bin"), records(10)).unwrap();
    let error = format!(
        "{:#}",
        provide(&place, &small(), &Source { dir: Some(own), ..Source::default() }).unwrap_err()
    );
    assert!(error.contains("data_batch_2.bin: record 0 has the label 10, and 9 is the largest"), "{error}");
}

#[test]
fn a_real_directory_is_never_replaced() {
    let (dir, place) = place();
    let own = place.root.join("datasets/cifar10");
    write_files(&own);
    provide(&place, &small(), &Source::default()).unwrap();
    fs::write(own.join("test_batch.bin"), "cut").unwrap();
    let error = format!("{:#}", provide(&place, &small(), &Source::default()).unwrap_err());
    assert!(error.contains("your own directory") && error.contains("test_batch.bin has 3 bytes"), "{error}");
    let other = dir.path().join("other");
    write_files(&other);
    let error = format!(
        "{:#}",
        provide(&place, &small(), &Source { dir: Some(other), ..Source::default() }).unwrap_err()
    );
    assert!(error.contains("your own directory"), "{error}");
    assert_eq!(fs::read_to_string(own.join("test_batch.bin")).unwrap(), "cut");
}
