//! Properties every built network has: names, counts, initial ranges, independence of neighbours.

use core_layers::{Model, ModelConfig, trace};
use gcvit::{GcVitConfig, QueryPool, timm_name};
use tch::{Device, Kind, Tensor, nn};

/// A network of each kind, small enough to build in a moment. All have a level of several windows and
/// one of a single window; the second ends with several, and with an odd number of blocks.
fn small() -> [GcVitConfig; 3] {
    let narrow = GcVitConfig { embed_dim: 16, ..GcVitConfig::xxtiny_64() };
    [
        narrow.clone(),
        GcVitConfig {
            query_pool: QueryPool::Zero,
            layer_scale: Some(0.5),
            image_size: 128,
            window_sizes: [8, 8, 8, 2],
            depths: [2, 2, 2, 3],
            ..narrow.clone()
        },
        GcVitConfig {
            image_size: 32,
            window_sizes: [4, 4, 2, 1],
            init: GcVitConfig::reference().init,
            ..narrow
        },
    ]
}

fn build(config: &GcVitConfig) -> (nn::VarStore, gcvit::GcVit) {
    let vs = nn::VarStore::new(Device::Cpu);
    tch::manual_seed(1);
    let network = config.init(&vs.root()).expect("the configuration is valid");
    (vs, network)
}

fn noise(batch: i64, config: &GcVitConfig) -> Tensor {
    Tensor::rand([batch, 3, config.image_size, config.image_size], (Kind::Float, Device::Cpu))
}

/// Fills every tensor whose name ends in `ending` with `value`.
fn set(vs: &nn::VarStore, ending: &str, value: f64) {
    for (name, mut tensor) in vs.variables() {
        if name.ends_with(ending) {
            let _ = tch::no_grad(|| tensor.fill_(value));
        }
    }
}

#[test]
fn tensors_have_the_official_names_and_shapes() {
    let (vs, _) = build(&GcVitConfig::reference());
    let variables = vs.variables();
    for (name, shape) in [
        ("patch_embed.proj.weight", vec![64, 3, 3, 3]),
        ("patch_embed.proj.bias", vec![64]),
        ("patch_embed.conv_down.conv.0.weight", vec![64, 1, 3, 3]),
        ("patch_embed.conv_down.conv.2.fc.0.weight", vec![16, 64]),
        ("patch_embed.conv_down.conv.2.fc.2.weight", vec![64, 16]),
        ("patch_embed.conv_down.conv.3.weight", vec![64, 64, 1, 1]),
        ("patch_embed.conv_down.reduction.weight", vec![64, 64, 3, 3]),
        ("patch_embed.conv_down.norm1.bias", vec![64]),
        ("patch_embed.conv_down.norm2.weight", vec![64]),
        ("levels.0.blocks.0.norm1.weight", vec![64]),
        ("levels.0.blocks.0.attn.relative_position_bias_table", vec![169, 2]),
        ("levels.2.blocks.5.attn.relative_position_bias_table", vec![729, 8]),
        ("levels.1.blocks.0.attn.qkv.weight", vec![384, 128]),
        ("levels.1.blocks.1.attn.qkv.weight", vec![256, 128]),
        ("levels.1.blocks.1.attn.qkv.bias", vec![256]),
        ("levels.1.blocks.1.attn.proj.weight", vec![128, 128]),
        ("levels.3.blocks.0.mlp.fc1.weight", vec![1536, 512]),
        ("levels.3.blocks.0.mlp.fc2.bias", vec![512]),
        ("levels.2.downsample.conv.2.fc.2.weight", vec![256, 64]),
        ("levels.2.downsample.reduction.weight", vec![512, 256, 3, 3]),
        ("levels.2.downsample.norm1.weight", vec![256]),
        ("levels.2.downsample.norm2.bias", vec![512]),
        ("levels.0.q_global_gen.to_q_global.2.conv.3.weight", vec![64, 64, 1, 1]),
        ("levels.3.q_global_gen.to_q_global.0.conv.0.weight", vec![512, 1, 3, 3]),
        ("norm.weight", vec![512]),
        ("head.weight", vec![1000, 512]),
    ] {
        assert_eq!(variables.get(name).map(Tensor::size), Some(shape), "{name}");
    }
    // Stem 2 + 9, downsampling 9 each, 4 per part of a query generator, 13 per block, norm and head.
    assert_eq!(variables.len(), 2 + 4 * 9 + (3 + 2 + 1 + 1) * 4 + 12 * 13 + 4);
    // With layer scale two more per block.
    let (vs, _) = build(&small()[1]);
    let variables = vs.variables();
    assert_eq!(variables["levels.3.blocks.2.gamma1"].size(), [128]);
    assert_eq!(variables.len(), 2 + 4 * 9 + 5 * 4 + 9 * 15 + 4, "{:?}", variables.keys());
}

