//! Properties every built network has: names, counts, initial ranges, independence of neighbours.

use cct::{CctConfig, PositionEmbedding};
use core_layers::{Model, ModelConfig};
use tch::{Device, Kind, Tensor, nn};

/// A network of each kind, small enough to build in a moment.
fn small() -> [CctConfig; 4] {
    let narrow = |config: CctConfig| CctConfig { embed_dim: 32, head_dim: 16, mlp_hidden: 32, ..config };
    [
        narrow(CctConfig::reference()),
        narrow(CctConfig::cct(2, 3, 2)),
        narrow(CctConfig { position_embedding: PositionEmbedding::Sinusoidal, ..CctConfig::cvt(2) }),
        narrow(CctConfig::vit_lite(2)),
    ]
}

fn build(config: &CctConfig) -> (nn::VarStore, cct::Cct) {
    let vs = nn::VarStore::new(Device::Cpu);
    tch::manual_seed(1);
    let network = config.init(&vs.root()).expect("the configuration is valid");
    (vs, network)
}

#[test]
fn tensors_have_the_official_names_and_shapes() {
    let (vs, _) = build(&CctConfig::cct(7, 3, 1));
    let variables = vs.variables();
    for (name, shape) in [
        ("tokenizer.conv_layers.0.0.weight", vec![256, 3, 3, 3]),
        ("classifier.positional_emb", vec![1, 256, 256]),
        ("classifier.attention_pool.weight", vec![1, 256]),
        ("classifier.attention_pool.bias", vec![1]),
        ("classifier.blocks.6.pre_norm.weight", vec![256]),
        ("classifier.blocks.6.self_attn.qkv.weight", vec![768, 256]),
        ("classifier.blocks.6.self_attn.proj.weight", vec![256, 256]),
        ("classifier.blocks.6.self_attn.proj.bias", vec![256]),
        ("classifier.blocks.6.norm1.bias", vec![256]),
        ("classifier.blocks.6.linear1.weight", vec![512, 256]),
        ("classifier.blocks.6.linear2.weight", vec![256, 512]),
        ("classifier.norm.weight", vec![256]),
        ("classifier.fc.weight", vec![10, 256]),
    ] {
        assert_eq!(variables.get(name).map(Tensor::size), Some(shape), "{name}");
    }
    // Eleven per block, which has no qkv bias, and eight outside.
    assert_eq!(variables.len(), 7 * 11 + 8, "{:?}", variables.keys());
    let (vs, _) = build(&CctConfig::vit_lite(2));
    let variables = vs.variables();
    assert_eq!(variables["classifier.class_emb"].size(), [1, 1, 128]);
    assert_eq!(variables["classifier.positional_emb"].size(), [1, 65, 128]);
    assert_eq!(variables["tokenizer.conv_layers.0.0.bias"].size(), [128]);
    assert!(!variables.contains_key("classifier.attention_pool.weight"));
}

#[test]
fn the_counted_parameters_are_the_built_ones() {
    for variant in CctConfig::VARIANTS {
        let config = (variant.config)();
        if config.param_count() > 5_000_000 {
            continue;
        }
        let (vs, _) = build(&config);
        let built: usize = vs.trainable_variables().iter().map(Tensor::numel).sum();
        assert_eq!(built as u64, config.param_count(), "{}", variant.name);
    }
}

#[test]
fn initial_ranges_are_those_of_the_tutorial() {
    let (vs, _) = build(&CctConfig::reference());
    let variables = vs.variables();
    for (name, limit) in [
        ("tokenizer.conv_layers.0.0.weight", 0.61882),
        ("tokenizer.conv_layers.1.0.weight", 0.13398),
        ("classifier.positional_emb", 0.17678),
        ("classifier.blocks.0.self_attn.qkv.weight", 0.01899),
        ("classifier.blocks.0.self_attn.proj.weight", 0.10825),
        ("classifier.blocks.0.linear1.weight", 0.15309),
        ("classifier.attention_pool.weight", 0.21567),
        ("classifier.fc.weight", 0.20851),
    ] {
        let got = variables[name].abs().max().double_value(&[]);
        assert!(got <= limit + 1e-5 && got > 0.9 * limit, "{name}: {got} {limit}");
    }
    assert_eq!(variables["classifier.fc.bias"].abs().max().double_value(&[]), 0.0);
}

#[test]
fn an_images_logits_do_not_depend_on_its_neighbours_and_gradients_reach_everything() {
    for config in small() {
        let (vs, network) = build(&config);
        let images = Tensor::rand([3, 3, 32, 32], (Kind::Float, Device::Cpu));
        let difference = test_support::batch_dependence(&network, &images);
        assert!(difference < 1e-5, "{difference}");
        assert_eq!(test_support::without_gradient(&vs, &network, &images), [""; 0]);
    }
}

