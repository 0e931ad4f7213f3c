//! WebP through the `image` crate, with the first picture of an animation as libwebp shows it.

use std::io::Cursor;

use image::ImageFormat;

use super::{Source, Watch, with_image};
use crate::augment::fit::RgbImage;

/// The flag of an animation's picture that is to replace what is below it, and not to be blended with it.
const REPLACES: u8 = 2;

pub(super) fn decode(bytes: &[u8], watch: &Watch) -> Result<RgbImage, String> {
    let mut copy;
    let mut bytes = bytes;
    if let Some(at) = first_flags(bytes) {
        // There is nothing below the first picture; `image` blends it with black all the same.
        copy = bytes.to_vec();
        copy[at] |= REPLACES;
        bytes = &copy;
    }
    with_image(Source { bytes: Cursor::new(bytes), watch }, ImageFormat::WebP)
}

/// Where the flags of an animation's first picture are.
fn first_flags(bytes: &[u8]) -> Option<usize> {
    let mut at = 12;
    loop {
        let chunk = bytes.get(at..)?;
        let size = u32::from_le_bytes(*chunk.get(4..)?.first_chunk()?) as usize;
        if chunk.starts_with(b"ANMF") {
            return (at + 23 < bytes.len()).then_some(at + 23);
        }
        at += 8 + size.next_multiple_of(2);
    }
}
