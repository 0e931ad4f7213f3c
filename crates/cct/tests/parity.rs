//! Logits of deterministically filled networks against those of the published implementations.
//!
//! The expected numbers were made in f32 with Keras 3.15.1 (the reference configuration) and with
//! the official implementation on PyTorch 2.11 (CCT-7/3x1).

use cct::{CctConfig, Wiring};
use core_layers::{Activation, Model};
use tch::{Device, Kind, Tensor, nn};
use test_support::{Role, largest_difference};

fn role(name: &str) -> Role {
    let norm = ["pre_norm.", "norm1.", "classifier.norm."].iter().any(|part| name.contains(part));
    match name {
        _ if name.ends_with("positional_emb") || name.ends_with("class_emb") => Role::Embedding,
        _ if norm && name.ends_with("weight") => Role::Gain,
        _ if name.ends_with("weight") => Role::Weight,
        _ => Role::Shift,
    }
}

/// Fills every tensor by its own name.
fn fill(vs: &nn::VarStore) {
    for (name, mut tensor) in vs.variables() {
        let values = test_support::tensor(&name, &tensor.size(), role(&name));
        tch::no_grad(|| tensor.copy_(&values));
    }
}

/// The tutorial network's own names; queries, keys and values are tensors of their own there.
fn fill_as_tutorial(vs: &nn::VarStore) {
    for (name, mut tensor) in vs.variables() {
        let size = tensor.size();
        let plain = if name.ends_with("weight") { Role::Weight } else { Role::Shift };
        let values = match name.split('.').collect::<Vec<_>>()[..] {
            ["classifier", "blocks", b, "self_attn", "qkv", last] => {
                let third: Vec<i64> = [&[size[0] / 3], &size[1..]].concat();
                let part = |x| test_support::tensor(&format!("blocks.{b}.{x}.{last}"), &third, plain);
                let parts = ["q", "k", "v"].map(part);
                Tensor::cat(&parts, 0)
            }
            ["tokenizer", "conv_layers", i, "0", last] => {
                test_support::tensor(&format!("tok.{i}.{last}"), &size, plain)
            }
            ["classifier", "positional_emb"] => {
                test_support::tensor("pos_embed", &size[1..], Role::Embedding).unsqueeze(0)
            }
            ["classifier", "attention_pool", last] => {
                test_support::tensor(&format!("pool.{last}"), &size, plain)
            }
            ["classifier", "fc", last] => test_support::tensor(&format!("head.{last}"), &size, plain),
            ["classifier", "norm", last] => test_support::tensor(&norm("norm", last), &size, role(&name)),
            ["classifier", "blocks", b, layer, last @ ("weight" | "bias")] => {
                let (layer, is_norm) = match layer {
                    "pre_norm" => ("norm1", true),
                    "norm1" => ("norm2", true),
                    "linear1" => ("fc1", false),
                    _ => ("fc2", false),
                };
                let path = format!("blocks.{b}.{layer}");
                let path = if is_norm { norm(&path, last) } else { format!("{path}.{last}") };
                test_support::tensor(&path, &size, role(&name))
            }
            ["classifier", "blocks", b, "self_attn", "proj", last] => {
                test_support::tensor(&format!("blocks.{b}.proj.{last}"), &size, plain)
            }
            _ => unreachable!("{name}"),
        };
        tch::no_grad(|| tensor.copy_(&values));
    }
}

fn norm(layer: &str, last: &str) -> String {
    format!("{layer}.{}", if last == "weight" { "gamma" } else { "beta" })
}

fn logits(config: &CctConfig, fill: impl Fn(&nn::VarStore)) -> Tensor {
    let vs = nn::VarStore::new(Device::Cpu);
    let network = config.init(&vs.root()).expect("the configuration is valid");
    fill(&vs);
    tch::no_grad(|| network.forward_t(&(test_support::images(2, 32) / 255.0), false))
}

const REFERENCE: [f64; 20] = [
    0.585861, -0.562713, -0.503700, -1.151171, -0.037963, -0.328039, 0.420041, -0.990353, 2.151041,
    -1.031332, //
    0.538899, -0.665976, -0.454091, -1.169034, -0.106661, -0.300486, 0.514464, -1.022334, 2.159964,
    -0.970653,
];

#[test]
fn reference_configuration_gives_the_tutorials_logits() {
    let got = logits(&CctConfig::reference(), fill_as_tutorial);
    assert!(largest_difference(&got, &REFERENCE) < 2e-5, "{}", largest_difference(&got, &REFERENCE));
}

#[test]
fn the_tutorials_tokens_match_in_mean_and_norm() {
    let vs = nn::VarStore::new(Device::Cpu);
    let network = CctConfig::reference().init(&vs.root()).expect("the configuration is valid");
    fill_as_tutorial(&vs);
    let tokens = tch::no_grad(|| network.tokenize(&(test_support::images(2, 32) / 255.0)));
    assert_eq!(tokens.size(), [2, 64, 128]);
    assert!((tokens.mean(Kind::Double).double_value(&[]) - 0.387030).abs() < 1e-6);
    assert!((tokens.norm().double_value(&[]) - 74.4965).abs() < 1e-3);
}

#[test]
fn the_other_gelu_would_show() {
    let config = CctConfig { activation: Activation::Gelu, ..CctConfig::reference() };
    let got = logits(&config, fill_as_tutorial);
    assert!(largest_difference(&got, &REFERENCE) > 1e-4);
    assert!(largest_difference(&got, &[0.585714, -0.562716, -0.503739, -1.151217]) < 2e-5);
}

#[test]
fn official_7_3x1_gives_the_official_logits() {
    let want = [
        1.461685, -1.100932, -0.099513, 1.224212, 1.546395, 0.236791, 1.396920, -0.535808, 0.281056,
        0.045196, //
        1.406606, -1.098136, -0.007241, 1.254146, 1.501338, 0.177822, 1.342668, -0.550701, 0.243697,
        -0.064690,
    ];
    let difference = largest_difference(&logits(&CctConfig::cct(7, 3, 1), fill), &want);
    assert!(difference < 5e-4, "{difference}");
    // A conventional pre-norm block gives other numbers from the same tensors.
    let config = CctConfig { wiring: Wiring::PreNorm, ..CctConfig::cct(7, 3, 1) };
    let difference = largest_difference(&logits(&config, fill), &[1.802319, 0.740291, 0.119986, 0.079606]);
    assert!(difference < 5e-4, "{difference}");
}
