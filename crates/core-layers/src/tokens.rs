//! From images to tokens and from tokens to one vector.

use tch::nn::Path;
use tch::{Kind, TchError, Tensor};

use crate::{Conv2d, Init, Linear, trace};

/// Maps `[B, C, h, w]` → tokens `[B, h·w, C]`, row by row.
pub fn map_to_tokens(maps: &Tensor) -> Tensor {
    maps.flatten(2, 3).transpose(1, 2)
}

/// The convolution that cuts images into patches and embeds each (Dosovitskiy et al.,
/// arXiv:2010.11929, §3.1): `[B, 3, H, W]` → `[B, dim, H/patch, W/patch]`. Pixels that fill no whole
/// patch are left out.
///
/// # Errors
/// What libtorch says when a tensor cannot be made.
pub fn patch_embedding(
    vs: &Path,
    dim: i64,
    patch: i64,
    weight: Init,
    bias: Init,
) -> Result<Conv2d, TchError> {
    Ok(Conv2d::new(vs, 3, dim, patch, weight, Some(bias))?.stride(patch))
}

/// Tokens `[B, N, D]` with learned tokens `[1, K, D]` in front of each image's: `[B, K + N, D]`.
pub fn prepend_tokens(learned: &Tensor, tokens: &Tensor) -> Tensor {
    let all = Tensor::cat(&[&learned.expand([tokens.size()[0], -1, -1], false), tokens], 1);
    trace::step("ClassToken", &[Some(learned)], &all, &[0]);
    all
}

/// What the first token of each image pays attention to in a grid of `height`×`width` others:
/// probabilities `[B, heads, 1 + h·w, 1 + h·w]` → `[B, heads, h, w]`. Its attention to itself is left
/// out and the rest not rescaled.
pub fn first_token_map(probabilities: &Tensor, height: i64, width: i64) -> Tensor {
    let row = probabilities.select(2, 0).narrow(2, 1, height * width);
    row.reshape([row.size()[0], -1, height, width])
}

/// The mean of an image's tokens, weighed by a softmax over a learned score of each (Hassani et al.,
/// arXiv:2104.05704, §3.3).
#[derive(Debug)]
pub struct SequencePooling {
    scores: Linear,
}

impl SequencePooling {
    /// Creates the scoring layer, D → 1, under `vs`.
    ///
    /// # Errors
    /// What libtorch says when a tensor cannot be made.
    pub fn new(vs: &Path, dim: i64, weight: Init, bias: Init) -> Result<Self, TchError> {
        Ok(Self { scores: Linear::new(vs, dim, 1, weight, Some(bias))? })
    }

    /// Tokens `[B, N, D]` to the weights of their mean, `[B, N, 1]`.
    pub fn weights(&self, tokens: &Tensor) -> Tensor {
        self.scores.forward(tokens).softmax(1, Kind::Float)
    }

    /// `[B, N, D]` → `[B, D]`.
    pub fn forward(&self, tokens: &Tensor) -> Tensor {
        let weights = self.weights(tokens).transpose(1, 2); // [B, 1, N]
        let pooled = weights.matmul(tokens);
        trace::step("SequencePooling", &[], &pooled, &[tokens.size()[1]]);
        pooled.squeeze_dim(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, nn};

    #[test]
    fn patches_become_tokens_row_by_row() {
        let vs = nn::VarStore::new(Device::Cpu);
        let embedding = patch_embedding(&vs.root(), 1, 2, Init::Ones, Init::Zeros).unwrap();
        // One channel carries the pixel's number, the others nothing; a fifth column is left out.
        let image = Tensor::zeros([1, 3, 4, 5], (Kind::Float, Device::Cpu));
        image.narrow(1, 0, 1).copy_(&Tensor::arange(20, (Kind::Float, Device::Cpu)).reshape([4, 5]));
        let tokens = map_to_tokens(&embedding.forward(&image));
        assert_eq!(tokens.size(), [1, 4, 1]);
        assert_eq!(Vec::<f32>::try_from(tokens.flatten(0, -1)).unwrap(), [12., 20., 52., 60.]);
    }

    #[test]
    fn pooling_weighs_tokens_by_the_softmax_of_their_scores() {
        let vs = nn::VarStore::new(Device::Cpu);
        let pooling = SequencePooling::new(&vs.root(), 1, Init::Ones, Init::Zeros).unwrap();
        let tokens = Tensor::from_slice(&[0f32, 3f32.ln()]).reshape([1, 2, 1]);
        // Weights 1/4 and 3/4.
        let got = pooling.forward(&tokens);
        assert_eq!(got.size(), [1, 1]);
        assert!((got.double_value(&[0, 0]) - 0.75 * 3f64.ln()).abs() < 1e-6);
    }

    #[test]
    fn the_first_tokens_row_becomes_a_map() {
        let probabilities = Tensor::arange(25, (Kind::Float, Device::Cpu)).reshape([1, 1, 5, 5]);
        let map = first_token_map(&probabilities, 2, 2);
        assert_eq!(Vec::<f32>::try_from(map.flatten(0, -1)).unwrap(), [1., 2., 3., 4.]);
        let tokens = prepend_tokens(
            &Tensor::ones([1, 1, 2], (Kind::Float, Device::Cpu)),
            &Tensor::zeros([3, 4, 2], (Kind::Float, Device::Cpu)),
        );
        assert_eq!((tokens.size(), tokens.sum(Kind::Float).double_value(&[])), (vec![3, 5, 2], 6.0));
    }
}
