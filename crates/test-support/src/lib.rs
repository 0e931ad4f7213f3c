//! For tests only: deterministic tensors for comparing a network with another implementation of it.
//!
//! Both sides fill every parameter with the same numbers, made from the parameter's name alone,
//! and compare logits: no files change hands. The generator is FNV-1a over the name and
//! SplitMix64 over the element's index.
//!
//! Beside them, what the tests of every architecture measure.

use std::collections::BTreeSet;

use core_layers::{Model, ModelConfig};
use tch::nn::VarStore;
use tch::{Device, Kind, Reduction, Tensor};

/// What a tensor is for, which decides the range of its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Weights of a matrix, a convolution or a pooling vector: ±√(3 / product of all but the first
    /// dimension).
    Weight,
    /// The gain of a norm: 1 ± 0.1.
    Gain,
    /// A bias, the shift of a norm or a running mean: ±0.1.
    Shift,
    /// A running variance: 1 to 1.5.
    RunningVariance,
    /// A class token, a position embedding or a relative-position bias table: ±0.5.
    Embedding,
    /// Layer scale: 0.5 ± 0.1.
    LayerScale,
}

/// The tensor of this name, shape and role, f32 on the CPU; elements are numbered row-major.
pub fn tensor(name: &str, shape: &[i64], role: Role) -> Tensor {
    let fan_in: i64 = shape.iter().skip(1).product();
    let value = |u: f64| {
        let r = 2.0 * u - 1.0;
        match role {
            Role::Weight => (3.0 / fan_in as f64).sqrt() * r,
            Role::Gain => 1.0 + 0.1 * r,
            Role::Shift => 0.1 * r,
            Role::RunningVariance => 1.0 + 0.5 * u,
            Role::Embedding => 0.5 * r,
            Role::LayerScale => 0.5 + 0.1 * r,
        }
    };
    from_uniform(name, shape, value)
}

/// Images `[batch, 3, size, size]` with whole values 0 to 255 as f32 on the CPU.
pub fn images(batch: i64, size: i64) -> Tensor {
    from_uniform("image", &[batch, 3, size, size], |u| (256.0 * u).floor())
}

/// The largest absolute difference between the first values of a tensor, row-major, and `want`.
pub fn largest_difference(got: &Tensor, want: &[f64]) -> f64 {
    let got = got.flatten(0, -1).narrow(0, 0, want.len() as i64).to_kind(Kind::Double);
    (got - Tensor::from_slice(want)).abs().max().double_value(&[])
}

/// How much the logits of images `[B, 3, H, W]` change, in eval mode, when each is alone in its
/// batch: nothing but rounding in a network that keeps images apart.
pub fn batch_dependence(network: &dyn Model, images: &Tensor) -> f64 {
    tch::no_grad(|| {
        let together = network.forward_t(images, false);
        let change = |i: i64| {
            let alone = network.forward_t(&images.narrow(0, i, 1), false);
            (together.narrow(0, i, 1) - alone).abs().max().double_value(&[])
        };
        // Not `f64::max`, which would let a NaN pass for no change.
        let larger = |most: f64, x: f64| if x > most || x.is_nan() { x } else { most };
        (0..images.size()[0]).map(change).fold(0.0, larger)
    })
}

/// How far logits and gradients of a batch `[B, 3, H, W]` are from those of its images by fours, over the largest of each:
/// in eval mode, and where images are kept apart, as far as operations that only many images have are from others.
pub fn distance_to_small_batches(vs: &VarStore, network: &dyn Model, images: &Tensor) -> [f64; 2] {
    let count = images.size()[0];
    let labels = Tensor::arange(count, (Kind::Int64, images.device())).remainder(10);
    let compute = |together: i64| {
        let logits = (0..count).step_by(together as usize).map(|first| {
            let some = |tensor: &Tensor| tensor.narrow(0, first, together.min(count - first));
            let logits = network.forward_t(&some(images), false);
            let loss = logits.cross_entropy_loss::<Tensor>(&some(&labels), None, Reduction::Sum, -100, 0.0);
            loss.backward();
            logits.detach()
        });
        let logits = Tensor::cat(&logits.collect::<Vec<_>>(), 0);
        let trained = vs.trainable_variables();
        let gradients: Vec<Tensor> =
            trained.iter().map(|tensor| tensor.grad().flatten(0, -1).copy()).collect();
        trained.into_iter().for_each(|mut tensor| tensor.zero_grad());
        [logits, Tensor::cat(&gradients, 0)]
    };
    let (got, want) = (compute(count), compute(4));
    [0, 1].map(|n| ((&got[n] - &want[n]).abs().max() / want[n].abs().max()).double_value(&[]))
}

