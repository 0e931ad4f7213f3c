//! Random erasing against timm's, and what holds for any draw.
//!
//! The file was made by docs/parity/erasing_and_mixing.py with timm 1.0.31 and torchvision 0.26.0.

use std::collections::HashMap;

use data_cifar::{CropBox, Erasure, draw_erasure, erase, keyed_rng};
use proptest::prelude::*;
use run_record::{EraseMode, RandomErasing};
use tch::{Device, Kind, Tensor};
use torch_ext::test_devices;

fn golden() -> HashMap<String, Tensor> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/erasing_and_mixing.safetensors");
    Tensor::read_safetensors(file).expect("the file is readable").into_iter().collect()
}

fn normal(shape: [i64; 4]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

fn is_true(all: &Tensor) -> bool {
    all.all().int64_value(&[]) == 1
}

#[test]
fn fixed_boxes_are_erased_as_by_timm() {
    let golden = golden();
    let images = &golden["erase.images"];
    let mut erasures = vec![Erasure::default(); images.size()[0] as usize];
    let boxes = &golden["erase.boxes"];
    for row in 0..boxes.size()[0] {
        let row = Vec::<i64>::try_from(boxes.get(row)).unwrap();
        let erased = CropBox { top: row[1], left: row[2], height: row[3], width: row[4] };
        erasures[row[0] as usize].boxes.push(erased);
    }
    assert!(erasures.iter().any(|e| e.boxes.len() == 3) && erasures.iter().any(|e| e.boxes.is_empty()));
    let before = images.copy();
    for device in test_devices() {
        let erased = erase(&images.to_device(device), &erasures, EraseMode::Const).unwrap();
        assert_eq!(erased.to_device(Device::Cpu), golden["erase.results"], "{device:?}");
    }
    assert_eq!(*images, before); // the input is left alone
}

/// Means and variances of top, left, height, width and area in images of 24×40, ours against theirs, both of
/// tens of thousands of draws.
#[test]
fn boxes_have_the_distribution_of_timm() {
    let golden = golden();
    for (name, erasing) in [
        ("timm.1", RandomErasing { prob: 0.25, mode: EraseMode::Const, count: 1 }),
        ("timm.3", RandomErasing { prob: 0.25, mode: EraseMode::Const, count: 3 }),
    ] {
        let mut rng = keyed_rng(1, name, 0, 0);
        let drawn: Vec<Erasure> = (0..40_000).map(|_| draw_erasure(&erasing, &mut rng, 24, 40)).collect();
        let numbers: Vec<[f64; 1]> = drawn.iter().map(|e| [e.boxes.len() as f64]).collect();
        let values: Vec<[f64; 5]> = drawn
            .iter()
            .flat_map(|e| &e.boxes)
            .map(|b| [b.top, b.left, b.height, b.width, b.height * b.width].map(|value| value as f64))
            .collect();
        same_moments(&values, &golden[&format!("erase.{name}.boxes")], name);
        if let Some(want) = golden.get(&format!("erase.{name}.number")) {
            same_moments(&numbers, want, name);
        }
    }
}

/// Means within 5 sigma of their difference (taking both samples to be as large as ours), variances within 8 %.
fn same_moments<const N: usize>(values: &[[f64; N]], want: &Tensor, name: &str) {
    let n = values.len() as f64;
    for column in 0..N {
        let mean = values.iter().map(|v| v[column]).sum::<f64>() / n;
        let variance = values.iter().map(|v| (v[column] - mean).powi(2)).sum::<f64>() / n;
        let at = |row| want.double_value(&[row, column as i64]);
        let sigma = (2.0 * variance / n).sqrt();
        assert!((mean - at(0)).abs() < 5.0 * sigma, "{name}, mean of {column}: {mean} or {}", at(0));
        assert!(
            (variance / at(1) - 1.0).abs() < 0.08,
            "{name}, variance of {column}: {variance} or {}",
            at(1)
        );
    }
}

/// Computed from the definitions by a separate program.
#[test]
fn what_a_key_draws_never_changes() {
    let erasing = RandomErasing { prob: 1.0, mode: EraseMode::Const, count: 2 };
    for (index, (boxes, key)) in [
        ([(19, 4, 9, 12), (11, 17, 9, 14)], 2_333_601_780_997_078_135),
        ([(7, 11, 6, 6), (9, 21, 15, 11)], 16_700_776_961_704_473_932),
        ([(9, 5, 9, 7), (3, 15, 9, 9)], 9_524_745_980_208_033_042),
    ]
    .into_iter()
    .enumerate()
    {
        let of = |(top, left, height, width)| CropBox { top, left, height, width };
        let want = Erasure { boxes: boxes.map(of).to_vec(), key };
        assert_eq!(draw_erasure(&erasing, &mut keyed_rng(42, "erase", 3, index as u64), 32, 32), want);
    }
}

#[test]
fn noise_fills_the_box_and_nothing_else() {
    let images = normal([3, 3, 16, 20]);
    let of = |key| Erasure { boxes: vec![CropBox { top: 3, left: 5, height: 8, width: 9 }], key };
    let erasures = [of(1), Erasure::default(), of(2)];
    let inside = |t: &Tensor, n| t.get(n).narrow(1, 3, 8).narrow(2, 5, 9).contiguous();
    for mode in [EraseMode::Rand, EraseMode::Pixel] {
        let erased = erase(&images, &erasures, mode).unwrap();
        assert_eq!(erased.get(1), images.get(1));
        let outside = erased.ne_tensor(&images);
        let _ = outside.narrow(2, 3, 8).narrow(3, 5, 9).zero_();
        assert!(outside.any().int64_value(&[]) == 0, "{mode:?} changed something outside");
        assert_ne!(inside(&erased, 0), inside(&erased, 2)); // other keys, other noise
        for n in [0, 2] {
            let values = inside(&erased, n).view([3, -1]);
            assert!(is_true(&values.ne_tensor(&inside(&images, n).view([3, -1]))));
            let spread = values.amax([1], false) - values.amin([1], false);
            match mode {
                EraseMode::Rand => {
                    assert!(is_true(&spread.eq(0.0)), "one number per channel");
                    assert_ne!(values.get(0), values.get(1));
                }
                _ => assert!(is_true(&spread.gt(2.0)), "a number per value"),
            }
        }
    }
}

/// Where rectangles overlap, the later one shows; each has its own colour.
#[test]
fn later_rectangles_cover_earlier_ones() {
    let images = Tensor::zeros([1, 3, 4, 6], (Kind::Float, Device::Cpu));
    let (wide, tall) =
        (CropBox { top: 1, left: 0, height: 2, width: 5 }, CropBox { top: 0, left: 2, height: 3, width: 1 });
    let erasure = Erasure { boxes: vec![wide, tall], key: 77 };
    let channel = erase(&images, &[erasure], EraseMode::Rand).unwrap().get(0).get(0);
    let at = |y, x| channel.double_value(&[y, x]);
    assert!(at(1, 0) != 0.0 && at(0, 2) != 0.0 && at(1, 0) != at(0, 2));
    assert_eq!((at(1, 2), at(2, 2), at(1, 3), at(0, 0), at(3, 2)), (at(0, 2), at(0, 2), at(1, 0), 0.0, 0.0));
}

#[test]
fn bad_arguments_are_errors() {
    let images = normal([1, 3, 8, 8]);
    let good = CropBox { top: 0, left: 0, height: 8, width: 8 };
    for bad in [
        CropBox { top: 1, ..good },
        CropBox { left: -1, ..good },
        CropBox { width: -1, ..good },
        CropBox { top: i64::MAX, height: i64::MAX, ..good },
    ] {
        let erasure = Erasure { boxes: vec![bad], key: 0 };
        let message = erase(&images, &[erasure], EraseMode::Const).unwrap_err().to_string();
        assert!(message.contains("goes beyond"), "{message}");
    }
    assert!(erase(&images, &[], EraseMode::Const).is_err());
    assert!(erase(&images.to_kind(Kind::Uint8), &[Erasure::default()], EraseMode::Const).is_err());
    assert!(erase(&images.get(0), &[Erasure::default()], EraseMode::Const).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// Also that no image sees another: each alone gives what it gave in the batch, noise included.
    #[test]
    fn any_draw_depends_on_its_image_only(
        (height, width, batch, count) in (1..20i64, 1..20i64, 1..6i64, 1..5u32),
        (prob, mode, step) in (0.0..1.0f64, 0..3usize, 0..1000u64),
    ) {
        let mode = [EraseMode::Const, EraseMode::Rand, EraseMode::Pixel][mode];
        let erasing = RandomErasing { prob, mode, count };
        let images = normal([batch, 3, height, width]);
        let draw = |n| draw_erasure(&erasing, &mut keyed_rng(4, "test", step, n), height, width);
        let erasures: Vec<Erasure> = (0..batch as u64).map(draw).collect();
        let all = erase(&images, &erasures, mode).unwrap();
        prop_assert_eq!((all.size(), all.kind()), (images.size(), Kind::Float));
        prop_assert!(is_true(&all.isfinite()));
        for (n, erasure) in erasures.into_iter().enumerate() {
            let one = images.narrow(0, n as i64, 1);
            let area: i64 = erasure.boxes.iter().map(|b| b.height * b.width).sum();
            let alone = erase(&one, &[erasure], mode).unwrap();
            prop_assert!(alone.ne_tensor(&one).sum(Kind::Int64).int64_value(&[]) <= 3 * area);
            prop_assert_eq!(all.narrow(0, n as i64, 1), alone);
        }
    }
}
