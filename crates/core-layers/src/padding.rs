//! "Same" padding the way Keras computes it; libtorch's own is symmetric.

use tch::Tensor;

/// Pixels Keras pads before and after an axis of `size` pixels so that a kernel at this stride
/// gives ⌈size / stride⌉ outputs. The odd pixel goes after.
pub fn same_padding(size: i64, kernel: i64, stride: i64) -> (i64, i64) {
    let outputs = (size + stride - 1) / stride;
    let total = ((outputs - 1) * stride + kernel - size).max(0);
    (total / 2, total - total / 2)
}

/// Pads `[B, C, H, W]` maps as [`same_padding`] says, with `fill`: 0 for a convolution, −∞ for a
/// max pool.
pub fn pad_same(images: &Tensor, kernel: i64, stride: i64, fill: f64) -> Tensor {
    let size = images.size();
    let (top, bottom) = same_padding(size[2], kernel, stride);
    let (left, right) = same_padding(size[3], kernel, stride);
    images.pad([left, right, top, bottom], "constant", fill)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn the_pads_are_those_of_every_published_network() {
        // (size, kernel, stride) -> (before, after), as Keras computes them.
        let cases = [
            ((32, 3, 2), (0, 1)),
            ((16, 3, 2), (0, 1)),
            ((48, 3, 2), (0, 1)),
            ((24, 3, 2), (0, 1)),
            ((12, 3, 1), (1, 1)),
            ((12, 1, 1), (0, 0)),
            ((224, 16, 16), (0, 0)),
            ((16, 5, 1), (2, 2)),
            ((32, 8, 1), (3, 4)),
            ((33, 3, 2), (1, 1)),
            ((5, 1, 2), (0, 0)),
        ];
        for ((size, kernel, stride), want) in cases {
            assert_eq!(same_padding(size, kernel, stride), want, "{size} {kernel} {stride}");
        }
    }

    #[test]
    fn the_fill_reaches_the_border_only() {
        let image = Tensor::ones([1, 1, 2, 2], (Kind::Float, Device::Cpu));
        let padded = pad_same(&image, 3, 2, f64::NEG_INFINITY);
        let inf = f32::NEG_INFINITY;
        let values = Vec::<f32>::try_from(padded.flatten(0, -1)).unwrap();
        assert_eq!(values, [1., 1., inf, 1., 1., inf, inf, inf, inf]);
    }
}
