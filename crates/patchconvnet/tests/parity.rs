//! Logits of deterministically filled networks against those of the published implementations.
//!
//! The expected numbers were made in f32 with Keras 3.15.1 (the tutorial's network), and with the
//! official implementation on PyTorch 2.11 (S60).

use core_layers::{Activation, Model};
use patchconvnet::{ClassTokens, PatchConvNet, PatchConvNetConfig};
use tch::{Device, Kind, Tensor, nn};
use test_support::{Role, largest_difference};

/// Fills every tensor by its role, with numbers drawn from the name `rename` gives.
fn fill(vs: &nn::VarStore, rename: impl Fn(&str) -> String) {
    for (name, mut tensor) in vs.variables() {
        let norm = name.contains("norm");
        let role = match name.as_str() {
            "cls_token" => Role::Embedding,
            _ if name.contains("gamma_") => Role::LayerScale,
            _ if norm && name.ends_with("weight") => Role::Gain,
            _ if name.ends_with("weight") => Role::Weight,
            _ => Role::Shift,
        };
        let values = test_support::tensor(&rename(&name), &tensor.size(), role);
        tch::no_grad(|| tensor.copy_(&values));
    }
}

/// The tutorial network's own names: its norms have a gamma and a beta.
fn tutorial_name(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((layer, "weight")) if layer.contains("norm") => format!("{layer}.gamma"),
        Some((layer, "bias")) if layer.contains("norm") => format!("{layer}.beta"),
        _ => name.to_owned(),
    }
}

/// 32×32 images, 0 to 1, resized to 48×48.
fn tutorial_images() -> Tensor {
    (test_support::images(2, 32) / 255.0).upsample_bilinear2d([48, 48], false, None, None)
}

fn build(config: &PatchConvNetConfig, rename: impl Fn(&str) -> String) -> (nn::VarStore, PatchConvNet) {
    let vs = nn::VarStore::new(Device::Cpu);
    let network = config.init(&vs.root()).expect("the configuration is valid");
    fill(&vs, rename);
    (vs, network)
}

fn tutorial_logits(config: &PatchConvNetConfig) -> Tensor {
    let (_vs, network) = build(config, tutorial_name);
    tch::no_grad(|| network.forward_t(&tutorial_images(), false))
}

const REFERENCE: [f64; 20] = [
    -2.399999, 0.777432, 0.687544, 0.092884, -1.375812, -0.564773, 0.400294, -0.214304, 0.401903,
    0.740832, //
    -2.386395, 0.735027, 0.593690, 0.107676, -1.467319, -0.644665, 0.334127, -0.109149, 0.515192, 0.698409,
];

#[test]
fn reference_configuration_gives_the_tutorials_logits() {
    let difference = largest_difference(&tutorial_logits(&PatchConvNetConfig::reference()), &REFERENCE);
    assert!(difference < 2e-5, "{difference}");
}

#[test]
fn the_tutorials_stem_and_attention_match() {
    let (_vs, network) = build(&PatchConvNetConfig::reference(), tutorial_name);
    let images = tutorial_images();
    tch::no_grad(|| {
        let patches = network.embed_patches(&images);
        assert_eq!(patches.size(), [2, 256, 12, 12]);
        let (mean, norm) = (patches.mean(Kind::Double).double_value(&[]), patches.norm().double_value(&[]));
        assert!((mean - 0.0410534).abs() < 1e-6, "{mean}");
        assert!((norm - 45.9902).abs() < 1e-3, "{norm}");

        let attention = network.attention_maps(&images).expect("there is attention").reshape([2, 144]);
        let sums = attention.sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
        let difference = largest_difference(&sums, &[0.962374, 0.959830]);
        assert!(difference < 2e-5, "{difference}");
        let most = Vec::<i64>::try_from(attention.argmax(1, false)).expect("a vector");
        assert_eq!(most, [143, 143]);
    });
}

#[test]
fn with_the_other_gelu_it_gives_the_earlier_revisions_logits() {
    let config = PatchConvNetConfig { activation: Activation::Gelu, ..PatchConvNetConfig::reference() };
    let logits = tutorial_logits(&config);
    assert!(largest_difference(&logits, &REFERENCE) > 1e-4);
    let want = [
        -2.399944, 0.777623, 0.687244, 0.093026, -1.375200, -0.564726, 0.400056, -0.213642, 0.401779,
        0.740492,
    ];
    let difference = largest_difference(&logits, &want);
    assert!(difference < 2e-5, "{difference}");
}

#[test]
fn a_missing_gelu_and_a_missing_block_would_show() {
    let reference = PatchConvNetConfig::reference;
    for (config, wrong) in [
        (
            PatchConvNetConfig { act_on_output: false, ..reference() },
            [-2.824961, 0.959953, 1.371876, -0.174810],
        ),
        (PatchConvNetConfig { depth: 1, ..reference() }, [-2.594858, 0.370724, 1.020679, -0.322142]),
    ] {
        let logits = tutorial_logits(&config);
        assert!(largest_difference(&logits, &REFERENCE) > 1e-2);
        let difference = largest_difference(&logits, &wrong);
        assert!(difference < 2e-5, "{difference}");
    }
}

#[test]
fn untied_blocks_with_equal_tensors_compute_what_a_tied_one_does() {
    let config = PatchConvNetConfig { tied_trunk: false, ..PatchConvNetConfig::reference() };
    let (_vs, network) = build(&config, |name| {
        tutorial_name(&name.replace("trunk.0.", "trunk.").replace("trunk.1.", "trunk."))
    });
    let logits = tch::no_grad(|| network.forward_t(&tutorial_images(), false));
    let difference = largest_difference(&logits, &REFERENCE);
    assert!(difference < 2e-5, "{difference}");
}

#[test]
fn s60_gives_the_official_logits() {
    let (_vs, network) = build(&PatchConvNetConfig::s60(), str::to_owned);
    let logits = tch::no_grad(|| network.forward_t(&(test_support::images(1, 224) / 255.0), false));
    let want = [
        1.726055, -0.291870, -0.413206, -0.158546, 0.067247, 0.745038, 1.246948, -1.120017, -0.090715,
        -0.010068,
    ];
    let difference = largest_difference(&logits, &want);
    assert!(difference < 5e-4, "{difference}");
    let norm = logits.norm().double_value(&[]);
    assert_eq!(logits.size(), [1, 1000]);
    assert!((norm - 31.8757).abs() < 5e-4, "{norm}");
}

/// The numbers are those of docs/parity/patchconvnet_per_class.py, which writes the network out a second
/// time: no vector was published for class tokens of every class.
#[test]
fn class_tokens_of_every_class_give_the_logits_of_another_implementation() {
    let config = PatchConvNetConfig {
        image_size: 48,
        num_classes: 6,
        class_tokens: ClassTokens::PerClass,
        ..PatchConvNetConfig::official(64, 3)
    };
    let (_vs, network) = build(&config, str::to_owned);
    let logits = tch::no_grad(|| network.forward_t(&(test_support::images(2, 48) / 255.0), false));
    let want = [
        1.579203, 0.940573, -1.624441, 0.589900, 1.149479, -1.112337, //
        1.315478, 0.766425, -1.757428, 1.515408, 0.962362, -1.526717,
    ];
    let difference = largest_difference(&logits, &want);
    assert!(difference < 2e-5, "{difference}");
}
