//! The training loop.

use std::time::{Duration, Instant};

use core_layers::{Model, ModelConfig};
use data_cifar::{Draw, Slice, keyed_seed, permutation, repeated};
use run_record::{EpochStats, Recipe, Select, TrainRecipe};
use tch::nn::VarStore;
use tch::{Device, Tensor};
use torch_ext::{BatchShare, clear_grads, foreach_norm, set_grads, with_batch_share};

use crate::Error;
use crate::data::presentation::{Presentation, Shown};
use crate::data::source::Subset;
use crate::look::glance::Glance;
use crate::optim::loss::loss;
use crate::optim::precision::Precision;
use crate::optim::schedule::LearningRate;
use crate::process::progress::Progress;
use crate::process::signals::Stop;
use crate::run::evaluate::{Metrics, SavedSums, Sums, evaluate, sums_of};
use crate::run::keeper::Keeper;
use crate::run::peers::{Peers, Together};
use crate::run::replay::Replayed;
use crate::run::state::{Counters, State};

/// Everything a run trains with.
#[derive(Debug)]
pub struct Job<'a> {
    /// What to do.
    pub recipe: &'a Recipe,
    /// Seed of every draw.
    pub seed: u64,
    /// The network.
    pub network: &'a dyn Model,
    /// Its tensors.
    pub vs: &'a VarStore,
    /// What it was made of, which knows its head.
    pub config: &'a dyn ModelConfig,
    /// How often the images of each class count, f32 `[K]`, if not all count alike.
    pub class_weights: Option<Tensor>,
    /// Images to learn from.
    pub train: Subset<'a>,
    /// Images to choose the best epoch by.
    pub validation: Subset<'a>,
    /// How images are fed.
    pub presentation: Presentation,
    /// What is drawn of the network, if anything.
    pub glance: Option<Glance>,
    /// Arithmetic of a step.
    pub precision: Precision,
    /// What a person sees.
    pub progress: &'a Progress,
    /// Whether somebody wants it to stop.
    pub stop: &'a Stop,
    /// The processes that train together.
    pub peers: &'a Peers,
}

/// Trains from where `state` is to the end of the recipe. Whatever happens, `keeper` has on the disk what it takes to
/// go on.
///
/// # Errors
/// A loss that is no longer a number, somebody who wants to stop, libtorch's refusal, a disk that is full.
pub fn fit(job: &Job, state: &mut State, keeper: &mut Keeper) -> Result<(), Error> {
    let images = repeated(&job.train.indices(), job.presentation.repeats).len();
    let lr = LearningRate::new(job.recipe, images);
    lr.check()?;
    if job.recipe.rollback.is_some() && state.counters.updates == 0 {
        keeper.save(job.vs, state)?; // what the first epoch can go back to
    }
    let mut stepper = Stepper::new(job.network, &job.recipe.train, job.precision, job.vs.device())?;
    stepper.pass.class_weights = job.class_weights.as_ref();
    let (trunk, mut prepared) = (trunk(job), None);
    if let Some(epochs) = job.recipe.train.freeze_epochs {
        let updates = u64::from(epochs) * lr.per_epoch();
        state.optimizer.delay(updates, |name| !job.config.is_head(name));
    }
    while !state.counters.is_finished(&job.recipe.train) {
        let frozen = job.recipe.train.freeze_epochs.is_some_and(|epochs| state.counters.epoch() <= epochs);
        if prepared.replace(frozen) != Some(frozen) {
            trunk.iter().for_each(|tensor| drop(tensor.set_requires_grad(!frozen)));
            stepper.pass.frozen = frozen;
            stepper.join(Together::new(job.peers, job.vs, job.recipe.train.sync_batch_norm)?);
        }
        let outcome = train_epoch(job, &lr, &mut stepper, state, keeper)
            .and_then(|()| end_epoch(job, &lr, state, keeper));
        let outcome = match outcome {
            Err(stopped @ Error::Stopped(_)) => save(job, &lr, state, keeper).and(Err(stopped)),
            outcome => outcome,
        };
        if let (Err(_), Some(board)) = (&outcome, &mut keeper.board) {
            // The losses that led to it. The first error is the one to report.
            let _ = board.flush();
        }
        match outcome {
            Err(error @ Error::NotFinite { .. }) => roll_back(job, state, keeper, error)?,
            outcome => outcome?,
        }
    }
    Ok(())
}

/// What learns of the network, but its head.
fn trunk(job: &Job) -> Vec<Tensor> {
    let named = job.vs.variables().into_iter();
    let trunk = named.filter(|(name, tensor)| tensor.requires_grad() && !job.config.is_head(name));
    trunk.map(|(_, tensor)| tensor).collect()
}

