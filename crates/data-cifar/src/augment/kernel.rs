//! The weights of PIL's `Image.resize`: of 22 bits, and of a filter that widens with the scale when a line shrinks.

use std::ops::Range;

use crate::augment::ops::Filter;

/// Binary places of a weight: PIL's, what a 32-bit sum of weighted bytes leaves room for.
pub(crate) const WEIGHT_BITS: u32 = 22;

/// What one pixel of a resized line is made of.
pub(crate) struct Taps {
    /// The first pixel of the line that counts.
    pub first: usize,
    /// The weights of the pixels from there on, in units of 2⁻²²; they sum to one but for rounding.
    pub weights: Vec<i32>,
}

/// The pixels `wanted` of a line of `length` pixels, 1 or more, that is resized to `scaled`.
pub(crate) fn taps(filter: Filter, length: u32, scaled: u64, wanted: Range<u64>) -> Vec<Taps> {
    let scale = f64::from(length) / scaled as f64;
    let stretch = scale.max(1.0);
    let (radius, kernel): (f64, fn(f64) -> f64) = match filter {
        Filter::Nearest => return nearest(length, scale, wanted),
        Filter::Bilinear => (1.0, triangle),
        Filter::Bicubic => (2.0, keys_cubic),
    };
    let reach = radius * stretch;
    let pixel = |wanted: u64| {
        let center = (wanted as f64 + 0.5) * scale;
        let first = (center - reach + 0.5).max(0.0) as u32;
        let end = ((center + reach + 0.5) as u32).min(length);
        let raw: Vec<f64> =
            (first..end).map(|pixel| kernel((f64::from(pixel) - center + 0.5) * (1.0 / stretch))).collect();
        let sum: f64 = raw.iter().sum();
        let fixed = |weight: f64| (weight / sum * f64::from(1 << WEIGHT_BITS)).round() as i32;
        Taps { first: first as usize, weights: raw.into_iter().map(fixed).collect() }
    };
    wanted.map(pixel).collect()
}

/// The pixel that each falls into. PIL adds up the centres step by step, which shows in ties.
fn nearest(length: u32, scale: f64, wanted: Range<u64>) -> Vec<Taps> {
    let centers = std::iter::successors(Some(scale * 0.5), |center| Some(center + scale));
    let taps = |center: f64| Taps {
        first: (center as u32).min(length - 1) as usize,
        weights: vec![1 << WEIGHT_BITS],
    };
    centers.skip(wanted.start as usize).take((wanted.end - wanted.start) as usize).map(taps).collect()
}

/// 1 − |x|, and 0 from 1 on.
fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

/// Keys's cubic with a = −1/2: 1 + x²·(3x − 5)/2 to 1, and −(x − 1)·(x − 2)²/2 from 1 to 2.
fn keys_cubic(x: f64) -> f64 {
    match x.abs() {
        x if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
        _ => 0.0,
    }
}
