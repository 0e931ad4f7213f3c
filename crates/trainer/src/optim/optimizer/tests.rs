//! Against PyTorch's and timm's steps, and against a saved self.

use std::path::Path;

use super::*;
use crate::network::registry;
use core_layers::weights::write_safetensors;
use serde_json::Value;
use tch::Device;

fn with(algorithm: Algorithm) -> OptimizerRecipe {
    OptimizerRecipe {
        algorithm,
        lr: 1e-3,
        weight_decay: 0.05,
        decay_weights_only: false,
        layer_decay: None,
        lookahead: None,
    }
}

fn adamw() -> OptimizerRecipe {
    with(Algorithm::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, scale_decay_by_lr: true })
}

fn unscaled() -> OptimizerRecipe {
    with(Algorithm::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, scale_decay_by_lr: false })
}

fn sgd(momentum: f64, nesterov: bool) -> OptimizerRecipe {
    with(Algorithm::Sgd { momentum, nesterov })
}

fn lamb() -> OptimizerRecipe {
    with(Algorithm::Lamb { beta1: 0.9, beta2: 0.999, eps: 1e-6 })
}

fn lion() -> OptimizerRecipe {
    with(Algorithm::Lion { beta1: 0.9, beta2: 0.99 })
}

/// A trained tensor under its name, whose parts are paths.
fn add(vs: &VarStore, name: &str, tensor: &Tensor) {
    let (path, last) = name.rsplit_once('.').unwrap_or(("", name));
    let parts = path.split('.').filter(|part| !part.is_empty());
    let _ = parts.fold(vs.root(), |path, part| path / part).add(last, tensor.copy(), true);
}

/// Tensors that do not belong to any network.
struct Setup {
    vs: VarStore,
    tensors: BTreeMap<String, Tensor>,
    optimizer: Optimizer,
}

impl Setup {
    fn new(start: &BTreeMap<String, Tensor>, recipe: &OptimizerRecipe) -> Self {
        let vs = VarStore::new(Device::Cpu);
        for (name, tensor) in start {
            add(&vs, name, tensor);
        }
        let architecture = registry::find("convmixer_reference").unwrap();
        let optimizer = Optimizer::new(&vs, &architecture, recipe).unwrap();
        Self { tensors: vs.variables().into_iter().collect(), vs, optimizer }
    }

    /// An update along given gradients.
    fn update(&mut self, gradients: &BTreeMap<String, Tensor>, lr: f64, clip: Option<f64>) {
        torch_ext::clear_grads(&self.optimizer.tensors()).unwrap();
        for (name, gradient) in gradients {
            let kind = gradient.kind();
            (&self.tensors[name] * gradient).sum(kind).backward();
        }
        self.optimizer.step(lr, clip).unwrap();
    }

    fn values(&self) -> Vec<f64> {
        values(&self.tensors)
    }
}

fn values(tensors: &BTreeMap<String, Tensor>) -> Vec<f64> {
    let flat = |tensor: &Tensor| Vec::<f64>::try_from(tensor.to_kind(Kind::Double).flatten(0, -1)).unwrap();
    tensors.values().flat_map(flat).collect()
}

