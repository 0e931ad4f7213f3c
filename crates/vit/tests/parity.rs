//! Logits of deterministically filled networks against those of the published implementations.
//!
//! The expected numbers were made in f32 with Keras 3.15.1 (the CIFAR-10 network), and with timm
//! 1.0.28 on PyTorch 2.11 (the family).

use core_layers::{Activation, Model, grad_cam};
use tch::{Device, Kind, Tensor, nn};
use test_support::{Role, largest_difference};
use vit::VitConfig;

/// Fills every tensor by its role, with numbers drawn from the name `rename` gives.
fn fill(vs: &nn::VarStore, rename: impl Fn(&str) -> String) {
    for (name, mut tensor) in vs.variables() {
        let norm = name.contains("norm");
        let role = match name.as_str() {
            "cls_token" | "pos_embed" => Role::Embedding,
            _ if norm && name.ends_with("weight") => Role::Gain,
            _ if name.ends_with("weight") => Role::Weight,
            _ => Role::Shift,
        };
        let values = test_support::tensor(&rename(&name), &tensor.size(), role);
        tch::no_grad(|| tensor.copy_(&values));
    }
}

/// The CIFAR-10 network's own names.
fn tutorial_name(name: &str) -> String {
    let name = name.replace("patch_embed.proj", "patch").replace(".attn.", ".").replace(".mlp.", ".");
    match name.rsplit_once('.') {
        Some((layer, "weight")) if layer.contains("norm") => format!("{layer}.gamma"),
        Some((layer, "bias")) if layer.contains("norm") => format!("{layer}.beta"),
        _ => name,
    }
}

/// 32×32 images normalised by these means and deviations, then resized to 72×72.
fn tutorial_images() -> Tensor {
    let mean = Tensor::from_slice(&[125f32, 123., 114.]).reshape([1, 3, 1, 1]);
    let variance = Tensor::from_slice(&[3969f32, 3844., 4489.]).reshape([1, 3, 1, 1]);
    let images = (test_support::images(2, 32) - mean) / variance.sqrt();
    images.upsample_bilinear2d([72, 72], false, None, None)
}

fn build(config: &VitConfig, rename: impl Fn(&str) -> String) -> (nn::VarStore, vit::Vit) {
    let vs = nn::VarStore::new(Device::Cpu);
    let network = config.init(&vs.root()).expect("the configuration is valid");
    fill(&vs, rename);
    (vs, network)
}

const REFERENCE: [f64; 20] = [
    -0.200316, 0.519265, 1.009436, 2.713674, 0.372020, 0.500492, -0.772632, -2.664297, 0.167927,
    -0.811399, //
    0.195853, 0.089927, 1.233303, 2.050747, -0.106563, 1.289946, -0.284712, -2.056888, -0.228753, -0.989168,
];

#[test]
fn reference_configuration_gives_the_tutorials_logits() {
    let (_vs, network) = build(&VitConfig::reference(), tutorial_name);
    let images = tutorial_images();
    let tokens = network.embed_patches(&images);
    assert!((tokens.mean(Kind::Double).double_value(&[]) + 0.0053069).abs() < 1e-6);
    assert!((tokens.norm().double_value(&[]) - 107.8707).abs() < 1e-3);
    let difference = largest_difference(&network.forward_t(&images, false), &REFERENCE);
    assert!(difference < 2e-5, "{difference}");
}

#[test]
fn the_other_gelu_and_a_missing_one_would_show() {
    let images = tutorial_images();
    for (config, wrong) in [
        (
            VitConfig { activation: Activation::GeluTanh, ..VitConfig::reference() },
            [-0.200544, 0.519247, 1.009898],
        ),
        (VitConfig { act_on_output: false, ..VitConfig::reference() }, [-0.487526, 1.334391, 0.500727]),
    ] {
        let (_vs, network) = build(&config, tutorial_name);
        let logits = network.forward_t(&images, false);
        assert!(largest_difference(&logits, &REFERENCE) > 1e-4);
        assert!(largest_difference(&logits, &wrong) < 2e-5);
    }
}

#[test]
fn the_family_gives_timms_logits() {
    let images = test_support::images(1, 224) / 255.0;
    for (config, best, want) in [
        (
            VitConfig::b16_reference(),
            154,
            [
                -0.175017, 0.691485, -0.795952, 0.517618, 2.422400, 1.610100, -0.022510, 0.669106, 0.318010,
                -0.938002,
            ],
        ),
        (
            VitConfig::base(16, 224),
            154,
            [
                -0.264120, 0.581265, -0.907400, 0.526796, 2.273031, 1.441151, -0.028658, 0.655880, 0.307536,
                -1.027631,
            ],
        ),
        (
            VitConfig::tiny(16, 224),
            29,
            [
                0.109419, 0.894377, -1.272542, 1.874392, 1.655703, -0.881608, 1.765672, -0.273927, 0.052863,
                0.269222,
            ],
        ),
    ] {
        let (_vs, network) = build(&config, str::to_owned);
        let logits = tch::no_grad(|| network.forward_t(&images, false));
        let difference = largest_difference(&logits, &want);
        assert!(difference < 5e-4, "{difference}");
        assert_eq!(logits.argmax(1, false).int64_value(&[0]), best);
    }
}

/// `docs/parity/explanations.py`: the package grad-cam 1.5.7 and timm 1.0.31 on PyTorch 2.11.
#[test]
fn grad_cam_and_rollout_are_the_reference_implementations() {
    let config = VitConfig { image_size: 64, num_classes: 10, ..VitConfig::tiny(16, 224) };
    let (_vs, network) = build(&config, str::to_owned);
    let images = test_support::images(1, 64) / 255.0;
    let of_1 = [
        0.0, 0.658954, 0.564319, 0.999974, 0.0, 0.522918, 0.0, 0.0, 0.204215, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0,
        0.467079,
    ];
    let of_9 = [
        0.443410, 0.501074, 0.476755, 0.382986, 0.751856, 0.607742, 0.999992, 0.440813, 0.567741, 0.359827,
        0.772011, 0.525335, 0.615026, 0.479754, 0.0, 0.832218,
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
    let rollout = [
        1.104042, 0.956991, 0.832574, 0.852826, 1.022651, 1.063157, 1.228453, 0.869186, 0.730060, 0.735849,
        0.816627, 0.863002, 0.791778, 0.969363, 0.812133, 0.819110,
    ];
    let rolled = tch::no_grad(|| network.attention_rollout(&images)) * 16.0;
    let difference = largest_difference(&rolled, &rollout);
    assert!(difference < 1e-4, "{difference}");
}
