//! Properties every built network has: names, counts, initial ranges, independence of neighbours.

use core_layers::{Model, trace};
use patchconvnet::{ClassTokens, Design, PatchConvNet, PatchConvNetConfig};
use tch::{Device, Kind, Tensor, nn};

/// The tutorial's design, small enough to build in a moment.
fn small_tutorial() -> PatchConvNetConfig {
    PatchConvNetConfig { image_size: 16, embed_dim: 32, mlp_hidden: 32, ..PatchConvNetConfig::reference() }
}

/// The official design, likewise.
fn small_official() -> PatchConvNetConfig {
    PatchConvNetConfig { image_size: 48, num_classes: 7, ..PatchConvNetConfig::official(32, 3) }
}

/// A network of each kind.
fn small() -> [PatchConvNetConfig; 5] {
    [
        small_tutorial(),
        PatchConvNetConfig { tied_trunk: false, layer_scale: Some(0.1), ..small_tutorial() },
        small_official(),
        PatchConvNetConfig { tied_trunk: true, layer_scale: None, drop_path_rate: 0.1, ..small_official() },
        PatchConvNetConfig { class_tokens: ClassTokens::PerClass, ..small_official() },
    ]
}

fn build(config: &PatchConvNetConfig) -> (nn::VarStore, PatchConvNet) {
    let vs = nn::VarStore::new(Device::Cpu);
    tch::manual_seed(1);
    let network = config.init(&vs.root()).expect("the configuration is valid");
    (vs, network)
}

fn random_images(batch: i64, side: i64) -> Tensor {
    Tensor::rand([batch, 3, side, side], (Kind::Float, Device::Cpu))
}

fn assert_tensors(config: &PatchConvNetConfig, expected: &[(&str, &[i64])]) {
    let (vs, _) = build(config);
    let variables = vs.variables();
    for (name, shape) in expected {
        assert_eq!(variables.get(*name).map(Tensor::size), Some(shape.to_vec()), "{name}");
    }
    assert_eq!(variables.len(), expected.len(), "{:?}", variables.keys());
}

#[test]
fn the_tutorials_tensors_are_listed_once() {
    assert_tensors(
        &PatchConvNetConfig::reference(),
        &[
            ("stem.0.weight", &[128, 3, 3, 3]),
            ("stem.0.bias", &[128]),
            ("stem.1.weight", &[256, 128, 3, 3]),
            ("stem.1.bias", &[256]),
            ("trunk.norm.weight", &[256]),
            ("trunk.norm.bias", &[256]),
            ("trunk.pw1.weight", &[256, 256, 1, 1]),
            ("trunk.pw1.bias", &[256]),
            ("trunk.conv3.weight", &[256, 256, 3, 3]),
            ("trunk.conv3.bias", &[256]),
            ("trunk.se1.weight", &[32, 256]),
            ("trunk.se2.weight", &[256, 32]),
            ("trunk.pw2.weight", &[256, 256, 1, 1]),
            ("trunk.pw2.bias", &[256]),
            ("cls_token", &[1, 1, 256]),
            ("q.weight", &[256, 256]),
            ("q.bias", &[256]),
            ("k.weight", &[256, 256]),
            ("k.bias", &[256]),
            ("v.weight", &[256, 256]),
            ("v.bias", &[256]),
            ("proj.weight", &[256, 256]),
            ("proj.bias", &[256]),
            ("norm1.weight", &[256]),
            ("norm1.bias", &[256]),
            ("norm2.weight", &[256]),
            ("norm2.bias", &[256]),
            ("norm3.weight", &[256]),
            ("norm3.bias", &[256]),
            ("fc1.weight", &[256, 256]),
            ("fc1.bias", &[256]),
            ("fc2.weight", &[256, 256]),
            ("fc2.bias", &[256]),
            ("head.weight", &[10, 256]),
            ("head.bias", &[10]),
        ],
    );
    // Untied, each of the two blocks has the ten tensors of the trunk.
    let (vs, _) = build(&PatchConvNetConfig { tied_trunk: false, ..PatchConvNetConfig::reference() });
    let variables = vs.variables();
    assert_eq!(variables.len(), 35 + 10);
    assert_eq!(variables["trunk.1.conv3.weight"].size(), [256, 256, 3, 3]);
    let built: usize = vs.trainable_variables().iter().map(Tensor::numel).sum();
    assert_eq!(built, 2_174_986);
}