fn golden() -> Value {
    serde_json::from_str(include_str!("../../../tests/golden/optimizers.json")).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// Named lists of numbers as tensors of the shapes in the golden file.
fn tensors(golden: &Value, lists: &Value) -> BTreeMap<String, Tensor> {
    let tensor = |(name, list): (&String, &Value)| {
        let shape: Vec<i64> = floats(&golden["shapes"][name]).iter().map(|&size| size as i64).collect();
        let list: Vec<f32> = floats(list).iter().map(|&number| number as f32).collect();
        (name.clone(), Tensor::from_slice(&list).reshape(shape))
    };
    lists.as_object().unwrap().iter().map(tensor).collect()
}

#[test]
fn every_update_is_that_of_pytorch_and_timm() {
    let golden = golden();
    let start = tensors(&golden, &golden["start"]);
    let rates = floats(&golden["rates"]);
    let gradients = golden["gradients"].as_array().unwrap().iter().map(|step| tensors(&golden, step));
    let gradients: Vec<_> = gradients.collect();
    let other = with(Algorithm::AdamW { beta1: 0.8, beta2: 0.95, eps: 1e-3, scale_decay_by_lr: true });
    let recipes = BTreeMap::from([
        ("adamw", adamw()),
        ("adamw, other betas and eps", other),
        ("adamw, clipped", adamw()),
        ("adamw, two groups", adamw()),
        ("sgd", sgd(0.0, false)),
        ("sgd, momentum", sgd(0.9, false)),
        ("sgd, nesterov", sgd(0.9, true)),
        ("sgd, nesterov, clipped, two groups", sgd(0.9, true)),
        ("lamb", lamb()),
        ("lamb, clipped, two groups", lamb()),
        ("lion", lion()),
        ("lion, clipped, two groups", lion()),
    ]);
    let cases = golden["cases"].as_object().unwrap();
    assert!(cases.keys().eq(recipes.keys()));
    for (name, case) in cases {
        let recipe = OptimizerRecipe {
            weight_decay: golden["weight_decay"].as_f64().unwrap(),
            decay_weights_only: case["two_groups"].as_bool().unwrap(),
            ..recipes[name.as_str()].clone()
        };
        let mut setup = Setup::new(&start, &recipe);
        let after = case["after"].as_array().unwrap();
        assert_eq!((after.len(), rates.len(), gradients.len()), (10, 10, 10));
        for (step, ((want, &lr), gradients)) in after.iter().zip(&rates).zip(&gradients).enumerate() {
            setup.update(gradients, lr, case["clip"].as_f64());
            let (got, want) = (setup.values(), floats(want));
            assert_eq!(got.len(), want.len());
            for (got, want) in got.iter().zip(&want) {
                assert!((got - want).abs() < 1e-6, "{name}, step {step}: {got} {want}");
            }
        }
    }
}

#[test]
fn muon_is_that_of_timm() {
    let golden: Value = serde_json::from_str(include_str!("../../../tests/golden/muon.json")).unwrap();
    let all = tensors(&golden, &golden["start"]);
    for case in golden["cases"].as_array().unwrap() {
        let names: Vec<&str> = case["names"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let of_case = |mut tensors: BTreeMap<String, Tensor>| {
            tensors.retain(|name, _| names.contains(&name.as_str()));
            tensors
        };
        let nesterov = case["nesterov"].as_bool().unwrap();
        let recipe = with(Algorithm::Muon { momentum: 0.95, nesterov, beta1: 0.9, beta2: 0.95, eps: 1e-7 });
        let copies = all.iter().map(|(name, tensor)| (name.clone(), tensor.copy())).collect();
        let mut setup = Setup::new(&of_case(copies), &recipe);
        let steps = golden["gradients"].as_array().unwrap().iter().zip(floats(&golden["rates"]));
        for ((gradients, lr), want) in steps.zip(case["after"].as_array().unwrap()) {
            setup.update(&of_case(tensors(&golden, gradients)), lr, None);
            for (got, want) in setup.values().iter().zip(floats(want)) {
                assert!((got - want).abs() < 2e-5, "nesterov {nesterov}: {got} {want}");
            }
        }
        let state: Vec<String> = setup.optimizer.state().into_keys().collect();
        let states = if nesterov { 3 } else { 2 * 2 + 3 + 1 };
        assert_eq!(state.len(), if nesterov { states + 1 } else { states }, "{state:?}");
    }
}

/// Gradients and rates of three updates; at a rate of 0 only the unscaled decay acts.
const UPDATES: [(f64, f64); 3] = [(1.0, 1e-3), (-2.0, 2e-3), (0.5, 0.0)];

/// How much of itself a weight loses at a rate.
type Decay = fn(f64) -> f64;
const SCALED: Decay = |lr| lr * 0.05;
const ALONE: Decay = |_| 0.05;
const NONE: Decay = |_| 0.0;

/// AdamW's updates of a weight of 1, in f64.
fn adamw_by_hand(decay: Decay) -> f64 {
    let (mut theta, mut m, mut v) = (1.0f64, 0.0f64, 0.0f64);
    for (t, (g, lr)) in (1..).zip(UPDATES) {
        theta *= 1.0 - decay(lr);
        m += 0.1 * (g - m);
        v += 0.001 * (g * g - v);
        let (m_hat, v_hat) = (m / (1.0 - 0.9f64.powi(t)), v / (1.0 - 0.999f64.powi(t)));
        theta -= lr * m_hat / (v_hat.sqrt() + 1e-8);
    }
    theta
}

#[test]
fn adamw_decays_by_lr_times_lambda_or_by_lambda_alone() {
    let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::Double, Device::Cpu));
    let start = BTreeMap::from([("bias".to_owned(), ones(&[1])), ("weight".to_owned(), ones(&[1, 1]))]);
    for (recipe, weights_only, decays) in [
        (adamw(), false, [SCALED; 2]),
        (adamw(), true, [NONE, SCALED]),
        (unscaled(), false, [ALONE; 2]),
        (unscaled(), true, [NONE, ALONE]),
    ] {
        let recipe = OptimizerRecipe { decay_weights_only: weights_only, ..recipe };
        let mut setup = Setup::new(&start, &recipe);
        for (gradient, lr) in UPDATES {
            let gradients = start.iter().map(|(name, one)| (name.clone(), one * gradient)).collect();
            setup.update(&gradients, lr, None);
        }
        for (got, want) in setup.values().iter().zip(decays.map(adamw_by_hand)) {
            assert!((got - want).abs() < 1e-9, "{got} {want}");
        }
    }
    assert!(adamw_by_hand(SCALED) - adamw_by_hand(ALONE) > 0.1);
}

