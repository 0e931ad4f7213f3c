//! What devices have and can do.

use std::ffi::{CStr, c_char, c_int};
use std::process::Command;

use tch::{Cuda, Device};

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

/// Bytes of a CUDA device's memory: free, whoever uses the rest, and all; `None` for other devices and where CUDA is
/// not there. What libtorch keeps for new tensors ([`MemoryStats::reserved`]) does not count as free.
///
/// # Errors
/// What libtorch says, for example that there is no CUDA device of that number.
pub fn memory_info(device: Device) -> Result<Option<(u64, u64)>, TorchExtError> {
    let device = device_number(device)?;
    let (mut found, mut free, mut total) = (false, 0, 0);
    // SAFETY: the pointers are to a `bool` and two numbers to write.
    check(unsafe { ffi::torch_ext_memory_info(device, &mut found, &mut free, &mut total) })?;
    Ok(found.then_some((free as u64, total as u64)))
}

/// Whether bf16 autocast is worth it: the processor has instructions for products of bf16 numbers (AVX512_BF16, AMX, or
/// Arm's BF16), or the card convolves in bf16 (compute capability 8.0 and later). Elsewhere it is slower than f32.
///
/// # Errors
/// What libtorch says.
pub fn supports_bf16(device: Device) -> Result<bool, TorchExtError> {
    let device = device_number(device)?;
    let mut supported = false;
    // SAFETY: the pointer is to a `bool` to write.
    check(unsafe { ffi::torch_ext_supports_bf16(device, &mut supported) })?;
    Ok(supported)
}

/// What NVIDIA calls a card and its driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// `580.95.05`; `None` where NVIDIA's management library is not there to ask.
    pub driver: Option<String>,
}

/// The card of a CUDA device; `None` for other devices and where CUDA is not there.
///
/// # Errors
/// What libtorch says, for example that there is no CUDA device of that number.
pub fn gpu(device: Device) -> Result<Option<Gpu>, TorchExtError> {
    const SIZE: usize = 256;
    let device = device_number(device)?;
    let (mut found, mut name, mut driver) = (false, [0 as c_char; SIZE], [0 as c_char; SIZE]);
    // SAFETY: the pointers are to a `bool` and to two arrays of zeros of the size that is said, each of which still ends
    // with a zero afterwards.
    let (name, driver) = unsafe {
        let (to_name, to_driver) = (name.as_mut_ptr(), driver.as_mut_ptr());
        check(ffi::torch_ext_card(device, &mut found, to_name, to_driver, SIZE as c_int))?;
        (CStr::from_ptr(to_name), CStr::from_ptr(to_driver))
    };
    let text = |text: &CStr| text.to_string_lossy().into_owned();
    let driver = Some(text(driver)).filter(|driver| !driver.is_empty());
    Ok(found.then(|| Gpu { name: text(name), driver }))
}

/// The devices for tests and benchmarks to run on: the processor, and the first CUDA device where there is one.
///
/// A program that does not call this crate otherwise is linked with libtorch_cuda by calling this function.
///
/// # Panics
/// When there is a card and a libtorch with CUDA, and CUDA is not available all the same: what was not run on the card
/// must not look as if it had been.
pub fn test_devices() -> Vec<Device> {
    if Cuda::is_available() {
        return vec![Device::Cpu, Device::Cuda(0)];
    }
    let hidden = std::env::var("CUDA_VISIBLE_DEVICES").is_ok_and(|list| list.is_empty() || list == "-1");
    let listed = || {
        Command::new("nvidia-smi").arg("-L").output().is_ok_and(|output| output.stdout.starts_with(b"GPU 0"))
    };
    assert!(
        !cfg!(libtorch_cuda) || hidden || !listed(),
        "nvidia-smi lists a card, but CUDA is not available to libtorch: `cargo xtask doctor` may know why; \
         CUDA_VISIBLE_DEVICES=-1 has only the processor tested"
    );
    vec![Device::Cpu]
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, Tensor};

    #[test]
    fn only_cuda_has_statistics_and_a_card() {
        for device in [Device::Cpu, Device::Cuda(0)] {
            if device == Device::Cpu || !Cuda::is_available() {
                assert_eq!(memory_stats(device).unwrap(), None);
                assert_eq!(memory_info(device).unwrap(), None);
                assert_eq!(gpu(device).unwrap(), None);
                reset_peak(device).unwrap();
            }
        }
        empty_cache().unwrap();
        assert!(gpu(Device::Cuda(1000)).is_err());
        if let [_, device] = test_devices()[..] {
            is_measured(device);
        }
    }

    fn is_measured(device: Device) {
        let Gpu { name, driver } = gpu(device).unwrap().unwrap();
        assert!(!name.is_empty() && gpu(Device::Cuda(100)).is_err());
        assert!(driver.is_none_or(|driver| driver.starts_with(|first: char| first.is_ascii_digit())));
        const SIZE: i64 = 64 << 20;
        let stats = || memory_stats(device).unwrap().unwrap();
        let before = stats();
        let (free, total) = memory_info(device).unwrap().unwrap();
        assert!(before.reserved <= total - free && free > 0);
        let large = Tensor::zeros([SIZE], (Kind::Uint8, device));
        let with = stats();
        assert_eq!(memory_info(device).unwrap().unwrap().1, total);
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
    #[cfg(target_os = "linux")]
    fn bf16_is_what_linux_says() {
        assert!(!supports_bf16(Device::Vulkan).unwrap());
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let has = |name: &str| info.split_whitespace().any(|flag| flag == name);
        let wanted = has("avx512_bf16") || has("amx_bf16") || has("bf16");
        assert_eq!(supports_bf16(Device::Cpu).unwrap(), wanted);
    }
}