/// Names of the trainable tensors that have no finite gradient after one training step's backward
/// pass over images `[B, 3, H, W]`, labelled 0, 1, 2, ….
pub fn without_gradient(vs: &VarStore, network: &dyn Model, images: &Tensor) -> Vec<String> {
    let labels = Tensor::arange(images.size()[0], (Kind::Int64, images.device()));
    network.forward_t(images, true).cross_entropy_for_logits(&labels).backward();
    let reached = |tensor: &Tensor| {
        let gradient = tensor.grad();
        gradient.defined() && gradient.isfinite().all().int64_value(&[]) == 1
    };
    let variables = vs.variables().into_iter();
    variables.filter(|(_, tensor)| tensor.requires_grad() && !reached(tensor)).map(|(name, _)| name).collect()
}

/// Where the tensors of a network stand that is built of `config`: in the stem what lies under one of the `stem` paths and
/// nothing else, in the last layer what lies under one of the `end`, and in each of the `blocks` between them something.
/// And that each embedding but those of `optional` is a tensor of the network.
///
/// # Panics
/// With the first tensor that is elsewhere.
pub fn check_layers(config: &dyn ModelConfig, blocks: i64, stem: &[&str], end: &[&str], optional: &[&str]) {
    let vs = VarStore::new(Device::Cpu);
    let built = config.build(&vs.root());
    assert!(built.is_ok(), "{config:?}: {built:?}");
    let names: BTreeSet<String> = vs.variables().into_keys().collect();
    let within = |name: &str, parts: &[&str]| {
        let rest = parts.iter().filter_map(|part| name.strip_prefix(part));
        rest.into_iter().any(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    for name in &names {
        let layer = config.layer_id(name);
        assert_eq!(within(name, stem), layer == 0, "{config:?}: {name} {layer}");
        assert_eq!(within(name, end), layer == blocks + 1, "{config:?}: {name} {layer}");
    }
    let found: BTreeSet<i64> = names.iter().map(|name| config.layer_id(name)).collect();
    assert!(found.iter().copied().eq(0..=blocks + 1), "{config:?}: {found:?}");

    // A name of an embedding is the name of one: none is a matrix of a layer, and no list is idle.
    let last: BTreeSet<&str> = names.iter().filter_map(|name| name.rsplit('.').next()).collect();
    for embedding in config.embeddings() {
        assert!(optional.contains(embedding) || last.contains(embedding), "{config:?}: {embedding}");
    }
}

fn from_uniform(name: &str, shape: &[i64], value: impl Fn(f64) -> f64) -> Tensor {
    let count: i64 = shape.iter().product();
    let hash = fnv1a(name);
    let values: Vec<f32> = (0..count).map(|i| value(uniform(hash, i as u64)) as f32).collect();
    Tensor::from_slice(&values).reshape(shape)
}

fn fnv1a(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Uniform on [0, 1) with 24 bits.
fn uniform(hash: u32, index: u64) -> f64 {
    let mut z = (u64::from(hash) << 32).wrapping_add(index).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    (z >> 40) as f64 / f64::from(1 << 24)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_gives_the_agreed_numbers() {
        let cases: [(&str, u32, &[f64]); 3] = [
            ("image", 3_008_443_898, &[0.7323581, 0.96795601, 0.73939335]),
            ("tok.0.weight", 492_379_851, &[0.2114889, 0.60901064]),
            ("head.bias", 506_063_150, &[0.35257441]),
        ];
        for (name, hash, first) in cases {
            assert_eq!(fnv1a(name), hash);
            for (i, want) in first.iter().enumerate() {
                assert!((uniform(hash, i as u64) - want).abs() < 1e-7, "{name} {i}");
            }
        }
    }

    #[test]
    fn roles_decide_the_range() {
        let ranges = [
            (Role::Weight, -0.5, 0.5),
            (Role::Gain, 0.9, 1.1),
            (Role::Shift, -0.1, 0.1),
            (Role::RunningVariance, 1.0, 1.5),
            (Role::Embedding, -0.5, 0.5),
            (Role::LayerScale, 0.4, 0.6),
        ];
        for (role, low, high) in ranges {
            // Twelve weights per output: √(3/12) = 0.5.
            let t = tensor("x", &[500, 3, 2, 2], role);
            let width = high - low;
            let (min, max) = (t.min().double_value(&[]), t.max().double_value(&[]));
            assert!((low - 1e-6..low + 0.01 * width).contains(&min), "{role:?} {min}");
            assert!(max <= high + 1e-6 && max > high - 0.01 * width, "{role:?} {max}");
        }
    }
}