#[test]
fn lambs_ratio_is_one_where_a_length_is_zero() {
    let recipe = OptimizerRecipe { weight_decay: 0.5, ..lamb() };
    let tensor = |a: f32, b: f32| Tensor::from_slice(&[a, b]);
    let named = |x, y, z| ["x", "y", "z"].map(str::to_owned).into_iter().zip([x, y, z]).collect();
    let start = named(tensor(0.0, 0.0), tensor(0.0, 0.0), tensor(3.0, -4.0));
    let mut setup = Setup::new(&start, &recipe);
    setup.update(&named(tensor(2.0, -0.5), tensor(0.0, 0.0), tensor(0.0, 0.0)), 0.1, None);
    // No length: Adam's first step, which is the sign. No direction: nothing. No gradient: the direction is half
    // the tensor, and the ratio 2.
    for (got, want) in setup.values().iter().zip([-0.1, 0.1, 0.0, 0.0, 2.7, -3.6]) {
        assert!((got - want).abs() < 1e-6, "{got} {want}");
    }
}

fn every_algorithm() -> [OptimizerRecipe; 7] {
    [adamw(), unscaled(), sgd(0.0, false), sgd(0.9, false), sgd(0.9, true), lamb(), lion()]
}

#[test]
fn what_has_no_gradient_stays() {
    let tensor = |values: &[f32]| Tensor::from_slice(values);
    let start = BTreeMap::from([("idle", [1.0, -2.0]), ("used", [0.5, 3.0])]);
    let start = start.into_iter().map(|(name, values)| (name.to_owned(), tensor(&values))).collect();
    for recipe in every_algorithm() {
        let mut setup = Setup::new(&start, &recipe);
        setup.update(&BTreeMap::new(), 0.1, Some(1.0));
        assert_eq!(setup.values(), [1.0, -2.0, 0.5, 3.0]);
        setup.update(&BTreeMap::from([("used".to_owned(), tensor(&[1.0, -1.0]))]), 0.1, Some(1.0));
        let after = setup.values();
        assert_eq!(after[..2], [1.0, -2.0], "{recipe:?}");
        assert!(after[2] < 0.45 && after[3] != 3.0, "{after:?}");
        for (name, state) in setup.optimizer.state() {
            let moved = state.abs().max().double_value(&[]) > 0.0;
            assert_eq!(moved, name == STEP || name.ends_with(".used"), "{recipe:?} {name}");
        }
    }
}

/// The setup's bits.
fn bits(setup: &Setup) -> Vec<u64> {
    setup.values().into_iter().map(f64::to_bits).collect()
}

/// The state as a file would give it back: other tensors, of another kind.
fn stored(optimizer: &Optimizer) -> BTreeMap<String, Tensor> {
    let state = optimizer.state().into_iter();
    state.map(|(name, tensor)| (name, tensor.to_kind(Kind::Double).copy())).collect()
}

/// Makes the state the stored one, by way of a file.
fn load(optimizer: &mut Optimizer, saved: &BTreeMap<String, Tensor>) -> Result<(), WeightsError> {
    let mut bytes = Vec::new();
    write_safetensors(&mut bytes, saved, &BTreeMap::new()).unwrap();
    optimizer.load_state(&WeightsFile::from_bytes(Path::new("state"), bytes).unwrap())
}

