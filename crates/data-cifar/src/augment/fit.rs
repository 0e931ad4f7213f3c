//! A picture of any size as a square of a given side, the ways timm's evaluation transforms do it.

use run_record::{CropMode, FolderRecipe, Interpolation};

use crate::augment::kernel::{Taps, WEIGHT_BITS, taps};
use crate::error::DataError;

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

/// The picture as `side` by `side` pixels. A picture of that size already is returned as it is.
///
/// A border is of the colour `fill`: timm takes the mean it normalises with. `filter` is that of PIL's `Image.resize`: widened by the factor of a reduction, so that every pixel counts.
/// Pixels are those of PIL 13, bit for bit; the other side and the offsets are rounded as by torchvision (`Resize`,
/// `CenterCrop`) and timm (`ResizeKeepRatio`, `CenterCropOrPad`).
///
/// # Errors
/// When `side` is not one of [`FolderRecipe::STORED_SIZES`], or the picture's pixels are not as many as its size
/// says.
pub fn fit(
    image: RgbImage,
    side: u32,
    mode: CropMode,
    fill: [u8; 3],
    filter: Interpolation,
) -> Result<RgbImage, DataError> {
    let sides = FolderRecipe::STORED_SIZES;
    if !sides.contains(&side) {
        let (least, most) = (sides.start(), sides.end());
        let text = format!("the side of a picture must be {least} to {most} pixels, not {side}");
        return Err(DataError::Argument(text));
    }
    let (width, height) = (image.width, image.height);
    let count = 3 * u64::from(width) * u64::from(height);
    if count == 0 || count != image.pixels.len() as u64 {
        let found = image.pixels.len();
        return Err(DataError::Argument(format!("{width}x{height} pixels cannot be {found} bytes")));
    }
    if (width, height) == (side, side) {
        return Ok(image);
    }
    Ok(match mode {
        CropMode::Squash => {
            let across = Axis::whole(width, side);
            resample(&image, &across, &Axis::whole(height, side), filter)
        }
        CropMode::Center => {
            let across = Axis::middle(width, height, side);
            resample(&image, &across, &Axis::middle(height, width, side), filter)
        }
        CropMode::Border => {
            let ratio = f64::from(width.max(height)) / f64::from(side);
            let scaled = |size: u32| ((f64::from(size) / ratio).round_ties_even() as u32).clamp(1, side);
            let across = Axis::whole(width, scaled(width));
            pad(&resample(&image, &across, &Axis::whole(height, scaled(height)), filter), side, fill)
        }
    })
}

/// How one side of a picture is resized, and what of the result is wanted.
#[derive(Debug, PartialEq, Eq)]
struct Axis {
    length: u32,
    scaled: u64,
    /// The first pixel wanted, of `scaled`.
    start: u64,
    /// How many are wanted.
    count: u32,
}

impl Axis {
    fn whole(length: u32, scaled: u32) -> Self {
        Self { length, scaled: scaled.into(), start: 0, count: scaled }
    }

    /// The middle `side` pixels after the shorter of `length` and `other` was resized to `side`.
    fn middle(length: u32, other: u32, side: u32) -> Self {
        let scaled = u64::from(side) * u64::from(length) / u64::from(length.min(other));
        let rest = scaled - u64::from(side);
        // Half of the rest; what ends in one half goes to the even number.
        Self { length, scaled, start: rest / 2 + u64::from(rest % 4 == 3), count: side }
    }

    /// What each pixel that is wanted is made of.
    fn taps(&self, filter: Interpolation) -> Vec<Taps> {
        taps(filter.into(), self.length, self.scaled, self.start..self.start + u64::from(self.count))
    }
}

/// What is wanted of the resized picture, one axis after the other and rounded to bytes in between, as PIL does
/// it from version 13 on: columns first where the height shrinks, and by more than twice as many pixels as the
/// width.
fn resample(image: &RgbImage, across: &Axis, down: &Axis, filter: Interpolation) -> RgbImage {
    let (columns, mut rows) = (across.taps(filter), down.taps(filter));
    let shrinks = |axis: &Axis| i64::from(axis.length) - axis.scaled as i64;
    let wide = 3 * image.width as usize;
    let pixels = if shrinks(down) > 0 && shrinks(down) > 2 * shrinks(across) {
        resample_rows(&resample_columns(&image.pixels, wide, &rows), wide, &columns)
    } else {
        // Only the rows that count: of a long strip that is cropped, a small part.
        let top = rows.iter().map(|row| row.first).min().unwrap_or(0);
        let bottom = rows.iter().map(|row| row.first + row.weights.len()).max().unwrap_or(0);
        rows.iter_mut().for_each(|row| row.first -= top);
        let narrow = resample_rows(&image.pixels[top * wide..bottom * wide], wide, &columns);
        resample_columns(&narrow, 3 * columns.len(), &rows)
    };
    RgbImage { width: across.count, height: down.count, pixels }
}

