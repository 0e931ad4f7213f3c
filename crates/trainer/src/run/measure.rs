//! How fast a network trains and answers, on pictures that are made up.

use std::time::Instant;

use core_layers::Model;
use data_cifar::{ChannelStats, DeviceSet, Draw, ImageSet};
use run_record::Recipe;
use serde::Serialize;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};
use torch_ext::{Frozen, Profile};

use crate::data::presentation::Presentation;
use crate::network::build::{architecture, seed_initial_weights};
use crate::optim::precision::Precision;
use crate::process::signals::Stop;
use crate::run::evaluate::sums_of;
use crate::run::fit::Stepper;
use crate::run::outline::stored_side;
use crate::run::peers::{Peers, Together};
use crate::run::reduction::{self, Reduction, median};
use crate::run::state::State;
use crate::{Error, process::environment};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Steps of the recipe: pictures made ready, forward, backward, update.
    Train,
    /// Logits, without gradients.
    Infer,
}

/// What to measure.
#[derive(Debug)]
pub struct Bench {
    /// The network, its batch, optimiser and augmentation.
    pub recipe: Recipe,
    /// Training or inference.
    pub work: Work,
    /// Images of a step, of all processes together.
    pub batch_size: usize,
    /// Those that share it.
    pub peers: Peers,
    /// Arithmetic.
    pub precision: Precision,
    /// Where.
    pub device: Device,
    /// Seconds to measure at least.
    pub seconds: f64,
    /// Steps before that.
    pub warm_up: usize,
    /// Measure operations as well, in steps of their own.
    pub profile: bool,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// Variant name.
    pub model: String,
    /// What was measured.
    pub work: Work,
    /// `f32` or `bf16`.
    pub precision: String,
    /// Images of a step, of all processes together.
    pub batch_size: usize,
    /// How many share it.
    pub processes: usize,
    /// Threads of libtorch, in each.
    pub threads: i32,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// Steps that were measured.
    pub steps: usize,
    /// Images by the median step's time.
    pub images_per_second: f64,
    /// Time of a step in milliseconds: the least, the 10th, 50th and 90th percentile, the largest.
    pub step_ms: [f64; 5],
    /// Share of the time in which pictures are made ready.
    pub data_share: f64,
    /// Of several processes: what they wait for, and what that takes by itself.
    pub reduction: Option<Reduction>,
    /// Multiplications and additions of matrix products and convolutions per second: twice the network's
    /// multiply-accumulates, three times as much with a backward pass. Of all processes together.
    pub gflops: f64,
    /// The same of a product of two 2048×2048 matrices in one process on this machine, in this precision.
    pub peak_gflops: f64,
    /// Largest memory of the process, or of all tensors on the card.
    pub peak_memory_mb: Option<f64>,
    /// What operations took in a step, the longest first; empty unless asked for.
    pub profile: Vec<ProfiledOp>,
}

/// An operation in a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProfiledOp {
    /// libtorch's name of it.
    pub name: String,
    /// How often it ran.
    pub calls: f64,
    /// Milliseconds in it, without what it called.
    pub ms: f64,
    /// Its share of the step.
    pub share: f64,
}

/// Batches of made-up pictures.
const BATCHES: usize = 8;

/// Steps that are profiled.
const PROFILED: u32 = 5;

/// Steps that are measured, whatever they take.
const LEAST_STEPS: usize = 5;

/// Classes of made-up pictures.
const CLASSES: i64 = 10;

/// Seconds of a step.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// In which pictures were made ready.
    data: f64,
    /// Of the rest.
    rest: f64,
    /// Of the last backward pass on the CPU, and of the wait for its sums, where there are several processes.
    took: [f64; 2],
}

impl Step {
    fn all(&self) -> f64 {
        self.data + self.rest
    }
}

/// What is told of a step. It says whether to go on.
type Each<'a> = dyn FnMut(Step) -> Result<bool, Error> + 'a;

impl Bench {
    /// Measures.
    ///
    /// # Errors
    /// libtorch's refusal, or somebody who wants to stop.
    pub fn run(&self, stop: &Stop) -> Result<Measured, Error> {
        let architecture = architecture(&self.recipe, Some(CLASSES))?;
        let vs = VarStore::new(self.device);
        seed_initial_weights(0);
        let network = architecture.init(&vs.root())?;
        let mut state = State::new(&vs, &architecture, &self.recipe)?;
        let mut steps = |each: &mut Each| match self.work {
            Work::Train => self.train(network.as_ref(), &vs, &mut state, stop, each),
            Work::Infer => self.infer(network.as_ref(), architecture.facts.image_size, each),
        };

        let (mut warm_up, mut times, mut started) = (self.warm_up, Vec::new(), Instant::now());
        steps(&mut |time| {
            stop.check()?;
            if warm_up > 0 {
                (warm_up, started) = (warm_up - 1, Instant::now());
                return Ok(true);
            }
            times.push(time);
            Ok(times.len() < LEAST_STEPS || started.elapsed().as_secs_f64() < self.seconds)
        })?;
        let peak_memory_mb = environment::peak_memory_mb(self.device);
        let profile = if self.profile { profiled(steps)? } else { Vec::new() };

        let together = Together::new(&self.peers, &vs, self.recipe.train.sync_batch_norm)?;
        let took = |n: usize| median(times.iter().map(|step| step.took[n]));
        let reduction = together
            .map(|together| reduction::measure(&self.peers, &together, [took(0), took(1)]))
            .transpose()?;
        let data: f64 = times.iter().map(|step| step.data).sum();
        let mut totals: Vec<f64> = times.iter().map(Step::all).collect();
        let all: f64 = totals.iter().sum();
        totals.sort_by(f64::total_cmp);
        let at = |share: f64| totals[((totals.len() - 1) as f64 * share).round() as usize];
        let images_per_second = self.batch_size as f64 / at(0.5);
        let passes = if self.work == Work::Train { 3.0 } else { 1.0 };
        Ok(Measured {
            model: architecture.model.clone(),
            work: self.work,
            precision: self.precision.as_str().to_owned(),
            batch_size: self.batch_size,
            processes: self.peers.processes(),
            threads: tch::get_num_threads(),
            device: environment::device_name(self.device),
            steps: times.len(),
            images_per_second,
            step_ms: [0.0, 0.1, 0.5, 0.9, 1.0].map(|share| 1e3 * at(share)),
            data_share: data / all,
            reduction,
            gflops: 2e-9 * passes * architecture.facts.macs as f64 * images_per_second,
            peak_gflops: peak_gflops(self.precision, self.device)?,
            peak_memory_mb,
            profile,
        })
    }