#[test]
fn tensors_of_the_family_have_the_official_names_and_shapes() {
    let config = PatchConvNetConfig { num_classes: 2, ..PatchConvNetConfig::official(384, 1) };
    let trunk_and_stem: [(&str, &[i64]); 32] = [
        ("patch_embed.proj.0.0.weight", &[48, 3, 3, 3]),
        ("patch_embed.proj.2.0.weight", &[96, 48, 3, 3]),
        ("patch_embed.proj.4.0.weight", &[192, 96, 3, 3]),
        ("patch_embed.proj.6.0.weight", &[384, 192, 3, 3]),
        ("blocks.0.gamma_1", &[384]),
        ("blocks.0.norm1.weight", &[384]),
        ("blocks.0.norm1.bias", &[384]),
        ("blocks.0.attn.qkv_pos.0.weight", &[384, 384, 1, 1]),
        ("blocks.0.attn.qkv_pos.0.bias", &[384]),
        ("blocks.0.attn.qkv_pos.2.weight", &[384, 1, 3, 3]),
        ("blocks.0.attn.qkv_pos.2.bias", &[384]),
        ("blocks.0.attn.qkv_pos.4.conv_reduce.weight", &[96, 384, 1, 1]),
        ("blocks.0.attn.qkv_pos.4.conv_reduce.bias", &[96]),
        ("blocks.0.attn.qkv_pos.4.conv_expand.weight", &[384, 96, 1, 1]),
        ("blocks.0.attn.qkv_pos.4.conv_expand.bias", &[384]),
        ("blocks.0.attn.qkv_pos.5.weight", &[384, 384, 1, 1]),
        ("blocks.0.attn.qkv_pos.5.bias", &[384]),
        ("blocks_token_only.0.gamma_1", &[384]),
        ("blocks_token_only.0.gamma_2", &[384]),
        ("blocks_token_only.0.norm1.weight", &[384]),
        ("blocks_token_only.0.norm1.bias", &[384]),
        ("blocks_token_only.0.norm2.weight", &[384]),
        ("blocks_token_only.0.norm2.bias", &[384]),
        ("blocks_token_only.0.attn.q.weight", &[384, 384]),
        ("blocks_token_only.0.attn.q.bias", &[384]),
        ("blocks_token_only.0.attn.k.weight", &[384, 384]),
        ("blocks_token_only.0.attn.k.bias", &[384]),
        ("blocks_token_only.0.attn.v.weight", &[384, 384]),
        ("blocks_token_only.0.attn.v.bias", &[384]),
        ("blocks_token_only.0.attn.proj.weight", &[384, 384]),
        ("blocks_token_only.0.attn.proj.bias", &[384]),
        ("blocks_token_only.0.mlp.fc1.weight", &[1152, 384]),
    ];
    let end: [(&str, &[i64]); 5] = [
        ("blocks_token_only.0.mlp.fc1.bias", &[1152]),
        ("blocks_token_only.0.mlp.fc2.weight", &[384, 1152]),
        ("blocks_token_only.0.mlp.fc2.bias", &[384]),
        ("norm.weight", &[384]),
        ("norm.bias", &[384]),
    ];
    let shared = [&trunk_and_stem[..], &end].concat();
    let single: [(&str, &[i64]); 3] =
        [("cls_token", &[1, 1, 384]), ("head.weight", &[2, 384]), ("head.bias", &[2])];
    assert_tensors(&config, &[&shared[..], &single].concat());

    let per_class: [(&str, &[i64]); 5] = [
        ("cls_token", &[1, 2, 384]),
        ("head.0.weight", &[1, 384]),
        ("head.0.bias", &[1]),
        ("head.1.weight", &[1, 384]),
        ("head.1.bias", &[1]),
    ];
    let config = PatchConvNetConfig { class_tokens: ClassTokens::PerClass, ..config };
    assert_tensors(&config, &[&shared[..], &per_class].concat());
}

