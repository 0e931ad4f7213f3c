//! Crops and resizes against PIL and torchvision, and what holds for any box.
//!
//! The file was made by docs/parity/resampling.py with Pillow 13.0.0 and torchvision 0.26.0.

use std::collections::HashMap;

use data_cifar::{
    CropBox, Filter, center_crop, crop, crop_offset, draw_crop, keyed_rng, pad_crop, pil_resize, resized_crop,
};
use proptest::prelude::*;
use run_record::{RandomResizedCrop, TrainInterpolation};
use tch::{Device, Kind, Tensor};
use torch_ext::test_devices;

/// The file's tensors on each device.
fn golden() -> impl Iterator<Item = HashMap<String, Tensor>> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/resampling.safetensors");
    let tensors = Tensor::read_safetensors(file).expect("the file is readable");
    test_devices().into_iter().map(move |device| {
        tensors.iter().map(|(name, tensor)| (name.clone(), tensor.to_device(device))).collect()
    })
}

/// Rows of numbers.
fn rows(tensor: &Tensor) -> Vec<Vec<i64>> {
    (0..tensor.size()[0]).map(|n| Vec::try_from(tensor.get(n)).expect("rows of i64")).collect()
}

fn filters(tensor: &Tensor) -> Vec<Filter> {
    let all = [Filter::Nearest, Filter::Bilinear, Filter::Bicubic];
    Vec::<i64>::try_from(tensor).expect("a row of i64").into_iter().map(|f| all[f as usize]).collect()
}

fn boxes(tensor: &Tensor) -> Vec<CropBox> {
    let of = |b: &Vec<i64>| CropBox { top: b[0], left: b[1], height: b[2], width: b[3] };
    rows(tensor).iter().map(of).collect()
}

fn offsets(tensor: &Tensor) -> Vec<(i64, i64)> {
    rows(tensor).iter().map(|o| (o[0], o[1])).collect()
}

fn size(images: &Tensor) -> (i64, i64) {
    (images.size()[2], images.size()[3])
}

/// The largest difference in levels, how many values differ, and how many there are.
fn differences(a: &Tensor, b: &Tensor) -> (i64, i64, usize) {
    assert_eq!((a.size(), a.kind()), (b.size(), b.kind()));
    let difference = (a.to_kind(Kind::Int64) - b.to_kind(Kind::Int64)).abs();
    (difference.max().int64_value(&[]), difference.gt(0).sum(Kind::Int64).int64_value(&[]), a.numel())
}

fn noise(shape: [i64; 4]) -> Tensor {
    Tensor::randint(256, shape, (Kind::Uint8, Device::Cpu))
}

/// The ranges of torchvision and timm, bilinear.
const USUAL: RandomResizedCrop = RandomResizedCrop {
    scale: [0.08, 1.0],
    ratio: [3.0 / 4.0, 4.0 / 3.0],
    interpolation: TrainInterpolation::Bilinear,
};

#[test]
fn crops_are_those_of_torchvision_on_pil_images() {
    for golden in golden() {
        let (mut differing, mut all) = (0, 0);
        for number in 0..5 {
            let of = |part| &golden[&format!("crop.{number}.{part}")];
            let (images, want) = (of("images"), of("results"));
            let got = resized_crop(images, &boxes(of("boxes")), &filters(of("filters")), size(want)).unwrap();
            let (most, count, values) = differences(&got, want);
            assert!(most <= 1, "case {number}: {most} levels off in {count} of {values}");
            differing += count;
            all += values;
        }
        // Sums in f32 miss ties that PIL's rounding of the weights breaks; 0.08 % here.
        assert!(differing * 500 <= all as i64, "{differing} of {all} values are one level off");
    }
}

#[test]
fn resizes_are_those_of_pil() {
    for golden in golden() {
        for number in 0..5 {
            for (filter, name) in [(Filter::Nearest, 0), (Filter::Bilinear, 1), (Filter::Bicubic, 2)] {
                let want = &golden[&format!("resize.{number}.results.{name}")];
                let got =
                    pil_resize(&golden[&format!("resize.{number}.images")], filter, size(want)).unwrap();
                let (most, count, values) = differences(&got, want);
                assert_eq!((most, count), (0, 0), "{filter:?} {number}: of {values}");
            }
        }
    }
}

