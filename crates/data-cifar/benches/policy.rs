//! Images per second for which a policy draws operations, on one core.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use data_cifar::{draw_jitter, draw_ops, keyed_rng};
use run_record::{ColorJitter, Policy};

const IMAGES: u64 = 10_000;

fn policies(c: &mut Criterion) {
    let mut group = c.benchmark_group("policies");
    group.throughput(Throughput::Elements(IMAGES));
    for text in ["rand-m9-mstd0.5-inc1", "torchvision-n2-m12", "cifar10"] {
        let policy = Policy::parse(text).expect("the text is a policy's");
        let mut rng = keyed_rng(1, "policy", 0, 0);
        group.bench_function(text, |b| {
            b.iter(|| {
                for _ in 0..IMAGES {
                    draw_ops(&policy, &mut rng, 32, 32, [125, 123, 114]).for_each(|op| {
                        black_box(op);
                    });
                }
            });
        });
        group.bench_function(format!("{text}, with a key for each image"), |b| {
            b.iter(|| {
                for image in 0..IMAGES {
                    let mut rng = keyed_rng(1, "policy", 0, image);
                    draw_ops(&policy, &mut rng, 32, 32, [125, 123, 114]).for_each(|op| {
                        black_box(op);
                    });
                }
            });
        });
    }
    let jitter = ColorJitter { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 };
    let mut rng = keyed_rng(1, "jitter", 0, 0);
    group.bench_function("colour jitter", |b| {
        b.iter(|| {
            for _ in 0..IMAGES {
                black_box(draw_jitter(&jitter, &mut rng));
            }
        });
    });
    group.finish();
}

criterion_group!(benches, policies);
criterion_main!(benches);