/// Goes back to the end of the last epoch with lower rates, if the recipe wants that and it was not done too often.
///
/// # Errors
/// The error it is about, otherwise.
fn roll_back(job: &Job, state: &mut State, keeper: &mut Keeper, error: Error) -> Result<(), Error> {
    let rollbacks = state.counters.rollbacks + 1;
    let Some(rollback) = job.recipe.rollback.filter(|rollback| rollbacks <= rollback.times) else {
        return Err(error);
    };
    let position = match job.peers.agree(keeper.go_back(job.vs, state, rollbacks)) {
        Ok(position) => position,
        Err(why) => {
            job.progress.line(&format!("cannot go back: {why}"));
            return Err(error);
        }
    };
    state.share(job.vs, job.peers)?;
    let factor = rollback.lr_factor.powf(rollbacks.into());
    if let Some(position) = position {
        job.progress.line(&format!("{error}; back to {position}, all rates times {factor} from here"));
    }
    job.progress.at(state);
    Ok(())
}

/// The steps of the epoch under way that are not done yet.
fn train_epoch(
    job: &Job,
    lr: &LearningRate,
    stepper: &mut Stepper,
    state: &mut State,
    keeper: &mut Keeper,
) -> Result<(), Error> {
    let Job { recipe, seed, .. } = *job;
    let epoch = u64::from(state.counters.epoch());
    let draw = Draw { seed, epoch, repeats: job.presentation.repeats };
    let order = repeated(&permutation(seed, epoch, job.train.range.clone()), draw.repeats);
    let (first, batch_size) = (state.counters.step as usize, recipe.train.batch_size);
    let (started, before) = (Instant::now(), state.counters.seconds);

    let share = job.peers.share(recipe.train.accumulate.unwrap_or(1));
    for shown in job.presentation.epoch(job.train.set, &order, batch_size, draw, first, share)? {
        if !job.peers.are_several() {
            job.stop.check()?;
        }
        let shown = shown?;
        // Whatever the network draws inside depends on the seed and the step alone.
        tch::manual_seed(keyed_seed(seed, "network", epoch, shown.number));
        let rate = rate(job, lr, &state.counters, state.counters.updates);
        let (loss, logits) = stepper.update(state, &shown, rate)?;
        let batch = shown.batch as i64;
        let sums = sums_of(&loss, batch, &logits, &shown.labels)?;
        let due = keeper.is_due(state.counters.step + 1);
        let known = job.peers.after_step(sums, job.stop, due)?;
        state.sums.add_sums(&known.sums, batch)?;
        state.counters.step += 1;
        state.counters.updates += 1;
        state.counters.seconds = before + started.elapsed().as_secs_f64();
        if let Some(board) = &mut keeper.board {
            board.step(state.counters.updates, known.sums.f_get(0)? / batch);
        }
        job.progress.step(shown.batch);

        // To look at a number waits for the device, which costs nothing on the CPU. Elsewhere a save looks.
        if job.vs.device() == Device::Cpu {
            require_finite(job, lr, state, keeper)?;
        }
        keeper.stepped(job.vs, state)?;
        if known.save {
            save(job, lr, state, keeper)?;
            keeper.retain(state)?;
        }
        if let Some(stopped) = known.stopped {
            return Err(stopped.into());
        }
    }
    require_finite(job, lr, state, keeper)?; // which waits for the last step
    state.counters.seconds = before + started.elapsed().as_secs_f64();
    Ok(())
}

/// Makes updates of a network.
#[derive(Debug)]
pub struct Stepper<'a> {
    /// How a batch passes through the network.
    pub pass: Pass<'a>,
    replayed: Replayed,
}

/// How a batch passes through a network.
#[derive(Debug)]
pub struct Pass<'a> {
    network: &'a dyn Model,
    train: &'a TrainRecipe,
    precision: Precision,
    /// The head alone learns, and the rest answers as in evaluation.
    pub frozen: bool,
    /// How often the images of each class count, f32 `[K]`, if not all count alike.
    pub class_weights: Option<&'a Tensor>,
    /// The other processes of each update, if there are any.
    together: Option<Together<'a>>,
}

impl<'a> Stepper<'a> {
    /// No update was made yet.
    ///
    /// # Errors
    /// libtorch's refusal to tell what the device can do.
    pub fn new(
        network: &'a dyn Model,
        train: &'a TrainRecipe,
        precision: Precision,
        device: Device,
    ) -> Result<Self, Error> {
        let pass = Pass { network, train, precision, frozen: false, class_weights: None, together: None };
        Ok(Self { pass, replayed: Replayed::new(device)? })
    }

