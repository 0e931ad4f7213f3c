//! RandAugment in timm's version (`timm.data.auto_augment`).

use std::fmt;

use rand_chacha::ChaCha8Rng;

use super::{Setting, either_way, number};
use crate::augment::ops::{Filter, Op};
use crate::rng::{below, normal, unit};

/// The magnitude at which an operation is at the end of its range, unless `magnitude_max` lets it go beyond.
const FULL: f64 = 10.0;

/// A `magnitude_std` above this stands for magnitudes uniform from 0 to `magnitude`.
const UNIFORM_ABOVE: f64 = 100.0;

/// RandAugment (arXiv:1909.13719) as timm's `rand_augment_transform` does it.
///
/// Each layer draws one of 15 operations, all equally likely and with replacement, and does it with
/// probability `probability`. With f the magnitude over 10, the operations are AutoContrast, Equalize,
/// Invert, Rotate by 30f degrees, Posterize to ⌊4f⌋ bits, Solarize from ⌊256f⌋ on, SolarizeAdd of ⌊110f⌋ but
/// at most 128, Color, Contrast, Brightness and Sharpness with factor 0.1 + 1.8f, ShearX and ShearY by 0.3f,
/// TranslateX and TranslateY by 0.45f of the side. Rotations, shears and translations go either way. If
/// `increasing`, Posterize keeps 4 − ⌊4f⌋ bits, Solarize starts from 256 − ⌊256f⌋, and the four factors are 1
/// ± 0.9f but at least 0.1.
///
/// Bits are held between 0 and 8. With 0 the image becomes black, as in the Pillow versions that timm was
/// written for; Pillow 13 refuses 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimmRandAugment {
    /// Mean of the magnitudes (`m`), 0 to 100. timm's text has whole numbers only.
    pub magnitude: f64,
    /// Their standard deviation (`mstd`), 0 to 1000. Above 100 magnitudes are uniform from 0 to `magnitude`.
    pub magnitude_std: f64,
    /// Magnitudes drawn above are lowered to this one (`mmax`), 1 to 100; those below 0 become 0.
    pub magnitude_max: f64,
    /// Operations per image (`n`), 1 to 16.
    pub num_layers: usize,
    /// With which each operation is done (`p`), 0 to 1.
    pub probability: f64,
    /// Whether all operations grow stronger with the magnitude (`inc`).
    pub increasing: bool,
    /// How rotations, shears and translations sample; if not given, bilinear and bicubic are equally likely.
    /// No part of timm's text: it follows from the interpolation of its training images.
    pub filter: Option<Filter>,
}

/// What timm's `rand` without settings means.
impl Default for TimmRandAugment {
    fn default() -> Self {
        Self {
            magnitude: FULL,
            magnitude_std: 0.0,
            magnitude_max: FULL,
            num_layers: 2,
            probability: 0.5,
            increasing: false,
            filter: None,
        }
    }
}

impl TimmRandAugment {
    pub(super) fn from_settings(settings: &[Setting]) -> Result<Self, String> {
        let mut rand = Self::default();
        for &setting in settings {
            match setting.0 {
                "m" => rand.magnitude = number(setting, 0.0..=100.0)?,
                "n" => rand.num_layers = number(setting, 1..=16)?,
                "p" => rand.probability = number(setting, 0.0..=1.0)?,
                "mstd" => rand.magnitude_std = number(setting, 0.0..=1000.0)?,
                "mmax" => rand.magnitude_max = number(setting, 1.0..=100.0)?,
                "inc" => rand.increasing = number(setting, 0..=1)? == 1,
                key => return Err(format!("{key:?} is not known; there are m, n, p, mstd, mmax and inc")),
            }
        }
        Ok(rand)
    }

    pub(super) fn draw_op(&self, rng: &mut ChaCha8Rng, height: i64, width: i64, fill: [u8; 3]) -> Option<Op> {
        let choice = below(rng, 15);
        if unit(rng) >= self.probability {
            return None;
        }
        Some(match choice {
            0 => Op::AutoContrast,
            1 => Op::Equalize,
            2 => Op::Invert,
            3 => Op::Posterize { bits: self.bits(self.fraction(rng)) },
            4 => Op::Solarize { threshold: self.threshold(self.fraction(rng)) },
            5 => Op::SolarizeAdd { add: (110.0 * self.fraction(rng)).min(128.0) as u8 },
            6 => Op::Color { factor: self.factor(rng) },
            7 => Op::Contrast { factor: self.factor(rng) },
            8 => Op::Brightness { factor: self.factor(rng) },
            9 => Op::Sharpness { factor: self.factor(rng) },
            geometric => {
                let fraction = self.fraction(rng);
                let way = either_way(rng, fraction);
                let filter = self
                    .filter
                    .unwrap_or_else(|| if unit(rng) < 0.5 { Filter::Bilinear } else { Filter::Bicubic });
                match geometric {
                    10 => Op::rotate(30.0 * way, height, width, filter, fill),
                    11 => Op::shear_x(0.3 * way, filter, fill),
                    12 => Op::shear_y(0.3 * way, filter, fill),
                    13 => Op::translate_x(0.45 * way * width as f64, filter, fill),
                    _ => Op::translate_y(0.45 * way * height as f64, filter, fill),
                }
            }
        })
    }

    /// A magnitude over 10.
    fn fraction(&self, rng: &mut ChaCha8Rng) -> f64 {
        let magnitude = if self.magnitude_std > UNIFORM_ABOVE {
            self.magnitude * unit(rng)
        } else if self.magnitude_std > 0.0 {
            self.magnitude + self.magnitude_std * normal(rng)
        } else {
            self.magnitude
        };
        magnitude.max(0.0).min(self.magnitude_max) / FULL
    }

    fn bits(&self, fraction: f64) -> u8 {
        let bits = (4.0 * fraction) as u8;
        if self.increasing { 4u8.saturating_sub(bits) } else { bits.min(8) }
    }

    fn threshold(&self, fraction: f64) -> f32 {
        let threshold = (256.0 * fraction).trunc().min(256.0) as f32;
        if self.increasing { 256.0 - threshold } else { threshold }
    }

    fn factor(&self, rng: &mut ChaCha8Rng) -> f32 {
        let fraction = self.fraction(rng);
        let factor = if self.increasing {
            (1.0 + either_way(rng, 0.9 * fraction)).max(0.1)
        } else {
            1.8 * fraction + 0.1
        };
        factor as f32
    }
}

impl fmt::Display for TimmRandAugment {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let default = Self::default();
        write!(f, "rand-m{}", self.magnitude)?;
        if self.num_layers != default.num_layers {
            write!(f, "-n{}", self.num_layers)?;
        }
        for (key, value, default) in [
            ("p", self.probability, default.probability),
            ("mstd", self.magnitude_std, default.magnitude_std),
            ("mmax", self.magnitude_max, default.magnitude_max),
        ] {
            if value != default {
                write!(f, "-{key}{value}")?;
            }
        }
        if self.increasing { f.write_str("-inc1") } else { Ok(()) }
    }
}
