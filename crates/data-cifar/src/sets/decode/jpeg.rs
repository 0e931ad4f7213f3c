//! JPEG through libjpeg: the decoder that PIL uses.

use std::cell::Cell;
use std::io::{self, BufRead, Read};

use mozjpeg::{ColorSpace, Decompress};

use super::{Watch, check_size, cmyk_to_rgb, damaged};
use crate::augment::fit::RgbImage;

pub(super) fn decode(bytes: &[u8], watch: &Watch) -> Result<RgbImage, String> {
    let complete = Cell::new(false);
    let file = WholeFile { rest: bytes, watch, complete: &complete };
    let header = Decompress::new_reader(file).map_err(damaged)?;
    let (width, height) = (header.width() as u64, header.height() as u64);
    check_size(width, height)?;
    let is_cmyk = matches!(header.color_space(), ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK);
    // Bytes of the pixels and, of a progressive file, coefficients of 16 bits.
    watch.check_memory(width, height, if is_cmyk { 4 + 3 + 2 * 4 } else { 3 + 2 * 3 })?;
    let color = if is_cmyk { ColorSpace::JCS_CMYK } else { ColorSpace::JCS_RGB };
    let mut picture = header.to_colorspace(color).map_err(damaged)?;
    let (width, height) = (picture.width() as u32, picture.height() as u32);
    let mut pixels: Vec<u8> = picture.read_scanlines().map_err(damaged)?;
    complete.set(true);
    picture.finish().map_err(damaged)?;
    if is_cmyk {
        // As Adobe writes them, 255 is no ink; PIL takes that for granted.
        pixels = pixels
            .as_chunks()
            .0
            .iter()
            .flat_map(|inks: &[u8; 4]| cmyk_to_rgb(inks.map(|ink| !ink)))
            .collect();
    }
    Ok(RgbImage { width, height, pixels })
}

/// A file in memory that fails at its end as long as pixels are missing. mozjpeg's own readers pretend an
/// end-of-image marker there, and the missing part of the picture would come out grey.
struct WholeFile<'a> {
    rest: &'a [u8],
    watch: &'a Watch,
    complete: &'a Cell<bool>,
}

impl BufRead for WholeFile<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.rest.is_empty() && !self.complete.get() {
            self.watch.ran_out.set(true);
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
