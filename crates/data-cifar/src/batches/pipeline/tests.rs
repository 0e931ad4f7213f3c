//! What a pipeline makes of images, and on what that depends.

use super::*;
use crate::augment::normalize::ChannelStats;
use ndarray::{ArcArray, Array1};
use proptest::prelude::*;
use run_record::{
    ColorJitter, EraseMode, Interpolation, RandomErasing, RandomResizedCrop, TrainInterpolation,
};
use tch::{Device, Kind};

use crate::sets::dataset::Labelled;

fn pipeline(image_size: i64, augment: AugmentRecipe) -> Pipeline {
    let normalizer = Normalizer::new(&ChannelStats::UNIT, Device::Cpu).unwrap();
    let fill = [125, 123, 114];
    Pipeline { normalizer, image_size, resize: None, augment, fill }
}

/// Images of noise and flat parts.
fn set(n: usize, side: usize) -> ImageSet {
    let pixel = |(n, c, y, x): (usize, usize, usize, usize)| {
        let noise = ((n * 7919 + c * 104_729 + y * 1299 + x * 15_485) * 2_654_435_761) >> 7;
        if (y / 4 + n) % 3 == 0 { (n * 37 % 256) as u8 } else { noise as u8 }
    };
    let images = ArcArray::from_shape_fn((n, 3, side, side), pixel);
    let labels = Array1::from_shape_fn(n, |n| (n % 10) as u16);
    ImageSet::Held(Labelled { images, labels })
}

fn draw(seed: u64, epoch: u64) -> Draw {
    Draw { seed, epoch, repeats: 1 }
}

/// All batches of an epoch, one after the other.
fn epoch(pipeline: &Pipeline, set: &ImageSet, order: &[i64], batch_size: usize, at: Draw) -> Tensor {
    let batches = set.batches(order, batch_size).unwrap();
    let shown: Vec<Tensor> = batches.map(|batch| pipeline.augmented(&batch.unwrap(), at).unwrap()).collect();
    Tensor::cat(&shown, 0)
}

/// Resized to so many pixels and cut.
fn enlarged(from: i64, offset: CropOffset) -> AugmentRecipe {
    AugmentRecipe { enlarged_crop: Some(EnlargedCrop { from, offset }), ..AugmentRecipe::default() }
}

fn policy(name: &str, first: bool) -> Option<PolicyRecipe> {
    Some(PolicyRecipe { name: Policy::parse(name).unwrap(), first })
}

fn everything() -> AugmentRecipe {
    AugmentRecipe {
        resized_crop: Some(RandomResizedCrop {
            scale: [0.3, 1.0],
            ratio: [0.75, 4.0 / 3.0],
            interpolation: TrainInterpolation::Random,
        }),
        hflip: 0.5,
        vflip: Some(0.3),
        policy: policy("rand-m9-mstd0.5-inc1", false),
        color_jitter: Some(ColorJitter { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 }),
        rotation_degrees: Some(7.2),
        zoom: Some(0.2),
        erasing: Some(RandomErasing { prob: 0.5, mode: EraseMode::Pixel, count: 2 }),
        ..AugmentRecipe::default()
    }
}

#[test]
fn what_an_image_goes_through_does_not_depend_on_the_batch_or_the_order() {
    let set = set(23, 12);
    let pipelines = [
        pipeline(10, everything()),
        pipeline(
            12,
            AugmentRecipe {
                padding: Some(2),
                resized_crop: None,
                policy: policy("rand-m9-mstd0.5-inc1", true),
                ..everything()
            },
        ),
        pipeline(
            9,
            AugmentRecipe {
                enlarged_crop: enlarged(13, CropOffset::Image).enlarged_crop,
                resized_crop: None,
                ..everything()
            },
        ),
    ];
    for pipeline in &pipelines {
        let order: Vec<i64> = (0..23).collect();
        let whole = epoch(pipeline, &set, &order, 23, draw(5, 2));
        let side = pipeline.image_size;
        assert_eq!(whole.size(), [23, 3, side, side]);
        for batch_size in [1, 4, 22] {
            assert_eq!(epoch(pipeline, &set, &order, batch_size, draw(5, 2)), whole, "{batch_size}");
        }
        let reversed: Vec<i64> = (0..23).rev().collect();
        assert_eq!(epoch(pipeline, &set, &reversed, 5, draw(5, 2)), whole.flip([0]));
        assert_ne!(epoch(pipeline, &set, &order, 23, draw(5, 3)), whole);
        assert_ne!(epoch(pipeline, &set, &order, 23, draw(6, 2)), whole);
    }
}

