//! Images per second of the training pipelines without a network.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use data_cifar::{
    ChannelStats, Draw, ImageSet, Labelled, Normalizer, Pipeline, draw_mixings, mix, permutation,
};
use ndarray::{ArcArray, Array1};
use run_record::{
    AugmentRecipe, ColorJitter, CropOffset, Cutmix, EnlargedCrop, EraseMode, Mixup, Policy, PolicyRecipe,
    RandomErasing, RandomResizedCrop, TrainInterpolation,
};
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

fn policy(text: &str, first: bool) -> Option<PolicyRecipe> {
    Some(PolicyRecipe { name: Policy::parse(text).expect("it is a policy"), first })
}

fn resized(scale: [f64; 2], interpolation: TrainInterpolation) -> Option<RandomResizedCrop> {
    Some(RandomResizedCrop { scale, ratio: [0.75, 4.0 / 3.0], interpolation })
}

fn epochs(c: &mut Criterion) {
    let device = test_devices().pop().unwrap_or(Device::Cpu);
    let set = ImageSet::new(&images(), device).expect("the set fits the device");
    let flip = AugmentRecipe { hflip: 0.5, ..AugmentRecipe::default() };
    let enlarged_crop = Some(EnlargedCrop { from: 52, offset: CropOffset::Batch });
    let cct = AugmentRecipe {
        resized_crop: resized([0.8, 1.0], TrainInterpolation::Random),
        policy: policy("rand-m9-mstd0.5-inc1", false),
        mixup: Some(Mixup { alpha: 0.8 }),
        cutmix: Some(Cutmix::Alpha(1.0)),
        ..flip.clone()
    };
    let pipelines = [
        ("tutorials: flip", 32, flip.clone()),
        (
            "PatchConvNet tutorial: resize to 52, crop 48, flip",
            48,
            AugmentRecipe { enlarged_crop, ..flip.clone() },
        ),
        (
            "ViT tutorial: resize to 72, flip, rotate, zoom",
            72,
            AugmentRecipe { rotation_degrees: Some(7.2), zoom: Some(0.2), ..flip.clone() },
        ),
        ("CCT paper: RandomResizedCrop, flip, RandAugment, mixup/CutMix", 32, cct.clone()),
        (
            "CCT paper, 1500 epochs: the same and random erasing",
            32,
            AugmentRecipe {
                erasing: Some(RandomErasing { prob: 0.25, mode: EraseMode::Pixel, count: 1 }),
                ..cct
            },
        ),
        (
            "CCT script: AutoAugment, padded crop, flip",
            32,
            AugmentRecipe { padding: Some(4), policy: policy("cifar10", true), ..flip.clone() },
        ),
        (
            "ConvMixer script: RandomResizedCrop, flip, torchvision's RandAugment, jitter, erasing",
            32,
            AugmentRecipe {
                resized_crop: resized([0.75, 1.0], TrainInterpolation::Bilinear),
                policy: policy("torchvision-n2-m12", false),
                color_jitter: Some(ColorJitter { brightness: 0.2, contrast: 0.2, saturation: 0.2, hue: 0.0 }),
                erasing: Some(RandomErasing { prob: 0.2, mode: EraseMode::Const, count: 1 }),
                ..flip
            },
        ),
    ];
    let mut group = c.benchmark_group("one epoch of 3x32x32, batch 128");
    group.throughput(Throughput::Elements(IMAGES as u64)).sample_size(10);
    for (name, image_size, augment) in pipelines {
        let stats = ChannelStats::from_unit_scale([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]);
        let normalizer = Normalizer::new(&stats, device).expect("the statistics are numbers");
        let pipeline = Pipeline { normalizer, image_size, resize: None, augment, fill: [125, 123, 114] };
        let mut epoch = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                epoch += 1;
                let order = permutation(1, epoch, 0..IMAGES);
                let draw = Draw { seed: 1, epoch, repeats: 1 };
                for batch in pipeline.epoch(&set, &order, BATCH, draw, 0).expect("the order is the set's") {
                    let batch = batch.expect("the indices are in range");
                    if pipeline.augment.mixes(epoch) {
                        let side = (image_size, image_size);
                        let mixings =
                            draw_mixings(&pipeline.augment, 1, epoch, batch.number, &batch.indices, side);
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