#[test]
fn attention_maps_have_the_shape_of_the_token_map() {
    let images = Tensor::rand([2, 3, 32, 32], (Kind::Float, Device::Cpu));
    for config in small() {
        let (_vs, network) = build(&config);
        let maps = tch::no_grad(|| network.attention_maps(&images)).expect("there is attention");
        let heads = if config.class_token { config.num_heads } else { 1 };
        assert_eq!(maps.size(), [2, heads, 8, 8]);
        let sums = maps.sum_dim_intlist([2i64, 3].as_slice(), false, Kind::Float);
        // The pooling's weights sum to one; the class token keeps a share for itself.
        let (low, high) = (sums.min().double_value(&[]), sums.max().double_value(&[]));
        assert!(high < 1.0 + 1e-5 && (config.class_token || low > 1.0 - 1e-5), "{low} {high}");
    }
}

#[test]
fn sinusoids_are_stored_and_not_trained() {
    let (vs, _) = build(&small()[2]);
    let position = vs.variables()["classifier.positional_emb"].shallow_clone();
    assert!(!position.requires_grad());
    let at = |p: i64, i: i64| position.double_value(&[0, p, i]);
    assert_eq!((at(0, 0), at(0, 1)), (0.0, 1.0));
    assert!((at(3, 0) - 3f64.sin()).abs() < 1e-6 && (at(3, 1) - 3f64.cos()).abs() < 1e-6);
    let angle = 3.0 / 10000f64.powf(4.0 / 32.0);
    assert!((at(3, 4) - angle.sin()).abs() < 1e-6 && (at(3, 5) - angle.cos()).abs() < 1e-6);
}

#[test]
fn one_draw_of_stochastic_depth_can_serve_both_branches() {
    // With every draw dropped but the first block's, a sample's tokens pass a block unchanged or
    // through both branches; with draws of their own, one branch alone happens too.
    let config = CctConfig { drop_path_rate: 0.5, attn_drop: 0.0, mlp_drop: 0.0, ..small()[0].clone() };
    let images = Tensor::rand([1, 3, 32, 32], (Kind::Float, Device::Cpu)).repeat([64, 1, 1, 1]);
    let outcomes = |shared_drop_path| {
        let (_vs, network) = build(&CctConfig { shared_drop_path, ..config.clone() });
        let logits = tch::no_grad(|| network.forward_t(&images, true));
        let differ = |a: i64, b: i64| {
            let difference = (logits.select(0, a) - logits.select(0, b)).abs().max().double_value(&[]);
            difference > 1e-5
        };
        // A sample is new if it differs from every one before it.
        (0..64).filter(|&i| (0..i).all(|j| differ(i, j))).count()
    };
    assert_eq!((outcomes(true), outcomes(false)), (2, 4));
}

#[test]
fn position_embeddings_are_resampled_and_prefixes_kept() {
    let grid = Tensor::from_slice(&[9f32, 0., 4., 8., 12.]).reshape([1, 5, 1]);
    let resample = |grid: &Tensor, tokens| {
        CctConfig::reference().resample("classifier.positional_emb", grid, &[1, tokens, 1])
    };
    let resized = resample(&grid, 17).expect("four is a square");
    // Half-pixel bilinear: the corners stay, the first row goes 0, 1, 3, 4.
    let values = Vec::<f32>::try_from(resized.flatten(0, -1)).expect("a vector");
    assert_eq!(values[..5], [9., 0., 1., 3., 4.]);
    assert_eq!(values[16], 12.);
    // Without a class token the same tokens are resampled whole; five of them are no square.
    let all = resample(&grid.narrow(1, 1, 4), 16).expect("four is a square");
    assert_eq!(Vec::<f32>::try_from(all.flatten(0, -1)).expect("a vector"), values[1..]);
    assert!(resample(&grid, 16).is_none());
    assert!(CctConfig::reference().resample("classifier.norm.weight", &grid, &[1, 17, 1]).is_none());
}

#[test]
fn every_tensor_has_its_layer() {
    let stem = ["tokenizer", "classifier.positional_emb", "classifier.class_emb"];
    let end = ["classifier.attention_pool", "classifier.fc"];
    for variant in CctConfig::VARIANTS {
        let narrow = CctConfig { embed_dim: 8, head_dim: 1, mlp_hidden: 8, ..(variant.config)() };
        // Not every network has a class token.
        test_support::check_layers(&narrow, narrow.depth, &stem, &end, &["class_emb"]);
    }
}

/// In f32, 3×3 convolutions of many images are computed in another way than those of few.
#[test]
fn a_large_batch_has_the_logits_and_gradients_of_small_ones() {
    let (vs, network) = build(&CctConfig::reference());
    let images = test_support::images(64, 32) / 255.0;
    let [logits, gradients] = test_support::distance_to_small_batches(&vs, &network, &images);
    assert!(logits < 5e-6 && gradients < 5e-6, "{logits:e} {gradients:e}");
}
