//! Automatic mixed precision, as long as a guard lives.

use std::ffi::c_int;
use std::marker::PhantomData;

use tch::{Device, Kind};

use crate::TorchExtError;
use crate::ffi::{self, check, device_number};

/// While it lives, libtorch runs matrix products and convolutions of this thread in a narrower type and what
/// needs the range in f32.
///
/// When it goes, also because of a panic, what was before is again. Guards nest; the inner one has to go
/// first. Casts of parameters are kept until the outermost goes: step the optimiser outside, and let no part
/// under a guard run without gradients before one with them. Run the backward pass outside as well; it uses
/// the types of the forward pass.
///
/// ```compile_fail,E0277
/// // The state is the thread's, so a guard cannot move to another.
/// fn send<T: Send>() {}
/// send::<torch_ext::Autocast>();
/// ```
#[derive(Debug)]
#[must_use = "autocast ends when the guard is dropped"]
pub struct Autocast {
    device: c_int,
    old_enabled: bool,
    old_dtype: c_int,
    not_send: PhantomData<*const ()>,
}

impl Autocast {
    /// Runs what `device` computes in `dtype`, f16 or bf16.
    ///
    /// # Errors
    /// [`TorchExtError::Argument`] for another `dtype`, and what libtorch says of a device that has no
    /// autocast.
    pub fn enter(device: Device, dtype: Kind) -> Result<Self, TorchExtError> {
        // The numbers of at::ScalarType.
        let dtype = match dtype {
            Kind::Half => 5,
            Kind::BFloat16 => 15,
            other => {
                return Err(TorchExtError::Argument(format!(
                    "autocast to {other:?}: must be Half or BFloat16"
                )));
            }
        };
        Self::set(device, true, dtype)
    }

    /// Runs what `device` computes in the types of its arguments, for a part under a guard that needs their
    /// precision.
    ///
    /// # Errors
    /// What libtorch says of a device that has no autocast.
    pub fn disable(device: Device) -> Result<Self, TorchExtError> {
        Self::set(device, false, 0)
    }

    fn set(device: Device, enabled: bool, dtype: c_int) -> Result<Self, TorchExtError> {
        let device = device_number(device)?;
        let (mut old_enabled, mut old_dtype) = (false, 0);
        // SAFETY: the pointers are to variables to write, of the types the function writes; `dtype` is the
        // number of a type, or not looked at.
        check(unsafe {
            ffi::torch_ext_autocast_enter(device, enabled, dtype, &mut old_enabled, &mut old_dtype)
        })?;
        Ok(Self { device, old_enabled, old_dtype, not_send: PhantomData })
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        // SAFETY: takes no pointers; the device and the type are those that `enter` accepted and wrote.
        let left =
            check(unsafe { ffi::torch_ext_autocast_leave(self.device, self.old_enabled, self.old_dtype) });
        // libtorch raises errors here only for a device without autocast, which `enter` has refused.
        debug_assert!(left.is_ok(), "{left:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::test_devices;
    use tch::Tensor;

    const BF16: Kind = Kind::BFloat16;

    /// The kind of a matrix product, of a parameter so that its cast is kept.
    fn kind(weight: &Tensor) -> Kind {
        Tensor::ones([4, 4], (Kind::Float, weight.device())).matmul(weight).kind()
    }

    fn weight(device: Device) -> Tensor {
        Tensor::ones([4, 4], (Kind::Float, device)).set_requires_grad(true)
    }

    #[test]
    fn products_are_narrow_under_a_guard_only() {
        for device in test_devices() {
            let weight = weight(device);
            assert_eq!(kind(&weight), Kind::Float);
            let guard = Autocast::enter(device, BF16).unwrap();
            assert_eq!(kind(&weight), BF16);
            drop(guard);
            assert_eq!(kind(&weight), Kind::Float);
        }
    }

    #[test]
    fn a_panic_restores() {
        for device in test_devices() {
            let weight = weight(device);
            let result = catch_unwind(AssertUnwindSafe(|| {
                let _guard = Autocast::enter(device, BF16).unwrap();
                assert_eq!(kind(&weight), BF16);
                std::panic::resume_unwind(Box::new("on purpose"));
            }));
            assert!(result.is_err());
            assert_eq!(kind(&weight), Kind::Float);
        }
    }

    #[test]
    fn guards_nest() {
        for device in test_devices() {
            let weight = weight(device);
            let _outer = Autocast::enter(device, BF16).unwrap();
            assert_eq!(kind(&weight), BF16);
            {
                let _inner = Autocast::enter(device, Kind::Half).unwrap();
                assert_eq!(kind(&weight), Kind::Half);
                {
                    let _off = Autocast::disable(device).unwrap();
                    assert_eq!(kind(&weight), Kind::Float);
                    let _on = Autocast::enter(device, BF16).unwrap();
                    assert_eq!(kind(&weight), BF16);
                }
                assert_eq!(kind(&weight), Kind::Half);
            }
            assert_eq!(kind(&weight), BF16);
        }
    }

    #[test]
    fn a_changed_parameter_is_cast_again_under_the_next_guard() {
        let mut weight = weight(Device::Cpu);
        let sum = |weight: &Tensor| {
            let _guard = Autocast::enter(Device::Cpu, BF16).unwrap();
            let product = Tensor::ones([1, 4], (Kind::Float, Device::Cpu)).matmul(weight);
            f64::try_from(product.sum(Kind::Float)).unwrap()
        };
        assert_eq!(sum(&weight), 16.0);
        tch::no_grad(|| {
            let _ = weight.fill_(2.0);
        });
        assert_eq!(sum(&weight), 32.0);
    }

    #[test]
    fn gradients_are_of_the_kind_of_the_parameters() {
        for device in test_devices() {
            let weight = weight(device);
            let loss = {
                let _guard = Autocast::enter(device, BF16).unwrap();
                Tensor::ones([2, 4], (Kind::Float, device)).matmul(&weight).sum(Kind::Float)
            };
            loss.backward();
            assert_eq!(weight.grad(), Tensor::full([4, 4], 2.0, (Kind::Float, device)));
        }
    }

    #[test]
    fn other_threads_do_not_notice() {
        let _guard = Autocast::enter(Device::Cpu, BF16).unwrap();
        let elsewhere = std::thread::spawn(|| kind(&weight(Device::Cpu))).join().unwrap();
        assert_eq!(elsewhere, Kind::Float);
    }

    #[test]
    fn what_has_no_autocast_is_refused() {
        let error = Autocast::enter(Device::Cpu, Kind::Int64).unwrap_err();
        assert_eq!(error.to_string(), "autocast to Int64: must be Half or BFloat16");
        assert!(matches!(Autocast::enter(Device::Vulkan, BF16), Err(TorchExtError::Torch(_))));
        assert!(matches!(Autocast::enter(Device::Cuda(1000), BF16), Err(TorchExtError::Argument(_))));
        assert_eq!(kind(&weight(Device::Cpu)), Kind::Float);
    }
}
