//! Folders of pictures: layouts, order, damaged files, caches, and streaming against loading.

#![allow(clippy::unwrap_used)] // helpers of tests are not recognised as such

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use data_cifar::{
    DataError, Dataset, DeviceSet, Folder, FolderProgress, ImageSet, Labelled, list_folder, load_cifar10,
    permutation,
};
use image::{ImageFormat, Rgb, RgbImage};
use proptest::prelude::*;
use run_record::{CropMode, FolderRecipe, Interpolation, OnError};
use safetensors::{Dtype, SafeTensors};
use tch::Device;
use tempfile::TempDir;
use torch_ext::test_devices;

/// Nobody stops a test.
static NEVER: AtomicBool = AtomicBool::new(false);

fn options() -> FolderRecipe {
    FolderRecipe {
        stored_size: 8,
        crop_mode: CropMode::Center,
        interpolation: Interpolation::Bicubic,
        on_error: OnError::Skip,
        test_fraction: None,
    }
}

/// A picture that no other number gives, of its own size.
fn picture(number: u32) -> RgbImage {
    RgbImage::from_fn(8 + number % 5, 8 + number % 3, |x, y| {
        Rgb([(number * 37 + x * 16) as u8, (y * 29) as u8, (number / 7 + x * y) as u8])
    })
}

fn write(file: &Path, number: u32) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let format =
        if file.extension().is_some_and(|name| name == "bmp") { ImageFormat::Bmp } else { ImageFormat::Png };
    picture(number).save_with_format(file, format).unwrap();
}

/// `counts[i]` pictures in the i-th class of `root`, in a scrambled order of creation.
fn write_classes(root: &Path, counts: &[u32], first: u32) {
    for (class, &count) in counts.iter().enumerate() {
        for number in 0..count {
            let number = (number * 7 + 3) % count.max(1);
            let name = ["ant", "bee", "cat", "dog", "elk"][class];
            write(&root.join(name).join(format!("{number:03}.png")), first + 1000 * class as u32 + number);
        }
    }
}

/// 12, 5 and 8 pictures of three classes.
fn small() -> TempDir {
    let root = TempDir::new().unwrap();
    write_classes(root.path(), &[12, 5, 8], 0);
    root
}

fn list(root: &Path, options: &FolderRecipe) -> Folder {
    list_folder(root, options, None).unwrap()
}

fn load(root: &Path, options: &FolderRecipe) -> Dataset {
    list(root, options).load(None, 2, &NEVER, &mut |_| ()).unwrap()
}

/// What was loaded, and every note on the way; whether anything was decoded.
fn load_cached(folder: &Folder, cache: &Path) -> (Dataset, Vec<String>, bool) {
    let (mut notes, mut decoded) = (Vec::new(), false);
    let data = folder.load(Some(cache), 2, &NEVER, &mut |progress| match progress {
        FolderProgress::Note(note) => notes.push(note.to_owned()),
        FolderProgress::Decoded { .. } => decoded = true,
    });
    (data.unwrap(), notes, decoded)
}

fn refused(root: &Path, options: &FolderRecipe, parts: &[&str]) {
    let result =
        list_folder(root, options, None).and_then(|folder| folder.load(None, 2, &NEVER, &mut |_| ()));
    let message = result.unwrap_err().to_string();
    for part in parts {
        assert!(message.contains(part), "{message}");
    }
}

fn images(set: &Labelled) -> Vec<(u16, Vec<u8>)> {
    set.labels
        .iter()
        .copied()
        .zip(set.images.outer_iter().map(|image| image.iter().copied().collect()))
        .collect()
}

fn counts(set: &Labelled) -> BTreeMap<u16, usize> {
    set.labels.iter().fold(BTreeMap::new(), |mut counts, &label| {
        *counts.entry(label).or_default() += 1;
        counts
    })
}

#[test]
fn one_folder_per_class() {
    let root = small();
    let data = load(root.path(), &options());
    assert_eq!(data.class_names, ["ant", "bee", "cat"]);
    assert_eq!(data.train.images.shape(), [25, 3, 8, 8]);
    assert_eq!(counts(&data.train), BTreeMap::from([(0, 12), (1, 5), (2, 8)]));
    assert_eq!((data.test.len(), data.validation, data.skipped.len()), (0, 0, 0));
    let distinct: BTreeSet<_> = images(&data.train).into_iter().collect();
    assert_eq!(distinct.len(), 25);
    // A picture of 8x8 pixels is stored as it is, channel by channel.
    let number = (0..12).find(|&number| picture(number).dimensions() == (8, 8)).unwrap();
    let expected = picture(number);
    let stored = (0..3).flat_map(|c| expected.pixels().map(move |pixel| pixel.0[c])).collect();
    assert!(distinct.contains(&(0, stored)));
}

