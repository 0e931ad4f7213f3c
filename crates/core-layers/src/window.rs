//! Windows of a map as batches of tokens, and the position bias between a window's tokens.

use tch::nn::Path;
use tch::{TchError, Tensor};

use crate::{Init, parameter, trace};

/// Maps `[B, H, W, C]` cut into windows of `side`×`side` pixels, which must divide H and W:
/// `[B·nW, side², C]`, all windows of an image in a row, row by row.
pub fn window_partition(maps: &Tensor, side: i64) -> Tensor {
    let size = maps.size();
    let (height, width, channels) = (size[1], size[2], size[3]);
    let grid = maps.reshape([-1, height / side, side, width / side, side, channels]);
    grid.permute([0, 1, 3, 2, 4, 5]).reshape([-1, side * side, channels])
}

/// The inverse of [`window_partition`]: `[B·nW, side², C]` → `[B, height, width, C]`.
pub fn window_reverse(windows: &Tensor, side: i64, height: i64, width: i64) -> Tensor {
    let channels = windows.size()[2];
    let grid = windows.reshape([-1, height / side, width / side, side, side, channels]);
    grid.permute([0, 1, 3, 2, 4, 5]).reshape([-1, height, width, channels])
}

/// A learned bias per head and per offset between two tokens of a window (Liu et al.,
/// arXiv:2103.14030, eq. 4).
#[derive(Debug)]
pub struct RelativePositionBias {
    table: Tensor,
    /// Which row of the table each pair of tokens takes, `[side⁴]`.
    index: Tensor,
    tokens: i64,
}

impl RelativePositionBias {
    /// Creates `relative_position_bias_table` `[(2·side − 1)², num_heads]` under `vs`.
    ///
    /// # Errors
    /// What libtorch says when a tensor cannot be made.
    pub fn new(vs: &Path, side: i64, num_heads: i64, init: Init) -> Result<Self, TchError> {
        let span = 2 * side - 1;
        let token = |n: i64| (n / side, n % side);
        let row = |a: i64, b: i64| {
            let ((i1, j1), (i2, j2)) = (token(a), token(b));
            (i1 - i2 + side - 1) * span + (j1 - j2 + side - 1)
        };
        let tokens = side * side;
        let index: Vec<i64> = (0..tokens).flat_map(|a| (0..tokens).map(move |b| row(a, b))).collect();
        Ok(Self {
            table: parameter(vs, "relative_position_bias_table", &[span * span, num_heads], init)?,
            index: Tensor::from_slice(&index).f_to_device(vs.device())?,
            tokens,
        })
    }

    /// `[1, heads, N, N]` with N = side², to be added to the scores of queries by keys.
    pub fn forward(&self) -> Tensor {
        let pairs = self.table.index_select(0, &self.index); // [N·N, heads]
        let bias = pairs.reshape([self.tokens, self.tokens, -1]).permute([2, 0, 1]).unsqueeze(0);
        trace::step("RelativePositionBias", &[Some(&self.table)], &bias, &[0]);
        bias
    }
}

/// A tensor of one entry per image, `[B, ..]`, repeated for each of its `windows`, in the order of
/// [`window_partition`]: `[B·windows, ..]`.
pub fn repeat_per_window(per_image: &Tensor, windows: i64) -> Tensor {
    per_image.repeat_interleave_self_int(windows, 0, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, nn};

    #[test]
    fn windows_are_row_by_row_and_go_back_where_they_were() {
        // Two images of 4×6 pixels that hold their own number.
        let maps = Tensor::arange(48, (Kind::Float, Device::Cpu)).reshape([2, 4, 6, 1]);
        let windows = window_partition(&maps, 2);
        assert_eq!(windows.size(), [12, 4, 1]);
        let window = |i: i64| Vec::<f32>::try_from(windows.select(0, i).flatten(0, -1)).unwrap();
        assert_eq!(window(1), [2., 3., 8., 9.]);
        assert_eq!(window(3), [12., 13., 18., 19.]);
        assert_eq!(window(6), [24., 25., 30., 31.]);
        assert_eq!(window_reverse(&windows, 2, 4, 6), maps);
    }

    #[test]
    fn an_images_entry_goes_to_all_its_windows_in_a_row() {
        let repeated = repeat_per_window(&Tensor::from_slice(&[5f32, 7.]).reshape([2, 1]), 3);
        assert_eq!(Vec::<f32>::try_from(repeated.flatten(0, -1)).unwrap(), [5., 5., 5., 7., 7., 7.]);
    }

    #[test]
    fn the_bias_follows_the_offset_between_tokens() {
        let vs = nn::VarStore::new(Device::Cpu);
        let bias = RelativePositionBias::new(&vs.root(), 2, 1, Init::Zeros).unwrap();
        let mut table = vs.variables()["relative_position_bias_table"].shallow_clone();
        tch::no_grad(|| table.copy_(&Tensor::arange(9, (Kind::Float, Device::Cpu)).reshape([9, 1])));
        let bias = bias.forward();
        assert_eq!(bias.size(), [1, 1, 4, 4]);
        // Row 3·(i₁ − i₂ + 1) + (j₁ − j₂ + 1) of the table, from token (0, 0), then from (1, 0).
        let row = |n: i64| Vec::<f32>::try_from(bias.select(2, n).flatten(0, -1)).unwrap();
        assert_eq!(row(0), [4., 3., 1., 0.]);
        assert_eq!(row(2), [7., 6., 4., 3.]);
    }
}
