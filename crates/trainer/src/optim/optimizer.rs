//! The recipe's optimiser: AdamW, SGD, LAMB, Lion or Muon over groups of tensors, with its state by name.

use std::collections::BTreeMap;

use core_layers::weights::{Problem, WeightsError, WeightsFile};
use run_record::{Algorithm, Lookahead, OptimizerRecipe};
use tch::nn::VarStore;
use tch::{Kind, TchError, Tensor, no_grad};
use torch_ext::{
    Adam, Sgd, clip_grad_norm_, foreach_add_, foreach_lerp_, foreach_mul_, foreach_norm, fused_adamw_,
    fused_sgd_,
};

use crate::Error;
use crate::network::registry::Architecture;
use crate::optim::muon;

/// The state's name of the number of updates.
const STEP: &str = "step";

/// An optimiser over the trainable tensors of a network.
///
/// - AdamW is PyTorch's, or, with the decay not scaled by the learning rate, `θ *= 1 − λ` before its step without
///   decay. The unscaled decay has no factor of the layer.
/// - SGD is PyTorch's without dampening: weight decay is added to the gradient.
/// - LAMB is timm's `Lamb` with `max_grad_norm=None`; tensors without weight decay have no trust ratio.
/// - Lion is timm's `Lion`.
/// - Muon is timm's `Muon` with its defaults (see [`muon`]), in f32 where timm computes in bf16. Other tensors than those
///   it is made for move by AdamW, with Nesterov's step too, where timm takes NAdamW.
/// - With Lookahead, the slow weights are timm's `Lookahead`'s, which begin where the first k updates have led.
///
/// A tensor without a gradient is left alone. AdamW and LAMB correct all means by the number of updates of the whole
/// optimiser, or since the one that [`Optimizer::delay`] names, where PyTorch counts for each tensor and timm's LAMB for
/// each group.
#[derive(Debug)]
pub struct Optimizer {
    /// Updates so far.
    steps: u64,
    lookahead: Option<Lookahead>,
    groups: Vec<Group>,
}

/// Tensors with the same numbers, sorted by name.
#[derive(Debug)]
struct Group {
    algorithm: Algorithm,
    weight_decay: f64,
    /// What the schedule's rate is multiplied by.
    lr_factor: f64,
    /// Updates before the first one of these tensors.
    earlier: u64,
    slots: Vec<Slot>,
}

/// A tensor and what the optimiser remembers of it.
#[derive(Debug)]
struct Slot {
    name: String,
    tensor: Tensor,
    /// As [`state_names`] has them, shaped and laid out as the tensor.
    states: Vec<Tensor>,
    /// The slow weights of Lookahead, if there is one.
    slow: Option<Tensor>,
}

/// Handles to the tensors of a group that have a gradient.
#[derive(Debug, Default)]
struct Lists {
    params: Vec<Tensor>,
    grads: Vec<Tensor>,
    /// The first state of each tensor, if there is one.
    first: Vec<Tensor>,
    /// The second.
    second: Vec<Tensor>,
}

/// What an algorithm remembers of each tensor.
fn state_names(algorithm: Algorithm) -> &'static [&'static str] {
    match algorithm {
        Algorithm::AdamW { .. } | Algorithm::Lamb { .. } => &["exp_avg", "exp_avg_sq"],
        Algorithm::Sgd { momentum: 0.0, .. } => &[],
        Algorithm::Sgd { .. } | Algorithm::Muon { .. } => &["momentum"],
        Algorithm::Lion { .. } => &["exp_avg"],
    }
}

/// Whether a tensor is a matrix or a kernel, and no bias, norm, layer scale, token or embedding.
fn is_weight(name: &str, tensor: &Tensor, embeddings: &[&str]) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    tensor.dim() > 1 && !embeddings.contains(&last)
}

/// What a tensor moves by.
fn algorithm_of(recipe: Algorithm, name: &str, tensor: &Tensor, embeddings: &[&str]) -> Algorithm {
    match recipe {
        Algorithm::Muon { beta1, beta2, eps, .. }
            if !(is_weight(name, tensor, embeddings) && muon::is_suitable(&tensor.size())) =>
        {
            Algorithm::AdamW { beta1, beta2, eps, scale_decay_by_lr: true }
        }
        other => other,
    }
}

