//! The published augmentation policies: which operations, with which parameters, an image goes through.
//!
//! Everything here is drawn on the host, from a generator that the caller keys per image; the operations
//! themselves are done elsewhere, to whole batches.

mod autoaugment;
mod jitter;
mod timm;
mod torchvision;

use rand_chacha::ChaCha8Rng;
use run_record::Policy;

use crate::augment::ops::Op;
use crate::rng::unit;

pub use jitter::draw_jitter;

/// Draws the operations for an image of `height` × `width` pixels, in order of application: as many as
/// there are [layers](Policy::layers), `None` where the image stays as it is.
///
/// `fill` lies beyond the border in timm's RandAugment: the data set's mean as timm rounds it, to
/// round(255·mean). The other policies have their own.
///
/// The operations are drawn while the iterator is consumed, so `rng` is best one that was made for this
/// image, as by [`keyed_rng`](crate::keyed_rng).
pub fn draw_ops(
    policy: &Policy,
    rng: &mut ChaCha8Rng,
    height: i64,
    width: i64,
    fill: [u8; 3],
) -> impl Iterator<Item = Option<Op>> {
    let policy = *policy;
    let pair = match policy {
        Policy::AutoAugmentCifar10 => autoaugment::draw_pair(rng),
        _ => 0,
    };
    (0..policy.layers()).map(move |layer| match &policy {
        Policy::RandAugment(rand) => timm::draw_op(rand, rng, height, width, fill),
        Policy::TorchvisionRandAugment { magnitude, .. } => {
            torchvision::rand_augment(*magnitude, rng, height, width)
        }
        Policy::TrivialAugment => torchvision::trivial_augment(rng, height, width),
        Policy::AutoAugmentCifar10 => autoaugment::draw_op(pair, layer, rng, height, width),
    })
}

/// `value` or −`value`, equally likely.
fn either_way(rng: &mut ChaCha8Rng, value: f64) -> f64 {
    if unit(rng) < 0.5 { -value } else { value }
}
