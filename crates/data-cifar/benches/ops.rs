//! Images per second of PIL's operations: RandAugment's mixture, and each kind alone.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use data_cifar::{Filter, Op, apply_ops, keyed_rng};
use rand_chacha::rand_core::Rng;
use tch::{Device, Kind, Tensor};
use torch_ext::test_devices;

const BATCH: usize = 128;
const SIDE: i64 = 32;

/// A number on [0, 1).
fn unit(rng: &mut impl Rng) -> f64 {
    f64::from(rng.next_u32()) / 2f64.powi(32)
}

/// One of timm's 15 kinds for RandAugment, or nothing with probability one half.
fn drawn(rng: &mut impl Rng) -> Option<Op> {
    let kind = (unit(rng) * 15.0) as usize;
    let filter = if unit(rng) < 0.5 { Filter::Bilinear } else { Filter::Bicubic };
    let amount = unit(rng) * 2.0 - 1.0;
    (unit(rng) < 0.5).then(|| operation(kind, amount, filter))
}

fn operation(kind: usize, amount: f64, filter: Filter) -> Op {
    let (fill, pixels) = ([125, 123, 114], amount * 0.45 * SIDE as f64);
    let (strength, factor) = (amount.abs(), (1.0 + 0.9 * amount) as f32);
    match kind {
        0 => Op::AutoContrast,
        1 => Op::Equalize,
        2 => Op::Invert,
        3 => Op::Posterize { bits: (4.0 * strength) as u8 },
        4 => Op::Solarize { threshold: (256.0 * strength) as f32 },
        5 => Op::SolarizeAdd { add: (110.0 * strength) as u8 },
        6 => Op::Brightness { factor },
        7 => Op::Contrast { factor },
        8 => Op::Color { factor },
        9 => Op::Sharpness { factor },
        10 => Op::rotate(30.0 * amount, SIDE, SIDE, filter, fill),
        11 => Op::shear_x(0.3 * amount, filter, fill),
        12 => Op::shear_y(0.3 * amount, filter, fill),
        13 => Op::translate_x(pixels, filter, fill),
        14 => Op::translate_y(pixels, filter, fill),
        _ => Op::Hue { shift: (amount * 100.0) as u8 },
    }
}

fn benches(c: &mut Criterion) {
    let device = test_devices().pop().unwrap_or(Device::Cpu);
    let images = Tensor::f_randint(256, [BATCH as i64, 3, SIDE, SIDE], (Kind::Uint8, device));
    let images = images.expect("the device is there");
    let mut rng = keyed_rng(1, "benchmark", 0, 0);
    let mut group = c.benchmark_group("128 images of 3x32x32");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("two layers of RandAugment", |b| {
        let draw = || [(); 2].map(|()| (0..BATCH).map(|_| drawn(&mut rng)).collect::<Vec<_>>());
        b.iter_batched(
            draw,
            |layers| {
                for ops in &layers {
                    let _ = black_box(apply_ops(&images, ops).expect("the operations are in their ranges"));
                }
                synchronize(device);
            },
            BatchSize::SmallInput,
        );
    });
    let kinds = [
        "AutoContrast",
        "Equalize",
        "Invert",
        "Contrast",
        "Color",
        "Sharpness",
        "Rotate",
        "ShearX",
        "ShearY",
        "Hue",
    ];
    for (name, kind) in kinds.into_iter().zip([0, 1, 2, 7, 8, 9, 10, 11, 12, 15]) {
        let ops: Vec<Option<Op>> = (0..BATCH)
            .map(|image| Some(operation(kind, image as f64 / 64.0 - 1.0, Filter::Bicubic)))
            .collect();
        group.bench_function(name, |b| {
            b.iter(|| {
                let _ = black_box(apply_ops(&images, &ops).expect("the operations are in their ranges"));
                synchronize(device);
            });
        });
    }
    group.finish();
}

fn synchronize(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

criterion_group!(ops, benches);
criterion_main!(ops);
