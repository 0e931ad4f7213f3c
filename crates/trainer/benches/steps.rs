//! A training step and the logits of each reference network, in a batch of 32, without the preparation of pictures.
//!
//! ```text
//! cargo bench -p trainer --bench steps
//! ```

use std::path::Path;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use data_cifar::Share;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};
use torch_ext::{Frozen, channels_last};
use trainer::data::presentation::Shown;
use trainer::network::build::{architecture, seed_initial_weights};
use trainer::optim::precision::Precision;
use trainer::run::fit::Stepper;
use trainer::run::recipes;
use trainer::run::state::State;

const BATCH: i64 = 32;

const MODELS: [&str; 5] =
    ["cct_reference", "convmixer_reference", "gcvit_xxtiny_64", "patchconvnet_reference", "vit_reference"];

fn steps(c: &mut Criterion) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let bf16 = torch_ext::supports_bf16(Device::Cpu).expect("libtorch knows this processor");
    for model in MODELS {
        let recipe =
            &recipes::from_preset(&root, "reference", model, &[]).expect("the recipe is valid").recipe;
        let architecture = architecture(recipe, Some(10)).expect("the network is valid");
        let vs = VarStore::new(Device::Cpu);
        seed_initial_weights(0);
        let network = architecture.init(&vs.root()).expect("there is memory for the network");
        let mut state = State::new(&vs, &architecture, recipe).expect("there is memory for the state");
        let side = architecture.facts.image_size;
        let images = Tensor::rand([BATCH, 3, side, side], (Kind::Float, Device::Cpu));
        let images = channels_last(&images).expect("there is memory for the images");
        let labels = Tensor::arange(BATCH, (Kind::Int64, Device::Cpu)).remainder(10);
        let batch = BATCH as usize;
        let slices = Share::alone(1).slices(batch);
        let shown =
            Shown { images, targets: labels.copy(), smoothing: 0.0, labels, slices, batch, number: 0 };

        let mut group = c.benchmark_group(model);
        group.sample_size(10);
        for precision in [Precision::F32, Precision::Bf16] {
            if precision == Precision::Bf16 && !bf16 {
                continue;
            }
            let name = precision.as_str();
            let mut stepper = Stepper::new(network.as_ref(), &recipe.train, precision, Device::Cpu)
                .expect("libtorch knows the processor");
            group.bench_function(format!("step, {name}"), |b| {
                b.iter(|| stepper.update(&mut state, &shown, 1e-4).expect("the shapes fit"));
            });
            let _frozen = Frozen::new().expect("there is memory");
            group.bench_function(format!("logits, {name}"), |b| {
                b.iter_batched(
                    || precision.autocast(Device::Cpu).expect("libtorch has mixed precision"),
                    |_narrow| tch::no_grad(|| network.forward_t(&shown.images, false)),
                    BatchSize::PerIteration,
                );
            });
        }
        group.finish();
    }
}

criterion_group!(benches, steps);
criterion_main!(benches);
