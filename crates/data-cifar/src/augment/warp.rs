//! Affine transforms of batches of bytes, sampled as PIL's `Image.transform` does. Every function changes its
//! images `[n, 3, H, W]` in place.

use tch::{Kind, Tensor};

use crate::augment::on_device::{in_parts, upload};
use crate::augment::ops::Filter;
use crate::error::DataError;

/// Added before truncation, because 32-bit sums of weighted bytes may fall just short of the exact byte.
const ROUNDING: f64 = 1.0 / 4096.0;

/// One image's transform; see [`crate::Op::Affine`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Warp {
    pub matrix: [f64; 6],
    pub filter: Filter,
    pub fill: [u8; 3],
}

/// What has to be done for a [`Warp`], from the cheapest to the dearest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Motion {
    /// Every output pixel is one input pixel.
    Nearest,
    /// Every row moves along itself.
    Rows,
    /// Every column moves along itself.
    Columns,
    /// Anything else, between 2×2 pixels.
    Bilinear,
    /// Anything else, between 4×4 pixels.
    Bicubic,
}

impl Warp {
    pub(crate) fn motion(&self) -> Motion {
        let [a, b, c, d, e, f] = self.matrix;
        if self.filter == Filter::Nearest {
            Motion::Nearest
        } else if a == 1.0 && d == 0.0 && e == 1.0 && f == 0.0 {
            Motion::Rows
        } else if a == 1.0 && b == 0.0 && c == 0.0 && e == 1.0 {
            Motion::Columns
        } else if self.filter == Filter::Bilinear {
            Motion::Bilinear
        } else {
            Motion::Bicubic
        }
    }

    fn fill(&self) -> [f32; 3] {
        self.fill.map(f32::from)
    }
}

/// Weights of the pixels at −1, 0, 1 and 2 as polynomials of the distance from pixel 0: the constant terms,
/// the linear ones, the quadratic ones and the cubic ones.
fn polynomials(filter: Filter) -> [[f32; 4]; 4] {
    match filter {
        Filter::Nearest => [[0., 1., 0., 0.], [0.; 4], [0.; 4], [0.; 4]],
        Filter::Bilinear => [[0., 1., 0., 0.], [0., -1., 1., 0.], [0.; 4], [0.; 4]],
        Filter::Bicubic => [[0., 1., 0., 0.], [-1., 0., 1., 0.], [2., -2., 1., -1.], [-1., 1., -1., 1.]],
    }
}

/// Weighted sums of bytes, to be truncated: within 0 to 255 where `inside`, and the fill elsewhere.
fn finish(mut sums: Tensor, inside: &Tensor, fill: &Tensor) -> Result<Tensor, DataError> {
    Ok(sums.f_add_scalar_(ROUNDING)?.f_clamp_(0.0, 255.0)?.f_where_self(inside, fill)?)
}

/// Moves the rows of the first images along themselves, each by its own distance, and the columns of the others;
/// `warps` have those of [`Motion::Rows`] first.
pub(crate) fn shift(images: &Tensor, warps: &[Warp]) -> Result<(), DataError> {
    let (n, _, height, width) = images.size4()?;
    let by_rows = warps.partition_point(|warp| warp.motion() == Motion::Rows);
    // Columns are the rows of the transposed images. Lines of one length are moved together.
    let count = by_rows as i64;
    let rows = images.f_narrow(0, 0, count)?;
    let columns = images.f_narrow(0, count, n - count)?.f_transpose(2, 3)?;
    if height == width {
        return shift_lines(&[rows, columns], warps);
    }
    for (images, warps) in [(rows, &warps[..by_rows]), (columns, &warps[by_rows..])] {
        if !warps.is_empty() {
            shift_lines(&[images], warps)?;
        }
    }
    Ok(())
}

