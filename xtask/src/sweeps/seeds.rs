//! The seeds of `--seeds`: numbers and ranges, separated by commas.

use std::str::FromStr;

/// More than this many is taken for a slip.
const MOST: u64 = 1000;

const EXPECTED: &str = "expected 0..3, 0..=2, 0,1,5 or 3";

/// Seeds in the order they were given; at least one, none twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seeds(pub(crate) Vec<u64>);

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut seeds = Vec::new();
        for part in text.split(',') {
            let (first, last) = bounds(part.trim())?;
            // Counted before it is written out: a range may be longer than memory.
            let count = (last - first).saturating_add(1).saturating_add(seeds.len() as u64);
            if count > MOST {
                return Err(format!("at most {MOST} seeds are trained in one go; {EXPECTED}"));
            }
            seeds.extend(first..=last);
        }
        let mut sorted = seeds.clone();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("seed {} is given twice", twice[0]));
        }
        Ok(Self(seeds))
    }
}

/// The first and the last seed of `3`, `0..3` or `0..=2`.
fn bounds(part: &str) -> Result<(u64, u64), String> {
    let number = |text: &str| {
        text.trim().parse::<u64>().map_err(|_| format!("{text:?} is no whole number from 0 on; {EXPECTED}"))
    };
    let Some((first, end)) = part.split_once("..") else {
        let seed = number(part)?;
        return Ok((seed, seed));
    };
    let first = number(first)?;
    let last = match end.strip_prefix('=') {
        Some(last) => Some(number(last)?),
        None => number(end)?.checked_sub(1),
    };
    last.filter(|last| first <= *last)
        .map(|last| (first, last))
        .ok_or_else(|| format!("{part} has no seed; {EXPECTED}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_lists_and_single_seeds() {
        let seeds = |text: &str| text.parse::<Seeds>().unwrap().0;
        assert_eq!(seeds("0..3"), [0, 1, 2]);
        assert_eq!(seeds("0..=2"), [0, 1, 2]);
        assert_eq!(seeds("5, 0,1"), [5, 0, 1]);
        assert_eq!(seeds("3"), [3]);
        assert_eq!(seeds("7,0..2"), [7, 0, 1]);
        assert_eq!(seeds(&u64::MAX.to_string()), [u64::MAX]);
        assert_eq!(seeds("1..1001").len(), 1000);
    }

    #[test]
    fn what_is_no_list_of_seeds_is_said_to_be_none() {
        for (text, said) in [
            ("", "\"\" is no whole number"),
            ("0,", "\"\" is no whole number"),
            ("a..3", "\"a\" is no whole number"),
            ("0..", "\"\" is no whole number"),
            ("-1", "\"-1\" is no whole number"),
            ("1.5", "\"1.5\" is no whole number"),
            ("3..3", "3..3 has no seed"),
            ("0..0", "0..0 has no seed"),
            ("5..=4", "5..=4 has no seed"),
            ("0..1001", "at most 1000 seeds"),
            ("0..600,1000..=1400", "at most 1000 seeds"),
            ("0..=18446744073709551615", "at most 1000 seeds"),
            ("0..3,2", "seed 2 is given twice"),
        ] {
            let error = text.parse::<Seeds>().unwrap_err();
            assert!(error.starts_with(said), "{text}: {error}");
        }
    }
}
