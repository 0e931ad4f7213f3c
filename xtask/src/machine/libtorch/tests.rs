//! Setting up libtorch: made-up trees and archives in temporary places.

use super::*;
use crate::machine::archive::tests::zip_of;
use run_record::sha256_file;

/// A workspace and a cache, both empty.
pub(crate) fn place() -> (tempfile::TempDir, Place) {
    let dir = tempfile::tempdir().unwrap();
    let place = Place { root: dir.path().join("workspace"), cache: dir.path().join("cache") };
    fs::create_dir_all(&place.root).unwrap();
    (dir, place)
}

fn library() -> String {
    format!("lib/libtorch_cpu.{}", if cfg!(target_os = "macos") { "dylib" } else { "so" })
}

/// The smallest directory that passes for libtorch.
fn small_tree(dir: &Path, version: &str) {
    for (name, text) in [
        (library().as_str(), "library"),
        ("include/torch/csrc/api/include/torch/torch.h", "header"),
        ("build-version", version),
    ] {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

/// The smallest upstream archive, as it is given on the command line.
fn small_archive(dir: &Path, version: &str) -> ArchiveChoice {
    let path = dir.join("libtorch.zip");
    let library = format!("libtorch/{}", library());
    zip_of(
        &path,
        &[
            (library.as_str(), b"library"),
            ("libtorch/include/torch/csrc/api/include/torch/torch.h", b"header"),
            ("libtorch/build-version", version.as_bytes()),
            ("libtorch/bin/tool", b"not needed"),
        ],
    );
    ArchiveChoice { source: path.display().to_string(), sha256: sha256_file(&path).unwrap() }
}

#[test]
fn an_archive_becomes_an_entry_of_the_cache_and_is_linked() {
    let (dir, place) = place();
    let archive = small_archive(dir.path(), "2.11.0+cpu\n");
    let entry = install::from_archive(&place.cache, &archive).unwrap();
    assert!(entry.join(library()).is_file() && entry.join(MANIFEST).is_file() && !entry.join("bin").exists());
    link(&place, &inspect(&entry).unwrap()).unwrap();
    let tree = linked(&place).unwrap().unwrap();
    assert_eq!((tree.flavor, tree.dir), (Flavor::Cpu, entry.canonicalize().unwrap()));
    // The second time the archive is not even looked at.
    fs::remove_file(&archive.source).unwrap();
    assert_eq!(install::from_archive(&place.cache, &archive).unwrap(), entry);
}

#[test]
fn what_an_interrupted_setup_left_is_never_taken_for_good() {
    let (dir, place) = place();
    let archive = small_archive(dir.path(), VERSION);
    let entries = place.cache.join("libtorch");
    let entry = entries.join(format!("{VERSION}-archive-{}", &archive.sha256[..12]));
    // Killed while unpacking; and an entry that lost its manifest.
    fs::create_dir_all(entries.join(".partial-killed/lib")).unwrap();
    small_tree(&entry, VERSION);
    replace_link(&place.libtorch_link(), &entry).unwrap();
    let error = linked(&place).unwrap_err().to_string();
    assert!(error.contains("has no manifest.json"), "{error}");

    assert_eq!(install::from_archive(&place.cache, &archive).unwrap(), entry);
    assert!(linked(&place).unwrap().is_some());
    assert_eq!(fs::read_dir(&entries).unwrap().count(), 1, "leftovers are removed");

    // A file that was cut, and one that is gone, are seen and mended.
    for spoil in [|path: PathBuf| fs::write(path, "cut").unwrap(), |path| fs::remove_file(path).unwrap()] {
        let header = entry.join("include/torch/csrc/api/include/torch/torch.h");
        spoil(entry.join(library()));
        assert!(linked(&place).is_err());
        assert!(header.is_file());
        install::from_archive(&place.cache, &archive).unwrap();
        assert!(linked(&place).unwrap().is_some());
    }
}

#[test]
fn a_wrong_checksum_or_version_leaves_nothing() {
    let (dir, place) = place();
    let mut archive = small_archive(dir.path(), "2.10.0");
    let error = format!("{:#}", install::from_archive(&place.cache, &archive).unwrap_err());
    assert!(error.contains("is libtorch 2.10.0, and 2.11.0 is needed"), "{error}");
    archive.sha256 = "0".repeat(64);
    let error = format!("{:#}", install::from_archive(&place.cache, &archive).unwrap_err());
    assert!(error.contains("libtorch.zip: the SHA-256 is") && error.contains(&archive.sha256), "{error}");
    assert_eq!(fs::read_dir(place.cache.join("libtorch")).unwrap().count(), 0);
    assert!(Path::new(&archive.source).is_file(), "the user's file stays");
}

#[test]
fn a_directory_of_the_users_own_is_used_if_its_version_fits() {
    let (dir, place) = place();
    let own = dir.path().join("own");
    small_tree(&own, "2.10.1+cu126");
    let error = format!("{:#}", use_own(&place, FlavorChoice::Auto, "LIBTORCH", &own).unwrap_err());
    assert!(error.contains("LIBTORCH points to") && error.contains("is libtorch 2.10.1+cu126"), "{error}");
    assert!(place.libtorch_link().symlink_metadata().is_err());

    small_tree(&own, "2.11.0+cpu");
    use_own(&place, FlavorChoice::Auto, "LIBTORCH", &own).unwrap();
    assert_eq!(fs::read_link(place.libtorch_link()).unwrap(), own);
    assert_eq!(linked(&place).unwrap().unwrap().flavor, Flavor::Cpu);
    let error = use_own(&place, FlavorChoice::Cuda, "LIBTORCH", &own).unwrap_err().to_string();
    assert!(error.contains("is a cpu build"), "{error}");
    assert!(use_own(&place, FlavorChoice::Auto, "LIBTORCH", Path::new("relative")).is_err());
}
