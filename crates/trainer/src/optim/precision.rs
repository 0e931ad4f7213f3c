//! The arithmetic of a training step.

use clap::ValueEnum;
use tch::{Device, Kind};
use torch_ext::Autocast;

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
}

/// What a training step computes in. Weights, gradients and the optimiser's state are f32 in any case, and
/// validation and tests run in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// f32 throughout.
    F32,
    /// Matrix products and convolutions in bf16, the rest in f32.
    Bf16,
}

impl Precision {
    /// The choice's on a device.
    ///
    /// # Errors
    /// libtorch's refusal to tell what the device can do.
    pub fn of(choice: Choice, device: Device) -> Result<Self, Error> {
        Ok(match choice {
            Choice::Bf16 => Self::Bf16,
            Choice::Auto if torch_ext::supports_bf16(device)? => Self::Bf16,
            Choice::Auto | Choice::F32 => Self::F32,
        })
    }

    /// As in the results table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// For the forward pass of a step, as long as it lives.
    ///
    /// # Errors
    /// A device without mixed precision.
    pub fn autocast(self, device: Device) -> Result<Option<Autocast>, Error> {
        Ok(match self {
            Self::F32 => None,
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
        let auto = Precision::of(Choice::Auto, Device::Cpu).unwrap();
        assert_eq!(auto == Precision::Bf16, torch_ext::supports_bf16(Device::Cpu).unwrap());
    }
}