#[test]
fn ten_updates_are_five_and_five_more_with_the_state() {
    let golden = golden();
    let rates = floats(&golden["rates"]);
    let steps = golden["gradients"].as_array().unwrap().iter().map(|step| tensors(&golden, step));
    let steps: Vec<_> = steps.zip(rates).collect();
    for recipe in every_algorithm() {
        let recipe = OptimizerRecipe { decay_weights_only: true, ..recipe };
        let run = |setup: &mut Setup, steps: &[(BTreeMap<String, Tensor>, f64)]| {
            steps.iter().for_each(|(gradients, lr)| setup.update(gradients, *lr, Some(1.5)));
        };
        let mut whole = Setup::new(&tensors(&golden, &golden["start"]), &recipe);
        run(&mut whole, &steps[..5]);
        let saved = stored(&whole.optimizer);
        let middle = whole.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.detach().copy()));
        let middle = middle.collect();
        run(&mut whole, &steps[5..]);

        let mut resumed = Setup::new(&middle, &recipe);
        load(&mut resumed.optimizer, &saved).unwrap();
        run(&mut resumed, &steps[5..]);
        assert_eq!(bits(&resumed), bits(&whole), "{recipe:?}");
        assert_eq!(values(&resumed.optimizer.state()), values(&whole.optimizer.state()));

        let mut fresh = Setup::new(&middle, &recipe);
        run(&mut fresh, &steps[5..]);
        assert_eq!(bits(&fresh) == bits(&whole), saved.is_empty(), "{recipe:?}");
    }
}

#[test]
fn slow_weights_are_those_of_timm_also_across_a_checkpoint() {
    let golden: Value = serde_json::from_str(include_str!("../../../tests/golden/lookahead.json")).unwrap();
    let start = tensors(&golden, &golden["start"]);
    let rates = floats(&golden["rates"]);
    let gradients: Vec<_> =
        golden["gradients"].as_array().unwrap().iter().map(|step| tensors(&golden, step)).collect();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!((cases.len(), rates.len(), gradients.len()), (4, 11, 11));
    for case in cases {
        let base = if case["name"] == "adamw" { adamw() } else { sgd(0.9, true) };
        let lookahead =
            Some(Lookahead { k: case["k"].as_u64().unwrap(), alpha: case["alpha"].as_f64().unwrap() });
        let recipe = OptimizerRecipe { lookahead, ..base.clone() };
        // Saved at every step in turn: before the first move, at one, between two and after them.
        for saved_after in 0..rates.len() {
            let mut setup = Setup::new(&start, &recipe);
            for (step, (want, (&lr, gradients))) in
                case["after"].as_array().unwrap().iter().zip(rates.iter().zip(&gradients)).enumerate()
            {
                if step == saved_after {
                    let (weights, saved) = (setup.tensors.iter(), stored(&setup.optimizer));
                    let weights =
                        weights.map(|(name, tensor)| (name.clone(), tensor.detach().copy())).collect();
                    setup = Setup::new(&weights, &recipe);
                    load(&mut setup.optimizer, &saved).unwrap();
                }
                setup.update(gradients, lr, None);
                for (got, want) in setup.values().iter().zip(&floats(want)) {
                    assert!((got - want).abs() < 1e-6, "{case}, step {step}: {got} {want}");
                }
            }
        }
        // The slow weights are what makes the difference.
        let mut plain = Setup::new(&start, &base);
        rates.iter().zip(&gradients).for_each(|(&lr, gradients)| plain.update(gradients, lr, None));
        let want = floats(&case["after"][rates.len() - 1]);
        assert!(plain.values().iter().zip(&want).any(|(plain, want)| (plain - want).abs() > 1e-3));
    }
}

#[test]
fn states_have_names() {
    let start = BTreeMap::from([("a.weight".to_owned(), Tensor::from_slice(&[1f32, 2.0]))]);
    let names = |recipe| Setup::new(&start, &recipe).optimizer.state().into_keys().collect::<Vec<_>>();
    assert_eq!(names(adamw()), ["exp_avg.a.weight", "exp_avg_sq.a.weight", "step"]);
    assert_eq!(names(lamb()), names(adamw()));
    assert_eq!(names(lion()), ["exp_avg.a.weight"]);
    assert_eq!(names(sgd(0.9, true)), ["momentum.a.weight"]);
    assert_eq!(names(sgd(0.0, false)), [""; 0]);
    let lookahead = Some(Lookahead { k: 5, alpha: 0.5 });
    assert_eq!(names(OptimizerRecipe { lookahead, ..sgd(0.0, false) }), ["slow.a.weight", "step"]);

    let mut setup = Setup::new(&start, &adamw());
    let handle = setup.optimizer.state().remove("exp_avg.a.weight").unwrap();
    setup.update(&start, 0.1, None);
    // A tenth of the gradient, in the handle taken before.
    assert!((handle - &start["a.weight"] * 0.1).abs().max().double_value(&[]) < 1e-7);
    assert_eq!(setup.optimizer.state()["step"].double_value(&[]), 1.0);
}

