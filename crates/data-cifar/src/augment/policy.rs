//! The published augmentation policies: which operations, with which parameters, an image goes through.
//!
//! Everything here is drawn on the host, from a generator that the caller keys per image; the operations
//! themselves are done elsewhere, to whole batches.

mod autoaugment;
mod jitter;
mod timm;
mod torchvision;

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use rand_chacha::ChaCha8Rng;

use crate::augment::ops::Op;
use crate::error::DataError;
use crate::rng::unit;

pub use jitter::ColorJitter;
pub use timm::TimmRandAugment;

/// A rule by which a few operations are drawn for each image.
///
/// | policy | operations | beyond the border |
/// | --- | --- | --- |
/// | `rand-m9-mstd0.5-inc1` | [`TimmRandAugment`] | the data set's mean |
/// | `torchvision-n2-m12` | torchvision's `RandAugment` | black |
/// | `cifar10` | AutoAugment's sub-policies for CIFAR-10 | grey, 128 |
///
/// Only the first uses the `fill` that [`draw`](Policy::draw) is given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Policy {
    /// RandAugment as timm does it.
    RandAugment(TimmRandAugment),
    /// RandAugment (arXiv:1909.13719) as `torchvision.transforms.RandAugment` does it to PIL images, with its
    /// 31 magnitudes and nearest pixels: operations are drawn with replacement from 14, of which one is to do
    /// nothing, and are always done. Those with a direction go either way.
    TorchvisionRandAugment {
        /// Operations per image, 1 to 16.
        num_ops: usize,
        /// 0 to 30; 30 is the strongest.
        magnitude: u8,
    },
    /// AutoAugment's policy for CIFAR-10 (arXiv:1805.09501): one of 25 pairs of operations, each with a
    /// probability and a strength, as SHI-Labs/Compact-Transformers does it (`examples/utils/autoaug.py`).
    ///
    /// Rotation goes one way only, counter-clockwise; all else that has a direction goes either way. Shears
    /// are bicubic, rotations and translations take the nearest pixel. `torchvision.transforms.AutoAugment`
    /// differs: it turns either way, translates by whole pixels, shears by the nearest pixel, solarizes from
    /// 255 − 255·level/9 instead of 256 − 256·level/9 on, and fills with black.
    AutoAugmentCifar10,
}

impl Policy {
    /// Reads `rand-…`, `torchvision-…` or `cifar10`.
    ///
    /// After `rand` follow timm's settings in any order, each at most once, separated by dashes:
    /// `m` magnitude (0 to 100, 10 if not given), `n` operations per image (1 to 16, 2), `p` probability of
    /// each (0 to 1, 0.5), `mstd` standard deviation of the magnitude (0 to 1000, 0; above 100 it is uniform
    /// from 0 to `m`), `mmax` upper bound of the magnitude (1 to 100, 10), `inc` 1 for operations that all
    /// grow stronger with the magnitude (0 or 1, 0). After `torchvision` follow `n` (1 to 16, 2) and `m`
    /// (whole, 0 to 30, 9). timm's sets of operations by name (`t`) are not known here.
    ///
    /// # Errors
    /// When the text is none of these; the error names the setting that is unknown, given twice, malformed or
    /// out of range, where timm passes over some of these.
    pub fn parse(text: &str) -> Result<Policy, DataError> {
        let (name, settings) = text.split_once('-').map_or((text, None), |(name, rest)| (name, Some(rest)));
        let settings = settings.map_or(Ok(Vec::new()), split_settings);
        let policy = settings.and_then(|settings| match name {
            "rand" => Ok(Policy::RandAugment(TimmRandAugment::from_settings(&settings)?)),
            "torchvision" => torchvision::from_settings(&settings),
            "cifar10" => match settings.first() {
                None => Ok(Policy::AutoAugmentCifar10),
                Some((key, _)) => Err(format!("{key:?} given, and cifar10 has no settings")),
            },
            _ => Err(format!("{name:?} is not known; there are rand, torchvision and cifar10")),
        });
        policy.map_err(|why| DataError::Argument(format!("augmentation policy {text:?}: {why}")))
    }

    /// How many operations an image goes through at most, 1 to 16.
    pub fn layers(&self) -> usize {
        match self {
            Policy::RandAugment(rand) => rand.num_layers,
            Policy::TorchvisionRandAugment { num_ops, .. } => *num_ops,
            Policy::AutoAugmentCifar10 => 2,
        }
    }

    /// Draws the operations for an image of `height` × `width` pixels, in order of application: as many as
    /// there are [layers](Policy::layers), `None` where the image stays as it is.
    ///
    /// `fill` lies beyond the border in timm's RandAugment: the data set's mean as timm rounds it, to
    /// round(255·mean). The other policies have their own.
    ///
    /// The operations are drawn while the iterator is consumed, so `rng` is best one that was made for this
    /// image, as by [`keyed_rng`](crate::keyed_rng).
    pub fn draw(
        &self,
        rng: &mut ChaCha8Rng,
        height: i64,
        width: i64,
        fill: [u8; 3],
    ) -> impl Iterator<Item = Option<Op>> {
        let policy = *self;
        let pair = match policy {
            Policy::AutoAugmentCifar10 => autoaugment::draw_pair(rng),
            _ => 0,
        };
        (0..policy.layers()).map(move |layer| match &policy {
            Policy::RandAugment(rand) => rand.draw_op(rng, height, width, fill),
            Policy::TorchvisionRandAugment { magnitude, .. } => {
                torchvision::draw_op(*magnitude, rng, height, width)
            }
            Policy::AutoAugmentCifar10 => autoaugment::draw_op(pair, layer, rng, height, width),
        })
    }
}

/// The text that [`Policy::parse`] reads; settings with their default values are left out, but for magnitudes
/// and torchvision's number of operations.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Policy::RandAugment(rand) => rand.fmt(f),
            Policy::TorchvisionRandAugment { num_ops, magnitude } => {
                write!(f, "torchvision-n{num_ops}-m{magnitude}")
            }
            Policy::AutoAugmentCifar10 => f.write_str("cifar10"),
        }
    }
}

/// A setting's key and its value, which starts at the first digit.
type Setting<'a> = (&'a str, &'a str);

fn split_settings(text: &str) -> Result<Vec<Setting<'_>>, String> {
    let mut settings: Vec<Setting> = Vec::new();
    for section in text.split('-') {
        let digits = section.find(|c: char| c.is_ascii_digit());
        let Some((key, value)) = digits.map(|start| section.split_at(start)) else {
            return Err(format!("{section:?} has no number"));
        };
        if settings.iter().any(|&(known, _)| known == key) {
            return Err(format!("{key:?} is given twice"));
        }
        settings.push((key, value));
    }
    Ok(settings)
}

fn number<T>((key, value): Setting, range: RangeInclusive<T>) -> Result<T, String>
where
    T: FromStr + PartialOrd + fmt::Display,
{
    value.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
        format!("{key} is {value:?} and must be a number from {} to {}", range.start(), range.end())
    })
}

/// `value` or −`value`, equally likely.
fn either_way(rng: &mut ChaCha8Rng, value: f64) -> f64 {
    if unit(rng) < 0.5 { -value } else { value }
}
