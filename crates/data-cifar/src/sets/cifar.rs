//! CIFAR-10 and CIFAR-100 in their binary version (Krizhevsky, "Learning Multiple Layers of
//! Features from Tiny Images", 2009).
//!
//! A file is a row of records without header or separator: one label byte (CIFAR-100: coarse, then
//! fine), then 3,072 pixel bytes: 1,024 red, 1,024 green, 1,024 blue, each row by row from the top left.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use ndarray::Array1;
use sha2::{Digest, Sha256};

use crate::error::DataError;
use crate::sets::class_names::{CIFAR10_CLASSES, CIFAR100_CLASSES, CIFAR100_COARSE_CLASSES, names};
use crate::sets::dataset::{CoarseLabels, Dataset, Labelled, Pixels};

const SIDE: usize = 32;
const PIXELS: usize = 3 * SIDE * SIDE;

/// A label byte of a record: what it is called in messages, and its largest value.
type LabelByte = (&'static str, u8);
const CIFAR10_LABELS: [LabelByte; 1] = [("label", 9)];
const CIFAR100_LABELS: [LabelByte; 2] = [("coarse label", 19), ("fine label", 99)];

/// Reads CIFAR-10: 50,000 training images (`data_batch_1.bin` to `data_batch_5.bin`, in that order)
/// and 10,000 test images (`test_batch.bin`), 3×32×32, ten classes.
///
/// `dir` is the directory that holds `cifar-10-batches-bin/`, or that directory itself.
///
/// # Errors
/// When a file is missing, truncated or too long, or holds a label over 9.
pub fn load_cifar10(dir: &Path) -> Result<Dataset, DataError> {
    load_cifar10_sized(dir, 10_000)
}

/// [`load_cifar10`] for files of any number of records.
fn load_cifar10_sized(dir: &Path, records: usize) -> Result<Dataset, DataError> {
    let train_files =
        ["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"];
    let mut files = Files::new("cifar10", dir, "cifar-10-batches-bin");
    let (train, [labels]) = files.read(&train_files, records, &CIFAR10_LABELS)?;
    let (test, [test_labels]) = files.read(&["test_batch.bin"], records, &CIFAR10_LABELS)?;
    Ok(Dataset {
        name: "cifar10".into(),
        class_names: names(CIFAR10_CLASSES),
        train: Labelled { images: train, labels },
        test: Labelled { images: test, labels: test_labels },
        coarse: None,
        validation: 0,
        skipped: Vec::new(),
        sha256: files.sha256(),
    })
}

/// Reads CIFAR-100: 50,000 training images (`train.bin`) and 10,000 test images (`test.bin`),
/// 3×32×32; `labels` are the hundred fine classes, [`Dataset::coarse`] the twenty coarse ones.
///
/// `dir` is the directory that holds `cifar-100-binary/`, or that directory itself.
///
/// # Errors
/// When a file is missing, truncated or too long, or holds a coarse label over 19 or a fine label over 99.
pub fn load_cifar100(dir: &Path) -> Result<Dataset, DataError> {
    load_cifar100_sized(dir, 50_000, 10_000)
}

/// [`load_cifar100`] for files of any number of records.
fn load_cifar100_sized(dir: &Path, train_records: usize, test_records: usize) -> Result<Dataset, DataError> {
    let mut files = Files::new("cifar100", dir, "cifar-100-binary");
    let (train, [coarse, fine]) = files.read(&["train.bin"], train_records, &CIFAR100_LABELS)?;
    let (test, [test_coarse, test_fine]) = files.read(&["test.bin"], test_records, &CIFAR100_LABELS)?;
    Ok(Dataset {
        name: "cifar100".into(),
        class_names: names(CIFAR100_CLASSES),
        train: Labelled { images: train, labels: fine },
        test: Labelled { images: test, labels: test_fine },
        coarse: Some(CoarseLabels {
            class_names: names(CIFAR100_COARSE_CLASSES),
            train: coarse,
            test: test_coarse,
        }),
        validation: 0,
        skipped: Vec::new(),
        sha256: files.sha256(),
    })
}

/// Parses CIFAR-10 records (1 + 3,072 bytes each); `file` names the source in messages.
///
/// # Errors
/// When `bytes` is empty or not a whole number of records, or a label is over 9.
pub fn parse_cifar10(bytes: &[u8], file: &Path) -> Result<Labelled, DataError> {
    let mut records = Records::with_capacity(bytes.len() / (1 + PIXELS));
    records.parse(bytes, file, &CIFAR10_LABELS)?;
    let (images, [labels]) = records.into_arrays();
    Ok(Labelled { images, labels })
}

/// Parses CIFAR-100 records (2 + 3,072 bytes each) into images with their fine labels, and the
/// coarse labels `[N]`; `file` names the source in messages.
///
/// # Errors
/// When `bytes` is empty or not a whole number of records, a coarse label is over 19 or a fine label over 99.
pub fn parse_cifar100(bytes: &[u8], file: &Path) -> Result<(Labelled, Array1<u16>), DataError> {
    let mut records = Records::with_capacity(bytes.len() / (2 + PIXELS));
    records.parse(bytes, file, &CIFAR100_LABELS)?;
    let (images, [coarse, labels]) = records.into_arrays();
    Ok((Labelled { images, labels }, coarse))
}

/// Records read so far, with `L` label bytes each.
struct Records<const L: usize> {
    pixels: Vec<u8>,
    labels: [Vec<u16>; L],
}

impl<const L: usize> Records<L> {
    fn with_capacity(records: usize) -> Self {
        Self {
            pixels: Vec::with_capacity(records * PIXELS),
            labels: std::array::from_fn(|_| Vec::with_capacity(records)),
        }
    }

    fn parse(&mut self, bytes: &[u8], file: &Path, label_bytes: &[LabelByte; L]) -> Result<(), DataError> {
        let size = L + PIXELS;
        let (index, rest) = (bytes.len() / size, bytes.len() % size);
        if bytes.is_empty() || rest != 0 {
            return Err(DataError::Length {
                file: file.into(),
                found: bytes.len(),
                record: size,
                index,
                rest,
            });
        }
        for (record, bytes) in bytes.chunks_exact(size).enumerate() {
            let (labels, pixels) = bytes.split_at(L);
            for ((&value, &(kind, max)), column) in labels.iter().zip(label_bytes).zip(&mut self.labels) {
                if value > max {
                    return Err(DataError::Label { file: file.into(), record, kind, value, max });
                }
                column.push(value.into());
            }
            self.pixels.extend_from_slice(pixels);
        }
        Ok(())
    }

    fn into_arrays(self) -> (Pixels, [Array1<u16>; L]) {
        let n = self.pixels.len() / PIXELS;
        let images = Pixels::from_shape_vec((n, 3, SIDE, SIDE), self.pixels)
            .expect("every record adds the pixels of one image");
        (images, self.labels.map(Array1::from_vec))
    }
}

/// The files of a data set, hashed as they are read.
struct Files {
    name: &'static str,
    dir: PathBuf,
    folder: &'static str,
    hash: Sha256,
}

impl Files {
    fn new(name: &'static str, dir: &Path, folder: &'static str) -> Self {
        let inner = dir.join(folder);
        let dir = if inner.is_dir() { inner } else { dir.into() };
        Self { name, dir, folder, hash: Sha256::new() }
    }

    /// Reads `names` one after the other, `records` records each: images and a column per label byte.
    fn read<const L: usize>(
        &mut self,
        names: &[&str],
        records: usize,
        label_bytes: &[LabelByte; L],
    ) -> Result<(Pixels, [Array1<u16>; L]), DataError> {
        let mut all = Records::with_capacity(names.len() * records);
        for name in names {
            let file = self.dir.join(name);
            let bytes = self.read_file(&file, records * (L + PIXELS))?;
            self.hash.update(&bytes);
            all.parse(&bytes, &file, label_bytes)?;
        }
        Ok(all.into_arrays())
    }

    /// The bytes of a file that must be `expected` bytes long, whose size is checked before it is read.
    fn read_file(&self, file: &Path, expected: usize) -> Result<Vec<u8>, DataError> {
        let again = format!("`cargo xtask fetch {}` downloads the data set", self.name);
        let unreadable = |source| DataError::Read { file: file.into(), source };
        let mut open = match File::open(file) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                let hint = format!("{again}; a data directory of your own must hold {}/", self.folder);
                return Err(DataError::Missing { file: file.into(), hint });
            }
            other => other.map_err(unreadable)?,
        };
        let found = open.metadata().map_err(unreadable)?.len();
        let expected_size = expected as u64;
        if found != expected_size {
            let what = if found < expected_size { "truncated" } else { "too long" };
            return Err(DataError::Size {
                file: file.into(),
                what,
                found,
                expected: expected_size,
                hint: again,
            });
        }
        let mut bytes = Vec::with_capacity(expected);
        open.read_to_end(&mut bytes).map_err(unreadable)?;
        Ok(bytes)
    }

    fn sha256(self) -> String {
        base16ct::lower::encode_string(&self.hash.finalize())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use run_record::sha256;

    use super::*;

    /// A pixel whose value tells channel, row and column apart.
    fn pixel(image: usize, channel: usize, y: usize, x: usize) -> u8 {
        (image * 101 + channel * 67 + y * 7 + x * 3) as u8
    }

    /// One record after the format's description, written byte by byte.
    fn record(image: usize, labels: &[u8]) -> Vec<u8> {
        let mut bytes = labels.to_vec();
        for channel in 0..3 {
            for y in 0..SIDE {
                for x in 0..SIDE {
                    bytes.push(pixel(image, channel, y, x));
                }
            }
        }
        bytes
    }

    fn file() -> &'static Path {
        Path::new("some/batch.bin")
    }

    #[track_caller]
    fn says(error: DataError, parts: &[&str]) {
        let message = error.to_string();
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }

    #[test]
    fn every_pixel_of_a_known_record_is_in_its_place() {
        let set = parse_cifar10(&[record(0, &[3]), record(1, &[9])].concat(), file()).unwrap();
        assert_eq!(set.images.shape(), [2, 3, 32, 32]);
        assert_eq!(set.labels.to_vec(), [3, 9]);
        for ((n, c, y, x), &value) in set.images.indexed_iter() {
            assert_eq!(value, pixel(n, c, y, x), "image {n}, channel {c}, row {y}, column {x}");
        }
        // Byte 0 is the label; red starts at 1, its second row at 33; green at 1025, blue at 2049.
        let mut bytes = vec![0; 3073];
        for (offset, value) in [(1, 10), (2, 11), (33, 12), (1025, 13), (3072, 14)] {
            bytes[offset] = value;
        }
        let one = parse_cifar10(&bytes, file()).unwrap().images;
        assert_eq!([one[[0, 0, 0, 0]], one[[0, 0, 0, 1]], one[[0, 0, 1, 0]]], [10, 11, 12]);
        assert_eq!([one[[0, 1, 0, 0]], one[[0, 2, 31, 31]]], [13, 14]);
    }

    #[test]
    fn cifar100_has_the_coarse_label_first() {
        let (set, coarse) = parse_cifar100(&record(5, &[11, 19]), file()).unwrap();
        assert_eq!((set.labels.to_vec(), coarse.to_vec()), (vec![19], vec![11]));
        assert_eq!(set.images[[0, 2, 4, 9]], pixel(5, 2, 4, 9));
    }

    #[test]
    fn wrong_lengths_name_the_record() {
        says(parse_cifar10(&[], file()).unwrap_err(), &["some/batch.bin", "0 bytes"]);
        let mut bytes = [record(0, &[1]), record(1, &[2])].concat();
        bytes.pop();
        says(
            parse_cifar10(&bytes, file()).unwrap_err(),
            &["some/batch.bin", "6145 bytes", "record 1 has 3072 bytes"],
        );
        bytes.extend([0, 0]);
        says(parse_cifar10(&bytes, file()).unwrap_err(), &["6147 bytes", "record 2 has 1 bytes"]);
        says(parse_cifar100(&record(0, &[1]), file()).unwrap_err(), &["3074-byte records"]);
    }

    #[test]
    fn labels_outside_the_classes_name_record_and_value() {
        let bytes = [record(0, &[9]), record(1, &[10])].concat();
        says(
            parse_cifar10(&bytes, file()).unwrap_err(),
            &["some/batch.bin", "record 1", "label 10", "largest is 9"],
        );
        says(
            parse_cifar100(&record(0, &[20, 0]), file()).unwrap_err(),
            &["record 0", "coarse label 20", "is 19"],
        );
        says(
            parse_cifar100(&record(0, &[19, 100]), file()).unwrap_err(),
            &["record 0", "fine label 100", "is 99"],
        );
    }

    /// A CIFAR-10 of two images per file, under a temporary directory.
    fn small_cifar10() -> (tempfile::TempDir, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cifar-10-batches-bin");
        fs::create_dir(&folder).unwrap();
        let mut all = Vec::new();
        for (index, name) in
            ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
                .into_iter()
                .enumerate()
        {
            let bytes =
                [record(2 * index, &[index as u8]), record(2 * index + 1, &[index as u8 + 4])].concat();
            fs::write(folder.join(name).with_extension("bin"), &bytes).unwrap();
            all.extend(bytes);
        }
        (dir, all)
    }

    #[test]
    fn files_come_in_order_from_either_directory() {
        let (dir, all) = small_cifar10();
        let set = load_cifar10_sized(dir.path(), 2).unwrap();
        assert_eq!(set, load_cifar10_sized(&dir.path().join("cifar-10-batches-bin"), 2).unwrap());
        assert_eq!((set.name.as_str(), set.coarse.is_none()), ("cifar10", true));
        assert_eq!(set.train.labels.to_vec(), [0, 4, 1, 5, 2, 6, 3, 7, 4, 8]);
        assert_eq!(set.test.labels.to_vec(), [5, 9]);
        assert_eq!(set.train.images[[9, 1, 2, 3]], pixel(9, 1, 2, 3));
        assert_eq!(set.test.images[[1, 1, 2, 3]], pixel(11, 1, 2, 3));
        assert_eq!(set.sha256, sha256(&all));
        assert_eq!(
            set.class_names,
            ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
        );
    }

    #[test]
    fn cifar100_loads_both_sets_of_labels() {
        let dir = tempfile::tempdir().unwrap();
        let (train, test) = ([record(0, &[4, 0]), record(1, &[13, 99])].concat(), record(2, &[1, 1]));
        fs::write(dir.path().join("train.bin"), &train).unwrap();
        fs::write(dir.path().join("test.bin"), &test).unwrap();
        let set = load_cifar100_sized(dir.path(), 2, 1).unwrap();
        assert_eq!((set.train.labels.to_vec(), set.test.labels.to_vec()), (vec![0, 99], vec![1]));
        assert_eq!(set.sha256, sha256([train, test].concat()));
        let coarse = set.coarse.unwrap();
        assert_eq!((coarse.train.to_vec(), coarse.test.to_vec()), (vec![4, 13], vec![1]));
        // The labels of images 0, 1 and 2 above are the published pairs of apple, worm and aquarium fish.
        let names = |fine: usize, coarse_label: usize| {
            (set.class_names[fine].as_str(), coarse.class_names[coarse_label].as_str())
        };
        assert_eq!(names(0, 4), ("apple", "fruit_and_vegetables"));
        assert_eq!(names(99, 13), ("worm", "non-insect_invertebrates"));
        assert_eq!(names(1, 1), ("aquarium_fish", "fish"));
        assert_eq!((set.class_names[19].as_str(), coarse.class_names[19].as_str()), ("cattle", "vehicles_2"));
    }

    #[test]
    fn class_names_are_complete_and_in_the_published_alphabetical_order() {
        for (list, count) in [(CIFAR100_CLASSES, 100), (CIFAR100_COARSE_CLASSES, 20), (CIFAR10_CLASSES, 10)] {
            let names = names(list);
            assert!(names.len() == count && names.windows(2).all(|pair| pair[0] < pair[1]), "{names:?}");
        }
        for (label, name) in
            [(27, "crocodile"), (42, "leopard"), (58, "pickup_truck"), (73, "shark"), (90, "train")]
        {
            assert_eq!(names(CIFAR100_CLASSES)[label], name);
        }
    }

    #[test]
    fn files_of_a_wrong_size_say_what_to_do() {
        let (dir, _) = small_cifar10();
        let third = dir.path().join("cifar-10-batches-bin/data_batch_3.bin");
        let bytes = fs::read(&third).unwrap();
        fs::write(&third, &bytes[..4000]).unwrap();
        says(
            load_cifar10_sized(dir.path(), 2).unwrap_err(),
            &["data_batch_3.bin is truncated", "4000 bytes instead of 6146", "cargo xtask fetch cifar10"],
        );
        fs::write(&third, [&bytes[..], &[0]].concat()).unwrap();
        says(
            load_cifar10_sized(dir.path(), 2).unwrap_err(),
            &["data_batch_3.bin is too long", "6147 bytes instead of 6146"],
        );
        fs::write(&third, [record(0, &[0]), record(0, &[255])].concat()).unwrap();
        says(load_cifar10_sized(dir.path(), 2).unwrap_err(), &["data_batch_3.bin", "record 1", "label 255"]);
        fs::remove_file(&third).unwrap();
        says(
            load_cifar10_sized(dir.path(), 2).unwrap_err(),
            &["data_batch_3.bin not found", "cargo xtask fetch cifar10"],
        );
    }

    #[test]
    fn the_published_sizes_are_asked_for() {
        let (dir, _) = small_cifar10();
        says(load_cifar10(dir.path()).unwrap_err(), &["data_batch_1.bin", "6146 bytes instead of 30730000"]);
        fs::write(dir.path().join("train.bin"), []).unwrap();
        says(
            load_cifar100(dir.path()).unwrap_err(),
            &["train.bin", "0 bytes instead of 153700000", "fetch cifar100"],
        );
    }

    #[test]
    fn a_wrong_directory_says_what_it_should_hold() {
        let empty = tempfile::tempdir().unwrap();
        let file = empty.path().join("file");
        fs::write(&file, "").unwrap();
        for dir in [empty.path(), &empty.path().join("none"), &file] {
            says(
                load_cifar10(dir).unwrap_err(),
                &[
                    &dir.display().to_string(),
                    "data_batch_1.bin not found",
                    "must hold cifar-10-batches-bin/",
                ],
            );
            says(load_cifar100(dir).unwrap_err(), &["train.bin not found", "must hold cifar-100-binary/"]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn records_survive_a_round_trip(
            records in prop::collection::vec((0u8..20, 0u8..100, prop::collection::vec(any::<u8>(), PIXELS)), 1..4),
        ) {
            let bytes: Vec<u8> =
                records.iter().flat_map(|(coarse, fine, pixels)| [&[*coarse, *fine], &pixels[..]].concat()).collect();
            let (set, coarse) = parse_cifar100(&bytes, file()).unwrap();
            prop_assert_eq!(set.len(), records.len());
            let mut written = Vec::new();
            for (n, image) in set.images.outer_iter().enumerate() {
                written.extend([coarse[n] as u8, set.labels[n] as u8]);
                written.extend(image.iter());
            }
            prop_assert_eq!(written, bytes);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..7000)) {
            let _ = parse_cifar10(&bytes, file());
            let _ = parse_cifar100(&bytes, file());
        }

        #[test]
        fn arbitrary_bytes_of_a_right_length_never_panic(bytes in prop::collection::vec(any::<u8>(), 2 * 3073)) {
            if let Ok(set) = parse_cifar10(&bytes, file()) {
                prop_assert!(set.labels.iter().all(|&label| label <= 9));
            }
        }
    }
}
