//! Random erasing (Zhong et al., arXiv:1708.04896) as timm does it: rectangles of normalised
//! images become zero or noise.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use run_record::{EraseMode, RandomErasing};
use tch::{Device, Kind, Tensor};

use crate::augment::on_device::upload;
use crate::augment::resample::{CropBox, crop_offset, draw_sides};
use crate::error::DataError;
use crate::rng::{below, unit};

/// Least and largest area of all rectangles together, as shares of the image's, uniform in between.
const AREA: [f64; 2] = [0.02, 1.0 / 3.0];

/// Least and largest height divided by width, uniform in the logarithm.
const ASPECT: [f64; 2] = [0.3, 1.0 / 0.3];

/// What one image loses, as [`draw_erasure`] draws it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Erasure {
    /// The rectangles; none for an image that is left as it is.
    pub boxes: Vec<CropBox>,
    /// What the noise is made from.
    pub key: u64,
}

/// What an image of `height`×`width` pixels loses. Each rectangle is tried ten times, until it is lower and
/// narrower than the image, and left out after that.
pub fn draw_erasure(erasing: &RandomErasing, rng: &mut ChaCha8Rng, height: i64, width: i64) -> Erasure {
    if unit(rng) >= erasing.prob {
        return Erasure::default();
    }
    let count = 1 + below(rng, u64::from(erasing.count.max(1)));
    let area = (height * width) as f64 / count as f64;
    let mut draw_box = || {
        let sides = (0..10).map(|_| draw_sides(rng, area, AREA, ASPECT));
        let (h, w) = sides.into_iter().find(|&(h, w)| h < height && w < width)?;
        let (top, left) = crop_offset(rng, (height - h, width - w));
        Some(CropBox { top, left, height: h, width: w })
    };
    let boxes = (0..count).filter_map(|_| draw_box()).collect();
    Erasure { boxes, key: rng.next_u64() }
}

/// Erases each image's rectangles from floats `[B, C, H, W]`; where they overlap, the later one shows.
///
/// The noise depends on nothing but the image's key and the place in the image, on any device: a hash of the
/// two makes uniform numbers of 32 bits and Box and Muller's transform normal ones of them, none of them
/// beyond ±6.8.
///
/// # Errors
/// When `images` are not such floats, there is not one erasure for each, or a rectangle goes beyond its image.
pub fn erase(images: &Tensor, erasures: &[Erasure], mode: EraseMode) -> Result<Tensor, DataError> {
    let [channels, height, width] = check(images, erasures)?;
    let chosen: Vec<_> = erasures.iter().zip(0..).filter(|(erasure, _)| !erasure.boxes.is_empty()).collect();
    let Some(most) = chosen.iter().map(|(erasure, _)| erasure.boxes.len() as i64).max() else {
        return Ok(images.shallow_clone());
    };
    let count = chosen.len() as i64;
    let packed = upload(&packed(&chosen, most as usize), images.device())?.f_view([-1, count])?;
    let (places, keys) = (packed.f_get(0)?, packed.f_narrow(0, 1, 2)?);
    let edges = packed.f_narrow(0, 3, 4 * most)?.f_view([most, 4, count, 1, 1, 1])?;

    let mut erased = images.f_index_select(0, &places)?;
    let noise = |numbers: i64, shape: &[i64]| -> Result<Tensor, DataError> {
        Ok(normals(&keys, numbers)?.f_to_kind(images.kind())?.f_reshape(shape)?)
    };
    let fill = match mode {
        EraseMode::Const => None,
        EraseMode::Rand => Some(noise(channels * most, &[count, most, channels, 1, 1])?),
        EraseMode::Pixel => Some(noise(channels * height * width, &[count, 1, channels, height, width])?),
    };
    let (rows, columns) = (pixels(height, images.device())?, pixels(width, images.device())?);
    let (rows, columns) = (rows.f_view([height, 1])?, columns.f_view([1, width])?);
    for number in 0..most {
        let of = edges.f_get(number)?;
        let between = |pixels: &Tensor, from: i64| {
            pixels.f_ge_tensor(&of.f_get(from)?)?.f_logical_and(&pixels.f_lt_tensor(&of.f_get(from + 1)?)?)
        };
        let inside = between(&rows, 0)?.f_logical_and(&between(&columns, 2)?)?; // [E, 1, H, W]
        erased = match &fill {
            None => erased.f_masked_fill_(&inside, 0.0)?,
            Some(fill) => {
                let fill = fill.f_select(1, number.min(fill.size()[1] - 1))?;
                fill.f_where_self(&inside, &erased)?
            }
        };
    }
    Ok(images.f_index_copy(0, &places, &erased)?)
}