#[test]
fn a_state_that_does_not_fit_changes_nothing() {
    let start: BTreeMap<_, _> =
        ["a", "b"].map(|name| (name.to_owned(), Tensor::from_slice(&[1f32, 2.0]))).into();
    let mut setup = Setup::new(&start, &adamw());
    setup.update(&start, 0.1, None);
    let before = values(&setup.optimizer.state());
    type Change = fn(&mut BTreeMap<String, Tensor>);
    let cases: [(Change, &str); 6] = [
        (|state| drop(state.remove("exp_avg_sq.b")), "missing: exp_avg_sq.b"),
        (|state| drop(state.remove("step")), "missing: step"),
        (|state| drop(state.insert("momentum.a".to_owned(), Tensor::from(1f32))), "unexpected: momentum.a"),
        (
            |state| drop(state.insert("exp_avg_sq.b".to_owned(), Tensor::from_slice(&[1f32, 2.0, 3.0]))),
            "of another shape: exp_avg_sq.b is [3], the network has [2]",
        ),
        (
            |state| drop(state.insert("step".to_owned(), Tensor::from(1.5f32))),
            "step is 1.5, expected a count of updates",
        ),
        (
            |state| drop(state.insert("step".to_owned(), Tensor::from(f32::NAN))),
            "step is NaN, expected a count of updates",
        ),
    ];
    for (change, problem) in cases {
        let mut state: BTreeMap<_, _> =
            stored(&setup.optimizer).into_iter().map(|(name, tensor)| (name, tensor + 1.0)).collect();
        change(&mut state);
        let message = load(&mut setup.optimizer, &state).unwrap_err().to_string();
        assert!(message.ends_with(problem), "{message}");
        assert_eq!(values(&setup.optimizer.state()), before, "{problem}");
    }
    // Other numbers fit.
    let mut fitting = stored(&setup.optimizer);
    fitting.values_mut().for_each(|tensor| *tensor = &*tensor + 1.0);
    load(&mut setup.optimizer, &fitting).unwrap();
    let after: Vec<f64> = before.iter().map(|value| f64::from((value + 1.0) as f32)).collect();
    assert_eq!(values(&setup.optimizer.state()), after);
}

#[test]
fn what_is_frozen_is_left_out() {
    let mut setup =
        Setup::new(&["a", "b"].map(|name| (name.to_owned(), Tensor::from_slice(&[1f32]))).into(), &lion());
    setup.vs.freeze();
    let _ = setup.tensors["b"].set_requires_grad(true);
    let architecture = registry::find("convmixer_reference").unwrap();
    let optimizer = Optimizer::new(&setup.vs, &architecture, &lion()).unwrap();
    assert_eq!(optimizer.state().into_keys().collect::<Vec<_>>(), ["exp_avg.b"]);
}

/// Factor of the rate and weight decay of every tensor of a network.
fn groups(model: &str, recipe: &OptimizerRecipe) -> BTreeMap<String, (f64, f64)> {
    let architecture = registry::find(model).unwrap();
    let vs = VarStore::new(Device::Cpu);
    let _network = architecture.init(&vs.root()).unwrap();
    let optimizer = Optimizer::new(&vs, &architecture, recipe).unwrap();
    let slots = optimizer.groups.iter().flat_map(|group| {
        assert!(group.slots.is_sorted_by(|a, b| a.name < b.name));
        group.slots.iter().map(|slot| (slot.name.clone(), (group.lr_factor, group.weight_decay)))
    });
    let groups: BTreeMap<_, _> = slots.collect();
    assert_eq!(groups.len(), vs.trainable_variables().len());
    groups
}