#[test]
fn alternating_flips_show_each_image_mirrored_in_every_other_epoch() {
    let images = set(40, 8);
    let order: Vec<i64> = (0..40).collect();
    let crop = RandomResizedCrop {
        scale: [1.0, 1.0],
        ratio: [1.0, 1.0],
        interpolation: TrainInterpolation::Bilinear,
    };
    // RandomResizedCrop mirrors by itself.
    for resized_crop in [None, Some(crop)] {
        let plain = pipeline(8, AugmentRecipe { resized_crop, ..AugmentRecipe::default() });
        let alternating = pipeline(
            8,
            AugmentRecipe { hflip: 0.5, hflip_alternates: true, resized_crop, ..AugmentRecipe::default() },
        );
        let upright = epoch(&plain, &images, &order, 40, draw(3, 1));
        let mirrored = upright.flip([3]);
        let flips = |seed, number, batch_size| -> Vec<bool> {
            let shown = epoch(&alternating, &images, &order, batch_size, draw(seed, number));
            let is_flipped = |image| {
                let [shown, upright, mirrored] = [&shown, &upright, &mirrored].map(|all| all.get(image));
                assert!(shown == upright || shown == mirrored, "image {image}");
                shown == mirrored
            };
            (0..40).map(is_flipped).collect()
        };
        let first = flips(3, 1, 40);
        let count = first.iter().filter(|flipped| **flipped).count();
        // 20 with a standard deviation of 3.2.
        assert!((10..=30).contains(&count), "{count}");
        let opposite: Vec<bool> = first.iter().map(|flipped| !flipped).collect();
        for number in 2..6 {
            assert_eq!(flips(3, number, 7), if number % 2 == 0 { opposite.clone() } else { first.clone() });
        }
        assert_ne!(flips(4, 1, 40), first);
    }
}

