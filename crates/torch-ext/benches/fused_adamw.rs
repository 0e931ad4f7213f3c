//! A step of AdamW on the parameters of a small network: libtorch's C++ optimiser, as tch offers it, and the fused one.

use criterion::{Criterion, criterion_group, criterion_main};
use tch::nn::{self, OptimizerConfig};
use tch::{Device, Kind, Tensor};
use torch_ext::{Adam, fused_adamw_, test_devices};

/// 100 weights and 100 vectors, 1.4 million values.
fn shapes() -> impl Iterator<Item = Vec<i64>> {
    (0..100).flat_map(|_| [vec![116, 120], vec![120]])
}

fn step(c: &mut Criterion) {
    let device = test_devices().pop().unwrap_or(Device::Cpu);
    let wait = || {
        if let Device::Cuda(index) = device {
            tch::Cuda::synchronize(index as i64);
        }
    };
    let mut group = c.benchmark_group("AdamW, 200 tensors, 1.4 M values");

    let vs = nn::VarStore::new(device);
    let init = nn::Init::Randn { mean: 0.0, stdev: 0.1 };
    let vars: Vec<Tensor> =
        shapes().enumerate().map(|(i, shape)| vs.root().var(&i.to_string(), &shape, init)).collect();
    let mut optimizer = nn::AdamW::default().build(&vs, 1e-3).expect("the store has parameters");
    for var in &vars {
        (var * var).sum(Kind::Float).backward();
    }
    group.bench_function("tch", |b| {
        b.iter(|| {
            optimizer.step();
            wait();
        })
    });

    let random =
        || -> Vec<Tensor> { shapes().map(|s| Tensor::randn(s, (Kind::Float, device)) * 0.1).collect() };
    let zeros = || -> Vec<Tensor> { shapes().map(|s| Tensor::zeros(s, (Kind::Float, device))).collect() };
    let (mut params, grads) = (random(), random());
    let adam = Adam { weight_decay: 0.01, ..Adam::default() };
    for (name, count) in [("fused, a step count for each", params.len()), ("fused, one step count", 1)] {
        let (mut exp_avgs, mut exp_avg_sqs) = (zeros(), zeros());
        let mut steps: Vec<_> = (0..count).map(|_| Tensor::zeros([], (Kind::Float, device))).collect();
        group.bench_function(name, |b| {
            b.iter(|| {
                fused_adamw_(&mut params, &grads, &mut exp_avgs, &mut exp_avg_sqs, &mut steps, &adam)
                    .expect("the tensors fit each other");
                wait();
            })
        });
    }
    group.finish();
}

criterion_group!(benches, step);
criterion_main!(benches);
