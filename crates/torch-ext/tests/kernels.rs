//! Kernels against libtorch in f64: values and gradients.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, Tensor};
use torch_ext::{
    Autocast, BatchNorm, Gelu, add_layer_norm, attention, depthwise, gelu, gelu_batch_norm, has_winograd,
    layer_norm, winograd,
};

const F64: (Kind, Device) = (Kind::Double, Device::Cpu);

/// The largest difference, over the largest value or 0.1.
fn difference(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.size(), want.size());
    let largest = want.abs().max().double_value(&[]).max(0.1);
    (got.to_kind(Kind::Double) - want).abs().max().double_value(&[]) / largest
}

/// Of the tests that seed libtorch's generator, which all share, one runs at a time. Others draw nothing from it.
static GENERATOR: Mutex<()> = Mutex::new(());

fn generator() -> MutexGuard<'static, ()> {
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Numbers of a mean of 0 and a variance of 1 that bf16 holds exactly, so that all kinds start from the same.
fn numbers(shape: &[i64], seed: u64) -> Tensor {
    let count = shape.iter().product::<i64>() as u64;
    let uniform = |n: u64| {
        // SplitMix64 (Steele et al. 2014).
        let mut z = (n + (seed << 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    // The sum of twelve is nearly normal.
    let values: Vec<f32> = (0..count).map(|i| (0..12).map(|j| uniform(12 * i + j)).sum()).collect();
    Tensor::from_slice(&values).reshape(shape).to_kind(Kind::BFloat16).to_kind(Kind::Double)
}

/// Value and gradients of a function of `inputs` in a kind; the gradient of its output is `grad`.
fn with_gradients(
    inputs: &[Tensor],
    kind: Kind,
    grad: &Tensor,
    function: &dyn Fn(&[Tensor]) -> Tensor,
) -> Vec<Tensor> {
    let inputs: Vec<Tensor> =
        inputs.iter().map(|input| input.to_kind(kind).detach().copy().set_requires_grad(true)).collect();
    let output = function(&inputs);
    let grads =
        Tensor::run_backward(&[(&output * grad.to_kind(kind)).sum(Kind::Float)], &inputs, false, false);
    std::iter::once(output.detach()).chain(grads).collect()
}

fn assert_like_f64(
    what: &str,
    inputs: &[Tensor],
    grad: &Tensor,
    fast: &dyn Fn(&[Tensor]) -> Tensor,
    exact: &dyn Fn(&[Tensor]) -> Tensor,
) {
    let want = with_gradients(inputs, Kind::Double, grad, exact);
    for (kind, tolerance) in [(Kind::Float, 2e-6), (Kind::BFloat16, 1.5e-2)] {
        let got = with_gradients(inputs, kind, grad, fast);
        assert_near(&format!("{what} in {kind:?}"), &got, &want, tolerance);
    }
}

fn assert_near(what: &str, got: &[Tensor], want: &[Tensor], tolerance: f64) {
    for (n, (got, want)) in got.iter().zip(want).enumerate() {
        let found = difference(got, want);
        assert!(found < tolerance, "{what}, result {n}: {found:e}");
    }
}

#[test]
fn gelus_and_their_slopes_are_those_of_f64() {
    for (form, name) in [(Gelu::Erf, "none"), (Gelu::Tanh, "tanh")] {
        // Lengths with and without a rest beside whole vectors, and more than one thread's share.
        for shape in [vec![1], vec![37], vec![3, 5, 7], vec![300, 301]] {
            let x = numbers(&shape, 1) * 3.0;
            let grad = numbers(&shape, 2);
            assert_like_f64(name, &[x], &grad, &|x| gelu(&x[0], form, 0.0).unwrap(), &|x| x[0].gelu(name));
        }
        // Tails: no overflow, no NaN, exact where GELU is x or 0; and NaN stays.
        let x = Tensor::from_slice(&[-1e30f32, -50.0, -0.0, 50.0, 1e30, f32::NAN, f32::INFINITY]);
        let y = Vec::<f32>::try_from(gelu(&x, form, 0.0).unwrap()).unwrap();
        // As little as is left of it without the smallest numbers.
        assert!(y[0].abs() < 1e-7 && y[1].abs() < 1e-35, "{y:?}");
        assert_eq!(y[2..5], [-0.0, 50.0, 1e30]);
        assert!(y[5].is_nan() && y[6] == f32::INFINITY, "{y:?}");
    }
}

#[test]
fn a_gelu_of_other_strides_is_the_same() {
    let x = numbers(&[4, 6, 5], 1).to_kind(Kind::Float);
    for view in [x.transpose(0, 2), x.narrow(2, 1, 3)] {
        let found =
            difference(&gelu(&view, Gelu::Erf, 0.0).unwrap(), &view.to_kind(Kind::Double).gelu("none"));
        assert!(found < 1e-6, "{found}");
    }
}

/// Attention as products of matrices: `inputs` are packed, then a query if `external`, then a bias.
fn explicit(inputs: &[Tensor], external: bool, heads: i64) -> Tensor {
    let parts = if external { 2 } else { 3 };
    let mut all: Vec<Tensor> = inputs[0]
        .chunk(parts, -1)
        .iter()
        .map(|x| x.reshape([x.size()[0], x.size()[1], heads, -1]).transpose(1, 2))
        .collect();
    if external {
        all.insert(0, inputs[1].shallow_clone());
    }
    let scores = all[0].matmul(&all[1].transpose(-2, -1)) / (all[0].size()[3] as f64).sqrt();
    let scores = match inputs.get(1 + usize::from(external)) {
        Some(bias) => scores + bias,
        None => scores,
    };
    scores.softmax(-1, Kind::Double).matmul(&all[2]).transpose(1, 2).flatten(2, 3)
}

#[test]
fn attention_and_its_gradients_are_those_of_f64() {
    // Sizes around those of a vector, of a block of rows, and of the networks.
    for (images, heads, tokens, channels) in
        [(1, 1, 1, 1), (2, 3, 5, 7), (3, 2, 16, 16), (2, 4, 145, 16), (2, 2, 64, 128), (1, 2, 49, 32)]
    {
        for external in [false, true] {
            for biased in [false, true] {
                let parts = if external { 2 } else { 3 };
                let queries = if external { tokens + 2 } else { tokens };
                let mut inputs = vec![numbers(&[images, tokens, parts * heads * channels], 3)];
                if external {
                    inputs.push(numbers(&[images, heads, queries, channels], 4));
                }
                if biased {
                    inputs.push(numbers(&[1, heads, queries, tokens], 5));
                }
                let grad = numbers(&[images, queries, heads * channels], 6);
                let what = format!("{images} {heads} {tokens} {channels} {external} {biased}");
                let fast = |inputs: &[Tensor]| {
                    let query = external.then(|| &inputs[1]);
                    let bias = biased.then(|| inputs[1 + usize::from(external)].to_kind(Kind::Float));
                    attention(&inputs[0], query, bias.as_ref(), heads, 0.0).unwrap()
                };
                assert_like_f64(&what, &inputs, &grad, &fast, &|inputs| explicit(inputs, external, heads));
            }
        }
    }
}

#[test]
fn images_and_threads_do_not_mix() {
    let _alone = generator();
    let packed = numbers(&[40, 30, 3 * 2 * 8], 1).to_kind(Kind::Float);
    let bias = numbers(&[1, 2, 30, 30], 2).to_kind(Kind::Float);
    let run = |threads| {
        tch::set_num_threads(threads);
        tch::manual_seed(1);
        let (packed, bias) = (packed.copy().set_requires_grad(true), bias.copy().set_requires_grad(true));
        let y = attention(&packed, None, Some(&bias), 2, 0.2).unwrap();
        let grads = Tensor::run_backward(&[y.square().sum(Kind::Float)], &[&packed, &bias], false, false);
        (y.detach(), grads)
    };
    let (one, two) = (run(1), run(2));
    assert_eq!(one, two, "bit for bit");
    let last = attention(&packed.narrow(0, 39, 1), None, Some(&bias), 2, 0.0).unwrap();
    assert_eq!(last, attention(&packed, None, Some(&bias), 2, 0.0).unwrap().narrow(0, 39, 1));
}

#[test]
fn dropout_drops_its_share_and_the_backward_pass_the_same() {
    let _alone = generator();
    tch::manual_seed(2);
    let x = Tensor::full([200, 500], 3.0, (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let y = gelu(&x, Gelu::Tanh, 0.3).unwrap();
    let kept = y.ne(0.0);
    let share = kept.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
    // Five standard deviations of 100,000 draws.
    assert!((share - 0.7).abs() < 5.0 * (0.3f64 * 0.7 / 1e5).sqrt(), "{share}");
    y.sum(Kind::Float).backward();
    assert_eq!(x.grad().ne(0.0), kept);
    let whole = gelu(&x.detach(), Gelu::Tanh, 0.0).unwrap();
    assert!(difference(&y.detach(), &(&whole * &kept / 0.7).to_kind(Kind::Double)) < 1e-6);
    // Rows and columns are all alike, and the next draw is another one.
    for dim in [0i64, 1] {
        let shares = kept.to_kind(Kind::Double).mean_dim([dim].as_slice(), false, Kind::Double);
        let n = f64::from([200, 500][dim as usize]);
        let variance = shares.var(true).double_value(&[]) / (0.3 * 0.7 / n);
        assert!((variance - 1.0).abs() < 0.35, "{variance}");
    }
    let next = gelu(&x.detach(), Gelu::Tanh, 0.3).unwrap().ne(0.0);
    let both = kept.logical_and(&next).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
    assert!((both - 0.49).abs() < 0.01, "{both}");
    tch::manual_seed(2);
    assert_eq!(gelu(&x.detach(), Gelu::Tanh, 0.3).unwrap(), y.detach());
}

#[test]
fn dropout_of_attention_is_unbiased_and_has_the_gradient_of_what_it_kept() {
    let _alone = generator();
    // With values of one, an output is the sum of the probabilities that were kept.
    let (images, tokens) = (64, 33);
    let mut packed = numbers(&[images, tokens, 3 * 2 * 8], 7);
    let _ = packed.narrow(2, 32, 16).fill_(1.0);
    let sums = attention(&packed.to_kind(Kind::Float), None, None, 2, 0.1).unwrap();
    let mean = sums.mean(Kind::Double).double_value(&[]);
    assert!((mean - 1.0).abs() < 0.01, "{mean}");
    // Finite differences with the same draw.
    packed = numbers(&[1, 5, 3 * 4], 8);
    let run = |packed: &Tensor| {
        tch::manual_seed(9);
        attention(packed, None, None, 1, 0.4).unwrap().square().sum(Kind::Float)
    };
    let x = packed.to_kind(Kind::Float).set_requires_grad(true);
    run(&x).backward();
    for at in 0..60 {
        let step = Tensor::zeros([60], F64);
        let _ = step.get(at).fill_(1e-2);
        let moved = |sign: f64| run(&(&packed + sign * step.view([1, 5, 12])).to_kind(Kind::Float));
        let slope = (moved(1.0).double_value(&[]) - moved(-1.0).double_value(&[])) / 2e-2;
        let got = x.grad().flatten(0, -1).double_value(&[at]);
        assert!((got - slope).abs() < 2e-2 * (1.0 + slope.abs()), "{at}: {got} {slope}");
    }
}

#[test]
fn depthwise_convolutions_and_their_gradients_are_those_of_f64() {
    // Channels with and without a rest, every side of a kernel, maps smaller than it, uneven padding.
    for (images, channels, height, width, kernel, top, left) in [
        (2, 16, 4, 5, 1, 0, 0),
        (2, 20, 7, 9, 2, 0, 1),
        (3, 32, 17, 16, 3, 1, 1),
        (1, 3, 2, 3, 4, 1, 2),
        (20, 48, 16, 16, 5, 2, 2),
        (1, 7, 5, 19, 6, 2, 3),
        (2, 16, 8, 8, 7, 3, 3),
        (2, 16, 10, 11, 8, 3, 3),
        (1, 33, 3, 12, 9, 4, 4),
    ] {
        let inputs = [
            numbers(&[images, channels, height, width], 1),
            numbers(&[channels, 1, kernel, kernel], 2),
            numbers(&[channels], 3),
        ];
        let grad = numbers(&[images, channels, height, width], 4);
        let exact = |inputs: &[Tensor]| {
            let rest = kernel - 1;
            let padded = inputs[0].constant_pad_nd([left, rest - left, top, rest - top]);
            padded.conv2d(&inputs[1], Some(&inputs[2]), 1, 0, 1, channels)
        };
        assert_like_f64(
            &format!("kernel {kernel}"),
            &inputs,
            &grad,
            &|inputs| depthwise(&inputs[0], &inputs[1], Some(&inputs[2]), [top, left]).unwrap(),
            &exact,
        );
        let without =
            depthwise(&inputs[0].to_kind(Kind::Float), &inputs[1].to_kind(Kind::Float), None, [top, left]);
        let bias = inputs[2].view([1, -1, 1, 1]);
        assert!(difference(&without.unwrap(), &(exact(&inputs) - bias)) < 2e-6);
    }
}

#[test]
fn winograd_convolutions_and_their_gradients_are_those_of_f64() {
    // The transformations cost a digit: libtorch's own error is 3e-7 here.
    // Maps that tiles fill and that they do not, smaller than one, with and without padding; few channels and many.
    for (images, inputs, outputs, height, width, padding) in [
        (2, 16, 32, 12, 12, 1),
        (1, 32, 16, 5, 7, 1),
        (3, 64, 128, 16, 16, 0),
        (20, 48, 80, 9, 13, 1),
        (2, 16, 16, 1, 2, 1),
        (1, 96, 64, 3, 3, 0),
        (9, 256, 256, 12, 12, 1),
    ] {
        let tensors = [
            numbers(&[images, inputs, height, width], 1),
            numbers(&[outputs, inputs, 3, 3], 2),
            numbers(&[outputs], 3),
        ];
        let smaller = 2 - 2 * padding;
        let grad = numbers(&[images, outputs, height - smaller, width - smaller], 4);
        let exact = |tensors: &[Tensor]| {
            tensors[0].conv2d(&tensors[1], Some(&tensors[2]), [1, 1], [padding, padding], [1, 1], 1)
        };
        let fast =
            |tensors: &[Tensor]| winograd(&tensors[0], &tensors[1], Some(&tensors[2]), padding).unwrap();
        let want = with_gradients(&tensors, Kind::Double, &grad, &exact);
        let got = with_gradients(&tensors, Kind::Float, &grad, &fast);
        assert_near(&format!("{inputs} to {outputs}"), &got, &want, 5e-6);
        let [maps, weight, bias] = tensors.map(|tensor| tensor.to_kind(Kind::Float));
        let without = winograd(&maps, &weight, None, padding).unwrap();
        assert!(difference(&(without + bias.view([1, -1, 1, 1])), &want[0]) < 5e-6);
    }
}

#[test]
fn images_and_threads_do_not_mix_in_winograd_convolutions() {
    let _alone = generator();
    let [maps, weight] = [numbers(&[37, 32, 9, 9], 1), numbers(&[48, 32, 3, 3], 2)];
    let [maps, weight] = [maps, weight].map(|tensor| tensor.to_kind(Kind::Float));
    let run = |threads| {
        tch::set_num_threads(threads);
        let (maps, weight) = (maps.copy().set_requires_grad(true), weight.copy().set_requires_grad(true));
        let y = winograd(&maps, &weight, None, 1).unwrap();
        let grads = Tensor::run_backward(&[y.square().sum(Kind::Float)], &[&maps, &weight], false, false);
        (y.detach(), grads)
    };
    let (one, two) = (run(1), run(2));
    assert_eq!(one, two, "bit for bit");
    assert_eq!(winograd(&maps.narrow(0, 36, 1), &weight, None, 1).unwrap(), one.0.narrow(0, 36, 1));
}

#[test]
fn winograd_convolutions_that_cannot_be_computed_so_are_refused() {
    let maps = Tensor::ones([64, 32, 8, 8], (Kind::Float, Device::Cpu));
    let weight = |shape: [i64; 4]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
    let fits = weight([32, 32, 3, 3]);
    assert!(has_winograd(&maps, &fits, 1) && winograd(&maps, &fits, None, 1).is_ok());
    for other in [[32, 32, 5, 5], [33, 32, 3, 3], [32, 16, 3, 3]] {
        assert!(!has_winograd(&maps, &weight(other), 1) && winograd(&maps, &weight(other), None, 1).is_err());
    }
    // These are computed, and libtorch is faster.
    let few = maps.narrow(0, 0, 63);
    assert!(!has_winograd(&few, &fits, 1) && winograd(&few, &fits, None, 1).is_ok());
    let narrow = weight([16, 32, 3, 3]);
    assert!(!has_winograd(&maps, &narrow, 1) && winograd(&maps, &narrow, None, 1).is_ok());
    let double = maps.to_kind(Kind::Double);
    assert!(!has_winograd(&double, &fits, 1) && winograd(&double, &fits, None, 1).is_err());
    {
        let _autocast = Autocast::enter(Device::Cpu, Kind::BFloat16).unwrap();
        assert!(!has_winograd(&maps, &fits, 1) && winograd(&maps, &fits, None, 1).is_err());
    }
    assert!(winograd(&maps, &fits, None, 2).is_err() && winograd(&maps, &fits, Some(&maps), 1).is_err());
    assert!(winograd(&maps.narrow(2, 0, 2), &fits, None, 0).is_err());
}

#[test]
fn batch_norms_of_gelus_are_those_of_f64() {
    for (images, channels, height, width) in [(7, 5, 1, 1), (3, 64, 7, 5), (2, 100, 4, 4), (70, 16, 3, 3)] {
        for (form, name) in [(Gelu::Erf, "none"), (Gelu::Tanh, "tanh")] {
            for (train, residual) in [(true, true), (true, false), (false, true)] {
                let shape = [images, channels, height, width];
                let mut inputs =
                    vec![numbers(&shape, 1) * 2.0, numbers(&[channels], 2), numbers(&[channels], 3)];
                if residual {
                    inputs.push(numbers(&shape, 4));
                }
                let grad = numbers(&shape, 5);
                let statistics = |kind| {
                    let of = |seed| numbers(&[channels], seed).to_kind(kind);
                    [of(6), of(7).abs() + 0.5]
                };
                let (fast, exact) = (statistics(Kind::Float), statistics(Kind::Double));
                let f32s = |tensor: &Tensor| tensor.to_kind(Kind::Float);
                assert_like_f64(
                    &format!("{name} {shape:?} {train} {residual}"),
                    &inputs,
                    &grad,
                    &|inputs| {
                        let [running_mean, running_var] = &fast;
                        let (weight, bias) = (&f32s(&inputs[1]), &f32s(&inputs[2]));
                        let norm =
                            BatchNorm { weight, bias, running_mean, running_var, momentum: 0.1, eps: 1e-3 };
                        gelu_batch_norm(&inputs[0], form, inputs.get(3), norm, train).unwrap()
                    },
                    &|inputs| {
                        let [mean, var] = &exact;
                        let (weight, bias) = (Some(&inputs[1]), Some(&inputs[2]));
                        let y = inputs[0].gelu(name);
                        let y = y.batch_norm(weight, bias, Some(mean), Some(var), train, 0.1, 1e-3, false);
                        inputs.get(3).map_or(y.shallow_clone(), |residual| &y + residual)
                    },
                );
                // The fast way was gone once in each kind.
                let again = inputs[0].gelu(name);
                let [mean, var] = &exact;
                let (weight, bias) = (Some(&inputs[1]), Some(&inputs[2]));
                let _ = again.batch_norm(weight, bias, Some(mean), Some(var), train, 0.1, 1e-3, false);
                for (fast, exact) in fast.iter().zip(&exact) {
                    assert!(difference(fast, exact) < 2e-3, "statistics");
                }
            }
        }
    }
}

#[test]
fn layer_norms_and_sums_before_them_are_those_of_f64() {
    for (images, tokens, channels) in [(1, 1, 2), (3, 5, 7), (2, 145, 64), (4, 9, 100), (1, 2, 512)] {
        let shape = [images, tokens, channels];
        let f32s = |tensor: &Tensor| tensor.to_kind(Kind::Float);
        for factored in [false, true] {
            let inputs =
                [numbers(&shape, 1), numbers(&shape, 2), numbers(&[channels], 3), numbers(&[channels], 4)];
            let factors = f32s(&numbers(&[images, 1, 1], 5));
            // Sum and norm beside each other, so that both have gradients.
            let grad = numbers(&[images, tokens, 2 * channels], 6);
            assert_like_f64(
                &format!("{shape:?} {factored}"),
                &inputs,
                &grad,
                &|inputs| {
                    let [x, branch, weight, bias] = inputs else { panic!("four inputs") };
                    let factors = factored.then_some(&factors);
                    Tensor::cat(
                        &add_layer_norm(x, branch, factors, &f32s(weight), &f32s(bias), 1e-2).unwrap(),
                        -1,
                    )
                },
                &|inputs| {
                    let [x, branch, weight, bias] = inputs else { panic!("four inputs") };
                    let sum = if factored { x + branch * &factors } else { x + branch };
                    let normed = sum.layer_norm([channels], Some(weight), Some(bias), 1e-2, false);
                    Tensor::cat(&[sum, normed], -1)
                },
            );
        }
        let inputs = [numbers(&shape, 7), numbers(&[channels], 8), numbers(&[channels], 9)];
        assert_like_f64(
            &format!("{shape:?} alone"),
            &inputs,
            &numbers(&shape, 10),
            &|inputs| layer_norm(&inputs[0], &f32s(&inputs[1]), &f32s(&inputs[2]), 1e-2).unwrap(),
            &|inputs| inputs[0].layer_norm([channels], Some(&inputs[1]), Some(&inputs[2]), 1e-2, false),
        );
    }
}

#[test]
fn under_autocast_a_norm_is_narrow_and_the_sum_before_it_is_not() {
    let f32s = (Kind::Float, Device::Cpu);
    let x = numbers(&[2, 3, 32], 1).to_kind(Kind::Float).set_requires_grad(true);
    let (weight, bias) = (Tensor::ones([32], f32s), Tensor::zeros([32], f32s));
    let branch = x.detach().to_kind(Kind::BFloat16).set_requires_grad(true);
    let [sum, normed] = {
        let _narrow = Autocast::enter(Device::Cpu, Kind::BFloat16).unwrap();
        add_layer_norm(&x, &branch, None, &weight, &bias, 1e-5).unwrap()
    };
    assert_eq!((sum.kind(), normed.kind()), (Kind::Float, Kind::BFloat16));
    // With the norm alone used further on, gradients of a constant sum to nothing.
    let grads = Tensor::run_backward(&[normed.sum(Kind::Float)], &[&x, &branch], true, false);
    assert_eq!((grads[0].kind(), grads[1].kind()), (Kind::Float, Kind::BFloat16));
    assert!(grads[0].abs().max().double_value(&[]) < 1e-5);
    let grads = Tensor::run_backward(&[sum.sum(Kind::Float)], &[&x, &branch], false, false);
    assert!((&grads[0] - 1.0).abs().max().double_value(&[]) < 1e-5);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let f32s = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    assert!(gelu(&Tensor::zeros([2], F64), Gelu::Erf, 0.0).is_err());
    for rate in [-0.1, 1.0, f64::NAN] {
        assert!(gelu(&f32s(&[2]), Gelu::Erf, rate).is_err(), "{rate}");
    }
    for (packed, query, bias, heads) in [
        (f32s(&[2, 12]), None, None, 2),
        (f32s(&[1, 2, 12]), None, None, 5),
        (f32s(&[1, 2, 12]), None, None, 0),
        (f32s(&[1, 2, 12]), Some(f32s(&[1, 2, 4, 4])), None, 2),
        (f32s(&[1, 2, 12]), None, Some(f32s(&[1, 2, 2, 3])), 2),
    ] {
        assert!(attention(&packed, query.as_ref(), bias.as_ref(), heads, 0.0).is_err());
    }
    for (maps, weight, bias, zeros) in [
        (f32s(&[2, 4, 4]), f32s(&[2, 1, 3, 3]), None, [1, 1]),
        (f32s(&[1, 2, 4, 4]), f32s(&[3, 1, 3, 3]), None, [1, 1]),
        (f32s(&[1, 2, 4, 4]), f32s(&[2, 1, 10, 10]), None, [1, 1]),
        (f32s(&[1, 2, 4, 4]), f32s(&[2, 1, 3, 3]), None, [3, 1]),
        (f32s(&[1, 2, 4, 4]), f32s(&[2, 1, 3, 3]), Some(f32s(&[3])), [1, 1]),
    ] {
        assert!(depthwise(&maps, &weight, bias.as_ref(), zeros).is_err());
    }
    for (x, branch, factors, weight) in [
        (f32s(&[2, 3]), f32s(&[2, 4]), None, f32s(&[3])),
        (f32s(&[2, 3]), f32s(&[2, 3]), None, f32s(&[4])),
        (f32s(&[2, 3]), f32s(&[2, 3]), Some(f32s(&[3])), f32s(&[3])),
        (f32s(&[2, 5000]), f32s(&[2, 5000]), None, f32s(&[5000])),
    ] {
        assert!(add_layer_norm(&x, &branch, factors.as_ref(), &weight, &weight, 1e-5).is_err());
    }
    for (maps, channels, residual) in [
        (f32s(&[1, 2, 1, 1]), f32s(&[2]), None),
        (f32s(&[2, 2, 2, 2]), f32s(&[3]), None),
        (f32s(&[2, 2, 2, 2]), Tensor::zeros([2], F64), None),
        (f32s(&[2, 2, 2, 2]), f32s(&[2]), Some(f32s(&[2, 2, 2, 1]))),
    ] {
        let [weight, bias, running_mean, running_var] = &[0; 4].map(|_| channels.shallow_clone());
        let norm = BatchNorm { weight, bias, running_mean, running_var, momentum: 0.1, eps: 1e-5 };
        assert!(gelu_batch_norm(&maps, Gelu::Erf, residual.as_ref(), norm, true).is_err());
    }
}
