//! A CUDA graph: work of a device, noted once and queued again as a whole.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use tch::Device;

use crate::TorchExtError;
use crate::ffi::{self, check, device_number};

/// Work that a CUDA device has noted, to be done as often as is wanted, at the price of one launch.
///
/// The work reads and writes the memory that it read and wrote when it was noted. Tensors it was given have to stay where
/// they are, and are written to before a replay; those it made keep their place as long as the graph lives, and are
/// written anew by each replay. What it draws from the device's default generator follows that generator's seed and
/// offset at each replay, as it would without a graph. Shapes, branches and numbers of the host are those of the capture.
#[derive(Debug)]
pub struct CudaGraph {
    graph: NonNull<c_void>,
}

/// Whether graphs are wanted.
static WANTED: AtomicBool = AtomicBool::new(true);

/// Sets whether [`has_graphs`] finds any, in the whole process.
pub fn set_graphs(on: bool) {
    WANTED.store(on, Ordering::Relaxed);
}

/// Whether work of a device can be noted and is to be: it is a CUDA device of a libtorch that has graphs.
///
/// # Errors
/// What libtorch says.
pub fn has_graphs(device: Device) -> Result<bool, TorchExtError> {
    if !WANTED.load(Ordering::Relaxed) {
        return Ok(false);
    }
    let device = device_number(device)?;
    let mut supported = false;
    // SAFETY: the pointer is to a `bool` to write.
    check(unsafe { ffi::torch_ext_graph_supported(device, &mut supported) })?;
    Ok(supported)
}

impl CudaGraph {
    /// Notes what `work` queues on `device` from this thread and from backward passes that it waits for, without doing
    /// it. It has to have run at least once before, so that libraries are loaded and ready. Nothing in it may wait for
    /// the device or copy from memory of the host.
    ///
    /// # Errors
    /// [`TorchExtError::Argument`] for a device without graphs, what `work` answers, and what CUDA says of work that
    /// cannot be noted. Then nothing was done or noted.
    pub fn capture<T, E: From<TorchExtError>>(
        device: Device,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<(Self, T), E> {
        let device = device_number(device)?;
        let mut graph = std::ptr::null_mut();
        // SAFETY: the pointer is to a pointer to write.
        check(unsafe { ffi::torch_ext_graph_begin(device, &mut graph) })?;
        let missing = || TorchExtError::Argument("there is no graph".to_owned());
        let graph = Self { graph: NonNull::new(graph).ok_or_else(missing)? };
        let capture = Capture(&graph);
        let made = work();
        capture.end()?;
        Ok((graph, made?))
    }

    /// Queues the work again, on the current stream of this thread.
    ///
    /// # Errors
    /// What CUDA says.
    pub fn replay(&self) -> Result<(), TorchExtError> {
        // SAFETY: the pointer is to a graph that lives.
        check(unsafe { ffi::torch_ext_graph_replay(self.graph.as_ptr()) })
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        // SAFETY: the graph lives, and nobody has another pointer to it.
        unsafe { ffi::torch_ext_graph_free(self.graph.as_ptr()) }
    }
}

/// A capture under way, which ends also after a panic.
struct Capture<'a>(&'a CudaGraph);

impl Capture<'_> {
    fn end(self) -> Result<(), TorchExtError> {
        let graph = self.0.graph.as_ptr();
        std::mem::forget(self);
        // SAFETY: the pointer is to a graph that lives and is being captured.
        check(unsafe { ffi::torch_ext_graph_end(graph) })
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        // What goes wrong here follows from the panic that led here.
        // SAFETY: as above.
        let _ = check(unsafe { ffi::torch_ext_graph_end(self.0.graph.as_ptr()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_devices;
    use tch::{Kind, Tensor};

    #[test]
    fn the_processor_has_none() {
        assert!(!has_graphs(Device::Cpu).unwrap());
        let refused = CudaGraph::capture(Device::Cpu, || Ok::<_, TorchExtError>(())).unwrap_err();
        assert_eq!(refused.to_string(), "there are no CUDA graphs for this device");
    }

    #[test]
    fn a_replay_computes_with_what_is_there_now_and_draws_as_without_a_graph() {
        for device in test_devices().into_iter().filter(|device| device.is_cuda()) {
            assert!(has_graphs(device).unwrap());
            let x = Tensor::full([64], 2.0, (Kind::Float, device));
            let weight = Tensor::full([64], 3.0, (Kind::Float, device)).set_requires_grad(true);
            let work = || {
                crate::clear_grads(std::slice::from_ref(&weight))?;
                let y = (&x * &weight).dropout(0.5, true);
                y.f_sum(Kind::Float).and_then(|sum| sum.f_backward()).unwrap();
                Ok::<_, TorchExtError>((y.detach(), weight.grad()))
            };
            tch::manual_seed(1);
            let _ = work().unwrap();
            let (graph, (y, grad)) = CudaGraph::capture(device, work).unwrap();
            for (seed, value) in [(5, 7.0), (6, 11.0), (5, 7.0)] {
                let _ = x.shallow_clone().fill_(value);
                tch::manual_seed(seed);
                graph.replay().unwrap();
                let replayed = [y.copy(), grad.copy()];
                tch::manual_seed(seed);
                let eager = work().unwrap();
                assert_eq!(replayed, [eager.0, eager.1], "seed {seed}");
            }
            // A capture that fails leaves the device usable.
            let failed = CudaGraph::capture(device, || {
                let sum: f64 = x
                    .sum(Kind::Float)
                    .f_double_value(&[])
                    .map_err(|error| TorchExtError::Torch(error.to_string()))?;
                Ok::<_, TorchExtError>(sum)
            });
            assert!(failed.is_err());
            assert_eq!(x.sum(Kind::Float).double_value(&[]), 64.0 * 7.0);
        }
    }
}
