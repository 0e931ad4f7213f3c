//! RandAugment and TrivialAugment in torchvision's versions (`torchvision.transforms.autoaugment`).

use rand_chacha::ChaCha8Rng;

use super::either_way;
use crate::augment::ops::{Filter, Op};
use crate::rng::below;

/// Magnitudes run from 0 to this.
const STRONGEST: u8 = 30;

const BLACK: [u8; 3] = [0; 3];

/// What the operations come to at the strongest magnitude.
struct Ends {
    /// Of colour, contrast, brightness and sharpness, away from 1.
    factor: f64,
    /// Bits that are lost.
    bits: f32,
    degrees: f64,
    shear: f64,
    /// Pixels up or down, and left or right.
    moved: [f64; 2],
}

/// One of 14 operations of the same magnitude for all images.
pub(super) fn rand_augment(magnitude: u8, rng: &mut ChaCha8Rng, height: i64, width: i64) -> Option<Op> {
    let moved = [height, width].map(|side| 150.0 / 331.0 * side as f64);
    let ends = Ends { factor: 0.9, bits: 4.0, degrees: 30.0, shear: 0.3, moved };
    draw_op(&ends, magnitude, rng, height, width)
}

/// One of 14 operations, of any magnitude.
pub(super) fn trivial_augment(rng: &mut ChaCha8Rng, height: i64, width: i64) -> Option<Op> {
    let ends = Ends { factor: 0.99, bits: 6.0, degrees: 135.0, shear: 0.99, moved: [32.0; 2] };
    let magnitude = below(rng, u64::from(STRONGEST) + 1) as u8;
    draw_op(&ends, magnitude, rng, height, width)
}

fn draw_op(ends: &Ends, magnitude: u8, rng: &mut ChaCha8Rng, height: i64, width: i64) -> Option<Op> {
    let scale = |end: f64| linspace(0.0, end, magnitude);
    // torchvision moves the image by whole pixels, Op the place it is read from: the other way, which is as
    // likely.
    let [down, right] = ends.moved.map(|pixels| scale(pixels).trunc());
    let filter = Filter::Nearest;
    let factor = |rng: &mut ChaCha8Rng| (1.0 + either_way(rng, scale(ends.factor))) as f32;
    let lost = (f32::from(magnitude) / (f32::from(STRONGEST) / ends.bits)).round() as u8;
    Some(match below(rng, 14) {
        0 => return None,
        1 => Op::AutoContrast,
        2 => Op::Equalize,
        3 => Op::Posterize { bits: 8u8.saturating_sub(lost) },
        4 => Op::Solarize { threshold: linspace(255.0, 0.0, magnitude) as f32 },
        5 => Op::Color { factor: factor(rng) },
        6 => Op::Contrast { factor: factor(rng) },
        7 => Op::Brightness { factor: factor(rng) },
        8 => Op::Sharpness { factor: factor(rng) },
        9 => Op::rotate(either_way(rng, scale(ends.degrees)), height, width, filter, BLACK),
        10 => Op::shear_x(either_way(rng, scale(ends.shear)), filter, BLACK),
        11 => Op::shear_y(either_way(rng, scale(ends.shear)), filter, BLACK),
        12 => Op::translate_x(either_way(rng, right), filter, BLACK),
        _ => Op::translate_y(either_way(rng, down), filter, BLACK),
    })
}

/// `torch.linspace(start, end, 31)[index]`: single precision, in which a translation may just miss a whole
/// pixel, and counted from the nearer end.
fn linspace(start: f64, end: f64, index: u8) -> f64 {
    let step = f64::from((end as f32 - start as f32) / f32::from(STRONGEST));
    let value = if index < 15 {
        start + step * f64::from(index)
    } else {
        f64::from(end as f32) - step * (f64::from(STRONGEST) - f64::from(index))
    };
    f64::from(value as f32)
}
