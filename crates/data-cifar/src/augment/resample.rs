//! PIL's `Image.resize` and the crops of torchvision and timm for batches of images, with a box of its own for
//! each image.
//!
//! One axis of a resize is a matrix of PIL's weights, put together on the device. PIL sums in
//! integers. So do sums in f64, in effect; in f32, which [`resized_crop`] takes on the CPU for its speed, a value
//! can come out one level off where PIL's sum lies next to a rounding boundary, in the rarest cases two (and then, as
//! the order of the sums may depend on it, also change with the size of the batch).

use rand_chacha::ChaCha8Rng;
use run_record::{RandomResizedCrop, TrainInterpolation};
use tch::{Device, Kind, Tensor};

use crate::augment::kernel::{Taps, WEIGHT_BITS, taps};
use crate::augment::on_device::{check_bytes, in_slices, pixels, upload};
use crate::augment::ops::Filter;
use crate::error::DataError;
use crate::rng::{below, unit};

/// A rectangle of whole pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CropBox {
    /// Rows above it.
    pub top: i64,
    /// Columns to its left.
    pub left: i64,
    /// Its rows.
    pub height: i64,
    /// Its columns.
    pub width: i64,
}

impl CropBox {
    /// Whether all of its pixels, if it has any, lie in an image of this size.
    pub(crate) fn is_within(&self, height: i64, width: i64) -> bool {
        let fits = |start: i64, extent: i64, size| start >= 0 && extent >= 0 && start <= size - extent;
        fits(self.top, self.height, height) && fits(self.left, self.width, width)
    }
}

/// The box in an image of `height`×`width` pixels (both at least 1), and the filter. After ten boxes that
/// did not fit it is the largest one in the middle whose aspect ratio is in range.
pub fn draw_crop(
    crop: &RandomResizedCrop,
    rng: &mut ChaCha8Rng,
    height: i64,
    width: i64,
) -> (CropBox, Filter) {
    let drawn = draw_box(crop, rng, height, width);
    let filter = match crop.interpolation {
        TrainInterpolation::Bilinear => Filter::Bilinear,
        TrainInterpolation::Bicubic => Filter::Bicubic,
        TrainInterpolation::Random if below(rng, 2) == 0 => Filter::Bilinear,
        TrainInterpolation::Random => Filter::Bicubic,
    };
    (drawn, filter)
}

fn draw_box(crop: &RandomResizedCrop, rng: &mut ChaCha8Rng, height: i64, width: i64) -> CropBox {
    for _ in 0..10 {
        let (w, h) = draw_sides(rng, (height * width) as f64, crop.scale, crop.ratio);
        if (1..=height).contains(&h) && (1..=width).contains(&w) {
            let (top, left) = crop_offset(rng, (height - h, width - w));
            return CropBox { top, left, height: h, width: w };
        }
    }
    let [narrow, wide] = crop.ratio;
    let shape = width as f64 / height as f64;
    let (mut h, mut w) = (height, width);
    if shape < narrow {
        h = (width as f64 / narrow).round_ties_even() as i64;
    } else if shape > wide {
        w = (height as f64 * wide).round_ties_even() as i64;
    }
    let (h, w) = (h.clamp(1, height.max(1)), w.clamp(1, width.max(1)));
    CropBox { top: (height - h) / 2, left: (width - w) / 2, height: h, width: w }
}

/// The sides √(a·r) and √(a/r) of a rectangle, rounded: `a` is `area` times a number uniform on `scale`, and
/// the logarithm of `r` uniform between those of `ratio`.
pub(crate) fn draw_sides(rng: &mut ChaCha8Rng, area: f64, scale: [f64; 2], ratio: [f64; 2]) -> (i64, i64) {
    let area = area * (scale[0] + (scale[1] - scale[0]) * unit(rng));
    let (low, high) = (ratio[0].ln(), ratio[1].ln());
    let ratio = (low + (high - low) * unit(rng)).exp();
    let side = |area: f64| area.sqrt().round_ties_even() as i64;
    (side(area * ratio), side(area / ratio))
}

/// A row and a column to crop at, uniform from 0 to the two numbers of `room`, both included. torchvision's
/// `RandomCrop(size, padding=p)` of images of that size has 2·p rows and columns of room.
pub fn crop_offset(rng: &mut ChaCha8Rng, room: (i64, i64)) -> (i64, i64) {
    let mut place = |room: i64| below(rng, room.max(0).cast_unsigned() + 1).cast_signed();
    let top = place(room.0);
    (top, place(room.1))
}