    /// Makes the next updates those of several processes, if there are any.
    pub fn join(&mut self, together: Option<Together<'a>>) {
        if together.as_ref().is_some_and(Together::waits_inside) {
            self.replayed = Replayed::never();
        }
        self.pass.together = together;
    }

    /// Of several processes' last update: see [`Together::took`].
    pub fn took(&self) -> [Duration; 2] {
        self.pass.together.as_ref().map_or([Duration::ZERO; 2], Together::took)
    }

    /// One update down the gradient of a batch's loss. Returns the loss and the logits `[B, K]` of the images that count,
    /// which are valid until the next one. The losses of all shares of a batch add up to its mean.
    ///
    /// # Errors
    /// libtorch's refusal.
    pub fn update(&mut self, state: &mut State, shown: &Shown, rate: f64) -> Result<(Tensor, Tensor), Error> {
        let Self { pass, replayed } = self;
        let together = pass.together.as_ref();
        let optimizer = &mut state.optimizer;
        let weights = optimizer.tensors();
        let rounding = pass.precision.tf32()?;
        // The slices of a batch follow from its size.
        let rest = [shown.smoothing.to_bits(), (shown.batch as u64) << 1 | u64::from(pass.frozen)];
        let mut answers = replayed.run(&[&shown.images, &shown.targets], rest, &mut |inputs| {
            clear_grads(&weights)?;
            let (loss, logits) = pass.gradients([inputs[0], inputs[1]], shown)?;
            let grads = weights.iter().map(Tensor::f_grad).collect::<Result<Vec<_>, _>>()?;
            Ok([loss, logits].into_iter().chain(grads).collect())
        })?;
        drop(rounding);
        let grads = answers.split_off(2);
        together.map_or(Ok(()), |together| together.sum_rest(&grads))?;
        set_grads(&weights, &grads)?;
        optimizer.step(rate, pass.train.clip_grad)?;
        together.map_or(Ok(()), Together::average_statistics)?;
        if let Some(ema) = &mut state.ema {
            ema.update(state.counters.updates)?;
        }
        // A loss is kept longer than until the next step.
        Ok((answers[0].copy(), answers.swap_remove(1)))
    }
}

impl Pass<'_> {
    /// Adds the gradient of a batch's loss to that of the weights: of all shares of the batch, if there are several.
    /// Returns what the images' losses, `[B, 3, S, S]` and their targets, add to the batch's, and the logits `[B, K]` of
    /// those that count.
    fn gradients(&self, [images, targets]: [&Tensor; 2], shown: &Shown) -> Result<(Tensor, Tensor), Error> {
        let (mut losses, mut logits) = (Vec::new(), Vec::new());
        let mut start = 0;
        for (n, slice) in shown.slices.iter().enumerate() {
            let len = slice.own.len() as i64;
            let part = |tensor: &Tensor| tensor.f_narrow(0, start, len);
            let part_logits = {
                let _narrow = self.precision.autocast(images.device())?;
                let images = part(images)?;
                let forward = || self.network.forward_t(&images, !self.frozen);
                let pass = || match share(slice) {
                    Some(share) => with_batch_share(share, forward),
                    None => forward(),
                };
                match &self.together {
                    Some(together) => together.forward(slice.counts, pass),
                    None => pass(),
                }
            };
            let part_loss =
                loss(self.train, &part_logits, &part(targets)?, shown.smoothing, self.class_weights)?;
            let counted = if slice.counts { len } else { 0 };
            // By its share, so that the gradients add up to those of the batch's mean.
            let part_loss = part_loss * (counted as f64 / shown.batch as f64);
            if let (Some(together), true) = (&self.together, n + 1 == shown.slices.len()) {
                together.begin()?;
            }
            part_loss.f_backward()?;
            losses.push(part_loss.f_detach()?);
            logits.push(part_logits.f_detach()?.f_narrow(0, 0, counted)?);
            start += len;
        }
        self.together.as_ref().map_or(Ok(()), Together::finish)?;
        Ok((Tensor::f_stack(&losses, 0)?.f_sum(tch::Kind::Float)?, Tensor::f_cat(&logits, 0)?))
    }
}

/// What of a part the images are, if not all of it.
fn share(Slice { part, own, .. }: &Slice) -> Option<BatchShare> {
    let [first, len, whole] = [own.start - part.start, own.len(), part.len()].map(|count| count as i64);
    (len < whole).then_some(BatchShare { first, len, whole })
}

