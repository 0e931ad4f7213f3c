//! BMP through the `image` crate, with PIL's values for pixels of 16 bits.

use std::io::{Read, Seek};

use image::ImageFormat;

use super::{ADVICE, Source, check_size, damaged, with_image};
use crate::augment::fit::RgbImage;

const BITFIELDS: u32 = 3;

pub(super) fn decode(mut source: Source<'_>) -> Result<RgbImage, String> {
    // The two headers, with zeros where the file ends before.
    let mut header = [0; 66];
    if source.read(&mut header).map_err(damaged)? < 26 {
        return Err("truncated".into());
    }
    source.rewind().map_err(damaged)?;
    let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
    if u32_at(14) < 40 {
        // OS/2's, which has no 16-bit pixels.
        check_size(u16_at(18).into(), u16_at(20).into())?;
        return with_image(source, ImageFormat::Bmp);
    }
    let (width, height) = (u32_at(18).cast_signed(), u32_at(22).cast_signed());
    check_size(width.unsigned_abs().into(), height.unsigned_abs().into())?; // upside down if negative
    if (1..=8).contains(&u16_at(28)) && u32_at(10) == 14 + u32_at(14) {
        return Err(format!("a BMP whose pixels begin where its palette does; {ADVICE}"));
    }
    let mut picture = with_image(source, ImageFormat::Bmp)?;
    if u16_at(28) == 16 {
        let masks = if u32_at(30) == BITFIELDS { [54, 58, 62].map(u32_at) } else { [0x7c00, 0x3e0, 0x1f] };
        let levels = masks.map(|mask| (1 << mask.count_ones().min(8)) - 1);
        for pixel in picture.pixels.as_chunks_mut().0 {
            truncate(pixel, levels);
        }
    }
    Ok(picture)
}

/// Of a channel with levels 0 to n, PIL makes `level * 255 / n` without the fraction, and `image` rounds it.
fn truncate(pixel: &mut [u8; 3], levels: [u32; 3]) {
    for (value, most) in pixel.iter_mut().zip(levels) {
        let level = u32::from(*value) * (most + 1) / 256;
        *value = (level * 255 / most) as u8;
    }
}