/// Cuts its box out of each image and resizes it to `size` (height, width), as torchvision's `resized_crop`
/// does to PIL images: bytes `[B, 3, H, W]` to bytes `[B, 3, h, w]`.
///
/// Pixels outside the box do not exist for the filter. A box of the whole image with `size` its own comes out
/// unchanged. Follows Pillow 13: the horizontal pass goes first and is rounded to bytes, except when the height
/// shrinks by more than twice as many pixels as the width.
///
/// # Errors
/// When `images` are not such bytes, there is not one box and one filter for each, a box is empty or goes
/// beyond its image, or `size` is not positive.
pub fn resized_crop(
    images: &Tensor,
    boxes: &[CropBox],
    filters: &[Filter],
    size: (i64, i64),
) -> Result<Tensor, DataError> {
    mirrored_resized_crop(images, boxes, filters, &vec![false; boxes.len()], size)
}

/// [`resized_crop`], and the result mirrored left to right where `mirrored` says so: the same pixels as
/// mirroring afterwards, for nothing.
///
/// # Errors
/// Those of [`resized_crop`], or not one entry of `mirrored` for each image.
pub fn mirrored_resized_crop(
    images: &Tensor,
    boxes: &[CropBox],
    filters: &[Filter],
    mirrored: &[bool],
    size: (i64, i64),
) -> Result<Tensor, DataError> {
    let [batch, height, width] = check_bytes(images)?;
    check_size(size)?;
    let lengths = [boxes.len(), filters.len(), mirrored.len()];
    if lengths.iter().any(|length| *length as i64 != batch) {
        return Err(DataError::Argument(format!(
            "{batch} images need as many boxes, filters and mirrorings, not {lengths:?}"
        )));
    }
    let has_pixels = |crop: &CropBox| crop.height > 0 && crop.width > 0;
    if let Some(beyond) = boxes.iter().find(|crop| !has_pixels(crop) || !crop.is_within(height, width)) {
        return Err(DataError::Argument(format!(
            "the box {beyond:?} is empty or goes beyond an image of {height}×{width} pixels"
        )));
    }
    if batch == 0 {
        return Ok(Tensor::f_zeros([0, 3, size.0, size.1], (Kind::Uint8, images.device()))?);
    }
    let spans = || boxes.iter().zip(filters).zip(mirrored);
    let row = |((crop, filter), _): ((&CropBox, &Filter), &bool)| Span {
        start: crop.top,
        extent: crop.height,
        filter: *filter,
        reversed: false,
    };
    let column = |((crop, filter), mirrored): ((&CropBox, &Filter), &bool)| Span {
        start: crop.left,
        extent: crop.width,
        filter: *filter,
        reversed: *mirrored,
    };
    let (rows, columns): (Vec<Span>, Vec<Span>) = (spans().map(row).collect(), spans().map(column).collect());
    // On CUDA f64 is fast enough, and neither TF32 nor autocasting touches it.
    let kind = if images.device().is_cuda() { Kind::Double } else { Kind::Float };
    let resampler = Resampler::new(images, [rows, columns], size, kind)?;
    let first = |order| -> Vec<i64> {
        let with = boxes.iter().zip(0..).filter(|(crop, _)| vertical_first(crop, size) == order);
        with.map(|(_, place)| place).collect()
    };
    let (horizontal, vertical) = (first(false), first(true));
    if horizontal.is_empty() || vertical.is_empty() {
        return resampler.apply(images, horizontal.is_empty());
    }
    // Two groups, put together again.
    let mut places = vec![0; boxes.len()];
    for (&image, place) in horizontal.iter().chain(&vertical).zip(0..) {
        places[image as usize] = place;
    }
    let (split, all) = (horizontal.len() as i64, [horizontal, vertical, places].concat());
    let all = upload(&all, images.device())?;
    let part = |start, len, vertical_first| {
        let chosen = all.f_narrow(0, start, len)?;
        resampler.select(&chosen)?.apply(&images.f_index_select(0, &chosen)?, vertical_first)
    };
    let parts = [part(0, split, false)?, part(split, batch - split, true)?];
    Ok(Tensor::f_cat(&parts, 0)?.f_index_select(0, &all.f_narrow(0, batch, batch)?)?)
}