    /// Makes steps of training until `each` has enough; of several processes, that of the first.
    fn train(
        &self,
        network: &dyn Model,
        vs: &VarStore,
        state: &mut State,
        stop: &Stop,
        each: &mut Each,
    ) -> Result<(), Error> {
        let Self { recipe, batch_size, device, .. } = self;
        let (count, side) = ((batch_size * BATCHES) as i64, stored_side(recipe));
        tch::manual_seed(0);
        let images = Tensor::f_randint(256, [count, 3, side, side], (Kind::Uint8, *device))?;
        let labels = Tensor::f_randint(CLASSES, [count], (Kind::Int64, *device))?;
        let set = ImageSet::Resident(DeviceSet { images, labels });
        let stats = ChannelStats { mean: [127.5; 3], std: [127.5; 3] };
        let presentation = Presentation::new(recipe, &stats, CLASSES, *device)?;
        let order: Vec<i64> = (0..count).collect();
        let share = self.peers.share(recipe.train.accumulate.unwrap_or(1));
        let mut stepper = Stepper::new(network, &recipe.train, self.precision, *device)?;
        stepper.join(Together::new(&self.peers, vs, recipe.train.sync_batch_norm)?);
        let mut enough = false;
        for epoch in 1.. {
            let draw = Draw { seed: 0, epoch, repeats: 1 };
            let mut batches = presentation.epoch(&set, &order, *batch_size, draw, 0, share)?;
            loop {
                let started = Instant::now();
                let Some(shown) = batches.next() else { break };
                let ready = started.elapsed().as_secs_f64();
                let shown = shown?;
                let (loss, logits) = stepper.update(state, &shown, 1e-4)?;
                let batch = shown.batch as i64;
                let sums = sums_of(&loss, batch, &logits, &shown.labels)?;
                let known = self.peers.after_step(sums, stop, enough && self.peers.is_first())?;
                state.sums.add_sums(&known.sums, batch)?;
                let _ = loss.f_double_value(&[])?; // waits for the device
                if known.save {
                    return Ok(());
                }
                let rest = started.elapsed().as_secs_f64() - ready;
                let took = stepper.took().map(|took| took.as_secs_f64());
                enough = !each(Step { data: ready, rest, took })?;
                // Several end together, after the next step.
                if enough && !self.peers.are_several() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Asks for logits until `each` has enough.
    fn infer(&self, network: &dyn Model, side: i64, each: &mut Each) -> Result<(), Error> {
        tch::manual_seed(0);
        let images = Tensor::f_rand([self.batch_size as i64, 3, side, side], (Kind::Float, self.device))?;
        let images = torch_ext::channels_last(&images)?;
        let _frozen = Frozen::new()?;
        loop {
            let started = Instant::now();
            let logits = tch::no_grad(|| -> Result<Tensor, Error> {
                let _rounding = self.precision.tf32()?;
                let _narrow = self.precision.autocast(self.device)?;
                Ok(network.forward_t(&images, false))
            })?;
            let _ = logits.f_sum(Kind::Double)?.f_double_value(&[])?; // waits for the device
            if !each(Step { data: 0.0, rest: started.elapsed().as_secs_f64(), took: [0.0; 2] })? {
                return Ok(());
            }
        }
    }
}

/// What operations take in a step on average.
fn profiled(mut steps: impl FnMut(&mut Each) -> Result<(), Error>) -> Result<Vec<ProfiledOp>, Error> {
    let (mut count, mut seconds) = (0, 0.0);
    let profile = Profile::start()?;
    steps(&mut |step| {
        count += 1;
        seconds += step.all();
        Ok(count < PROFILED)
    })?;
    let per_step = |value: f64| value / f64::from(PROFILED);
    let ops = profile.stop()?.into_iter().map(|op| ProfiledOp {
        calls: per_step(op.calls as f64),
        ms: per_step(1e3 * op.time.as_secs_f64()),
        share: op.time.as_secs_f64() / seconds,
        name: op.name,
    });
    Ok(ops.collect())
}

/// What a large matrix product reaches.
fn peak_gflops(precision: Precision, device: Device) -> Result<f64, Error> {
    const SIDE: i64 = 2048;
    let kind = match precision {
        Precision::F32 | Precision::Tf32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
    };
    let _rounding = precision.tf32()?;
    let matrix = Tensor::f_rand([SIDE, SIDE], (Kind::Float, device))?.f_to_kind(kind)?;
    let mut least = f64::INFINITY;
    for _ in 0..8 {
        let started = Instant::now();
        let product = matrix.f_matmul(&matrix)?;
        let _ = product.f_get(0)?.f_get(0)?.f_double_value(&[])?; // waits for the device
        least = least.min(started.elapsed().as_secs_f64());
    }
    Ok(2e-9 * (SIDE as f64).powi(3) / least)
}
