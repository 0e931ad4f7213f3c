//! What devices have and can do.

use tch::Device;

use crate::TorchExtError;
use crate::ffi::{self, check, device_number};

/// Bytes of a device's memory that libtorch's allocator manages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryStats {
    /// In tensors.
    pub allocated: u64,
    /// In tensors or kept for new ones.
    pub reserved: u64,
    /// Largest `allocated` since the start or [`reset_peak`].
    pub peak_allocated: u64,
    /// Largest `reserved` since the start or [`reset_peak`].
    pub peak_reserved: u64,
}

/// The memory in use on a CUDA device; `None` for other devices and where CUDA is not there.
///
/// # Errors
/// What libtorch says, for example that there is no CUDA device of that number.
pub fn memory_stats(device: Device) -> Result<Option<MemoryStats>, TorchExtError> {
    let device = device_number(device)?;
    let (mut found, mut stats) = (false, [0_i64; 4]);
    // SAFETY: the pointers are to a `bool` and to the four numbers the function writes.
    check(unsafe { ffi::torch_ext_memory_stats(device, &mut found, stats.as_mut_ptr()) })?;
    let [allocated, reserved, peak_allocated, peak_reserved] = stats.map(|bytes| bytes.max(0).unsigned_abs());
    Ok(found.then_some(MemoryStats { allocated, reserved, peak_allocated, peak_reserved }))
}

/// Starts the peaks of [`memory_stats`] anew; does nothing where that gives `None`.
///
/// # Errors
/// What libtorch says, for example that there is no CUDA device of that number.
pub fn reset_peak(device: Device) -> Result<(), TorchExtError> {
    let device = device_number(device)?;
    // SAFETY: takes no pointers.
    check(unsafe { ffi::torch_ext_reset_peak(device) })
}

/// Gives memory that is kept for new tensors back to all CUDA devices; does nothing without CUDA.
///
/// # Errors
/// What libtorch says.
pub fn empty_cache() -> Result<(), TorchExtError> {
    // SAFETY: takes no arguments.
    check(unsafe { ffi::torch_ext_empty_cache() })
}

/// Whether this CPU has instructions for products of bf16 numbers (AVX512_BF16, AMX, or Arm's BF16), without
/// which bf16 autocast on the CPU is slower than f32.
///
/// # Errors
/// What libtorch says.
pub fn cpu_supports_bf16() -> Result<bool, TorchExtError> {
    let mut supported = false;
    // SAFETY: the pointer is to a `bool` to write.
    check(unsafe { ffi::torch_ext_cpu_supports_bf16(&mut supported) })?;
    Ok(supported)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Cuda, Kind, Tensor};

    #[test]
    fn only_cuda_has_statistics() {
        assert_eq!(memory_stats(Device::Cpu).unwrap(), None);
        reset_peak(Device::Cpu).unwrap();
        empty_cache().unwrap();
        let device = Device::Cuda(0);
        if !Cuda::is_available() {
            assert_eq!(memory_stats(device).unwrap(), None);
            reset_peak(device).unwrap();
            return;
        }
        const SIZE: i64 = 64 << 20;
        let stats = || memory_stats(device).unwrap().unwrap();
        let before = stats();
        let large = Tensor::zeros([SIZE], (Kind::Uint8, device));
        let with = stats();
        assert!(with.allocated >= before.allocated + SIZE as u64);
        assert!(with.reserved >= with.allocated && with.peak_allocated >= with.allocated);
        drop(large);
        assert!(stats().peak_allocated >= with.allocated);
        empty_cache().unwrap();
        assert!(stats().reserved < with.reserved);
        reset_peak(device).unwrap();
        let after = stats();
        assert!(after.peak_allocated < with.allocated && after.peak_reserved < with.reserved);
        assert!(memory_stats(Device::Cuda(100)).is_err());
    }

    #[test]
    fn bf16_is_what_linux_says() {
        let Ok(info) = std::fs::read_to_string("/proc/cpuinfo") else { return };
        let has = |name: &str| info.split_whitespace().any(|flag| flag == name);
        assert_eq!(cpu_supports_bf16().unwrap(), has("avx512_bf16") || has("amx_bf16") || has("bf16"));
    }
}
