//! Initialisers that draw from exactly the distribution of the reference they are named after.

use serde::{Deserialize, Serialize};
use tch::nn::Path;
use tch::{Device, Kind, TchError, Tensor};

/// Standard deviation of a standard normal cut off at ±2; Keras divides by it so that a truncated
/// He normal keeps the variance it is asked for.
const STD_OF_NORMAL_CUT_AT_2: f64 = 0.879_625_661_034_239_8;

/// Φ(−2): the probability a standard normal leaves below −2.
const NORMAL_BELOW_MINUS_2: f64 = 0.022_750_131_948_179_21;

/// The distribution a parameter starts from. Fans are given, not guessed from the shape: Keras
/// counts a depthwise kernel's and an attention kernel's in its own way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
    /// All equal to the value.
    Constant(f64),
    /// Normal with mean 0, not truncated (timm and torch `trunc_normal_(std=σ)` for small σ, Keras
    /// `RandomNormal`).
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Keras `TruncatedNormal`: a normal redrawn outside ±2σ and not rescaled, so that its
    /// standard deviation is 0.88σ.
    TruncatedNormal {
        /// σ before truncation.
        std: f64,
    },
    /// Keras `GlorotUniform`: uniform on ±√(6 / (fan_in + fan_out)) (Glorot & Bengio 2010).
    GlorotUniform {
        /// Inputs per output.
        fan_in: i64,
        /// Outputs per input.
        fan_out: i64,
    },
    /// Keras `he_normal`: a normal truncated at two of its own σ' and scaled so that its standard
    /// deviation is √(2 / fan_in) (He et al. 2015).
    HeNormalTruncated {
        /// Inputs per output.
        fan_in: i64,
    },
    /// PyTorch `kaiming_normal_` with ReLU gain: normal with σ = √(2 / fan_in), not truncated.
    KaimingNormal {
        /// Inputs per output.
        fan_in: i64,
    },
    /// What PyTorch's `Linear` and `Conv2d` start from, weights and biases alike: uniform on
    /// ±1/√fan_in.
    TorchDefault {
        /// Inputs per output.
        fan_in: i64,
    },
}

impl Init {
    /// Draws an f32 tensor of the given shape on the CPU from libtorch's generator. Drawing there
    /// whatever the training device makes one seed mean one network.
    ///
    /// # Errors
    /// What libtorch says, for example when the memory for the shape cannot be had.
    pub fn draw(self, shape: &[i64]) -> Result<Tensor, TchError> {
        let float = (Kind::Float, Device::Cpu);
        match self {
            Self::Zeros => Tensor::f_zeros(shape, float),
            Self::Ones => Tensor::f_ones(shape, float),
            Self::Constant(value) => Tensor::f_full(shape, value, float),
            Self::Normal { std } => Ok(Tensor::f_randn(shape, float)? * std),
            Self::TruncatedNormal { std } => truncated_normal(shape, std),
            Self::GlorotUniform { .. } | Self::TorchDefault { .. } => {
                let bound = self.bound();
                Tensor::f_zeros(shape, float)?.f_uniform_(-bound, bound)
            }
            Self::HeNormalTruncated { .. } => truncated_normal(shape, self.bound() / 2.0),
            Self::KaimingNormal { fan_in } => {
                Ok(Tensor::f_randn(shape, float)? * (2.0 / fan_in as f64).sqrt())
            }
        }
    }

    /// The largest absolute value a draw can have; infinite for a normal that is not truncated.
    pub fn bound(self) -> f64 {
        match self {
            Self::Zeros => 0.0,
            Self::Ones => 1.0,
            Self::Constant(value) => value.abs(),
            Self::Normal { .. } | Self::KaimingNormal { .. } => f64::INFINITY,
            Self::TruncatedNormal { std } => 2.0 * std,
            Self::GlorotUniform { fan_in, fan_out } => (6.0 / (fan_in + fan_out) as f64).sqrt(),
            Self::HeNormalTruncated { fan_in } => 2.0 * (2.0 / fan_in as f64).sqrt() / STD_OF_NORMAL_CUT_AT_2,
            Self::TorchDefault { fan_in } => 1.0 / (fan_in as f64).sqrt(),
        }
    }
}

