//! AutoAugment's policy for CIFAR-10 (arXiv:1805.09501, table 7) as SHI-Labs/Compact-Transformers does it.

use rand_chacha::ChaCha8Rng;

use super::either_way;
use crate::augment::ops::{Filter, Op};
use crate::rng::{below, unit};

const GREY: [u8; 3] = [128; 3];

#[derive(Clone, Copy)]
enum Kind {
    AutoContrast,
    Brightness,
    Color,
    Contrast,
    Equalize,
    Invert,
    Posterize,
    Rotate,
    Sharpness,
    ShearY,
    Solarize,
    TranslateX,
    TranslateY,
}

use Kind::*;

/// Operation, probability and level, 0 to 9, of the first and the second operation.
#[rustfmt::skip]
const PAIRS: [[(Kind, f64, u8); 2]; 25] = [
    [(Invert, 0.1, 7), (Contrast, 0.2, 6)],
    [(Rotate, 0.7, 2), (TranslateX, 0.3, 9)],
    [(Sharpness, 0.8, 1), (Sharpness, 0.9, 3)],
    [(ShearY, 0.5, 8), (TranslateY, 0.7, 9)],
    [(AutoContrast, 0.5, 8), (Equalize, 0.9, 2)],
    [(ShearY, 0.2, 7), (Posterize, 0.3, 7)],
    [(Color, 0.4, 3), (Brightness, 0.6, 7)],
    [(Sharpness, 0.3, 9), (Brightness, 0.7, 9)],
    [(Equalize, 0.6, 5), (Equalize, 0.5, 1)],
    [(Contrast, 0.6, 7), (Sharpness, 0.6, 5)],
    [(Color, 0.7, 7), (TranslateX, 0.5, 8)],
    [(Equalize, 0.3, 7), (AutoContrast, 0.4, 8)],
    [(TranslateY, 0.4, 3), (Sharpness, 0.2, 6)],
    [(Brightness, 0.9, 6), (Color, 0.2, 8)],
    [(Solarize, 0.5, 2), (Invert, 0.0, 3)],
    [(Equalize, 0.2, 0), (AutoContrast, 0.6, 0)],
    [(Equalize, 0.2, 8), (Equalize, 0.6, 4)],
    [(Color, 0.9, 9), (Equalize, 0.6, 6)],
    [(AutoContrast, 0.8, 4), (Solarize, 0.2, 8)],
    [(Brightness, 0.1, 3), (Color, 0.7, 0)],
    [(Solarize, 0.4, 5), (AutoContrast, 0.9, 3)],
    [(TranslateY, 0.9, 9), (TranslateY, 0.7, 9)],
    [(AutoContrast, 0.9, 2), (Solarize, 0.8, 3)],
    [(Equalize, 0.8, 8), (Invert, 0.1, 3)],
    [(TranslateY, 0.7, 9), (AutoContrast, 0.9, 1)],
];

/// Which of the 25 pairs.
pub(super) fn draw_pair(rng: &mut ChaCha8Rng) -> usize {
    below(rng, PAIRS.len() as u64) as usize
}

/// Operation `layer`, 0 or 1, of a pair.
pub(super) fn draw_op(
    pair: usize,
    layer: usize,
    rng: &mut ChaCha8Rng,
    height: i64,
    width: i64,
) -> Option<Op> {
    let (kind, probability, level) = PAIRS[pair][layer];
    if unit(rng) >= probability {
        return None;
    }
    let fraction = f64::from(level) / 9.0;
    let mut factor = || (1.0 + either_way(rng, 0.9 * fraction)) as f32;
    let nearest = Filter::Nearest;
    Some(match kind {
        AutoContrast => Op::AutoContrast,
        Equalize => Op::Equalize,
        Invert => Op::Invert,
        Posterize => Op::Posterize { bits: (8.0 - 4.0 * fraction).round() as u8 },
        Solarize => Op::Solarize { threshold: (256.0 - 256.0 * fraction) as f32 },
        Brightness => Op::Brightness { factor: factor() },
        Color => Op::Color { factor: factor() },
        Contrast => Op::Contrast { factor: factor() },
        Sharpness => Op::Sharpness { factor: factor() },
        Rotate => Op::rotate(30.0 * fraction, height, width, nearest, GREY),
        ShearY => Op::shear_y(either_way(rng, 0.3 * fraction), Filter::Bicubic, GREY),
        TranslateX => {
            Op::translate_x(either_way(rng, 150.0 / 331.0 * fraction * width as f64), nearest, GREY)
        }
        TranslateY => {
            Op::translate_y(either_way(rng, 150.0 / 331.0 * fraction * height as f64), nearest, GREY)
        }
    })
}
