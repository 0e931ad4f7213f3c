//! What must hold for every network in the registry: it runs on one image and on three, keeps images apart,
//! has a gradient for every tensor, survives saving and loading, and is as large as it is said to be.

use std::collections::BTreeMap;

use core_layers::{Model, trace};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};
use trainer::network::registry::{self, Architecture, FAMILIES};
use trainer::network::weights::{self, Head};

/// What a variant may cost to be checked every time; the others are checked on demand.
const PARAMETERS: u64 = 35_000_000;
const MACS: u64 = 5_000_000_000;

fn variants(small: bool) -> Vec<Architecture> {
    let all = registry::names().into_iter().map(|name| registry::find(name).expect("it is there"));
    all.filter(|v| (v.facts.params <= PARAMETERS && v.facts.macs <= MACS) == small).collect()
}

fn build(architecture: &Architecture) -> (VarStore, Box<dyn Model>) {
    let vs = VarStore::new(Device::Cpu);
    let network = architecture.init(&vs.root()).unwrap_or_else(|e| panic!("{}: {e}", architecture.model));
    (vs, network)
}

fn check(architecture: &Architecture) {
    let name = &architecture.model;
    let (vs, network) = build(architecture);
    let variables: BTreeMap<String, Tensor> = vs.variables().into_iter().collect();

    // tch renames a second tensor of one name instead of refusing it.
    let renamed: Vec<&String> = variables.keys().filter(|name| name.contains("__")).collect();
    assert!(renamed.is_empty(), "{name}: {renamed:?}");
    let built: usize = vs.trainable_variables().iter().map(Tensor::numel).sum();
    assert_eq!(built as u64, architecture.facts.params, "{name}: parameters");

    // One image, layer by layer: as much work as was said, and no tensor that no layer uses.
    let side = architecture.facts.image_size;
    let images = Tensor::rand([3, 3, side, side], (Kind::Float, Device::Cpu));
    let one = images.narrow(0, 0, 1);
    let (logits, steps) = trace::record(|| tch::no_grad(|| network.forward_t(&one, false)));
    assert_eq!(logits.size(), [1, architecture.facts.num_classes], "{name}: logits");
    assert_eq!(steps.iter().map(|step| step.macs).sum::<u64>(), architecture.facts.macs, "{name}: MACs");
    let used: Vec<_> = steps.iter().flat_map(|step| &step.tensors).map(Tensor::data_ptr).collect();
    let idle: Vec<_> = variables.iter().filter(|(_, t)| !used.contains(&t.data_ptr())).collect();
    assert!(idle.is_empty(), "{name}: no layer uses {idle:?}");

    // Three images: finite, and each as it is alone.
    let three = tch::no_grad(|| network.forward_t(&images, false));
    assert_eq!(three.size(), [3, architecture.facts.num_classes], "{name}: logits");
    assert_eq!(three.isfinite().all().int64_value(&[]), 1, "{name}: logits that are not finite");
    let scale = three.abs().max().double_value(&[]).max(1.0);
    let dependence = test_support::batch_dependence(network.as_ref(), &images);
    assert!(dependence < 1e-4 * scale, "{name}: an image's logits move by {dependence} with its neighbours");

    // A step on two images reaches everything that is trained.
    let idle = test_support::without_gradient(&vs, network.as_ref(), &images.narrow(0, 0, 2));
    assert_eq!(idle, [""; 0], "{name}: tensors without a gradient");

    // Saved and loaded into a second network, the logits are the same to the last bit.
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let file = directory.path().join("weights.safetensors");
    weights::save(&file, &variables).expect("the disk has room");
    let (copy, again) = build(architecture);
    let notes = weights::load(&copy, architecture, &file, Head::Same).expect("its own weights fit");
    assert_eq!(notes, [""; 0], "{name}");
    let (before, after) = tch::no_grad(|| (network.forward_t(&one, false), again.forward_t(&one, false)));
    assert_eq!(before, after, "{name}: other logits after saving and loading");
}

#[test]
fn every_variant_that_is_quick_to_build_does_what_it_says() {
    let variants = variants(true);
    assert!(variants.len() > 40, "only {} variants are small", variants.len());
    for family in FAMILIES {
        assert!(variants.iter().any(|v| v.facts.family == family.name()), "no small {}", family.name());
    }
    variants.iter().for_each(check);
}

/// `cargo test --release -p trainer --test zoo -- --ignored --nocapture`
#[test]
#[ignore = "takes twenty minutes on one core, and memory for four copies of 632 million parameters"]
fn every_large_variant_does_what_it_says() {
    for variant in variants(false) {
        println!("{}: {} parameters, {} MACs", variant.model, variant.facts.params, variant.facts.macs);
        check(&variant);
    }
}
