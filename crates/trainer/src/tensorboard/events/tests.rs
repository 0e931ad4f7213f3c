//! Against files that TensorBoard was seen to read, and against the formats themselves.

use super::*;
use proptest::prelude::*;
use tempfile::TempDir;

/// Files that docs/parity/tensorboard_reading.py reads with TensorBoard.
const PARITY: [&str; 2] = ["events.out.tfevents.1700000000.1", "events.out.tfevents.1700000001.1"];

/// What the parity files are of, in numbers that Python can make again.
fn weights() -> Vec<f32> {
    let mut values: Vec<f32> = (0..1000_i32).map(|i| (i * i * 7 % 1013 - 500) as f32 / 512.0).collect();
    values.extend([0.0, 1e-13, -1e-13, 1e20, -1e20, 3e38, f32::NAN, f32::INFINITY]);
    values
}

fn pixels(length: u8) -> Vec<u8> {
    (0..length).map(|i| i.wrapping_mul(37)).collect()
}

fn rgb(width: u32, height: u32, pixels: Vec<u8>) -> DynamicImage {
    image::RgbImage::from_raw(width, height, pixels).unwrap().into()
}

/// Two processes: the second one repeats the steps from 2 on.
fn write_parity_files(directory: &Path) -> [PathBuf; 2] {
    let mut first = EventWriter::create_with(directory, 0, || 1_700_000_000.25).unwrap();
    for step in 0..4_u8 {
        first.scalar(step.into(), "train/loss", 2.5 - f32::from(step) * 0.3);
        first.scalar(step.into(), "top1", f32::from(step) / 3.0);
    }
    first.histogram(1, "weights", &Histogram::of(&weights()).unwrap());
    first.histogram(3, "weights", &Histogram::of(&[1.0]).unwrap());
    first.image(1, "rgb", &rgb(3, 2, pixels(18))).unwrap();
    first.image(3, "rgb", &rgb(1, 1, vec![1, 2, 3])).unwrap();
    let grey = image::GrayImage::from_raw(2, 5, pixels(10)).unwrap();
    first.image(1, "grey", &grey.into()).unwrap();
    first.flush().unwrap();
    let mut second = EventWriter::create_with(directory, 2, || 1_700_000_000.75).unwrap();
    for step in 2..300_u16 {
        second.scalar(step.into(), "train/loss", -f32::from(step));
    }
    second.histogram(2, "weights", &Histogram::of(&[0.0, -0.5]).unwrap());
    second.flush().unwrap();
    [first.path, second.path]
}

#[test]
fn files_are_those_tensorboard_was_seen_to_read() {
    let directory = TempDir::new().unwrap();
    let paths = write_parity_files(directory.path());
    let parity = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tensorboard");
    for (path, name) in paths.iter().zip(PARITY) {
        let start = name.rsplit_once('.').unwrap().0;
        assert!(path.file_name().unwrap().to_str().unwrap().starts_with(start), "{}", path.display());
        assert!(fs::read(path).unwrap() == fs::read(parity.join(name)).unwrap(), "{name}");
    }
}

#[test]
#[ignore = "renews the files that docs/parity/tensorboard_reading.py reads"]
fn renew_parity_files() {
    let directory = TempDir::new().unwrap();
    let parity = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tensorboard");
    fs::create_dir_all(&parity).unwrap();
    for (path, name) in write_parity_files(directory.path()).iter().zip(PARITY) {
        fs::copy(path, parity.join(name)).unwrap();
    }
}

#[test]
fn a_file_starts_as_it_should() {
    let directory = TempDir::new().unwrap();
    let mut writer = EventWriter::create_with(directory.path(), 300, || 2.0).unwrap();
    writer.scalar(5, "a", 1.0);
    writer.flush().unwrap();
    let file = fs::read(writer.path()).unwrap();
    let records = records(&file);
    // wall_time: 2.0, file_version: "brain.Event:2"
    assert_eq!(records[0], b"\x09\0\0\0\0\0\0\0\x40\x1a\x0dbrain.Event:2");
    // wall_time: 2.0, step: 300, session_log { status: START }
    assert_eq!(records[1], b"\x09\0\0\0\0\0\0\0\x40\x10\xac\x02\x3a\x02\x08\x01");
    // wall_time: 2.0, step: 5, summary { value { tag: "a", simple_value: 1.0 } }
    assert_eq!(records[2], b"\x09\0\0\0\0\0\0\0\x40\x10\x05\x2a\x0a\x0a\x08\x0a\x01a\x15\0\0\x80\x3f");
    assert_eq!(records.len(), 3);
}

/// The records of a file, their sums checked.
fn records(mut file: &[u8]) -> Vec<&[u8]> {
    let mut records = Vec::new();
    while !file.is_empty() {
        let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        assert_eq!(file[8..12], masked_crc32c(&file[..8]).to_le_bytes());
        let record = &file[12..12 + length];
        assert_eq!(file[12 + length..16 + length], masked_crc32c(record).to_le_bytes());
        records.push(record);
        file = &file[16 + length..];
    }
    records
}