#[test]
fn every_tensors_name_goes_to_timms_and_back() {
    let config = &small()[1];
    let (vs, _) = build(config);
    for name in vs.variables().keys() {
        let timm = timm_name(name);
        let place = ["stem.", "stages.", "head.fc."].iter().any(|start| timm.starts_with(start));
        assert!(place && !timm.contains(".conv."), "{name}: {timm}");
        assert_eq!(&config.tensor_name(&timm), name);
        assert_eq!(&config.tensor_name(name), name);
    }
}

#[test]
fn counted_parameters_and_multiply_accumulates_are_those_of_the_built_network() {
    let reference = [GcVitConfig::reference(), GcVitConfig::xxtiny_64()];
    for config in small().into_iter().chain(reference) {
        let (vs, network) = build(&config);
        let built: usize = vs.trainable_variables().iter().map(Tensor::numel).sum();
        assert_eq!(built as u64, config.param_count(), "{config:?}");
        let images = noise(1, &config);
        let (_, steps) = trace::record(|| tch::no_grad(|| network.forward_t(&images, false)));
        assert_eq!(steps.iter().map(|step| step.macs).sum::<u64>(), config.macs(), "{config:?}");
    }
}

#[test]
fn initial_ranges_are_those_of_the_tutorial_and_of_the_official_implementation() {
    let (vs, _) = build(&GcVitConfig::reference());
    let variables = vs.variables();
    let largest = |name: &str| variables[name].abs().max().double_value(&[]);
    for (name, limit) in [
        ("patch_embed.proj.weight", 0.09975),
        // Keras counts the 64 channels among the inputs.
        ("patch_embed.conv_down.conv.0.weight", 0.10127),
        ("patch_embed.conv_down.conv.2.fc.0.weight", 0.27386),
        ("patch_embed.conv_down.conv.3.weight", 0.21651),
        ("patch_embed.conv_down.reduction.weight", 0.07217),
        ("levels.0.blocks.0.attn.qkv.weight", 0.15309),
        ("levels.0.blocks.1.attn.qkv.weight", 0.17678),
        ("levels.3.blocks.0.attn.proj.weight", 0.07655),
        ("levels.2.blocks.0.attn.relative_position_bias_table", 0.04),
        ("head.weight", 0.06299),
    ] {
        let got = largest(name);
        assert!(got <= limit + 1e-5 && got > 0.95 * limit, "{name}: {got} {limit}");
    }
    for name in ["patch_embed.proj.bias", "levels.0.blocks.0.mlp.fc1.bias", "head.bias"] {
        assert_eq!(largest(name), 0.0, "{name}");
    }

    let (vs, _) = build(&GcVitConfig { layer_scale: Some(1e-5), ..GcVitConfig::xxtiny_64() });
    let variables = vs.variables();
    let largest = |name: &str| variables[name].abs().max().double_value(&[]);
    // PyTorch's convolutions: 1/√fan_in.
    for (name, limit) in [
        ("patch_embed.proj.weight", 0.19245),
        ("patch_embed.proj.bias", 0.19245),
        ("levels.3.q_global_gen.to_q_global.0.conv.0.weight", 0.33333),
        ("levels.2.downsample.reduction.weight", 0.02083),
        ("levels.2.downsample.conv.3.weight", 0.0625),
        ("levels.0.blocks.1.gamma2", 1e-5),
    ] {
        let got = largest(name);
        // A bias has 64 entries only.
        let least = if name.ends_with("bias") { 0.7 } else { 0.95 };
        assert!(got <= limit * 1.001 && got > least * limit, "{name}: {got} {limit}");
    }
    for name in [
        "levels.2.downsample.conv.2.fc.0.weight",
        "levels.3.blocks.1.attn.qkv.weight",
        "levels.2.blocks.0.mlp.fc2.weight",
        "levels.2.blocks.0.attn.relative_position_bias_table",
        "head.weight",
    ] {
        let std = variables[name].std(false).double_value(&[]);
        // A table has a few hundred entries only.
        let tolerance = if name.ends_with("table") { 0.2 } else { 0.05 };
        assert!((std / 0.02 - 1.0).abs() < tolerance, "{name}: {std}");
    }
    assert_eq!(largest("levels.3.blocks.1.attn.qkv.bias"), 0.0);
}

#[test]
fn an_images_logits_do_not_depend_on_its_neighbours_and_gradients_reach_everything() {
    for config in small() {
        let (vs, network) = build(&config);
        let images = noise(3, &config);
        let difference = test_support::batch_dependence(&network, &images);
        assert!(difference < 1e-4, "{difference}");
        assert_eq!(test_support::without_gradient(&vs, &network, &images), [""; 0]);
    }
}

