//! A picture of a batch: originals beside what training makes of them, with their labels.

use font8x8::UnicodeFonts;
use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};
use tch::{Kind, Tensor};

use crate::Error;

/// An image before and after augmentation, and what is written below each.
#[derive(Debug)]
pub struct Pair {
    /// Bytes, `[3, H, W]`.
    pub original: Tensor,
    /// Its label.
    pub label: String,
    /// Bytes, `[3, H', W']`.
    pub augmented: Tensor,
    /// Its target.
    pub target: String,
}

/// Side of an image on the sheet in pixels.
const CELL: u32 = 128;
/// Pixels between images.
const GAP: u32 = 8;
/// Pixels below an image for its line of text.
const CAPTION: u32 = 12;
/// Pairs side by side.
const COLUMNS: u32 = 4;
/// Characters of 8 pixels that fit below an image.
const CHARACTERS: usize = (CELL / 8) as usize;

const PAPER: Rgb<u8> = Rgb([255; 3]);
const INK: Rgb<u8> = Rgb([0; 3]);

/// The sheet: pairs from left to right and top to bottom, each the original and the augmented
/// image side by side.
///
/// # Errors
/// Images that are not bytes `[3, H, W]`.
pub fn contact_sheet(pairs: &[Pair]) -> Result<RgbImage, Error> {
    let columns = COLUMNS.min(pairs.len().max(1) as u32);
    let rows = (pairs.len() as u32).div_ceil(columns);
    let (pair_width, pair_height) = (2 * CELL + 2 * GAP, CELL + CAPTION + GAP);
    let size = (GAP + columns * (pair_width + GAP), GAP + rows * pair_height);
    let mut sheet = RgbImage::from_pixel(size.0, size.1, PAPER);
    for (number, pair) in (0..).zip(pairs) {
        let left = GAP + number % columns * (pair_width + GAP);
        let top = GAP + number / columns * pair_height;
        // The augmented image stands closer to its original than to the next pair.
        let right = left + CELL + GAP / 2;
        for (image, text, x) in [(&pair.original, &pair.label, left), (&pair.augmented, &pair.target, right)]
        {
            let picture = fitted(&picture(image)?);
            let (dx, dy) = ((CELL - picture.width()) / 2, (CELL - picture.height()) / 2);
            imageops::replace(&mut sheet, &picture, (x + dx).into(), (top + dy).into());
            write(&mut sheet, x, top + CELL + 2, text);
        }
    }
    Ok(sheet)
}

/// Bytes `[3, H, W]` as a picture.
fn picture(image: &Tensor) -> Result<RgbImage, Error> {
    let shape = image.size();
    let rows = match shape[..] {
        [3, height, width] if image.kind() == Kind::Uint8 => {
            let pixels = Vec::try_from(image.f_permute([1, 2, 0])?.f_contiguous()?.f_view([-1])?)?;
            RgbImage::from_raw(width as u32, height as u32, pixels)
        }
        _ => None,
    };
    rows.ok_or_else(|| Error::Training(format!("a contact sheet shows bytes [3, H, W], not {shape:?}")))
}

/// The picture in a cell: enlarged by a whole factor, so that pixels stay visible, or shrunk smoothly.
fn fitted(picture: &RgbImage) -> RgbImage {
    let (width, height) = picture.dimensions();
    let side = width.max(height).max(1);
    if side > CELL {
        let scaled = |size: u32| (size * CELL / side).max(1);
        return imageops::resize(picture, scaled(width), scaled(height), FilterType::Triangle);
    }
    let factor = CELL / side;
    imageops::resize(picture, width * factor, height * factor, FilterType::Nearest)
}

/// A line of 8×8 characters, cut to the width of a cell; what the font lacks becomes a question mark.
fn write(sheet: &mut RgbImage, left: u32, top: u32, text: &str) {
    for (column, character) in (0..).zip(text.chars().take(CHARACTERS)) {
        let glyph = font8x8::BASIC_FONTS.get(character).or_else(|| font8x8::BASIC_FONTS.get('?'));
        for (y, row) in (0..).zip(glyph.unwrap_or_default()) {
            for x in (0..8).filter(|x| row >> x & 1 == 1) {
                sheet.put_pixel(left + column * 8 + x, top + y, INK);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn solid(color: [u8; 3], side: i64) -> Tensor {
        Tensor::from_slice(&color).view([3, 1, 1]).expand([3, side, side], false)
    }

    #[test]
    fn originals_stand_left_of_what_became_of_them_with_text_below() {
        let pair = |label: &str, augmented| Pair {
            original: solid([200, 10, 20], 32),
            label: label.to_owned(),
            augmented: solid(augmented, 48),
            target: "II".to_owned(),
        };
        let pairs = [pair("a", [0, 255, 0]), pair("b", [0, 0, 255]), pair("", [1, 2, 3])];
        let sheet = contact_sheet(&pairs).unwrap();
        assert_eq!(sheet.dimensions(), (8 + 3 * (2 * 128 + 24), 8 + 148));
        let at = |x, y| sheet.get_pixel(x, y).0;
        // 32 pixels fill the cell, four times as large; 48 are doubled to 96 in the middle of it.
        assert_eq!([at(8, 8), at(135, 135), at(136, 60)], [[200, 10, 20], [200, 10, 20], [255; 3]]);
        assert_eq!([at(148, 60), at(156, 60), at(251, 60), at(252, 60)].map(|c| c[0]), [255, 0, 0, 255]);
        assert_eq!([at(8 + 280 + 16 + 148 - 8, 60), at(8 + 560 + 140 + 60, 60)], [[0, 0, 255], [1, 2, 3]]);
        let ink = |left: u32| {
            (0..128)
                .flat_map(|x| (0..12).map(move |y| (x, y)))
                .filter(|(x, y)| at(left + x, 136 + y) == [0; 3])
                .count()
        };
        assert!(ink(8) > 10 && ink(140) > 20, "{} {}", ink(8), ink(140));
        assert_eq!(ink(8 + 560), 0);
    }

    #[test]
    fn long_names_are_cut_and_strange_ones_written_with_question_marks() {
        let pair = |label: &str| Pair {
            original: solid([9; 3], 300),
            label: label.to_owned(),
            augmented: solid([9; 3], 1),
            target: String::new(),
        };
        let sheet = |label: &str| contact_sheet(&[pair(label)]).unwrap();
        assert_eq!(sheet(&"x".repeat(500)), sheet(&"x".repeat(16)));
        assert_eq!(sheet("\u{1f33b}"), sheet("?"));
        assert!(contact_sheet(&[]).is_ok());
        let floats = Pair { original: Tensor::zeros([3, 2, 2], (Kind::Float, Device::Cpu)), ..pair("") };
        assert!(contact_sheet(&[floats]).is_err());
    }
}