/// Moves the lines of images `[_, 3, L, P]` along themselves, the parts' images in the order of `warps`.
fn shift_lines(parts: &[Tensor], warps: &[Warp]) -> Result<(), DataError> {
    let (_, _, lines, length) = parts[0].size4()?;
    let (n, device) = (warps.len() as i64, parts[0].device());
    // Of every line: four weights, the first position inside and the first after, and how far it moves.
    let plane = (n * lines) as usize;
    let mut host = vec![0f32; 7 * plane + 3 * warps.len()];
    for (image, warp) in warps.iter().enumerate() {
        let [_, b, c, d, _, f] = warp.matrix;
        let (slope, offset) = if warp.motion() == Motion::Rows { (b, c) } else { (d, f) };
        let powers = polynomials(warp.filter);
        for line in 0..lines {
            let place = image * lines as usize + line as usize;
            let moved = Line { slope: slope * (line as f64 + 0.5), offset, length };
            let distance = moved.slope + offset;
            let rest = distance - distance.floor();
            for tap in 0..4 {
                let [c0, c1, c2, c3] = powers.map(|power| f64::from(power[tap]));
                host[tap * plane + place] = (c0 + rest * (c1 + rest * (c2 + rest * c3))) as f32;
            }
            host[4 * plane + place] = moved.positions_below(0.0) as f32;
            host[5 * plane + place] = moved.positions_below(length as f64) as f32;
            let limit = (length + 4) as f64;
            host[6 * plane + place] = distance.floor().clamp(-limit, limit) as f32;
        }
        host[7 * plane + 3 * image..][..3].copy_from_slice(&warp.fill());
    }
    let numbers = upload(&host, device)?;
    let parameter =
        |number: i64| numbers.f_narrow(0, number * n * lines, n * lines)?.f_view([n, 1, lines, 1]);
    let fill = numbers.f_narrow(0, 7 * n * lines, 3 * n)?.f_view([n, 3, 1, 1])?;

    // Three pixels more than a line has, so that each weight's pixels are a part of one gathered line.
    let along = Tensor::f_arange_start(-1, length + 2, (Kind::Int64, device))?;
    let mut index = parameter(6)?.f_to_kind(Kind::Int64)?.f_add(&along)?;
    let index = index.f_clamp_(0, length - 1)?.f_expand([n, 3, lines, length + 3], false)?;
    let pixels = Tensor::f_empty([n, 3, lines, length + 3], (Kind::Uint8, device))?;
    let mut start = 0;
    for part in parts {
        let count = part.size()[0];
        let out = pixels.f_narrow(0, start, count)?;
        let _ = part.f_gather_out(&out, 3, &index.f_narrow(0, start, count)?, false)?;
        start += count;
    }
    let pixels = pixels.f_to_kind(Kind::Float)?;
    let tap = |number: i64| pixels.f_narrow(3, number, length);
    let mut sum = tap(0)?.f_mul(&parameter(0)?)?;
    for number in 1..4 {
        sum = sum.f_addcmul_(&tap(number)?, &parameter(number)?)?;
    }
    let along = Tensor::f_arange(length, (Kind::Float, device))?;
    let inside = along.f_ge_tensor(&parameter(4)?)?.f_logical_and(&along.f_lt_tensor(&parameter(5)?)?)?;
    let values = finish(sum, &inside, &fill)?;
    let mut start = 0;
    for part in parts {
        let count = part.size()[0];
        part.shallow_clone().f_copy_(&values.f_narrow(0, start, count)?)?;
        start += count;
    }
    Ok(())
}

/// A line that moves along itself: position p shows (p + 1/2 + slope) + offset.
struct Line {
    slope: f64,
    offset: f64,
    length: i64,
}

impl Line {
    /// The number of positions that show something below `limit`, rounded as PIL rounds.
    fn positions_below(&self, limit: f64) -> i64 {
        let shows = |position: i64| (position as f64 + 0.5 + self.slope) + self.offset;
        let mut count = ((limit - 0.5 - self.slope - self.offset).ceil() as i64).clamp(0, self.length);
        while count > 0 && shows(count - 1) >= limit {
            count -= 1;
        }
        while count < self.length && shows(count) < limit {
            count += 1;
        }
        count
    }
}

/// Samples neighbours at any place; `warps` have the bilinear ones first.
pub(crate) fn sample(images: &Tensor, warps: &[Warp]) -> Result<(), DataError> {
    let source = images.f_detach_copy()?;
    in_parts(images, |part, which, first_row| {
        let source = source.f_narrow(0, which.start as i64, which.len() as i64)?;
        sample_rows(&source, &warps[which], first_row, part)
    })
}

