//! Processes that compute together, as threads with a group each: sums, copies, bytes, and what becomes of one that leaves.

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};
use torch_ext::{
    BatchNorm, Gelu, Meeting, ProcessGroup, Reducer, TorchExtError, batch_norm, gelu_batch_norm,
};

/// A port that nobody listens at.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it has an address").port()
}

/// What each of `size` members answers.
fn together<T: Send + 'static>(
    size: usize,
    timeout: Duration,
    member: impl Fn(ProcessGroup) -> T + Send + Clone + 'static,
) -> Vec<T> {
    let port = free_port();
    let members: Vec<_> = (0..size)
        .map(|rank| {
            let member = member.clone();
            thread::spawn(move || {
                let (host, name) = ("127.0.0.1".to_owned(), "test".to_owned());
                let meeting = Meeting { rank, size, host, port, serves: rank == 0, name };
                member(ProcessGroup::open(&meeting, Device::Cpu, timeout).expect("all come"))
            })
        })
        .collect();
    members.into_iter().map(|member| member.join().expect("none panics")).collect()
}

#[test]
fn all_get_the_sum_the_mean_the_copy_and_the_bytes() {
    for size in [2, 3] {
        let answers = together(size, Duration::from_secs(60), |group| {
            let rank = group.rank() as f64;
            let (floats, options) = (Tensor::from_slice(&[rank, 1.0]), (Kind::Float, Device::Cpu));
            let narrow = Tensor::full([3, 2], rank + 0.5, options).to_kind(Kind::BFloat16);
            // Not contiguous, and of a kind of its own.
            let turned = Tensor::arange(6, (Kind::Int64, Device::Cpu)).reshape([2, 3]).transpose(0, 1);
            group.sum(&[floats.shallow_clone(), narrow.shallow_clone(), turned.shallow_clone()]).unwrap();
            let mean = Tensor::full([4], rank, options);
            group.mean(&[mean.shallow_clone()]).unwrap();
            let copy = Tensor::full([2], rank, options);
            group.broadcast(&[copy.shallow_clone()], 1).unwrap();
            group.barrier().unwrap();
            let bytes = group.gather("abc".repeat(group.rank()).as_bytes()).unwrap();
            assert!(matches!(group.mean(&[turned.shallow_clone()]), Err(TorchExtError::Argument(_))));
            assert!(matches!(group.broadcast(&[copy.shallow_clone()], 7), Err(TorchExtError::Argument(_))));
            ([floats, narrow, turned, mean, copy], bytes)
        });
        let n = size as f64;
        let ranks = n * (n - 1.0) / 2.0;
        for ([floats, narrow, turned, mean, copy], bytes) in answers {
            assert_eq!(Vec::<f64>::try_from(floats).unwrap(), [ranks, n]);
            assert_eq!(narrow.size(), [3, 2]);
            assert_eq!(narrow.to_kind(Kind::Double).min().double_value(&[]), ranks + n / 2.0);
            let wanted = [0, 3, 1, 4, 2, 5].map(|value| value * size as i64);
            assert_eq!(Vec::<i64>::try_from(turned.contiguous().view(-1)).unwrap(), wanted);
            assert_eq!(Vec::<f32>::try_from(mean).unwrap(), [((n - 1.0) / 2.0) as f32; 4]);
            assert_eq!(Vec::<f32>::try_from(copy).unwrap(), [1.0; 2]);
            assert_eq!(bytes, (0..size).map(|rank| "abc".repeat(rank).into_bytes()).collect::<Vec<_>>());
        }
    }
}

/// The gradients of a sum of products, in buckets of any size, with a tensor that is not used and a pass before the last.
#[test]
fn gradients_are_summed_while_they_are_made() {
    for bucket_bytes in [1, 40, 1 << 20] {
        let answers = together(2, Duration::from_secs(60), move |group| {
            let rank = group.rank() as f64;
            let leaf = |n: i64| Tensor::ones([n, 2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
            let leaves = [leaf(3), leaf(1), leaf(5), leaf(2)];
            let reducer = Reducer::new(&group, &leaves, bucket_bytes).unwrap();
            assert!(reducer.finish().is_err(), "no pass was announced");
            let mut grads = Vec::new();
            for step in 0..3 {
                torch_ext::clear_grads(&leaves).unwrap();
                for part in 0..2 {
                    if part == 1 {
                        reducer.arm().unwrap();
                    }
                    let factor = 1.0 + rank + 10.0 * f64::from(step);
                    let used =
                        [&leaves[0], &leaves[2], &leaves[3]].map(|leaf| leaf.sum(Kind::Float) * factor);
                    (&used[0] + &used[1] * 2.0 + &used[2] * 3.0).backward();
                }
                reducer.finish().unwrap();
                assert!(!leaves[1].grad().defined());
                grads.push([0, 2, 3].map(|n| leaves[n].grad().copy()));
            }
            grads
        });
        for grads in answers {
            for (step, grads) in grads.iter().enumerate() {
                for (grad, weight) in grads.iter().zip([1.0, 2.0, 3.0]) {
                    let wanted = 2.0 * weight * (3.0 + 20.0 * step as f64);
                    assert_eq!(grad, &Tensor::full_like(grad, wanted), "step {step}, {bucket_bytes} bytes");
                }
            }
        }
    }
}

#[test]
fn who_waits_for_one_that_left_or_never_came_is_told_in_time() {
    let started = Instant::now();
    let answers = together(2, Duration::from_secs(5), |group| {
        let tensor = Tensor::ones([1000], (Kind::Float, Device::Cpu));
        (group.rank() == 0).then(|| group.sum(&[tensor]).unwrap_err().to_string())
    });
    assert!(answers[0].is_some() && answers[1].is_none());
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());

    let started = Instant::now();
    let alone = Meeting {
        rank: 0,
        size: 2,
        host: "127.0.0.1".to_owned(),
        port: free_port(),
        serves: true,
        name: "alone".to_owned(),
    };
    let error = ProcessGroup::open(&alone, Device::Cpu, Duration::from_secs(2)).unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}: {error}", started.elapsed());
    assert!(ProcessGroup::open(&Meeting { rank: 2, ..alone }, Device::Cpu, Duration::from_secs(2)).is_err());
}

