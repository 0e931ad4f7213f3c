//! Picture files as pixels: JPEG, PNG, WebP and BMP, decoded to what PIL's
//! `Image.open(file).convert("RGB")` gives.

use std::any::Any;
use std::cell::Cell;
use std::io::{self, BufRead, Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use mozjpeg::{ColorSpace, Decompress};

use crate::error::DataError;

/// The most pixels a picture may have, because a file of a few bytes can claim any number.
const MAX_PIXELS: u64 = 100_000_000;

/// A picture in main memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Red, green and blue of each pixel, 0 to 255, row by row from the top: `[height, width, 3]`.
    pub pixels: Vec<u8>,
}

/// Decodes a JPEG, PNG, WebP or BMP file; `file` is its name in messages. Which of the four it is, its first
/// bytes say, not its name.
///
/// Grey becomes red, green and blue, a palette is looked up, transparency is dropped (the colours stay), a
/// sample of 16 bits keeps its upper 8, and of an animation the first picture is taken. A tag for the
/// orientation (Exif) changes nothing, as in PIL, torchvision and timm.
///
/// The pixels are PIL's, bit for bit, but for grey samples of 16 bits, which PIL clips at 255.
///
/// # Errors
/// When the bytes are none of the four formats, end too early or are damaged beyond decoding, when the
/// picture has more than 100 million pixels, or is a JPEG for print (CMYK).
pub fn decode(bytes: &[u8], file: &Path) -> Result<RgbImage, DataError> {
    let ran_out = Cell::new(false);
    // libjpeg's errors arrive by unwinding, and a decoder's panic over a bad file is that file's fault too.
    catch_unwind(AssertUnwindSafe(|| decode_content(bytes, &ran_out)))
        .unwrap_or_else(|payload| Err(message(payload.as_ref())))
        .map_err(|reason| DataError::Picture {
            file: file.to_path_buf(),
            reason: if ran_out.get() { "truncated".into() } else { reason },
        })
}

fn decode_content(bytes: &[u8], ran_out: &Cell<bool>) -> Result<RgbImage, String> {
    match image::guess_format(bytes) {
        Ok(ImageFormat::Jpeg) => decode_jpeg(WholeFile { rest: bytes, ran_out }),
        Ok(format @ (ImageFormat::Png | ImageFormat::WebP | ImageFormat::Bmp)) => decode_other(bytes, format),
        _ if bytes.is_empty() => Err("empty".into()),
        _ => Err("not a JPEG, PNG, WebP or BMP picture".into()),
    }
}

fn decode_jpeg(file: WholeFile<'_>) -> Result<RgbImage, String> {
    let header = Decompress::new_reader(file).map_err(|error| error.to_string())?;
    check_size(header.width() as u64, header.height() as u64)?;
    if matches!(header.color_space(), ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK) {
        return Err("a JPEG in CMYK colours; convert it to RGB".into());
    }
    let mut picture = header.rgb().map_err(|error| error.to_string())?;
    let (width, height) = (picture.width() as u32, picture.height() as u32);
    let pixels = picture.read_scanlines().map_err(|error| error.to_string())?;
    // As PIL does, this asks for the end-of-image marker.
    picture.finish().map_err(|error| error.to_string())?;
    Ok(RgbImage { width, height, pixels })
}

/// A file in memory that fails at its end. mozjpeg's own readers pretend an end-of-image marker there, and the
/// missing part of the picture would come out grey.
struct WholeFile<'a> {
    rest: &'a [u8],
    ran_out: &'a Cell<bool>,
}

impl BufRead for WholeFile<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.rest.is_empty() {
            self.ran_out.set(true);
            return Err(io::Error::other("truncated")); // an UnexpectedEof would be papered over
        }
        Ok(self.rest)
    }

    fn consume(&mut self, count: usize) {
        self.rest = self.rest.get(count..).unwrap_or_default();
    }
}

impl Read for WholeFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

fn decode_other(bytes: &[u8], format: ImageFormat) -> Result<RgbImage, String> {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(8 * MAX_PIXELS); // four samples of 16 bits
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into())?;
    let picture = DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?;
    let color = picture.color();
    let pixels = if color.bytes_per_pixel() == color.channel_count() {
        picture.into_rgb8().into_raw()
    } else {
        picture.into_rgb16().into_raw().into_iter().map(|sample| (sample >> 8) as u8).collect()
    };
    Ok(RgbImage { width, height, pixels })
}

fn check_size(width: u64, height: u64) -> Result<(), String> {
    match width.checked_mul(height) {
        Some(0) => Err(format!("{width}x{height} pixels")),
        Some(pixels) if pixels <= MAX_PIXELS => Ok(()),
        _ => Err(format!("claims {width}x{height} pixels; the most is {MAX_PIXELS}")),
    }
}

fn message(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| payload.downcast_ref::<&str>().map(ToString::to_string))
        .unwrap_or_else(|| "cannot be decoded".into())
}