/// Resizes whole images to `size` (height, width), as PIL's `Image.resize`: bytes `[B, 3, H, W]` to bytes
/// `[B, 3, h, w]`. Images of that size already are returned as they are. ([`resize`](crate::resize) is Keras's
/// resize of floats, without antialiasing.)
///
/// # Errors
/// When `images` are not such bytes with at least one pixel each, or `size` is not positive.
pub fn pil_resize(images: &Tensor, filter: Filter, size: (i64, i64)) -> Result<Tensor, DataError> {
    let [batch, height, width] = check_bytes(images)?;
    check_size(size)?;
    if (height, width) == size {
        return Ok(images.shallow_clone());
    }
    if height < 1 || width < 1 {
        return Err(DataError::Argument(format!("cannot resize images of {height}×{width} pixels")));
    }
    if batch == 0 {
        return Ok(Tensor::f_zeros([0, 3, size.0, size.1], (Kind::Uint8, images.device()))?);
    }
    let axis = |extent| vec![Span { start: 0, extent, filter, reversed: false }];
    let resampler = Resampler::new(images, [axis(height), axis(width)], size, Kind::Double)?;
    resampler.apply(images, vertical_first(&CropBox { top: 0, left: 0, height, width }, size))
}

/// The middle `size` (height, width) of images `[B, C, H, W]` of any kind, as torchvision's and timm's
/// `center_crop`: half of an odd rest is rounded to even.
///
/// # Errors
/// When `images` have another number of dimensions, or the size is not positive or larger than theirs.
pub fn center_crop(images: &Tensor, size: (i64, i64)) -> Result<Tensor, DataError> {
    let [_, height, width] = check_crop(images, size)?;
    let start = |rest: i64| (rest as f64 / 2.0).round_ties_even() as i64;
    let rows = images.f_narrow(2, start(height - size.0), size.0)?;
    Ok(rows.f_narrow(3, start(width - size.1), size.1)?)
}

/// Cuts `size` (height, width) out of each image of `[B, C, H, W]`, of any kind, at its row and column of
/// `offsets`.
///
/// # Errors
/// When `images` have another number of dimensions, the size is not positive or larger than theirs, or there is
/// not one offset for each, or one goes beyond.
pub fn crop(images: &Tensor, size: (i64, i64), offsets: &[(i64, i64)]) -> Result<Tensor, DataError> {
    let [batch, height, width] = check_crop(images, size)?;
    let room = (height - size.0, width - size.1);
    if offsets.len() as i64 != batch {
        return Err(DataError::Argument(format!(
            "{batch} images need as many offsets, not {}",
            offsets.len()
        )));
    }
    let is_within = |&&(top, left): &&(i64, i64)| (0..=room.0).contains(&top) && (0..=room.1).contains(&left);
    if let Some(beyond) = offsets.iter().find(|offset| !is_within(offset)) {
        return Err(DataError::Argument(format!("the offset {beyond:?} is not from (0, 0) to {room:?}")));
    }
    let (tops, lefts): (Vec<i64>, Vec<i64>) = offsets.iter().copied().unzip();
    let index = [(0..batch).collect(), tops, lefts].concat();
    let index = upload(&index, images.device())?.f_view([3, batch])?;
    // All windows as a view, [B, C, H − h + 1, W − w + 1, h, w], of which the index copies one per image.
    let windows = images.f_unfold(2, size.0, 1)?.f_unfold(3, size.1, 1)?;
    Ok(windows.f_index(&[Some(index.f_get(0)?), None, Some(index.f_get(1)?), Some(index.f_get(2)?)])?)
}

/// Pads bytes `[B, 3, H, W]` with `padding` rows and columns of zeros on all sides and cuts their own size out
/// at each image's row and column of `offsets`: torchvision's `RandomCrop(size, padding)`. An offset of
/// `padding` gives the image itself.
///
/// # Errors
/// When `images` are not such bytes with at least one pixel each, the padding is negative, or there is not one
/// offset from 0 to twice the padding for each.
pub fn pad_crop(images: &Tensor, padding: i64, offsets: &[(i64, i64)]) -> Result<Tensor, DataError> {
    let [_, height, width] = check_bytes(images)?;
    if padding < 0 {
        return Err(DataError::Argument(format!("the padding must be at least 0, not {padding}")));
    }
    crop(&images.f_constant_pad_nd([padding; 4])?, (height, width), offsets)
}