impl Optimizer {
    /// An optimiser over every trainable tensor of `vs`, whose tensors are named as `architecture` names them. The
    /// state is laid out as the tensors are now, so their device and memory format have to be the final ones.
    ///
    /// With `decay_weights_only`, tensors of fewer than two dimensions and the architecture's embeddings have no weight
    /// decay, as with timm's `param_groups_weight_decay`. With `layer_decay` d, the rate of a tensor is the
    /// schedule's times d^(n + 1 − [`layer_id`](core_layers::ModelConfig::layer_id)), where n + 1 is the last layer
    /// (timm's `param_groups_layer_decay`).
    ///
    /// # Errors
    /// libtorch's refusal.
    pub fn new(vs: &VarStore, architecture: &Architecture, recipe: &OptimizerRecipe) -> Result<Self, Error> {
        let tensors: BTreeMap<String, Tensor> = vs.variables().into_iter().collect();
        let config = architecture.config.as_ref();
        let layers: Vec<i64> = tensors.keys().map(|name| config.layer_id(name)).collect();
        let last = layers.iter().copied().max().unwrap_or(0);

        let mut groups: BTreeMap<(i64, bool, bool), Group> = BTreeMap::new();
        for ((name, tensor), layer) in tensors.into_iter().zip(layers) {
            if !tensor.requires_grad() {
                continue;
            }
            let decays = !recipe.decay_weights_only || is_weight(&name, &tensor, config.embeddings());
            let (depth, lr_factor) = match recipe.layer_decay {
                Some(decay) => (layer, decay.powf((last - layer) as f64)),
                None => (0, 1.0),
            };
            let algorithm = algorithm_of(recipe.algorithm, &name, &tensor, config.embeddings());
            let states = state_names(algorithm).iter().map(|_| tensor.f_zeros_like());
            let states = states.collect::<Result<_, _>>()?;
            let slow = recipe.lookahead.map(|_| copy(&tensor)).transpose()?;
            let weight_decay = if decays { recipe.weight_decay } else { 0.0 };
            let group = groups.entry((depth, decays, algorithm == recipe.algorithm));
            let group = group.or_insert_with(|| Group {
                algorithm,
                weight_decay,
                lr_factor,
                earlier: 0,
                slots: Vec::new(),
            });
            group.slots.push(Slot { name, tensor, states, slow });
        }
        Ok(Self { steps: 0, lookahead: recipe.lookahead, groups: groups.into_values().collect() })
    }