#[test]
fn the_test_part_is_cut_off_in_proportion() {
    let root = TempDir::new().unwrap();
    write_classes(root.path(), &[40, 20, 30], 0);
    let whole = load(root.path(), &options());
    let cut = load(root.path(), &FolderRecipe { test_fraction: Some(0.2), ..options() });
    assert_eq!(counts(&cut.test), BTreeMap::from([(0, 8), (1, 4), (2, 6)]));
    assert_eq!([images(&cut.train), images(&cut.test)].concat(), images(&whole.train));
    // And so is what a run holds out for validation.
    for from in [0, 36, 54] {
        let labels = cut.train.labels.iter().skip(from).take(18);
        for label in 0..3 {
            let count = labels.clone().filter(|&&other| other == label).count();
            assert!(count.abs_diff([8, 4, 6][usize::from(label)]) <= 1, "{label}: {count}");
        }
    }
    refused(
        root.path(),
        &FolderRecipe { test_fraction: Some(0.999), ..options() },
        &["90 images", "none would be left"],
    );
    for share in [0.0, 1.0, -0.1, f64::NAN] {
        let test_fraction = Some(share);
        let message =
            list_folder(root.path(), &FolderRecipe { test_fraction, ..options() }, None).unwrap_err();
        assert!(message.to_string().contains("folder.test_fraction"), "{message}");
    }
}

/// The same files, made in another order, in an unpacked archive's extra directory, in other formats: the same set.
#[test]
fn order_and_digest_depend_on_nothing_but_names_and_pixels() {
    let root = small();
    let data = load(root.path(), &options());
    let other = TempDir::new().unwrap();
    let inner = other.path().join("pictures-1.0");
    for (class, count) in [(2, 8), (0, 12), (1, 5)] {
        for number in (0..count).rev() {
            let name = ["ant", "bee", "cat"][class as usize];
            write(&inner.join(name).join(format!("{number:03}.bmp")), 1000 * class + number);
        }
    }
    fs::write(other.path().join("LICENSE"), "none").unwrap();
    fs::write(other.path().join(".hidden"), "").unwrap();
    let again = load(other.path(), &options());
    assert_eq!((&again.train, &again.sha256), (&data.train, &data.sha256));
    for threads in [1, 3, 7] {
        assert_eq!(list(root.path(), &options()).load(None, threads, &NEVER, &mut |_| ()).unwrap(), data);
    }
    // A label, a pixel or the cut changes the digest.
    assert_ne!(
        load(root.path(), &FolderRecipe { test_fraction: Some(0.04), ..options() }).sha256,
        data.sha256
    );
    write(&root.path().join("ant/003.png"), 77);
    assert_ne!(load(root.path(), &options()).sha256, data.sha256);
}

#[test]
fn train_val_and_test_folders() {
    for name in ["val", "valid", "validation"] {
        let root = TempDir::new().unwrap();
        write_classes(&root.path().join("train"), &[6, 4], 0);
        write_classes(&root.path().join("test"), &[2, 3], 100);
        write_classes(&root.path().join(name), &[1, 2], 200);
        let data = load(root.path(), &options());
        assert_eq!((data.train.len(), data.test.len(), data.validation), (13, 5, 3));
        assert_eq!(counts(&data.test), BTreeMap::from([(0, 2), (1, 3)]));
        let validation: Vec<_> = images(&data.train)[10..].to_vec();
        let alone = TempDir::new().unwrap();
        write_classes(alone.path(), &[1, 2], 200);
        assert_eq!(validation, images(&load(alone.path(), &options()).train));
        // The training part is in the order of a single folder of the same pictures.
        let alone = TempDir::new().unwrap();
        write_classes(alone.path(), &[6, 4], 0);
        assert_eq!(images(&data.train)[..10], images(&load(alone.path(), &options()).train));
        // A share to cut off is for folders without a test part.
        assert_eq!(load(root.path(), &FolderRecipe { test_fraction: Some(0.2), ..options() }), data);
    }
    // Without test, some training images are cut off for it, and none of val.
    let root = TempDir::new().unwrap();
    write_classes(&root.path().join("train"), &[6, 4], 0);
    write_classes(&root.path().join("val"), &[1, 2], 200);
    let data = load(root.path(), &FolderRecipe { test_fraction: Some(0.5), ..options() });
    assert_eq!((data.train.len(), data.test.len(), data.validation), (8, 5, 3));
    assert_eq!(counts(&data.test), BTreeMap::from([(0, 3), (1, 2)]));
}

