//! The arithmetic of a training step.

use clap::ValueEnum;
use tch::{Device, Kind};
use torch_ext::{Autocast, Switch};

use crate::Error;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// bf16 where the device computes in it, f32 elsewhere.
    Auto,
    /// Single precision.
    F32,
    /// Matrix products and convolutions in bf16, the rest in f32.
    Bf16,
    /// f32 whose products round their factors to TF32, on a CUDA device.
    Tf32,
}

/// What a training step computes in. Weights, gradients and the optimiser's state are f32 in any case, and
/// validation and tests run in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// f32 throughout.
    F32,
    /// Matrix products and convolutions in bf16, the rest in f32.
    Bf16,
    /// f32 whose products round their factors to TF32.
    Tf32,
}

/// While it lives, products of f32 numbers on CUDA devices round their factors to TF32. Of the whole process.
#[derive(Debug)]
#[must_use = "TF32 ends when the guard is dropped"]
pub struct Tf32;

/// What TF32 is about.
const TF32: [Switch; 2] = [Switch::Tf32Matmul, Switch::Tf32Cudnn];

impl Drop for Tf32 {
    fn drop(&mut self) {
        // They were set before, so that they can be set.
        let off = TF32.into_iter().try_for_each(|switch| switch.set(false));
        debug_assert!(off.is_ok(), "{off:?}");
    }
}

impl Precision {
    /// The choice's on a device.
    ///
    /// # Errors
    /// TF32 for another device than CUDA, or libtorch's refusal to tell what the device can do.
    pub fn of(choice: Choice, device: Device) -> Result<Self, Error> {
        Ok(match choice {
            Choice::Bf16 => Self::Bf16,
            Choice::Tf32 if device.is_cuda() => Self::Tf32,
            Choice::Tf32 => {
                let problem = "--precision tf32: only CUDA devices compute in it; use f32 or bf16";
                return Err(Error::Usage(problem.to_owned()));
            }
            Choice::Auto if torch_ext::supports_bf16(device)? => Self::Bf16,
            Choice::Auto | Choice::F32 => Self::F32,
        })
    }

    /// As in the results table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Tf32 => "tf32",
        }
    }

    /// For the forward and backward pass of a step, as long as it lives.
    ///
    /// # Errors
    /// libtorch's refusal.
    pub fn tf32(self) -> Result<Option<Tf32>, Error> {
        if self != Self::Tf32 {
            return Ok(None);
        }
        let guard = Tf32;
        TF32.into_iter().try_for_each(|switch| switch.set(true))?;
        Ok(Some(guard))
    }

    /// For the forward pass of a step, as long as it lives.
    ///
    /// # Errors
    /// A device without mixed precision.
    pub fn autocast(self, device: Device) -> Result<Option<Autocast>, Error> {
        Ok(match self {
            Self::F32 | Self::Tf32 => None,
            Self::Bf16 => Some(Autocast::enter(device, Kind::BFloat16)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Tensor;

    #[test]
    fn products_are_in_the_precision_only_as_long_as_it_is_on() {
        let matrix = Tensor::ones([8, 8], (Kind::Float, Device::Cpu));
        let kind = || matrix.matmul(&matrix).kind();
        for (choice, wanted) in [(Choice::F32, Kind::Float), (Choice::Bf16, Kind::BFloat16)] {
            let precision = Precision::of(choice, Device::Cpu).unwrap();
            let guard = precision.autocast(Device::Cpu).unwrap();
            assert_eq!(kind(), wanted);
            drop(guard);
            assert_eq!(kind(), Kind::Float);
        }
        let refused = Precision::of(Choice::Tf32, Device::Cpu).unwrap_err().to_string();
        assert_eq!(refused, "--precision tf32: only CUDA devices compute in it; use f32 or bf16");
        let on = || TF32.map(|switch| switch.get().unwrap());
        let guard = Precision::Tf32.tf32().unwrap();
        assert_eq!((guard.is_some(), on()), (true, [true; 2]));
        drop(guard);
        assert_eq!(on(), [false; 2]);
        assert!(Precision::Bf16.tf32().unwrap().is_none());
        let auto = Precision::of(Choice::Auto, Device::Cpu).unwrap();
        assert_eq!(auto == Precision::Bf16, torch_ext::supports_bf16(Device::Cpu).unwrap());
    }
}