#[test]
fn groups_of_a_vit_are_timms() {
    let golden = golden();
    let vit = &golden["vit_tiny_patch16_224"];
    let recipe = OptimizerRecipe {
        weight_decay: golden["weight_decay"].as_f64().unwrap(),
        decay_weights_only: true,
        layer_decay: vit["layer_decay"].as_f64(),
        ..adamw()
    };
    let mut want = BTreeMap::new();
    for group in vit["groups"].as_array().unwrap() {
        let numbers = ["lr_scale", "weight_decay"].map(|key| group[key].as_f64().unwrap());
        for name in group["names"].as_array().unwrap() {
            want.insert(name.as_str().unwrap().to_owned(), (numbers[0], numbers[1]));
        }
    }
    let got = groups("vit_tiny_patch16_224", &recipe);
    assert!(got.keys().eq(want.keys()));
    for ((name, got), want) in got.iter().zip(want.values()) {
        assert!((got.0 - want.0).abs() < 1e-12 && got.1 == want.1, "{name}: {got:?} {want:?}");
    }
}

#[test]
fn only_matrices_and_kernels_decay() {
    let recipe = OptimizerRecipe { decay_weights_only: true, ..lamb() };
    let undecayed = |model: &str| -> (Vec<String>, usize) {
        let groups = groups(model, &recipe);
        assert!(groups.values().all(|&(factor, decay)| factor == 1.0 && (decay == 0.0 || decay == 0.05)));
        let names = groups.iter().filter(|(_, numbers)| numbers.1 == 0.0).map(|(name, _)| name.clone());
        (names.collect(), groups.len())
    };
    let block = |i: i32| {
        [
            "linear1.bias",
            "linear2.bias",
            "norm1.bias",
            "norm1.weight",
            "pre_norm.bias",
            "pre_norm.weight",
            "self_attn.proj.bias",
            "self_attn.qkv.bias",
        ]
        .map(|name| format!("classifier.blocks.{i}.{name}"))
    };
    let ends = [
        "classifier.attention_pool.bias",
        "classifier.fc.bias",
        "classifier.norm.bias",
        "classifier.norm.weight",
        "classifier.positional_emb",
    ];
    let mut want: Vec<String> = block(0).into_iter().chain(block(1)).collect();
    want.extend(ends.map(str::to_owned));
    want.sort();
    assert_eq!(undecayed("cct_reference"), (want, 33));

    // Blocks times tensors of a block, and the rest.
    for (model, count, of) in [
        ("vit_reference", 8 * 8 + 6, 8 * 12 + 8),
        ("gcvit_xxtiny_64", 12 * 9 + 3 * 4 + 8, 12 * 13 + 3 * 9 + 5 * 4 + 15),
        ("patchconvnet_reference", 21, 35),
        ("convmixer_reference", 8 * 6 + 4, 8 * 8 + 6),
        ("vit_lite_2_4_32", 2 * 7 + 6, 2 * 11 + 8),
    ] {
        let (names, all) = undecayed(model);
        assert_eq!((names.len(), all), (count, of), "{model}");
        let named = |end: &str| names.iter().filter(|name| name.ends_with(end)).count();
        let embeddings = ["relative_position_bias_table", "cls_token", "pos_embed", "_emb"].map(named);
        let want = match model {
            "vit_reference" => [0, 1, 1, 0],
            "gcvit_xxtiny_64" => [12, 0, 0, 0],
            "patchconvnet_reference" => [0, 1, 0, 0],
            "vit_lite_2_4_32" => [0, 0, 0, 2],
            _ => [0; 4],
        };
        assert_eq!(embeddings, want, "{model}");
    }
    let everything = groups("vit_reference", &lamb());
    assert!(everything.values().all(|&numbers| numbers == (1.0, 0.05)));
}