#[test]
fn what_is_no_picture_is_passed_over_and_counted() {
    let root = small();
    for name in
        ["ant/notes.txt", "ant/more/Thumbs.DB", "bee/.DS_Store", "README", "cover.jpg", "cat/x.JPG.txt"]
    {
        let file = root.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "x").unwrap();
    }
    write(&root.path().join("ant/more/DEEP.PNG"), 500);
    let folder = list(root.path(), &options());
    assert_eq!((folder.len(), folder.bytes()), (26, 26 * 192));
    let ignored: Vec<_> = folder.ignored().iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
    assert_eq!(ignored, [("db", 1), ("hidden", 1), ("none", 1), ("outside a class", 1), ("txt", 2)]);
    assert_eq!(load(root.path(), &options()).skipped, []);
}

#[test]
fn damaged_files_are_named_and_skipped_or_fatal() {
    let root = small();
    let clean = TempDir::new().unwrap();
    let bad = ["ant/004.png", "cat/000.png", "cat/zzz.jpg"];
    for class in ["ant", "bee", "cat"] {
        fs::create_dir_all(clean.path().join(class)).unwrap();
        for entry in fs::read_dir(root.path().join(class)).unwrap() {
            let name = format!("{class}/{}", entry.unwrap().file_name().into_string().unwrap());
            if !bad.contains(&name.as_str()) {
                fs::copy(root.path().join(&name), clean.path().join(&name)).unwrap();
            }
        }
    }
    let whole = fs::read(root.path().join(bad[0])).unwrap();
    fs::write(root.path().join(bad[0]), &whole[..whole.len() / 2]).unwrap();
    fs::write(root.path().join(bad[1]), "").unwrap();
    fs::write(root.path().join(bad[2]), "<html>not found</html>").unwrap();
    let data = load(root.path(), &FolderRecipe { test_fraction: Some(0.18), ..options() });
    let named: Vec<_> = data.skipped.iter().map(|skipped| skipped.file.as_str()).collect();
    assert_eq!(named, bad);
    for (skipped, part) in data.skipped.iter().zip(["truncated", "empty", "an HTML page"]) {
        assert!(skipped.reason.contains(part), "{skipped:?}");
    }
    // As if they had never been there.
    let expected = load(clean.path(), &FolderRecipe { test_fraction: Some(0.18), ..options() });
    assert_eq!((data.train, data.test, data.sha256), (expected.train, expected.test, expected.sha256));
    for threads in [1, 2, 8] {
        let fatal = FolderRecipe { on_error: OnError::Fail, ..options() };
        let error =
            list(root.path(), &fatal).load(None, threads, &NEVER, &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("ant/004.png: truncated"), "{error}");
    }
    // What takes too much memory is not skipped: another machine would have it.
    let little = list(clean.path(), &options()).with_memory(100);
    let error = little.load(None, 2, &NEVER, &mut |_| ()).unwrap_err();
    assert!(matches!(error, DataError::Memory { most: 100, .. }), "{error}");
    for entry in fs::read_dir(root.path().join("bee")).unwrap() {
        fs::write(entry.unwrap().path(), "").unwrap();
    }
    refused(root.path(), &options(), &["no picture of class bee could be decoded"]);
}

