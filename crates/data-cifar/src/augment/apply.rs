//! Operations done to whole batches of bytes on their device: images of one kind of operation together.

use tch::Tensor;

use crate::augment::colour;
use crate::augment::on_device::{check_bytes, upload};
use crate::augment::ops::Op;
use crate::augment::warp::{self, Motion, Warp};
use crate::error::DataError;

/// What is done to images together. The number is their order within.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    LookUp(u8),
    Blend(u8),
    Hue,
    Warp(Motion),
}

impl Stage {
    fn of(op: &Op) -> Self {
        match *op {
            Op::AutoContrast => Self::LookUp(0),
            Op::Equalize => Self::LookUp(1),
            Op::Invert
            | Op::Posterize { .. }
            | Op::Solarize { .. }
            | Op::SolarizeAdd { .. }
            | Op::Brightness { .. } => Self::LookUp(2),
            Op::Color { .. } => Self::Blend(0),
            Op::Contrast { .. } => Self::Blend(1),
            Op::Sharpness { .. } => Self::Blend(2),
            Op::Hue { .. } => Self::Hue,
            Op::Affine { matrix, filter, fill } => Self::Warp(Warp { matrix, filter, fill }.motion()),
        }
    }

    /// Whether images of both are done together.
    fn joins(self, other: Self) -> bool {
        match (self, other) {
            (Self::LookUp(_), Self::LookUp(_)) | (Self::Blend(_), Self::Blend(_)) => true,
            (Self::Warp(Motion::Rows), Self::Warp(Motion::Columns)) => true,
            (Self::Warp(Motion::Bilinear), Self::Warp(Motion::Bicubic)) => true,
            _ => self == other,
        }
    }

    /// Does `ops`, all of this stage and in its order, to `images` in place.
    fn run(self, images: &Tensor, ops: &[Op]) -> Result<(), DataError> {
        let warps = || -> Vec<Warp> {
            let warp = |op: &Op| match *op {
                Op::Affine { matrix, filter, fill } => Some(Warp { matrix, filter, fill }),
                _ => None,
            };
            ops.iter().filter_map(warp).collect()
        };
        match self {
            Self::LookUp(_) => colour::look_up(images, ops),
            Self::Blend(_) => colour::blend(images, ops),
            Self::Hue => {
                let shift = |op: &Op| if let Op::Hue { shift } = *op { Some(shift) } else { None };
                colour::hue(images, &ops.iter().filter_map(shift).collect::<Vec<_>>())
            }
            Self::Warp(Motion::Nearest) => warp::nearest(images, &warps()),
            Self::Warp(Motion::Bilinear | Motion::Bicubic) => warp::sample(images, &warps()),
            Self::Warp(Motion::Rows | Motion::Columns) => warp::shift(images, &warps()),
        }
    }
}

/// Does to each of the bytes `[B, 3, H, W]` its operation, or nothing: bytes of the same shape on the same device.
///
/// Results are PIL's (`Image`, `ImageOps`, `ImageEnhance`), bit for bit except where [`Op::Affine`] interpolates:
/// there values may differ by 1, on photographs about one in three thousand. What becomes of an image does not
/// depend on the others. If nothing is done to any image, `images` itself is returned.
///
/// # Errors
/// When the images are of another kind or shape, their number is not that of `ops`, or a parameter is outside
/// its range.
pub fn apply_ops(images: &Tensor, ops: &[Option<Op>]) -> Result<Tensor, DataError> {
    let [batch, ..] = check_bytes(images)?;
    if batch != ops.len() as i64 {
        return Err(DataError::Argument(format!(
            "{} operations need as many images, not {batch}",
            ops.len()
        )));
    }
    ops.iter().flatten().try_for_each(Op::check)?;
    let mut acted: Vec<(Stage, usize, Op)> =
        ops.iter().enumerate().filter_map(|(image, op)| op.map(|op| (Stage::of(&op), image, op))).collect();
    if acted.is_empty() || images.numel() == 0 {
        return Ok(images.shallow_clone());
    }
    acted.sort_unstable_by_key(|&(stage, image, _)| (stage, image));
    // All images, those of one stage next to each other and the untouched ones last, and the way back.
    let untouched = (0..ops.len()).filter(|&image| ops[image].is_none());
    let order: Vec<usize> = acted.iter().map(|&(_, image, _)| image).chain(untouched).collect();
    let mut indices = vec![0i64; 2 * order.len()];
    for (place, &image) in order.iter().enumerate() {
        indices[place] = image as i64;
        indices[order.len() + image] = place as i64;
    }
    let indices = upload(&indices, images.device())?.f_view([2, -1])?;
    let sorted = images.f_index_select(0, &indices.f_get(0)?)?;
    let mut start = 0;
    for group in acted.chunk_by(|one, next| one.0.joins(next.0)) {
        let ops: Vec<Op> = group.iter().map(|&(_, _, op)| op).collect();
        group[0].0.run(&sorted.f_narrow(0, start, ops.len() as i64)?, &ops)?;
        start += ops.len() as i64;
    }
    Ok(sorted.f_index_select(0, &indices.f_get(1)?)?)
}