#[test]
fn rates_fall_from_the_head_to_the_stem() {
    let recipe = OptimizerRecipe { layer_decay: Some(0.5), ..adamw() };
    let cases: [(&str, &[(&str, i32)]); 5] = [
        (
            "vit_reference",
            &[
                ("cls_token", 9),
                ("pos_embed", 9),
                ("patch_embed.proj.weight", 9),
                ("blocks.0.norm1.bias", 8),
                ("blocks.7.mlp.fc2.weight", 1),
                ("norm.weight", 1),
                ("head.bias", 0),
            ],
        ),
        (
            "cct_reference",
            &[
                ("tokenizer.conv_layers.1.0.weight", 3),
                ("classifier.positional_emb", 3),
                ("classifier.blocks.0.pre_norm.weight", 2),
                ("classifier.blocks.1.linear1.bias", 1),
                ("classifier.norm.bias", 1),
                ("classifier.attention_pool.weight", 0),
                ("classifier.fc.weight", 0),
            ],
        ),
        (
            "gcvit_xxtiny_64",
            &[
                ("patch_embed.conv_down.reduction.weight", 13),
                ("levels.0.blocks.0.norm1.weight", 12),
                ("levels.0.q_global_gen.to_q_global.1.conv.3.weight", 12),
                ("levels.0.blocks.1.attn.qkv.weight", 11),
                ("levels.0.downsample.norm1.weight", 10),
                ("levels.1.blocks.0.attn.relative_position_bias_table", 10),
                ("levels.2.q_global_gen.to_q_global.0.conv.0.weight", 8),
                ("levels.2.blocks.5.mlp.fc1.bias", 3),
                ("levels.2.downsample.reduction.weight", 2),
                ("levels.3.blocks.1.mlp.fc1.bias", 1),
                ("norm.bias", 1),
                ("head.weight", 0),
            ],
        ),
        (
            "patchconvnet_reference",
            &[
                ("stem.0.weight", 2),
                ("stem.1.bias", 2),
                ("trunk.se1.weight", 1),
                ("trunk.norm.bias", 1),
                ("cls_token", 0),
                ("q.weight", 0),
                ("norm3.weight", 0),
                ("head.weight", 0),
            ],
        ),
        (
            "convmixer_reference",
            &[
                ("stem.0.weight", 9),
                ("stem.2.bias", 9),
                ("blocks.0.0.fn.0.weight", 8),
                ("blocks.7.3.weight", 1),
                ("head.weight", 0),
            ],
        ),
    ];
    for (model, tensors) in cases {
        let groups = groups(model, &recipe);
        for &(name, halvings) in tensors {
            assert_eq!(groups[name], (0.5f64.powi(halvings), 0.05), "{model}: {name}");
        }
    }
}

#[test]
fn layer_decay_scales_the_rate_of_a_step() {
    let architecture = registry::find("convmixer_reference").unwrap();
    let vs = VarStore::new(Device::Cpu);
    for name in ["stem.0.weight", "blocks.7.1.weight", "head.weight"] {
        add(&vs, name, &Tensor::zeros([2, 1], (Kind::Float, Device::Cpu)));
    }
    let recipe = OptimizerRecipe { layer_decay: Some(0.5), ..sgd(0.0, false) };
    let mut optimizer = Optimizer::new(&vs, &architecture, &recipe).unwrap();
    for tensor in vs.trainable_variables() {
        tensor.sum(Kind::Float).backward();
    }
    optimizer.step(0.1, None).unwrap();
    let tensors: BTreeMap<String, Tensor> = vs.variables().into_iter().collect();
    // In the order of names: a block, the head, the stem.
    for (got, want) in values(&tensors).chunks(2).zip([-0.05, -0.1, -0.1 * 0.5f64.powi(9)]) {
        assert!(got.iter().all(|got| (got - want).abs() < 1e-8), "{got:?} {want}");
    }
}

/// What is late moves as if it were alone: its first update is its first, whatever the others did before.
#[test]
fn means_of_what_is_late_are_corrected_from_its_own_beginning() {
    for recipe in [adamw(), lamb()] {
        let start: BTreeMap<String, Tensor> =
            ["early", "late"].map(|name| (name.to_owned(), Tensor::from_slice(&[1f32, -2.0]))).into();
        let gradient = |step: i64| Tensor::from_slice(&[0.5f32, -0.25]) * (step + 1);
        let (mut both, mut alone) = (Setup::new(&start, &recipe), Setup::new(&start, &recipe));
        both.optimizer.delay(3, |name| name == "late");
        for step in 0..5 {
            let mut gradients = BTreeMap::from([("early".to_owned(), gradient(step))]);
            if step >= 3 {
                gradients.insert("late".to_owned(), gradient(step));
            }
            both.update(&gradients, 0.1, None);
            if step >= 3 {
                alone.update(&BTreeMap::from([("late".to_owned(), gradient(step))]), 0.1, None);
            }
        }
        assert_eq!(both.tensors["late"], alone.tensors["late"]);
        assert_ne!(both.tensors["late"], start["late"]);
    }
}