#[test]
fn layouts_that_make_no_sense_are_errors() {
    let empty = TempDir::new().unwrap();
    refused(empty.path(), &options(), &["holds no class directories"]);
    refused(&empty.path().join("nowhere"), &options(), &["nowhere not found"]);
    let check = |names: &[&str], directories: &[&str], parts: &[&str]| {
        let root = TempDir::new().unwrap();
        for name in names {
            write(&root.path().join(name), 1);
        }
        for name in directories {
            fs::create_dir_all(root.path().join(name)).unwrap();
        }
        refused(root.path(), &options(), parts);
    };
    check(&["ant/1.png"], &[], &["only one class directory, ant"]);
    check(&["ant/1.png", "bee/1.png"], &["cat"], &["classes without pictures: cat;"]);
    check(
        &["train/a/1.png", "train/b/1.png", "test/c/1.png"],
        &[],
        &["test: holds c that the training part has not; the classes are a, b"],
    );
    check(&["train/a/1.png", "train/b/1.png"], &["train/c"], &["train: holds classes without pictures: c;"]);
    check(&["train/a/1.png", "train/b/1.png", "extra/1.png"], &[], &["holds train and also extra"]);
    check(&["val/a/1.png", "test/a/1.png"], &[], &["val: is there and no train"]);
    check(
        &["train/a/1.png", "val/a/1.png", "valid/a/1.png"],
        &[],
        &["holds both val and valid, which are the same part"],
    );
    check(&["train/1.png", "test/1.png"], &[], &["train: holds no class directories"]);
    check(&["seg_train/a/1.png", "seg_test/a/1.png", "seg_pred/1.png"], &[], &["also seg_pred"]);
    check(&["Train/a/1.png", "train/b/1.png"], &[], &["holds both Train and train"]);
    check(
        &["ant/1.heic", "ant/2.heic", "bee/1.png"],
        &[],
        &["pictures: ant (2 heic passed over); read are JPEG"],
    );
    check(&["caf\u{e9}/1.png", "cafe\u{301}/1.png"], &[], &["look the same", r"caf\u{e9}", r"cafe\u{301}"]);
    check(
        &["train/caf\u{e9}/1.png", "train/b/1.png", "test/cafe\u{301}/1.png"],
        &[],
        &[r#""cafe\u{301}" (not the same as "caf\u{e9}")"#],
    );
    let root = small();
    refused(&root.path().join("ant/000.png"), &options(), &["000.png"]);
    refused(
        root.path(),
        &FolderRecipe { stored_size: 0, ..options() },
        &["folder.stored_size = 0: 1 to 2048"],
    );
    let message = list(root.path(), &options()).load(None, 0, &NEVER, &mut |_| ()).unwrap_err().to_string();
    assert!(message.contains("at least 1 thread, not 0"), "{message}");
    // A class may have a part's name.
    let root = TempDir::new().unwrap();
    write(&root.path().join("bus/1.png"), 1);
    write(&root.path().join("train/1.png"), 2);
    assert_eq!(load(root.path(), &options()).class_names, ["bus", "train"]);
}

/// The number of training, validation and test pictures, and the notes.
fn parts(folder: &Folder) -> ([usize; 3], &[String]) {
    let labels = folder.expected_labels().unwrap();
    let validation = labels.validation;
    ([labels.train.len() - validation, validation, labels.test.len()], folder.notes())
}

#[test]
fn parts_are_known_by_the_names_people_give_them() {
    for [train, validation, test] in [
        ["Train", "Val", "Test"],
        ["TRAIN", "VAL", "TEST"],
        ["Training", "Validation", "Testing"],
        ["training_set", "val_set", "test_set"],
        ["train2017", "val2017", "test2017"],
        ["train", "eval", "test"],
        ["seg_train/seg_train", "seg_val", "seg_test/seg_test"],
    ] {
        let root = TempDir::new().unwrap();
        write_classes(&root.path().join(train), &[6, 4], 0);
        write_classes(&root.path().join(test), &[2, 3], 100);
        let two = list(root.path(), &options());
        assert_eq!((two.class_names().len(), parts(&two).0), (2, [10, 0, 5]), "{train}");
        write_classes(&root.path().join(validation), &[1, 2], 200);
        let three = list(root.path(), &options());
        assert_eq!((three.class_names().len(), parts(&three).0), (2, [10, 3, 5]), "{train}");
    }
}

#[test]
fn directories_without_labelled_pictures_are_no_part_and_are_named() {
    let root = TempDir::new().unwrap();
    write_classes(&root.path().join("train"), &[12, 8], 0);
    // Pictures to be submitted to a competition, empty classes, and formats that are not read.
    write(&root.path().join("test/1.png"), 1);
    fs::create_dir_all(root.path().join("val/ant")).unwrap();
    fs::create_dir_all(root.path().join("val/bee")).unwrap();
    fs::write(root.path().join("val/bee/1.heic"), "x").unwrap();
    let folder = list(root.path(), &FolderRecipe { test_fraction: Some(0.2), ..options() });
    let (counts, notes) = parts(&folder);
    assert_eq!(counts, [16, 0, 4]);
    assert!(notes[0].contains("val/ holds no picture in its classes (1 heic passed over)"), "{notes:?}");
    assert!(notes[1].contains("test/ holds pictures without class directories"), "{notes:?}");
    assert!(!folder.has_test());
}

#[test]
fn classes_that_look_like_parts_are_asked_about() {
    let root = TempDir::new().unwrap();
    for part in ["first", "second"] {
        write_classes(&root.path().join(part), &[3, 3], 0);
    }
    let folder = list(root.path(), &options());
    assert_eq!(folder.class_names(), ["first", "second"]);
    assert!(folder.notes()[0].contains("all hold the same folders (ant, bee)"), "{:?}", folder.notes());
    // Not so where a class merely has folders in it.
    write(&root.path().join("second/cat/1.png"), 9);
    assert_eq!(list(root.path(), &options()).notes(), [""; 0]);
}

#[test]
fn what_systems_leave_is_no_class_and_no_picture() {
    let root = small();
    for name in
        ["@eaDir/x/SYNOPHOTO_THUMB_M.jpg", "ant/@eaDir/000.png/T.jpg", "#recycle/1.png", "lost+found/x"]
    {
        write(&root.path().join(name), 1);
    }
    fs::create_dir(root.path().join("System Volume Information")).unwrap();
    let folder = list(root.path(), &options());
    assert_eq!((folder.class_names().len(), folder.len()), (3, 25));
    assert_eq!((folder.ignored()["folder @eaDir"], folder.ignored()["folder #recycle"]), (2, 1));
}

#[test]
fn a_test_part_of_a_small_folder_has_one_picture() {
    for n in 2..6 {
        let root = TempDir::new().unwrap();
        write_classes(root.path(), &[n, 1], 0);
        let folder = list(root.path(), &FolderRecipe { test_fraction: Some(0.1), ..options() });
        assert_eq!(parts(&folder).0, [n as usize, 0, 1]);
    }
}

#[test]
fn a_folder_is_labelled_for_classes_that_are_known() {
    let root = TempDir::new().unwrap();
    write_classes(&root.path().join("test"), &[0, 2, 3], 0);
    let known = ["elk", "cat", "bee"].map(str::to_owned);
    let folder = list_folder(root.path(), &options(), Some(&known)).unwrap();
    let mut labels = folder.expected_labels().unwrap().test;
    labels.sort_unstable();
    assert_eq!((labels, folder.class_names()), (vec![1, 1, 1, 2, 2], &known[..]));
    let loaded = folder.load(None, 2, &NEVER, &mut |_| ()).unwrap();
    assert_eq!((loaded.train.len(), loaded.test.len(), loaded.class_names), (0, 5, known.to_vec()));
    write(&root.path().join("test/dog/1.png"), 1);
    write(&root.path().join("test/Elk/1.png"), 1);
    let error = list_folder(root.path(), &options(), Some(&known)).unwrap_err().to_string();
    assert!(
        error.contains(
            r#"holds "Elk" (not the same as "elk"), dog that the network knows not; the classes are"#
        ),
        "{error}"
    );
}

#[cfg(unix)]
#[test]
fn names_that_are_not_utf8_are_left_out_by_name() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let root = small();
    let odd = |name: &[u8]| root.path().join("ant").join(OsStr::from_bytes(name));
    write(&odd(b"._caf\xe9.png"), 1);
    write(&odd(b"caf\xe9.txt.bmp"), 1);
    fs::write(odd(b"caf\xe9.txt"), "x").unwrap();
    let folder = list(root.path(), &options());
    assert_eq!((folder.len(), folder.ignored()["hidden"], folder.ignored()["txt"]), (25, 1, 1));
    let skipped = load(root.path(), &options()).skipped;
    assert_eq!(skipped.len(), 1);
    assert!(skipped[0].file.starts_with("ant/caf") && skipped[0].reason.contains("not UTF-8"), "{skipped:?}");
    refused(root.path(), &FolderRecipe { on_error: OnError::Fail, ..options() }, &["ant/caf", "not UTF-8"]);
}

