//! The part of a recipe that says what is random about training images.

use serde::{Deserialize, Serialize};

use crate::recipe::{Faults, show};

/// What happens to training images, in the order of the fields, where nothing else is said. What is absent
/// does not happen. Fields are named as timm's options where timm has the operation.
///
/// Cutting out, flips on bytes, policy and colour jitter act on bytes, the rest on normalised floats.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AugmentRecipe {
    /// Show each image this many times in a row in an epoch of unchanged length (Hoffer et al.,
    /// arXiv:1901.09335).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aug_repeats: Option<usize>,
    /// Resize training images to this side and cut `data.image_size` out of them at random, as Keras's
    /// `RandomCrop` does. Images for evaluation are resized to `data.image_size` whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop_from: Option<i64>,
    /// With `crop_from`: whether all images of a batch are cut at one place, or each at its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop_offset: Option<CropOffset>,
    /// Put this many black pixels on each side and cut the former size out at random.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub padding: Option<i64>,
    /// RandomResizedCrop: the least and the greatest share of the area that is cut out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<[f64; 2]>,
    /// RandomResizedCrop: the least and the greatest ratio of width to height.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<[f64; 2]>,
    /// RandomResizedCrop: how what is cut out is resized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_interpolation: Option<TrainInterpolation>,
    /// Probability of mirroring left to right.
    pub hflip: f64,
    /// Probability of mirroring top to bottom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vflip: Option<f64>,
    /// A policy: `rand-m9-mstd0.5-inc1` and the like (timm's RandAugment), `torchvision-n2-m12`
    /// (torchvision's), or `cifar10` (AutoAugment's policy for CIFAR-10).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aa: Option<String>,
    /// Apply the policy before cutting out and mirroring, not after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aa_first: Option<bool>,
    /// Largest changes of brightness, contrast, saturation and hue, in random order (torchvision's
    /// ColorJitter).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color_jitter: Option<[f64; 4]>,
    /// Turn by up to this many degrees either way; what comes into view is the image mirrored at its border.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation_degrees: Option<f64>,
    /// Zoom by factors from 1 − zoom to 1 + zoom, one for each axis; above 1 the image shrinks and is
    /// mirrored at its border.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zoom: Option<f64>,
    /// Random erasing: its probability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reprob: Option<f64>,
    /// Random erasing: what is put there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remode: Option<EraseMode>,
    /// Random erasing: the largest number of boxes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recount: Option<u32>,
    /// Mixup: α of Beta(α, α); 0 for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixup: Option<f64>,
    /// CutMix: α of Beta(α, α); 0 for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cutmix: Option<f64>,
    /// CutMix: draw the box's sides as shares of the image's between these instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cutmix_minmax: Option<[f64; 2]>,
    /// Probability that anything is mixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixup_prob: Option<f64>,
    /// Probability of CutMix where both are on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixup_switch_prob: Option<f64>,
    /// What shares one draw: the batch, a pair of images or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixup_mode: Option<MixMode>,
    /// The last epoch that mixes; 0: every epoch does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixup_off_epoch: Option<u32>,
}

/// What shares the place that is cut out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CropOffset {
    /// All images of a batch.
    Batch,
    /// Nothing: each image has its own.
    Image,
}

/// How RandomResizedCrop resizes; PIL's filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainInterpolation {
    /// Two pixels along each axis.
    Bilinear,
    /// Four pixels along each axis.
    Bicubic,
    /// One of the two, drawn per image.
    Random,
}

/// What random erasing puts into its boxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EraseMode {
    /// Zeros.
    Const,
    /// One normally distributed colour per box.
    Rand,
    /// A normally distributed colour per pixel.
    Pixel,
}

/// What shares one draw of mixup or CutMix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MixMode {
    /// The batch.
    Batch,
    /// An image and its partner.
    Pair,
    /// Nothing: each image has its own.
    Elem,
}

