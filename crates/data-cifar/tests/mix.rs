//! Mixup and CutMix against timm's, and what holds for any draw.
//!
//! The file was made by docs/parity/erasing_and_mixing.py with timm 1.0.31.

use std::collections::HashMap;

use data_cifar::{CropBox, Mixing, draw_mixings, mix};
use proptest::prelude::*;
use run_record::{AugmentRecipe, Cutmix, MixMode, MixRecipe, Mixup};
use tch::{Device, Kind, Tensor};
use torch_ext::test_devices;

fn golden() -> HashMap<String, Tensor> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/erasing_and_mixing.safetensors");
    Tensor::read_safetensors(file).expect("the file is readable").into_iter().collect()
}

/// What mixes, in all epochs.
fn recipe(mixup: Option<f64>, cutmix: Option<Cutmix>, mix: MixRecipe) -> AugmentRecipe {
    let mixup = mixup.map(|alpha| Mixup { alpha });
    let recipe = AugmentRecipe { mixup, cutmix, mix: Some(mix), ..AugmentRecipe::default() };
    assert!(recipe.mixes(1) && recipe.validate(32) == Ok(()), "{recipe:?}");
    recipe
}

/// Both methods, half of the time each.
fn both(mode: MixMode) -> AugmentRecipe {
    recipe(Some(0.8), Some(Cutmix::Alpha(1.0)), MixRecipe { mode, ..MixRecipe::default() })
}

fn most(difference: &Tensor) -> f64 {
    difference.abs().max().double_value(&[])
}

fn weights(mixings: &[Mixing], area: f64) -> Vec<f64> {
    let of = |mixing: &Mixing| match mixing {
        Mixing::Blend(lambda) => *lambda,
        Mixing::Paste(b) => 1.0 - (b.height * b.width) as f64 / area,
    };
    mixings.iter().map(of).collect()
}

#[test]
fn images_and_targets_are_those_of_timm() {
    let golden = golden();
    let (images, labels) = (&golden["mix.images"], &golden["mix.labels"]);
    let before = images.copy();
    for number in 0..4 {
        let of = |part| &golden[&format!("mix.{number}.{part}")];
        let drawn = of("drawn");
        let mut mixings: Vec<Mixing> = (0..drawn.size()[0])
            .map(|row| {
                let row = Vec::<f64>::try_from(drawn.get(row)).unwrap();
                let [top, left, height, width] = [row[1], row[2], row[3], row[4]].map(|value| value as i64);
                let pasted = Mixing::Paste(CropBox { top, left, height, width });
                if row[0] < 0.0 { pasted } else { Mixing::Blend(row[0]) }
            })
            .collect();
        match mixings.len() {
            1 => mixings = vec![mixings[0]; 8],
            4 => mixings.extend(mixings.clone().iter().rev()), // pairs from outside in
            _ => {}
        }
        let smoothing = of("smoothing").double_value(&[0]);
        for device in test_devices() {
            let [images, labels, results, of_targets] =
                [images, labels, of("results"), of("targets")].map(|tensor| tensor.to_device(device));
            let (mixed, targets) = mix(&images, &labels, &mixings, 5, smoothing).unwrap();
            let (off, off_targets) = (most(&(mixed - results)), most(&(targets - of_targets)));
            println!("case {number} on {device:?}: images {off:e}, targets {off_targets:e}");
            assert!(off < 1e-6 && off_targets < 1e-6, "case {number} on {device:?}: {off} {off_targets}");
        }
    }
    assert_eq!(*images, before); // the input is left alone
}