/// `[C, H, W]` of images that can be erased like this.
fn check(images: &Tensor, erasures: &[Erasure]) -> Result<[i64; 3], DataError> {
    let shape = images.size();
    let &[batch, channels, height, width] = shape.as_slice() else {
        return Err(DataError::Argument(format!("images must be [B, C, H, W], not {shape:?}")));
    };
    if !images.is_floating_point() || erasures.len() as i64 != batch {
        return Err(DataError::Argument(format!(
            "{batch} erasures of normalised floats are needed, not {} of {:?}",
            erasures.len(),
            images.kind()
        )));
    }
    let mut boxes = erasures.iter().flat_map(|erasure| &erasure.boxes);
    if let Some(beyond) = boxes.find(|erased| !erased.is_within(height, width)) {
        return Err(DataError::Argument(format!(
            "the rectangle {beyond:?} goes beyond an image of {height}×{width} pixels"
        )));
    }
    Ok([channels, height, width])
}

/// Of the erased images: their places, the upper and the lower halves of their keys, and for each of the `most`
/// rectangles of an image its top, bottom, left and right edges, absent ones empty.
fn packed(chosen: &[(&Erasure, i64)], most: usize) -> Vec<i64> {
    let mut packed: Vec<i64> = chosen.iter().map(|&(_, place)| place).collect();
    packed.extend(chosen.iter().map(|(erasure, _)| (erasure.key >> 32).cast_signed()));
    packed.extend(chosen.iter().map(|(erasure, _)| (erasure.key & WORD.cast_unsigned()).cast_signed()));
    let none = CropBox { top: 0, left: 0, height: 0, width: 0 };
    for number in 0..most {
        let boxes = || chosen.iter().map(move |(erasure, _)| *erasure.boxes.get(number).unwrap_or(&none));
        packed.extend(boxes().map(|b| b.top));
        packed.extend(boxes().map(|b| b.top + b.height));
        packed.extend(boxes().map(|b| b.left));
        packed.extend(boxes().map(|b| b.left + b.width));
    }
    packed
}

fn pixels(size: i64, device: Device) -> Result<Tensor, DataError> {
    Ok(Tensor::f_arange(size, (Kind::Int64, device))?)
}

/// All bits of a 32-bit word.
const WORD: i64 = 0xffff_ffff;

/// `numbers` from N(0, 1) in f32 for each of E keys, `[E, numbers]`. The keys are two 32-bit words each, i64
/// `[2, E]`.
///
/// Numbers 2·n and 2·n + 1 are one pair of Box and Muller's, made from the hashes of these places, so that the
/// first numbers do not depend on how many there are.
fn normals(keys: &Tensor, numbers: i64) -> Result<Tensor, DataError> {
    let pairs = (numbers + 1) / 2;
    // Two keys share neither stride nor start, so that no noise is a part of another's.
    let stride = keys.f_get(0)?.f_bitwise_right_shift_tensor_scalar(1)?.f_bitwise_or_(1)?.f_unsqueeze(1)?;
    let start = keys.f_get(1)?.f_unsqueeze(1)?;
    let places = pixels(2 * pairs, keys.device())?.f_view([pairs, 2])?;
    let places = places.f_transpose(0, 1)?.f_reshape([2 * pairs])?; // even ones first, for the radii
    let words = hash(start.f_addcmul(&places, &stride)?)?;
    // The middles of 2³² equal parts of (0, 1), as far as f32 can tell them.
    let mut words = words.f_to_kind(Kind::Float)?.f_add_scalar_(0.5)?;
    let uniform = words.f_mul_scalar_(1.0 / (WORD + 1) as f64)?;
    let mut radius = uniform.f_narrow(1, 0, pairs)?.f_log_()?.f_mul_scalar_(-2.0)?;
    let radius = radius.f_sqrt_()?;
    let angle = uniform.f_narrow(1, pairs, pairs)?.f_mul_scalar_(std::f64::consts::TAU)?;
    let (mut x, mut y) = (angle.f_cos()?, angle.f_sin()?);
    let both = Tensor::f_stack(&[x.f_mul_(&radius)?, y.f_mul_(&radius)?], 2)?.f_flatten(1, 2)?;
    Ok(both.f_narrow(1, 0, numbers)?)
}