/// Validates, and has the epoch on the disk.
fn end_epoch(job: &Job, lr: &LearningRate, state: &mut State, keeper: &mut Keeper) -> Result<(), Error> {
    require_finite_weights(job, lr, state, keeper)?;
    let train = state.sums.read();
    let started = Instant::now();
    let plain = validate(job)?;
    let averaged = state.ema.as_mut().map(|ema| ema.in_place(|| validate(job))).transpose()?;
    let validated = [Some(plain), averaged].into_iter().flatten();
    for (what, metrics) in
        ["the validation loss is", "the averaged weights' validation loss is"].into_iter().zip(validated)
    {
        if !metrics.loss.is_finite() {
            return Err(not_finite(what, job, lr, &state.counters, keeper, state.counters.step));
        }
    }
    let counters = &mut state.counters;
    let stats = EpochStats {
        epoch: counters.epoch(),
        lr: rate(job, lr, counters, counters.updates.saturating_sub(1)),
        train_loss: train.loss,
        train_top1: train.top1,
        train_top5: train.top5,
        val_loss: plain.loss,
        val_top1: plain.top1,
        val_top5: plain.top5,
        ema_val_loss: averaged.map(|metrics| metrics.loss),
        ema_val_top1: averaged.map(|metrics| metrics.top1),
        ema_val_top5: averaged.map(|metrics| metrics.top5),
        images_per_second: state.sums.images() as f64 / counters.seconds,
        train_seconds: counters.seconds,
        val_seconds: started.elapsed().as_secs_f64(),
    };
    counters.history.push(stats.clone());
    (counters.step, counters.seconds) = (0, 0.0);
    state.sums = Sums::new(job.vs.device(), SavedSums::default())?;

    let best = state.counters.best_epochs().first() == Some(&stats.epoch); // a tie keeps the earlier epoch
    // Before the checkpoint: a run that goes on after it draws the next ones.
    if let (Some(glance), Some(run)) = (&job.glance, keeper.run)
        && let Some(drawn) = glance.draw(job.network, stats.epoch, run)?
        && let Some(board) = &mut keeper.board
    {
        board.picture(state.counters.updates, "val/explained", &drawn.into())?;
    }
    if let Some(board) = &mut keeper.board {
        board.epoch(state.counters.updates, &stats, job.vs)?;
    }
    // Events may come before the checkpoint, because a run that goes on takes back those after it.
    keeper.save_epoch(job.vs, state, &stats, best || job.recipe.train.select == Select::Last)?;
    keeper.run.map_or(Ok(()), |run| run.write_history(&state.counters.history))?;
    keeper.retain(state)?;
    job.progress.epoch_done(&stats, best);
    Ok(())
}

fn validate(job: &Job) -> Result<Metrics, Error> {
    // Several stop together, after a step.
    let never = Stop::default();
    let stop = if job.peers.are_several() { &never } else { job.stop };
    evaluate(job.network, &job.validation, &job.presentation, &job.recipe.train, stop, job.peers)
}

/// The learning rate of the update before which `updates` were made.
fn rate(job: &Job, lr: &LearningRate, counters: &Counters, updates: u64) -> f64 {
    let factor =
        job.recipe.rollback.map_or(1.0, |rollback| rollback.lr_factor.powf(counters.rollbacks.into()));
    factor * lr.at(updates)
}

/// Saves a checkpoint in the middle of an epoch, unless it would be of no use.
fn save(job: &Job, lr: &LearningRate, state: &mut State, keeper: &mut Keeper) -> Result<(), Error> {
    require_finite(job, lr, state, keeper)?;
    require_finite_weights(job, lr, state, keeper)?;
    keeper.save(job.vs, state)
}

/// Refuses weights that are not finite: a step breaks them before the next one's loss shows it.
fn require_finite_weights(job: &Job, lr: &LearningRate, state: &State, keeper: &Keeper) -> Result<(), Error> {
    let tensors: Vec<Tensor> = job.vs.variables().into_values().collect();
    let largest = Tensor::f_stack(&foreach_norm(&tensors, f64::INFINITY)?, 0)?;
    if largest.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
        return Err(not_finite("a weight is", job, lr, &state.counters, keeper, state.counters.step));
    }
    Ok(())
}

/// Refuses sums with a loss in them that is not a finite number.
fn require_finite(job: &Job, lr: &LearningRate, state: &State, keeper: &Keeper) -> Result<(), Error> {
    match state.sums.broken() {
        Some(step) => Err(not_finite("the training loss is", job, lr, &state.counters, keeper, step)),
        None => Ok(()),
    }
}

