//! Mixup (Zhang et al., arXiv:1710.09412) and CutMix (Yun et al., arXiv:1905.04899) as timm does them: each image
//! is mixed with the one as far from the batch's end as it is from its start.

use rand_chacha::ChaCha8Rng;
use run_record::{AugmentRecipe, Cutmix, MixMode, MixRecipe};
use tch::{Kind, Tensor};

use crate::augment::on_device::upload;
use crate::augment::resample::CropBox;
use crate::error::DataError;
use crate::rng::{below, keyed_rng, symmetric_beta, unit};

/// How one image is mixed with its partner.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mixing {
    /// λ times the image plus 1 − λ times the partner; λ from 0 to 1.
    Blend(f64),
    /// The partner's pixels within the rectangle, the image's outside it. The label's weight is the part of the
    /// area outside.
    Paste(CropBox),
}

impl Mixing {
    /// Nothing is mixed.
    pub const NONE: Self = Self::Blend(1.0);

    /// The weight of the image's own label.
    fn lambda(self, height: i64, width: i64) -> f64 {
        match self {
            Self::Blend(lambda) => lambda,
            Self::Paste(b) => 1.0 - (b.height * b.width) as f64 / (height * width).max(1) as f64,
        }
    }
}

/// How the images of a batch are mixed by the recipe's mixup and CutMix: `indices` are theirs, `size` their height and
/// width. What is drawn depends on nothing but seed, epoch and the batch's number, or, in the modes `Pair` and `Elem`,
/// the index of the pair's first image or of the image. The image in the middle of an odd batch is its own partner.
pub fn draw_mixings(
    recipe: &AugmentRecipe,
    seed: u64,
    epoch: u64,
    batch: u64,
    indices: &[i64],
    size: (i64, i64),
) -> Vec<Mixing> {
    let draw = |step: u64| draw_one(recipe, &mut keyed_rng(seed, "mix", epoch, step), size);
    let last = indices.len().saturating_sub(1);
    match recipe.mix.unwrap_or_default().mode {
        MixMode::Batch => vec![draw(batch); indices.len()],
        MixMode::Elem => indices.iter().map(|index| draw(index.cast_unsigned())).collect(),
        MixMode::Pair => {
            let pairs = indices.iter().take(indices.len() / 2);
            let pairs: Vec<Mixing> = pairs.map(|index| draw(index.cast_unsigned())).collect();
            let place = |n: usize| n.min(last - n);
            (0..=last).take(indices.len()).map(|n| *pairs.get(place(n)).unwrap_or(&Mixing::NONE)).collect()
        }
    }
}

fn draw_one(recipe: &AugmentRecipe, rng: &mut ChaCha8Rng, size: (i64, i64)) -> Mixing {
    let MixRecipe { prob, switch_prob, .. } = recipe.mix.unwrap_or_default();
    if unit(rng) >= prob {
        return Mixing::NONE;
    }
    match (recipe.mixup, recipe.cutmix) {
        (None, None) => Mixing::NONE,
        (Some(mixup), None) => Mixing::Blend(symmetric_beta(rng, mixup.alpha)),
        (Some(mixup), Some(_)) if unit(rng) >= switch_prob => Mixing::Blend(symmetric_beta(rng, mixup.alpha)),
        (_, Some(Cutmix::Alpha(alpha))) => {
            let lambda = symmetric_beta(rng, alpha);
            Mixing::Paste(clipped_box(rng, size, (1.0 - lambda).sqrt()))
        }
        (_, Some(Cutmix::Minmax(sides))) => Mixing::Paste(inner_box(rng, size, sides)),
    }
}

/// A rectangle with sides that are `part` of the image's, about any of its pixels, as far as it is in the image.
fn clipped_box(rng: &mut ChaCha8Rng, (height, width): (i64, i64), part: f64) -> CropBox {
    let mut span = |size: i64| {
        let side = (size as f64 * part) as i64;
        let centre = below(rng, size.max(1).cast_unsigned()).cast_signed();
        let start = (centre - side / 2).max(0);
        (start, (centre + (side + 1) / 2).min(size) - start)
    };
    let ((top, height), (left, width)) = (span(height), span(width));
    CropBox { top, left, height, width }
}

/// A rectangle in the image with sides from `least` to below `most` of the image's.
fn inner_box(rng: &mut ChaCha8Rng, (height, width): (i64, i64), [least, most]: [f64; 2]) -> CropBox {
    let mut up_to = |bound: i64| below(rng, bound.max(1).cast_unsigned()).cast_signed();
    let mut side = |size: i64| {
        let (low, high) = ((size as f64 * least) as i64, (size as f64 * most) as i64);
        low + up_to(high - low)
    };
    let (h, w) = (side(height), side(width));
    CropBox { top: up_to(height - h + 1), left: up_to(width - w + 1), height: h, width: w }
}

