//! Processes that compute together, as threads with a group each: sums, copies, bytes, and what becomes of one that leaves.

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};
use torch_ext::{Meeting, ProcessGroup, Reducer, TorchExtError};

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
                member(ProcessGroup::open(&meeting, timeout).expect("all come"))
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
    let error = ProcessGroup::open(&alone, Duration::from_secs(2)).unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}: {error}", started.elapsed());
    assert!(ProcessGroup::open(&Meeting { rank: 2, ..alone }, Duration::from_secs(2)).is_err());
}
