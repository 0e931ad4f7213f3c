//! Random brightness, contrast, saturation and hue.

use rand_chacha::ChaCha8Rng;

use crate::augment::ops::Op;
use crate::error::DataError;
use crate::rng::{shuffle, unit};

/// `torchvision.transforms.ColorJitter` for PIL images, which is timm's `color_jitter` too: one number c
/// there stands for brightness, contrast and saturation of c, and no hue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ColorJitter {
    brightness: f64,
    contrast: f64,
    saturation: f64,
    hue: f64,
}

impl ColorJitter {
    /// The factors of the first three are uniform from max(0, 1 − strength) to 1 + strength; the hue is
    /// turned by −`hue` to `hue` of a full turn. What has strength 0 is left out.
    ///
    /// # Errors
    /// When one of the first three is not from 0 to 100, or `hue` not from 0 to 0.5.
    pub fn new(brightness: f64, contrast: f64, saturation: f64, hue: f64) -> Result<Self, DataError> {
        for (name, strength, max) in [
            ("brightness", brightness, 100.0),
            ("contrast", contrast, 100.0),
            ("saturation", saturation, 100.0),
            ("hue", hue, 0.5),
        ] {
            if !(0.0..=max).contains(&strength) {
                return Err(DataError::Argument(format!(
                    "colour jitter: {name} is {strength} and must be from 0 to {max}"
                )));
            }
        }
        Ok(Self { brightness, contrast, saturation, hue })
    }

    /// Draws the operations for one image, in order of application: those with a strength above 0 in random
    /// order, then `None`.
    pub fn draw(&self, rng: &mut ChaCha8Rng) -> [Option<Op>; 4] {
        let (mut ops, mut count) = ([None; 4], 0);
        let mut add = |op| {
            ops[count] = Some(op);
            count += 1;
        };
        if self.brightness > 0.0 {
            add(Op::Brightness { factor: factor(rng, self.brightness) });
        }
        if self.contrast > 0.0 {
            add(Op::Contrast { factor: factor(rng, self.contrast) });
        }
        if self.saturation > 0.0 {
            add(Op::Color { factor: factor(rng, self.saturation) });
        }
        if self.hue > 0.0 {
            let turn = self.hue * (2.0 * unit(rng) - 1.0);
            // Towards zero, then modulo 256, as PIL's hue has 256 steps and torchvision takes 255 for a turn.
            add(Op::Hue { shift: (255.0 * turn) as i32 as u8 });
        }
        shuffle(rng, &mut ops[..count]);
        ops
    }
}

fn factor(rng: &mut ChaCha8Rng, strength: f64) -> f32 {
    let (low, high) = ((1.0 - strength).max(0.0), 1.0 + strength);
    (low + (high - low) * unit(rng)) as f32
}
