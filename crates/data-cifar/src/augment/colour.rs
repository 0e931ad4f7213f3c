//! Colour operations on batches of bytes, as PIL's `ImageOps`, `ImageEnhance` and HSV conversion define them.
//! Every function changes its images `[n, 3, H, W]` in place.

use tch::{Kind, Tensor};

use crate::augment::on_device::{in_parts, upload};
use crate::augment::ops::Op;
use crate::error::DataError;

/// The shares of red, green and blue in PIL's grey, in units of 1/65536.
const GREY: [f32; 3] = [19595.0, 38470.0, 7471.0];

/// The operations that look each value up in a table of 256, in this order: `AutoContrast`, `Equalize`, others.
pub(crate) fn look_up(images: &Tensor, ops: &[Op]) -> Result<(), DataError> {
    let (n, _, height, width) = images.size4()?;
    let stretched = ops.iter().filter(|op| matches!(op, Op::AutoContrast)).count() as i64;
    let flattened = ops.iter().filter(|op| matches!(op, Op::Equalize)).count() as i64;
    let images = images.f_view([n, 3, height * width])?;
    let index = images.f_to_kind(Kind::Int64)?;
    // One table per image and channel. Those that depend on the image are written over on the device.
    let mut tables = Vec::with_capacity(3 * 256 * ops.len());
    for table in ops.iter().map(table) {
        tables.extend_from_slice([table; 3].as_flattened());
    }
    let tables = upload(&tables, images.device())?.f_view([n, 3, 256])?;
    if stretched > 0 {
        let table = stretching_tables(&images.f_narrow(0, 0, stretched)?)?;
        tables.f_narrow(0, 0, stretched)?.f_copy_(&table)?;
    }
    if flattened > 0 {
        let table = flattening_tables(&index.f_narrow(0, stretched, flattened)?)?;
        tables.f_narrow(0, stretched, flattened)?.f_copy_(&table)?;
    }
    let _ = tables.f_gather_out(&images, 2, &index, false)?;
    Ok(())
}

/// The table of an operation that is the same for every image; for others, the one that changes nothing.
fn table(op: &Op) -> [u8; 256] {
    std::array::from_fn(|value| {
        let value = value as u8;
        match *op {
            Op::Invert => 255 - value,
            Op::Posterize { bits } => (i32::from(value) & (-256 >> bits.min(8))) as u8,
            Op::Solarize { threshold } if f32::from(value) >= threshold => 255 - value,
            Op::SolarizeAdd { add } if value < 128 => value.saturating_add(add),
            // Rust's conversion truncates and clips, as Image.blend does.
            Op::Brightness { factor } => (factor * f32::from(value)) as u8,
            _ => value,
        }
    })
}

/// `ImageOps.autocontrast` of bytes `[n, 3, P]`: f64 tables `[n, 3, 256]`, to be truncated.
fn stretching_tables(images: &Tensor) -> Result<Tensor, DataError> {
    let double = (Kind::Double, images.device());
    let low = images.f_amin(&[2i64][..], true)?;
    let range = images.f_amax(&[2i64][..], true)?.f_sub(&low)?;
    // A flat channel stays as it is, as if it went from 0 to 255.
    let flat = range.f_eq(0)?;
    let (low, range) = (low.f_masked_fill(&flat, 0)?, range.f_masked_fill(&flat, 255)?);
    let scale = Tensor::f_full([1], 255.0, double)?.f_div(&range)?;
    // Multiplied and subtracted one after the other, because fused they would round differently from Python.
    let mut table = Tensor::f_arange(256, double)?.f_mul(&scale)?.f_sub(&scale.f_mul(&low)?)?;
    Ok(table.f_clamp_(0.0, 255.0)?)
}

/// `ImageOps.equalize` of bytes as i64 `[n, 3, P]`: f64 tables `[n, 3, 256]`, to be truncated.
fn flattening_tables(values: &Tensor) -> Result<Tensor, DataError> {
    let (n, channels, pixels) = values.size3()?;
    let long = (Kind::Int64, values.device());
    let one = Tensor::f_ones([1], long)?.f_expand([n, channels, pixels], false)?;
    let histogram = Tensor::f_zeros([n, channels, 256], long)?.f_scatter_add(2, values, &one)?;
    let brightest = histogram.f_gather(2, &values.f_amax(&[2i64][..], true)?, false)?;
    let step = brightest.f_rsub_scalar(pixels)?.f_divide_scalar_mode(255, "floor")?;
    let below = histogram.f_cumsum(2, Kind::Double)?.f_sub_(&histogram)?;
    let mut below = below.f_add(&step.f_divide_scalar_mode(2, "floor")?)?;
    let table = below.f_div_(&step)?.f_clamp_max(255.0)?;
    // Too few pixels to spread over 255 steps: as it is.
    let same = Tensor::f_arange(256, (Kind::Double, values.device()))?;
    Ok(same.f_where_self(&step.f_eq(0)?, &table)?)
}

