//! The augmentation policies against the PIL calls that timm 1.0.31 and torchvision 0.26.0 make with
//! Pillow 13.0.0, as recorded by docs/parity/policies.py, and as distributions.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::Path;

use data_cifar::{Filter, Op, draw_jitter, draw_ops, keyed_rng};
use proptest::prelude::*;
use run_record::{ColorJitter, Interpolation, Policy};
use safetensors::SafeTensors;

const FILL: [u8; 3] = [125, 123, 114];

/// Kind, six parameters, filter and fill.
type Row = [f64; 11];

fn row(op: Option<Op>) -> Row {
    let mut row = [0.0; 11];
    row[0] = match op {
        None => 0.0,
        Some(Op::AutoContrast) => 1.0,
        Some(Op::Equalize) => 2.0,
        Some(Op::Invert) => 3.0,
        Some(Op::Posterize { .. }) => 4.0,
        Some(Op::Solarize { .. }) => 5.0,
        Some(Op::SolarizeAdd { .. }) => 6.0,
        Some(Op::Brightness { .. }) => 7.0,
        Some(Op::Contrast { .. }) => 8.0,
        Some(Op::Color { .. }) => 9.0,
        Some(Op::Sharpness { .. }) => 10.0,
        Some(Op::Affine { .. }) => 11.0,
        Some(Op::Hue { .. }) => 12.0,
    };
    match op {
        Some(Op::Posterize { bits: value } | Op::SolarizeAdd { add: value } | Op::Hue { shift: value }) => {
            row[1] = f64::from(value);
        }
        Some(
            Op::Solarize { threshold: value }
            | Op::Brightness { factor: value }
            | Op::Contrast { factor: value }
            | Op::Color { factor: value }
            | Op::Sharpness { factor: value },
        ) => row[1] = f64::from(value),
        Some(Op::Affine { matrix, filter, fill }) => {
            row[1..7].copy_from_slice(&matrix);
            row[7] = match filter {
                Filter::Nearest => 0.0,
                Filter::Bilinear => 2.0,
                Filter::Bicubic => 3.0,
            };
            row[8..].copy_from_slice(&fill.map(f64::from));
        }
        _ => {}
    }
    row
}

fn is_close(got: &Row, want: &Row) -> bool {
    let tolerance = if want[0] == 11.0 { 1e-10 } else { 2e-7 * want[1].abs().max(1.0) }; // f64 or f32
    got.iter().zip(want).all(|(got, want)| (got - want).abs() <= tolerance)
}

/// What a policy may draw: distinct operations, and for each pair of layers their probabilities by number.
struct Outcomes {
    policy: Policy,
    height: i64,
    width: i64,
    rows: Vec<Row>,
    pairs: Vec<[HashMap<usize, f64>; 2]>,
}

fn recorded() -> Vec<(String, Outcomes)> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/policies.safetensors");
    let bytes = std::fs::read(file).unwrap();
    let tables = SafeTensors::deserialize(&bytes).unwrap();
    let outcomes = tables.tensors().into_iter().map(|(name, table)| {
        let parts: Vec<&str> = name.split('@').collect();
        let (height, width) = parts[1].split_once('x').unwrap();
        let mut policy = Policy::parse(parts[0]).unwrap();
        if let (Policy::RandAugment(rand), Some(&"bicubic")) = (&mut policy, parts.get(2)) {
            rand.filter = Some(Interpolation::Bicubic);
        }
        let (height, width) = (height.parse().unwrap(), width.parse().unwrap());
        let mut outcomes = Outcomes { policy, height, width, rows: Vec::new(), pairs: Vec::new() };
        let numbers: Vec<f64> =
            table.data().chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect();
        for line in numbers.chunks_exact(14) {
            let (pair, layer, probability) = (line[0] as usize, line[1] as usize, line[2]);
            let row = Row::try_from(&line[3..]).unwrap();
            let known = outcomes.rows.iter().position(|known| is_close(&row, known));
            let number = known.unwrap_or_else(|| {
                outcomes.rows.push(row);
                outcomes.rows.len() - 1
            });
            outcomes.pairs.resize(outcomes.pairs.len().max(pair + 1), Default::default());
            *outcomes.pairs[pair][layer].entry(number).or_default() += probability;
        }
        for [first, second] in &mut outcomes.pairs {
            match policy.layers() {
                1 => drop(second.insert(0, 1.0)),
                _ if second.is_empty() => second.clone_from(first), // all layers alike
                _ => {}
            }
        }
        (name, outcomes)
    });
    outcomes.collect()
}

