//! The part of a recipe that says what is random about training images.

use serde::{Deserialize, Serialize};

use crate::fault::{Faults, RecipeErrors};
use crate::policy::Policy;

/// What happens to training images. What is absent does not happen.
///
/// Fields and words are named as timm's options where timm has the operation; those of one operation are one table.
/// Cutting out (but for `enlarged_crop`), flips on bytes, policy and colour jitter act on bytes, the rest on normalised
/// floats.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AugmentRecipe {
    /// Show each image this many times in a row in an epoch of unchanged length (Hoffer et al.,
    /// arXiv:1901.09335).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aug_repeats: Option<usize>,
    /// Probability of mirroring left to right.
    pub hflip: f64,
    /// Whether each image is mirrored in every other epoch instead, half of the images in each: the alternating flip of
    /// Jordan's airbench (arXiv:2404.00498).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hflip_alternates: bool,
    /// Probability of mirroring top to bottom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vflip: Option<f64>,
    /// Put this many black pixels on each side and cut the former size out at random.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub padding: Option<i64>,
    /// Turn by up to this many degrees either way; what comes into view is the image mirrored at its border.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation_degrees: Option<f64>,
    /// Zoom by factors from 1 − zoom to 1 + zoom, one for each axis; above 1 the image shrinks and is
    /// mirrored at its border.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zoom: Option<f64>,
    /// Resize to more than is shown and cut that out at random.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enlarged_crop: Option<EnlargedCrop>,
    /// Cut a part of random area and shape out and resize it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resized_crop: Option<RandomResizedCrop>,
    /// Operations drawn by a published policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyRecipe>,
    /// Changes of colour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color_jitter: Option<ColorJitter>,
    /// Random erasing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erasing: Option<RandomErasing>,
    /// Blending with another image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixup: Option<Mixup>,
    /// Pasting a part of another image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cutmix: Option<Cutmix>,
    /// How often and in what batches mixup and CutMix mix, if not as [`MixRecipe::default`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mix: Option<MixRecipe>,
}

/// Keras's `RandomCrop`. Images for evaluation are resized to `data.image_size` whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnlargedCrop {
    /// Side in pixels that images are resized to; `data.image_size` is cut out.
    pub from: i64,
    /// Which images are cut at the same place.
    pub offset: CropOffset,
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

/// A box of random area and aspect ratio that becomes the whole image: torchvision's `RandomResizedCrop` and
/// timm's `RandomResizedCropAndInterpolation`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomResizedCrop {
    /// Least and largest area of the box, as shares of the image's, uniform in between.
    pub scale: [f64; 2],
    /// Least and largest width divided by height, uniform in the logarithm.
    pub ratio: [f64; 2],
    /// How the box is resized.
    pub interpolation: TrainInterpolation,
}

/// How [`RandomResizedCrop`] resizes: an [`Interpolation`](crate::Interpolation), or either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainInterpolation {
    /// Always `bilinear`.
    Bilinear,
    /// Always `bicubic`.
    Bicubic,
    /// One of the two for each image, equally likely.
    Random,
}

/// A policy and when it is applied.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRecipe {
    /// Which.
    pub name: Policy,
    /// Before cutting out and mirroring, not after.
    #[serde(default)]
    pub first: bool,
}

/// `torchvision.transforms.ColorJitter` for PIL images, which is timm's `color_jitter` too: one number c
/// there stands for brightness, contrast and saturation of c, and no hue.
///
/// The factors of the first three are uniform from max(0, 1 − strength) to 1 + strength; the hue is turned by −`hue` to
/// `hue` of a full turn. They come in random order, those of strength 0 not at all.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColorJitter {
    /// 0 to 100.
    pub brightness: f64,
    /// 0 to 100.
    pub contrast: f64,
    /// 0 to 100.
    pub saturation: f64,
    /// 0 to 0.5.
    pub hue: f64,
}

/// Random erasing (Zhong et al., arXiv:1708.04896) as timm has it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomErasing {
    /// The probability that an image is erased.
    pub prob: f64,
    /// What boxes are filled with.
    pub mode: EraseMode,
    /// The largest number of boxes in an image; how many there are is uniform from 1.
    pub count: u32,
}

/// What random erasing puts into its boxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EraseMode {
    /// Zero, the mean of normalised images.
    Const,
    /// One number from N(0, 1) for each box and channel.
    Rand,
    /// A number from N(0, 1) for each value.
    Pixel,
}