/// The operations that mix an image with a duller one (`Image.blend`), in this order: `Color`, `Contrast`,
/// `Sharpness`.
pub(crate) fn blend(images: &Tensor, ops: &[Op]) -> Result<(), DataError> {
    let (n, _, height, width) = images.size4()?;
    let colours = ops.iter().filter(|op| matches!(op, Op::Color { .. })).count() as i64;
    let contrasts = ops.iter().filter(|op| matches!(op, Op::Contrast { .. })).count() as i64;
    let host: Vec<f32> = GREY.iter().map(|share| share / 65536.0).chain(ops.iter().map(factor)).collect();
    let device = upload(&host, images.device())?;
    let factors = device.f_narrow(0, 3, n)?.f_view([n, 1, 1, 1])?;
    let mut floats = images.f_to_kind(Kind::Float)?;
    let mix = |start: i64, len: i64, part: &mut Tensor, dull: &Tensor| -> Result<(), DataError> {
        // Multiplied and added one after the other, as PIL does.
        let _ = part.f_sub_(dull)?.f_mul_(&factors.f_narrow(0, start, len)?)?.f_add_(dull)?;
        Ok(())
    };
    if colours + contrasts > 0 {
        // Exact: sums of multiples of 1/65536 below 256.
        let grey = floats
            .f_narrow(0, 0, colours + contrasts)?
            .f_mul(&device.f_narrow(0, 0, 3)?.f_view([3, 1, 1])?)?;
        let mut grey = grey.f_sum_dim_intlist(&[1i64][..], true, None)?;
        let grey = grey.f_add_scalar_(0.5)?.f_floor_()?;
        if colours > 0 {
            mix(0, colours, &mut floats.f_narrow(0, 0, colours)?, &grey.f_narrow(0, 0, colours)?)?;
        }
        if contrasts > 0 {
            let grey = grey.f_narrow(0, colours, contrasts)?;
            // Rounded in whole numbers: half of the pixels is added to the sum.
            let mut sum = grey.f_sum_dim_intlist(&[2i64, 3][..], true, Kind::Int64)?.f_mul_scalar(2)?;
            let pixels = height * width;
            let mean = sum.f_add_scalar_(pixels)?.f_divide_scalar_mode(2 * pixels, "floor")?;
            let mut part = floats.f_narrow(0, colours, contrasts)?;
            mix(colours, contrasts, &mut part, &mean.f_to_kind(Kind::Float)?)?;
        }
    }
    let (start, rest) = (colours + contrasts, n - colours - contrasts);
    if rest > 0 && height > 2 && width > 2 {
        let part = floats.f_narrow(0, start, rest)?;
        let smooth = smooth(&part)?;
        mix(start, rest, &mut part.f_narrow(2, 1, height - 2)?.f_narrow(3, 1, width - 2)?, &smooth)?;
    }
    let mut images = images.shallow_clone();
    images.f_copy_(&floats.f_clamp_(0.0, 255.0)?)?;
    Ok(())
}

/// The factor of an operation that mixes; 1 for others.
fn factor(op: &Op) -> f32 {
    match *op {
        Op::Color { factor } | Op::Contrast { factor } | Op::Sharpness { factor } => factor,
        _ => 1.0,
    }
}

/// `ImageFilter.SMOOTH` of `[n, 3, H, W]` without the border, which PIL leaves as it is: `[n, 3, H − 2, W − 2]`.
fn smooth(images: &Tensor) -> Result<Tensor, DataError> {
    let (_, _, height, width) = images.size4()?;
    let rows = |first: i64| images.f_narrow(2, first, height - 2);
    let sums = rows(0)?.f_add(&rows(1)?)?.f_add_(&rows(2)?)?;
    let columns = |first: i64| sums.f_narrow(3, first, width - 2);
    let mut sums = columns(0)?.f_add(&columns(1)?)?.f_add_(&columns(2)?)?;
    // The nine pixels once and the middle one four times more, over 13. The quotient is never within 1/26 of
    // a byte's lower end, so it does not matter how it is rounded.
    let middle = rows(1)?.f_narrow(3, 1, width - 2)?.f_mul_scalar(4.0)?;
    Ok(sums.f_add_(&middle)?.f_add_scalar_(6.5)?.f_div_scalar_(13.0)?.f_floor_()?)
}