impl Outcomes {
    /// Numbers of the operations of many images, by layers.
    fn draw(&self, images: u64) -> impl Iterator<Item = Vec<usize>> {
        let mut known: HashMap<[u64; 11], usize> = HashMap::new();
        let mut rng = keyed_rng(5, "policy", 0, 0);
        (0..images).map(move |_| {
            let ops = draw_ops(&self.policy, &mut rng, self.height, self.width, FILL);
            let number = |op: Option<Op>| {
                let got = row(op);
                *known.entry(got.map(|value| (value + 0.0).to_bits())).or_insert_with(|| {
                    let found = self.rows.iter().position(|want| is_close(&got, want));
                    found.unwrap_or_else(|| panic!("{}: {op:?} is not recorded", self.policy))
                })
            };
            ops.map(number).collect()
        })
    }
}

/// Every operation that timm and torchvision may do is drawn, with their arguments, and no other.
#[test]
fn the_operations_are_those_of_timm_and_torchvision() {
    let recorded = recorded();
    assert_eq!(recorded.len(), 32);
    for (name, outcomes) in recorded {
        let mut seen = vec![false; outcomes.rows.len()];
        for numbers in outcomes.draw(20_000) {
            assert_eq!(numbers.len(), outcomes.policy.layers());
            numbers.iter().for_each(|&number| seen[number] = true);
        }
        for (seen, row) in seen.iter().zip(&outcomes.rows) {
            assert!(seen, "{name}: never drew {row:?}");
        }
    }
}

/// The first two operations of 200,000 images, together, are as frequent as they should be.
#[test]
fn operations_are_as_frequent_as_published() {
    let chosen = [
        "rand-m9-inc1@24x40",
        "rand-m9-n3-p1@33x7",
        "torchvision-n2-m12@24x40",
        "trivialaugment@24x40",
        "cifar10@32x32",
    ];
    let images = 200_000;
    let mut tested = 0;
    for (name, outcomes) in recorded().iter().filter(|(name, _)| chosen.contains(&name.as_str())) {
        let mut counts: HashMap<[usize; 2], (f64, f64)> = HashMap::new(); // expected, drawn
        for [first, second] in &outcomes.pairs {
            let share = images as f64 / outcomes.pairs.len() as f64;
            for (&a, p) in first {
                for (&b, q) in second {
                    counts.entry([a, b]).or_default().0 += share * p * q;
                }
            }
        }
        for numbers in outcomes.draw(images) {
            let second = numbers.get(1).copied().unwrap_or_default();
            counts.entry([numbers[0], second]).or_default().1 += 1.0;
        }
        let mut chi_squared = 0.0;
        for (cell, (expected, drawn)) in &counts {
            let difference = (drawn - expected).abs();
            assert!(difference < 6.0 * expected.sqrt() + 3.0, "{name} {cell:?}: {drawn}, not {expected}");
            if *expected > 0.0 {
                chi_squared += difference * difference / expected;
            }
        }
        let freedom = counts.values().filter(|(expected, _)| *expected > 0.0).count() as f64 - 1.0;
        let deviations = (chi_squared - freedom) / (2.0 * freedom).sqrt();
        assert!(
            deviations.abs() < 5.0,
            "{name}: chi-squared {chi_squared} with {freedom} degrees of freedom"
        );
        tested += 1;
    }
    assert_eq!(tested, chosen.len());
}