#[test]
fn batch_composition_does_not_matter_where_the_queries_do() {
    // Freshly drawn weights barely let the global queries act; these do, and logits change with
    // them: a window given another image's query would show.
    let config = &small()[0];
    let (vs, network) = build(config);
    for (name, mut tensor) in vs.variables() {
        if name.ends_with("weight") && !name.contains("norm") {
            let values = test_support::tensor(&name, &tensor.size(), test_support::Role::Weight);
            tch::no_grad(|| tensor.copy_(&values));
        }
    }
    let images = noise(2, config);
    let dependence = test_support::batch_dependence(&network, &images);
    assert!(dependence < 1e-4, "{dependence}");
    let before = tch::no_grad(|| network.forward_t(&images, false));
    set(&vs, "q_global_gen.to_q_global.0.conv.3.weight", 0.0);
    let after = tch::no_grad(|| network.forward_t(&images, false));
    let change = (before - after).abs().max().double_value(&[]);
    println!("batch dependence {dependence:e}, change with the query {change:e}");
    assert!(change > 1e-2, "{change}");
}

#[test]
fn memory_layout_does_not_matter() {
    let config = &small()[1];
    let (_vs, network) = build(config);
    let images = noise(2, config);
    // The same pixels kept channels-last.
    let channels_last = images.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
    let logits = |images: &Tensor| tch::no_grad(|| network.forward_t(images, false));
    let difference = (logits(&images) - logits(&channels_last)).abs().max().double_value(&[]);
    assert!(difference < 1e-5, "{difference}");
}

#[test]
fn layer_scale_weighs_both_branches_of_every_block() {
    let config = &small()[1];
    let (scaled_vs, scaled) = build(config);
    let (plain_vs, plain) = build(&GcVitConfig { layer_scale: None, ..config.clone() });
    let plain_variables = plain_vs.variables();
    for (name, tensor) in scaled_vs.variables() {
        if let Some(target) = plain_variables.get(&name) {
            tch::no_grad(|| target.shallow_clone().copy_(&tensor));
        }
    }
    let images = noise(2, config);
    let difference = || {
        let logits = tch::no_grad(|| [&scaled, &plain].map(|network| network.forward_t(&images, false)));
        (&logits[0] - &logits[1]).abs().max().double_value(&[])
    };
    assert!(difference() > 1e-4);
    // Factors of one are none; those of one branch alone make a difference.
    set(&scaled_vs, "gamma1", 1.0);
    assert!(difference() > 1e-4);
    set(&scaled_vs, "gamma2", 1.0);
    assert!(difference() < 1e-5, "{}", difference());
    // Factors of zero leave the residual alone, as branches that give nothing do.
    set(&scaled_vs, "gamma1", 0.0);
    set(&plain_vs, "attn.proj.weight", 0.0);
    set(&plain_vs, "attn.proj.bias", 0.0);
    assert!(difference() < 1e-5, "{}", difference());
    set(&scaled_vs, "gamma2", 0.0);
    set(&plain_vs, "mlp.fc2.weight", 0.0);
    set(&plain_vs, "mlp.fc2.bias", 0.0);
    assert!(difference() < 1e-5, "{}", difference());
}

#[test]
fn attention_maps_show_where_the_queries_of_a_window_look() {
    for (config, heads, side, windows) in
        [(&small()[0], 16, 2, 1), (&small()[1], 16, 4, 4), (&small()[2], 16, 1, 1)]
    {
        let (_vs, network) = build(config);
        let maps = tch::no_grad(|| network.attention_maps(&noise(2, config))).expect("there is attention");
        assert_eq!(maps.size(), [2, heads, side, side]);
        let sums = maps.sum_dim_intlist([2i64, 3].as_slice(), false, Kind::Float);
        assert!((sums - f64::from(windows)).abs().max().double_value(&[]) < 1e-5);
        assert!(maps.min().double_value(&[]) >= 0.0);
    }
}

#[test]
fn a_bias_towards_the_row_above_shows_in_the_attention_maps() {
    let config = &small()[1];
    let (vs, network) = build(config);
    // Without queries and keys the bias alone decides.
    set(&vs, "levels.3.blocks.2.attn.qkv.weight", 0.0);
    set(&vs, "levels.3.blocks.2.attn.qkv.bias", 0.0);
    set(&vs, "levels.3.blocks.2.attn.relative_position_bias_table", 0.0);
    let table = vs.variables()["levels.3.blocks.2.attn.relative_position_bias_table"].shallow_clone();
    // Offsets of −1, 0 and 1 in rows and columns; row 2·3 + 1 is one row up in the same column.
    let _ = tch::no_grad(|| table.select(0, 7).fill_(100.0));
    let maps = tch::no_grad(|| network.attention_maps(&noise(1, config))).expect("there is attention");
    // In each window of 2×2 the lower two queries look straight up, the upper two everywhere.
    let columns = maps.select(1, 3).select(2, 0);
    let values = Vec::<f32>::try_from(columns.flatten(0, -1)).expect("a vector");
    for (got, want) in values.iter().zip([0.375, 0.125, 0.375, 0.125]) {
        assert!((got - want).abs() < 1e-6, "{values:?}");
    }
    assert!((maps - columns.unsqueeze(-1)).abs().max().double_value(&[]) < 1e-6);
}