fn check_size(size: (i64, i64)) -> Result<(), DataError> {
    if size.0 < 1 || size.1 < 1 {
        return Err(DataError::Argument(format!("the size must be positive, not {size:?}")));
    }
    Ok(())
}

/// `[B, H, W]` of images `[B, C, H, W]` that `size` can be cut out of.
fn check_crop(images: &Tensor, size: (i64, i64)) -> Result<[i64; 3], DataError> {
    check_size(size)?;
    match images.size().as_slice() {
        &[batch, _, height, width] if size.0 <= height && size.1 <= width => Ok([batch, height, width]),
        shape => Err(DataError::Argument(format!("cannot cut {size:?} pixels out of images {shape:?}"))),
    }
}

/// Whether Pillow 13 makes the vertical pass first (read off its results: the order shows in the rounding).
fn vertical_first(crop: &CropBox, (height, width): (i64, i64)) -> bool {
    crop.height - height > (2 * (crop.width - width)).max(0)
}

/// What becomes of one axis: the part of the input from `start` on, `extent` pixels long, is sampled.
struct Span {
    start: i64,
    extent: i64,
    filter: Filter,
    /// From the last output to the first.
    reversed: bool,
}

/// The weights of both axes.
struct Resampler {
    /// `[B, h, H]`, or `[1, h, H]` for all images alike.
    rows: Tensor,
    /// `[B, w, W]` or `[1, w, W]`.
    columns: Tensor,
    /// Whether sums can leave the range of a byte.
    overshoots: bool,
}

impl Resampler {
    fn new(
        images: &Tensor,
        [rows, columns]: [Vec<Span>; 2],
        size: (i64, i64),
        kind: Kind,
    ) -> Result<Self, DataError> {
        let (_, _, height, width) = images.size4()?;
        let options = (kind, images.device());
        let overshoots = rows.iter().any(|span| span.filter == Filter::Bicubic);
        let (rows, columns) = if (height, size.0) == (width, size.1) {
            // One computation instead of two halves the number of operations.
            let count = rows.len() as i64;
            let both: Vec<Span> = rows.into_iter().chain(columns).collect();
            let both = weights(&both, size.0, height, options)?;
            (both.f_narrow(0, 0, count)?, both.f_narrow(0, count, count)?)
        } else {
            (weights(&rows, size.0, height, options)?, weights(&columns, size.1, width, options)?)
        };
        Ok(Self { rows, columns, overshoots })
    }

    /// The weights of the images of `indices`, i64 `[B']`.
    fn select(&self, indices: &Tensor) -> Result<Self, DataError> {
        let rows = self.rows.f_index_select(0, indices)?;
        Ok(Self { rows, columns: self.columns.f_index_select(0, indices)?, overshoots: self.overshoots })
    }

    /// Bytes `[B, 3, H, W]` to bytes `[B, 3, h, w]`.
    fn apply(&self, images: &Tensor, vertical_first: bool) -> Result<Tensor, DataError> {
        let (batch, _, height, width) = images.size4()?;
        let (rows, columns) = (self.rows.size()[1], self.columns.size()[1]);
        let at_once = (pixels(images.device()) / (height * width).max(rows * columns)).max(1);
        in_slices(batch, at_once, |start, len| {
            let slice = |of_images: &Tensor| match of_images.size()[0] {
                1 => Ok(of_images.shallow_clone()), // one for all
                _ => of_images.f_narrow(0, start, len),
            };
            let (rows, columns) = (slice(&self.rows)?, slice(&self.columns)?);
            let resampler = Self { rows, columns, overshoots: self.overshoots };
            resampler.apply_at_once(&images.f_narrow(0, start, len)?, vertical_first)
        })
    }

    fn apply_at_once(&self, images: &Tensor, vertical_first: bool) -> Result<Tensor, DataError> {
        let images = images.f_to_kind(self.rows.kind())?;
        let sums = if vertical_first {
            self.across(&self.levels(self.down(&images)?)?)?
        } else {
            self.down(&self.levels(self.across(&images)?)?)?
        };
        // By way of i16, because libtorch has no vector code from floats to bytes.
        let mut levels = half_more(sums)?.f_to_kind(Kind::Int16)?;
        if self.overshoots {
            levels = levels.f_clamp_(0, 255)?;
        }
        Ok(levels.f_to_kind(Kind::Uint8)?)
    }

