//! RandAugment in timm's version (`timm.data.auto_augment`).

use rand_chacha::ChaCha8Rng;
use run_record::TimmRandAugment;

use super::either_way;
use crate::augment::ops::{Filter, Op};
use crate::rng::{below, normal, unit};

/// The magnitude at which an operation is at the end of its range, unless its maximum lets it go beyond.
const FULL: f64 = 10.0;

/// A `magnitude_std` above this stands for magnitudes uniform from 0 to `magnitude`.
const UNIFORM_ABOVE: f64 = 100.0;

pub(super) fn draw_op(
    rand: &TimmRandAugment,
    rng: &mut ChaCha8Rng,
    height: i64,
    width: i64,
    fill: [u8; 3],
) -> Option<Op> {
    let choice = below(rng, 15);
    if unit(rng) >= rand.probability {
        return None;
    }
    Some(match choice {
        0 => Op::AutoContrast,
        1 => Op::Equalize,
        2 => Op::Invert,
        3 => Op::Posterize { bits: bits(rand, fraction(rand, rng)) },
        4 => Op::Solarize { threshold: threshold(rand, fraction(rand, rng)) },
        5 => Op::SolarizeAdd { add: (110.0 * fraction(rand, rng)).min(128.0) as u8 },
        6 => Op::Color { factor: factor(rand, rng) },
        7 => Op::Contrast { factor: factor(rand, rng) },
        8 => Op::Brightness { factor: factor(rand, rng) },
        9 => Op::Sharpness { factor: factor(rand, rng) },
        geometric => {
            let fraction = fraction(rand, rng);
            let way = either_way(rng, fraction);
            let filter = rand
                .filter
                .map(Filter::from)
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
fn fraction(rand: &TimmRandAugment, rng: &mut ChaCha8Rng) -> f64 {
    let magnitude = if rand.magnitude_std > UNIFORM_ABOVE {
        rand.magnitude * unit(rng)
    } else if rand.magnitude_std > 0.0 {
        rand.magnitude + rand.magnitude_std * normal(rng)
    } else {
        rand.magnitude
    };
    magnitude.max(0.0).min(rand.magnitude_max) / FULL
}

fn bits(rand: &TimmRandAugment, fraction: f64) -> u8 {
    let bits = (4.0 * fraction) as u8;
    if rand.increasing { 4u8.saturating_sub(bits) } else { bits.min(8) }
}

fn threshold(rand: &TimmRandAugment, fraction: f64) -> f32 {
    let threshold = (256.0 * fraction).trunc().min(256.0) as f32;
    if rand.increasing { 256.0 - threshold } else { threshold }
}

fn factor(rand: &TimmRandAugment, rng: &mut ChaCha8Rng) -> f32 {
    let fraction = fraction(rand, rng);
    let factor =
        if rand.increasing { (1.0 + either_way(rng, 0.9 * fraction)).max(0.1) } else { 1.8 * fraction + 0.1 };
    factor as f32
}
