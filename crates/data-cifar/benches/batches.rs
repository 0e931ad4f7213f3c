//! Images per second of the training pipeline without a network: pick a batch, mirror, to floats, normalise.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use data_cifar::{DeviceSet, Labelled, Normalizer, channel_stats, flip_mask, permutation};
use ndarray::{Array1, Array4};
use tch::Device;

const IMAGES: usize = 10_240;
const BATCH: usize = 128;

fn epoch(c: &mut Criterion) {
    let data = Labelled {
        images: Array4::from_shape_fn((IMAGES, 3, 32, 32), |(n, c, y, x)| {
            (n * 31 + c * 7 + y * 5 + x * 3) as u8
        }),
        labels: Array1::from_shape_fn(IMAGES, |n| (n % 10) as u8),
    };
    let device = Device::cuda_if_available();
    let set = DeviceSet::new(&data, device).expect("the set fits the device");
    let stats = channel_stats(&data).expect("there are images");
    let normalizer = Normalizer::new(&stats, device).expect("the statistics are numbers");
    let mut group = c.benchmark_group("train pipeline, 3x32x32, batch 128");
    group.throughput(Throughput::Elements(IMAGES as u64));
    group.bench_function("one epoch", |b| {
        let mut number = 0;
        b.iter(|| {
            number += 1;
            let order = permutation(1, number, 0..IMAGES);
            let flips = flip_mask(1, number, &order);
            for batch in set.batches(&order, Some(&flips), BATCH).expect("the order is the set's") {
                let batch = batch.expect("the indices are in range");
                let _ = black_box(normalizer.apply(&batch.images).expect("the images are bytes"));
            }
            if let Device::Cuda(index) = device {
                tch::Cuda::synchronize(index as i64);
            }
        });
    });
    group.bench_function("order and flips alone", |b| {
        let mut number = 0;
        b.iter(|| {
            number += 1;
            let order = permutation(1, number, 0..IMAGES);
            black_box(flip_mask(1, number, &order));
        });
    });
    group.finish();
}

criterion_group!(benches, epoch);
criterion_main!(benches);
