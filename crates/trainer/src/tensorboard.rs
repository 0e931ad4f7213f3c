//! TensorBoard event files: scalars, histograms and images of a run.
//!
//! A file is a sequence of records, each with its length and masked CRC-32C sums (TensorFlow's `TFRecord`), and
//! a record is a protocol buffer `Event` (tensorflow/core/util/event.proto, `summary.proto`, `histogram.proto`).
//! docs/parity/tensorboard_reading.py reads such files with TensorBoard itself.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// How the name of an event file starts; TensorBoard looks for `tfevents` and reads files in the order of names.
const NAME: &str = "events.out.tfevents.";

/// Appends events to a file of this process's own.
///
/// What is added is in memory until [`EventWriter::flush`], such as after each epoch.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
    /// Length of the file, which ends with a whole record.
    length: u64,
    /// Records to add to the file.
    pending: Vec<u8>,
    /// Seconds since 1970.
    clock: fn() -> f64,
}

impl EventWriter {
    /// Starts a new file in `directory`, which is made if need be. `first_step` is the first step this process
    /// will report, 0 in a new run.
    ///
    /// Earlier processes that got further than that have left events which are to come again. Every file
    /// starts with a `SessionLog` of status START at `first_step`, as those of PyTorch's
    /// `SummaryWriter(purge_step=…)` do: TensorBoard then drops what earlier files have at that step and
    /// beyond. Its data server, which reads for it unless `--load_fast=false`, goes by steps alone: of a tag
    /// that is written again, it drops what is not before the new step.
    ///
    /// # Errors
    /// What the file system says; the message does not name the path, so add it.
    pub fn create(directory: &Path, first_step: u64) -> io::Result<Self> {
        let seconds = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        Self::create_with(directory, first_step, seconds)
    }

    fn create_with(directory: &Path, first_step: u64, clock: fn() -> f64) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let mut second = clock() as u64;
        for entry in fs::read_dir(directory)? {
            let name = entry?.file_name();
            let time =
                name.to_str().and_then(|name| name.strip_prefix(NAME)?.split('.').next()?.parse().ok());
            // Later by name than every other file, even if the clock was set back.
            second = second.max(time.map_or(0, |time: u64| time.saturating_add(1)));
        }
        let path = directory.join(format!("{NAME}{second:010}.{}", std::process::id()));
        let file = File::options().append(true).create_new(true).open(&path)?;
        let mut writer = Self { path, file, length: 0, pending: Vec::new(), clock };
        writer.add(0, 3, b"brain.Event:2"); // file_version
        writer.add(first_step, 7, &[1 << 3, 1]); // session_log { status: START }
        writer.flush()?;
        Ok(writer)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds one number; `tag` is its name, such as `train/loss`.
    pub fn scalar(&mut self, step: u64, tag: &str, value: f32) {
        let mut content = Vec::new();
        key(&mut content, 2, Wire::Fixed32); // simple_value
        content.extend(value.to_le_bytes());
        self.summary(step, tag, &content);
    }

    /// Adds how values are distributed.
    pub fn histogram(&mut self, step: u64, tag: &str, histogram: &Histogram) {
        let mut content = Vec::new();
        bytes(&mut content, 5, &histogram.encode()); // histo
        self.summary(step, tag, &content);
    }

    /// Adds an image, grey or RGB, of 8 bits. `pixels` is row by row, the channels of a pixel side by side:
    /// `[height, width]` or `[height, width, 3]`.
    ///
    /// # Errors
    /// A number of pixels that does not fit the size, or an image without any.
    pub fn image(&mut self, step: u64, tag: &str, width: u32, height: u32, pixels: &[u8]) -> io::Result<()> {
        let channels = channels(width, height, pixels)?;
        let mut image = Vec::new();
        integer(&mut image, 1, height.into());
        integer(&mut image, 2, width.into());
        integer(&mut image, 3, channels.into()); // colorspace
        bytes(&mut image, 4, &png(width, height, channels, pixels)?);
        let mut content = Vec::new();
        bytes(&mut content, 4, &image);
        self.summary(step, tag, &content);
        Ok(())
    }

    /// Has everything added in the file.
    ///
    /// # Errors
    /// What the file system says; the message does not name the path, so add it. The file then ends with a whole
    /// record still, and the next call writes what is missing.
    pub fn flush(&mut self) -> io::Result<()> {
        if let Err(error) = self.file.write_all(&self.pending) {
            // Nothing would be read beyond half a record.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    fn summary(&mut self, step: u64, tag: &str, content: &[u8]) {
        let mut value = Vec::new();
        bytes(&mut value, 1, tag.as_bytes());
        value.extend(content);
        let mut summary = Vec::new();
        bytes(&mut summary, 1, &value);
        self.add(step, 5, &summary);
    }

    /// Adds the record of an `Event` with one field besides time and step.
    fn add(&mut self, step: u64, field: u32, content: &[u8]) {
        let mut event = Vec::new();
        double(&mut event, 1, (self.clock)());
        integer(&mut event, 2, step);
        bytes(&mut event, field, content);
        let length = (event.len() as u64).to_le_bytes();
        self.pending.extend(length);
        self.pending.extend(masked_crc32c(&length).to_le_bytes());
        self.pending.extend(&event);
        self.pending.extend(masked_crc32c(&event).to_le_bytes());
    }
}

/// Removes the event files in a directory, and nothing else; the directory too, if that is all it held.
///
/// # Errors
/// What the file system says; the message does not name the path, so add it.
pub fn clear(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(NAME)) {
            fs::remove_file(entry.path())?;
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(error),
        _ => Ok(()),
    }
}