/// Magnitudes read off from the shears: 0.03 per step.
fn magnitudes(text: &str) -> Vec<f64> {
    let policy = Policy::parse(text).unwrap();
    let mut rng = keyed_rng(6, "policy", 0, 0);
    let ops = (0..200_000).flat_map(|_| draw_ops(&policy, &mut rng, 32, 32, FILL).collect::<Vec<_>>());
    ops.flatten()
        .filter_map(|op| match op {
            Op::Affine { matrix: [1.0, shear, 0.0, 0.0, 1.0, 0.0], .. } => Some(shear.abs() / 0.03),
            _ => None,
        })
        .collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
}

#[test]
fn magnitudes_are_spread_as_asked_for() {
    let normal = magnitudes("rand-m5-p1-mstd1");
    assert!(normal.len() > 20_000, "{}", normal.len());
    assert!((mean(&normal) - 5.0).abs() < 0.03, "{}", mean(&normal)); // 4 sigma
    assert!((deviation(&normal) - 1.0).abs() < 0.02, "{}", deviation(&normal));
    let within = normal.iter().filter(|magnitude| (*magnitude - 5.0).abs() < 1.0).count() as f64;
    assert!((within / normal.len() as f64 - 0.6827).abs() < 0.012, "{within}");

    let bounded = magnitudes("rand-m9-p1-mstd0.5-inc1");
    let at_bound = bounded.iter().filter(|magnitude| **magnitude > 10.0 - 1e-9).count() as f64;
    assert!((at_bound / bounded.len() as f64 - 0.02275).abs() < 0.004, "{at_bound}"); // above 2 sigma
    assert!(bounded.iter().all(|magnitude| (5.0..10.0 + 1e-9).contains(magnitude)));
    assert!(magnitudes("rand-m9-p1-mstd0.5-mmax12").iter().any(|magnitude| *magnitude > 10.5));
    assert!(magnitudes("rand-m0-p1-mstd1").iter().filter(|magnitude| **magnitude == 0.0).count() > 9_000);

    let uniform = magnitudes("rand-m8-p1-mstd101");
    assert!((mean(&uniform) - 4.0).abs() < 0.06, "{}", mean(&uniform));
    assert!((deviation(&uniform) - 8.0 / 12f64.sqrt()).abs() < 0.03, "{}", deviation(&uniform));
    assert!(uniform.iter().all(|magnitude| (0.0..8.0).contains(magnitude)));
}

#[test]
fn an_image_draws_the_same_for_the_same_key() {
    for text in ["rand-m9-mstd0.5-inc1", "torchvision-n2-m12", "trivialaugment", "cifar10"] {
        let policy = Policy::parse(text).unwrap();
        let draw = |seed, epoch, image| -> Vec<_> {
            draw_ops(&policy, &mut keyed_rng(seed, "policy", epoch, image), 32, 32, FILL).collect()
        };
        let of_images = |seed, epoch| (0..20).map(|image| draw(seed, epoch, image)).collect::<Vec<_>>();
        assert_eq!(of_images(1, 2), of_images(1, 2));
        assert_ne!(of_images(1, 2), of_images(0, 2));
        assert_ne!(of_images(1, 2), of_images(1, 3));
        assert!(of_images(1, 2).iter().any(|ops| *ops != draw(1, 2, 0)));
    }
}

/// Kinds of the operations of twelve images, and all their numbers' sum: a change of the draws changes every
/// run.
#[test]
fn what_a_key_draws_never_changes() {
    let drawn: [(&str, &[u8], f64); 4] = [
        (
            "rand-m9-mstd0.5-inc1",
            &[0, 0, 0, 0, 0, 0, 0, 11, 11, 0, 11, 3, 2, 11, 4, 0, 11, 0, 0, 10, 0, 7, 2, 0],
            1937.715175,
        ),
        (
            "torchvision-n2-m12",
            &[0, 7, 5, 10, 5, 11, 2, 11, 11, 0, 11, 11, 1, 4, 4, 5, 11, 11, 4, 11, 2, 11, 1, 0],
            631.24,
        ),
        ("trivialaugment", &[7, 10, 11, 11, 4, 9, 4, 5, 8, 11, 11, 0], 312.282),
        (
            "cifar10",
            &[11, 0, 0, 2, 0, 2, 0, 11, 1, 5, 2, 0, 10, 10, 9, 7, 11, 1, 0, 0, 0, 2, 10, 10],
            1440.069521,
        ),
    ];
    for (text, kinds, sum) in drawn {
        let policy = Policy::parse(text).unwrap();
        let draw = |image| {
            draw_ops(&policy, &mut keyed_rng(42, "policy", 3, image), 32, 32, FILL)
                .map(row)
                .collect::<Vec<_>>()
        };
        let rows: Vec<Row> = (0..12).flat_map(draw).collect();
        assert_eq!(rows.iter().map(|row| row[0] as u8).collect::<Vec<_>>(), kinds, "{text}");
        let drawn: f64 = rows.iter().flatten().sum();
        assert!((drawn - sum).abs() < 1e-4, "{text}: {drawn}");
    }
}

