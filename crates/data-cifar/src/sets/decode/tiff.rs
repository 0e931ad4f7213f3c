//! The first picture of a TIFF: the `tiff` crate reads its samples, and here they become colours, as in PIL.
//!
//! Where PIL mistakes what a file says (planes of 16 bits without compression), the file is taken at its word.

use std::io::Cursor;

use tiff::decoder::{ChunkType, Decoder, DecodingResult, Limits};
use tiff::tags::Tag;
use tiff::{ColorType, TiffError};

use super::{ADVICE, MAX_PIXELS, Source, Watch, check_size, cmyk_to_rgb, damaged};
use crate::augment::fit::RgbImage;

/// The tag that says what the samples of a pixel mean, and some of its values.
const PHOTOMETRIC: u16 = 262;
const WHITE_IS_ZERO: u16 = 0;
const BLACK_IS_ZERO: u16 = 1;
const RGB: u16 = 2;
const PALETTE: u16 = 3;
const CMYK: u16 = 5;

/// Colour and further samples of a pixel, as many as PIL takes.
const MAX_SAMPLES: u16 = 6;

/// The sample format that is read.
const UNSIGNED: u16 = 1;

pub(super) fn decode(bytes: &[u8], watch: &Watch) -> Result<RgbImage, String> {
    let mut bytes = bytes.to_vec();
    let photometric = take_photometric(&mut bytes).ok_or("a TIFF that does not say what its samples mean")?;
    let mut decoder = Decoder::new(Source { bytes: Cursor::new(&bytes), watch }).map_err(reason)?;
    let (width, height) = decoder.dimensions().map_err(reason)?;
    check_size(width.into(), height.into())?;
    let samples = check_samples(&mut decoder, photometric)?;
    let per_pixel = usize::from(samples.per_pixel);
    let stored = (u64::from(samples.per_pixel) * u64::from(samples.bits)).div_ceil(8);
    let in_bytes = if samples.bits == 8 { 0 } else { u64::from(samples.per_pixel) };
    watch.check_memory(width.into(), height.into(), stored + in_bytes + 3)?;
    let color = color(&mut decoder, photometric, &samples)?;
    let orientation = number(&mut decoder, Tag::Orientation, 1)?;

    let mut limits = Limits::default();
    limits.decoding_buffer_size = 8 * MAX_PIXELS as usize; // four samples of 16 bits
    limits.intermediate_buffer_size = bytes.len();
    let mut decoder = decoder.with_limits(limits);
    let mut values = DecodingResult::U8(Vec::new());
    let layout = decoder.read_image_to_buffer(&mut values).map_err(reason)?;
    let (width, height) = (width as usize, height as usize);
    let values = match values {
        DecodingResult::U8(bytes) if samples.bits < 8 => unpack(&bytes, width, samples.bits),
        DecodingResult::U8(values) => values,
        DecodingResult::U16(values) => values.into_iter().map(|value| (value >> 8) as u8).collect(),
        _ => return Err(samples.unread(photometric)),
    };
    if values.len() != width * height * per_pixel {
        return Err(samples.unread(photometric));
    }

    let (pixel_step, sample_step) = if layout.planes > 1 { (1, width * height) } else { (per_pixel, 1) };
    let mut pixels = Vec::with_capacity(3 * width * height);
    let mut of_pixel = [0; MAX_SAMPLES as usize];
    let (out_width, out_height) = if is_transposed(orientation) { (height, width) } else { (width, height) };
    for row in 0..out_height {
        for column in 0..out_width {
            let pixel = oriented(orientation, (column, row), (width, height)) * pixel_step;
            for (sample, value) in of_pixel[..per_pixel].iter_mut().enumerate() {
                *value = values[pixel + sample * sample_step];
            }
            pixels.extend(color(&of_pixel));
        }
    }
    Ok(RgbImage { width: out_width as u32, height: out_height as u32, pixels })
}

type TiffDecoder<'a> = Decoder<Source<'a>>;

fn number(decoder: &mut TiffDecoder<'_>, tag: Tag, default: u16) -> Result<u16, String> {
    decoder.find_tag_unsigned(tag).map(|value| value.unwrap_or(default)).map_err(reason)
}

/// How many samples a pixel has, and how many bits a sample.
struct Samples {
    per_pixel: u16,
    bits: u8,
}

