//! The operations on bytes that the papers' augmentation policies are made of, by PIL's names and to
//! PIL's definitions.

use run_record::Interpolation;

use crate::error::DataError;

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

    /// Whether the parameters are in their ranges.
    pub(crate) fn check(&self) -> Result<(), DataError> {
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
}