/// Mixup (Zhang et al., arXiv:1710.09412).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mixup {
    /// The image's share is drawn from Beta(α, α).
    pub alpha: f64,
}

/// CutMix (Yun et al., arXiv:1905.04899): how the box that is pasted is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cutmix {
    /// The share of the area that stays is drawn from Beta(α, α).
    Alpha(f64),
    /// The sides, as shares of the image's, are drawn between these two, each for itself.
    Minmax([f64; 2]),
}

/// What mixup and CutMix have in common.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixRecipe {
    /// Probability that anything is mixed.
    pub prob: f64,
    /// Probability of CutMix where there are both.
    pub switch_prob: f64,
    /// What shares one draw.
    pub mode: MixMode,
    /// The last epoch that mixes, if not all do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub off_epoch: Option<u32>,
}

/// timm's defaults: all batches of all epochs, each as one; either method half of the time where there are both.
impl Default for MixRecipe {
    fn default() -> Self {
        Self { prob: 1.0, switch_prob: 0.5, mode: MixMode::Batch, off_epoch: None }
    }
}

/// What shares one draw of mixup or CutMix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// Whether batches of an epoch, counted from 1, are mixed.
    pub fn mixes(&self, epoch: u64) -> bool {
        let last = self.mix.and_then(|mix| mix.off_epoch).map_or(u64::MAX, u64::from);
        (self.mixup.is_some() || self.cutmix.is_some()) && epoch <= last
    }

    /// Checks ranges and what goes together, for images shown with a side of `image_size` pixels.
    ///
    /// # Errors
    /// All values out of range, with their ranges.
    pub fn validate(&self, image_size: i64) -> Result<(), RecipeErrors> {
        let mut faults = Faults::default();
        self.check(image_size, &mut faults);
        faults.result()
    }

    pub(crate) fn check(&self, image_size: i64, faults: &mut Faults) {
        if let Some(repeats) = self.aug_repeats {
            faults.within("augment.aug_repeats", repeats, 1..=1000);
        }
        faults.probability("augment.hflip", self.hflip);
        if let Some(vflip) = self.vflip {
            faults.probability("augment.vflip", vflip);
        }
        let holds = !self.hflip_alternates || self.hflip == 0.5;
        let remedy = "goes with augment.hflip = 0.5: each image is mirrored in half of the epochs";
        faults.check("augment.hflip_alternates", self.hflip_alternates, holds, remedy);
        self.check_crops(image_size, faults);
        if let Some(degrees) = self.rotation_degrees {
            let holds = degrees > 0.0 && degrees <= 180.0;
            faults.check("augment.rotation_degrees", degrees, holds, "above 0, up to 180");
        }
        if let Some(zoom) = self.zoom {
            faults.check("augment.zoom", zoom, zoom > 0.0 && zoom < 1.0, "above 0, below 1");
        }
        if let Some(ColorJitter { brightness, contrast, saturation, hue }) = self.color_jitter {
            faults.within("augment.color_jitter.brightness", brightness, 0.0..=100.0);
            faults.within("augment.color_jitter.contrast", contrast, 0.0..=100.0);
            faults.within("augment.color_jitter.saturation", saturation, 0.0..=100.0);
            faults.within("augment.color_jitter.hue", hue, 0.0..=0.5);
        }
        if let Some(RandomErasing { prob, count, .. }) = self.erasing {
            faults.probability("augment.erasing.prob", prob);
            faults.within("augment.erasing.count", count, 1..=100);
        }
        self.check_mixing(faults);
    }

    fn check_crops(&self, image_size: i64, faults: &mut Faults) {
        let crops = [self.enlarged_crop.is_some(), self.padding.is_some(), self.resized_crop.is_some()];
        let several = crops.into_iter().filter(|crop| *crop).count() > 1;
        let remedy = "images are cut in one way; take all but one of them away";
        faults.check("augment", "enlarged_crop, padding and resized_crop", !several, remedy);
        if let Some(EnlargedCrop { from, .. }) = self.enlarged_crop {
            let holds = (image_size..=1024).contains(&from);
            faults.check("augment.enlarged_crop.from", from, holds, "data.image_size to 1024");
        }
        if let Some(padding) = self.padding {
            faults.within("augment.padding", padding, 1..=512);
        }
        if let Some(RandomResizedCrop { scale, ratio, .. }) = self.resized_crop {
            faults.rising("augment.resized_crop.scale", scale, 1.0, "two rising shares above 0, up to 1");
            faults.rising("augment.resized_crop.ratio", ratio, f64::MAX, "two rising numbers above 0");
        }
    }

    fn check_mixing(&self, faults: &mut Faults) {
        let alphas = 1e-3..=1e3;
        if let Some(Mixup { alpha }) = self.mixup {
            faults.within("augment.mixup.alpha", alpha, alphas.clone());
        }
        match self.cutmix {
            Some(Cutmix::Alpha(alpha)) => faults.within("augment.cutmix.alpha", alpha, alphas),
            Some(Cutmix::Minmax(sides)) => {
                faults.rising("augment.cutmix.minmax", sides, 1.0, "two rising shares above 0, up to 1");
            }
            None => {}
        }
        if let Some(MixRecipe { prob, switch_prob, off_epoch, .. }) = self.mix {
            let mixes = self.mixup.is_some() || self.cutmix.is_some();
            faults.check("augment.mix", "(given)", mixes, "goes with augment.mixup or augment.cutmix");
            faults.probability("augment.mix.prob", prob);
            faults.probability("augment.mix.switch_prob", switch_prob);
            let epochs = off_epoch.unwrap_or(1);
            faults.check("augment.mix.off_epoch", epochs, epochs > 0, "1 or more; without it all epochs mix");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields that are wrong for images of 32 pixels.
    fn wrong(recipe: &AugmentRecipe) -> Vec<String> {
        let faults = recipe.validate(32).err().map_or_else(Vec::new, |errors| errors.0);
        faults.into_iter().map(|fault| fault.field).collect()
    }

    fn read(text: &str) -> Result<AugmentRecipe, toml::de::Error> {
        toml::from_str(&format!("hflip = 0.5\n{text}"))
    }

    #[test]
    fn the_papers_pipeline_is_in_order() {
        let recipe = read(
            r#"
            aug_repeats = 3
            resized_crop = { scale = [0.8, 1.0], ratio = [0.75, 1.3333], interpolation = "random" }
            policy = { name = "rand-m9-mstd0.5-inc1" }
            erasing = { prob = 0.25, mode = "pixel", count = 1 }
            mixup.alpha = 0.8
            cutmix.alpha = 1.0
            mix = { prob = 1.0, switch_prob = 0.5, mode = "batch", off_epoch = 175 }
            "#,
        )
        .unwrap();
        assert_eq!(wrong(&recipe), [""; 0]);
        assert!(!recipe.policy.unwrap().first);
        assert_eq!([1, 175, 176].map(|epoch| recipe.mixes(epoch)), [true, true, false]);
        assert_eq!(toml::from_str::<AugmentRecipe>(&toml::to_string(&recipe).unwrap()).unwrap(), recipe);
    }

    #[test]
    fn a_table_is_there_whole_or_not_at_all() {
        let absent = read("").unwrap();
        assert_eq!(absent, AugmentRecipe { hflip: 0.5, ..AugmentRecipe::default() });
        assert!(!absent.mixes(1));
        let mixup = read("mixup.alpha = 0.2").unwrap();
        assert!(mixup.mixes(1) && mixup.mixes(u64::MAX) && wrong(&mixup).is_empty());
        let minmax = read("[cutmix]\nminmax = [0.2, 0.8]").unwrap();
        assert_eq!(minmax.cutmix, Some(Cutmix::Minmax([0.2, 0.8])));
        for (text, words) in [
            ("enlarged_crop.from = 40", "missing field `offset`"),
            ("resized_crop.scale = [0.5, 1.0]", "missing field `ratio`"),
            ("erasing.prob = 0.25", "missing field `mode`"),
            ("color_jitter = { brightness = 0.4, contrast = 0.4, hue = 0.0 }", "missing field `saturation`"),
            ("mixup = {}", "missing field `alpha`"),
            ("mixup = { alpha = 1.0, prob = 1.0 }", "unknown field `prob`"),
            ("cutmix = {}", "1 element"),
            ("cutmix = { alpha = 1.0, minmax = [0.2, 0.8] }", "1 element"),
            ("mix = { prob = 1.0, mode = \"batch\" }", "missing field `switch_prob`"),
            ("policy.first = true", "missing field `name`"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.message().contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn every_word_is_read_as_it_is_written() {
        fn check<T: Serialize + for<'de> Deserialize<'de> + PartialEq + std::fmt::Debug + Copy>(
            words: &[(&str, T)],
        ) {
            for (word, value) in words {
                let written = toml::Value::try_from(value).unwrap();
                assert_eq!(written.as_str(), Some(*word));
                assert_eq!(written.try_into::<T>().unwrap(), *value);
            }
        }
        check(&[("batch", CropOffset::Batch), ("image", CropOffset::Image)]);
        check(&[
            ("bilinear", TrainInterpolation::Bilinear),
            ("bicubic", TrainInterpolation::Bicubic),
            ("random", TrainInterpolation::Random),
        ]);
        check(&[("const", EraseMode::Const), ("rand", EraseMode::Rand), ("pixel", EraseMode::Pixel)]);
        check(&[("batch", MixMode::Batch), ("pair", MixMode::Pair), ("elem", MixMode::Elem)]);
    }

    #[test]
    fn values_out_of_range_are_named() {
        for (text, field) in [
            ("vflip = nan", "augment.vflip"),
            ("aug_repeats = 0", "augment.aug_repeats"),
            ("enlarged_crop = { from = 31, offset = \"batch\" }", "augment.enlarged_crop.from"),
            ("enlarged_crop = { from = 1025, offset = \"batch\" }", "augment.enlarged_crop.from"),
            ("padding = 0", "augment.padding"),
            ("padding = 4\nenlarged_crop = { from = 40, offset = \"image\" }", "augment"),
            (
                "resized_crop = { scale = [0.5, 1.1], ratio = [1.0, 1.0], interpolation = \"random\" }",
                "augment.resized_crop.scale",
            ),
            (
                "resized_crop = { scale = [nan, 1.0], ratio = [1.0, 1.0], interpolation = \"random\" }",
                "augment.resized_crop.scale",
            ),
            (
                "resized_crop = { scale = [0.5, 1.0], ratio = [0.0, 1.0], interpolation = \"random\" }",
                "augment.resized_crop.ratio",
            ),
            (
                "resized_crop = { scale = [0.5, 1.0], ratio = [1.0, inf], interpolation = \"random\" }",
                "augment.resized_crop.ratio",
            ),
            (
                "color_jitter = { brightness = 0.4, contrast = inf, saturation = 0.4, hue = 0.1 }",
                "augment.color_jitter.contrast",
            ),
            (
                "color_jitter = { brightness = 0.4, contrast = 0.4, saturation = 0.4, hue = 0.6 }",
                "augment.color_jitter.hue",
            ),
            ("rotation_degrees = nan", "augment.rotation_degrees"),
            ("zoom = 1.0", "augment.zoom"),
            ("erasing = { prob = 1.1, mode = \"rand\", count = 1 }", "augment.erasing.prob"),
            ("erasing = { prob = 0.1, mode = \"rand\", count = 0 }", "augment.erasing.count"),
            ("mixup.alpha = 0.0", "augment.mixup.alpha"),
            ("cutmix.alpha = inf", "augment.cutmix.alpha"),
            ("cutmix.minmax = [0.8, 0.2]", "augment.cutmix.minmax"),
            ("mix = { prob = 1.0, switch_prob = 0.5, mode = \"elem\" }", "augment.mix"),
            (
                "mixup.alpha = 0.2\nmix = { prob = 2.0, switch_prob = 0.5, mode = \"elem\" }",
                "augment.mix.prob",
            ),
            (
                "mixup.alpha = 0.2\nmix = { prob = 1.0, switch_prob = nan, mode = \"elem\" }",
                "augment.mix.switch_prob",
            ),
            (
                "mixup.alpha = 0.2\nmix = { prob = 1.0, switch_prob = 0.5, mode = \"elem\", off_epoch = 0 }",
                "augment.mix.off_epoch",
            ),
        ] {
            assert_eq!(wrong(&read(text).unwrap()), [field], "{text}");
        }
        let alternating = |hflip| AugmentRecipe { hflip, hflip_alternates: true, ..AugmentRecipe::default() };
        assert_eq!(wrong(&alternating(0.25)), ["augment.hflip_alternates"]);
        assert_eq!(alternating(0.5).validate(32), Ok(()));
        assert_eq!(wrong(&AugmentRecipe { hflip: 1.5, ..AugmentRecipe::default() }), ["augment.hflip"]);
    }
}