/// Text near enough to a policy's that some of it is one.
fn policy_text() -> impl Strategy<Value = String> {
    let section = "-(m|n|p|mstd|mmax|inc|x|)([0-9]{0,3}|[0-9]\\.[0-9]{1,20}|1?0\\.[0-9]|[0-9e.]{1,4})";
    let name = prop_oneof![Just("rand"), Just("torchvision"), Just("trivialaugment"), Just("cifar10")];
    (name, prop::collection::vec(section, 0..5))
        .prop_map(|(name, sections)| name.to_owned() + &sections.concat())
}

fn valid_policy() -> impl Strategy<Value = Policy> {
    let rand = (0.0..=100.0f64, 0.0..=1000.0f64, 1.0..=100.0f64, 1..=16usize, 0.0..=1.0f64, 0..=1u8)
        .prop_map(|(m, mstd, mmax, n, p, inc)| format!("rand-m{m}-mstd{mstd}-mmax{mmax}-n{n}-p{p}-inc{inc}"));
    let usual = (0..=10u8, 0.0..=2.0f64).prop_map(|(m, mstd)| format!("rand-m{m}-mstd{mstd}-inc1-p1"));
    let torchvision = (1..=16u8, 0..=30u8).prop_map(|(n, m)| format!("torchvision-n{n}-m{m}"));
    prop_oneof![rand, usual, torchvision, Just("trivialaugment".to_owned()), Just("cifar10".to_owned())]
        .prop_map(|text| Policy::parse(&text).unwrap_or_else(|error| panic!("{text}: {error}")))
}

proptest! {
    #[test]
    fn any_text_is_a_policy_or_an_error(text in "\\PC{0,30}") {
        let _ = Policy::parse(&text);
    }

    #[test]
    fn what_parses_is_written_and_read_again(text in policy_text()) {
        if let Ok(policy) = Policy::parse(&text) {
            let written = policy.to_string();
            prop_assert_eq!(Policy::parse(&written).unwrap(), policy);
            prop_assert!((1..=16).contains(&policy.layers()));
        }
    }

    #[test]
    fn a_policy_is_read_as_it_was_written(policy in valid_policy()) {
        prop_assert_eq!(Policy::parse(&policy.to_string()).unwrap(), policy);
    }

    #[test]
    fn parameters_stay_in_range(
        policy in valid_policy(), seed: u64, height in 1i64..2000, width in 1i64..2000, fill: [u8; 3],
    ) {
        let ops: Vec<_> = draw_ops(&policy, &mut keyed_rng(seed, "policy", 0, 0), height, width, fill).collect();
        prop_assert_eq!(ops.len(), policy.layers());
        for op in ops.into_iter().flatten() {
            match op {
                Op::Posterize { bits } => prop_assert!(bits <= 8),
                Op::Solarize { threshold } => prop_assert!((0.0..=256.0).contains(&threshold)),
                Op::SolarizeAdd { add } => prop_assert!(add <= 128),
                Op::Brightness { factor } | Op::Contrast { factor } | Op::Color { factor }
                | Op::Sharpness { factor } => prop_assert!((0.0..=18.2).contains(&factor)),
                Op::Affine { matrix, fill: drawn, .. } => {
                    prop_assert!(matrix.iter().all(|value| value.is_finite()));
                    let own = match policy {
                        Policy::RandAugment(_) => fill,
                        Policy::TorchvisionRandAugment { .. } | Policy::TrivialAugment => [0; 3],
                        Policy::AutoAugmentCifar10 => [128; 3],
                    };
                    prop_assert_eq!(drawn, own);
                }
                Op::AutoContrast | Op::Equalize | Op::Invert => {}
                Op::Hue { .. } => prop_assert!(false, "no policy turns the hue"),
            }
        }
    }

    #[test]
    fn jitter_stays_in_range(
        brightness in 0.0..=100.0f64, contrast in 0.0..=2.0f64, saturation in 0.0..=1.0f64,
        hue in 0.0..=0.5f64, seed: u64,
    ) {
        let jitter = jitter(brightness, contrast, saturation, hue);
        for op in draw_jitter(&jitter, &mut keyed_rng(seed, "jitter", 0, 0)).into_iter().flatten() {
            let (factor, strength) = match op {
                Op::Brightness { factor } => (factor, brightness),
                Op::Contrast { factor } => (factor, contrast),
                Op::Color { factor } => (factor, saturation),
                Op::Hue { shift } => {
                    let limit = (255.0 * hue) as i32;
                    prop_assert!((-limit..=limit).contains(&i32::from(shift.cast_signed())));
                    continue;
                }
                other => return Err(TestCaseError::fail(format!("{other:?}"))),
            };
            let range = (1.0 - strength).max(0.0) as f32..=(1.0 + strength) as f32;
            prop_assert!(range.contains(&factor), "{} not in {:?}", factor, range);
        }
    }
}

