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

use crc::{CRC_32_ISCSI, Crc};
use image::{DynamicImage, ImageFormat};

/// CRC-32C.
const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

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

    /// Adds an image as PNG.
    ///
    /// # Errors
    /// An image without pixels, or of numbers that PNG does not have.
    pub fn image(&mut self, step: u64, tag: &str, picture: &DynamicImage) -> image::ImageResult<()> {
        let mut png = io::Cursor::new(Vec::new());
        picture.write_to(&mut png, ImageFormat::Png)?;
        let mut proto = Vec::new();
        integer(&mut proto, 1, picture.height().into());
        integer(&mut proto, 2, picture.width().into());
        integer(&mut proto, 3, picture.color().channel_count().into()); // colorspace
        bytes(&mut proto, 4, png.get_ref()); // encoded_image_string
        let mut content = Vec::new();
        bytes(&mut content, 4, &proto); // image
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
    CRC32C.checksum(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests;