impl Samples {
    fn unread(&self, photometric: u16) -> String {
        let space = match photometric {
            WHITE_IS_ZERO | BLACK_IS_ZERO => "grey",
            RGB => "RGB",
            PALETTE => "palette",
            CMYK => "CMYK",
            6 => "YCbCr",
            8..=10 => "Lab",
            _ => "unknown",
        };
        let Self { per_pixel, bits } = self;
        format!(
            "a TIFF with {space} colours and {per_pixel} x {bits} bits in a pixel, which is not read; {ADVICE}"
        )
    }
}

/// What of the file is not read, as far as its tags tell.
fn check_samples(decoder: &mut TiffDecoder<'_>, photometric: u16) -> Result<Samples, String> {
    check_compression(number(decoder, Tag::Compression, 1)?)?;
    if number(decoder, Tag::FillOrder, 1)? != 1 {
        return Err(format!("a TIFF with the bits of its bytes reversed, which is not read; {ADVICE}"));
    }
    if number(decoder, Tag::PlanarConfiguration, 1)? == 2 && decoder.get_chunk_type() == ChunkType::Tile {
        return Err(format!("a TIFF with planes of tiles, which is not read; {ADVICE}"));
    }
    let (ColorType::Gray(bits) | ColorType::Multiband { bit_depth: bits, .. }) =
        decoder.colortype().map_err(reason)?
    else {
        return Err("a TIFF that says twice what its samples mean".into());
    };
    let samples = Samples { per_pixel: number(decoder, Tag::SamplesPerPixel, 1)?, bits };
    let formats = decoder.find_tag_unsigned_vec::<u16>(Tag::SampleFormat).map_err(reason)?;
    if formats.iter().flatten().any(|&format| format != UNSIGNED) {
        return Err(format!("a TIFF whose samples are signed or fractions, which is not read; {ADVICE}"));
    }
    if samples.per_pixel > MAX_SAMPLES { Err(samples.unread(photometric)) } else { Ok(samples) }
}

type Color = Box<dyn Fn(&[u8; MAX_SAMPLES as usize]) -> [u8; 3]>;

/// Makes a pixel's colour of its samples: their upper 8 bits, or all if they have fewer.
fn color(decoder: &mut TiffDecoder<'_>, photometric: u16, samples: &Samples) -> Result<Color, String> {
    let bits = samples.bits;
    Ok(match (photometric, bits, samples.per_pixel) {
        (WHITE_IS_ZERO, 1 | 2 | 4, 1) => Box::new(move |&[level, ..]| [!grey(level, bits); 3]),
        (BLACK_IS_ZERO, 1 | 2 | 4, 1) => Box::new(move |&[level, ..]| [grey(level, bits); 3]),
        (WHITE_IS_ZERO, 8 | 16, 1..) => Box::new(|&[level, ..]| [!level; 3]),
        (BLACK_IS_ZERO, 8 | 16, 1..) => Box::new(|&[level, ..]| [level; 3]),
        (RGB, 8 | 16, 4..) if is_premultiplied(decoder)? => Box::new(|&[red, green, blue, alpha, ..]| {
            [red, green, blue].map(|value| unmultiply(value, alpha))
        }),
        (RGB, 8 | 16, 3..) => Box::new(|&[red, green, blue, ..]| [red, green, blue]),
        (CMYK, 8 | 16, 4..) => Box::new(|&[inks @ .., _, _]| cmyk_to_rgb(inks)),
        (PALETTE, 1 | 2 | 4, 1) | (PALETTE, 8, 1..) => {
            let table = decoder.get_tag_u16_vec(Tag::ColorMap).map_err(reason)?;
            let count = 1 << bits;
            if table.len() < 3 * count {
                let found = table.len();
                return Err(format!("a TIFF whose palette has {found} values instead of {}", 3 * count));
            }
            let entry = move |channel, index| (table[channel * count + usize::from(index)] >> 8) as u8;
            Box::new(move |&[index, ..]| [0, 1, 2].map(|channel| entry(channel, index)))
        }
        _ => return Err(samples.unread(photometric)),
    })
}