/// Mixes images, floats `[B, C, H, W]`, with the reversed batch, and makes targets f32 `[B, num_classes]` of
/// their labels, i64 `[B]` from 0 to `num_classes` − 1.
///
/// A label alone is 1 − s + s/K for its class and s/K for the others, with the `smoothing` s from 0 to 1 and K
/// classes; the labels of image and partner are mixed like the pixels. Targets sum to one.
///
/// # Errors
/// When shapes do not fit, `smoothing` is not from 0 to 1, a λ neither, or a rectangle goes beyond its image.
pub fn mix(
    images: &Tensor,
    labels: &Tensor,
    mixings: &[Mixing],
    num_classes: i64,
    smoothing: f64,
) -> Result<(Tensor, Tensor), DataError> {
    let [batch, height, width] = check(images, labels, mixings, num_classes, smoothing)?;
    let (pastes, blends) = (
        mixings.iter().any(|mixing| matches!(mixing, Mixing::Paste(b) if b.height * b.width > 0)),
        mixings.iter().any(|mixing| matches!(mixing, Mixing::Blend(lambda) if *lambda < 1.0)),
    );
    let off = smoothing / num_classes as f64;
    let single = Tensor::f_full([batch, num_classes], off, (Kind::Float, images.device()))?
        .f_scatter_value_(1, &labels.f_unsqueeze(1)?, 1.0 - smoothing + off)?;
    if !pastes && !blends {
        return Ok((images.shallow_clone(), single));
    }
    let packed = upload(&packed(mixings, height, width), images.device())?.f_view([6, batch, 1, 1, 1])?;
    let targets = single.f_flip([0])?.f_lerp_tensor(&single, &packed.f_get(0)?.f_view([batch, 1])?)?;

    let mut weights = packed.f_get(1)?; // [B, 1, 1, 1]
    if pastes {
        // The weight becomes 0 within the rectangle: [B, 1, H, W].
        let axis = |size: i64, view: [i64; 2], edge: i64| -> Result<Tensor, DataError> {
            let pixels = Tensor::f_arange(size, (Kind::Float, images.device()))?.f_view(view)?;
            let (from, to) = (packed.f_get(edge)?, packed.f_get(edge + 1)?);
            Ok(pixels.f_ge_tensor(&from)?.f_logical_and(&pixels.f_lt_tensor(&to)?)?)
        };
        let (rows, columns) = (axis(height, [height, 1], 2)?, axis(width, [1, width], 4)?);
        weights = weights.f_masked_fill(&rows.f_logical_and(&columns)?, 0.0)?;
    }
    let weights = weights.f_to_kind(images.kind())?;
    Ok((images.f_flip([0])?.f_lerp_tensor_(images, &weights)?, targets))
}

/// `[B, H, W]` of images that can be mixed like this.
fn check(
    images: &Tensor,
    labels: &Tensor,
    mixings: &[Mixing],
    num_classes: i64,
    smoothing: f64,
) -> Result<[i64; 3], DataError> {
    let (shape, labels_shape) = (images.size(), labels.size());
    let &[batch, _, height, width] = shape.as_slice() else {
        return Err(DataError::Argument(format!("images must be [B, C, H, W], not {shape:?}")));
    };
    if !images.is_floating_point() || labels_shape != [batch] || mixings.len() as i64 != batch {
        return Err(DataError::Argument(format!(
            "{batch} images of floats need as many labels and mixings, not {labels_shape:?} and {}; they are {:?}",
            mixings.len(),
            images.kind()
        )));
    }
    if num_classes < 1 || !(0.0..=1.0).contains(&smoothing) {
        return Err(DataError::Argument(format!(
            "there must be classes and the smoothing from 0 to 1, not {num_classes} and {smoothing}"
        )));
    }
    if let Some(mixing) = mixings.iter().find(|mixing| !is_possible(mixing, height, width)) {
        return Err(DataError::Argument(format!("{mixing:?} cannot be done to {height}×{width} pixels")));
    }
    Ok([batch, height, width])
}

/// Of each image its label's weight, its pixels' weight and the edges of its rectangle: six rows of B numbers.
fn packed(mixings: &[Mixing], height: i64, width: i64) -> Vec<f32> {
    let count = mixings.len();
    let mut packed = vec![0f32; 6 * count];
    for (n, mixing) in mixings.iter().enumerate() {
        let (pixels, edges) = match *mixing {
            Mixing::Blend(lambda) => (lambda, [0; 4]),
            Mixing::Paste(b) => (1.0, [b.top, b.top + b.height, b.left, b.left + b.width]),
        };
        packed[n] = mixing.lambda(height, width) as f32;
        packed[count + n] = pixels as f32;
        for (row, edge) in edges.into_iter().enumerate() {
            packed[(2 + row) * count + n] = edge as f32;
        }
    }
    packed
}

fn is_possible(mixing: &Mixing, height: i64, width: i64) -> bool {
    match mixing {
        Mixing::Blend(lambda) => (0.0..=1.0).contains(lambda),
        Mixing::Paste(pasted) => pasted.is_within(height, width),
    }
}
