//! Images per second of the training pipelines without a network.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use data_cifar::{
    Augmentation, ChannelStats, ColorJitter, Cut, Draw, EraseMode, ImageSet, Interpolation, Labelled, Mix,
    MixMode, Normalizer, Pipeline, Policy, RandomErasing, RandomResizedCrop, mix, permutation,
};
use ndarray::{ArcArray, Array1};
use tch::Device;
use torch_ext::test_devices;

// As in the trainer; the C library's allocator gives large blocks back to the kernel after every operation.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const IMAGES: usize = 10_240;
const BATCH: usize = 128;

/// Images of smooth and noisy parts, so that no operation has nothing to do.
fn images() -> Labelled {
    let pixel = |(n, c, y, x): (usize, usize, usize, usize)| {
        let smooth = n * 31 + c * 7 + y * 5 + x * 3;
        if (n + y) % 4 == 0 { (smooth.wrapping_mul(2_654_435_761) >> 9) as u8 } else { (smooth % 251) as u8 }
    };
    Labelled {
        images: ArcArray::from_shape_fn((IMAGES, 3, 32, 32), pixel),
        labels: Array1::from_shape_fn(IMAGES, |n| (n % 10) as u16),
    }
}

fn policy(text: &str) -> Option<Policy> {
    Some(Policy::parse(text).expect("it is a policy"))
}

fn resized(scale: (f64, f64), interpolation: Interpolation) -> Option<Cut> {
    Some(Cut::Resized(RandomResizedCrop { scale, ratio: (0.75, 4.0 / 3.0), interpolation }))
}

fn epochs(c: &mut Criterion) {
    let device = test_devices().pop().unwrap_or(Device::Cpu);
    let set = ImageSet::new(&images(), device).expect("the set fits the device");
    let flip = Augmentation { hflip: 0.5, ..Augmentation::default() };
    let enlarged = Some(Cut::Enlarged { from: 52, per_image: false });
    let timm_mix = Mix {
        mixup: 0.8,
        cutmix: 1.0,
        cutmix_minmax: None,
        mixup_prob: 1.0,
        mixup_switch_prob: 0.5,
        mode: MixMode::Batch,
    };
    let cct = Augmentation {
        cut: resized((0.8, 1.0), Interpolation::Random),
        policy: policy("rand-m9-mstd0.5-inc1"),
        ..flip.clone()
    };
    let pipelines = [
        ("tutorials: flip", 32, flip.clone(), None),
        (
            "PatchConvNet tutorial: resize to 52, crop 48, flip",
            48,
            Augmentation { cut: enlarged, ..flip.clone() },
            None,
        ),
        (
            "ViT tutorial: resize to 72, flip, rotate, zoom",
            72,
            Augmentation { rotation_degrees: Some(7.2), zoom: Some(0.2), ..flip.clone() },
            None,
        ),
        ("CCT paper: RandomResizedCrop, flip, RandAugment, mixup/CutMix", 32, cct.clone(), Some(timm_mix)),
        (
            "CCT paper, 1500 epochs: the same and random erasing",
            32,
            Augmentation { erasing: Some(RandomErasing::timm(0.25, EraseMode::Pixel, 1)), ..cct },
            Some(timm_mix),
        ),
        (
            "CCT script: AutoAugment, padded crop, flip",
            32,
            Augmentation {
                cut: Some(Cut::Padded(4)),
                policy: policy("cifar10"),
                policy_first: true,
                ..flip.clone()
            },
            None,
        ),
        (
            "ConvMixer script: RandomResizedCrop, flip, torchvision's RandAugment, jitter, erasing",
            32,
            Augmentation {
                cut: resized((0.75, 1.0), Interpolation::Bilinear),
                policy: policy("torchvision-n2-m12"),
                color_jitter: Some(ColorJitter::new(0.2, 0.2, 0.2, 0.0).expect("the strengths are in range")),
                erasing: Some(RandomErasing::torchvision(0.2)),
                ..flip
            },
            None,
        ),
    ];
    let mut group = c.benchmark_group("one epoch of 3x32x32, batch 128");
    group.throughput(Throughput::Elements(IMAGES as u64)).sample_size(10);
    for (name, image_size, augmentation, mixing) in pipelines {
        let stats = ChannelStats::from_unit_scale([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]);
        let normalizer = Normalizer::new(&stats, device).expect("the statistics are numbers");
        let pipeline = Pipeline {
            normalizer,
            image_size,
            interpolation: None,
            crop_pct: 1.0,
            augmentation,
            fill: [125, 123, 114],
        };
        let mut epoch = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                epoch += 1;
                let order = permutation(1, epoch, 0..IMAGES);
                let draw = Draw { seed: 1, epoch, repeats: 1 };
                for batch in pipeline.epoch(&set, &order, BATCH, draw, 0).expect("the order is the set's") {
                    let batch = batch.expect("the indices are in range");
                    if let Some(timm) = &mixing {
                        let side = (image_size, image_size);
                        let mixings = timm.draw(1, epoch, batch.number, &batch.indices, side);
                        let mixed = mix(&batch.images, &batch.labels, &mixings, 10, 0.1);
                        let _ = black_box(mixed.expect("the mixings are the batch's"));
                    }
                    black_box(&batch.images);
                }
                if let Device::Cuda(index) = device {
                    tch::Cuda::synchronize(index as i64);
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, epochs);
criterion_main!(benches);