/// A normal cut off at ±2σ, by inverting its distribution function: one draw per element, where
/// redrawing would take a different number of draws each time.
fn truncated_normal(shape: &[i64], std: f64) -> Result<Tensor, TchError> {
    let below = NORMAL_BELOW_MINUS_2;
    // In f64, because in f32 the far ends of the distribution function are coarse.
    let uniform = Tensor::f_rand(shape, (Kind::Double, Device::Cpu))? * (1.0 - 2.0 * below) + below;
    let normal = (uniform * 2.0 - 1.0).f_erfinv()? * std::f64::consts::SQRT_2;
    Ok((normal.clamp(-2.0, 2.0) * std).to_kind(Kind::Float))
}

/// Which framework's defaults a configuration's linear and convolution layers start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitScheme {
    /// Keras: Glorot uniform weights, zero biases.
    Glorot,
    /// PyTorch: weights and biases uniform on ±1/√fan_in.
    Torch,
    /// timm's and many official transformers': normal weights of standard deviation 0.02, zero biases.
    Normal02,
}

impl InitScheme {
    /// The initialiser of a weight.
    pub fn weight(self, fan_in: i64, fan_out: i64) -> Init {
        match self {
            Self::Glorot => Init::GlorotUniform { fan_in, fan_out },
            Self::Torch => Init::TorchDefault { fan_in },
            Self::Normal02 => Init::Normal { std: 0.02 },
        }
    }

    /// The initialiser of a depthwise convolution's weight. Keras counts all channels among the inputs,
    /// although each output sees one; PyTorch does not.
    pub fn depthwise_weight(self, kernel: i64, channels: i64) -> Init {
        let area = kernel * kernel;
        self.weight(if self == Self::Glorot { area * channels } else { area }, area)
    }

    /// The initialiser of the bias beside a weight with this `fan_in`.
    pub fn bias(self, fan_in: i64) -> Init {
        match self {
            Self::Glorot | Self::Normal02 => Init::Zeros,
            Self::Torch => Init::TorchDefault { fan_in },
        }
    }
}

/// Adds a trainable tensor named `name` under `vs`.
///
/// # Errors
/// What libtorch says when the tensor cannot be made.
pub fn parameter(vs: &Path, name: &str, shape: &[i64], init: Init) -> Result<Tensor, TchError> {
    Ok(vs.add(name, init.draw(shape)?.f_to_device(vs.device())?, true))
}