/// Mean and variance of the label's weight, of its square, and of whether nothing is mixed, in images of 24×40;
/// ours of 40,000 draws, timm's of 20,000.
#[test]
fn draws_have_the_distribution_of_timm() {
    let golden = golden();
    let indices: Vec<i64> = (0..40_000).collect();
    let elem = MixRecipe { mode: MixMode::Elem, ..MixRecipe::default() };
    let never = MixRecipe { switch_prob: 0.0, ..elem }; // which counts only for both
    let seldom = MixRecipe { prob: 0.7, switch_prob: 0.3, ..elem };
    for (name, draw) in [
        ("mixup", recipe(Some(0.2), None, elem)),
        ("cutmix", recipe(None, Some(Cutmix::Alpha(1.0)), never)),
        ("both", recipe(Some(0.8), Some(Cutmix::Alpha(0.4)), seldom)),
        ("minmax", recipe(None, Some(Cutmix::Minmax([0.2, 0.8])), elem)),
    ] {
        let weights = weights(&draw_mixings(&draw, 1, 0, 0, &indices, (24, 40)), 24.0 * 40.0);
        let n = weights.len() as f64;
        let is_unmixed = |w: &f64| if *w as f32 == 1.0 { 1.0 } else { 0.0 };
        let columns: [Vec<f64>; 3] = [
            weights.clone(),
            weights.iter().map(|w| w * w).collect(),
            weights.iter().map(is_unmixed).collect(),
        ];
        for (column, values) in columns.iter().enumerate() {
            let mean = values.iter().sum::<f64>() / n;
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
            let want = |row| golden[&format!("weights.{name}")].double_value(&[row, column as i64]);
            let sigma = (variance * 3.0 / n).sqrt(); // of the difference of the two means
            assert!((mean - want(0)).abs() <= 5.0 * sigma, "{name} {column}: {mean} or {}", want(0));
            // The variance of a share says nothing that its mean does not.
            let same = column == 2 || (variance / want(1) - 1.0).abs() < 0.05;
            assert!(same, "{name} {column}: variance {variance} or {}", want(1));
        }
    }
}

/// Computed from the definitions by a separate program.
#[test]
fn what_a_key_draws_never_changes() {
    let drawn = draw_mixings(&both(MixMode::Elem), 42, 3, 0, &[0, 1, 2, 3], (32, 32));
    assert_eq!(drawn[0], Mixing::Paste(CropBox { top: 14, left: 21, height: 9, width: 9 }));
    assert_eq!(drawn[2], Mixing::Paste(CropBox { top: 12, left: 1, height: 20, width: 30 }));
    for (drawn, want) in [(drawn[1], 0.931_822_205_971_984), (drawn[3], 0.022_948_551_833_119)] {
        assert!(matches!(drawn, Mixing::Blend(lambda) if (lambda - want).abs() < 1e-12), "{drawn:?}");
    }
}

#[test]
fn the_keys_are_those_of_the_mode() {
    let size = (32, 32);
    let all = |mode, seed, epoch, batch, indices: &[i64]| {
        draw_mixings(&both(mode), seed, epoch, batch, indices, size)
    };
    let indices = [5, 9, 2, 7, 0];
    let batch = all(MixMode::Batch, 1, 2, 3, &indices);
    assert_eq!(batch, [batch[0]; 5]);
    assert_eq!(batch[..2], all(MixMode::Batch, 1, 2, 3, &[1, 2])); // not the images count
    assert_ne!(batch, all(MixMode::Batch, 1, 2, 4, &indices));
    let elem = all(MixMode::Elem, 1, 2, 3, &indices);
    assert_eq!(elem[1..3], all(MixMode::Elem, 1, 2, 8, &[9, 2]));
    assert_ne!(elem[0], elem[1]);
    assert_ne!(elem, all(MixMode::Elem, 1, 3, 3, &indices));
    assert_ne!(elem, all(MixMode::Elem, 2, 2, 3, &indices));
    let pair = all(MixMode::Pair, 1, 2, 3, &indices);
    assert_eq!(pair, [elem[0], elem[1], Mixing::NONE, elem[1], elem[0]]);
    for mode in [MixMode::Batch, MixMode::Elem, MixMode::Pair] {
        assert!(all(mode, 1, 2, 3, &[]).is_empty());
        let mix = Some(MixRecipe { mode, ..MixRecipe::default() });
        let none = AugmentRecipe { mix, ..AugmentRecipe::default() };
        assert_eq!(draw_mixings(&none, 1, 2, 3, &indices, size), [Mixing::NONE; 5]);
    }
}

