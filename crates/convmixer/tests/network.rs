//! Properties every built network has: names, counts, initial ranges, independence of neighbours.

use std::collections::BTreeMap;

use convmixer::ConvMixerConfig;
use core_layers::{Init, InitScheme, Model};
use tch::{Device, Kind, Tensor, nn};

fn small(init: InitScheme) -> ConvMixerConfig {
    ConvMixerConfig { embed_dim: 16, depth: 2, init, ..ConvMixerConfig::reference() }
}

#[test]
fn tensors_have_timms_names_and_shapes() {
    let vs = nn::VarStore::new(Device::Cpu);
    let config = ConvMixerConfig { depth: 1, ..small(InitScheme::Torch) };
    config.init(&vs.root()).expect("the configuration is valid");
    let shapes: BTreeMap<String, Vec<i64>> =
        vs.variables().into_iter().map(|(name, tensor)| (name, tensor.size())).collect();
    let mut want: BTreeMap<String, Vec<i64>> = [
        ("stem.0.weight", vec![16, 3, 2, 2]),
        ("blocks.0.0.fn.0.weight", vec![16, 1, 5, 5]),
        ("blocks.0.1.weight", vec![16, 16, 1, 1]),
        ("head.weight", vec![10, 16]),
        ("head.bias", vec![10]),
    ]
    .map(|(name, shape)| (name.to_owned(), shape))
    .into();
    for layer in ["stem.0", "blocks.0.0.fn.0", "blocks.0.1"] {
        want.insert(format!("{layer}.bias"), vec![16]);
    }
    for layer in ["stem.2", "blocks.0.0.fn.2", "blocks.0.3"] {
        for last in ["weight", "bias", "running_mean", "running_var"] {
            want.insert(format!("{layer}.{last}"), vec![16]);
        }
    }
    assert_eq!(shapes, want);
}

#[test]
fn the_counted_parameters_are_the_built_ones() {
    for variant in ConvMixerConfig::VARIANTS {
        let config = (variant.config)();
        if config.param_count() > 10_000_000 {
            continue;
        }
        let vs = nn::VarStore::new(Device::Cpu);
        config.init(&vs.root()).expect("named variants are valid");
        let built: usize = vs.trainable_variables().iter().map(Tensor::numel).sum();
        assert_eq!(built as u64, config.param_count(), "{}", variant.name);
    }
}

#[test]
fn initial_ranges_are_those_of_the_tutorial() {
    let vs = nn::VarStore::new(Device::Cpu);
    tch::manual_seed(0);
    ConvMixerConfig::reference().init(&vs.root()).expect("the configuration is valid");
    let variables = vs.variables();
    let largest = |name: &str| variables[name].abs().max().double_value(&[]);
    for (name, limit) in [
        ("stem.0.weight", 0.07610),
        ("blocks.3.0.fn.0.weight", 0.03056),
        ("blocks.3.1.weight", 0.10825),
        ("head.weight", 0.15019),
    ] {
        let got = largest(name);
        assert!(got <= limit + 6e-6 && got > 0.98 * limit, "{name}: {got} {limit}");
    }
    assert_eq!(largest("stem.0.bias"), 0.0);
    assert_eq!(variables["stem.2.weight"].mean(Kind::Double).double_value(&[]), 1.0);
}

#[test]
fn the_family_starts_as_pytorch_does() {
    let vs = nn::VarStore::new(Device::Cpu);
    tch::manual_seed(0);
    ConvMixerConfig::cifar(256, 1, 5, 2).init(&vs.root()).expect("the configuration is valid");
    let variables = vs.variables();
    for (name, fan_in) in [
        ("stem.0.weight", 12),
        ("blocks.0.0.fn.0.weight", 25),
        ("blocks.0.0.fn.0.bias", 25),
        ("blocks.0.1.bias", 256),
    ] {
        let bound = Init::TorchDefault { fan_in }.bound();
        let got = variables[name].abs().max().double_value(&[]);
        assert!(got <= bound + 1e-6 && got > 0.95 * bound, "{name}: {got} {bound}");
    }
}

#[test]
fn an_images_logits_do_not_depend_on_its_neighbours() {
    let vs = nn::VarStore::new(Device::Cpu);
    tch::manual_seed(1);
    let network = small(InitScheme::Torch).init(&vs.root()).expect("the configuration is valid");
    let images = Tensor::rand([3, 3, 32, 32], (Kind::Float, Device::Cpu));
    let difference = test_support::batch_dependence(&network, &images);
    assert!(difference < 1e-5, "{difference}");
}

#[test]
fn every_trainable_tensor_gets_a_gradient() {
    let vs = nn::VarStore::new(Device::Cpu);
    tch::manual_seed(2);
    let network = small(InitScheme::Glorot).init(&vs.root()).expect("the configuration is valid");
    let images = Tensor::rand([4, 3, 32, 32], (Kind::Float, Device::Cpu));
    assert_eq!(test_support::without_gradient(&vs, &network, &images), [""; 0]);
}

#[test]
fn other_image_sizes_work_without_rebuilding() {
    let vs = nn::VarStore::new(Device::Cpu);
    let network = small(InitScheme::Torch).init(&vs.root()).expect("the configuration is valid");
    for side in [2, 7, 48] {
        let images = Tensor::zeros([1, 3, side, side + 2], (Kind::Float, Device::Cpu));
        assert_eq!(network.forward_t(&images, false).size(), [1, 10]);
    }
}

#[test]
fn every_tensor_has_its_layer() {
    for variant in ConvMixerConfig::VARIANTS {
        let narrow = ConvMixerConfig { embed_dim: 8, ..(variant.config)() };
        test_support::check_layers(&narrow, narrow.depth, &["stem"], &["head"], &[]);
    }
}
