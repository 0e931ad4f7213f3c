//! The random changes that the published tutorials make to training images, drawn per image from keyed
//! generators and done to whole batches on the device.

use tch::{Device, Kind, Tensor};

use crate::error::DataError;
use crate::rng::{below, flip_mask, keyed_rng, uniform};

/// What happens to training images, in this order: crop, flip, rotation, zoom.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Augmentation {
    /// Cut this many pixels a side out of a larger image, all images of a batch at one place.
    pub crop: Option<i64>,
    /// Mirror left to right with probability one half.
    pub flip: bool,
    /// Turn by up to this many degrees either way.
    pub rotation_degrees: Option<f64>,
    /// Zoom each axis by a factor from 1 − zoom to 1 + zoom.
    pub zoom: Option<f64>,
}

/// What an epoch's images go through, drawn and on the device; see [`Augmentation::draw`].
#[derive(Debug)]
pub struct Draws {
    augmentation: Augmentation,
    seed: u64,
    epoch: u64,
    flips: Option<Tensor>,
    /// Radians, `[N]`.
    angles: Option<Tensor>,
    /// Factors of rows and columns, `[2, N]`.
    zooms: Option<Tensor>,
}

impl Augmentation {
    /// Draws for the images of `order`, in an epoch. What an image goes through depends on nothing but
    /// seed, epoch and its index; where a batch is cropped, on seed, epoch and the batch's number.
    ///
    /// # Errors
    /// When the device is not there.
    pub fn draw(&self, seed: u64, epoch: u64, order: &[i64], device: Device) -> Result<Draws, DataError> {
        let on_device =
            |values: &[f32]| Ok::<_, DataError>(Tensor::f_from_slice(values)?.f_to_device(device)?);
        let flips = self.flip.then(|| flip_mask(seed, epoch, order));
        let angles = self.rotation_degrees.map(|degrees| {
            let limit = degrees.to_radians();
            uniform(seed, "rotation", epoch, order, -limit..limit)
        });
        let zooms = self.zoom.map(|zoom| {
            let axis = |purpose| uniform(seed, purpose, epoch, order, 1.0 - zoom..1.0 + zoom);
            [axis("zoom rows"), axis("zoom columns")].concat()
        });
        Ok(Draws {
            augmentation: *self,
            seed,
            epoch,
            flips: flips.map(|flips| Tensor::f_from_slice(&flips)?.f_to_device(device)).transpose()?,
            angles: angles.map(|angles| on_device(&angles)).transpose()?,
            zooms: zooms.map(|zooms| Ok::<_, DataError>(on_device(&zooms)?.f_view([2, -1])?)).transpose()?,
        })
    }
}

impl Draws {
    /// Changes the floats `[B, C, H, W]` of the epoch's batch number `batch`, which holds the images from
    /// position `start` of the order on.
    ///
    /// # Errors
    /// When the images are smaller than the crop, or positions lie beyond the order.
    pub fn apply(&self, images: &Tensor, batch: u64, start: i64) -> Result<Tensor, DataError> {
        let mut images = images.shallow_clone();
        let count = images.size().first().copied().unwrap_or_default();
        let part = |all: &Tensor| all.f_narrow(-1, start, count);
        if let Some(side) = self.augmentation.crop {
            let size = images.size();
            if size.len() != 4 || side < 1 || side > size[2].min(size[3]) {
                return Err(DataError::Argument(format!(
                    "cannot cut {side}×{side} pixels out of images {size:?}"
                )));
            }
            let mut rng = keyed_rng(self.seed, "crop", self.epoch, batch);
            let mut place = |room: i64| below(&mut rng, room.cast_unsigned() + 1).cast_signed();
            let (top, left) = (place(size[2] - side), place(size[3] - side));
            images = images.f_narrow(2, top, side)?.f_narrow(3, left, side)?;
        }
        if let Some(flips) = &self.flips {
            images = flip(&images, &part(flips)?)?;
        }
        if let Some(angles) = &self.angles {
            images = rotate(&images, &part(angles)?)?;
        }
        if let Some(zooms) = &self.zooms {
            images = zoom(&images, &part(zooms)?)?;
        }
        Ok(images)
    }
}