#[test]
fn batches_are_the_same_whether_augmented_one_by_one_or_several_at_once() {
    let everything = pipeline(32, everything());
    let per_batch = pipeline(32, enlarged(34, CropOffset::Batch));
    let small = set(300, 16);
    let order = crate::rng::permutation(3, 1, 10..290);
    for pipeline in [everything, per_batch] {
        let expected = epoch(&pipeline, &small, &order, 96, draw(3, 1));
        let batches = pipeline.epoch(&small, &order, 96, draw(3, 1), 0).unwrap();
        assert_eq!(batches.len(), 3);
        let batches: Vec<Augmented> = batches.collect::<Result<_, _>>().unwrap();
        assert_eq!(batches.iter().map(|b| b.indices.len()).collect::<Vec<_>>(), [96, 96, 88]);
        assert_eq!(batches.iter().map(|b| b.number).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(batches.iter().flat_map(|b| b.indices.clone()).collect::<Vec<_>>(), order);
        let labels: Vec<i64> =
            batches.iter().flat_map(|b| Vec::<i64>::try_from(&b.labels).unwrap()).collect();
        assert_eq!(labels, order.iter().map(|index| index % 10).collect::<Vec<_>>());
        let found = Tensor::cat(&batches.into_iter().map(|b| b.images).collect::<Vec<_>>(), 0);
        // Products of matrices of other batches may round the last bit otherwise: one level in few values.
        let difference = (found - expected).abs();
        assert!(difference.max().double_value(&[]) <= 3.0 / 255.0);
        assert!(difference.gt(1e-6).to_kind(Kind::Float).mean(Kind::Float).double_value(&[]) < 1e-4);
    }
    assert!(pipeline(32, AugmentRecipe::default()).epoch(&small, &[0], 0, draw(1, 1), 0).is_err());
}

#[test]
fn an_epoch_that_starts_later_has_the_same_batches_to_the_last_bit() {
    let per_batch = enlarged(34, CropOffset::Batch);
    // 1,024 images of 32×32 are augmented at once: ten batches of 96.
    let images = set(1_300, 16);
    let order = crate::rng::permutation(3, 1, 0..1_300);
    for augment in [everything(), per_batch] {
        let pipeline = pipeline(32, augment);
        let from = |first| pipeline.epoch(&images, &order, 96, draw(3, 1), first).unwrap();
        let whole: Vec<Augmented> = from(0).map(Result::unwrap).collect();
        for first in [1, 9, 10, 11, 13] {
            assert_eq!(from(first).len(), 14 - first);
            for (found, expected) in from(first).map(Result::unwrap).zip(&whole[first..]) {
                assert_eq!((found.number, &found.indices), (expected.number, &expected.indices));
                assert_eq!(
                    (found.images, found.labels),
                    (expected.images.shallow_clone(), expected.labels.shallow_clone())
                );
            }
        }
        assert_eq!([14, 15, usize::MAX].map(|first| from(first).count()), [0; 3]);
    }
}

#[test]
fn repetitions_of_an_image_differ_and_the_first_is_what_it_is_without_them() {
    let set = set(2, 12);
    let pipeline = pipeline(12, everything());
    let thrice = Draw { repeats: 3, ..draw(1, 1) };
    let shown = epoch(&pipeline, &set, &[1, 1, 1, 0, 0, 0], 4, thrice);
    let once = epoch(&pipeline, &set, &[1, 0], 2, draw(1, 1));
    assert_eq!((shown.get(0), shown.get(3)), (once.get(0), once.get(1)));
    assert!(shown.get(0) != shown.get(1) && shown.get(1) != shown.get(2) && shown.get(0) != shown.get(2));
}

/// The batch's place is drawn once: all images lose the same border.
#[test]
fn a_batch_is_cropped_at_one_place_and_every_place_is_drawn() {
    let bytes = Tensor::arange(36, (Kind::Uint8, Device::Cpu)).view([1, 1, 6, 6]).repeat([3, 3, 1, 1]);
    let pipeline = pipeline(4, enlarged(6, CropOffset::Batch));
    let mut places = std::collections::BTreeSet::new();
    for number in 0..100 {
        let (images, labels) = (bytes.shallow_clone(), Tensor::zeros([3], (Kind::Int64, Device::Cpu)));
        let batch = Batch { images, labels, indices: vec![0, 1, 2], positions: vec![0, 1, 2], number };
        let cut = pipeline.augmented(&batch, draw(1, 1)).unwrap();
        assert_eq!(cut.size(), [3, 3, 4, 4]);
        assert_eq!(cut.get(0), cut.get(2));
        places.insert((cut.double_value(&[0, 0, 0, 0]) * 255.0).round() as i64);
    }
    assert_eq!(places.into_iter().collect::<Vec<_>>(), [0, 1, 2, 6, 7, 8, 12, 13, 14]);
}

/// Computed from the ChaCha8 and FNV-1a definitions by a separate program.
#[test]
fn where_a_batch_is_cropped_never_changes() {
    let rows =
        Tensor::arange(52, (Kind::Uint8, Device::Cpu)).view([1, 1, 52, 1]).expand([1, 1, 52, 52], false);
    let bytes = Tensor::cat(&[&rows, &rows.transpose(2, 3), &rows], 1).contiguous();
    let pipeline = pipeline(48, enlarged(52, CropOffset::Batch));
    for (number, (top, left)) in (0..).zip([(0, 2), (1, 2), (2, 4), (2, 4)]) {
        let (images, labels) = (bytes.shallow_clone(), Tensor::zeros([1], (Kind::Int64, Device::Cpu)));
        let batch = Batch { images, labels, indices: vec![0], positions: vec![0], number };
        let cut = pipeline.augmented(&batch, draw(42, 3)).unwrap() * 255.0;
        let corner = [0, 1].map(|channel| cut.double_value(&[0, channel, 0, 0]).round() as i64);
        assert_eq!(corner, [top, left], "batch {number}");
    }
}

#[test]
fn evaluation_shows_the_middle_as_timm_does() {
    let bytes = set(3, 16).batches(&[0, 1, 2], 3).unwrap().next().unwrap().unwrap().images;
    let mut pipeline = pipeline(12, AugmentRecipe::default());
    let keras = pipeline.plain(&bytes).unwrap();
    assert_eq!(keras, resize(&(bytes.to_kind(Kind::Float) / 255.0), 12).unwrap());
    // 12/0.75 is 16: no resizing, and two pixels fall away on each side.
    pipeline.resize = Some(Resize { interpolation: Interpolation::Bicubic, crop_pct: 0.75 });
    let middle = bytes.narrow(2, 2, 12).narrow(3, 2, 12).to_kind(Kind::Float) / 255.0;
    assert_eq!(pipeline.plain(&bytes).unwrap(), middle);
    pipeline.resize = Some(Resize { interpolation: Interpolation::Bicubic, crop_pct: 1.0 });
    let shrunk = pil_resize(&bytes, Interpolation::Bicubic.into(), (12, 12)).unwrap();
    assert_eq!(pipeline.plain(&bytes).unwrap(), shrunk.to_kind(Kind::Float) / 255.0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Without noise, whatever is drawn stays within the range of bytes.
    #[test]
    fn images_stay_in_range(seed in any::<u64>(), side in 1usize..20, size in 1i64..20, number in 0usize..3, cut in 0..4) {
        let name = ["rand-m9-mstd0.5-inc1", "torchvision-n2-m12", "cifar10"][number];
        let offset = if seed % 2 == 0 { CropOffset::Image } else { CropOffset::Batch };
        let augment = AugmentRecipe {
            padding: (cut == 1).then_some(3),
            enlarged_crop: (cut == 2).then_some(EnlargedCrop { from: size + 3, offset }),
            resized_crop: everything().resized_crop.filter(|_| cut == 3),
            policy: policy(name, seed % 3 == 0),
            erasing: Some(RandomErasing { prob: 0.5, mode: EraseMode::Const, count: 1 }),
            ..everything()
        };
        let resize = (seed % 5 < 2).then_some(Resize { interpolation: Interpolation::Bilinear, crop_pct: 1.0 });
        let pipeline = Pipeline { resize, ..pipeline(size, augment) };
        let shown = epoch(&pipeline, &set(9, side), &[3, 1, 4, 5, 8], 3, draw(seed, 1));
        prop_assert_eq!(shown.size(), [5, 3, size, size]);
        let (low, high) = (shown.min().double_value(&[]), shown.max().double_value(&[]));
        // Bilinear weights add up to one only to the last bits.
        prop_assert!((0.0..=1.000_001).contains(&low) && high <= 1.000_001, "{low} {high}");
        prop_assert_eq!(shown.isnan().any().int64_value(&[]), 0);
    }
}
