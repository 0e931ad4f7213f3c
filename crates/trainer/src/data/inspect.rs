//! The `inspect` command: what a recipe's data holds, and what training makes of its first batch.

use std::fmt::Write;

use data_cifar::{ChannelStats, Draw, Share, permutation, repeated};
use image::RgbImage;
use run_record::{ClassCounts, Recipe};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::data::contact_sheet::{Pair, contact_sheet};
use crate::data::presentation::Presentation;
use crate::data::source::{Source, Subset};
use crate::{Error, process::table};

/// What a data set holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataSummary {
    /// The data set.
    pub dataset: String,
    /// SHA-256 of its images and labels.
    pub data_sha256: String,
    /// How many images of each class there are.
    pub classes: Vec<ClassCounts>,
    /// All classes together.
    pub total: ClassCounts,
    /// Mean per channel of all training images, those held out included; 0 to 1.
    pub mean: [f64; 3],
    /// Standard deviation per channel, likewise.
    pub std: [f64; 3],
    /// Files that were left out, with the reason.
    pub skipped: Vec<String>,
}

/// Counts and measures the data.
///
/// # Errors
/// A picture that can no longer be read.
pub fn summarize(source: &Source) -> Result<DataSummary, Error> {
    let classes = source.parts.counts(&source.class_names);
    let total = ClassCounts::total(&classes);
    let stats = source.channel_stats()?;
    let unit = |values: [f64; 3]| values.map(|value| (value / 255.0 * 1e6).round() / 1e6);
    Ok(DataSummary {
        dataset: source.name.clone(),
        data_sha256: source.sha256.clone(),
        classes,
        total,
        mean: unit(stats.mean),
        std: unit(stats.std),
        skipped: source.skipped.iter().map(ToString::to_string).collect(),
    })
}

impl DataSummary {
    /// The summary for a person.
    pub fn to_text(&self) -> String {
        let classes: Vec<ClassCounts> = self.classes.iter().chain([&self.total]).cloned().collect();
        let numbers = |values: [f64; 3]| values.map(|value| format!("{value:.4}")).join(", ");
        let mut text = format!(
            "{} (SHA-256 {})\n{}mean {}; standard deviation {}",
            self.dataset,
            self.data_sha256,
            table(&classes),
            numbers(self.mean),
            numbers(self.std)
        );
        for skipped in &self.skipped {
            // Writing to a string cannot fail.
            let _ = write!(text, "\nleft out: {}", run_record::visible(skipped));
        }
        text
    }
}

/// How many images of each class each part has, a line each.
pub fn table(classes: &[ClassCounts]) -> String {
    let rows = classes.iter().map(|ClassCounts { name, train, validation, test }| {
        [name.clone(), train.to_string(), validation.to_string(), test.to_string()]
    });
    table::table(["class", "train", "validation", "test"], 1..4, rows) + "\n"
}

/// What a picture of training images is made by.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// How images are shown to a network.
    pub recipe: &'a Recipe,
    /// Name of each class, in label order.
    pub class_names: &'a [String],
    /// What images are normalised by.
    pub stats: &'a ChannelStats,
}

/// The first `count` images of an epoch's first training batch beside what training makes of them.
///
/// # Errors
/// libtorch's refusal, or a picture that can no longer be read.
pub fn sheet(
    &Shown { recipe, class_names, stats }: &Shown,
    train: &Subset,
    (seed, epoch): (u64, u32),
    count: usize,
) -> Result<RgbImage, Error> {
    let presentation = Presentation::new(recipe, stats, class_names.len() as i64, train.set.device())?;
    let draw = Draw { seed, epoch: epoch.into(), repeats: presentation.repeats };
    let order = repeated(&permutation(seed, draw.epoch, train.range.clone()), draw.repeats);
    // What is decoded ahead goes with the iterator.
    let first =
        presentation.epoch(train.set, &order, recipe.train.batch_size, draw, 0, Share::alone(1))?.next();
    let shown = first.ok_or_else(|| Error::Usage("there is no image to train on".to_owned()))??;
    let bytes = pixels(&shown.images, stats)?;
    let targets = shown.targets.f_to_device(Device::Cpu)?;
    let name = |class: i64| class_names.get(class as usize).map_or("?", String::as_str);
    let count = count.min(shown.labels.size()[0] as usize);
    let pairs = train.set.batches(&order[..count], 1)?.zip(0..).map(|(original, n)| {
        let original = original?;
        Ok(Pair {
            original: original.images.f_get(0)?.f_to_device(Device::Cpu)?,
            label: name(original.labels.f_int64_value(&[0])?).to_owned(),
            augmented: bytes.f_get(n)?,
            target: target(&targets.f_get(n)?, name)?,
        })
    });
    contact_sheet(&pairs.collect::<Result<Vec<_>, Error>>()?)
}

/// Normalised floats as bytes to look at; what lies outside is cut off.
fn pixels(images: &Tensor, stats: &ChannelStats) -> Result<Tensor, Error> {
    let channels = |values: [f64; 3]| Tensor::f_from_slice(&values.map(|x| x as f32))?.f_view([3, 1, 1]);
    let floats =
        images.f_to_device(Device::Cpu)?.f_mul(&channels(stats.std)?)?.f_add(&channels(stats.mean)?)?;
    Ok(floats.f_round()?.f_clamp(0, 255)?.f_to_kind(Kind::Uint8)?)
}

/// A label, or the two heaviest of several with their shares in per cent.
fn target<'a>(target: &Tensor, name: impl Fn(i64) -> &'a str) -> Result<String, Error> {
    if target.size().is_empty() {
        return Ok(name(target.f_int64_value(&[])?).to_owned());
    }
    let (shares, classes) = target.f_topk(target.size()[0].min(2), 0, true, true)?;
    let (shares, classes): (Vec<f32>, Vec<i64>) = (Vec::try_from(shares)?, Vec::try_from(classes)?);
    let said = shares.iter().zip(&classes).map(|(share, class)| {
        // Two names share a line of sixteen characters.
        let short: String = name(*class).chars().take(5).collect();
        format!("{short}{:.0}", 100.0 * share)
    });
    Ok(said.collect::<Vec<_>>().join(" "))
}
