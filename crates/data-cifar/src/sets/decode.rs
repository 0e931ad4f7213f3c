//! Picture files as pixels: JPEG, PNG, WebP, BMP, GIF and TIFF, decoded to what PIL's
//! `Image.open(file).convert("RGB")` gives.

use std::any::Any;
use std::cell::Cell;
use std::error::Error;
use std::fmt::Display;
use std::io::{self, BufRead, Cursor, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use crate::augment::fit::RgbImage;
use crate::error::DataError;

mod bmp;
mod gif;
mod jpeg;
mod tiff;
mod unread;
mod webp;

/// The extensions of picture files, in lower case.
pub const EXTENSIONS: &[&str] = &["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff"];

/// The formats that are read, in words.
pub(crate) const FORMATS: &str = "JPEG, PNG, WebP, BMP, GIF and TIFF";

/// The most pixels a picture may have, because a file of a few bytes can claim any number: PIL refuses more
/// than twice its `MAX_IMAGE_PIXELS`.
const MAX_PIXELS: u64 = 2 * 89_478_485;

/// What mends a file that is right, but of a kind that is not read.
const ADVICE: &str = "save it as PNG";

/// Decodes a JPEG, PNG, WebP, BMP, GIF or TIFF file; `file` is its name in messages. Which of them it is, its
/// first bytes say, not its name.
///
/// Grey becomes red, green and blue, a palette is looked up, CMYK is converted without a colour profile,
/// transparency is dropped (the colours stay), a sample of 16 bits keeps its upper 8, and of several pictures
/// in a file the first is taken. A tag for the orientation (Exif) changes nothing but in a TIFF, as in PIL,
/// torchvision and timm.
///
/// The pixels are PIL's, bit for bit, but for grey samples of 16 bits, which PIL clips at 255, and the pixels
/// that a run-length coded BMP skips, which are black.
///
/// # Errors
/// When the bytes are none of these formats (then the message says what they are, as far as that is known), end
/// too early ("truncated"), are damaged beyond decoding, or use a part of the format that is not read, such as
/// JPEG inside TIFF; when the picture has no pixels, or more than 178,956,970, as in PIL, or when it would take more
/// than `memory` bytes to decode, as far as its header tells ([`DataError::Memory`]).
pub fn decode(bytes: &[u8], file: &Path, memory: u64) -> Result<RgbImage, DataError> {
    let watch = Watch { memory, too_large: Cell::new(None), ran_out: Cell::new(false) };
    // libjpeg's errors arrive by unwinding, and a decoder's panic over a bad file is that file's fault too.
    catch_unwind(AssertUnwindSafe(|| decode_content(bytes, &watch)))
        .unwrap_or_else(|payload| Err(message(payload.as_ref())))
        .map_err(|reason| match (watch.too_large.get(), watch.ran_out.get()) {
            (Some([width, height, bytes]), _) => {
                DataError::Memory { file: file.to_path_buf(), width, height, bytes, most: memory }
            }
            (None, true) => DataError::Picture { file: file.to_path_buf(), reason: "truncated".into() },
            (None, false) => DataError::Picture { file: file.to_path_buf(), reason },
        })
}

/// What a decoder may do, and what it met with.
struct Watch {
    /// Bytes that it may take.
    memory: u64,
    /// Width and height of a picture that takes more, and the bytes that it takes.
    too_large: Cell<Option<[u64; 3]>>,
    /// Whether it read beyond the end.
    ran_out: Cell<bool>,
}

impl Watch {
    /// Called with what a header says, before memory is taken for it.
    fn check_memory(&self, width: u64, height: u64, bytes_per_pixel: u64) -> Result<(), String> {
        let bytes = width.saturating_mul(height).saturating_mul(bytes_per_pixel);
        if bytes <= self.memory {
            return Ok(());
        }
        self.too_large.set(Some([width, height, bytes]));
        Err("takes more memory than there is".into())
    }
}

fn decode_content(bytes: &[u8], watch: &Watch) -> Result<RgbImage, String> {
    let source = Source { bytes: Cursor::new(bytes), watch };
    match image::guess_format(bytes) {
        Ok(ImageFormat::Jpeg) => jpeg::decode(bytes, watch),
        Ok(ImageFormat::Png) => {
            if let Some(&[w0, w1, w2, w3, h0, h1, h2, h3]) = bytes.get(16..24) {
                check_size(
                    u32::from_be_bytes([w0, w1, w2, w3]).into(),
                    u32::from_be_bytes([h0, h1, h2, h3]).into(),
                )?;
            }
            with_image(source, ImageFormat::Png)
        }
        Ok(ImageFormat::WebP) => webp::decode(bytes, watch),
        Ok(ImageFormat::Bmp) => bmp::decode(source),
        Ok(ImageFormat::Gif) => gif::decode(source),
        Ok(ImageFormat::Tiff) => tiff::decode(bytes, watch),
        // With offsets of 64 bits.
        _ if bytes.starts_with(b"II+\0") || bytes.starts_with(b"MM\0+") => tiff::decode(bytes, watch),
        _ => Err(unread::describe(bytes)),
    }
}

/// A file in memory that notes when it is read beyond its end: a decoder that fails after that has a
/// truncated file, whatever it says.
struct Source<'a> {
    bytes: Cursor<&'a [u8]>,
    watch: &'a Watch,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.bytes.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            self.watch.ran_out.set(true);
        }
        Ok(count)
    }
}

