//! Numbers as colours: perceptually even maps, and heat over a picture.

use image::{Rgb, RgbImage, imageops};

/// A colour map that is even to the eye, in grey too, and to people who are blind to red or green (Smith & van der
/// Walt's, from matplotlib).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// From black to pale yellow, for where a network looks.
    Inferno,
    /// From violet to yellow, for everything else.
    Viridis,
}

impl Scheme {
    /// The colour of a share from 0 to 1; what lies outside has the nearest end's.
    pub fn colour(self, share: f64) -> Rgb<u8> {
        let gradient = match self {
            Self::Inferno => colorous::INFERNO,
            Self::Viridis => colorous::VIRIDIS,
        };
        let share = if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) };
        Rgb(gradient.eval_continuous(share).as_array())
    }

    /// The whole map from left to right.
    pub fn bar(self, width: u32, height: u32) -> RgbImage {
        let last = f64::from(width.max(2) - 1);
        RgbImage::from_fn(width, height, |x, _| self.colour(f64::from(x) / last))
    }
}

/// Smallest and largest of some numbers; 0 and 0 of none.
pub fn range(values: &[f32]) -> (f32, f32) {
    let ends = values
        .iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), value| (low.min(*value), high.max(*value)));
    if ends.0 <= ends.1 { ends } else { (0.0, 0.0) }
}

/// Numbers, row by row, as a picture of that width: the smallest of `range` has the map's first colour.
pub fn painted(values: &[f32], width: u32, (low, high): (f32, f32), scheme: Scheme) -> RgbImage {
    let span = f64::from(high) - f64::from(low);
    let share = |value: f32| if span > 0.0 { (f64::from(value) - f64::from(low)) / span } else { 0.0 };
    let height = values.len() as u32 / width.max(1);
    RgbImage::from_fn(width, height, |x, y| scheme.colour(share(values[(y * width + x) as usize])))
}

/// How much of the heat hides the picture beneath.
const HEAT: f64 = 0.6;

/// The heat over a picture of the same size in grey, so that all colour is heat.
pub fn over(picture: &RgbImage, heat: &RgbImage) -> RgbImage {
    let mix =
        |below: u8, above: u8| (f64::from(below) * (1.0 - HEAT) + f64::from(above) * HEAT).round() as u8;
    let grey = imageops::grayscale(picture);
    RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        let [below] = grey.get_pixel(x, y).0;
        Rgb(heat.get_pixel(x, y).0.map(|above| mix(below, above)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_matplotlibs() {
        // matplotlib 3.10: cm.inferno(0.0), (0.5), (1.0), and viridis, in bytes.
        let ends = [0.0, 1.0].map(|share| Scheme::Inferno.colour(share).0);
        assert_eq!(ends, [[0, 0, 4], [252, 255, 164]]);
        assert_eq!(Scheme::Viridis.colour(0.0).0, [68, 1, 84]);
        assert_eq!(Scheme::Viridis.colour(1.0).0, [253, 231, 37]);
        assert_eq!(Scheme::Viridis.colour(f64::NAN).0, [68, 1, 84]);
        // Brighter and brighter.
        for scheme in [Scheme::Inferno, Scheme::Viridis] {
            let light = |n: u32| {
                let [r, g, b] = scheme.colour(f64::from(n) / 50.0).0.map(f64::from);
                0.2126 * r + 0.7152 * g + 0.0722 * b
            };
            assert!((0..50).all(|n| light(n + 1) > light(n)), "{scheme:?}");
        }
    }

    #[test]
    fn heat_is_laid_over_a_picture() {
        let heat = painted(&[1.0, 3.0, 2.0, 1.0], 2, (1.0, 3.0), Scheme::Inferno);
        assert_eq!((heat.get_pixel(0, 0).0, heat.get_pixel(1, 0).0), ([0, 0, 4], [252, 255, 164]));
        let white = RgbImage::from_pixel(2, 2, Rgb([255; 3]));
        assert_eq!(over(&white, &heat).get_pixel(0, 0).0, [102, 102, 104]);
        // Nothing to tell apart.
        assert_eq!(painted(&[5.0; 4], 2, (5.0, 5.0), Scheme::Inferno).get_pixel(1, 1).0, [0, 0, 4]);
        assert_eq!((range(&[2.0, -1.0]), range(&[])), ((-1.0, 2.0), (0.0, 0.0)));
    }
}
