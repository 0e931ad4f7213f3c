//! The `inspect` command: what a recipe's data holds, and what training makes of its first batch.

use std::fmt::Write;

use data_cifar::{ChannelStats, Draw, permutation, repeated};
use run_record::{Recipe, visible};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::Error;
use crate::contact_sheet::{Pair, contact_sheet};
use crate::data::Source;
use crate::presentation::Presentation;

/// What a data set holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
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

/// How many images of a class each part has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClassCounts {
    /// The class.
    pub name: String,
    /// Images to train on.
    pub train: usize,
    /// Images held out.
    pub validation: usize,
    /// Images to test on.
    pub test: usize,
}

/// Counts and measures the data.
///
/// # Errors
/// A picture that can no longer be read.
pub fn summarize(source: &Source) -> Result<Summary, Error> {
    let class = |name: &String| ClassCounts { name: name.clone(), train: 0, validation: 0, test: 0 };
    let mut classes: Vec<ClassCounts> = source.class_names.iter().map(class).collect();
    let (train, test) = source.labels();
    for (position, label) in train.iter().enumerate() {
        let counts = &mut classes[usize::from(*label)];
        if source.train.contains(&position) {
            counts.train += 1;
        } else {
            counts.validation += 1;
        }
    }
    for label in test {
        classes[usize::from(label)].test += 1;
    }
    let mut total = class(&"total".to_owned());
    for counts in &classes {
        total.train += counts.train;
        total.validation += counts.validation;
        total.test += counts.test;
    }
    let stats = source.channel_stats()?;
    let unit = |values: [f64; 3]| values.map(|value| (value / 255.0 * 1e6).round() / 1e6);
    Ok(Summary {
        dataset: source.name.clone(),
        data_sha256: source.sha256.clone(),
        classes,
        total,
        mean: unit(stats.mean),
        std: unit(stats.std),
        skipped: source.skipped.iter().map(ToString::to_string).collect(),
    })
}

impl Summary {
    /// The summary for a person.
    pub fn to_text(&self) -> String {
        let mut text = format!("{} (SHA-256 {})\n", self.dataset, self.data_sha256);
        let width =
            self.classes.iter().map(|class| visible(&class.name).chars().count()).max().unwrap_or(0).max(5);
        let mut line = |name: &str, cells: [&str; 3]| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<width$} {:>8} {:>10} {:>8}", cells[0], cells[1], cells[2]);
        };
        line("class", ["train", "validation", "test"]);
        for ClassCounts { name, train, validation, test } in self.classes.iter().chain([&self.total]) {
            line(
                &visible(name),
                [train, validation, test].map(ToString::to_string).each_ref().map(String::as_str),
            );
        }
        let numbers = |values: [f64; 3]| values.map(|value| format!("{value:.4}")).join(", ");
        let _ = write!(text, "mean {}; standard deviation {}", numbers(self.mean), numbers(self.std));
        for skipped in &self.skipped {
            let _ = write!(text, "\nleft out: {}", visible(skipped));
        }
        text
    }
}

/// The first `count` images of an epoch's first training batch beside what training makes of them, as PNG.
///
/// # Errors
/// libtorch's refusal, or a picture that can no longer be read.
pub fn sheet(
    recipe: &Recipe,
    source: &Source,
    (seed, epoch): (u64, u32),
    count: usize,
    device: Device,
) -> Result<Vec<u8>, Error> {
    let stats = source.normalization(&recipe.data)?;
    let presentation = Presentation::new(recipe, &stats, source.class_names.len() as i64, device)?;
    let (train, _) = source.sets(device)?;
    let draw = Draw { seed, epoch: epoch.into(), repeats: presentation.repeats };
    let order = repeated(&permutation(seed, draw.epoch, source.train.clone()), draw.repeats);
    let mut batches = train.batches(&order, recipe.train.batch_size)?;
    let batch = batches.next().ok_or_else(|| Error::Usage("there is no image to train on".to_owned()))??;
    let mut epoch = presentation.epoch(&train, &order, recipe.train.batch_size, draw, 0)?;
    let shown = epoch.next().ok_or_else(|| Error::Usage("there is no image to train on".to_owned()))??;
    let bytes = pixels(&shown.images, &stats)?;
    let targets = shown.targets.f_to_device(Device::Cpu)?;
    let labels: Vec<i64> = Vec::try_from(&batch.labels)?;
    let name = |class: i64| source.class_names.get(class as usize).map_or("?", String::as_str);
    let pairs = (0..count.min(labels.len())).map(|number| {
        let n = number as i64;
        Ok(Pair {
            original: batch.images.f_get(n)?.f_to_device(Device::Cpu)?,
            label: name(labels[number]).to_owned(),
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
