//! The changes that the published Keras tutorials make to training images, each to whole batches on the
//! device: mirroring, rotation, zoom and resizing.

use tch::{Kind, Tensor};

use crate::error::DataError;

/// Mirrors the images `[B, C, H, W]` of any kind whose entry in `mask`, bool `[B]`, is `true`: along
/// dimension 3 left to right, along 2 top to bottom.
///
/// # Errors
/// When the shapes do not fit each other, or the devices differ.
pub fn flip(images: &Tensor, mask: &Tensor, dimension: i64) -> Result<Tensor, DataError> {
    let (shape, mask_shape) = (images.size(), mask.size());
    if shape.len() != 4 || mask_shape != shape[..1] {
        return Err(DataError::Argument(format!("cannot flip images {shape:?} by a mask {mask_shape:?}")));
    }
    Ok(images.f_flip([dimension])?.f_where_self(&mask.f_view([-1, 1, 1, 1])?, images)?)
}

/// Turns images `[B, C, H, W]` about their centres by `radians` `[B]`, as Keras's `RandomRotation`: output
/// (x, y) samples input (x·cos θ − y·sin θ, x·sin θ + y·cos θ), measured from the centre, bilinearly;
/// beyond the border lies the mirrored image.
///
/// # Errors
/// When the shapes do not fit each other, or the devices differ.
pub fn rotate(images: &Tensor, radians: &Tensor) -> Result<Tensor, DataError> {
    let (cos, sin) = (radians.f_cos()?.f_view([-1, 1, 1])?, radians.f_sin()?.f_view([-1, 1, 1])?);
    let (x, y) = centred_grid(images)?;
    sample(images, &(&x * &cos - &y * &sin), &(&x * &sin + &y * &cos))
}

/// Zooms images `[B, C, H, W]` about their centres by `factors` `[2, B]` of rows and columns, as Keras's
/// `RandomZoom`: output (x, y) samples input (z_x·x, z_y·y), measured from the centre, bilinearly; beyond
/// the border lies the mirrored image. Factors above 1 shrink.
///
/// # Errors
/// When the shapes do not fit each other, or the devices differ.
pub fn zoom(images: &Tensor, factors: &Tensor) -> Result<Tensor, DataError> {
    let (rows, columns) = (factors.f_get(0)?.f_view([-1, 1, 1])?, factors.f_get(1)?.f_view([-1, 1, 1])?);
    let (x, y) = centred_grid(images)?;
    sample(images, &(&x * &columns), &(&y * &rows))
}

/// Pixel coordinates of columns `[1, 1, W]` and rows `[1, H, 1]`, from the image's centre.
fn centred_grid(images: &Tensor) -> Result<(Tensor, Tensor), DataError> {
    let (_, _, height, width) = images.size4()?;
    let axis = |size: i64| -> Result<Tensor, DataError> {
        let pixels = Tensor::f_arange(size, (Kind::Float, images.device()))?;
        Ok(pixels.f_sub_scalar((size - 1) as f64 / 2.0)?)
    };
    Ok((axis(width)?.f_view([1, 1, -1])?, axis(height)?.f_view([1, -1, 1])?))
}

/// The images at `x` and `y`, pixels from the centre, each broadcastable to `[B, H, W]`.
fn sample(images: &Tensor, x: &Tensor, y: &Tensor) -> Result<Tensor, DataError> {
    let (batch, _, height, width) = images.size4()?;
    // grid_sampler counts from −1 to 1 between the outer edges of the border pixels.
    let axis = |t: &Tensor, size: i64| -> Result<Tensor, DataError> {
        Ok(t.f_mul_scalar(2.0 / size as f64)?.f_expand([batch, height, width], false)?)
    };
    let grid = Tensor::f_stack(&[axis(x, width)?, axis(y, height)?], -1)?;
    let (bilinear, reflection) = (0, 2);
    Ok(images.f_grid_sampler(&grid, bilinear, reflection, false)?)
}