#[test]
fn decoding_can_be_stopped() {
    let (root, cache) = (small(), TempDir::new().unwrap());
    let stopped = AtomicBool::new(true);
    let folder = list(root.path(), &options());
    assert!(matches!(folder.load(Some(cache.path()), 2, &stopped, &mut |_| ()), Err(DataError::Stopped)));
    assert!(matches!(folder.index(Some(cache.path()), 2, &stopped, &mut |_| ()), Err(DataError::Stopped)));
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0);
}

#[cfg(unix)]
#[test]
fn links_are_followed_but_not_in_circles() {
    use std::os::unix::fs::symlink;
    let root = small();
    symlink(root.path().join("cat/000.png"), root.path().join("bee/linked.png")).unwrap();
    symlink("nowhere", root.path().join("bee/lost.png")).unwrap();
    let data = load(root.path(), &options());
    assert_eq!(counts(&data.train)[&1], 6);
    assert_eq!(data.skipped[0].file, "bee/lost.png");
    assert!(data.skipped[0].reason.contains("cannot be read"), "{:?}", data.skipped);
    for (target, link) in [("..", "ant/up"), (".", "ant/self")] {
        symlink(target, root.path().join(link)).unwrap();
        refused(root.path(), &options(), &[link, "is a link to", "which it lies in"]);
        fs::remove_file(root.path().join(link)).unwrap();
    }
}

