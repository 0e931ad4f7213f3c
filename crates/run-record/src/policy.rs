//! The published augmentation policies by name, with their settings.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::data::Interpolation;

/// A rule by which a few operations are drawn for each image.
///
/// | policy | operations | beyond the border |
/// | --- | --- | --- |
/// | `rand-m9-mstd0.5-inc1` | [`TimmRandAugment`] | the data set's mean |
/// | `torchvision-n2-m12` | torchvision's `RandAugment` | black |
/// | `trivialaugment` | torchvision's `TrivialAugmentWide` | black |
/// | `cifar10` | AutoAugment's sub-policies for CIFAR-10 | grey, 128 |
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
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
    /// TrivialAugment (arXiv:2103.10158) as `torchvision.transforms.TrivialAugmentWide` does it to PIL images: one
    /// operation of the 14 with one of 31 magnitudes, all equally likely, over wider ranges.
    TrivialAugment,
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
    /// Reads `rand-…`, `torchvision-…`, `trivialaugment` or `cifar10`.
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
    pub fn parse(text: &str) -> Result<Policy, String> {
        let (name, settings) = text.split_once('-').map_or((text, None), |(name, rest)| (name, Some(rest)));
        let settings = settings.map_or(Ok(Vec::new()), split_settings);
        let policy = settings.and_then(|settings| match name {
            "rand" => Ok(Policy::RandAugment(TimmRandAugment::from_settings(&settings)?)),
            "torchvision" => torchvision(&settings),
            "trivialaugment" => without(&settings, Policy::TrivialAugment),
            "cifar10" => without(&settings, Policy::AutoAugmentCifar10),
            _ => {
                Err(format!("{name:?} is not known; there are rand, torchvision, trivialaugment and cifar10"))
            }
        });
        policy.map_err(|why| format!("augmentation policy {text:?}: {why}"))
    }

    /// How many operations an image goes through at most, 1 to 16.
    pub fn layers(&self) -> usize {
        match self {
            Policy::RandAugment(rand) => rand.num_layers,
            Policy::TorchvisionRandAugment { num_ops, .. } => *num_ops,
            Policy::TrivialAugment => 1,
            Policy::AutoAugmentCifar10 => 2,
        }
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
            Policy::TrivialAugment => f.write_str("trivialaugment"),
            Policy::AutoAugmentCifar10 => f.write_str("cifar10"),
        }
    }
}

impl TryFrom<String> for Policy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<Policy> for String {
    fn from(policy: Policy) -> Self {
        policy.to_string()
    }
}

/// The magnitude at which an operation of timm's is at the end of its range, unless `magnitude_max` lets it go beyond.
const FULL: f64 = 10.0;

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
    pub filter: Option<Interpolation>,
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
    fn from_settings(settings: &[Setting]) -> Result<Self, String> {
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

/// torchvision's settings.
fn torchvision(settings: &[Setting]) -> Result<Policy, String> {
    let (mut num_ops, mut magnitude) = (2, 9);
    for &setting in settings {
        match setting.0 {
            "n" => num_ops = number(setting, 1..=16)?,
            "m" => magnitude = number(setting, 0..=30)?,
            key => return Err(format!("{key:?} is not known; there are n and m")),
        }
    }
    Ok(Policy::TorchvisionRandAugment { num_ops, magnitude })
}

/// A policy that has no settings.
fn without(settings: &[Setting], policy: Policy) -> Result<Policy, String> {
    match settings.first() {
        None => Ok(policy),
        Some((key, _)) => Err(format!("{key:?} given, and {policy} has no settings")),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_given_back() {
        for text in [
            "rand-m9-mstd0.5-inc1",
            "rand-m7-n3-p0.25-mstd101-mmax30-inc1",
            "rand-m5.5",
            "torchvision-n2-m12",
            "trivialaugment",
            "cifar10",
        ] {
            assert_eq!(Policy::parse(text).unwrap().to_string(), text);
        }
        let same = |a: &str, b: &str| assert_eq!(Policy::parse(a).unwrap(), Policy::parse(b).unwrap());
        same("rand", "rand-m10-n2-p0.5-mstd0-mmax10-inc0");
        same("rand-inc1-mstd0.5-m9", "rand-m9-mstd0.5-inc1");
        same("torchvision", "torchvision-m9-n2");
    }

    #[test]
    fn an_error_names_what_is_wrong() {
        for (text, part) in [
            ("", "\"\" is not known"),
            ("augmix-m3", "\"augmix\""),
            ("rand-x3", "\"x\" is not known"),
            ("rand-tweights", "\"tweights\" has no number"),
            ("rand-t3a", "\"t\" is not known"),
            ("rand--m9", "\"\" has no number"),
            ("rand-m9-inc", "\"inc\" has no number"),
            ("rand-m9-m8", "\"m\" is given twice"),
            ("rand-m9x", "m is \"9x\""),
            ("rand-m101", "m is \"101\" and must be a number from 0 to 100"),
            ("rand-mstd0.5.5", "mstd is \"0.5.5\""),
            ("rand-mstdinf", "\"mstdinf\" has no number"),
            ("rand-mstd1e999", "mstd is \"1e999\""),
            ("rand-n0", "n is \"0\" and must be a number from 1 to 16"),
            ("rand-n2.5", "n is \"2.5\""),
            ("rand-p1.5", "p is \"1.5\""),
            ("rand-mmax0", "mmax is \"0\""),
            ("rand-inc2", "inc is \"2\""),
            ("torchvision-m31", "m is \"31\" and must be a number from 0 to 30"),
            ("torchvision-p1", "\"p\" is not known"),
            ("cifar10-m9", "cifar10 has no settings"),
            ("trivialaugment-n2", "trivialaugment has no settings"),
        ] {
            match Policy::parse(text) {
                Err(message) => {
                    assert!(message.contains(part) && message.contains(&format!("{text:?}")), "{message}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
