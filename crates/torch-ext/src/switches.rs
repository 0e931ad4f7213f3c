//! libtorch's settings of the whole process. Set them before other threads compute: libtorch reads them
//! without a lock.

use std::ffi::c_int;

use crate::TorchExtError;
use crate::ffi::{self, check};

/// A setting that is on or off.
///
/// ```
/// # fn main() -> Result<(), torch_ext::TorchExtError> {
/// use torch_ext::Switch;
/// Switch::CudnnBenchmark.set(true)?;
/// assert!(Switch::CudnnBenchmark.get()?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// Whether cuDNN may use deterministic algorithms only; off at first.
    CudnnDeterministic = 0,
    /// Whether cuDNN tries its algorithms for every new shape and keeps the fastest; off at first.
    CudnnBenchmark = 1,
    /// Whether f32 matrix products may round their factors to TF32 on CUDA; off at first.
    Tf32Matmul = 2,
    /// Whether cuDNN's f32 convolutions may; on at first.
    Tf32Cudnn = 3,
    /// Whether new memory is filled with NaN under [`Determinism::Error`] and [`Determinism::Warn`]; on at
    /// first. It costs a pass over every new tensor.
    FillUninitializedMemory = 4,
}

impl Switch {
    /// Sets it.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn set(self, on: bool) -> Result<(), TorchExtError> {
        // SAFETY: takes no pointers, and the number is a switch's.
        check(unsafe { ffi::torch_ext_set_switch(self as c_int, on) })
    }

    /// Whether it is on.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn get(self) -> Result<bool, TorchExtError> {
        let mut on = false;
        // SAFETY: the pointer is to a `bool` to write, and the number is a switch's.
        check(unsafe { ffi::torch_ext_get_switch(self as c_int, &mut on) })?;
        Ok(on)
    }
}

/// What happens to operations whose result may differ from run to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Determinism {
    /// They run.
    Off,
    /// Their deterministic variant runs; where there is none, libtorch warns.
    Warn,
    /// Their deterministic variant runs; where there is none, the operation fails.
    Error,
}

/// Sets what happens to operations that are not deterministic (PyTorch's `use_deterministic_algorithms`).
///
/// On CUDA, matrix products also need `CUBLAS_WORKSPACE_CONFIG=:4096:8` in the environment.
///
/// # Errors
/// What libtorch says.
pub fn set_determinism(determinism: Determinism) -> Result<(), TorchExtError> {
    let (on, warn_only) = match determinism {
        Determinism::Off => (false, false),
        Determinism::Warn => (true, true),
        Determinism::Error => (true, false),
    };
    // SAFETY: takes no pointers.
    check(unsafe { ffi::torch_ext_set_deterministic(on, warn_only) })
}

/// What [`set_determinism`] has set.
///
/// # Errors
/// What libtorch says.
pub fn determinism() -> Result<Determinism, TorchExtError> {
    let (mut on, mut warn_only) = (false, false);
    // SAFETY: the pointers are to two variables to write.
    check(unsafe { ffi::torch_ext_get_deterministic(&mut on, &mut warn_only) })?;
    Ok(match (on, warn_only) {
        (false, _) => Determinism::Off,
        (true, true) => Determinism::Warn,
        (true, false) => Determinism::Error,
    })
}

/// How exact products of f32 matrices are (PyTorch's `set_float32_matmul_precision`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatmulPrecision {
    /// In f32.
    Highest = 0,
    /// In TF32 on CUDA, or in a sum of two bf16 numbers each where that is fast.
    High = 1,
    /// In bf16 where that is fast, which it is on CPUs with the instructions for it; in TF32 on CUDA.
    Medium = 2,
}

/// Sets how exact products of f32 matrices are. It sets [`Switch::Tf32Matmul`] too: off for the highest
/// precision, on for the others.
///
/// # Errors
/// What libtorch says.
pub fn set_matmul_precision(precision: MatmulPrecision) -> Result<(), TorchExtError> {
    // SAFETY: takes no pointers, and the number is one of three.
    check(unsafe { ffi::torch_ext_set_matmul_precision(precision as c_int) })
}

/// How exact products of f32 matrices are.
///
/// # Errors
/// What libtorch says.
pub fn matmul_precision() -> Result<MatmulPrecision, TorchExtError> {
    let mut precision = 0;
    // SAFETY: the pointer is to an `int` to write.
    check(unsafe { ffi::torch_ext_get_matmul_precision(&mut precision) })?;
    Ok(match precision {
        0 => MatmulPrecision::Highest,
        1 => MatmulPrecision::High,
        _ => MatmulPrecision::Medium,
    })
}
