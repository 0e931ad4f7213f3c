//! Where time goes, operation by operation.

use std::ffi::{CStr, c_char};
use std::marker::PhantomData;
use std::time::Duration;

use crate::TorchExtError;
use crate::ffi::{self, check};

/// What an operation of libtorch took in all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpTime {
    /// As libtorch calls it, for example `aten::addmm`.
    pub name: String,
    /// How often it ran.
    pub calls: u64,
    /// Time spent in it, without that of the operations it called.
    pub time: Duration,
}

/// While it lives, what operations take on this thread is measured.
///
/// On CUDA that is the time to launch them, not to compute them. Profiles of a thread do not nest.
///
/// ```
/// # fn main() -> Result<(), torch_ext::TorchExtError> {
/// let profile = torch_ext::Profile::start()?;
/// let _ = tch::Tensor::ones([2, 2], tch::kind::FLOAT_CPU).relu();
/// assert!(profile.stop()?.iter().any(|op| op.name == "aten::relu" && op.calls == 1));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "measuring ends when the profile is dropped"]
pub struct Profile {
    not_send: PhantomData<*const ()>,
}

impl Profile {
    /// Begins to measure.
    ///
    /// # Errors
    /// [`TorchExtError::Argument`] if this thread is measured already.
    pub fn start() -> Result<Self, TorchExtError> {
        // SAFETY: takes no pointers.
        check(unsafe { ffi::torch_ext_profile_start() })?;
        Ok(Self { not_send: PhantomData })
    }

    /// Ends measuring, and returns what ran, the longest first.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn stop(self) -> Result<Vec<OpTime>, TorchExtError> {
        let mut ops: Vec<OpTime> = Vec::new();
        /// Adds an operation to the vector at `ops`.
        extern "C" fn add(ops: *mut std::ffi::c_void, name: *const c_char, calls: u64, nanoseconds: u64) {
            // SAFETY: the pointers are the vector below, and a string that ends with a zero and lives as long as the call.
            let (ops, name) = unsafe { (&mut *ops.cast::<Vec<OpTime>>(), CStr::from_ptr(name)) };
            let name = name.to_string_lossy().into_owned();
            ops.push(OpTime { name, calls, time: Duration::from_nanos(nanoseconds) });
        }
        // SAFETY: `add` is called with the pointer to the vector, during this call alone.
        check(unsafe { ffi::torch_ext_profile_read((&raw mut ops).cast(), add) })?;
        ops.sort_by_key(|op| std::cmp::Reverse(op.time));
        Ok(ops)
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        // SAFETY: takes no pointers.
        let stopped = check(unsafe { ffi::torch_ext_profile_stop() });
        debug_assert!(stopped.is_ok(), "{stopped:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Tensor, kind::FLOAT_CPU};

    #[test]
    fn operations_are_counted_with_their_own_time_until_the_end() {
        let x = Tensor::ones([64, 64], FLOAT_CPU).set_requires_grad(true);
        let started = std::time::Instant::now();
        let profile = Profile::start().unwrap();
        assert!(Profile::start().is_err(), "it does not nest");
        for _ in 0..3 {
            x.matmul(&x).sum(tch::Kind::Float).backward();
        }
        let ops = profile.stop().unwrap();
        let elapsed = started.elapsed();
        let calls = |name: &str| ops.iter().find(|op| op.name == name).map(|op| op.calls);
        // One product forward, two backward; a sum in a kind calls the sum.
        assert_eq!((calls("aten::mm"), calls("aten::sum")), (Some(9), Some(6)), "{ops:?}");
        assert!(ops.iter().map(|op| op.time).sum::<Duration>() <= elapsed);
        assert!(ops.is_sorted_by_key(|op| std::cmp::Reverse(op.time)));
        let profile = Profile::start().unwrap();
        assert_eq!(profile.stop().unwrap(), []);
    }
}