    /// Updates so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// From now on so many updates were made.
    pub fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }

    /// The tensors with such names have no gradient before so many updates.
    pub fn delay(&mut self, updates: u64, is_late: impl Fn(&str) -> bool) {
        for group in std::mem::take(&mut self.groups) {
            let (late, early): (Vec<_>, Vec<_>) =
                group.slots.into_iter().partition(|slot| is_late(&slot.name));
            for (slots, earlier) in [(early, group.earlier), (late, updates)] {
                if !slots.is_empty() {
                    let Group { algorithm, weight_decay, lr_factor, .. } = group;
                    self.groups.push(Group { algorithm, weight_decay, lr_factor, earlier, slots });
                }
            }
        }
    }

    /// Handles to the tensors that it updates.
    pub fn tensors(&self) -> Vec<Tensor> {
        let slots = self.groups.iter().flat_map(|group| &group.slots);
        slots.map(|slot| slot.tensor.shallow_clone()).collect()
    }

    /// One update along the gradients there are, at the schedule's rate `lr`. With `clip_grad`, gradients whose 2-norm
    /// together is longer are first scaled to it, in place. Nothing waits for the device.
    ///
    /// # Errors
    /// A gradient or a tensor that no longer fits the state, or libtorch's refusal.
    pub fn step(&mut self, lr: f64, clip_grad: Option<f64>) -> Result<(), Error> {
        let lists = self.groups.iter().map(Group::with_gradients).collect::<Result<Vec<_>, _>>()?;
        if let Some(max_norm) = clip_grad {
            let grads = lists.iter().flat_map(|list| &list.grads);
            let _ = clip_grad_norm_(&mut grads.map(Tensor::shallow_clone).collect::<Vec<_>>(), max_norm)?;
        }
        for (group, mut list) in self.groups.iter().zip(lists) {
            if !list.params.is_empty() {
                let (lr, made) = (lr * group.lr_factor, self.steps.saturating_sub(group.earlier));
                no_grad(|| update(group.algorithm, made, &mut list, lr, group.weight_decay))?;
            }
        }
        self.steps += 1;
        if let Some(Lookahead { k, alpha }) = self.lookahead
            && self.steps.is_multiple_of(k)
        {
            let share = if self.steps == k { 1.0 } else { alpha };
            no_grad(|| self.groups.iter().try_for_each(|group| group.look_ahead(share)))?;
        }
        Ok(())
    }

    /// Everything a step depends on besides tensors, gradients and rate, by name: `exp_avg.NAME` and
    /// `exp_avg_sq.NAME` (AdamW, LAMB; the first for Lion too), `momentum.NAME` (SGD with momentum, Muon), as handles to
    /// the tensors themselves, `slow.NAME` with Lookahead, and `step` (all but SGD and Lion, or with Lookahead), the number
    /// of updates as f32 without dimensions.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let mut state = BTreeMap::new();
        let mut counts = self.lookahead.is_some();
        for Group { algorithm, slots, .. } in &self.groups {
            counts |= !matches!(algorithm, Algorithm::Sgd { .. } | Algorithm::Lion { .. });
            for slot in slots {
                for (kind, tensor) in state_names(*algorithm).iter().zip(&slot.states) {
                    state.insert(format!("{kind}.{}", slot.name), tensor.shallow_clone());
                }
                if let Some(slow) = &slot.slow {
                    state.insert(format!("slow.{}", slot.name), slow.shallow_clone());
                }
            }
        }
        if counts {
            state.insert(STEP.to_owned(), Tensor::from(self.steps as f32));
        }
        state
    }

    /// Copies what [`Self::state`] gave, as a safetensors file, into the state; tensors may be of any floating type.
    ///
    /// # Errors
    /// A tensor that is missing, unexpected or of another shape, by name, or a `step` that is no count; then nothing
    /// has changed.
    pub fn load_state(&mut self, saved: &WeightsFile) -> Result<(), WeightsError> {
        let mut steps = self.steps;
        if let Ok(given) = saved.tensor(STEP)
            && given.dim() == 0
        {
            let count = given.double_value(&[]);
            // f32 holds every whole number up to 2²⁴.
            if !(count >= 0.0 && count.fract() == 0.0 && count <= f64::from(1 << 24)) {
                let problem = format!("{STEP} is {count}, expected a count of updates");
                return Err(WeightsError { path: saved.path().to_owned(), problem: Problem::File(problem) });
            }
            steps = count as u64;
        }
        saved.copy_to(&self.state())?;
        self.steps = steps;
        Ok(())
    }
}

/// A tensor of the same values and layout that is not trained.
fn copy(tensor: &Tensor) -> Result<Tensor, TchError> {
    let tensor = tensor.f_detach()?;
    let mut copy = tensor.f_empty_like()?;
    copy.f_copy_(&tensor)?;
    Ok(copy)
}

impl Group {
    fn with_gradients(&self) -> Result<Lists, TchError> {
        let mut lists = Lists::default();
        for Slot { tensor, states, .. } in &self.slots {
            let grad = tensor.f_grad()?;
            if !grad.defined() {
                continue;
            }
            lists.params.push(tensor.shallow_clone());
            lists.grads.push(grad);
            lists.first.extend(states.first().map(Tensor::shallow_clone));
            lists.second.extend(states.get(1).map(Tensor::shallow_clone));
        }
        Ok(lists)
    }

    /// Moves slow weights by a share of the way to the tensors that have a gradient, which then begin again from there.
    fn look_ahead(&self, share: f64) -> Result<(), Error> {
        let (mut slow, mut fast) = (Vec::new(), Vec::new());
        for slot in &self.slots {
            if let Some(weights) = slot.slow.as_ref().filter(|_| slot.tensor.grad().defined()) {
                slow.push(weights.shallow_clone());
                fast.push(slot.tensor.shallow_clone());
            }
        }
        if fast.is_empty() {
            return Ok(());
        }
        foreach_lerp_(&mut slow, &fast, share)?;
        Ok(fast.iter_mut().zip(&slow).try_for_each(|(fast, slow)| fast.f_copy_(slow))?)
    }
}

