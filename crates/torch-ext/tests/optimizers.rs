//! The fused steps against PyTorch's optimisers and against the formulas in f64.

use tch::{Device, Kind, Tensor};
use torch_ext::{
    Adam, LearningRate, Sgd, TorchExtError, clip_grad_norm_, fused_adamw_, fused_sgd_, test_devices,
};

const STEPS: i64 = 10;

const FIT: &str = "the tensors fit each other";

/// As in `docs/parity/optimizer_steps.py`; fractions that f32 holds exactly.
fn start(count: i64) -> Vec<f64> {
    (0..count).map(|i| (i % 5 - 2) as f64 / 4.0).collect()
}

fn gradient(count: i64, step: i64) -> Vec<f64> {
    (0..count).map(|i| ((7 * i + 3 * step) % 11 - 4) as f64 / 8.0).collect()
}

fn tensor(values: &[f64], device: Device) -> Tensor {
    Tensor::from_slice(values).to_kind(Kind::Float).to_device(device)
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_device(Device::Cpu).to_kind(Kind::Double).flatten(0, -1))
        .expect("the tensor is flat")
}

fn assert_close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance, "{what}: value {i} is {a}, not {b}");
    }
}

#[derive(Clone, Copy)]
enum Rule<'a> {
    AdamW(Adam<'a>),
    Sgd(Sgd<'a>),
}

/// The parameters after ten steps; tensors of `counts` values that step together.
fn fused(rule: Rule, counts: &[i64], one_step_count: bool, device: Device) -> Vec<Vec<f64>> {
    let mut params: Vec<_> =
        counts.iter().map(|&n| tensor(&start(n), device).set_requires_grad(true)).collect();
    let zeros = || -> Vec<_> { params.iter().map(|p| p.detach().zeros_like()).collect() };
    let (mut first, mut second) = (zeros(), zeros());
    let step_counts = if one_step_count { 1 } else { counts.len() };
    let mut steps: Vec<_> = (0..step_counts).map(|_| Tensor::zeros([], (Kind::Float, device))).collect();
    for step in 0..STEPS {
        let grads: Vec<_> = counts.iter().map(|&n| tensor(&gradient(n, step), device)).collect();
        let grad_values: Vec<_> = grads.iter().map(values).collect();
        match rule {
            Rule::AdamW(adam) => {
                fused_adamw_(&mut params, &grads, &mut first, &mut second, &mut steps, &adam).expect(FIT);
            }
            Rule::Sgd(sgd) => {
                let buffers = if sgd.momentum == 0.0 { &mut [][..] } else { &mut first[..] };
                fused_sgd_(&mut params, &grads, buffers, step == 0, &sgd).expect(FIT);
            }
        }
        let unchanged: Vec<_> = grads.iter().map(values).collect();
        assert_eq!(grad_values, unchanged, "gradients are read only");
    }
    let expected_steps = if matches!(rule, Rule::Sgd(_)) { 0.0 } else { STEPS as f64 };
    for step in &steps {
        assert_eq!(values(step), [expected_steps]);
    }
    params.iter().map(values).collect()
}

/// The formulas of the documentation, number by number in f64.
fn reference(rule: Rule, count: i64, lr: f64) -> Vec<f64> {
    let mut params = start(count);
    let (mut first, mut second) = (vec![0.0; params.len()], vec![0.0; params.len()]);
    for step in 0..STEPS {
        let t = step as i32 + 1;
        for (i, g) in gradient(count, step).into_iter().enumerate() {
            let (p, m, v) = (&mut params[i], &mut first[i], &mut second[i]);
            match rule {
                Rule::AdamW(adam) => {
                    *p -= lr * adam.weight_decay * *p;
                    *m = adam.beta1 * *m + (1.0 - adam.beta1) * g;
                    *v = adam.beta2 * *v + (1.0 - adam.beta2) * g * g;
                    let mean = *m / (1.0 - adam.beta1.powi(t));
                    let square = *v / (1.0 - adam.beta2.powi(t));
                    *p -= lr * mean / (square.sqrt() + adam.eps);
                }
                Rule::Sgd(sgd) => {
                    let g = g + sgd.weight_decay * *p;
                    *m = sgd.momentum * *m + g;
                    *p -= lr * if sgd.nesterov { g + sgd.momentum * *m } else { *m };
                }
            }
        }
    }
    params
}

fn rules() -> [(&'static str, Rule<'static>); 5] {
    let adam = Adam { lr: 1e-2.into(), weight_decay: 0.05, ..Adam::default() };
    let sgd = Sgd { lr: 1e-2.into(), weight_decay: 0.05, ..Sgd::default() };
    [
        ("adamw", Rule::AdamW(adam)),
        (
            "adamw, betas and eps",
            Rule::AdamW(Adam { beta1: 0.8, beta2: 0.95, eps: 1e-3, weight_decay: 0.0, ..adam }),
        ),
        ("sgd", Rule::Sgd(sgd)),
        ("sgd, momentum", Rule::Sgd(Sgd { momentum: 0.9, ..sgd })),
        ("sgd, nesterov", Rule::Sgd(Sgd { momentum: 0.9, nesterov: true, ..sgd })),
    ]
}

/// Printed by `docs/parity/optimizer_steps.py` with torch 2.11.0, in the order of [`rules`].
const PYTORCH: [[f64; 5]; 5] = [
    [-0.49023956, -0.29900450, -0.02727893, 0.21239388, 0.44495568],
    [-0.49864173, -0.29622489, -0.02914667, 0.21705392, 0.44918668],
    [-0.50625300, -0.26245475, -0.01871816, 0.23878901, 0.48255306],
    [-0.50861168, -0.32054910, -0.06474300, 0.18864465, 0.40931180],
    [-0.51406193, -0.32570535, -0.07684848, 0.18377830, 0.40118602],
];

#[test]
fn steps_are_those_of_pytorch() {
    for device in test_devices() {
        for ((name, rule), expected) in rules().into_iter().zip(PYTORCH) {
            for one_step_count in [false, true] {
                let found = fused(rule, &[5], one_step_count, device);
                assert_close(&found[0], &expected, 1e-6, name);
            }
        }
    }
}

#[test]
fn steps_are_those_of_the_formulas() {
    // More and fewer values than a vector register holds, none, and enough for two threads.
    let counts = [1, 1000, 7, 0, 70_001];
    for device in test_devices() {
        for (name, rule) in rules() {
            for (found, count) in fused(rule, &counts, true, device).iter().zip(counts) {
                assert_close(found, &reference(rule, count, 1e-2), 1e-6, name);
            }
        }
    }
}

#[test]
fn the_learning_rate_may_be_a_tensor() {
    for device in test_devices() {
        let lr = Tensor::from(1e-2f32).to_device(device);
        for (name, rule) in rules() {
            let on_device = match rule {
                Rule::AdamW(adam) => Rule::AdamW(Adam { lr: (&lr).into(), ..adam }),
                Rule::Sgd(sgd) => Rule::Sgd(Sgd { lr: (&lr).into(), ..sgd }),
            };
            let found = fused(on_device, &[300], true, device);
            assert_close(&found[0], &reference(rule, 300, 1e-2), 1e-6, name);
        }
    }
}

#[test]
fn memory_order_does_not_change_a_step() {
    for device in test_devices() {
        let shape = [3, 4, 2, 5];
        let count = shape.iter().product();
        let adam = Adam { weight_decay: 0.1, ..Adam::default() };
        let weight = tensor(&start(count), device).view(shape);
        let mut params = [torch_ext::channels_last(&weight).unwrap()];
        // Contiguous, unlike the parameter.
        let grads = [tensor(&gradient(count, 0), device).view(shape)];
        assert_ne!(params[0].stride(), grads[0].stride());
        let (mut first, mut second) = ([params[0].zeros_like()], [params[0].zeros_like()]);
        let mut steps = [Tensor::zeros([1], (Kind::Float, device))];
        fused_adamw_(&mut params, &grads, &mut first, &mut second, &mut steps, &adam).unwrap();

        let mut flat = [tensor(&start(count), device)];
        let (mut flat_first, mut flat_second) = ([flat[0].zeros_like()], [flat[0].zeros_like()]);
        let mut steps = [Tensor::zeros([1], (Kind::Float, device))];
        let grads = [grads[0].flatten(0, -1)];
        fused_adamw_(&mut flat, &grads, &mut flat_first, &mut flat_second, &mut steps, &adam).unwrap();
        assert_close(&values(&params[0]), &values(&flat[0]), 1e-7, "parameters");
        assert_close(&values(&first[0]), &values(&flat_first[0]), 1e-7, "first moments");
    }
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
    let step = |param: Tensor,
                grad: Tensor,
                first: Tensor,
                second: Tensor,
                steps: &mut [Tensor],
                lr: LearningRate| {
        let before = values(&param);
        let mut params = [param];
        let adam = Adam { lr, ..Adam::default() };
        let result = fused_adamw_(&mut params, &[grad], &mut [first], &mut [second], steps, &adam);
        assert_eq!(values(&params[0]), before, "a refused step changes nothing");
        match result {
            Err(TorchExtError::Argument(message)) => message,
            other => panic!("{other:?}"),
        }
    };
    let a = || ones(&[4, 6]);
    let count = || [Tensor::from(0f32)];
    let lr = || LearningRate::Number(0.1);
    let big = || ones(&[8, 6]);

    let message = step(a(), ones(&[2, 6]), a(), a(), &mut count(), lr());
    assert_eq!(message, "grads[0] must have the shape, kind and device of params[0]");
    let message = step(a(), a().to_kind(Kind::BFloat16), a(), a(), &mut count(), lr());
    assert_eq!(message, "grads[0] must have the shape, kind and device of params[0]");
    let message = step(a(), a(), ones(&[24]), a(), &mut count(), lr());
    assert_eq!(message, "exp_avgs[0] must have the shape, kind and device of params[0]");
    let message = step(a(), a(), a(), ones(&[1]), &mut count(), lr());
    assert_eq!(message, "exp_avg_sqs[0] must have the shape, kind and device of params[0]");
    let message = step(a(), a(), ones(&[6, 4]).tr(), a(), &mut count(), lr());
    assert_eq!(message, "exp_avgs[0] must have the strides of params[0]");
    let message = step(big().slice(0, 0, 8, 2), a(), a(), a(), &mut count(), lr());
    assert_eq!(message, "params[0] must be dense in memory, not a view with gaps");
    let message = step(ones(&[1, 6]).expand([4, 6], false), a(), a(), a(), &mut count(), lr());
    assert_eq!(message, "params[0] must be dense in memory, not a view with gaps");
    let message = step(a().to_kind(Kind::Int64), a(), a(), a(), &mut count(), lr());
    assert_eq!(message, "params[0] must be of floating point");
    let message = step(a(), Tensor::new(), a(), a(), &mut count(), lr());
    assert_eq!(message, "grads[0] is undefined");
    let message = step(a(), a().to_sparse_sparse_dim(2), a(), a(), &mut count(), lr());
    assert_eq!(message, "grads[0] must have the shape, kind and device of params[0]");
    for wrong in [Tensor::from(0i64), Tensor::zeros([2], (Kind::Float, Device::Cpu))] {
        let message = step(a(), a(), a(), a(), &mut [wrong], lr());
        assert_eq!(message, "steps[0] must be one f32 number on the device of the parameters");
    }
    let message = step(a(), a(), a(), a(), &mut [], lr());
    assert_eq!(message, "steps has 0 tensors, but there must be 1");
    let rate = Tensor::from(0.1f64);
    let message = step(a(), a(), a(), a(), &mut count(), (&rate).into());
    assert_eq!(message, "the learning rate must be one f32 number");

    let sgd = Sgd { momentum: 0.9, ..Sgd::default() };
    let error = fused_sgd_(&mut [a()], &[a()], &mut [], true, &sgd).unwrap_err();
    assert_eq!(error.to_string(), "momentum_buffers has 0 tensors, but there must be 1");
    let error = fused_sgd_(&mut [a()], &[a()], &mut [a()], true, &Sgd::default()).unwrap_err();
    assert_eq!(error.to_string(), "momentum_buffers has 1 tensors, but there must be 0");
    let error = fused_sgd_(&mut [a()], &[a()], &mut [big()], true, &sgd).unwrap_err();
    assert_eq!(error.to_string(), "momentum_buffers[0] must have the shape, kind and device of params[0]");
    let mut mixed = [a(), a().to_kind(Kind::Double)];
    let grads = [a(), a().to_kind(Kind::Double)];
    let error = fused_sgd_(&mut mixed, &grads, &mut [], true, &Sgd::default()).unwrap_err();
    assert_eq!(error.to_string(), "params[1] must be on the device and of the kind of params[0]");
}

#[test]
fn no_parameters_are_no_step() {
    fused_adamw_(&mut [], &[], &mut [], &mut [], &mut [], &Adam::default()).unwrap();
    fused_sgd_(&mut [], &[], &mut [], true, &Sgd::default()).unwrap();
}

#[test]
fn clipping_is_that_of_pytorch() {
    // Printed by docs/parity/optimizer_steps.py with torch 2.11.0.
    let clipped = [
        [-0.17149848, 0.12862386, -0.04287462, 0.25724772, 0.08574924],
        [-0.04287462, 0.25724772, 0.08574924, -0.08574924, 0.21437310],
    ];
    for device in test_devices() {
        let grads = || [tensor(&gradient(5, 0), device), tensor(&gradient(5, 1), device)];
        let mut grads_clipped = grads();
        let norm = clip_grad_norm_(&mut grads_clipped, 0.5).unwrap();
        assert_eq!(norm.device(), device);
        assert!(norm.size().is_empty());
        assert_close(&values(&norm), &[1.45773792], 1e-6, "norm");
        for (found, expected) in grads_clipped.iter().zip(clipped) {
            assert_close(&values(found), &expected, 1e-7, "clipped");
        }
        let mut untouched = grads();
        let norm = clip_grad_norm_(&mut untouched, 1.5).unwrap();
        assert_close(&values(&norm), &[1.45773792], 1e-6, "norm");
        for (found, expected) in untouched.iter().zip(grads()) {
            assert_eq!(values(found), values(&expected));
        }
    }
}