/// What became no number, after a step of the epoch under way.
fn not_finite(
    what: &'static str,
    job: &Job,
    lr: &LearningRate,
    counters: &Counters,
    keeper: &Keeper,
    step: u64,
) -> Error {
    let update = (counters.updates + step).saturating_sub(counters.step + 1);
    let place = format!("at step {step} of epoch {}", counters.epoch());
    Error::NotFinite { what, place, lr: rate(job, lr, counters, update), checkpoint: keeper.newest() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::source::{self, Purpose};
    use crate::{network::build, run::recipes};
    use data_cifar::Share;
    use std::path::Path;

    type Tensors = std::collections::BTreeMap<String, Tensor>;

    /// The network's tensors and the loss after one update on 128 digits, passed through in so many parts; from
    /// `start`, which is drawn if it is empty.
    fn after_one_update(
        model: &str,
        sets: &[&str],
        accumulate: usize,
        start: &mut Tensors,
    ) -> (Tensors, f64) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let fixed =
            ["train.batch_size=128", "train.clip_grad=1.0", "augment.rotation_degrees=", "augment.zoom="];
        let sgd = [
            "name=sgd",
            "beta1=",
            "beta2=",
            "eps=",
            "scale_decay_by_lr=",
            "momentum=0.9",
            "nesterov=true",
            "lr=0.1",
        ];
        let mut all: Vec<String> = fixed.iter().chain(sets).map(|set| (*set).to_owned()).collect();
        all.extend(sgd.map(|set| format!("optimizer.{set}")));
        all.push(format!("train.accumulate={accumulate}"));
        let recipe = &recipes::from_preset(&root, "quick", model, &all).unwrap().recipe;
        let source = source::list(recipe, &root, None, Purpose::Training).unwrap();
        let source = source.read(recipe, false, &Stop::default(), &mut |_| {}).unwrap();
        let architecture = build::architecture(recipe, Some(10)).unwrap();
        let vs = VarStore::new(Device::Cpu);
        let network = architecture.init(&vs.root()).unwrap();
        // Other tests draw from the same generator.
        let tensors: Tensors = vs.variables().into_iter().collect();
        if start.is_empty() {
            *start = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.detach().copy())).collect();
        }
        tch::no_grad(|| tensors.iter().for_each(|(name, tensor)| tensor.shallow_clone().copy_(&start[name])));
        let stats = source.normalization(&recipe.data).unwrap();
        let (set, _) = source.sets(Device::Cpu).unwrap();
        let presentation = Presentation::new(recipe, &stats, 10, Device::Cpu).unwrap();
        let mut state = State::new(&vs, &architecture, recipe).unwrap();
        let draw = Draw { seed: 1, epoch: 1, repeats: 1 };
        let order = Subset { set: &set, range: source.parts.train.clone() }.indices();
        let shown = presentation
            .epoch(&set, &order, 128, draw, 0, Share::alone(accumulate))
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        let mut stepper = Stepper::new(network.as_ref(), &recipe.train, Precision::F32, Device::Cpu).unwrap();
        let (loss, logits) = stepper.update(&mut state, &shown, 0.1).unwrap();
        assert_eq!(logits.size(), [128, 10]);
        (tensors, loss.double_value(&[]))
    }

    #[test]
    fn four_parts_of_32_are_a_batch_of_128() {
        let networks: [(&str, &[&str]); 4] = [
            (
                "cct_reference",
                &[
                    "model.embed_dim=32",
                    "model.attn_drop=0.0",
                    "model.mlp_drop=0.0",
                    "model.drop_path_rate=0.0",
                ],
            ),
            ("vit_reference", &["model.depth=2", "model.mlp_drop=0.0"]),
            ("patchconvnet_reference", &["model.embed_dim=32", "model.attn_drop=0.0", "model.mlp_drop=0.0"]),
            (
                "gcvit_xxtiny_64",
                &["model.embed_dim=16", "model.depths=[2,2,2,2]", "model.drop_path_rate=0.0"],
            ),
        ];
        for (model, sets) in networks {
            let mut start = Tensors::new();
            let (whole, whole_loss) = after_one_update(model, sets, 1, &mut start);
            let moved =
                whole.iter().map(|(name, tensor)| (tensor - &start[name]).abs().max().double_value(&[]));
            assert!(moved.fold(0.0, f64::max) > 1e-3, "{model}");
            // Five parts are four of 26 and one of 24.
            for parts in [4, 5] {
                let (split, loss) = after_one_update(model, sets, parts, &mut start);
                assert!((loss - whole_loss).abs() < 1e-5, "{model}: {loss} {whole_loss}");
                for (name, tensor) in &whole {
                    let difference = (tensor - &split[name]).abs().max().double_value(&[]);
                    assert!(difference < 1e-5, "{model} in {parts}, {name}: {difference}");
                }
            }
        }
    }
}
