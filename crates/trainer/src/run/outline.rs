//! `train --dry-run`: a plan in words, with the time and memory of a step that was tried.

use std::fmt::Write;
use std::time::Instant;

use data_cifar::{ChannelStats, DeviceSet, Draw, ImageSet, Share};
use run_record::{ClassCounts, Recipe, duration, grouped};
use serde::Serialize;
use tch::{Kind, Tensor};

use crate::data::inspect::table;
use crate::data::presentation::Presentation;
use crate::optim::schedule::LearningRate;
use crate::process::lines::{say, show as show_lines};
use crate::process::memory::in_words;
use crate::process::progress::{Output, bars};
use crate::process::signals::Stop;
use crate::run::directory::Earlier;
use crate::run::fit::Stepper;
use crate::run::plan::Plan;
use crate::run::request::Request;
use crate::run::state::State;
use crate::{Error, process::environment};

/// What a run would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outline {
    /// Variant name.
    pub model: String,
    /// The preset, or `custom`.
    pub preset: String,
    /// Trainable parameters.
    pub params: u64,
    /// Multiply-accumulates per image.
    pub macs: u64,
    /// The run's directory.
    pub out: String,
    /// What would become of it.
    pub start: String,
    /// The data set.
    pub dataset: String,
    /// Images of each class by part, as far as they can be decoded.
    pub classes: Vec<ClassCounts>,
    /// Passes over the training images.
    pub epochs: u32,
    /// Epochs at the start in which the head alone learns.
    pub freeze_epochs: Option<u32>,
    /// Images of a step.
    pub batch_size: usize,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Images of its last step.
    pub last_batch: usize,
    /// The schedule's name.
    pub schedule: String,
    /// Learning rate of the first step, the largest and that of the last step.
    pub learning_rates: [f64; 3],
    /// The learning rate at moments of the run that are equally far apart, the first and the last step among them.
    pub learning_rate_curve: Vec<f64>,
    /// Bytes of all pictures.
    pub picture_bytes: u64,
    /// Whether they are decoded as they are needed.
    pub streamed: bool,
    /// Bytes of weights, gradients and what the optimiser keeps.
    pub network_bytes: u64,
    /// Bytes that this process may have.
    pub memory_limit: Option<u64>,
    /// Where it would run.
    pub device: String,
    /// What is worth saying.
    pub notes: Vec<String>,
}

/// A step that was tried.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Tried {
    /// Seconds of one step.
    pub step_seconds: f64,
    /// Seconds of all training steps; validation, the test and the decoding of pictures come on top.
    pub train_seconds: f64,
    /// Largest memory with all pictures, in bytes: resident memory of this process, or that of all tensors on the card.
    pub memory_bytes: Option<u64>,
}

/// Plans a run and shows it.
///
/// # Errors
/// All that is wrong with it; a step that fails.
pub fn show(request: &Request, stop: &Stop) -> Result<(), Error> {
    let plan = Plan::resolve(request)?;
    let outline = Outline::of(&plan, request);
    if request.output == Output::Text {
        show_lines(&outline.to_text());
    }
    let tried = match plan.earlier {
        Earlier::Finished(_) => None,
        _ => Some(try_steps(&plan, request, &outline, stop)?),
    };
    match (request.output, tried) {
        (Output::Text, Some(tried)) => say(&tried.to_text(&outline)),
        (Output::Json, tried) => {
            request.output.event("plan", serde_json::json!({ "plan": outline, "tried": tried }))
        }
        _ => {}
    }
    Ok(())
}

/// Points of the curve of learning rates.
const POINTS: u64 = 41;

impl Outline {
    /// Of a plan.
    pub fn of(plan: &Plan, request: &Request) -> Self {
        let (recipe, listing) = (&plan.resolved.recipe, &plan.listing);
        let images = listing.parts.train.len();
        let batch_size = recipe.train.batch_size;
        let steps_per_epoch = images.div_ceil(batch_size) as u64;
        let rate = LearningRate::new(recipe, images);
        let last = steps_per_epoch * u64::from(recipe.train.epochs) - 1;
        let largest = (0..=last).map(|step| rate.at(step)).fold(0.0, f64::max);
        Self {
            model: plan.architecture.model.clone(),
            preset: plan.resolved.preset.clone(),
            params: plan.architecture.facts.params,
            macs: plan.architecture.facts.macs,
            out: plan.path.display().to_string(),
            start: start(plan, request),
            dataset: listing.name.clone(),
            classes: listing.parts.counts(&listing.class_names),
            epochs: recipe.train.epochs,
            freeze_epochs: recipe.train.freeze_epochs,
            batch_size,
            steps_per_epoch,
            last_batch: images - (steps_per_epoch as usize - 1) * batch_size,
            schedule: recipe.schedule.name().to_owned(),
            learning_rates: [rate.at(0), largest, rate.at(last)],
            learning_rate_curve: (0..POINTS).map(|n| rate.at(last * n / (POINTS - 1))).collect(),
            picture_bytes: plan.memory.pictures,
            streamed: plan.stream,
            network_bytes: plan.memory.network,
            memory_limit: plan.memory.limit.map(|limit| limit.bytes),
            device: environment::device_name(request.device),
            notes: plan.notes.clone(),
        }
    }