/// Limits of TensorBoard's buckets, ascending: ±10⁻¹² · 1.1ⁱ below 10²⁰, 0, and ± the largest number.
///
/// Bucket `i` holds the values from limit `i − 1` up to, but not including, limit `i`
/// (tensorflow/core/lib/histogram/histogram.cc).
pub fn bucket_limits() -> &'static [f64] {
    static LIMITS: LazyLock<Vec<f64>> = LazyLock::new(|| {
        let positive = std::iter::successors(Some(1e-12), |limit| Some(limit * 1.1));
        let positive: Vec<f64> = positive.take_while(|&limit| limit < 1e20).chain([f64::MAX]).collect();
        positive.iter().rev().map(|limit| -limit).chain([0.0]).chain(positive.iter().copied()).collect()
    });
    &LIMITS
}

/// How values are distributed.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// The smallest value.
    pub min: f64,
    /// The largest value.
    pub max: f64,
    /// How many values there are.
    pub num: u64,
    /// Their sum.
    pub sum: f64,
    /// The sum of their squares.
    pub sum_squares: f64,
    /// How many of them are in each bucket of [`bucket_limits`].
    pub counts: Vec<u64>,
}

impl Histogram {
    /// The histogram of the values that are finite, or `None` if none is.
    pub fn of(values: &[f32]) -> Option<Self> {
        let limits = bucket_limits();
        let mut histogram = Self {
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            num: 0,
            sum: 0.0,
            sum_squares: 0.0,
            counts: vec![0; limits.len()],
        };
        for value in values.iter().filter(|value| value.is_finite()).map(|&value| f64::from(value)) {
            histogram.min = histogram.min.min(value);
            histogram.max = histogram.max.max(value);
            histogram.num += 1;
            histogram.sum += value;
            histogram.sum_squares += value * value;
            // Beyond every f32 there is a limit.
            histogram.counts[limits.partition_point(|&limit| limit <= value)] += 1;
        }
        (histogram.num > 0).then_some(histogram)
    }

    /// As `HistogramProto`, without the empty buckets: a limit below each filled one, where no other filled one
    /// ends there, stands for all that are empty below.
    fn encode(&self) -> Vec<u8> {
        let (mut limits, mut counts) = (Vec::new(), Vec::new());
        let mut below = f64::NEG_INFINITY;
        for (&limit, &count) in bucket_limits().iter().zip(&self.counts) {
            if count > 0 {
                if below.is_finite() && limits.last() != Some(&below) {
                    limits.push(below);
                    counts.push(0.0);
                }
                limits.push(limit);
                counts.push(count as f64);
            }
            below = limit;
        }
        let mut proto = Vec::new();
        double(&mut proto, 1, self.min);
        double(&mut proto, 2, self.max);
        double(&mut proto, 3, self.num as f64);
        double(&mut proto, 4, self.sum);
        double(&mut proto, 5, self.sum_squares);
        for (field, values) in [(6, limits), (7, counts)] {
            let packed: Vec<u8> = values.iter().flat_map(|value: &f64| value.to_le_bytes()).collect();
            bytes(&mut proto, field, &packed);
        }
        proto
    }
}

/// 1 for a grey image and 3 for one in RGB.
fn channels(width: u32, height: u32, pixels: &[u8]) -> io::Result<u8> {
    let size = u64::from(width) * u64::from(height);
    let length = pixels.len() as u64;
    match (1_u8..=3).step_by(2).find(|&channels| size.checked_mul(channels.into()) == Some(length)) {
        Some(channels) if size > 0 => Ok(channels),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{length} bytes are no image of {width}x{height} pixels with 1 or 3 channels"),
        )),
    }
}

/// The image as a PNG file (ISO/IEC 15948), not compressed: thumbnails are small, and this needs no encoder.
fn png(width: u32, height: u32, channels: u8, pixels: &[u8]) -> io::Result<Vec<u8>> {
    let mut rows = Vec::with_capacity(pixels.len() + height as usize);
    for row in pixels.chunks(width as usize * usize::from(channels)) {
        rows.push(0); // no filter
        rows.extend(row);
    }
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    // 8 bits, grey or RGB, and the only compression, filters and order there are.
    header.extend([8, if channels == 1 { 0 } else { 2 }, 0, 0, 0]);
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for (name, data) in [(b"IHDR", header), (b"IDAT", stored(&rows)), (b"IEND", Vec::new())] {
        let length = u32::try_from(data.len()).map_err(io::Error::other)?;
        let chunk = [&name[..], &data].concat();
        file.extend(length.to_be_bytes());
        file.extend(&chunk);
        file.extend(crc(&CRC32, &chunk).to_be_bytes());
    }
    Ok(file)
}

