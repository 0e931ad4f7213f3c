//! Properties every built network has: names, counts, initial ranges, independence of neighbours.

use core_layers::{Model, ModelConfig};
use tch::{Device, Kind, Tensor, nn};
use vit::VitConfig;

/// A network of each kind, small enough to build in a moment.
fn small() -> [VitConfig; 2] {
    [
        VitConfig { depth: 2, image_size: 24, ..VitConfig::reference() },
        VitConfig { depth: 2, image_size: 32, drop_path_rate: 0.1, ..VitConfig::tiny(8, 32) },
    ]
}

fn build(config: &VitConfig) -> (nn::VarStore, vit::Vit) {
    let vs = nn::VarStore::new(Device::Cpu);
    tch::manual_seed(1);
    let network = config.init(&vs.root()).expect("the configuration is valid");
    (vs, network)
}

#[test]
fn tensors_have_timms_names_and_shapes() {
    let (vs, _) = build(&VitConfig { depth: 1, num_classes: 7, ..VitConfig::tiny(16, 224) });
    let variables = vs.variables();
    let names = [
        ("cls_token", vec![1, 1, 192]),
        ("pos_embed", vec![1, 197, 192]),
        ("patch_embed.proj.weight", vec![192, 3, 16, 16]),
        ("patch_embed.proj.bias", vec![192]),
        ("blocks.0.norm1.weight", vec![192]),
        ("blocks.0.norm1.bias", vec![192]),
        ("blocks.0.attn.qkv.weight", vec![576, 192]),
        ("blocks.0.attn.qkv.bias", vec![576]),
        ("blocks.0.attn.proj.weight", vec![192, 192]),
        ("blocks.0.attn.proj.bias", vec![192]),
        ("blocks.0.norm2.weight", vec![192]),
        ("blocks.0.norm2.bias", vec![192]),
        ("blocks.0.mlp.fc1.weight", vec![768, 192]),
        ("blocks.0.mlp.fc1.bias", vec![768]),
        ("blocks.0.mlp.fc2.weight", vec![192, 768]),
        ("blocks.0.mlp.fc2.bias", vec![192]),
        ("norm.weight", vec![192]),
        ("norm.bias", vec![192]),
        ("head.weight", vec![7, 192]),
        ("head.bias", vec![7]),
    ];
    assert_eq!(variables.len(), names.len());
    for (name, shape) in names {
        assert_eq!(variables.get(name).map(Tensor::size), Some(shape), "{name}");
    }
}

#[test]
fn the_counted_parameters_are_the_built_ones() {
    for variant in VitConfig::VARIANTS {
        let config = (variant.config)();
        if config.param_count() > 10_000_000 {
            continue;
        }
        let (vs, _) = build(&config);
        let built: usize = vs.trainable_variables().iter().map(Tensor::numel).sum();
        assert_eq!(built as u64, config.param_count(), "{}", variant.name);
    }
}

#[test]
fn initial_ranges_are_those_of_the_tutorial_and_of_timm() {
    let (vs, _) = build(&VitConfig::reference());
    let variables = vs.variables();
    for (name, limit) in [
        ("patch_embed.proj.weight", 0.18677),
        ("blocks.0.attn.qkv.weight", 0.15309),
        ("blocks.0.attn.proj.weight", 0.21651),
        ("blocks.0.mlp.fc1.weight", 0.17678),
        ("head.weight", 0.28475),
    ] {
        let got = variables[name].abs().max().double_value(&[]);
        assert!(got <= limit + 1e-5 && got > 0.95 * limit, "{name}: {got} {limit}");
    }
    assert_eq!(variables["cls_token"].abs().max().double_value(&[]), 0.0);
    let (vs, _) = build(&small()[1]);
    let variables = vs.variables();
    for name in ["blocks.0.attn.qkv.weight", "blocks.1.mlp.fc2.weight", "pos_embed", "head.weight"] {
        let std = variables[name].std(false).double_value(&[]);
        assert!((std / 0.02 - 1.0).abs() < 0.05, "{name}: {std}");
    }
    assert_eq!(variables["blocks.0.attn.qkv.bias"].abs().max().double_value(&[]), 0.0);
}