/// Resizes float images `[B, C, H, W]` to `[B, C, size, size]`: bilinear, pixel centres at one half, no
/// antialiasing. Images of that size already are returned as they are.
///
/// # Errors
/// When `size` is not positive or `images` have another number of dimensions.
pub fn resize(images: &Tensor, size: i64) -> Result<Tensor, DataError> {
    let shape = images.size();
    if size < 1 || shape.len() != 4 {
        return Err(DataError::Argument(format!(
            "cannot resize images {shape:?} to a side of {size} pixels"
        )));
    }
    if shape[2..] == [size, size] {
        return Ok(images.shallow_clone());
    }
    Ok(images.f_upsample_bilinear2d([size, size], false, None, None)?)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn floats(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).unwrap()
    }

    fn close(got: &Tensor, want: &[f32]) {
        let got = floats(got);
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() < 1e-3, "{got:?} {want:?}");
        }
    }

    #[test]
    fn flip_mirrors_columns_of_the_chosen_images_only() {
        let images = Tensor::from_slice(&[1f32, 2., 3., 4., 5., 6., 7., 8.]).view([2, 1, 2, 2]);
        let flipped = flip(&images, &Tensor::from_slice(&[false, true]), 3).unwrap();
        assert_eq!(floats(&flipped), [1., 2., 3., 4., 6., 5., 8., 7.]);
        let flipped = flip(&images, &Tensor::from_slice(&[true, false]), 2).unwrap();
        assert_eq!(floats(&flipped), [3., 4., 1., 2., 5., 6., 7., 8.]);
        assert!(flip(&images, &Tensor::from_slice(&[true]), 3).is_err()); // would be broadcast
        assert!(flip(&images.get(0), &Tensor::from_slice(&[true]), 3).is_err());
    }

    #[test]
    fn a_quarter_turn_takes_rows_to_columns() {
        let images = Tensor::from_slice(&[1f32, 2., 3., 4.]).view([1, 1, 2, 2]).repeat([2, 1, 1, 1]);
        let quarter = std::f32::consts::FRAC_PI_2;
        // At +90° output (x, y) reads input (−y, x): the top right comes to the top left.
        close(
            &rotate(&images, &Tensor::from_slice(&[quarter, 0.0])).unwrap(),
            &[2., 4., 1., 3., 1., 2., 3., 4.],
        );
    }

    /// Made by docs/parity/keras_augmentation.py with Keras 3.15.1: two images of 4×5 pixels.
    #[test]
    fn rotation_and_zoom_are_those_of_keras() {
        let rows = |n: i64| (0..4).map(move |y| if n == 0 { y } else { 3 - y });
        let value = |y: i64, x: i64| ((17 * y * y + 29 * x + 7 * x * y) % 64) as f32;
        let pixels: Vec<f32> =
            (0..2).flat_map(|n| rows(n).flat_map(|y| (0..5).map(move |x| value(y, x)))).collect();
        let images = Tensor::from_slice(&pixels).view([2, 1, 4, 5]);
        let degrees = [-17.84651f32, -14.1995];
        close(
            &rotate(&images, &Tensor::from_slice(&degrees.map(f32::to_radians))).unwrap(),
            &[
                11.64695, 25.0607, 44.17804, 40.77374, 35.87773, 8.71906, 46.98949, 29.2888, 47.05709,
                42.8001, 18.71994, 36.64221, 22.96817, 25.56272, 38.44506, 17.21684, 36.39107, 51.80565,
                34.21782, 43.27672, 13.73504, 20.6053, 42.19581, 52.57902, 39.00675, 10.57637, 44.77127,
                28.57348, 17.63152, 37.94725, 14.9233, 45.19847, 29.32386, 45.53295, 40.58811, 12.44255,
                40.55653, 44.80671, 38.24849, 41.80789,
            ],
        );
        let factors = Tensor::from_slice(&[1.03578f32, 1.03546, 1.19815, 0.77567]).view([2, 2]);
        close(
            &zoom(&images, &factors).unwrap(),
            &[
                0.0, 23.25362, 58.0, 28.74638, 52.0, 16.69584, 45.46198, 25.59042, 54.97396, 33.33994,
                4.37572, 38.03748, 26.62621, 14.06987, 47.73162, 25.0, 13.77412, 61.0, 44.22588, 33.0,
                18.71866, 22.21667, 61.0, 50.14067, 39.28134, 23.21159, 41.93316, 26.62047, 10.42772,
                28.89477, 32.79496, 46.51988, 25.58502, 52.5327, 45.44613, 13.01134, 35.50567, 58.0,
                30.85167, 38.98866,
            ],
        );
    }

    #[test]
    fn zooming_out_shows_the_mirrored_image_beyond_the_border() {
        let images = Tensor::from_slice(&[0f32, 10., 20., 30.]).view([1, 1, 1, 4]);
        // Columns at −1.5, −0.5, 0.5, 1.5 from the centre, times 2: pixels −1.5, 0.5, 2.5, 4.5; −1.5 is the
        // mirror image of pixel 0.5, and 4.5 of 2.5.
        close(&zoom(&images, &Tensor::from_slice(&[1f32, 2.]).view([2, 1])).unwrap(), &[5., 5., 25., 25.]);
        // Times a half: pixels 0.75, 1.25, 1.75, 2.25.
        close(
            &zoom(&images, &Tensor::from_slice(&[1f32, 0.5]).view([2, 1])).unwrap(),
            &[7.5, 12.5, 17.5, 22.5],
        );
        // Rows and columns have factors of their own: turned by 90°, the first counts.
        let tall = images.transpose(2, 3);
        close(&zoom(&tall, &Tensor::from_slice(&[2f32, 1.]).view([2, 1])).unwrap(), &[5., 5., 25., 25.]);
    }

    /// Weights of neighbours at half-pixel centres: 3/4 and 1/4 inside, the edge pixel outside.
    #[test]
    fn resize_2x2_to_4x4_by_hand() {
        let images = Tensor::from_slice(&[0f32, 16., 32., 64.]).view([1, 1, 2, 2]);
        let resized = resize(&images, 4).unwrap();
        assert_eq!(resized.size(), [1, 1, 4, 4]);
        assert_eq!(
            Vec::<f32>::try_from(resized.flatten(0, -1)).unwrap(),
            [0., 4., 12., 16., 8., 13., 23., 28., 24., 31., 45., 52., 32., 40., 56., 64.]
        );
    }

    /// Without antialiasing, a quarter of the size takes the mean of the middle 2×2 of each 4×4 block.
    #[test]
    fn resize_down_reads_four_neighbours() {
        let images = Tensor::arange(16, (Kind::Float, Device::Cpu)).view([1, 1, 4, 4]);
        assert_eq!(resize(&images, 1).unwrap().double_value(&[0, 0, 0, 0]), 7.5); // (5 + 6 + 9 + 10)/4
    }

    #[test]
    fn resize_to_the_same_size_changes_nothing() {
        let images = Tensor::rand([2, 3, 5, 5], (Kind::Float, Device::Cpu));
        assert_eq!(resize(&images, 5).unwrap().data_ptr(), images.data_ptr());
        assert_eq!(
            resize(&Tensor::rand([1, 3, 5, 4], (Kind::Float, Device::Cpu)), 5).unwrap().size(),
            [1, 3, 5, 5]
        );
    }

    #[test]
    fn sizes_without_pixels_are_errors() {
        for size in [0, -3] {
            assert!(resize(&Tensor::zeros([1, 3, 2, 2], (Kind::Float, Device::Cpu)), size).is_err());
        }
    }
}