    /// Horizontal pass: `[B, 3, H, W]` to `[B, 3, H, w]`.
    fn across(&self, images: &Tensor) -> Result<Tensor, DataError> {
        let (batch, channels, height, width) = images.size4()?;
        let weights = self.columns.f_transpose(1, 2)?;
        let groups = self.columns.size()[0]; // one matrix for each image, or one for all
        let lines = images.f_reshape([groups, -1, width])?;
        Ok(lines.f_bmm(&weights)?.f_view([batch, channels, height, -1])?)
    }

    /// Vertical pass: `[B, 3, H, w]` to `[B, 3, h, w]`.
    fn down(&self, images: &Tensor) -> Result<Tensor, DataError> {
        let (batch, channels, height, width) = images.size4()?;
        if self.rows.size()[0] == 1 {
            let planes = batch * channels;
            let weights = self.rows.f_expand([planes, -1, -1], false)?;
            let sums = weights.f_bmm(&images.f_reshape([planes, height, width])?)?;
            return Ok(sums.f_view([batch, channels, -1, width])?);
        }
        Ok(self.rows.f_unsqueeze(1)?.f_matmul(images)?)
    }

    /// Sums rounded to levels, half a level up.
    fn levels(&self, sums: Tensor) -> Result<Tensor, DataError> {
        let mut levels = half_more(sums)?.f_floor_()?;
        if self.overshoots {
            levels = levels.f_clamp_(0, 255)?;
        }
        Ok(levels)
    }
}

fn half_more(mut sums: Tensor) -> Result<Tensor, DataError> {
    Ok(sums.f_add_scalar_(0.5)?)
}

/// The weights of `size` outputs on `length` inputs, `[G, size, length]`, for each of G spans.
///
/// Spans of one extent, filter and direction have the same weights at other places, and small images have few
/// extents, so each is computed once, on the host; the device puts them in their places.
fn weights(
    spans: &[Span],
    size: i64,
    length: i64,
    (kind, device): (Kind, Device),
) -> Result<Tensor, DataError> {
    let key = |span: &Span| (span.extent, span.filter, span.reversed);
    let mut distinct: Vec<_> = spans.iter().map(key).collect();
    distinct.sort_unstable();
    distinct.dedup();
    let outputs: Vec<Taps> = distinct
        .iter()
        .flat_map(|&(extent, filter, reversed)| {
            let size = size.cast_unsigned();
            let mut outputs = taps(filter, extent as u32, size, 0..size);
            if reversed {
                outputs.reverse();
            }
            outputs
        })
        .collect();
    let most = outputs.iter().map(|taps| taps.weights.len()).max().unwrap_or(1);
    let mut values = vec![0f32; outputs.len() * most]; // 22 bits are exact
    for (row, taps) in values.chunks_exact_mut(most).zip(&outputs) {
        for (value, &weight) in row.iter_mut().zip(&taps.weights) {
            *value = weight as f32 / (1 << WEIGHT_BITS) as f32;
        }
    }
    let which = spans.iter().map(|span| distinct.binary_search(&key(span)).unwrap_or_default() as i64);
    let starts = spans.iter().map(|span| span.start);
    let firsts = outputs.iter().map(|taps| taps.first as i64);
    let numbers = upload(&which.chain(starts).chain(firsts).collect::<Vec<_>>(), device)?;
    let (count, most) = (spans.len() as i64, most as i64);
    let which = numbers.f_narrow(0, 0, count)?;
    let starts = numbers.f_narrow(0, count, count)?.f_view([count, 1, 1])?;
    let firsts = numbers.f_narrow(0, 2 * count, outputs.len() as i64)?.f_view([-1, size, 1])?;
    let values = upload(&values, device)?.f_to_kind(kind)?.f_view([-1, size, most])?;

    // Fewer taps are filled up with some that weigh nothing; they may lie beyond the input, so there is room for them.
    let along = Tensor::f_arange(most, (Kind::Int64, device))?;
    let inputs = firsts.f_index_select(0, &which)?.f_add(&starts)?.f_add(&along)?;
    let mut matrix = Tensor::f_zeros([count, size, length + most], (kind, device))?;
    Ok(matrix.f_scatter_(2, &inputs, &values.f_index_select(0, &which)?)?.f_narrow(2, 0, length)?)
}