#[test]
fn stochastic_depth_drops_in_training_only() {
    let config = GcVitConfig { drop_path_rate: 0.5, ..small()[0].clone() };
    let (_vs, network) = build(&config);
    let images = noise(1, &config).repeat([16, 1, 1, 1]);
    let spread = |network: &gcvit::GcVit, train| {
        let logits = tch::no_grad(|| network.forward_t(&images, train));
        (&logits - logits.narrow(0, 0, 1)).abs().max().double_value(&[])
    };
    assert!(spread(&network, true) > 1e-4);
    assert!(spread(&network, false) < 1e-5);
    let (_vs, network) = build(&GcVitConfig { drop_path_rate: 0.0, ..config });
    assert!(spread(&network, true) < 1e-5);
}

#[test]
fn a_field_out_of_range_makes_no_network() {
    let vs = nn::VarStore::new(Device::Cpu);
    let config = GcVitConfig { image_size: 96, ..GcVitConfig::xxtiny_64() };
    let message = config.init(&vs.root()).map(drop).expect_err("24 is not 4 doubled").to_string();
    assert!(message.starts_with("model.window_sizes = [4, 4, 4, 2]: level 0 has a map 24"), "{message}");
    assert!(vs.is_empty());
}

#[test]
fn larger_images_need_no_other_windows_if_the_maps_are_their_doubles() {
    // 448 pixels: maps of 112, 56, 28 and 14, halved 4, 3, 1 and 1 times.
    let config = GcVitConfig { image_size: 448, embed_dim: 8, num_heads: [1; 4], ..GcVitConfig::xxtiny() };
    let (vs, network) = build(&config);
    assert!(vs.variables().contains_key("levels.0.q_global_gen.to_q_global.3.conv.3.weight"));
    let logits = tch::no_grad(|| network.forward_t(&noise(1, &config), false));
    assert_eq!(logits.size(), [1, 1000]);
    assert_eq!(logits.isfinite().all().int64_value(&[]), 1);
}

#[test]
fn every_tensor_has_its_layer() {
    for variant in GcVitConfig::VARIANTS {
        let config = (variant.config)();
        let narrow = GcVitConfig { embed_dim: 4 * config.num_heads[0], ..config };
        let blocks = narrow.depths.iter().sum();
        test_support::check_layers(&narrow, blocks, &["patch_embed"], &["head"], &[]);
    }
}

/// timm's `resize_rel_pos_bias_table_simple`, by docs/parity/relative_positions.py.
#[test]
fn tables_of_relative_positions_are_resampled_as_timm_does() {
    const WANT: [f64; 50] = [
        -0.017799, 0.786546, 0.554015, 0.958795, 1.140655, 0.944463, 0.704771, 0.083480, 0.223765, -0.616006,
        -0.539405, -0.145922, -0.168634, 0.205875, 0.339099, 0.599356, 0.542851, 0.455553, 0.600636,
        0.254147, -0.894646, -1.078382, -0.871090, -0.664674, -0.631267, 0.016814, 0.174447, 0.683230,
        0.780659, 1.081418, 0.190030, -0.275206, -0.171543, -0.465443, -0.585620, -0.592790, -0.474727,
        -0.188740, -0.295774, 0.168167, 1.151003, 0.579389, 0.549353, -0.116885, -0.341060, -0.965761,
        -0.925734, -0.948895, -1.212588, -0.753774,
    ];
    let table =
        (Tensor::arange(18, (Kind::Double, Device::Cpu)) * 0.7).sin().view([9, 2]).to_kind(Kind::Float);
    let resample = |name: &str, shape: &[i64]| GcVitConfig::xxtiny().resample(name, &table, shape);
    let name = "levels.0.blocks.0.attn.relative_position_bias_table";
    let got = resample(name, &[25, 2]).expect("nine is a square");
    let got = Vec::<f64>::try_from(got.to_kind(Kind::Double).view(-1)).expect("numbers");
    assert!(got.iter().zip(WANT).all(|(got, want)| (got - want).abs() < 2e-6), "{got:?}");
    let same = resample(name, &[9, 2]).expect("nine is a square");
    assert!((same - &table).abs().max().double_value(&[]) < 1e-6);
    assert!(resample(name, &[25, 4]).is_none());
    assert!(resample("norm.weight", &[25, 2]).is_none());
}
