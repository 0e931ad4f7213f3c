//! Numbers of axes and tables: where they stand and how they are written.

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::coord::types::RangedCoordf64;

/// Numbers of an axis, at most.
pub const TICKS: usize = 6;

/// How numbers of an axis are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// As they are.
    Plain,
    /// Whole numbers, as epochs are.
    Whole,
    /// 0 to 1, in per cent.
    Percent,
    /// In powers of ten.
    Log,
}

/// 594186 as `594 k`.
pub fn scaled(n: f64) -> String {
    let (value, unit) = match n {
        1e9.. => (n / 1e9, " G"),
        1e6.. => (n / 1e6, " M"),
        1e3.. => (n / 1e3, " k"),
        _ => (n, ""),
    };
    let digits = if value >= 100.0 || value.fract() == 0.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$}{unit}")
}

/// 0.8271 as `82.71 %`.
pub fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

impl Scale {
    /// Where a value stands on the axis.
    pub fn place(self, value: f64) -> f64 {
        if self == Self::Log { value.max(f64::MIN_POSITIVE).log10() } else { value }
    }

    /// From where to where an axis goes that shows these values, with some room; places as [`Scale::place`] has them.
    pub fn range(self, values: impl Iterator<Item = f64>) -> (f64, f64) {
        let places = values.map(|value| self.place(value));
        let (low, high) =
            places.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        if low > high {
            return (0.0, 1.0);
        }
        let room = if high > low { 0.06 * (high - low) } else { (0.05 * low.abs()).max(0.01) };
        (low - room, high + room)
    }

    /// Places of an axis that have a number.
    pub fn ticks(self, (low, high): (f64, f64)) -> Vec<f64> {
        if self != Self::Log {
            let mut places = RangedCoordf64::from(low..high).key_points(TICKS);
            places.retain(|place| match self {
                Self::Whole => place.fract() == 0.0 && *place >= 0.0,
                // There is room beyond all and none, but nothing to be there.
                Self::Percent => (0.0..=1.0).contains(&((place * 1e9).round() / 1e9)),
                _ => true,
            });
            return places;
        }
        let decades = low.floor() as i32..=high.floor() as i32;
        let of = |digits: &[f64]| -> Vec<f64> {
            let all = decades
                .clone()
                .flat_map(|decade| digits.iter().map(move |digit| digit.log10() + f64::from(decade)));
            all.filter(|place| (low..=high).contains(place)).collect()
        };
        // Few round numbers rather than many, and of a narrow range more than one.
        let choices = [
            of(&[1.0, 2.0, 5.0]),
            of(&[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]),
            of(&[1.0, 3.0]),
            of(&[1.0]),
            of(&[1.0]).into_iter().step_by(2).collect(),
        ];
        let fits = |places: &&Vec<f64>| (3..=TICKS).contains(&places.len());
        let most = || choices.iter().filter(|places| places.len() <= TICKS).max_by_key(|places| places.len());
        choices.iter().find(fits).or_else(most).cloned().unwrap_or_default()
    }

    /// A place of the axis in words, of an axis so long.
    pub fn tick(self, place: f64, span: f64) -> String {
        match self {
            Self::Plain => scaled_plain(place, span),
            Self::Whole => format!("{place:.0}"),
            Self::Percent if span < 0.05 => format!("{:.1} %", 100.0 * place),
            Self::Percent => format!("{:.0} %", 100.0 * place),
            Self::Log => scaled(round(10f64.powf(place))),
        }
    }

    /// A value in words.
    pub fn value(self, value: f64) -> String {
        match self {
            Self::Whole => format!("{value:.0}"),
            Self::Plain => format!("{value:.4}"),
            Self::Percent => percent(value),
            Self::Log => scaled(value),
        }
    }
}

/// To three digits: powers of ten are not exact.
fn round(n: f64) -> f64 {
    let unit = 10f64.powf(n.log10().floor() - 2.0);
    (n / unit).round() * unit
}

fn scaled_plain(place: f64, span: f64) -> String {
    if span >= 5.0 { format!("{place:.0}") } else { format!("{place:.2}") }
}

/// An axis with numbers at places of our choice.
#[derive(Clone)]
pub struct Axis {
    range: RangedCoordf64,
    ticks: Vec<f64>,
}

impl Axis {
    /// From one place to another.
    pub fn new(scale: Scale, (low, high): (f64, f64)) -> Self {
        Self { range: (low..high).into(), ticks: scale.ticks((low, high)) }
    }
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        self.range.map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.range.range()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(scale: Scale, low: f64, high: f64) -> Vec<String> {
        let ends = (scale.place(low), scale.place(high));
        scale.ticks(ends).into_iter().map(|place| scale.tick(place, ends.1 - ends.0)).collect()
    }

    #[test]
    fn axes_have_round_numbers_and_more_than_one() {
        assert_eq!(ticks(Scale::Log, 277e3, 12e6), ["500 k", "1 M", "2 M", "5 M", "10 M"]);
        assert_eq!(ticks(Scale::Log, 60.0, 140.0), ["60", "70", "80", "90", "100"]);
        assert_eq!(ticks(Scale::Log, 1e3, 3e9), ["1 k", "100 k", "10 M", "1 G"]);
        assert_eq!(ticks(Scale::Percent, 0.0, 1.0), ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]);
        let (low, high) = Scale::Percent.range([1.0].into_iter());
        assert_eq!(ticks(Scale::Percent, low, high), ["96 %", "98 %", "100 %"]);
        assert_eq!(ticks(Scale::Whole, 0.9, 3.1), ["1", "2", "3"]);
        assert_eq!(ticks(Scale::Percent, 0.96, 0.99), ["96.0 %", "97.0 %", "98.0 %", "99.0 %"]);
    }

    #[test]
    fn numbers_are_shown_for_people() {
        assert_eq!(
            [12.0, 2e6, 1.44e6, 11.4e6, 160.2e6].map(scaled),
            ["12", "2 M", "1.44 M", "11.4 M", "160 M"]
        );
        assert_eq!(percent(0.8271), "82.71 %");
    }
}