#[test]
fn padded_and_central_crops_are_those_of_torchvision() {
    for golden in golden() {
        let images = &golden["pad.images"];
        let offsets = offsets(&golden["pad.offsets"]);
        assert_eq!(pad_crop(images, 3, &offsets).unwrap(), golden["pad.results"]);
        for (number, size) in
            [(13, 10), (12, 9), (11, 8), (10, 7), (9, 6), (8, 5), (1, 1)].into_iter().enumerate()
        {
            assert_eq!(
                center_crop(images, size).unwrap(),
                golden[&format!("center.{number}.results")],
                "{size:?}"
            );
        }
    }
}

#[test]
fn a_box_of_the_whole_image_changes_nothing() {
    let images = noise([6, 3, 11, 14]);
    let whole = CropBox { top: 0, left: 0, height: 11, width: 14 };
    for filter in [Filter::Nearest, Filter::Bilinear, Filter::Bicubic] {
        assert_eq!(resized_crop(&images, &[whole; 6], &[filter; 6], (11, 14)).unwrap(), images);
        assert_eq!(pil_resize(&images, filter, (11, 14)).unwrap(), images);
    }
    // A box of the output's size is that part of the image.
    let part = CropBox { top: 2, left: 5, height: 7, width: 8 };
    let cut = resized_crop(&images, &[part; 6], &[Filter::Bicubic; 6], (7, 8)).unwrap();
    assert_eq!(cut, images.narrow(2, 2, 7).narrow(3, 5, 8));
}

#[test]
fn crops_take_images_of_any_kind_and_layout() {
    let images = Tensor::arange(2 * 4 * 5 * 6, (Kind::Float, Device::Cpu)).view([2, 4, 5, 6]);
    let cut = crop(&images, (3, 2), &[(0, 4), (2, 1)]).unwrap();
    assert_eq!(cut.get(0), images.get(0).narrow(1, 0, 3).narrow(2, 4, 2));
    assert_eq!(cut.get(1), images.get(1).narrow(1, 2, 3).narrow(2, 1, 2));
    let turned = images.transpose(2, 3);
    assert_eq!(crop(&turned, (2, 3), &[(4, 0), (1, 2)]).unwrap(), cut.transpose(2, 3));
    let bytes = noise([3, 3, 9, 7]);
    let turned = bytes.transpose(2, 3);
    let resized = pil_resize(&turned, Filter::Bilinear, (4, 4)).unwrap();
    assert_eq!(resized, pil_resize(&turned.contiguous(), Filter::Bilinear, (4, 4)).unwrap());
}

#[test]
fn an_empty_batch_stays_empty() {
    let none = noise([0, 3, 8, 8]);
    assert_eq!(resized_crop(&none, &[], &[], (4, 5)).unwrap().size(), [0, 3, 4, 5]);
    assert_eq!(pil_resize(&none, Filter::Bilinear, (4, 5)).unwrap().size(), [0, 3, 4, 5]);
    assert_eq!(pad_crop(&none, 2, &[]).unwrap().size(), [0, 3, 8, 8]);
}

#[test]
fn bad_arguments_are_errors() {
    let images = noise([1, 3, 8, 8]);
    let filter = [Filter::Bilinear];
    let good = CropBox { top: 0, left: 0, height: 8, width: 8 };
    for bad in [
        CropBox { top: 1, ..good },
        CropBox { left: -1, ..good },
        CropBox { height: 0, ..good },
        CropBox { width: 9, ..good },
        CropBox { width: i64::MAX, left: i64::MAX, ..good },
        CropBox { width: i64::MIN, ..good },
    ] {
        let message = resized_crop(&images, &[bad], &filter, (8, 8)).unwrap_err().to_string();
        assert!(message.contains("goes beyond"), "{message}");
    }
    assert!(resized_crop(&images, &[good], &filter, (0, 8)).is_err());
    assert!(resized_crop(&images, &[good; 2], &filter, (8, 8)).is_err());
    assert!(resized_crop(&images, &[good], &[], (8, 8)).is_err());
    assert!(resized_crop(&images.to_kind(Kind::Float), &[good], &filter, (8, 8)).is_err());
    assert!(pil_resize(&images.narrow(1, 0, 1), Filter::Bilinear, (4, 4)).is_err());
    assert!(pil_resize(&noise([1, 3, 0, 8]), Filter::Bilinear, (4, 4)).is_err());
    assert!(center_crop(&images, (9, 8)).is_err());
    assert!(crop(&images, (4, 4), &[(5, 0)]).is_err());
    assert!(crop(&images, (4, 4), &[(0, -1)]).is_err());
    assert!(crop(&images, (4, 4), &[]).is_err());
    assert!(pad_crop(&images, -1, &[(0, 0)]).is_err());
    assert!(pad_crop(&images, 1, &[(3, 0)]).is_err());
}

