//! The state of libtorch's default random generators.

use tch::{Device, Tensor};

use crate::TorchExtError;
use crate::ffi::{self, check, device_number, tensor_from};

/// The state of the default generator of `device`: bytes on the CPU, 5,056 for the CPU and 16 for CUDA.
///
/// # Errors
/// What libtorch says, for example that there is no such device.
pub fn rng_state(device: Device) -> Result<Tensor, TorchExtError> {
    let device = device_number(device)?;
    // SAFETY: the function writes a tensor of its own, or fails.
    tensor_from(|state| unsafe { ffi::torch_ext_get_rng_state(device, state) })
}

/// Sets the state of the default generator of `device` to one that [`rng_state`] returned for the same kind
/// of device.
///
/// # Errors
/// What libtorch says, for example that the state is of another size.
pub fn set_rng_state(device: Device, state: &Tensor) -> Result<(), TorchExtError> {
    let device = device_number(device)?;
    // SAFETY: the pointer is to a live tensor, whose kind, place and size libtorch checks.
    check(unsafe { ffi::torch_ext_set_rng_state(device, state.as_ptr()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_devices;
    use tch::{Cuda, Kind};

    // One test, because the generators are the process's.
    #[test]
    fn a_state_brings_its_numbers_back() {
        for device in test_devices() {
            let draw = || Tensor::randn([100], (Kind::Float, device));
            let _ = draw();
            let state = rng_state(device).unwrap();
            assert_eq!((state.kind(), state.device()), (Kind::Uint8, Device::Cpu));
            assert_eq!(state.size(), [if device == Device::Cpu { 5056 } else { 16 }]);
            let (first, second) = (draw(), draw());
            assert_ne!(first, second);
            set_rng_state(device, &state).unwrap();
            assert_eq!(draw(), first);
            assert_eq!(draw(), second);

            let wrong = [state.to_kind(Kind::Int64), state.slice(0, 0, 8, 1), Tensor::new()];
            for wrong in wrong {
                assert!(set_rng_state(device, &wrong).is_err(), "{wrong:?}");
            }
            set_rng_state(device, &state).unwrap();
            assert_eq!(draw(), first);
        }
        if !Cuda::is_available() {
            assert!(matches!(rng_state(Device::Cuda(0)), Err(TorchExtError::Torch(_))));
            assert!(matches!(rng_state(Device::Mps), Err(TorchExtError::Torch(_))));
        }
    }
}
