//! Images per second of the training pipelines without a network.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use data_cifar::{Augmentation, DeviceSet, Labelled, Normalizer, channel_stats, permutation, resize};
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
    let mut group = c.benchmark_group("one epoch of 3x32x32, batch 128");
    group.throughput(Throughput::Elements(IMAGES as u64));
    let flip = Augmentation { flip: true, ..Augmentation::default() };
    let turn = Augmentation { rotation_degrees: Some(7.2), zoom: Some(0.2), ..flip };
    for (name, size, augmentation) in [
        ("flip", 32, flip),
        ("resize to 52, crop 48, flip", 52, Augmentation { crop: Some(48), ..flip }),
        ("resize to 72, flip, rotate, zoom", 72, turn),
    ] {
        let mut number = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                number += 1;
                let order = permutation(1, number, 0..IMAGES);
                let draws = augmentation.draw(1, number, &order, device).expect("the device is there");
                let batches = set.batches(&order, BATCH).expect("the order is the set's");
                for (step, batch) in batches.enumerate() {
                    let batch = batch.expect("the indices are in range");
                    let images = normalizer.apply(&batch.images).expect("the images are bytes");
                    let images = resize(&images, size).expect("the size is positive");
                    let images = draws.apply(&images, step as u64, batch.start);
                    let _ = black_box(images.expect("the batch is the order's"));
                }
                if let Device::Cuda(index) = device {
                    tch::Cuda::synchronize(index as i64);
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, epoch);
criterion_main!(benches);
