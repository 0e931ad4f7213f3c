//! Random brightness, contrast, saturation and hue.

use rand_chacha::ChaCha8Rng;
use run_record::ColorJitter;

use crate::augment::ops::Op;
use crate::rng::{shuffle, unit};

/// Draws the operations for one image, in order of application: those with a strength above 0 in random
/// order, then `None`.
pub fn draw_jitter(jitter: &ColorJitter, rng: &mut ChaCha8Rng) -> [Option<Op>; 4] {
    let (mut ops, mut count) = ([None; 4], 0);
    let mut add = |op| {
        ops[count] = Some(op);
        count += 1;
    };
    if jitter.brightness > 0.0 {
        add(Op::Brightness { factor: factor(rng, jitter.brightness) });
    }
    if jitter.contrast > 0.0 {
        add(Op::Contrast { factor: factor(rng, jitter.contrast) });
    }
    if jitter.saturation > 0.0 {
        add(Op::Color { factor: factor(rng, jitter.saturation) });
    }
    if jitter.hue > 0.0 {
        let turn = jitter.hue * (2.0 * unit(rng) - 1.0);
        // Towards zero, then modulo 256, as PIL's hue has 256 steps and torchvision takes 255 for a turn.
        add(Op::Hue { shift: (255.0 * turn) as i32 as u8 });
    }
    shuffle(rng, &mut ops[..count]);
    ops
}

fn factor(rng: &mut ChaCha8Rng, strength: f64) -> f32 {
    let (low, high) = ((1.0 - strength).max(0.0), 1.0 + strength);
    (low + (high - low) * unit(rng)) as f32
}