impl AugmentRecipe {
    /// Checks ranges and what goes together; `image_size` is the recipe's.
    pub(crate) fn check(&self, image_size: i64, faults: &mut Faults) {
        let share = |x: f64| (0.0..=1.0).contains(&x);
        let probability = "a probability, 0 to 1";
        let repeats = self.aug_repeats.unwrap_or(1);
        faults.check("augment.aug_repeats", repeats, (1..=1000).contains(&repeats), "1 to 1000");

        let cuts = [self.crop_from.is_some(), self.padding.is_some(), self.scale.is_some()];
        let several = cuts.iter().filter(|cut| **cut).count() > 1;
        faults.check("augment", "crop_from, padding and scale", !several, "at most one of them");
        faults.together(
            "augment.crop_from",
            &[self.crop_from.is_some(), self.crop_offset.is_some()],
            "goes with crop_offset, both or neither",
        );
        if let Some(crop) = self.crop_from {
            let holds = (image_size..=1024).contains(&crop);
            faults.check("augment.crop_from", crop, holds, "data.image_size to 1024");
        }
        let padding = self.padding.unwrap_or(1);
        faults.check("augment.padding", padding, (1..=512).contains(&padding), "1 to 512 pixels");
        let resized_crop = [self.scale.is_some(), self.ratio.is_some(), self.train_interpolation.is_some()];
        faults.together(
            "augment.scale",
            &resized_crop,
            "goes with ratio and train_interpolation, all or none",
        );
        let scale = self.scale.unwrap_or([1.0; 2]);
        let rises = |[low, high]: [f64; 2]| 0.0 < low && low <= high && high.is_finite();
        faults.check(
            "augment.scale",
            show(scale),
            rises(scale) && scale[1] <= 1.0,
            "two rising shares above 0, up to 1",
        );
        let ratio = self.ratio.unwrap_or([1.0; 2]);
        faults.check("augment.ratio", show(ratio), rises(ratio), "two rising numbers above 0");

        faults.check("augment.hflip", self.hflip, share(self.hflip), probability);
        let vflip = self.vflip.unwrap_or_default();
        faults.check("augment.vflip", vflip, share(vflip), probability);
        let only_with = self.aa_first.is_none() || self.aa.is_some();
        faults.check(
            "augment.aa_first",
            self.aa_first.unwrap_or_default(),
            only_with,
            "only goes with augment.aa",
        );
        let jitter = self.color_jitter.unwrap_or_default();
        let positive = jitter.iter().all(|x| x.is_finite() && *x >= 0.0) && jitter[3] <= 0.5;
        faults.check(
            "augment.color_jitter",
            show(jitter),
            positive,
            "four numbers of 0 or more, the last up to 0.5",
        );
        let rotation = self.rotation_degrees.unwrap_or(1.0);
        faults.check(
            "augment.rotation_degrees",
            rotation,
            rotation > 0.0 && rotation <= 180.0,
            "above 0, up to 180",
        );
        let zoom = self.zoom.unwrap_or(0.5);
        faults.check("augment.zoom", zoom, zoom > 0.0 && zoom < 1.0, "above 0, below 1");

        let erasing = [self.reprob.is_some(), self.remode.is_some(), self.recount.is_some()];
        faults.together("augment.reprob", &erasing, "goes with remode and recount, all or none");
        let reprob = self.reprob.unwrap_or_default();
        faults.check("augment.reprob", reprob, share(reprob), probability);
        let recount = self.recount.unwrap_or(1);
        faults.check("augment.recount", recount, (1..=100).contains(&recount), "1 to 100");

        let mixing = [
            self.mixup.is_some(),
            self.cutmix.is_some(),
            self.mixup_prob.is_some(),
            self.mixup_switch_prob.is_some(),
            self.mixup_mode.is_some(),
            self.mixup_off_epoch.is_some(),
        ];
        let others =
            "goes with cutmix, mixup_prob, mixup_switch_prob, mixup_mode and mixup_off_epoch, all or none";
        faults.together("augment.mixup", &mixing, others);
        for (field, alpha) in [("augment.mixup", self.mixup), ("augment.cutmix", self.cutmix)] {
            let alpha = alpha.unwrap_or_default();
            faults.check(field, alpha, alpha == 0.0 || (1e-3..=1e3).contains(&alpha), "0, or 0.001 to 1000");
        }
        let minmax = self.cutmix_minmax.unwrap_or([1.0; 2]);
        let holds =
            rises(minmax) && minmax[1] <= 1.0 && (self.cutmix_minmax.is_none() || self.cutmix.is_some());
        faults.check(
            "augment.cutmix_minmax",
            show(minmax),
            holds,
            "two rising shares above 0, up to 1, beside cutmix",
        );
        for (field, p) in
            [("augment.mixup_prob", self.mixup_prob), ("augment.mixup_switch_prob", self.mixup_switch_prob)]
        {
            let p = p.unwrap_or_default();
            faults.check(field, p, share(p), probability);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields that are wrong for images of 32 pixels.
    fn wrong(recipe: &AugmentRecipe) -> Vec<&'static str> {
        let mut faults = Faults::default();
        recipe.check(32, &mut faults);
        faults.0.into_iter().map(|fault| fault.field).collect()
    }

    #[test]
    fn the_papers_pipeline_is_in_order() {
        let text = r#"
            aug_repeats = 3
            scale = [0.8, 1.0]
            ratio = [0.75, 1.3333]
            train_interpolation = "random"
            hflip = 0.5
            aa = "rand-m9-mstd0.5-inc1"
            reprob = 0.25
            remode = "pixel"
            recount = 1
            mixup = 0.8
            cutmix = 1.0
            mixup_prob = 1.0
            mixup_switch_prob = 0.5
            mixup_mode = "batch"
            mixup_off_epoch = 175
        "#;
        let recipe: AugmentRecipe = toml::from_str(text).unwrap();
        assert_eq!(wrong(&recipe), [""; 0]);
        assert_eq!(toml::from_str::<AugmentRecipe>(&toml::to_string(&recipe).unwrap()).unwrap(), recipe);
    }

    #[test]
    fn values_out_of_range_and_halves_of_a_group_are_named() {
        let base = AugmentRecipe { hflip: 0.5, ..AugmentRecipe::default() };
        assert_eq!(wrong(&base), [""; 0]);
        type Spoil = fn(&mut AugmentRecipe);
        let cases: [(&str, Spoil); 20] = [
            ("augment.hflip", |a| a.hflip = 1.5),
            ("augment.vflip", |a| a.vflip = Some(f64::NAN)),
            ("augment.aug_repeats", |a| a.aug_repeats = Some(0)),
            ("augment.crop_from", |a| a.crop_from = Some(40)),
            ("augment.crop_from", |a| (a.crop_from, a.crop_offset) = (Some(31), Some(CropOffset::Batch))),
            ("augment.crop_from", |a| a.crop_offset = Some(CropOffset::Image)),
            ("augment.padding", |a| a.padding = Some(0)),
            ("augment", |a| {
                (a.padding, a.scale) = (Some(4), Some([0.5, 1.0]));
                (a.ratio, a.train_interpolation) = (Some([1.0, 1.0]), Some(TrainInterpolation::Bicubic));
            }),
            ("augment.scale", |a| a.scale = Some([0.5, 1.0])),
            ("augment.scale", |a| {
                (a.scale, a.ratio) = (Some([0.5, 1.1]), Some([1.0, 1.0]));
                a.train_interpolation = Some(TrainInterpolation::Random);
            }),
            ("augment.ratio", |a| {
                (a.scale, a.ratio) = (Some([0.5, 1.0]), Some([0.0, 1.0]));
                a.train_interpolation = Some(TrainInterpolation::Random);
            }),
            ("augment.aa_first", |a| a.aa_first = Some(true)),
            ("augment.color_jitter", |a| a.color_jitter = Some([0.4, 0.4, 0.4, 0.6])),
            ("augment.rotation_degrees", |a| a.rotation_degrees = Some(f64::NAN)),
            ("augment.zoom", |a| a.zoom = Some(1.0)),
            ("augment.reprob", |a| a.reprob = Some(0.25)),
            ("augment.recount", |a| {
                (a.reprob, a.remode, a.recount) = (Some(0.25), Some(EraseMode::Pixel), Some(0));
            }),
            ("augment.mixup", |a| a.mixup = Some(0.8)),
            ("augment.cutmix_minmax", |a| a.cutmix_minmax = Some([0.2, 0.8])),
            ("augment.mixup_prob", |a| {
                (a.mixup, a.cutmix, a.mixup_prob) = (Some(0.8), Some(0.0), Some(2.0));
                (a.mixup_switch_prob, a.mixup_off_epoch) = (Some(0.5), Some(0));
                a.mixup_mode = Some(MixMode::Elem);
            }),
        ];
        for (number, (field, spoil)) in cases.into_iter().enumerate() {
            let mut recipe = base.clone();
            spoil(&mut recipe);
            assert_eq!(wrong(&recipe), [field], "case {number}");
        }
    }
}