#[test]
fn sums_are_the_published_ones() {
    assert_eq!(CRC32C.checksum(b"123456789"), 0xe306_9283);
    // RFC 3720, B.4
    assert_eq!(CRC32C.checksum(&[0; 32]), 0x8a91_36aa);
    assert_eq!(CRC32C.checksum(&[0xff; 32]), 0x62a8_ab43);
}

#[test]
fn buckets_are_tensorboards() {
    let limits = bucket_limits();
    assert_eq!(limits.len(), 1551);
    assert!(limits.is_sorted_by(|a, b| a < b));
    assert_eq!(limits[774..778], [-1e-12, 0.0, 1e-12, 1e-12 * 1.1]);
    assert_eq!((limits[0], limits[1550]), (-f64::MAX, f64::MAX));
    assert!(limits[1549] < 1e20 && limits[1549] * 1.1 >= 1e20);

    // A limit belongs to the bucket above it.
    let histogram = Histogram::of(&[0.0, -0.0, 1e-13, -1e-13, f32::MAX, f32::MIN]).unwrap();
    let filled: Vec<_> = histogram.counts.iter().enumerate().filter(|(_, count)| **count > 0).collect();
    assert_eq!(filled, [(1, &1), (775, &1), (776, &3), (1550, &1)]);
    assert_eq!(Histogram::of(&[]), None);
    assert_eq!(Histogram::of(&[f32::NAN, f32::INFINITY]), None);
}

#[test]
fn a_new_file_comes_after_all_others() {
    let directory = TempDir::new().unwrap();
    let later = directory.path().join("events.out.tfevents.9000000000.host.1.v2");
    fs::write(&later, "").unwrap();
    fs::write(directory.path().join("events.out.tfevents.x"), "").unwrap();
    let mut paths: Vec<PathBuf> =
        (0..3).map(|_| EventWriter::create(directory.path(), 0).unwrap().path).collect();
    paths.insert(0, later);
    assert!(paths.is_sorted(), "{paths:?}");
}

#[test]
fn a_failed_flush_loses_nothing() {
    let directory = TempDir::new().unwrap();
    let mut writer = EventWriter::create(directory.path(), 0).unwrap();
    writer.scalar(1, "loss", 1.0);
    // A file that is open for reading takes no bytes.
    let good = std::mem::replace(&mut writer.file, File::open(&writer.path).unwrap());
    writer.flush().unwrap_err();
    writer.file = good;
    writer.scalar(2, "loss", 2.0);
    writer.flush().unwrap();
    assert_eq!(records(&fs::read(&writer.path).unwrap()).len(), 4);
}

#[test]
fn an_image_without_pixels_is_refused_and_nothing_is_added() {
    let directory = TempDir::new().unwrap();
    let mut writer = EventWriter::create(directory.path(), 0).unwrap();
    writer.image(0, "x", &rgb(0, 3, Vec::new())).unwrap_err();
    assert!(writer.pending.is_empty());
    writer.image(0, "x", &rgb(3, 1, vec![7; 9])).unwrap();
    assert!(!writer.pending.is_empty());
}

proptest! {
    #[test]
    fn a_histogram_counts_every_value_in_its_bucket(
        values in prop::collection::vec(prop_oneof![any::<f32>(), -2.0_f32..2.0], 0..300),
    ) {
        let finite: Vec<f64> =
            values.iter().filter(|value| value.is_finite()).map(|&value| value.into()).collect();
        let Some(histogram) = Histogram::of(&values) else {
            prop_assert!(finite.is_empty());
            return Ok(());
        };
        prop_assert_eq!(histogram.num as usize, finite.len());
        prop_assert_eq!(histogram.counts.iter().sum::<u64>(), histogram.num);
        let limits = bucket_limits();
        for (i, &count) in histogram.counts.iter().enumerate() {
            let low = if i == 0 { f64::NEG_INFINITY } else { limits[i - 1] };
            let inside = finite.iter().filter(|&&value| low <= value && value < limits[i]).count();
            prop_assert_eq!(inside as u64, count);
        }
        prop_assert!(finite.iter().all(|&value| histogram.min <= value && value <= histogram.max));
    }

    #[test]
    fn varints_hold_seven_bits_a_byte(value in any::<u64>()) {
        let mut bytes = Vec::new();
        varint(&mut bytes, value);
        let back = bytes.iter().rev().fold(0, |sum, byte| sum << 7 | u64::from(byte & 0x7f));
        prop_assert_eq!(back, value);
        prop_assert!(bytes.iter().rev().skip(1).all(|byte| byte & 0x80 != 0));
    }
}
