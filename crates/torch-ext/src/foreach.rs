//! Operations on whole lists of tensors: on CUDA a few kernel launches for all instead of one for each.

use tch::Tensor;
use torch_sys::C_tensor;

use crate::TorchExtError;
use crate::ffi::{self, check, check_count, pointers, tensor_from, tensors_from};

/// The norm of order `ord` of every tensor, each a tensor without dimensions on its device.
///
/// Nothing is recorded for a gradient, here and in all functions of this module.
///
/// # Errors
/// What libtorch says, for example about a tensor of integers.
pub fn foreach_norm(tensors: &[Tensor], ord: f64) -> Result<Vec<Tensor>, TorchExtError> {
    let list = pointers(tensors);
    // SAFETY: `list` has as many pointers to live tensors as is said, and there is room for as many results.
    tensors_from(list.len(), |norms| unsafe {
        ffi::torch_ext_foreach_norm(list.as_ptr(), list.len(), ord, norms)
    })
}

/// Multiplies every tensor by a number, in place.
///
/// # Errors
/// What libtorch says, for example about a tensor of integers.
pub fn foreach_mul_(tensors: &mut [Tensor], factor: f64) -> Result<(), TorchExtError> {
    let list = pointers(tensors);
    // SAFETY: `list` has as many pointers to live tensors as is said.
    check(unsafe { ffi::torch_ext_foreach_mul_scalar(list.as_ptr(), list.len(), factor) })
}

/// Adds `alpha` times its counterpart in `others` to every tensor, in place.
///
/// # Errors
/// [`TorchExtError::Argument`] when the slices differ in length, otherwise what libtorch says.
pub fn foreach_add_(tensors: &mut [Tensor], others: &[Tensor], alpha: f64) -> Result<(), TorchExtError> {
    check_count("others", others.len(), tensors.len())?;
    let (list, others) = (pointers(tensors), pointers(others));
    // SAFETY: both lists have as many pointers to live tensors as is said.
    check(unsafe { ffi::torch_ext_foreach_add(list.as_ptr(), others.as_ptr(), list.len(), alpha) })
}

/// Moves every tensor towards its counterpart in `ends`, in place: `tensor += weight * (end - tensor)`.
///
/// An exponential moving average with a decay is the move of the averages towards the parameters by `1 -
/// decay`.
///
/// # Errors
/// [`TorchExtError::Argument`] when the slices differ in length, otherwise what libtorch says, for example
/// about a tensor of integers.
pub fn foreach_lerp_(tensors: &mut [Tensor], ends: &[Tensor], weight: f64) -> Result<(), TorchExtError> {
    check_count("ends", ends.len(), tensors.len())?;
    let (list, ends) = (pointers(tensors), pointers(ends));
    // SAFETY: both lists have as many pointers to live tensors as is said.
    check(unsafe { ffi::torch_ext_foreach_lerp(list.as_ptr(), ends.as_ptr(), list.len(), weight) })
}

/// Takes the gradient of every tensor away, so that the next backward pass leaves its own in their place instead of
/// adding to zeros (PyTorch's `zero_grad(set_to_none=True)`).
///
/// # Errors
/// [`TorchExtError::Argument`] when a tensor is undefined.
pub fn clear_grads(tensors: &[Tensor]) -> Result<(), TorchExtError> {
    put_grads(tensors, &vec![std::ptr::null(); tensors.len()])
}

/// Puts its counterpart in `grads` in the place of the gradient of every tensor; one that is undefined takes it away.
///
/// # Errors
/// [`TorchExtError::Argument`] when the slices differ in length or a tensor is undefined, otherwise what libtorch says of
/// a gradient of another shape or kind.
pub fn set_grads(tensors: &[Tensor], grads: &[Tensor]) -> Result<(), TorchExtError> {
    check_count("grads", grads.len(), tensors.len())?;
    put_grads(tensors, &pointers(grads))
}

fn put_grads(tensors: &[Tensor], grads: &[*const C_tensor]) -> Result<(), TorchExtError> {
    let list = pointers(tensors);
    // SAFETY: both lists have as many pointers as is said; those in `list` are to live tensors, those in `grads` to live
    // tensors or null.
    check(unsafe { ffi::torch_ext_set_grads(list.as_ptr(), grads.as_ptr(), list.len()) })
}