/// Whether the colours were multiplied by the opacity that follows them.
fn is_premultiplied(decoder: &mut TiffDecoder<'_>) -> Result<bool, String> {
    let extra = decoder.find_tag_unsigned_vec::<u16>(Tag::ExtraSamples).map_err(reason)?;
    Ok(extra.is_some_and(|extra| extra.first() == Some(&1)))
}

fn is_transposed(orientation: u16) -> bool {
    matches!(orientation, 5..=8)
}

/// Which of the stored pixels, by index, is shown at a place, for a picture of the given width and height.
fn oriented(orientation: u16, (column, row): (usize, usize), (width, height): (usize, usize)) -> usize {
    let (x, y) = if is_transposed(orientation) { (row, column) } else { (column, row) };
    let x = if matches!(orientation, 2 | 3 | 7 | 8) { width - 1 - x } else { x };
    let y = if matches!(orientation, 3 | 4 | 6 | 7) { height - 1 - y } else { y };
    y * width + x
}

/// What the samples of the first picture mean. The `tiff` crate gives no samples of some colour spaces, and
/// changes those of others, but leaves alone what is said to be grey: that is what the file says afterwards.
fn take_photometric(bytes: &mut [u8]) -> Option<u16> {
    let little = bytes.starts_with(b"II");
    let number = |bytes: &[u8], at: usize, length: usize| {
        let field = bytes.get(at..at.checked_add(length)?)?;
        let shifted = |number: u64, &byte: &u8| number << 8 | u64::from(byte);
        let value = if little { field.iter().rev().fold(0, shifted) } else { field.iter().fold(0, shifted) };
        usize::try_from(value).ok()
    };
    let is_big = number(bytes, 2, 2)? == 43;
    let (first, entries, size, value_at) = if is_big {
        let directory = number(bytes, 8, 8)?;
        (directory.checked_add(8)?, number(bytes, directory, 8)?, 20, 12)
    } else {
        let directory = number(bytes, 4, 4)?;
        (directory.checked_add(2)?, number(bytes, directory, 2)?, 12, 8)
    };
    for entry in (first..bytes.len()).step_by(size).take(entries) {
        if number(bytes, entry, 2)? == usize::from(PHOTOMETRIC) {
            let at = entry + value_at;
            let value = number(bytes, at, 2)? as u16;
            let grey = if little { BLACK_IS_ZERO.to_le_bytes() } else { BLACK_IS_ZERO.to_be_bytes() };
            bytes[at..at + 2].copy_from_slice(&grey);
            return Some(value);
        }
    }
    None
}

fn reason(error: TiffError) -> String {
    match error {
        TiffError::UnsupportedError(what) => format!("a TIFF that is not read ({what}); {ADVICE}"),
        TiffError::LimitsExceeded => "a TIFF whose tags ask for too much memory".into(),
        _ => damaged(error),
    }
}

fn check_compression(method: u16) -> Result<(), String> {
    let name = match method {
        1 | 4 | 5 | 8 | 32946 | 32773 => return Ok(()), // none, group 4, LZW, deflate twice, PackBits
        2 | 3 => "CCITT group 3",
        6 | 7 => "JPEG",
        34925 => "LZMA",
        50000 => "Zstandard",
        50001 => "WebP",
        _ => return Err(format!("a TIFF compressed by method {method}, which is not read; {ADVICE}")),
    };
    Err(format!("a TIFF compressed by {name}, which is not read; {ADVICE}"))
}

/// Samples of less than a byte, each in its own byte; rows begin with a byte.
fn unpack(bytes: &[u8], width: usize, bits: u8) -> Vec<u8> {
    let per_byte = 8 / usize::from(bits);
    let mut samples = Vec::with_capacity(bytes.len() * per_byte);
    for row in bytes.chunks_exact(width.div_ceil(per_byte)) {
        samples.extend((0..width).map(|x| {
            let shift = 8 - bits * (x % per_byte + 1) as u8;
            row[x / per_byte] >> shift & (0xff >> (8 - bits))
        }));
    }
    samples
}

fn grey(level: u8, bits: u8) -> u8 {
    level * (255 / (0xff >> (8 - bits)))
}

/// A colour that was multiplied by its opacity, as it was before.
fn unmultiply(value: u8, alpha: u8) -> u8 {
    match alpha {
        0 | 255 => value & alpha,
        _ => (u32::from(value) * 255 / u32::from(alpha)).min(255) as u8,
    }
}