/// [`sample`] of whole images `source`, of the rows from one on into `out` `[n, 3, R, W]`.
fn sample_rows(source: &Tensor, warps: &[Warp], first_row: i64, out: &Tensor) -> Result<(), DataError> {
    let (n, _, height, width) = source.size4()?;
    let rows = out.size()[2];
    let (pixels, device) = (rows * width, source.device());
    // On the host: how far into the picture each column and each row leads, along both axes, and constants.
    let mut places = Vec::with_capacity(warps.len() * 2 * (width + rows + 1) as usize);
    for warp in warps {
        for axis in [0, 3] {
            let [x, y, constant] = [warp.matrix[axis], warp.matrix[axis + 1], warp.matrix[axis + 2]];
            places.extend((0..width).map(|column| x * (column as f64 + 0.5)));
            places.extend((first_row..first_row + rows).map(|row| y * (row as f64 + 0.5)));
            places.push(constant);
        }
    }
    let places = upload(&places, device)?.f_view([n, 2, width + rows + 1])?;
    let part = |start: i64, count: i64, shape: [i64; 4]| places.f_narrow(2, start, count)?.f_view(shape);
    let (across, down) = (part(0, width, [n, 2, 1, width])?, part(width, rows, [n, 2, rows, 1])?);
    let place = across.f_add(&down)?.f_add_(&part(width + rows, 1, [n, 2, 1, 1])?)?; // [n, 2, R, W]

    let sizes = upload(&[width, height], device)?.f_view([2, 1, 1])?;
    let inside = place.f_ge(0.0)?.f_logical_and(&place.f_lt_tensor(&sizes)?)?.f_all_dim(1, true)?;
    let place = place.f_sub_scalar(0.5)?.f_view([n, 2, 1, pixels])?;
    let base = place.f_floor()?;
    let distance = place.f_sub(&base)?.f_to_kind(Kind::Float)?;
    let base = base.f_to_kind(Kind::Int64)?;

    let last = sizes.f_sub_scalar(1)?;
    let sums = Tensor::f_empty([n, 3, pixels], (Kind::Float, device))?;
    let bilinear = warps.partition_point(|warp| warp.filter == Filter::Bilinear) as i64;
    for (filter, start, count) in [(Filter::Bilinear, 0, bilinear), (Filter::Bicubic, bilinear, n - bilinear)]
    {
        if count > 0 {
            let group = |tensor: &Tensor| tensor.f_narrow(0, start, count);
            let index = neighbours(&group(&base)?, &last, width, filter)?;
            let weights = weights(&group(&distance)?, filter)?;
            let found = group(source)?.f_view([count, 3, height * width])?.f_gather(2, &index, false)?;
            let mut found = found.f_to_kind(Kind::Float)?.f_view([count, 3, -1, pixels])?;
            let _ = found.f_mul_(&weights)?.f_sum_intlist_out(&group(&sums)?, &[2i64][..], false, None)?;
        }
    }
    let fill: Vec<f32> = warps.iter().flat_map(Warp::fill).collect();
    let fill = upload(&fill, device)?.f_view([n, 3, 1, 1])?;
    let values = finish(sums.f_view([n, 3, rows, width])?, &inside, &fill)?;
    out.shallow_clone().f_copy_(&values)?;
    Ok(())
}

/// The first pixel and how many there are along each axis, from the one at or before the place.
fn taps(filter: Filter) -> (i64, i64) {
    if filter == Filter::Bicubic { (-1, 4) } else { (0, 2) }
}

/// Where the pixels about `base` i64 `[n, 2, 1, P]` are in an image, those beyond the border being the ones on it:
/// `[n, 3, taps² · P]`. `last` are the last column and row, and `width`
/// is that of a row.
fn neighbours(base: &Tensor, last: &Tensor, width: i64, filter: Filter) -> Result<Tensor, DataError> {
    let (first, taps) = taps(filter);
    let steps =
        Tensor::f_arange_start(first, first + taps, (Kind::Int64, base.device()))?.f_view([taps, 1])?;
    let index = base.f_add(&steps)?.f_clamp_min(0)?.f_minimum(last)?;
    let (across, down) = (index.f_select(1, 0)?, index.f_select(1, 1)?.f_mul_scalar(width)?);
    let index = down.f_unsqueeze(2)?.f_add(&across.f_unsqueeze(1)?)?; // [n, taps, taps, P]
    let n = index.size()[0];
    Ok(index.f_view([n, 1, -1])?.f_expand([n, 3, -1], false)?)
}

/// Weights `[n, 1, taps², P]` of the pixels that are `distance` f32 `[n, 2, 1, P]` before the place.
fn weights(distance: &Tensor, filter: Filter) -> Result<Tensor, DataError> {
    let (first, taps) = taps(filter);
    let numbers = upload(polynomials(filter).as_flattened(), distance.device())?;
    let power = |number: i64| numbers.f_narrow(0, 4 * number + 1 + first, taps)?.f_view([taps, 1]);
    let degree = taps - 1;
    let mut weights = power(degree)?;
    for number in (0..degree).rev() {
        weights = power(number)?.f_addcmul(distance, &weights)?; // [n, 2, taps, P]
    }
    let (across, down) = (weights.f_select(1, 0)?, weights.f_select(1, 1)?);
    let products = down.f_unsqueeze(2)?.f_mul(&across.f_unsqueeze(1)?)?;
    let (n, pixels) = (products.size()[0], products.size()[3]);
    Ok(products.f_view([n, 1, taps * taps, pixels])?)
}