/// Adds a tensor that is saved and loaded with the parameters but not trained.
///
/// # Errors
/// What libtorch says when the tensor cannot be made.
pub fn buffer(vs: &Path, name: &str, shape: &[i64], init: Init) -> Result<Tensor, TchError> {
    Ok(vs.add(name, init.draw(shape)?.f_to_device(vs.device())?, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extremes_and_std(init: Init, seed: i64) -> (f64, f64, f64) {
        tch::manual_seed(seed);
        let x = init.draw(&[400, 500]).unwrap().to_kind(Kind::Double);
        (x.min().double_value(&[]), x.max().double_value(&[]), x.std(false).double_value(&[]))
    }

    #[test]
    fn glorot_limits_are_those_of_the_published_networks() {
        // (fan_in, fan_out, limit): ConvMixer stem, depthwise, pointwise and head; CCT MLP and
        // pooling; PatchConvNet stem and trunk; ViT patches, fused qkv and head.
        let cases = [
            (12, 1024, 0.07610),
            (25 * 256, 25, 0.03056),
            (256, 256, 0.10825),
            (256, 10, 0.15019),
            (128, 128, 0.15309),
            (128, 1, 0.21567),
            (9 * 128, 9 * 256, 0.04167),
            (9 * 256, 9 * 256, 0.03608),
            (108, 64, 0.18677),
            (64, 192, 0.15309),
            (64, 10, 0.28475),
        ];
        for (fan_in, fan_out, limit) in cases {
            let bound = Init::GlorotUniform { fan_in, fan_out }.bound();
            assert!((bound - limit).abs() < 6e-6, "{fan_in} {fan_out}: {bound} {limit}");
        }
    }

    #[test]
    fn depthwise_fans_are_the_frameworks_own() {
        // ConvMixer's 5×5 kernels and GCViT's 3×3 ones in Keras; PyTorch sees one channel.
        for (kernel, channels, limit) in [(5, 256, 0.03056), (3, 64, 0.10127)] {
            let bound = InitScheme::Glorot.depthwise_weight(kernel, channels).bound();
            assert!((bound - limit).abs() < 6e-6, "{bound} {limit}");
        }
        assert_eq!(InitScheme::Torch.depthwise_weight(3, 64).bound(), 1.0 / 3.0);
    }

    #[test]
    fn uniform_draws_fill_their_range_and_no_more() {
        for init in [Init::GlorotUniform { fan_in: 256, fan_out: 256 }, Init::TorchDefault { fan_in: 75 }] {
            let bound = init.bound();
            let (min, max, std) = extremes_and_std(init, 1);
            assert!(min >= -bound - 1e-7 && min < -0.999 * bound, "{init:?} {min}");
            assert!(max <= bound + 1e-7 && max > 0.999 * bound, "{init:?} {max}");
            assert!((std / (bound / 3f64.sqrt()) - 1.0).abs() < 0.01, "{init:?} {std}");
        }
        assert_eq!(Init::TorchDefault { fan_in: 100 }.bound(), 0.1);
    }

    #[test]
    fn he_normal_is_truncated_and_keeps_its_variance() {
        // The two convolutions of the published CCT: σ' and cut for 27 and 576 inputs.
        for (fan_in, sigma, cut) in [(27, 0.30941, 0.61882), (576, 0.06699, 0.13398)] {
            let init = Init::HeNormalTruncated { fan_in };
            assert!((init.bound() - cut).abs() < 6e-6 && (init.bound() / 2.0 - sigma).abs() < 6e-6);
            let (min, max, std) = extremes_and_std(init, 2);
            assert!(min >= -cut - 1e-5 && min < -0.98 * cut && max <= cut + 1e-5 && max > 0.98 * cut);
            assert!((std / (2.0 / fan_in as f64).sqrt() - 1.0).abs() < 0.01, "{std}");
        }
    }

    #[test]
    fn keras_truncated_normal_is_not_rescaled() {
        let (min, max, std) = extremes_and_std(Init::TruncatedNormal { std: 0.02 }, 3);
        assert!((-0.04..-0.0395).contains(&min) && max > 0.0395 && max <= 0.04 + 1e-9, "{min} {max}");
        assert!((std - 0.0176).abs() < 0.0001, "{std}");
        // The distribution, not only its width: a cut normal has this share within ±σ.
        tch::manual_seed(3);
        let draws = Init::TruncatedNormal { std: 1.0 }.draw(&[200_000]).unwrap();
        let inside = draws.abs().le(1.0).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
        assert!((inside - 0.682_689_49 / 0.954_499_74).abs() < 0.005, "{inside}");
    }

    #[test]
    fn plain_normals_are_not_truncated() {
        for (init, want) in [(Init::Normal { std: 0.02 }, 0.02), (Init::KaimingNormal { fan_in: 50 }, 0.2)] {
            let (min, max, std) = extremes_and_std(init, 4);
            assert!((std / want - 1.0).abs() < 0.01, "{std}");
            assert!(min < -3.5 * want && max > 3.5 * want, "{min} {max}");
        }
    }

    #[test]
    fn a_shape_that_does_not_fit_in_memory_is_an_error() {
        assert!(Init::Zeros.draw(&[1 << 40, 1 << 20]).is_err());
    }
}