/// The update of a group's tensors before which so many were made.
fn update(
    algorithm: Algorithm,
    made: u64,
    list: &mut Lists,
    lr: f64,
    weight_decay: f64,
) -> Result<(), Error> {
    let Lists { params, grads, first, second } = list;
    match algorithm {
        Algorithm::AdamW { beta1, beta2, eps, scale_decay_by_lr } => {
            let mut adam = Adam { lr: lr.into(), beta1, beta2, weight_decay, eps };
            if !scale_decay_by_lr && weight_decay != 0.0 {
                foreach_mul_(params, 1.0 - weight_decay)?;
                adam.weight_decay = 0.0;
            }
            // Written on the device: a copy from the host would wait.
            let steps = Tensor::f_full([0i64; 0], made as f64, (Kind::Float, params[0].device()))?;
            fused_adamw_(params, grads, first, second, &mut [steps], &adam)?;
        }
        Algorithm::Sgd { momentum, nesterov } => {
            let sgd = Sgd { lr: lr.into(), momentum, weight_decay, nesterov };
            fused_sgd_(params, grads, first, false, &sgd)?;
        }
        Algorithm::Lamb { beta1, beta2, eps } => {
            foreach_lerp_(first, grads, 1.0 - beta1)?;
            foreach_mul_(second, beta2)?;
            let squares = grads.iter().map(Tensor::f_square).collect::<Result<Vec<_>, _>>()?;
            foreach_add_(second, &squares, 1.0 - beta2)?;
            let steps = (made + 1) as f64;
            let (correction1, correction2) = (1.0 - beta1.powf(steps), 1.0 - beta2.powf(steps));
            let direction = |(m, v): (&Tensor, &Tensor)| {
                let root = v.f_sqrt()?.f_div_scalar_(correction2.sqrt())?.f_add_scalar_(eps)?;
                m.f_div_scalar(correction1)?.f_div_(&root)
            };
            let directions = first.iter().zip(&*second).map(direction);
            let mut directions = directions.collect::<Result<Vec<_>, TchError>>()?;
            if weight_decay != 0.0 {
                foreach_add_(&mut directions, params, weight_decay)?;
                let ratios = trust_ratios(params, &directions)?;
                for (direction, ratio) in directions.iter_mut().zip(ratios) {
                    let _ = direction.f_mul_(&ratio)?;
                }
            }
            foreach_add_(params, &directions, -lr)?;
        }
        Algorithm::Muon { momentum, nesterov, eps, .. } => {
            foreach_mul_(params, 1.0 - lr * weight_decay)?;
            foreach_lerp_(first, grads, 1.0 - momentum)?;
            let along = |(grad, mean): (&Tensor, &Tensor)| match nesterov {
                true => grad.f_lerp(mean, momentum),
                false => Ok(mean.shallow_clone()),
            };
            let directions = grads.iter().zip(&*first).map(along).collect::<Result<Vec<_>, _>>()?;
            foreach_add_(params, &muon::orthogonal(&directions, eps)?, -lr)?;
        }
        Algorithm::Lion { beta1, beta2 } => {
            foreach_mul_(params, 1.0 - lr * weight_decay)?;
            let lerp = |(m, grad): (&Tensor, &Tensor)| m.f_lerp(grad, 1.0 - beta1)?.f_sign_();
            let directions = first.iter().zip(&*grads).map(lerp).collect::<Result<Vec<_>, _>>()?;
            foreach_add_(params, &directions, -lr)?;
            foreach_lerp_(first, grads, 1.0 - beta2)?;
        }
    }
    Ok(())
}

/// LAMB's factor of each direction: the length of the tensor over that of the direction, 1 if either is 0. The
/// numbers stay on the device.
fn trust_ratios(params: &[Tensor], directions: &[Tensor]) -> Result<Vec<Tensor>, Error> {
    let lengths =
        |tensors| -> Result<Tensor, Error> { Ok(Tensor::f_stack(&foreach_norm(tensors, 2.0)?, 0)?) };
    let (params, directions) = (lengths(params)?, lengths(directions)?);
    let usable = params.f_gt(0.0)?.f_logical_and(&directions.f_gt(0.0)?)?;
    let ratios = params.f_div(&directions)?;
    // Ones on the device: a number in their place would be copied there, and the copy would wait.
    Ok(ratios.f_where_self(&usable, &ratios.f_ones_like()?)?.f_unbind(0)?)
}

#[cfg(test)]
mod tests;