/// Takes for each pixel the one it falls into, as PIL does in fixed-point numbers with 16 bits after the point.
/// (Beyond 32,768 pixels PIL adds up doubles instead, which may round to another pixel.)
pub(crate) fn nearest(images: &Tensor, warps: &[Warp]) -> Result<(), DataError> {
    let source = images.f_detach_copy()?;
    in_parts(images, |part, which, first_row| {
        let source = source.f_narrow(0, which.start as i64, which.len() as i64)?;
        nearest_rows(&source, &warps[which], first_row, part)
    })
}

/// [`nearest`] of whole images `source`, of the rows from one on into `out` `[n, 3, R, W]`.
fn nearest_rows(source: &Tensor, warps: &[Warp], first_row: i64, out: &Tensor) -> Result<(), DataError> {
    let (n, _, height, width) = source.size4()?;
    let rows = out.size()[2];
    let (pixels, device) = (rows * width, source.device());
    let mut places = Vec::with_capacity(warps.len() * 2 * (width + rows) as usize);
    for warp in warps {
        let [a, b, c, d, e, f] = warp.matrix;
        if b == 0.0 && d == 0.0 {
            // PIL adds up doubles for matrices that only scale and move.
            places.extend(steps(c + a * 0.5, a).take(width as usize));
            places.extend(std::iter::repeat_n(0, (rows + width) as usize));
            places.extend(steps(f + e * 0.5, e).skip(first_row as usize).take(rows as usize));
        } else {
            for [x, y, constant] in [[a, b, c], [d, e, f]] {
                let start = fixed(constant + x * 0.5 + y * 0.5);
                places.extend((0..width).map(|column| column.wrapping_mul(fixed(x))));
                let rows = first_row..first_row + rows;
                places.extend(rows.map(|row| row.wrapping_mul(fixed(y)).wrapping_add(start)));
            }
        }
    }
    let places = upload(&places, device)?.f_view([n, 2, width + rows])?;
    let across = places.f_narrow(2, 0, width)?.f_view([n, 2, 1, width])?;
    let down = places.f_narrow(2, width, rows)?.f_view([n, 2, rows, 1])?;
    let place = across.f_add(&down)?.f_divide_scalar_mode(ONE as i64, "floor")?; // [n, 2, R, W]
    let sizes = upload(&[width, height], device)?.f_view([2, 1, 1])?;
    let inside = place.f_ge(0)?.f_logical_and(&place.f_lt_tensor(&sizes)?)?.f_all_dim(1, true)?;
    let mut index = place.f_select(1, 1)?.f_mul_scalar(width)?.f_add(&place.f_select(1, 0)?)?;
    let index = index.f_clamp_(0, height * width - 1)?.f_view([n, 1, pixels])?;
    let index = index.f_expand([n, 3, pixels], false)?;
    let fill: Vec<u8> = warps.iter().flat_map(|warp| warp.fill).collect();
    let fill = upload(&fill, device)?.f_view([n, 3, 1, 1])?;
    let taken = source.f_view([n, 3, height * width])?.f_gather(2, &index, false)?;
    let taken = taken.f_view([n, 3, rows, width])?;
    out.shallow_clone().f_copy_(&taken.f_where_self(&inside, &fill)?)?;
    Ok(())
}

/// One in fixed-point numbers.
const ONE: f64 = 65536.0;

/// Rounded to a fixed-point number; numbers far outside every picture are brought nearer, so that sums cannot
/// overflow.
fn fixed(number: f64) -> i64 {
    let far = 2f64.powi(40);
    (number * ONE + 0.5).floor().clamp(-far, far) as i64
}

/// The whole parts of `start`, `start + step`, … as fixed-point numbers; −1 for all below 0.
fn steps(start: f64, step: f64) -> impl Iterator<Item = i64> {
    std::iter::successors(Some(start), move |place| Some(place + step)).map(|place| {
        let whole = if place < 0.0 { -1.0 } else { place.trunc().min(ONE * ONE) };
        (whole * ONE) as i64
    })
}