/// 32-bit words whose bits all depend on all bits of the numbers, which are not negative (Wellons's
/// `lowbias32`). Factors are below 2³¹ in size, so that no product leaves 64 bits.
fn hash(mut numbers: Tensor) -> Result<Tensor, DataError> {
    let mut words = numbers.f_bitwise_and_(WORD)?;
    for (shift, factor) in [(16, 0x7feb_352d), (15, 0x846c_a68b - (WORD + 1))] {
        let high = words.f_bitwise_right_shift_tensor_scalar(shift)?;
        words = words.f_bitwise_xor_tensor_(&high)?.f_mul_scalar_(factor)?.f_bitwise_and_(WORD)?;
    }
    let high = words.f_bitwise_right_shift_tensor_scalar(16)?;
    Ok(words.f_bitwise_xor_tensor_(&high)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::keyed_rng;

    fn keys(count: u64) -> Tensor {
        let keys: Vec<u64> = (0..count).map(|n| keyed_rng(5, "erase", 1, n).next_u64()).collect();
        let high = keys.iter().map(|key| (key >> 32).cast_signed());
        let low = keys.iter().map(|key| (key & 0xffff_ffff).cast_signed());
        Tensor::from_slice(&high.chain(low).collect::<Vec<i64>>()).view([2, -1])
    }

    fn mean(t: &Tensor) -> f64 {
        t.mean(Kind::Double).double_value(&[])
    }

    /// The definition of lowbias32 in plain integers.
    #[test]
    fn the_hash_is_lowbias32() {
        let numbers: Vec<i64> =
            vec![0, 1, 2, 12_345, 0xffff_ffff, 0x8000_0000, 0x1_0000_0001, (1 << 50) + 77];
        let want: Vec<i64> = numbers
            .iter()
            .map(|&number| {
                let mut x = number as u32;
                x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
                x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
                i64::from(x ^ (x >> 16))
            })
            .collect();
        assert_eq!(Vec::<i64>::try_from(hash(Tensor::from_slice(&numbers)).unwrap()).unwrap(), want);
    }

    /// Moments to the fourth, and the share beyond one and two standard deviations, within 5 sigma.
    #[test]
    fn noise_is_normal() {
        let x = normals(&keys(300), 3072).unwrap().to_kind(Kind::Double);
        let n = x.numel() as f64;
        assert!(x.isfinite().all().int64_value(&[]) == 1 && x.abs().max().double_value(&[]) < 6.8);
        let moment = |power: i64| mean(&x.pow_tensor_scalar(power));
        for (power, want, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            let got = moment(power);
            assert!((got - want).abs() < 5.0 * f64::sqrt(variance / n), "moment {power}: {got}");
        }
        for (limit, share) in [(1.0, 0.317_311), (2.0, 0.045_500), (3.0, 0.002_700)] {
            let got = mean(&x.abs().gt(limit).to_kind(Kind::Double));
            assert!((got - share).abs() < 5.0 * f64::sqrt(share / n), "beyond {limit}: {got}");
        }
    }

    /// Correlations between places of one image, and between one place of different images, within 5 sigma.
    #[test]
    fn noise_is_independent() {
        let (images, numbers) = (256, 1024);
        let x = normals(&keys(images), numbers).unwrap().to_kind(Kind::Double);
        for lag in [1, 2, 3, 32, 512] {
            let rest = numbers - lag;
            let pairs = (images as i64 * rest) as f64;
            let places = mean(&(x.narrow(1, 0, rest) * x.narrow(1, lag, rest)));
            assert!(places.abs() < 5.0 / pairs.sqrt(), "lag {lag}: {places}");
            // The two of a pair share a radius; their squares are independent as well.
            let squares = mean(&(x.narrow(1, 0, rest).square() * x.narrow(1, lag, rest).square())) - 1.0;
            assert!(squares.abs() < 5.0 * (8.0 / pairs).sqrt(), "squares, lag {lag}: {squares}");
        }
        let all = x.matmul(&x.transpose(0, 1)) / numbers as f64
            - Tensor::eye(images as i64, (Kind::Double, Device::Cpu));
        let most = all.triu(1).abs().max().double_value(&[]);
        assert!(most < 6.0 / (numbers as f64).sqrt(), "between images: {most}"); // 32,640 pairs
    }

    /// Neighbouring keys are what an attacker of the hash would choose; they must not show.
    #[test]
    fn similar_keys_give_unrelated_noise() {
        let near = Tensor::from_slice(&[0i64, 0, 0, 1, 2, 4, 0, 1, 2, 0, 0, 0]).view([2, 6]);
        let x = normals(&near, 4096).unwrap().to_kind(Kind::Double);
        for (a, b) in (0..6).flat_map(|a| (0..a).map(move |b| (a, b))) {
            let correlation = mean(&(x.get(a) * x.get(b)));
            // Keys whose strides are the same after the last bit is set differ in their start only.
            let same = correlation > 0.99;
            assert!(correlation.abs() < 5.0 / 64.0 || same, "{a} {b}: {correlation}");
        }
    }

    /// Computed by a separate program from the definitions.
    #[test]
    fn what_a_key_makes_never_changes() {
        let key = Tensor::from_slice(&[0x0123_4567i64, 0x89ab_cdef]).view([2, 1]);
        let x = Vec::<f32>::try_from(normals(&key, 5).unwrap().view([-1])).unwrap();
        let want = [-0.085_232, 1.433_275_5, -0.278_433_6, 0.318_245_1, 0.846_645_7];
        assert!(x.iter().zip(want).all(|(x, want)| (x - want).abs() < 1e-5), "{x:?}");
        // An odd number of them leaves the last one out.
        assert_eq!(Vec::<f32>::try_from(normals(&key, 6).unwrap().view([-1])).unwrap()[..5], x);
    }
}
