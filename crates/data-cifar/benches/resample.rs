//! Images per second of crops, erasing and mixing, drawing included, in batches of 128 images of 3x32x32.

use std::hint::black_box;

use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use data_cifar::{
    CropBox, Erasure, Filter, crop_offset, draw_crop, draw_erasure, draw_mixings, erase, keyed_rng, mix,
    pad_crop, pil_resize, resized_crop,
};
use run_record::{
    AugmentRecipe, Cutmix, EraseMode, MixMode, MixRecipe, Mixup, RandomErasing, RandomResizedCrop,
    TrainInterpolation,
};
use tch::{Device, Kind, Tensor};
use torch_ext::test_devices;

const BATCH: i64 = 128;
const SIDE: i64 = 32;

fn group<'c>(c: &'c mut Criterion, name: &str) -> BenchmarkGroup<'c, WallTime> {
    let mut group = c.benchmark_group(format!("{name}, 128 of 3x32x32"));
    group.throughput(Throughput::Elements(BATCH as u64));
    group
}

/// Runs `step` with the numbers of the steps, each to its end.
fn time(group: &mut BenchmarkGroup<WallTime>, name: &str, mut step: impl FnMut(u64) -> Tensor) {
    let mut number = 0;
    group.bench_function(name, |b| {
        b.iter(|| {
            number += 1;
            let result = black_box(step(number));
            if let Device::Cuda(index) = result.device() {
                tch::Cuda::synchronize(index as i64);
            }
        });
    });
}

fn crops(c: &mut Criterion) {
    let bytes = (Kind::Uint8, test_devices().pop().unwrap_or(Device::Cpu));
    let images = Tensor::randint(256, [BATCH, 3, SIDE, SIDE], bytes);
    let mut group = group(c, "crops");
    for (name, interpolation) in [
        ("resized_crop, bilinear", TrainInterpolation::Bilinear),
        ("resized_crop, bicubic", TrainInterpolation::Bicubic),
        ("resized_crop, random", TrainInterpolation::Random),
    ] {
        let draw = RandomResizedCrop { scale: [0.08, 1.0], ratio: [0.75, 4.0 / 3.0], interpolation };
        time(&mut group, name, |epoch| {
            let drawn =
                (0..BATCH as u64).map(|n| draw_crop(&draw, &mut keyed_rng(1, "crop", epoch, n), SIDE, SIDE));
            let (boxes, filters): (Vec<CropBox>, Vec<Filter>) = drawn.unzip();
            resized_crop(&images, &boxes, &filters, (SIDE, SIDE)).expect("the boxes lie in the images")
        });
    }
    time(&mut group, "pad_crop", |epoch| {
        let draw = |n| crop_offset(&mut keyed_rng(1, "crop", epoch, n), (8, 8));
        let offsets: Vec<(i64, i64)> = (0..BATCH as u64).map(draw).collect();
        pad_crop(&images, 4, &offsets).expect("the offsets are in range")
    });
    for (name, size) in [("pil_resize to 48", 48), ("pil_resize to 16", 16)] {
        time(&mut group, name, |_| {
            pil_resize(&images, Filter::Bicubic, (size, size)).expect("the size is positive")
        });
    }
    group.finish();
}

fn erasing(c: &mut Criterion) {
    let floats = (Kind::Float, test_devices().pop().unwrap_or(Device::Cpu));
    let images = Tensor::randn([BATCH, 3, SIDE, SIDE], floats);
    let mut group = group(c, "erasing");
    for (name, prob, mode) in [
        ("const, a quarter", 0.25, EraseMode::Const),
        ("rand, a quarter", 0.25, EraseMode::Rand),
        ("pixel, a quarter", 0.25, EraseMode::Pixel),
        ("pixel, all", 1.0, EraseMode::Pixel),
    ] {
        let erasing = RandomErasing { prob, mode, count: 1 };
        time(&mut group, name, |epoch| {
            let draw = |n| draw_erasure(&erasing, &mut keyed_rng(1, "erase", epoch, n), SIDE, SIDE);
            let erasures: Vec<Erasure> = (0..BATCH as u64).map(draw).collect();
            erase(&images, &erasures, mode).expect("the rectangles lie in the images")
        });
    }
    group.finish();
}

fn mixing(c: &mut Criterion) {
    let device = test_devices().pop().unwrap_or(Device::Cpu);
    let images = Tensor::randn([BATCH, 3, SIDE, SIDE], (Kind::Float, device));
    let labels = Tensor::randint(100, [BATCH], (Kind::Int64, device));
    let indices: Vec<i64> = (0..BATCH).collect();
    let mut group = group(c, "mixing");
    for (name, mixup, cutmix, mode) in [
        ("mixup, batch", Some(0.8), None, MixMode::Batch),
        ("cutmix, batch", None, Some(1.0), MixMode::Batch),
        ("both, batch", Some(0.8), Some(1.0), MixMode::Batch),
        ("both, elem", Some(0.8), Some(1.0), MixMode::Elem),
    ] {
        let draw = AugmentRecipe {
            mixup: mixup.map(|alpha| Mixup { alpha }),
            cutmix: cutmix.map(Cutmix::Alpha),
            mix: Some(MixRecipe { mode, ..MixRecipe::default() }),
            ..AugmentRecipe::default()
        };
        time(&mut group, name, |epoch| {
            let mixings = draw_mixings(&draw, 1, epoch, 0, &indices, (SIDE, SIDE));
            mix(&images, &labels, &mixings, 100, 0.1).expect("the shapes fit").0
        });
    }
    group.finish();
}

criterion_group!(benches, crops, erasing, mixing);
criterion_main!(benches);
