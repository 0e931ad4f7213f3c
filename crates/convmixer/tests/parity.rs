//! Logits of deterministically filled networks against those of the published implementations.
//!
//! The expected numbers were made in f32 with Keras 3.15.1 (the reference configuration, confirmed
//! by a PyTorch 2.11 re-implementation to 2e-7 on probabilities) and with timm 1.0.28
//! (`convmixer_768_32`).

use convmixer::ConvMixerConfig;
use core_layers::{Model, grad_cam};
use tch::{Device, Kind, Tensor, nn};
use test_support::{Role, largest_difference};

/// Fills every tensor of `vs` by its name and role; `rename` gives the name the numbers are drawn
/// from.
fn fill(vs: &nn::VarStore, rename: impl Fn(&str) -> String) {
    for (name, mut tensor) in vs.variables() {
        let (path, last) = name.rsplit_once('.').expect("every tensor has a layer");
        let is_norm = vs.variables().contains_key(&format!("{path}.running_mean"));
        let role = match last {
            "weight" if is_norm => Role::Gain,
            "weight" => Role::Weight,
            "running_var" => Role::RunningVariance,
            _ => Role::Shift,
        };
        let values = test_support::tensor(&rename(&name), &tensor.size(), role);
        tch::no_grad(|| tensor.copy_(&values));
    }
}

/// The tutorial network's own names: `stem.*`, `stem_bn.*`, `b{i}.dw.*`, `b{i}.bn1.*`, `b{i}.pw.*`,
/// `b{i}.bn2.*`, `head.*`, with a norm's gain and shift called gamma and beta.
fn tutorial_name(name: &str) -> String {
    let norm = |layer: &str, last: &str| match last {
        "weight" => format!("{layer}.gamma"),
        "bias" => format!("{layer}.beta"),
        other => format!("{layer}.{other}"),
    };
    match name.split('.').collect::<Vec<_>>()[..] {
        ["stem", "0", last] => format!("stem.{last}"),
        ["stem", "2", last] => norm("stem_bn", last),
        ["blocks", i, "0", "fn", "0", last] => format!("b{i}.dw.{last}"),
        ["blocks", i, "0", "fn", "2", last] => norm(&format!("b{i}.bn1"), last),
        ["blocks", i, "1", last] => format!("b{i}.pw.{last}"),
        ["blocks", i, "3", last] => norm(&format!("b{i}.bn2"), last),
        _ => name.to_owned(),
    }
}

fn reference(config: &ConvMixerConfig) -> Tensor {
    let vs = nn::VarStore::new(Device::Cpu);
    let network = config.init(&vs.root()).expect("the configuration is valid");
    fill(&vs, tutorial_name);
    tch::no_grad(|| network.forward_t(&(test_support::images(2, 32) / 255.0), false))
}

const REFERENCE_LOGITS: [f64; 20] = [
    -0.251717, 0.103089, 0.106269, -0.030912, 0.139643, 0.030668, 0.108123, -0.145269, -0.098918,
    0.029290, //
    -0.251751, 0.103090, 0.106245, -0.030943, 0.139553, 0.030578, 0.108321, -0.145244, -0.099000, 0.029244,
];

#[test]
fn reference_configuration_gives_the_tutorials_logits() {
    let difference = largest_difference(&reference(&ConvMixerConfig::reference()), &REFERENCE_LOGITS);
    assert!(difference < 2e-5, "{difference}");
}

#[test]
fn the_other_frameworks_batch_norm_eps_would_show() {
    let config = ConvMixerConfig { bn_eps: 1e-5, ..ConvMixerConfig::reference() };
    let logits = reference(&config);
    assert!(largest_difference(&logits, &REFERENCE_LOGITS) > 1e-4);
    let wrong = [-0.251880, 0.103085, 0.106274];
    assert!(largest_difference(&logits.select(0, 0).narrow(0, 0, 3), &wrong) < 2e-6);
}

#[test]
fn the_embedding_matches_in_mean_and_norm() {
    let vs = nn::VarStore::new(Device::Cpu);
    let network = ConvMixerConfig::reference().init(&vs.root()).expect("the configuration is valid");
    fill(&vs, tutorial_name);
    let map = tch::no_grad(|| network.embed(&(test_support::images(2, 32) / 255.0), false));
    assert!((map.mean(Kind::Double).double_value(&[]) - 0.0957811).abs() < 1e-6);
    assert!((map.norm().double_value(&[]) - 113.1309).abs() < 1e-3);
}

#[test]
fn timm_768_32_gives_timms_logits() {
    let vs = nn::VarStore::new(Device::Cpu);
    let variant = ConvMixerConfig::VARIANTS.iter().find(|v| v.name == "convmixer_768_32");
    let network = (variant.expect("it is in the table").config)().init(&vs.root()).expect("it is valid");
    fill(&vs, str::to_owned);
    let logits = tch::no_grad(|| network.forward_t(&(test_support::images(1, 224) / 255.0), false));
    let want = [
        -0.362513, 0.408313, 0.003746, 0.209362, -0.065672, 0.177810, 0.318185, 0.359067, -0.287180,
        -0.370592,
    ];
    let difference = largest_difference(&logits.narrow(1, 0, 10), &want);
    assert!(difference < 5e-4, "{difference}");
    assert!((logits.norm().double_value(&[]) - 8.8359).abs() < 1e-3);
}

/// `docs/parity/explanations.py`: the package grad-cam 1.5.7 and timm 1.0.31 on PyTorch 2.11.
#[test]
fn grad_cam_is_the_reference_implementations() {
    let config =
        ConvMixerConfig { num_classes: 10, image_size: 28, ..ConvMixerConfig::imagenet(64, 3, 7, 7) };
    let vs = nn::VarStore::new(Device::Cpu);
    let network = config.init(&vs.root()).expect("the configuration is valid");
    fill(&vs, str::to_owned);
    let images = test_support::images(1, 28) / 255.0;
    let of_1 = [
        0.413421, 0.248585, 0.361246, 0.144767, 0.675757, 0.999972, 0.082928, 0.092119, 0.258490, 0.763559,
        0.0, 0.081550, 0.114024, 0.453755, 0.765562, 0.066379,
    ];
    let of_9 = [
        0.438104, 0.0, 0.415440, 0.999963, 0.0, 0.0, 0.0, 0.517709, 0.0, 0.228116, 0.0, 0.0, 0.128791,
        0.222083, 0.0, 0.0,
    ];
    for (class, want) in [(1i64, of_1), (9, of_9)] {
        let map = grad_cam(&network, &images, &Tensor::from_slice(&[class])).expect("there is such a class");
        assert_eq!(map.size(), [1, 4, 4]);
        // The package's own scaling.
        let from_0 = &map - map.min();
        let scaled = &from_0 / (from_0.max() + 1e-7);
        let difference = largest_difference(&scaled, &want);
        assert!(difference < 1e-4, "class {class}: {difference}");
    }
}