/// Each row of `row_bytes`, resized.
fn resample_rows(pixels: &[u8], row_bytes: usize, columns: &[Taps]) -> Vec<u8> {
    let mut resized = Vec::with_capacity(pixels.len() / row_bytes * 3 * columns.len());
    for row in pixels.chunks_exact(row_bytes) {
        for column in columns {
            let mut sums = [1 << (WEIGHT_BITS - 1); 3];
            for (pixel, weight) in row[3 * column.first..].chunks_exact(3).zip(&column.weights) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(value) * weight;
                }
            }
            resized.extend(sums.map(byte));
        }
    }
    resized
}

/// Each column, of rows of `row_bytes`, resized.
fn resample_columns(pixels: &[u8], row_bytes: usize, rows: &[Taps]) -> Vec<u8> {
    let mut resized = Vec::with_capacity(rows.len() * row_bytes);
    let mut sums = vec![0; row_bytes];
    for row in rows {
        sums.fill(1 << (WEIGHT_BITS - 1));
        for (values, weight) in pixels[row.first * row_bytes..].chunks_exact(row_bytes).zip(&row.weights) {
            for (sum, &value) in sums.iter_mut().zip(values) {
                *sum += i32::from(value) * weight;
            }
        }
        resized.extend(sums.iter().copied().map(byte));
    }
    resized
}

fn byte(sum: i32) -> u8 {
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}

/// The picture in the middle of a square, which is not smaller.
fn pad(image: &RgbImage, side: u32, fill: [u8; 3]) -> RgbImage {
    let (width, side_bytes) = (3 * image.width as usize, 3 * side as usize);
    let left = 3 * ((side - image.width) / 2) as usize;
    let top = ((side - image.height) / 2) as usize;
    let mut pixels = fill.repeat(side as usize * side as usize);
    for (row, to) in image.pixels.chunks_exact(width).zip(pixels.chunks_exact_mut(side_bytes).skip(top)) {
        to[left..left + width].copy_from_slice(row);
    }
    RgbImage { width: side, height: side, pixels }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// torchvision: `int(side * long / short)`, then `int(round((scaled - side) / 2.0))`.
    #[test]
    fn the_middle_is_rounded_to_even() {
        for (long, scaled, start) in [(16, 32, 0), (17, 34, 1), (18, 36, 2), (19, 38, 3), (35, 70, 19)] {
            assert_eq!(Axis::middle(16, long, 32), Axis::whole(16, 32));
            assert_eq!(Axis::middle(long, 16, 32), Axis { length: long, scaled, start, count: 32 });
        }
        // 2, 3, 4 and 5 pixels too many.
        for (long, start) in [(4, 1), (5, 2), (6, 2), (7, 2)] {
            assert_eq!(Axis::middle(long, 2, 2), Axis { length: long, scaled: long.into(), start, count: 2 });
        }
    }

    #[test]
    fn a_border_is_filled() {
        let image = RgbImage { width: 4, height: 1, pixels: vec![7; 12] };
        let square = fit(image, 4, CropMode::Border, [1, 2, 3], Interpolation::Bicubic).unwrap();
        let row = |row: usize| square.pixels[12 * row..12 * (row + 1)].to_vec();
        assert_eq!(row(1), [7; 12]);
        for filled in [0, 2, 3] {
            assert_eq!(row(filled), [1, 2, 3].repeat(4));
        }
    }

    /// Resized before it is cropped, this picture would take a hundred thousand times its size.
    #[test]
    fn a_long_strip_costs_no_more_than_its_square() {
        for (width, height) in [(100_000, 1), (1, 100_000)] {
            for mode in [CropMode::Center, CropMode::Squash, CropMode::Border] {
                let image = RgbImage { width, height, pixels: vec![9; 300_000] };
                assert_eq!(
                    fit(image, 64, mode, [0; 3], Interpolation::Bicubic).unwrap().pixels.len(),
                    3 * 64 * 64
                );
            }
        }
    }

    #[test]
    fn bad_arguments_are_errors() {
        for (image, side, part) in [
            (RgbImage { width: 2, height: 2, pixels: vec![0; 12] }, 0, "1 to 2048 pixels, not 0"),
            (RgbImage { width: 2, height: 2, pixels: vec![0; 12] }, 2049, "not 2049"),
            (RgbImage { width: 2, height: 2, pixels: vec![0; 11] }, 8, "cannot be 11 bytes"),
            (RgbImage { width: 0, height: 2, pixels: vec![] }, 8, "0x2 pixels"),
        ] {
            let message = fit(image, side, CropMode::Center, [0; 3], Interpolation::Bilinear);
            let message = message.unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