#[test]
fn the_counted_parameters_are_the_built_ones() {
    for config in small().into_iter().chain([PatchConvNetConfig::reference()]) {
        let (vs, _) = build(&config);
        let built: usize = vs.trainable_variables().iter().map(Tensor::numel).sum();
        assert_eq!(built as u64, config.param_count(), "{config:?}");
    }
}

#[test]
fn the_counted_multiply_accumulates_are_the_executed_ones() {
    // An odd size too: the map's sides are rounded up.
    let odd = PatchConvNetConfig { image_size: 37, ..small_tutorial() };
    for config in small().into_iter().chain([odd, PatchConvNetConfig::reference()]) {
        let (_vs, network) = build(&config);
        let images = random_images(1, config.image_size);
        let (_, steps) = trace::record(|| tch::no_grad(|| network.forward_t(&images, false)));
        let executed: u64 = steps.iter().map(|step| step.macs).sum();
        assert_eq!(executed, config.macs(), "{config:?}");
    }
}

#[test]
fn initial_ranges_are_those_of_the_tutorial() {
    let (vs, _) = build(&PatchConvNetConfig::reference());
    let variables = vs.variables();
    for (name, limit) in [
        ("stem.0.weight", 0.07134),
        ("stem.1.weight", 0.04167),
        ("trunk.pw1.weight", 0.10825),
        ("trunk.conv3.weight", 0.03608),
        ("trunk.se1.weight", 0.14434),
        ("trunk.se2.weight", 0.14434),
        ("trunk.pw2.weight", 0.10825),
        ("q.weight", 0.00955),
        ("k.weight", 0.00955),
        ("v.weight", 0.00955),
        ("proj.weight", 0.10825),
        ("fc1.weight", 0.10825),
        ("fc2.weight", 0.10825),
        ("head.weight", 0.15019),
    ] {
        let got = variables[name].abs().max().double_value(&[]);
        assert!(got <= limit + 1e-5 && got > 0.99 * limit, "{name}: {got} {limit}");
    }
    for (name, tensor) in &variables {
        if name == "cls_token" || name.ends_with("bias") {
            assert_eq!(tensor.abs().max().double_value(&[]), 0.0, "{name}");
        }
    }
}

#[test]
fn initial_ranges_are_those_of_the_official_implementation() {
    let config = PatchConvNetConfig {
        num_classes: 100,
        layer_scale: Some(1e-4),
        ..PatchConvNetConfig::official(128, 1)
    };
    let (vs, _) = build(&config);
    let variables = vs.variables();
    for name in ["cls_token", "attn.q.weight", "attn.proj.weight", "mlp.fc2.weight", "head.weight"] {
        let name = match name {
            "cls_token" | "head.weight" => name.to_owned(),
            _ => format!("blocks_token_only.0.{name}"),
        };
        let tensor = &variables[&name];
        let std = tensor.std(false).double_value(&[]);
        // Five standard errors of the estimate.
        let tolerance = 5.0 / (2.0 * tensor.numel() as f64).sqrt();
        assert!((std / 0.02 - 1.0).abs() < tolerance, "{name}: {std}");
        assert!(name == "cls_token" || tensor.abs().max().double_value(&[]) > 0.06, "{name}: truncated");
    }
    // PyTorch's: weights and biases within ±1/√fan_in.
    for (layer, fan_in) in [("0", 128.0), ("2", 9.0), ("4.conv_reduce", 128.0), ("4.conv_expand", 32.0)] {
        let limit = 1.0 / f64::sqrt(fan_in);
        for part in ["weight", "bias"] {
            let name = format!("blocks.0.attn.qkv_pos.{layer}.{part}");
            let got = variables[&name].abs().max().double_value(&[]);
            // The smallest has 32 values.
            assert!(got <= limit + 1e-5 && got > 0.5 * limit, "{name}: {got} {limit}");
        }
    }
    let got = variables["patch_embed.proj.0.0.weight"].abs().max().double_value(&[]);
    assert!((0.97..1.00001).contains(&(got * 27f64.sqrt())), "{got}");
    for name in ["blocks.0.gamma_1", "blocks_token_only.0.gamma_2"] {
        assert!((&variables[name] - 1e-4).abs().max().double_value(&[]) < 1e-9, "{name}");
    }
    assert_eq!(variables["blocks_token_only.0.attn.q.bias"].abs().max().double_value(&[]), 0.0);
}