#[test]
fn a_cache_is_used_until_something_changes() {
    let (root, cache) = (small(), TempDir::new().unwrap());
    fs::write(root.path().join("bee/broken.jpg"), "x").unwrap();
    let with_test = FolderRecipe { test_fraction: Some(0.24), ..options() };
    let (fresh, notes, decoded) = load_cached(&list(root.path(), &with_test), cache.path());
    assert_eq!((notes.len(), decoded, fresh.skipped.len()), (0, true, 1));
    assert_eq!(fresh, list(root.path(), &with_test).load(None, 1, &NEVER, &mut |_| ()).unwrap());
    let (cached, notes, decoded) = load_cached(&list(root.path(), &with_test), cache.path());
    assert_eq!((cached, notes.len(), decoded), (fresh.clone(), 0, false));
    // Other options have another file.
    assert!(load_cached(&list(root.path(), &options()), cache.path()).2);
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 2);

    let touched = root.path().join("ant/000.png");
    let file = fs::File::options().append(true).open(&touched).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_nanos(40)).unwrap();
    let (again, notes, decoded) = load_cached(&list(root.path(), &with_test), cache.path());
    assert!(notes.len() == 1 && notes[0].contains("added, removed or changed"), "{notes:?}");
    assert_eq!((again, decoded), (fresh.clone(), true));
    assert!(!load_cached(&list(root.path(), &with_test), cache.path()).2);
    for change in [
        (|root| fs::remove_file(root.join("bee/broken.jpg")).unwrap()) as fn(&Path),
        |root| write(&root.join("cat/new.png"), 4242),
        |root| fs::rename(root.join("cat/new.png"), root.join("cat/newer.png")).unwrap(),
    ] {
        change(root.path());
        let (data, notes, _) = load_cached(&list(root.path(), &with_test), cache.path());
        assert_eq!((notes.len(), data), (1, load(root.path(), &with_test)));
    }
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 2); // the old ones were replaced
}

/// A file that could not be read may be readable the next time, without being changed.
#[cfg(unix)]
#[test]
fn what_could_not_be_read_is_not_remembered() {
    let (root, cache) = (small(), TempDir::new().unwrap());
    std::os::unix::fs::symlink(cache.path().join("later.png"), root.path().join("ant/link.png")).unwrap();
    assert_eq!(load_cached(&list(root.path(), &options()), cache.path()).0.skipped.len(), 1);
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0);
}

#[test]
fn a_cache_that_cannot_be_written_is_a_note() {
    let (root, cache) = (small(), TempDir::new().unwrap());
    let file = cache.path().join("file");
    fs::write(&file, "").unwrap();
    let (data, notes, _) = load_cached(&list(root.path(), &options()), &file);
    assert_eq!(data, load(root.path(), &options()));
    assert!(notes.iter().any(|note| note.contains("cannot write the cache")), "{notes:?}");
}

fn only_file(directory: &Path) -> PathBuf {
    let mut files = fs::read_dir(directory).unwrap();
    let file = files.next().unwrap().unwrap().path();
    assert!(files.next().is_none());
    file
}