fn jitter(brightness: f64, contrast: f64, saturation: f64, hue: f64) -> ColorJitter {
    ColorJitter { brightness, contrast, saturation, hue }
}

#[test]
fn jitter_draws_all_orders_and_factors_alike() {
    let jitter = jitter(0.4, 0.3, 0.2, 0.5);
    let mut rng = keyed_rng(7, "jitter", 0, 0);
    let mut orders: HashMap<[u8; 4], u32> = HashMap::new();
    let (mut factors, mut shifts) = (HashMap::<u8, Vec<f64>>::new(), [0u32; 256]);
    for _ in 0..48_000 {
        let rows = draw_jitter(&jitter, &mut rng).map(row);
        *orders.entry(rows.map(|row| row[0] as u8)).or_default() += 1;
        for row in rows {
            factors.entry(row[0] as u8).or_default().push(row[1]);
            if row[0] == 12.0 {
                shifts[row[1] as usize] += 1;
            }
        }
    }
    assert_eq!(orders.len(), 24);
    assert!(orders.values().all(|count| (1_780..2_220).contains(count)), "{orders:?}"); // 2000 ± 5 sigma
    for (kind, strength) in [(7, 0.4), (8, 0.3), (9, 0.2)] {
        let factors = &factors[&kind];
        assert!((mean(factors) - 1.0).abs() < 0.02 * strength, "{kind}: {}", mean(factors));
        assert!((deviation(factors) - strength / 3f64.sqrt()).abs() < 0.02 * strength);
    }
    // int(255·h) for h from −1/2 to 1/2: 0 from both sides, and the last ones, ±127, only half.
    assert_eq!(shifts[128], 0);
    for (shift, count) in shifts.iter().enumerate().filter(|(shift, _)| *shift != 128) {
        let expected = match shift {
            0 => 376.0,
            127 | 129 => 94.0,
            _ => 188.0,
        };
        assert!((f64::from(*count) - expected).abs() < 5.0 * f64::sqrt(expected), "{shift}: {count}");
    }
}

#[test]
fn jitter_leaves_out_what_has_no_strength() {
    let draw = |jitter: ColorJitter| draw_jitter(&jitter, &mut keyed_rng(8, "jitter", 0, 0));
    assert_eq!(draw(jitter(0.0, 0.0, 0.0, 0.0)), [None; 4]);
    let timm = draw(jitter(0.4, 0.4, 0.4, 0.0)).map(|op| row(op)[0]);
    assert_eq!(timm.iter().sum::<f64>(), 7.0 + 8.0 + 9.0);
    assert_eq!(timm[3], 0.0);
}