#[test]
fn an_images_logits_do_not_depend_on_its_neighbours_and_gradients_reach_everything() {
    for config in small() {
        let (vs, network) = build(&config);
        let images = random_images(3, config.image_size);
        let difference = test_support::batch_dependence(&network, &images);
        assert!(difference < 1e-5, "{difference}");
        assert_eq!(test_support::without_gradient(&vs, &network, &images), [""; 0]);
    }
}

#[test]
fn features_are_the_class_tokens_and_logits_their_heads() {
    let images = random_images(2, 48);
    let [.., single, _, per_class] = small();
    tch::no_grad(|| {
        let (_vs, network) = build(&single);
        assert_eq!(network.forward_features(&images, false).size(), [2, 32]);

        let (vs, network) = build(&per_class);
        let features = network.forward_features(&images, false);
        assert_eq!(features.size(), [2, 7, 32]);
        let logits = network.forward_head(&features, false);
        assert_eq!(logits.size(), [2, 7]);
        // Each class by itself, from its own token.
        let variables = vs.variables();
        for class in 0..7 {
            let (weight, bias) = (format!("head.{class}.weight"), format!("head.{class}.bias"));
            let own = features.select(1, class).linear(&variables[&weight], Some(&variables[&bias]));
            let difference = (own.squeeze_dim(1) - logits.select(1, class)).abs().max();
            assert!(difference.double_value(&[]) < 1e-5);
        }
    });
}

#[test]
fn a_class_token_of_its_own_decides_its_classes_logit_only() {
    let [.., per_class] = small();
    let images = random_images(2, 48);
    let (vs, network) = build(&per_class);
    tch::no_grad(|| {
        let before = network.forward_t(&images, false);
        let _ = vs.variables()["cls_token"].select(1, 3).normal_(0.0, 1.0);
        let changed = (network.forward_t(&images, false) - before).abs().amax([0i64].as_slice(), false);
        for class in 0..7 {
            assert_eq!(changed.double_value(&[class]) > 1e-6, class == 3, "{class}");
        }
    });
}

#[test]
fn the_tutorials_attention_starts_uniform() {
    // The class token starts at zero, so its query is the zero bias: 144 patches and itself share
    // its attention evenly.
    let (_vs, network) = build(&PatchConvNetConfig::reference());
    for batch in [1, 2] {
        let images = random_images(batch, 48);
        let maps = tch::no_grad(|| network.attention_maps(&images)).expect("there is attention");
        assert_eq!(maps.size(), [batch, 1, 12, 12]);
        assert!((maps - 1.0 / 145.0).abs().max().double_value(&[]) < 1e-7);
    }
}

#[test]
fn attention_maps_are_shares_of_the_class_tokens_attention() {
    let sums = |maps: &Tensor| maps.sum_dim_intlist([2i64, 3].as_slice(), false, Kind::Float);
    for config in small() {
        let (vs, network) = build(&config);
        // Attention far from uniform.
        tch::no_grad(|| {
            for (name, mut tensor) in vs.variables() {
                if name == "cls_token" || name.ends_with("q.weight") || name.ends_with("k.weight") {
                    let _ = tensor.normal_(0.0, 0.2);
                }
            }
        });
        let stride = if config.image_size == 16 { 4 } else { 16 };
        // The configured size, one image, and an image of another shape.
        for size in [[2, 3, config.image_size, config.image_size], [1, 3, 2 * stride, 3 * stride]] {
            let images = Tensor::rand(size, (Kind::Float, Device::Cpu));
            let (maps, by_class) =
                tch::no_grad(|| (network.attention_maps(&images), network.class_attention_maps(&images)));
            let maps = maps.expect("there is attention");
            let (height, width) = (size[2] / stride, size[3] / stride);
            assert_eq!(maps.size(), [size[0], 1, height, width]);
            assert!(maps.min().double_value(&[]) >= 0.0);
            match config.class_tokens {
                // The token keeps a share for itself.
                ClassTokens::Single => {
                    assert_eq!(by_class, maps);
                    let most = sums(&maps).max().double_value(&[]);
                    assert!(most < 1.0 - 1e-5, "{most}");
                }
                ClassTokens::PerClass => {
                    assert_eq!(by_class.size(), [size[0], 7, height, width]);
                    assert!((sums(&by_class) - 1.0).abs().max().double_value(&[]) < 1e-5);
                    let mean = by_class.mean_dim([1i64].as_slice(), true, Kind::Float);
                    assert_eq!(mean, maps);
                }
            }
        }
    }
}

