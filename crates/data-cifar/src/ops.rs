//! The operations on bytes that the papers' augmentation policies are made of, by PIL's names and to
//! PIL's definitions, done to whole batches on the device.

use run_record::Interpolation;
use tch::{Kind, Tensor};

use crate::colour;
use crate::device::upload;
use crate::error::DataError;
use crate::warp::{self, Motion, Warp};

/// How an image is sampled between its pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Filter {
    /// The pixel it falls into.
    Nearest,
    /// Two pixels along each axis, by their distance.
    Bilinear,
    /// Four pixels along each axis, by Keys's cubic with a = −1, as in PIL's transforms (its resizing has −1/2).
    Bicubic,
}

impl From<Interpolation> for Filter {
    fn from(interpolation: Interpolation) -> Self {
        match interpolation {
            Interpolation::Bilinear => Self::Bilinear,
            Interpolation::Bicubic => Self::Bicubic,
        }
    }
}

/// One operation on one image of bytes, with its parameters.
///
/// Values are on the scale 0 to 255. Factors are those of PIL's `ImageEnhance`: 1 changes nothing, 0 goes all
/// the way to black, grey or blurred, and above 1 goes away from it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    /// Stretches each channel's values to 0 to 255 (`ImageOps.autocontrast` without cut-off).
    AutoContrast,
    /// Makes each channel's histogram flat (`ImageOps.equalize`).
    Equalize,
    /// 255 − x.
    Invert,
    /// Keeps the upper `bits` bits, 0 to 8; with 0, which later versions of PIL refuse, the image is black.
    Posterize {
        /// How many.
        bits: u8,
    },
    /// Inverts values from `threshold` on.
    Solarize {
        /// 0 to 256.
        threshold: f32,
    },
    /// Adds to values below 128, up to 255.
    SolarizeAdd {
        /// How much, 0 to 255.
        add: u8,
    },
    /// Mixes with black.
    Brightness {
        /// 0 or more.
        factor: f32,
    },
    /// Mixes with the image's mean grey.
    Contrast {
        /// 0 or more.
        factor: f32,
    },
    /// Mixes with the grey image.
    Color {
        /// 0 or more.
        factor: f32,
    },
    /// Mixes with the smoothed image.
    Sharpness {
        /// 0 or more.
        factor: f32,
    },
    /// Adds to the hue of PIL's HSV, modulo 256 (torchvision's `adjust_hue` of PIL images, in steps of 1/255 turn).
    Hue {
        /// How much.
        shift: u8,
    },
    /// Output pixel (x, y) shows input (a·x + b·y + c, d·x + e·y + f), measured in pixels from the upper left
    /// corner with centres at one half (`Image.transform` with `AFFINE`).
    Affine {
        /// a, b, c, d, e, f.
        matrix: [f64; 6],
        /// How the input is sampled.
        filter: Filter,
        /// Red, green and blue of what lies beyond the border.
        fill: [u8; 3],
    },
}

impl Op {
    /// Turns counter-clockwise about the centre of an image of `height`×`width` pixels (`Image.rotate`).
    pub fn rotate(degrees: f64, height: i64, width: i64, filter: Filter, fill: [u8; 3]) -> Self {
        let radians = -degrees.rem_euclid(360.0).to_radians();
        // To 15 decimals, as PIL rounds, so that quarter turns are exact.
        let round = |number: f64| (number * 1e15).round() / 1e15;
        let [a, b, d, e] = [radians.cos(), radians.sin(), -radians.sin(), radians.cos()].map(round);
        let (x, y) = (width as f64 / 2.0, height as f64 / 2.0);
        let matrix = [a, b, (a * -x + b * -y) + x, d, e, (d * -x + e * -y) + y];
        Self::Affine { matrix, filter, fill }
    }

    /// Pixel (x, y) shows (x + `factor`·y, y).
    pub fn shear_x(factor: f64, filter: Filter, fill: [u8; 3]) -> Self {
        Self::Affine { matrix: [1.0, factor, 0.0, 0.0, 1.0, 0.0], filter, fill }
    }

    /// Pixel (x, y) shows (x, y + `factor`·x).
    pub fn shear_y(factor: f64, filter: Filter, fill: [u8; 3]) -> Self {
        Self::Affine { matrix: [1.0, 0.0, 0.0, factor, 1.0, 0.0], filter, fill }
    }

    /// Pixel (x, y) shows (x + `pixels`, y): the picture moves to the left.
    pub fn translate_x(pixels: f64, filter: Filter, fill: [u8; 3]) -> Self {
        Self::Affine { matrix: [1.0, 0.0, pixels, 0.0, 1.0, 0.0], filter, fill }
    }

    /// Pixel (x, y) shows (x, y + `pixels`): the picture moves up.
    pub fn translate_y(pixels: f64, filter: Filter, fill: [u8; 3]) -> Self {
        Self::Affine { matrix: [1.0, 0.0, 0.0, 0.0, 1.0, pixels], filter, fill }
    }

    fn check(&self) -> Result<(), DataError> {
        let wrong = |what: String| Err(DataError::Argument(what));
        match *self {
            Self::Posterize { bits } if bits > 8 => wrong(format!("posterize keeps 0 to 8 bits, not {bits}")),
            Self::Solarize { threshold } if !(0.0..=256.0).contains(&threshold) => {
                wrong(format!("the threshold of solarize is 0 to 256, not {threshold}"))
            }
            Self::Brightness { factor }
            | Self::Contrast { factor }
            | Self::Color { factor }
            | Self::Sharpness { factor }
                if !(factor >= 0.0 && factor.is_finite()) =>
            {
                wrong(format!("a factor must be a number from 0 on, not {factor}"))
            }
            Self::Affine { matrix, .. } if !matrix.iter().all(|number| number.is_finite()) => {
                wrong(format!("an affine transform takes finite numbers, not {matrix:?}"))
            }
            _ => Ok(()),
        }
    }

    fn stage(&self) -> Stage {
        match *self {
            Self::AutoContrast => Stage::LookUp(0),
            Self::Equalize => Stage::LookUp(1),
            Self::Invert
            | Self::Posterize { .. }
            | Self::Solarize { .. }
            | Self::SolarizeAdd { .. }
            | Self::Brightness { .. } => Stage::LookUp(2),
            Self::Color { .. } => Stage::Blend(0),
            Self::Contrast { .. } => Stage::Blend(1),
            Self::Sharpness { .. } => Stage::Blend(2),
            Self::Hue { .. } => Stage::Hue,
            Self::Affine { matrix, filter, fill } => Stage::Warp(Warp { matrix, filter, fill }.motion()),
        }
    }
}

/// What is done to images together. The number is their order within.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    LookUp(u8),
    Blend(u8),
    Hue,
    Warp(Motion),
}

impl Stage {
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
    let shape = images.size();
    if images.kind() != Kind::Uint8 || shape.len() != 4 || shape[1] != 3 || shape[0] != ops.len() as i64 {
        return Err(DataError::Argument(format!(
            "{} operations need as many images of bytes [B, 3, H, W], not {:?} {shape:?}",
            ops.len(),
            images.kind()
        )));
    }
    ops.iter().flatten().try_for_each(Op::check)?;
    let mut acted: Vec<(Stage, usize, Op)> =
        ops.iter().enumerate().filter_map(|(image, op)| op.map(|op| (op.stage(), image, op))).collect();
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