/// Area and logarithm of the ratio are uniform where the box always fits.
#[test]
fn drawn_boxes_have_the_distribution_of_torchvision() {
    let draw = RandomResizedCrop { scale: [0.1, 0.5], interpolation: TrainInterpolation::Random, ..USUAL };
    let mut rng = keyed_rng(1, "test", 0, 0);
    let (side, count) = (1000, 20_000);
    let (mut areas, mut ratios, mut tops, mut bicubic) = (0.0, 0.0, 0.0, 0);
    let (mut areas_squared, mut ratios_squared) = (0.0, 0.0);
    for _ in 0..count {
        let (crop, filter) = draw_crop(&draw, &mut rng, side, side);
        let area = (crop.height * crop.width) as f64 / (side * side) as f64;
        let ratio = (crop.width as f64 / crop.height as f64).ln();
        assert!((0.099..0.501).contains(&area) && ratio.abs() < (4.0f64 / 3.0).ln() + 0.01, "{crop:?}");
        assert!(crop.top >= 0 && crop.left >= 0 && crop.top + crop.height <= side);
        areas += area;
        areas_squared += area * area;
        ratios += ratio;
        ratios_squared += ratio * ratio;
        tops += crop.top as f64 / (side - crop.height) as f64;
        bicubic += u32::from(filter == Filter::Bicubic);
    }
    let n = f64::from(count);
    let width = 2.0 * (4.0f64 / 3.0).ln();
    assert!((areas / n - 0.3).abs() < 0.004, "{}", areas / n);
    assert!((areas_squared / n - (areas / n).powi(2) - 0.16 / 12.0).abs() < 0.0003);
    assert!((ratios / n).abs() < 0.006, "{}", ratios / n);
    assert!((ratios_squared / n - width * width / 12.0).abs() < 0.001);
    assert!((tops / n - 0.5).abs() < 0.01, "{}", tops / n);
    assert!((9_700..10_300).contains(&bicubic), "{bicubic}");
}

/// Computed from the definitions by a separate program.
#[test]
fn what_a_key_draws_never_changes() {
    let draw = RandomResizedCrop { interpolation: TrainInterpolation::Random, ..USUAL };
    for (index, (top, left, height, width, filter)) in
        [(8, 2, 10, 10, Filter::Bilinear), (7, 0, 19, 20, Filter::Bilinear), (5, 5, 20, 26, Filter::Bicubic)]
            .into_iter()
            .enumerate()
    {
        let drawn = draw_crop(&draw, &mut keyed_rng(42, "crop", 3, index as u64), 32, 32);
        assert_eq!(drawn, (CropBox { top, left, height, width }, filter));
    }
}

/// Where no box fits, the largest one in the middle whose ratio is in range.
#[test]
fn the_fallback_is_central() {
    let draw = RandomResizedCrop { scale: [1.0, 1.0], ..USUAL };
    let mut rng = keyed_rng(1, "test", 0, 1);
    // 40 wide, 10 high: all of the height, ⌊10·4/3⌉ = 13 columns from ⌊27/2⌋ on.
    let (crop, _) = draw_crop(&draw, &mut rng, 10, 40);
    assert_eq!(crop, CropBox { top: 0, left: 13, height: 10, width: 13 });
    let (crop, _) = draw_crop(&draw, &mut rng, 40, 10); // 10/(3/4) = 13.3 rows
    assert_eq!(crop, CropBox { top: 13, left: 0, height: 13, width: 10 });
}

#[test]
fn every_offset_is_drawn_equally_often() {
    let mut rng = keyed_rng(3, "test", 0, 0);
    let mut counts = HashMap::new();
    for _ in 0..27_000 {
        *counts.entry(crop_offset(&mut rng, (8, 2))).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 27);
    assert!(counts.values().all(|count| (840..1160).contains(count)), "{counts:?}"); // 1000 ± 5 sigma
    assert_eq!(crop_offset(&mut rng, (0, 0)), (0, 0));
}

