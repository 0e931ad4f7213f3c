//! Position embeddings: fixed sinusoids, and learned ones for another size of image.

use tch::{Kind, TchError, Tensor};

use crate::trace;

/// Tokens `[B, N, D]` with the embedding `[1, N, D]` of their positions added.
pub fn add_position_embedding(tokens: &Tensor, embedding: &Tensor) -> Tensor {
    let sum = tokens + embedding;
    trace::step("PositionEmbedding", &[Some(embedding)], &sum, &[0]);
    sum
}

/// The cosine between the embeddings `[1, prefix + h·w, D]` of every two positions of a grid, `[h, w, h, w]`
/// (Dosovitskiy et al., arXiv:2010.11929, fig. 7). What comes before the grid is left out.
pub fn position_similarity(embedding: &Tensor, height: i64, width: i64) -> Tensor {
    let all = embedding.detach().squeeze_dim(0);
    let grid = all.narrow(0, all.size()[0] - height * width, height * width);
    let norms = grid.norm_scalaropt_dim(2.0, [1i64].as_slice(), true).clamp_min(1e-12);
    let units = grid / norms;
    units.matmul(&units.transpose(0, 1)).to_kind(Kind::Float).reshape([height, width, height, width])
}

/// How a grid of embeddings is resampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resample {
    /// Bilinear without antialiasing, as the official CCT does.
    Bilinear,
    /// Bicubic without antialiasing, as the official Swin Transformer does with tables of relative positions.
    Bicubic,
    /// Bicubic with antialiasing, as timm does.
    BicubicAntialias,
}

/// A position embedding `[1, prefix + N, D]` of a square grid of N tokens for another grid: the
/// `prefix` (a class token's place) stays, the rest is resampled to `side`² tokens.
///
/// # Errors
/// A number of positions that is no square, or libtorch's refusal.
pub fn resize_position_embedding(
    embedding: &Tensor,
    prefix: i64,
    side: i64,
    resample: Resample,
) -> Result<Tensor, TchError> {
    let (_, tokens, dim) = embedding.size3()?;
    let old = ((tokens - prefix).max(0) as f64).sqrt().round() as i64;
    if prefix < 0 || old < 1 || old * old != tokens - prefix {
        return Err(TchError::Shape(format!("{tokens} positions less {prefix} are no square grid")));
    }
    let grid = embedding.f_narrow(1, prefix, old * old)?.f_reshape([1, old, old, dim])?;
    let grid = grid.f_permute([0, 3, 1, 2])?;
    let resized = match resample {
        Resample::Bilinear => grid.f_upsample_bilinear2d([side, side], false, None, None)?,
        Resample::Bicubic => grid.f_upsample_bicubic2d([side, side], false, None, None)?,
        Resample::BicubicAntialias => {
            grid.f_internal_upsample_bicubic2d_aa([side, side], false, None, None)?
        }
    };
    let resized = resized.f_permute([0, 2, 3, 1])?.f_reshape([1, side * side, dim])?;
    Tensor::f_cat(&[embedding.f_narrow(1, 0, prefix)?, resized], 1)
}

/// Fixed embedding `[1, tokens, dim]` (Vaswani et al., arXiv:1706.03762, §3.5): angle
/// p / 10000^(2⌊i/2⌋/dim), its sine on even channels and its cosine on odd ones.
pub fn sinusoidal_position_embedding(tokens: i64, dim: i64) -> Tensor {
    let value = |p: i64, i: i64| {
        let angle = p as f64 / 10000f64.powf((2 * (i / 2)) as f64 / dim as f64);
        if i % 2 == 0 { angle.sin() } else { angle.cos() }
    };
    let values: Vec<f32> = (0..tokens).flat_map(|p| (0..dim).map(move |i| value(p, i) as f32)).collect();
    Tensor::from_slice(&values).reshape([1, tokens, dim])
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn grids_are_resampled_and_the_prefix_kept() {
        let embedding = Tensor::rand([1, 17, 3], (Kind::Float, Device::Cpu));
        for resample in [Resample::Bilinear, Resample::Bicubic, Resample::BicubicAntialias] {
            let resize = |side| resize_position_embedding(&embedding, 1, side, resample).unwrap();
            assert!((resize(4) - &embedding).abs().max().double_value(&[]) < 1e-6);
            let smaller = resize(2);
            assert_eq!(smaller.size(), [1, 5, 3]);
            assert_eq!(smaller.select(1, 0), embedding.select(1, 0));
        }
        // Half the size without antialiasing is the mean of 2×2 positions.
        let half = resize_position_embedding(&embedding, 1, 2, Resample::Bilinear).unwrap();
        let corner = [1i64, 2, 5, 6].map(|i| embedding.double_value(&[0, i, 0])).iter().sum::<f64>() / 4.0;
        assert!((half.double_value(&[0, 1, 0]) - corner).abs() < 1e-6);
        assert!(resize_position_embedding(&embedding.narrow(1, 0, 12), 1, 2, Resample::Bilinear).is_err());
        assert!(resize_position_embedding(&embedding.narrow(1, 0, 1), 1, 2, Resample::Bilinear).is_err());
    }

    #[test]
    fn sinusoids_alternate_sine_and_cosine() {
        let embedding = sinusoidal_position_embedding(3, 4);
        // Position 2: angles 2 and 2/100.
        for (i, want) in [2f64.sin(), 2f64.cos(), 0.02f64.sin(), 0.02f64.cos()].into_iter().enumerate() {
            assert!((embedding.double_value(&[0, 2, i as i64]) - want).abs() < 1e-6);
        }
    }
}