#[test]
fn every_trunk_block_is_dropped_at_the_same_rate() {
    // Each sample passes each of two blocks or not.
    let config =
        PatchConvNetConfig { drop_path_rate: 0.5, attn_drop: 0.0, mlp_drop: 0.0, ..small_tutorial() };
    let images = random_images(1, 16).repeat([64, 1, 1, 1]);
    let outcomes = |config: &PatchConvNetConfig| {
        let (_vs, network) = build(config);
        let logits = tch::no_grad(|| network.forward_t(&images, true));
        let differ = |a: i64, b: i64| {
            let difference = (logits.select(0, a) - logits.select(0, b)).abs().max().double_value(&[]);
            difference > 1e-5
        };
        // A sample is new if it differs from every one before it.
        (0..64).filter(|&i| (0..i).all(|j| differ(i, j))).count()
    };
    assert_eq!(outcomes(&PatchConvNetConfig { tied_trunk: false, ..config.clone() }), 4);
    // One block in two places does the same whichever time it is dropped.
    assert_eq!(outcomes(&config), 3);
    // The first block is not spared.
    assert_eq!(outcomes(&PatchConvNetConfig { depth: 1, ..config.clone() }), 2);
    assert_eq!(outcomes(&PatchConvNetConfig { drop_path_rate: 0.0, ..config }), 1);
}

#[test]
fn dropout_of_the_pooling_acts_in_training_only() {
    let none = PatchConvNetConfig { attn_drop: 0.0, mlp_drop: 0.0, ..small_tutorial() };
    let images = random_images(4, 16);
    let changes = |config: &PatchConvNetConfig| {
        let (_vs, network) = build(config);
        tch::no_grad(|| network.forward_t(&images, true) != network.forward_t(&images, false))
    };
    assert!(!changes(&none));
    assert!(changes(&PatchConvNetConfig { mlp_drop: 0.2, ..none.clone() }));
    assert!(changes(&PatchConvNetConfig { attn_drop: 0.2, ..none }));
}

#[test]
fn fields_out_of_range_make_no_network() {
    let vs = nn::VarStore::new(Device::Cpu);
    for config in [
        PatchConvNetConfig { embed_dim: 12, ..small_tutorial() },
        PatchConvNetConfig { image_size: 40, ..small_official() },
        PatchConvNetConfig { class_tokens: ClassTokens::PerClass, ..small_tutorial() },
    ] {
        assert!(config.init(&vs.root()).is_err());
    }
    assert!(vs.is_empty());
}

#[test]
fn every_tensor_has_its_layer() {
    let tutorial = ["cls_token", "norm1", "norm2", "norm3", "q", "k", "v", "proj", "fc1", "fc2", "head"];
    for variant in PatchConvNetConfig::VARIANTS {
        let narrow = PatchConvNetConfig { embed_dim: 8, mlp_hidden: 8, ..(variant.config)() };
        let blocks = if narrow.tied_trunk { 1 } else { narrow.depth };
        let (stem, end): (_, &[&str]) = match narrow.design {
            Design::Tutorial => ("stem", &tutorial),
            Design::Official => ("patch_embed", &["cls_token", "blocks_token_only", "norm", "head"]),
        };
        test_support::check_layers(&narrow, blocks, &[stem], end, &[]);
    }
}

/// In f32, 3×3 convolutions of many images are computed in another way than those of few.
#[test]
fn a_large_batch_has_the_logits_and_gradients_of_small_ones() {
    let (vs, network) = build(&PatchConvNetConfig::reference());
    let images = test_support::images(64, 48) / 255.0;
    let [logits, gradients] = test_support::distance_to_small_batches(&vs, &network, &images);
    assert!(logits < 5e-6 && gradients < 5e-6, "{logits:e} {gradients:e}");
}
