//! Work of a card that is the same step after step: noted once as a CUDA graph, and queued as a whole from then on.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::{Device, Kind, Tensor};
use torch_ext::{CudaGraph, has_graphs};

use crate::Error;
use crate::process::lines::note;

/// Runs of one shape in a row before it is noted, in which libraries load and choose.
const WARM_UP: u32 = 3;

/// What work depends on besides the values of its tensors.
#[derive(Debug, Clone, PartialEq)]
struct Shape {
    inputs: Vec<(Vec<i64>, Kind)>,
    /// Anything else, as bits.
    rest: [u64; 2],
}

/// What is noted: from tensors to tensors.
type Work<'a> = dyn FnMut(&[&Tensor]) -> Result<Vec<Tensor>, Error> + 'a;

/// Work from tensors to tensors. Elsewhere than on a card with graphs it just runs, and so do the first times and other
/// shapes than the one that was noted: the last of an epoch's batches.
#[derive(Debug)]
pub struct Replayed {
    /// `None` where nothing is noted.
    device: Option<Device>,
    /// A shape that is not noted, and how often it came in a row.
    seen: Option<(Shape, u32)>,
    noted: Option<Noted>,
}

#[derive(Debug)]
struct Noted {
    shape: Shape,
    graph: CudaGraph,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

impl Replayed {
    /// Nothing is noted yet.
    ///
    /// # Errors
    /// libtorch's refusal to tell what the device can do.
    pub fn new(device: Device) -> Result<Self, Error> {
        let device = if has_graphs(device)? { Some(device) } else { None };
        Ok(Self { device, seen: None, noted: None })
    }

    /// Work that nothing is noted of.
    pub fn never() -> Self {
        Self { device: None, seen: None, noted: None }
    }

    /// Does `work` with tensors. What it depends on besides their values and shapes has to be in `rest`; it must not wait
    /// for the device. The answers are valid until the next call.
    ///
    /// # Errors
    /// What `work` answers, or libtorch's refusal.
    pub fn run(&mut self, inputs: &[&Tensor], rest: [u64; 2], work: &mut Work) -> Result<Vec<Tensor>, Error> {
        let Some(device) = self.device else { return work(inputs) };
        let shape = Shape { inputs: inputs.iter().map(|input| (input.size(), input.kind())).collect(), rest };
        if self.noted.as_ref().is_none_or(|noted| noted.shape != shape) {
            let times = match self.seen.take() {
                Some((seen, times)) if seen == shape => times,
                _ => 0,
            };
            if times < WARM_UP {
                self.seen = Some((shape, times + 1));
                return work(inputs);
            }
            self.noted = None;
            match note_down(device, inputs, shape, work) {
                Ok(noted) => self.noted = Some(noted),
                Err(why) => {
                    note(&format!(
                        "operations are launched one by one, as no CUDA graph can be made of them: {why}"
                    ));
                    self.device = None;
                    return work(inputs);
                }
            }
        }
        self.seen = None;
        let Some(noted) = &mut self.noted else { return work(inputs) };
        for (place, input) in noted.inputs.iter_mut().zip(inputs) {
            place.f_copy_(input)?;
        }
        noted.graph.replay()?;
        Ok(noted.outputs.iter().map(Tensor::shallow_clone).collect())
    }
}

/// Notes the work, or says why that is not possible; nothing has happened then.
fn note_down(device: Device, inputs: &[&Tensor], shape: Shape, work: &mut Work) -> Result<Noted, String> {
    // With the order in memory of those that are given.
    let places = inputs.iter().map(|input| input.f_empty_like()).collect::<Result<Vec<_>, _>>();
    let places = places.map_err(|error| error.to_string())?;
    let given: Vec<&Tensor> = places.iter().collect();
    // An operation that cannot be noted panics where the network has no other way to fail.
    let captured = catch_unwind(AssertUnwindSafe(|| CudaGraph::capture(device, || work(&given))));
    match captured {
        Ok(Ok((graph, outputs))) => Ok(Noted { shape, graph, inputs: places, outputs }),
        Ok(Err(error)) => Err(error.to_string()),
        Err(panic) => {
            Err(panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "an operation failed".into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use torch_ext::test_devices;

    #[test]
    fn answers_are_those_of_the_work_whatever_comes_in_between() {
        for device in test_devices() {
            let mut replayed = Replayed::new(device).unwrap();
            let mut calls = 0;
            for step in 0..10_i64 {
                // Every fourth batch is shorter, and the factor changes once.
                let (len, factor) = (if step % 4 == 3 { 3 } else { 5 }, if step < 8 { 2.0 } else { 3.0_f64 });
                let x = Tensor::arange(len, (Kind::Float, device)) + step;
                let mut work = |inputs: &[&Tensor]| {
                    calls += 1;
                    Ok(vec![inputs[0] * factor, inputs[0].f_sum(Kind::Float)?])
                };
                let got = replayed.run(&[&x], [factor.to_bits(), 0], &mut work).unwrap();
                assert_eq!(got[0], &x * factor, "{device:?}, step {step}");
                assert_eq!(got[1], x.sum(Kind::Float), "{device:?}, step {step}");
            }
            assert!(if device.is_cuda() { calls < 10 } else { calls == 10 }, "{device:?}: {calls}");
        }
    }
}