/// Adds to the hue, modulo 256, between PIL's conversions to HSV and back.
pub(crate) fn hue(images: &Tensor, shifts: &[u8]) -> Result<(), DataError> {
    in_parts(images, |part, which, _| hue_of_part(part, &shifts[which]))
}

fn hue_of_part(images: &Tensor, shifts: &[u8]) -> Result<(), DataError> {
    let (n, _, height, width) = images.size4()?;
    let device = images.device();
    let floats = images.f_to_kind(Kind::Float)?;
    let value = floats.f_amax(&[1i64][..], true)?;
    let chroma = value.f_sub(&floats.f_amin(&[1i64][..], true)?)?;
    // Kinds alternate where PIL's do: it divides floats, and adds and multiplies doubles.
    let some = chroma.f_clamp_min(1.0)?; // of a grey pixel, whose hue does not matter
    let distance = value.f_sub(&floats)?.f_div(&some)?.f_to_kind(Kind::Double)?;
    let (red, green, blue) =
        (distance.f_narrow(1, 0, 1)?, distance.f_narrow(1, 1, 1)?, distance.f_narrow(1, 2, 1)?);
    let sixths = blue.f_sub(&green)?.f_where_self(
        &red.f_eq(0.0)?,
        &red.f_add_scalar(2.0)?
            .f_sub(&blue)?
            .f_where_self(&green.f_eq(0.0)?, &green.f_add_scalar(4.0)?.f_sub(&red)?)?,
    )?;
    let float = |tensor: &Tensor| tensor.f_to_kind(Kind::Float)?.f_to_kind(Kind::Double);
    // Divisors are tensors, because CUDA multiplies by the inverse of a plain number.
    let divisor = |number: f64| Tensor::f_full([1], number, (Kind::Double, device));
    let turn = float(&float(&sixths)?.f_div(&divisor(6.0)?)?.f_add_scalar(1.0)?.f_fmod(1.0)?)?;
    let byte = |tensor: &Tensor| tensor.f_mul_scalar(255.0)?.f_to_kind(Kind::Uint8);
    let hue = byte(&turn)?.f_mul(&chroma.f_gt(0.0)?)?;
    let saturation = byte(&chroma.f_div(&value.f_clamp_min(1.0)?)?.f_to_kind(Kind::Double)?)?;

    let shifts = upload(shifts, device)?.f_view([n, 1, 1, 1])?;
    let hue = hue.f_add(&shifts)?.f_to_kind(Kind::Int64)?.f_view([-1])?; // bytes wrap around
    let (parts, falling): (Vec<f64>, Vec<bool>) = (0..256).flat_map(hue_parts).unzip();
    let of_hue = |table: Tensor| -> Result<Tensor, DataError> {
        let rows = table.f_view([256, 3])?.f_index_select(0, &hue)?;
        Ok(rows.f_view([n, height, width, 3])?.f_permute([0, 3, 1, 2])?)
    };
    let (part, falling) = (of_hue(upload(&parts, device)?)?, of_hue(upload(&falling, device)?)?);
    let saturation = float(&saturation.f_to_kind(Kind::Double)?.f_div(&divisor(255.0)?)?)?;
    let missing = saturation.f_mul(&part)?;
    let missing = float(&missing)?.f_where_self(&falling, &missing)?;
    let mut images = images.shallow_clone();
    let colours = missing.f_rsub_scalar(1.0)?.f_mul(&value)?.f_add_scalar(0.5)?;
    images.f_copy_(&colours)?; // truncated
    Ok(())
}

/// How much of the saturation red, green and blue are short of the value at a hue from 0 to 255, and whether
/// the channel is falling with the hue there (PIL multiplies those in 32-bit floats).
fn hue_parts(hue: i32) -> [(f64, bool); 3] {
    let sixths = f64::from(hue) * 6.0 / 255.0;
    let sector = sixths.floor();
    let rest = f64::from((sixths - sector) as f32);
    let (none, whole, falling, rising) = ((0.0, false), (1.0, false), (rest, true), (1.0 - rest, false));
    match sector as i32 % 6 {
        0 => [none, rising, whole],
        1 => [falling, none, whole],
        2 => [whole, none, rising],
        3 => [whole, falling, none],
        4 => [rising, whole, none],
        _ => [none, whole, falling],
    }
}
