//! Muon's direction: the orthogonal matrix nearest to a matrix, by Newton and Schulz's iteration.

use std::collections::BTreeMap;

use tch::{TchError, Tensor};

/// Coefficients of the iteration's steps, as in timm's preset `quintic`: x ↦ a·x + b·x³ + c·x⁵ for every singular value.
/// They bring values from 0.001 to 1 close to 1, fast rather than exactly.
const STEPS: [[f64; 3]; 5] = [
    [4.0848, -6.8946, 2.9270],
    [3.9505, -6.3029, 2.6377],
    [3.7418, -5.5913, 2.3037],
    [2.8769, -3.1427, 1.2046],
    [2.8366, -3.0525, 1.2012],
];

/// Whether a tensor is a matrix that is worth it, or a kernel `[outputs, inputs, ..]` that is one when everything but the
/// outputs is taken as a dimension: at least 4 by 4, no side more than 128 times the other, and neither of its first two
/// dimensions 1, as depthwise kernels and embeddings have it (timm's rule).
pub(super) fn is_suitable(shape: &[i64]) -> bool {
    let [outputs, inputs, ..] = *shape else { return false };
    let columns: i64 = shape[1..].iter().product();
    let (short, long) = (outputs.min(columns), outputs.max(columns));
    outputs > 1 && inputs > 1 && short >= 4 && long <= 128 * short
}

/// The nearest orthogonal matrix to each, times 0.2·√(longer side), which gives its values about the size of those of an
/// AdamW step (`match_rms_adamw` in timm). Those of one shape are computed together.
///
/// # Errors
/// libtorch's refusal.
pub(super) fn orthogonal(directions: &[Tensor], eps: f64) -> Result<Vec<Tensor>, TchError> {
    let matrices = directions.iter().map(|direction| direction.f_flatten(1, -1));
    let matrices = matrices.collect::<Result<Vec<_>, _>>()?;
    let mut by_shape: BTreeMap<Vec<i64>, Vec<usize>> = BTreeMap::new();
    for (n, matrix) in matrices.iter().enumerate() {
        by_shape.entry(matrix.size()).or_default().push(n);
    }
    let mut found: Vec<(usize, Tensor)> = Vec::new();
    for (shape, numbers) in by_shape {
        let same: Vec<&Tensor> = numbers.iter().map(|&n| &matrices[n]).collect();
        let [rows, columns] = [shape[0], shape[1]];
        let stacked = Tensor::f_stack(&same, 0)?;
        let scaled = newton_schulz(&stacked, eps)?.f_mul_scalar(0.2 * (rows.max(columns) as f64).sqrt())?;
        found.extend(numbers.into_iter().zip(scaled.f_unbind(0)?));
    }
    found.sort_by_key(|(n, _)| *n);
    let shaped = found.iter().map(|(n, matrix)| matrix.f_reshape(directions[*n].size()));
    shaped.collect()
}

/// Matrices `[n, rows, columns]` with their singular values brought close to 1.
fn newton_schulz(matrices: &Tensor, eps: f64) -> Result<Tensor, TchError> {
    let wide = matrices.size()[1] <= matrices.size()[2];
    let mut x = if wide { matrices.shallow_clone() } else { matrices.f_transpose(1, 2)? };
    // No singular value is larger than the root of the sum of all their squares.
    let length = x.f_norm_scalaropt_dim(2.0, [1i64, 2].as_slice(), true)?.f_clamp_min(eps)?;
    x = x.f_div(&length)?;
    for [a, b, c] in STEPS {
        let square = x.f_bmm(&x.f_transpose(1, 2)?)?;
        let factor = square.f_mul_scalar(b)?.f_add(&square.f_bmm(&square)?.f_mul_scalar(c)?)?;
        x = x.f_mul_scalar(a)?.f_add(&factor.f_bmm(&x)?)?;
    }
    if wide { Ok(x) } else { x.f_transpose(1, 2) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn what_is_suitable_is_timm_s_rule() {
        for (shape, suitable) in [
            (vec![64, 128], true),
            (vec![96, 3, 4, 4], true),
            (vec![4, 2048], false),
            (vec![64], false),
            (vec![1, 196, 768], false),
            (vec![256, 1, 5, 5], false),
            (vec![3, 64], false),
            (vec![64, 1], false),
        ] {
            assert_eq!(is_suitable(&shape), suitable, "{shape:?}");
        }
    }

    #[test]
    fn rows_or_columns_end_up_nearly_orthogonal_and_shapes_do_not_mix() {
        tch::manual_seed(1);
        let shapes = [vec![6, 20], vec![20, 6], vec![6, 20], vec![8, 2, 2, 3]];
        let directions = shapes.map(|shape| Tensor::randn(shape.as_slice(), (Kind::Float, Device::Cpu)));
        let found = orthogonal(&directions, 1e-7).unwrap();
        for (direction, found) in directions.iter().zip(&found) {
            assert_eq!(found.size(), direction.size());
            let alone = orthogonal(std::slice::from_ref(direction), 1e-7).unwrap();
            assert!((found - &alone[0]).abs().max().double_value(&[]) < 1e-5);
            let matrix = found.flatten(1, -1);
            let longer = matrix.size()[0].max(matrix.size()[1]) as f64;
            let (_, values, _) = (matrix / (0.2 * longer.sqrt())).svd(true, false);
            let values = Vec::<f32>::try_from(values).unwrap();
            assert!(values.iter().all(|value| (0.6..1.4).contains(value)), "{values:?}");
        }
    }
}