/// Two images of one channel, mixed by hand.
#[test]
fn a_pair_by_hand() {
    let images = Tensor::from_slice(&[0f32, 0., 0., 0., 4., 4., 4., 4.]).view([2, 1, 2, 2]);
    let labels = Tensor::from_slice(&[0i64, 2]);
    let corner = Mixing::Paste(CropBox { top: 0, left: 1, height: 1, width: 1 });
    let (mixed, targets) = mix(&images, &labels, &[Mixing::Blend(0.75), corner], 4, 0.0).unwrap();
    let floats = |t: Tensor| Vec::<f32>::try_from(t.view([-1])).unwrap();
    assert_eq!(floats(mixed), [1., 1., 1., 1., 4., 0., 4., 4.]);
    assert_eq!(floats(targets), [0.75, 0., 0.25, 0., 0.25, 0., 0.75, 0.]);
    let (same, smooth) = mix(&images, &labels, &[Mixing::NONE; 2], 4, 0.2).unwrap();
    assert_eq!(same, images);
    assert_eq!(floats(smooth), [0.85, 0.05, 0.05, 0.05, 0.05, 0.05, 0.85, 0.05]);
}

#[test]
fn bad_arguments_are_errors() {
    let images = Tensor::zeros([2, 3, 4, 4], (Kind::Float, Device::Cpu));
    let labels = Tensor::from_slice(&[0i64, 1]);
    let none = [Mixing::NONE; 2];
    assert!(mix(&images, &labels, &none, 2, 0.1).is_ok());
    assert!(mix(&images, &labels, &none[..1], 2, 0.1).is_err());
    assert!(mix(&images, &labels.get(0), &none, 2, 0.1).is_err());
    assert!(mix(&images.to_kind(Kind::Uint8), &labels, &none, 2, 0.1).is_err());
    assert!(mix(&images.get(0), &labels, &none, 2, 0.1).is_err());
    assert!(mix(&images, &labels, &none, 0, 0.1).is_err());
    assert!(mix(&images, &labels, &none, 2, 1.5).is_err());
    let beyond = Mixing::Paste(CropBox { top: 2, left: 0, height: 3, width: 1 });
    for wrong in [beyond, Mixing::Blend(1.5), Mixing::Blend(f64::NAN)] {
        let message = mix(&images, &labels, &[wrong; 2], 2, 0.1).unwrap_err().to_string();
        assert!(message.contains("cannot be done"), "{message}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_draw_mixes_within_range_and_targets_sum_to_one(
        (batch, height, width, classes) in (1..9i64, 1..12i64, 1..12i64, 1..50i64),
        (mixup, cutmix, step, mode) in (0.01..3.0f64, 0.01..3.0f64, 0..1000u64, 0..3usize),
        (prob, switch_prob, smoothing) in (0.0..=1.0f64, 0.0..=1.0f64, 0.0..=1.0f64),
        (with_mixup, minmax) in (any::<bool>(), prop::option::of((0.01..0.5f64, 0.5..=1.0f64))),
    ) {
        let mode = [MixMode::Batch, MixMode::Pair, MixMode::Elem][mode];
        let cutmix = minmax.map_or(Cutmix::Alpha(cutmix), |(least, most)| Cutmix::Minmax([least, most]));
        let mix_recipe = MixRecipe { prob, switch_prob, mode, off_epoch: None };
        let draw = recipe(with_mixup.then_some(mixup), Some(cutmix), mix_recipe);
        let mixings = draw_mixings(&draw, 6, 1, step, &(0..batch).collect::<Vec<_>>(), (height, width));
        let images = Tensor::randn([batch, 3, height, width], (Kind::Float, Device::Cpu));
        let labels = Tensor::randint(classes, [batch], (Kind::Int64, Device::Cpu));
        let (mixed, targets) = mix(&images, &labels, &mixings, classes, smoothing).unwrap();
        prop_assert_eq!((mixed.size(), mixed.kind()), (images.size(), Kind::Float));
        prop_assert_eq!((targets.size(), targets.kind()), (vec![batch, classes], Kind::Float));
        let partner = images.flip([0]);
        let (low, high) = (images.minimum(&partner) - 1e-6, images.maximum(&partner) + 1e-6);
        prop_assert!(mixed.ge_tensor(&low).logical_and(&mixed.le_tensor(&high)).all().int64_value(&[]) == 1);
        let sums = targets.to_kind(Kind::Double).sum_dim_intlist(1, false, Kind::Double);
        prop_assert!(most(&(sums - 1.0)) < 1e-6);
        prop_assert!(targets.min().double_value(&[]) >= 0.0);
        if batch % 2 == 1 {
            let middle = batch / 2; // its own partner
            prop_assert!(most(&(mixed.get(middle) - images.get(middle))) < 1e-6);
        }
    }
}