/// One of sizes up to 20, a box in it and a filter.
fn any_crop(height: i64, width: i64) -> impl Strategy<Value = (CropBox, Filter)> {
    let filter = prop_oneof![Just(Filter::Nearest), Just(Filter::Bilinear), Just(Filter::Bicubic)];
    (1..=height, 1..=width, 0.0..1.0, 0.0..1.0, filter).prop_map(move |(h, w, y, x, filter)| {
        let place = |room: i64, part: f64| ((room + 1) as f64 * part) as i64;
        (CropBox { top: place(height - h, y), left: place(width - w, x), height: h, width: w }, filter)
    })
}

/// Height, width, crops and the size they get.
type AnyBatch = (i64, i64, Vec<(CropBox, Filter)>, (i64, i64));

fn any_batch() -> impl Strategy<Value = AnyBatch> {
    (1..20i64, 1..20i64).prop_flat_map(|(height, width)| {
        let crops = prop::collection::vec(any_crop(height, width), 1..6);
        (Just(height), Just(width), crops, (1..20i64, 1..20i64))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Also that no image sees another: each alone gives what it gave in the batch.
    #[test]
    fn any_box_gives_bytes_that_depend_on_its_image_only((height, width, crops, size) in any_batch()) {
        let images = noise([crops.len() as i64, 3, height, width]);
        let (boxes, filters): (Vec<CropBox>, Vec<Filter>) = crops.into_iter().unzip();
        let all = resized_crop(&images, &boxes, &filters, size).unwrap();
        prop_assert_eq!(all.kind(), Kind::Uint8);
        prop_assert_eq!(all.size(), vec![boxes.len() as i64, 3, size.0, size.1]);
        for (n, (&crop, &filter)) in boxes.iter().zip(&filters).enumerate() {
            let one = images.narrow(0, n as i64, 1);
            let alone = resized_crop(&one, &[crop], &[filter], size).unwrap();
            // The order of the sums depends on how many there are, so f32 may round apart: after the first pass by one
            // level, which the weights of the second, at most 1.25 in all without their signs, can make two.
            let apart = if filter == Filter::Nearest { 0 } else { 2 };
            let (most, ..) = differences(&all.narrow(0, n as i64, 1), &alone);
            prop_assert!(most <= apart, "{:?} {}", filter, most);
            // What lies outside the box does not count: the same from the part alone.
            let part = one.narrow(2, crop.top, crop.height).narrow(3, crop.left, crop.width);
            let resized = pil_resize(&part, filter, size).unwrap();
            let (most, ..) = differences(&resized, &alone);
            prop_assert!(most <= apart, "{:?} {}", filter, most);
            // Between the least and the largest level, but for the bicubic filter.
            if filter != Filter::Bicubic {
                prop_assert!(alone.min().int64_value(&[]) >= part.min().int64_value(&[]));
                prop_assert!(alone.max().int64_value(&[]) <= part.max().int64_value(&[]));
            }
        }
    }

    #[test]
    fn a_flat_image_stays_flat(level in 0..256i64, (height, width, crops, size) in any_batch()) {
        let images = Tensor::full([crops.len() as i64, 3, height, width], level, (Kind::Uint8, Device::Cpu));
        let (boxes, filters): (Vec<CropBox>, Vec<Filter>) = crops.into_iter().unzip();
        let resized = resized_crop(&images, &boxes, &filters, size).unwrap();
        prop_assert!(resized.eq(level).all().int64_value(&[]) == 1);
    }

    #[test]
    fn drawn_boxes_lie_in_their_image(
        (height, width, step) in (1..100i64, 1..100i64, 0..1000u64),
        (least, part, narrow, wide) in (0.01..1.0f64, 0.0..1.0f64, 0.1..10.0f64, 1.0..10.0f64),
    ) {
        let draw = RandomResizedCrop {
            scale: [least, least + (1.0 - least) * part],
            ratio: [narrow, narrow * wide],
            interpolation: TrainInterpolation::Random,
        };
        let (crop, filter) = draw_crop(&draw, &mut keyed_rng(2, "test", 0, step), height, width);
        prop_assert!(resized_crop(&noise([1, 3, height, width]), &[crop], &[filter], (2, 3)).is_ok(), "{:?}", crop);
    }
}
