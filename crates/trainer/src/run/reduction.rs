//! What the sums of a step over several processes take by themselves.

use std::time::Instant;

use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::Error;
use crate::run::peers::{Peers, Together};

/// What a step of several processes sums, and waits for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reduction {
    /// Bytes of all gradients.
    pub bytes: i64,
    /// Sums that these are sent in.
    pub buckets: usize,
    /// Small sums after them.
    pub small_sums: usize,
    /// Median over the steps: milliseconds of the last backward pass.
    pub backward_ms: f64,
    /// Median over the steps: milliseconds between its end and that of its sums.
    pub waited_ms: f64,
    /// Median of those that all sums of gradients take, one after the other, with nothing beside them.
    pub alone_ms: f64,
    /// Median of those that the sum of one number takes.
    pub small_ms: f64,
}

/// How often each is measured.
const TIMES: usize = 50;

/// Measures the sums of gradients on the CPU, with nothing beside them. All processes at once; `took` is in seconds, of a
/// backward pass and of the wait after it.
///
/// # Errors
/// A process that is gone, or gradients that are not summed during the backward pass.
pub fn measure(peers: &Peers, together: &Together, took: [f64; 2]) -> Result<Reduction, Error> {
    let sizes = together.bucket_bytes();
    if sizes.is_empty() {
        return Err(Error::Usage(
            "several processes are measured on the CPU alone: add --device cpu".to_owned(),
        ));
    }
    let numbers = |bytes: i64| Tensor::f_zeros([bytes / 4], (Kind::Float, Device::Cpu));
    let buckets = sizes.iter().map(|&bytes| numbers(bytes)).collect::<Result<Vec<_>, _>>()?;
    let number = [numbers(4)?];
    let (mut alone, mut small) = (Vec::new(), Vec::new());
    for _ in 0..TIMES {
        peers.sum(&number)?; // all begin together
        let started = Instant::now();
        peers.sum(&number)?;
        small.push(started.elapsed().as_secs_f64());
        let started = Instant::now();
        for bucket in &buckets {
            peers.sum(std::slice::from_ref(bucket))?;
        }
        alone.push(started.elapsed().as_secs_f64());
    }
    let [backward_ms, waited_ms] = took.map(|seconds| 1e3 * seconds);
    Ok(Reduction {
        bytes: sizes.iter().sum(),
        buckets: sizes.len(),
        small_sums: together.small_sums(),
        backward_ms,
        waited_ms,
        alone_ms: 1e3 * median(alone.into_iter()),
        small_ms: 1e3 * median(small.into_iter()),
    })
}

/// The middle of some numbers, or the higher of two in the middle.
pub fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = numbers.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