/// Batch norm in training, of GELU or not, and the backward pass of the sum of what it answers by some factors: the
/// answer, the gradients of maps, weight and bias, and the running statistics.
fn normalised(of_gelu: bool, maps: &Tensor, factors: &Tensor) -> [Tensor; 6] {
    let leaf = |tensor: Tensor| tensor.detach().copy().set_requires_grad(true);
    let maps = leaf(maps.shallow_clone());
    let (weight, bias) =
        (leaf(Tensor::from_slice(&[1.5f32, -0.5, 2.0])), leaf(Tensor::from_slice(&[0.1f32, 0.2, 0.3])));
    let (running_mean, running_var) =
        (Tensor::from_slice(&[0.5f32, 0.0, -0.5]), Tensor::from_slice(&[1f32, 2.0, 3.0]));
    let norm = BatchNorm {
        weight: &weight,
        bias: &bias,
        running_mean: &running_mean,
        running_var: &running_var,
        momentum: 0.1,
        eps: 1e-3,
    };
    let y = match of_gelu {
        true => gelu_batch_norm(&maps, Gelu::Erf, None, norm, true),
        false => batch_norm(&maps, norm, true),
    };
    let y = y.expect("the tensors fit each other");
    (&y * factors).sum(Kind::Float).backward();
    let detached = y.detach();
    [detached, maps.grad(), weight.grad(), bias.grad(), running_mean, running_var]
}

/// Three processes share eight images, 5 and 3; the third has one that counts for nothing.
#[test]
fn batch_norm_of_all_processes_is_that_of_all_images() {
    let numbers = || Tensor::arange(8 * 3 * 16, (Kind::Float, Device::Cpu)).reshape([8, 3, 4, 4]);
    let maps = move || (numbers() * 0.7).sin() * 2.0 + numbers() * 0.002;
    let factors = move || (numbers() * 1.3).cos();
    for of_gelu in [false, true] {
        let whole = normalised(of_gelu, &maps(), &factors());
        let shares = together(3, Duration::from_secs(60), move |group| {
            let (first, len, counts) = [(0, 5, true), (5, 3, true), (0, 1, false)][group.rank()];
            let part = |tensor: Tensor| tensor.narrow(0, first, len);
            let factor = if counts { 1.0 } else { 0.0 };
            let answer = group.sharing_batch_norm(counts, || {
                normalised(of_gelu, &part(maps()), &(part(factors()) * factor))
            });
            assert!(group.failure().is_none() && !group.has_nccl());
            // Not shared any more: nobody waits.
            if group.rank() == 0 {
                let _ = normalised(of_gelu, &part(maps()), &part(factors()));
            }
            answer
        });
        let near = |got: &Tensor, want: &Tensor, what: &str| {
            let apart = (got - want).abs().max().double_value(&[]);
            let largest = want.abs().max().double_value(&[]);
            assert!(apart <= 1e-6 * largest.max(1.0), "{of_gelu} {what}: {apart:e} of {largest}");
        };
        for (n, what) in ["answers", "gradients of maps"].into_iter().enumerate() {
            near(&Tensor::cat(&[&shares[0][n], &shares[1][n]], 0), &whole[n], what);
        }
        assert_eq!(shares[2][1].abs().max().double_value(&[]), 0.0, "what does not count has no gradient");
        for (n, what) in [(2, "gradient of weight"), (3, "gradient of bias")] {
            near(&(&shares[0][n] + &shares[1][n] + &shares[2][n]), &whole[n], what);
        }
        for (n, what) in [(4, "running mean"), (5, "running variance")] {
            near(&shares[0][n], &whole[n], what);
            // To the last bit: nobody averages them afterwards.
            assert!(shares.iter().all(|share| share[n] == shares[0][n]), "{what}");
        }
    }
}

#[test]
fn who_is_left_alone_in_a_batch_norm_is_told_why() {
    let answers = together(2, Duration::from_secs(2), |group| {
        if group.rank() == 1 {
            return None;
        }
        let maps = Tensor::ones([2, 3, 2, 2], (Kind::Float, Device::Cpu));
        let alone = std::panic::AssertUnwindSafe(|| normalised(false, &maps, &maps));
        let outcome = group.sharing_batch_norm(true, || std::panic::catch_unwind(alone));
        group.abandon();
        Some((outcome.is_err(), group.failure().is_some()))
    });
    assert_eq!(answers[0], Some((true, true)));
}