/// Scales all gradients by `min(1, max_norm / (norm + 1e-6))`, where `norm` is the 2-norm of all their values
/// together, and returns that norm (PyTorch's `clip_grad_norm_`).
///
/// The norm, a tensor without dimensions, stays on the device of the gradients: nothing waits for it. Of no
/// gradients it is 0, on the CPU. A norm that is not finite makes every gradient NaN or 0, as in PyTorch.
///
/// # Errors
/// [`TorchExtError::Argument`] when a gradient is undefined, otherwise what libtorch says, for example that
/// the gradients are on several devices.
pub fn clip_grad_norm_(grads: &mut [Tensor], max_norm: f64) -> Result<Tensor, TorchExtError> {
    let list = pointers(grads);
    // SAFETY: `list` has as many pointers to live tensors as is said.
    tensor_from(|norm| unsafe { ffi::torch_ext_clip_grad_norm(list.as_ptr(), list.len(), max_norm, norm) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_devices;
    use tch::nn::{self, OptimizerConfig};
    use tch::{Device, Kind};

    fn lists(device: Device) -> [Tensor; 2] {
        [[3f32, -4.0].as_slice(), &[1.0, 2.0, -2.0]]
            .map(|values| Tensor::from_slice(values).to_device(device).set_requires_grad(true))
    }

    fn values(tensors: &[Tensor]) -> Vec<Vec<f64>> {
        tensors.iter().map(|t| Vec::try_from(t.to_kind(Kind::Double).flatten(0, -1)).unwrap()).collect()
    }

    #[test]
    fn norms_are_of_the_given_order() {
        for device in test_devices() {
            let norms = foreach_norm(&lists(device), 2.0).unwrap();
            assert_eq!(values(&norms), [[5.0], [3.0]]);
            assert!(norms.iter().all(|norm| norm.size().is_empty() && !norm.requires_grad()));
            assert_eq!(values(&foreach_norm(&lists(device), 1.0).unwrap()), [[7.0], [5.0]]);
            assert_eq!(values(&foreach_norm(&lists(device), f64::INFINITY).unwrap()), [[4.0], [2.0]]);
        }
    }

    #[test]
    fn lists_change_in_place() {
        for device in test_devices() {
            let mut tensors = lists(device);
            let handles = tensors.each_ref().map(Tensor::shallow_clone);
            foreach_mul_(&mut tensors, 2.0).unwrap();
            assert_eq!(values(&handles), [vec![6.0, -8.0], vec![2.0, 4.0, -4.0]]);
            foreach_mul_(&mut tensors, 0.25).unwrap();
            assert_eq!(values(&handles), [vec![1.5, -2.0], vec![0.5, 1.0, -1.0]]);
            foreach_add_(&mut tensors, &lists(device), -0.5).unwrap();
            assert_eq!(values(&handles), [vec![0.0, 0.0], vec![0.0, 0.0, 0.0]]);
            foreach_lerp_(&mut tensors, &lists(device), 0.25).unwrap();
            assert_eq!(values(&handles), [vec![0.75, -1.0], vec![0.25, 0.5, -0.5]]);
            foreach_lerp_(&mut tensors, &lists(device), 0.25).unwrap();
            assert_eq!(values(&handles), [vec![1.3125, -1.75], vec![0.4375, 0.875, -0.875]]);
        }
    }

    #[test]
    fn empty_lists_are_nothing_to_do() {
        assert!(foreach_norm(&[], 2.0).unwrap().is_empty());
        foreach_mul_(&mut [], 2.0).unwrap();
        foreach_add_(&mut [], &[], 1.0).unwrap();
        foreach_lerp_(&mut [], &[], 1.0).unwrap();
        clear_grads(&[]).unwrap();
        assert_eq!(values(&[clip_grad_norm_(&mut [], 1.0).unwrap()]), [[0.0]]);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let device = Device::Cpu;
        let error = foreach_add_(&mut lists(device), &lists(device)[..1], 1.0).unwrap_err();
        assert_eq!(error.to_string(), "others has 1 tensors, but there must be 2");
        let swapped = || {
            let [a, b] = lists(device);
            [b, a]
        };
        assert!(matches!(foreach_add_(&mut lists(device), &swapped(), 1.0), Err(TorchExtError::Torch(_))));
        assert!(matches!(foreach_lerp_(&mut lists(device), &swapped(), 1.0), Err(TorchExtError::Torch(_))));
        assert!(matches!(clear_grads(&[Tensor::new()]), Err(TorchExtError::Argument(_))));
        let error = foreach_add_(&mut lists(device), &swapped(), 1.0).unwrap_err();
        // The message alone, in one line and without the places it came through.
        assert!(!error.to_string().contains('\n'), "{error}");
    }

    #[test]
    fn a_gradient_that_was_taken_away_is_not_added_to() {
        for device in test_devices() {
            let [a, b] = lists(device);
            for _ in 0..2 {
                (&a * 3.0).sum(Kind::Float).backward();
                assert_eq!(values(&[a.grad()]), [[3.0, 3.0]]);
                clear_grads(&[a.shallow_clone(), b.shallow_clone()]).unwrap();
                assert!(!a.grad().defined() && !b.grad().defined());
            }
        }
    }

    #[test]
    fn clipping_is_that_of_tch() {
        for device in test_devices() {
            for max_norm in [0.1, 3.0, 100.0] {
                let vs = nn::VarStore::new(device);
                for (name, values) in [("a", [3f32, -4.0]), ("b", [0.5, 1.5])] {
                    let var = vs.root().var_copy(name, &Tensor::from_slice(&values).to_device(device));
                    (&var * &var).sum(Kind::Float).backward();
                }
                let grads = || {
                    let vars = vs.variables();
                    ["a", "b"].map(|name| vars[name].grad().copy())
                };
                let mut clipped = grads();
                let total = clip_grad_norm_(&mut clipped, max_norm).unwrap();
                assert!((values(&[total])[0][0] - (36f64 + 64.0 + 1.0 + 9.0).sqrt()).abs() < 1e-5);
                let optimizer = nn::Sgd::default().build(&vs, 0.1).unwrap();
                optimizer.clip_grad_norm(max_norm);
                for (found, expected) in
                    values(&clipped).iter().flatten().zip(values(&grads()).iter().flatten())
                {
                    assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
                }
            }
        }
    }

    #[test]
    fn norms_that_are_not_finite_show() {
        let mut grads = [Tensor::from_slice(&[f32::NAN, 1.0]), Tensor::from_slice(&[2f32])];
        assert!(values(&[clip_grad_norm_(&mut grads, 1.0).unwrap()])[0][0].is_nan());
        assert!(values(&grads).iter().flatten().all(|value| value.is_nan()));
        let mut grads = [Tensor::from_slice(&[f32::INFINITY, 1.0])];
        assert!(values(&[clip_grad_norm_(&mut grads, 1.0).unwrap()])[0][0].is_infinite());
        let grads = values(&grads);
        assert!(grads[0][0].is_nan() && grads[0][1] == 0.0);
    }
}