impl BufRead for Source<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let rest = self.bytes.fill_buf()?;
        if rest.is_empty() {
            self.watch.ran_out.set(true);
        }
        Ok(rest)
    }

    fn consume(&mut self, count: usize) {
        self.bytes.consume(count);
    }
}

impl Seek for Source<'_> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.bytes.seek(position)
    }
}

/// Decodes with the `image` crate.
fn with_image(source: Source<'_>, format: ImageFormat) -> Result<RgbImage, String> {
    let watch = source.watch;
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(8 * MAX_PIXELS); // four samples of 16 bits
    let mut reader = ImageReader::with_format(source, format);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(reason)?;
    watch.ran_out.set(false); // WebP's looks for the last chunk
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into())?;
    let color = decoder.color_type();
    let samples = u64::from(color.channel_count());
    // Of 16 bits, they are copied to red, green and blue before the upper 8 are taken.
    let copies = match (u64::from(color.bytes_per_pixel()) / samples, samples) {
        (1, 3) => 0,
        (1, _) => 3,
        (_, 3) => 3,
        _ => 6 + 3,
    };
    watch.check_memory(width.into(), height.into(), u64::from(color.bytes_per_pixel()) + copies)?;
    let picture = DynamicImage::from_decoder(decoder).map_err(reason)?;
    let pixels = if color.bytes_per_pixel() == color.channel_count() {
        picture.into_rgb8().into_raw()
    } else {
        picture.into_rgb16().into_raw().into_iter().map(|sample| (sample >> 8) as u8).collect()
    };
    Ok(RgbImage { width, height, pixels })
}

fn reason(error: ImageError) -> String {
    match (&error, error.source()) {
        (ImageError::Decoding(_), Some(source)) => match source.to_string() {
            text if text.starts_with("CRC error") => "damaged: a checksum is wrong".into(),
            text => damaged(text),
        },
        (ImageError::Unsupported(_), _) => format!("{error}; {ADVICE}"),
        _ => error.to_string(),
    }
}

/// Called with what a header says, before memory is taken for it.
fn check_size(width: u64, height: u64) -> Result<(), String> {
    match width.checked_mul(height) {
        Some(0) => Err(format!("has no pixels: {width}x{height}")),
        Some(pixels) if pixels <= MAX_PIXELS => Ok(()),
        _ => Err(format!("claims {width}x{height} pixels; the most is {MAX_PIXELS}, as in PIL")),
    }
}

/// Red, green and blue of inks without a colour profile, rounded as PIL does it.
fn cmyk_to_rgb([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    let white = 255 - u32::from(black);
    [cyan, magenta, yellow].map(|ink| {
        let product = u32::from(ink) * white + 128;
        (white - ((product + (product >> 8)) >> 8)) as u8 // at most white / 255 of 255
    })
}

fn damaged(error: impl Display) -> String {
    format!("damaged: {error}")
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    match text.or_else(|| payload.downcast_ref::<&str>().copied()) {
        Some(text) => text.replace("libjpeg fatal error", "libjpeg"),
        None => "cannot be decoded".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PIL's limit to the pixel.
    #[test]
    fn the_largest_picture_is_that_of_pil() {
        assert_eq!(check_size(178_956_970, 1), Ok(()));
        let message = "claims 1x178956971 pixels; the most is 178956970, as in PIL";
        assert_eq!(check_size(1, 178_956_971), Err(message.into()));
        assert_eq!(check_size(0, 3), Err("has no pixels: 0x3".into()));
        assert!(check_size(u64::MAX, 2).is_err());
    }

    /// Every product against real numbers: PIL's `MULDIV255` rounds to the nearest.
    #[test]
    fn inks_are_subtracted_from_white() {
        for ink in 0..=255 {
            for black in 0..=255 {
                let white = 255 - black;
                let expected = f64::from(white) - (f64::from(ink) * f64::from(white) / 255.0).round();
                assert_eq!(cmyk_to_rgb([ink, 0, 255, black]), [expected as u8, white, 0], "{ink} {black}");
            }
        }
    }
}