    /// For a person.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, words: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<9} {words}");
        };
        let (params, macs) = (grouped(self.params), grouped(self.macs));
        line(
            "network",
            format!("{}: {params} parameters, {macs} multiply-accumulates per image", self.model),
        );
        let frozen = self
            .freeze_epochs
            .map_or(String::new(), |epochs| format!(", the head alone in the first {epochs}"));
        let (epochs, batch_size) = (self.epochs, self.batch_size);
        line("recipe", format!("{}, {epochs} epochs in batches of {batch_size}{frozen}", self.preset));
        line("run", format!("{}: {}", self.out, self.start));
        line("data", self.dataset.clone());
        let mut classes = self.classes.clone();
        classes.push(ClassCounts::total(&self.classes));
        text += &table(&classes);
        let mut line = |name: &str, words: String| {
            let _ = writeln!(text, "{name:<9} {words}");
        };
        let last = match self.last_batch {
            whole if whole == self.batch_size => String::new(),
            rest => format!(", the last of {rest} images"),
        };
        let all = self.steps_per_epoch * u64::from(self.epochs);
        let steps = grouped(self.steps_per_epoch);
        line("steps", format!("{steps} in an epoch{last}; {} in all", grouped(all)));
        let [first, largest, end] = self.learning_rates;
        let curve = bars(&self.learning_rate_curve, 0.0, largest);
        line("rate", format!("{}: {first:.3e} first, {largest:.3e} at most, {end:.3e} last", self.schedule));
        line("", curve);
        let held = if self.streamed { "decoded as they are needed" } else { "held" };
        let limit = self
            .memory_limit
            .map_or(String::new(), |bytes| format!("; this process may have {}", in_words(bytes)));
        let (pictures, network) = (in_words(self.picture_bytes), in_words(self.network_bytes));
        line("memory", format!("pictures {pictures}, {held}; network and optimiser {network}{limit}"));
        text.truncate(text.trim_end().len());
        text
    }
}

fn start(plan: &Plan, request: &Request) -> String {
    match (&plan.earlier, &plan.checkpoint) {
        (Earlier::Finished(_), _) => "finished already, would be reused".to_owned(),
        (Earlier::Unfinished(_), Some(checkpoint)) => {
            format!("goes on from checkpoint {}", checkpoint.position)
        }
        (Earlier::Unfinished(_), None) => "starts over, there is no checkpoint".to_owned(),
        (Earlier::Nothing, _) if request.fresh && plan.run.as_ref().is_some_and(|run| run.has_record()) => {
            "replaces the run that is there".to_owned()
        }
        (Earlier::Nothing, _) => "new".to_owned(),
    }
}

impl Tried {
    fn to_text(self, outline: &Outline) -> String {
        let memory =
            self.memory_bytes.map_or(String::new(), |bytes| format!("; memory about {}", in_words(bytes)));
        format!(
            "{:<9} about {} of training at {} a step on {} (tried){memory}",
            "time",
            duration(self.train_seconds),
            duration(self.step_seconds),
            outline.device
        )
    }
}

/// Steps that are tried at least and at most: the first finds everything cold, and others may use the machine.
const STEPS: (u64, u64) = (3, 20);

/// Seconds after which no more than the least are tried.
const TRIED_ENOUGH: f64 = 2.0;

/// Makes a few steps on black images, augmentation included, with a network that is thrown away.
fn try_steps(plan: &Plan, request: &Request, outline: &Outline, stop: &Stop) -> Result<Tried, Error> {
    let recipe = &plan.resolved.recipe;
    let count = recipe.train.batch_size.min(plan.listing.parts.train.len());
    let side = stored_side(recipe);
    let images = Tensor::f_zeros([count as i64, 3, side, side], (Kind::Uint8, request.device))?;
    let labels = Tensor::f_zeros([count as i64], (Kind::Int64, request.device))?;
    let set = ImageSet::Resident(DeviceSet { images, labels });
    let classes = plan.listing.class_names.len() as i64;
    let stats = ChannelStats { mean: [0.0; 3], std: [1.0; 3] };
    let presentation = Presentation::new(recipe, &stats, classes, request.device)?;
    let mut state = State::new(&plan.vs, &plan.architecture, recipe)?;
    let share = Share::alone(recipe.train.accumulate.unwrap_or(1));
    let mut stepper = Stepper::new(plan.network.as_ref(), &recipe.train, request.precision, request.device)?;
    let order: Vec<i64> = (0..count as i64).collect();
    let mut seconds: Vec<f64> = Vec::new();
    for epoch in 1..=STEPS.1 {
        if epoch > STEPS.0 && seconds.iter().sum::<f64>() > TRIED_ENOUGH {
            break;
        }
        stop.check()?;
        let started = Instant::now();
        let draw = Draw { seed: request.seed, epoch, repeats: 1 };
        for shown in presentation.epoch(&set, &order, count, draw, 0, share)? {
            let (loss, _) = stepper
                .update(&mut state, &shown?, 0.0)
                .map_err(|error| error.or_out_of_memory(&recipe.train))?;
            let _ = loss.f_double_value(&[])?; // waits for the device
        }
        seconds.push(started.elapsed().as_secs_f64());
    }
    let step_seconds = seconds.into_iter().fold(f64::INFINITY, f64::min);
    let steps = outline.steps_per_epoch * u64::from(outline.epochs);
    let pictures = if plan.stream { 0 } else { outline.picture_bytes };
    Ok(Tried {
        step_seconds,
        train_seconds: step_seconds * steps as f64,
        memory_bytes: environment::peak_memory(request.device).map(|bytes| bytes + pictures),
    })
}

/// Side of the images as they are stored, in pixels.
pub fn stored_side(recipe: &Recipe) -> i64 {
    const CIFAR: i64 = 32;
    recipe.folder.as_ref().map_or(CIFAR, |folder| folder.stored_size.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_bars() {
        assert_eq!(bars(&[0.0, 0.5, 1.0, 0.26], 0.0, 1.0), "▁▅█▃");
    }
}