/// Mirrors left to right the images `[B, C, H, W]` of any kind whose entry in `mask`, bool `[B]`, is `true`.
///
/// # Errors
/// When the shapes do not fit each other, or the devices differ.
pub fn flip(images: &Tensor, mask: &Tensor) -> Result<Tensor, DataError> {
    let (shape, mask_shape) = (images.size(), mask.size());
    if shape.len() != 4 || mask_shape != shape[..1] {
        return Err(DataError::Argument(format!("cannot flip images {shape:?} by a mask {mask_shape:?}")));
    }
    Ok(images.f_flip([3])?.f_where_self(&mask.f_view([-1, 1, 1, 1])?, images)?)
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

#[cfg(test)]
mod tests {
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
        let flipped = flip(&images, &Tensor::from_slice(&[false, true])).unwrap();
        assert_eq!(floats(&flipped), [1., 2., 3., 4., 6., 5., 8., 7.]);
        assert!(flip(&images, &Tensor::from_slice(&[true])).is_err()); // would be broadcast
        assert!(flip(&images.get(0), &Tensor::from_slice(&[true])).is_err());
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

    /// The batch's place is drawn once: all images lose the same border.
    #[test]
    fn a_batch_is_cropped_at_one_place_and_every_place_is_drawn() {
        let images = Tensor::arange(36, (Kind::Float, Device::Cpu)).view([1, 1, 6, 6]).repeat([3, 1, 1, 1]);
        let draws = Augmentation { crop: Some(4), ..Augmentation::default() };
        let draws = draws.draw(1, 1, &[0, 1, 2], Device::Cpu).unwrap();
        let mut places = std::collections::BTreeSet::new();
        for batch in 0..100 {
            let cut = draws.apply(&images, batch, 0).unwrap();
            assert_eq!(cut.size(), [3, 1, 4, 4]);
            assert_eq!(cut.get(0), cut.get(2));
            let first = cut.double_value(&[0, 0, 0, 0]) as i64;
            assert_eq!(cut.double_value(&[1, 0, 3, 3]) as i64, first + 3 * 6 + 3);
            places.insert(first);
        }
        assert_eq!(places.into_iter().collect::<Vec<_>>(), [0, 1, 2, 6, 7, 8, 12, 13, 14]);
        assert!(draws.apply(&images.narrow(2, 0, 3), 0, 0).is_err());
    }

    /// Computed from the ChaCha8 and FNV-1a definitions by a separate program.
    #[test]
    fn where_a_batch_is_cropped_never_changes() {
        let pixels = Tensor::arange(52 * 52, (Kind::Float, Device::Cpu)).view([1, 1, 52, 52]);
        let draws = Augmentation { crop: Some(48), ..Augmentation::default() };
        let draws = draws.draw(42, 3, &[0], Device::Cpu).unwrap();
        for (batch, (top, left)) in (0..).zip([(0, 2), (1, 2), (2, 4), (2, 4)]) {
            let cut = draws.apply(&pixels, batch, 0).unwrap();
            assert_eq!(cut.double_value(&[0, 0, 0, 0]), f64::from(52 * top + left), "batch {batch}");
        }
    }

    #[test]
    fn what_an_image_goes_through_does_not_depend_on_the_batch() {
        let all = Augmentation { crop: None, flip: true, rotation_degrees: Some(7.2), zoom: Some(0.2) };
        let images = Tensor::rand([5, 3, 8, 8], (Kind::Float, Device::Cpu));
        let order = [7, 3, 9, 0, 4];
        let draws = all.draw(1, 2, &order, Device::Cpu).unwrap();
        let whole = draws.apply(&images, 0, 0).unwrap();
        let tail = draws.apply(&images.narrow(0, 3, 2), 1, 3).unwrap();
        assert_eq!(whole.narrow(0, 3, 2), tail);
        // Another order of the same images is the same images in that order.
        let swapped = all.draw(1, 2, &[0, 4], Device::Cpu).unwrap();
        assert_eq!(swapped.apply(&images.narrow(0, 3, 2), 0, 0).unwrap(), tail);
        assert_ne!(whole, images);
        assert_ne!(all.draw(1, 3, &order, Device::Cpu).unwrap().apply(&images, 0, 0).unwrap(), whole);
        assert!(draws.apply(&images, 0, 1).is_err()); // beyond the order
    }

    #[test]
    fn draws_fill_their_ranges() {
        let order: Vec<i64> = (0..4000).collect();
        let all = Augmentation { rotation_degrees: Some(7.2), zoom: Some(0.2), ..Augmentation::default() };
        let draws = all.draw(3, 1, &order, Device::Cpu).unwrap();
        let range = |t: &Tensor| (t.min().double_value(&[]), t.max().double_value(&[]));
        let limit = 7.2f64.to_radians();
        let (low, high) = range(draws.angles.as_ref().unwrap());
        assert!(low >= -limit && low < -0.99 * limit && high <= limit && high > 0.99 * limit);
        for axis in 0..2 {
            let (low, high) = range(&draws.zooms.as_ref().unwrap().get(axis));
            assert!((0.7999..0.802).contains(&low) && (1.198..1.2001).contains(&high), "{low} {high}");
        }
        let zooms = draws.zooms.unwrap();
        assert_ne!(zooms.get(0), zooms.get(1));
        assert!(Augmentation::default().draw(3, 1, &order, Device::Cpu).unwrap().flips.is_none());
    }
}