#[test]
fn an_images_logits_do_not_depend_on_its_neighbours_and_gradients_reach_everything() {
    for config in small() {
        let (vs, network) = build(&config);
        let images = Tensor::rand([3, 3, config.image_size, config.image_size], (Kind::Float, Device::Cpu));
        let difference = test_support::batch_dependence(&network, &images);
        assert!(difference < 1e-5, "{difference}");
        assert_eq!(test_support::without_gradient(&vs, &network, &images), [""; 0]);
    }
}

#[test]
fn attention_maps_and_rollout_are_shares_of_the_class_tokens_attention() {
    let config = &small()[0];
    let (_vs, network) = build(config);
    let images = Tensor::rand([2, 3, 24, 24], (Kind::Float, Device::Cpu));
    tch::no_grad(|| {
        let maps = network.attention_maps(&images).expect("there is attention");
        assert_eq!(maps.size(), [2, 4, 4, 4]);
        let all = network.block_attention(&images);
        assert_eq!((all.len(), all[0].size()), (2, vec![2, 4, 17, 17]));
        // What the map leaves out is the class token's attention to itself.
        let own = all[1].select(2, 0).select(2, 0);
        let sums = maps.sum_dim_intlist([2i64, 3].as_slice(), false, Kind::Float);
        assert!((sums + own - 1.0).abs().max().double_value(&[]) < 1e-5);

        let rollout = network.attention_rollout(&images);
        assert_eq!(rollout.size(), [2, 1, 4, 4]);
        // By hand for two blocks: (A₂/2 + I/2)·(A₁/2 + I/2), the class token's row.
        let half = |a: &Tensor| {
            a.mean_dim([1i64].as_slice(), false, Kind::Float) * 0.5
                + Tensor::eye(17, (Kind::Float, Device::Cpu)) * 0.5
        };
        let by_hand = half(&all[1]).matmul(&half(&all[0])).select(1, 0).narrow(1, 1, 16);
        assert!((rollout.reshape([2, 16]) - by_hand).abs().max().double_value(&[]) < 1e-6);
    });
}

#[test]
fn position_embeddings_are_resampled_and_the_class_slot_kept() {
    let embedding = Tensor::rand([1, 17, 3], (Kind::Float, Device::Cpu));
    let resample =
        |embedding: &Tensor, tokens| VitConfig::reference().resample("pos_embed", embedding, &[1, tokens, 3]);
    let same = resample(&embedding, 17).expect("sixteen is a square");
    assert!((same - &embedding).abs().max().double_value(&[]) < 1e-6);
    let smaller = resample(&embedding, 5).expect("sixteen is a square");
    assert_eq!(smaller.select(1, 0), embedding.select(1, 0));
    // Antialiasing weighs all pixels under the wider kernel, so the mean is kept.
    let mean = |x: &Tensor| x.mean(Kind::Double).double_value(&[]);
    let (before, after) = (mean(&embedding.narrow(1, 1, 16)), mean(&smaller.narrow(1, 1, 4)));
    assert!((before - after).abs() < 0.05, "{before} {after}");
    assert!(resample(&embedding.narrow(1, 0, 12), 5).is_none());
    assert!(VitConfig::reference().resample("cls_token", &embedding, &[1, 5, 3]).is_none());
}

#[test]
fn every_tensor_has_its_layer() {
    for variant in VitConfig::VARIANTS {
        let config = (variant.config)();
        let narrow = VitConfig { embed_dim: config.num_heads, mlp_hidden: 8, ..config };
        let stem = ["patch_embed", "cls_token", "pos_embed"];
        test_support::check_layers(&narrow, narrow.depth, &stem, &["head"], &[]);
    }
}