/// The bytes in the zlib format (RFC 1950), in blocks that are stored as they are (RFC 1951).
fn stored(data: &[u8]) -> Vec<u8> {
    let mut stream = vec![0x78, 0x01];
    let mut blocks = data.chunks(u16::MAX.into()).peekable();
    while let Some(block) = blocks.next() {
        stream.push(u8::from(blocks.peek().is_none()));
        let length = block.len() as u16; // a block is not longer
        stream.extend(length.to_le_bytes());
        stream.extend((!length).to_le_bytes());
        stream.extend(block);
    }
    let (a, b) = data.iter().fold((1_u32, 0_u32), |(a, b), &byte| {
        let a = (a + u32::from(byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    stream.extend((b << 16 | a).to_be_bytes()); // Adler-32
    stream
}

/// How a field of a protocol buffer is stored.
enum Wire {
    Varint = 0,
    Fixed64 = 1,
    Length = 2,
    Fixed32 = 5,
}

fn key(out: &mut Vec<u8>, field: u32, wire: Wire) {
    varint(out, u64::from(field << 3 | wire as u32));
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Adds a field; 0 is what its absence means.
fn integer(out: &mut Vec<u8>, field: u32, value: u64) {
    if value != 0 {
        key(out, field, Wire::Varint);
        varint(out, value);
    }
}

/// Adds a field; 0 is what its absence means.
fn double(out: &mut Vec<u8>, field: u32, value: f64) {
    if value.to_bits() != 0 {
        key(out, field, Wire::Fixed64);
        out.extend(value.to_le_bytes());
    }
}

fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    key(out, field, Wire::Length);
    varint(out, value.len() as u64);
    out.extend(value);
}

/// CRC-32C turned and shifted, so that a sum over data with sums in it is as good as any other.
fn masked_crc32c(bytes: &[u8]) -> u32 {
    crc(&CRC32C, bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

static CRC32: [u32; 256] = crc_table(0xedb8_8320);
static CRC32C: [u32; 256] = crc_table(0x82f6_3b78);

/// What each byte does to a sum, for a polynomial with its highest power in the lowest bit.
const fn crc_table(polynomial: u32) -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ polynomial } else { sum >> 1 };
            bit += 1;
        }
        table[byte] = sum;
        byte += 1;
    }
    table
}

fn crc(table: &[u32; 256], bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, &byte| table[(sum as u8 ^ byte) as usize] ^ sum >> 8)
}

#[cfg(test)]
mod tests {
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

    /// Two processes: the second one repeats the steps from 2 on.
    fn write_parity_files(directory: &Path) -> [PathBuf; 2] {
        let mut first = EventWriter::create_with(directory, 0, || 1_700_000_000.25).unwrap();
        for step in 0..4_u8 {
            first.scalar(step.into(), "train/loss", 2.5 - f32::from(step) * 0.3);
            first.scalar(step.into(), "top1", f32::from(step) / 3.0);
        }
        first.histogram(1, "weights", &Histogram::of(&weights()).unwrap());
        first.histogram(3, "weights", &Histogram::of(&[1.0]).unwrap());
        first.image(1, "rgb", 3, 2, &pixels(18)).unwrap();
        first.image(3, "rgb", 1, 1, &[1, 2, 3]).unwrap();
        first.image(1, "grey", 2, 5, &pixels(10)).unwrap();
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
        assert_eq!(crc(&CRC32C, b"123456789"), 0xe306_9283);
        assert_eq!(crc(&CRC32, b"123456789"), 0xcbf4_3926);
        // RFC 3720, B.4
        assert_eq!(crc(&CRC32C, &[0; 32]), 0x8a91_36aa);
        assert_eq!(crc(&CRC32C, &[0xff; 32]), 0x62a8_ab43);
        assert_eq!(stored(b"Wikipedia")[16..], 0x11e6_0398_u32.to_be_bytes());
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
    fn images_must_fit_their_size() {
        let directory = TempDir::new().unwrap();
        let mut writer = EventWriter::create(directory.path(), 0).unwrap();
        for (width, height, length) in [(0, 0, 0), (0, 3, 0), (2, 2, 8), (2, 2, 13), (u32::MAX, u32::MAX, 3)]
        {
            let error = writer.image(0, "x", width, height, &vec![0; length]).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{length} bytes are no image of {width}x{height} ")),
                "{error}"
            );
        }
        // More than one block of 65,535 bytes.
        writer.image(0, "x", 300, 300, &vec![7; 300 * 300 * 3]).unwrap();
        let data = stored(&vec![7; 70_000]);
        assert_eq!((data[2], data[2 + 5 + 65_535]), (0, 1));
        assert_eq!(data.len(), 2 + 5 + 65_535 + 5 + 4_465 + 4);
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
}