#[test]
fn a_cache_is_a_safetensors_file_others_can_read() {
    let (root, cache) = (small(), TempDir::new().unwrap());
    let with_test = FolderRecipe { test_fraction: Some(0.24), ..options() };
    let data = load_cached(&list(root.path(), &with_test), cache.path()).0;
    let bytes = fs::read(only_file(cache.path())).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let stored = tensors.tensor("images").unwrap();
    assert_eq!((stored.dtype(), stored.shape()), (Dtype::U8, &[25, 3, 8, 8][..]));
    let pixels: Vec<u8> = data.train.images.iter().chain(&data.test.images).copied().collect();
    assert_eq!(stored.data(), pixels);
    let stored = tensors.tensor("labels").unwrap();
    let labels = data.train.labels.iter().chain(&data.test.labels);
    assert_eq!((stored.dtype(), stored.shape()), (Dtype::U16, &[25][..]));
    assert_eq!(stored.data(), labels.flat_map(|label| label.to_le_bytes()).collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    /// Whatever happens to a cache, what is loaded is what is in the folder.
    #[test]
    fn a_damaged_cache_changes_nothing(
        at in any::<prop::sample::Index>(),
        in_header in any::<bool>(),
        bits in 1u8..,
        damage in 0..4,
        with_images in any::<bool>(),
    ) {
        use std::sync::LazyLock;
        static SET: LazyLock<(TempDir, Dataset, [Vec<u8>; 2])> = LazyLock::new(|| {
            let root = TempDir::new().unwrap();
            write_classes(root.path(), &[3, 2], 0);
            fs::write(root.path().join("bee/broken.jpg"), "x").unwrap();
            let folder = list(root.path(), &options());
            let bytes = [true, false].map(|with_images| {
                let cache = TempDir::new().unwrap();
                if with_images {
                    folder.load(Some(cache.path()), 1, &NEVER, &mut |_| ()).unwrap();
                } else {
                    folder.index(Some(cache.path()), 1, &NEVER, &mut |_| ()).unwrap();
                }
                fs::read(only_file(cache.path())).unwrap()
            });
            let data = load(root.path(), &options());
            (root, data, bytes)
        });
        let (root, data, bytes) = &*SET;
        let mut damaged = bytes[usize::from(!with_images)].clone();
        let at = at.index(if in_header { 8 + u64::from_le_bytes(damaged[..8].try_into().unwrap()) as usize } else { damaged.len() });
        match damage {
            0 => damaged.truncate(at),
            1 => damaged.insert(at, bits),
            _ => damaged[at] ^= bits,
        }
        let cache = TempDir::new().unwrap();
        let folder = list(root.path(), &options());
        let mut notes = 0;
        let mut count = |progress: FolderProgress<'_>| notes += usize::from(matches!(progress, FolderProgress::Note(_)));
        // To learn the file's name.
        if with_images {
            folder.load(Some(cache.path()), 1, &NEVER, &mut count).unwrap();
        } else {
            folder.index(Some(cache.path()), 1, &NEVER, &mut count).unwrap();
        }
        fs::write(only_file(cache.path()), &damaged).unwrap();
        let (sha256, skipped) = if with_images {
            let loaded = folder.load(Some(cache.path()), 1, &NEVER, &mut count).unwrap();
            prop_assert_eq!(&loaded, data);
            (loaded.sha256, loaded.skipped)
        } else {
            let index = folder.index(Some(cache.path()), 1, &NEVER, &mut count).unwrap();
            prop_assert_eq!((index.train_len(), index.test_len()), (5, 0));
            (index.sha256().to_owned(), index.skipped())
        };
        prop_assert_eq!((&sha256, &skipped), (&data.sha256, &data.skipped));
        // A change that is no damage: to the padding, or the digest of a picture that has none.
        let is_repaired = fs::read(only_file(cache.path())).unwrap() == bytes[usize::from(!with_images)];
        prop_assert_eq!(notes, usize::from(is_repaired));
    }
}

fn batches(set: &ImageSet, order: &[i64], batch_size: usize) -> Vec<(Vec<u8>, Vec<i64>, Vec<usize>)> {
    let batches = set.batches(order, batch_size).unwrap();
    assert_eq!(batches.len(), order.len().div_ceil(batch_size));
    batches
        .map(|batch| {
            let batch = batch.unwrap();
            assert_eq!(batch.images.size()[1..], [3, 8, 8]);
            let images = Vec::try_from(batch.images.flatten(0, -1)).unwrap();
            (images, Vec::try_from(batch.labels).unwrap(), batch.positions)
        })
        .collect()
}

#[test]
fn streaming_is_loading() {
    let (root, cache) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    write_classes(&root.path().join("train"), &[12, 5, 8], 0);
    write_classes(&root.path().join("val"), &[2, 2, 2], 300);
    write_classes(&root.path().join("test"), &[4, 3, 5], 600);
    fs::write(root.path().join("train/bee/broken.jpg"), "x").unwrap();
    let folder = list(root.path(), &options());
    let data = folder.load(None, 2, &NEVER, &mut |_| ()).unwrap();
    let mut decoded = 0;
    for opening in 0..2 {
        let index = folder
            .index(Some(cache.path()), 2, &NEVER, &mut |progress| match progress {
                FolderProgress::Decoded { done, total } => {
                    assert!(done <= total);
                    decoded = done;
                }
                FolderProgress::Note(note) => panic!("{note}"),
            })
            .unwrap();
        assert_eq!(decoded, 44); // and no more at the second opening
        decoded += opening;
        assert_eq!((index.sha256(), index.skipped()), (data.sha256.as_str(), data.skipped.clone()));
        assert_eq!((index.train_len(), index.validation(), index.test_len()), (31, 6, 12));
        for (is_train, set) in [(true, &data.train), (false, &data.test)] {
            let resident = ImageSet::Resident(DeviceSet::new(set, Device::Cpu).unwrap());
            let order = permutation(5, 1, 0..set.len());
            for (threads, prefetch, batch_size) in [(1, 0, 4), (2, 2, 4), (5, 1, 7), (3, 9, 100), (1, 1, 1)] {
                let wanted = batches(&resident, &order, batch_size);
                for device in test_devices() {
                    let (train, test) = index.stream(device, threads, prefetch).unwrap();
                    let streamed = ImageSet::Streamed(if is_train { train } else { test });
                    assert_eq!(
                        (streamed.len(), streamed.is_empty(), streamed.device()),
                        (set.len(), false, device)
                    );
                    assert_eq!(batches(&streamed, &order, batch_size), wanted);
                }
                // Every image once.
                let mut seen: Vec<_> =
                    wanted.iter().flat_map(|batch| batch.0.chunks_exact(192).map(<[u8]>::to_vec)).collect();
                let mut all: Vec<_> = images(set).into_iter().map(|(_, pixels)| pixels).collect();
                seen.sort_unstable();
                all.sort_unstable();
                assert_eq!(seen, all);
            }
        }
    }
}

#[test]
fn a_stream_can_be_left_at_any_time() {
    let root = small();
    let index = list(root.path(), &options()).index(None, 2, &NEVER, &mut |_| ()).unwrap();
    let set = ImageSet::Streamed(index.stream(Device::Cpu, 2, 1).unwrap().0);
    let order: Vec<i64> = (0..25).cycle().take(2500).collect();
    for taken in [0, 1, 3] {
        let mut batches = set.batches(&order, 3).unwrap();
        assert_eq!(batches.len(), 834);
        assert_eq!(batches.by_ref().take(taken).filter(Result::is_ok).count(), taken);
        assert_eq!(batches.len(), 834 - taken);
        drop(batches); // returns only after its thread has ended
    }
    // Two at once.
    let mut pairs = set.batches(&order[..50], 7).unwrap().zip(set.batches(&order[..50], 7).unwrap());
    assert!(pairs.all(|(a, b)| a.unwrap().images == b.unwrap().images));
    for (result, part) in [
        (set.batches(&[0], 0), "at least 1, not 0"),
        (set.batches(&[25], 4), "no image 25 in a set of 25"),
        (set.batches(&[-1], 4), "no image -1"),
    ] {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(set.batches(&[], 4).unwrap().count(), 0);
}

#[test]
fn a_file_that_changes_under_a_stream_is_named() {
    for (change, part) in [
        ((|file| fs::write(file, "x").unwrap()) as fn(&Path), "text, not a picture"),
        (|file| fs::remove_file(file).unwrap(), "cannot read"),
        (|file| write(file, 7777), "no longer those"),
    ] {
        let root = small();
        let index = list(root.path(), &options()).index(None, 2, &NEVER, &mut |_| ()).unwrap();
        let set = ImageSet::Streamed(index.stream(Device::Cpu, 2, 2).unwrap().0);
        change(&root.path().join("cat/005.png"));
        let order: Vec<i64> = (0..25).collect();
        let results: Vec<_> = set.batches(&order, 4).unwrap().collect();
        let (last, before) = results.split_last().unwrap();
        assert!(before.iter().all(Result::is_ok));
        let message = last.as_ref().unwrap_err().to_string();
        assert!(message.contains("cat/005.png") && message.contains(part), "{message}");
        assert!(matches!(last, Err(DataError::Picture { .. } | DataError::Read { .. })));
    }
}

/// The same images as a folder of pictures and in CIFAR-10's binary layout are the same data set. `PICTURES` holds
/// `train` and `test`, `BINARY` what `load_cifar10` reads; both are large and not part of the project.
#[test]
#[ignore = "needs PICTURES and BINARY"]
fn cifar10_as_pictures_is_cifar10() {
    let directory = |name| PathBuf::from(std::env::var_os(name).unwrap());
    let folder = FolderRecipe { stored_size: 32, on_error: OnError::Fail, ..options() };
    let pictures = load(&directory("PICTURES"), &folder);
    let binary = load_cifar10(&directory("BINARY")).unwrap();
    assert_eq!(pictures.class_names, binary.class_names);
    for (part, pictures, binary) in
        [("train", &pictures.train, &binary.train), ("test", &pictures.test, &binary.test)]
    {
        let (mut found, mut expected) = (images(pictures), images(binary));
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found.len(), expected.len());
        let differ = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
        assert_eq!(differ, 0, "{part}: of {}", found.len());
    }
}
