//! Our own operations beside libtorch's, forward and backward, in the sizes of the reference networks.
//!
//! ```text
//! cargo bench -p torch-ext --bench kernels
//! ```

use criterion::{Criterion, criterion_group, criterion_main};
use tch::{Device, Kind, Tensor};
use torch_ext::{
    BatchNorm, Gelu, attention, channels_last, depthwise, gelu, gelu_batch_norm, layer_norm, winograd,
};

/// A tensor to differentiate by.
fn leaf(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind).set_requires_grad(true)
}

/// Times a value and its gradient by `inputs`, by our operation and by libtorch's.
fn compare(
    c: &mut Criterion,
    name: &str,
    inputs: &[Tensor],
    ours: &dyn Fn(&[Tensor]) -> Tensor,
    theirs: &dyn Fn(&[Tensor]) -> Tensor,
) {
    let mut group = c.benchmark_group(format!("{name}, {:?}", inputs[0].kind()));
    group.sample_size(10);
    for (whose, operation) in [("ours", ours), ("libtorch", theirs)] {
        group.bench_function(whose, |b| {
            b.iter(|| Tensor::run_backward(&[operation(inputs).sum(Kind::Float)], inputs, false, false));
        });
    }
    group.finish();
}

fn kernels(c: &mut Criterion) {
    for kind in [Kind::Float, Kind::BFloat16] {
        // ViT: 64 images, 4 heads, 145 tokens, 16 channels.
        let packed = [leaf(&[64, 145, 3 * 64], kind)];
        compare(
            c,
            "attention",
            &packed,
            &|x| attention(&x[0], None, None, 4, 0.0).expect("the tensors fit each other"),
            &|x| {
                let heads = x[0].reshape([64, 145, 3, 4, 16]).permute([2, 0, 3, 1, 4]);
                let [q, k, v] = [0, 1, 2].map(|part| heads.select(0, part));
                let scores = (q * 0.25).matmul(&k.transpose(-2, -1));
                scores.softmax(-1, kind).matmul(&v).transpose(1, 2).flatten(2, 3)
            },
        );
        let tokens = [leaf(&[64, 145, 128], kind)];
        compare(
            c,
            "gelu",
            &tokens,
            &|x| gelu(&x[0], Gelu::Erf, 0.0).expect("the tensors fit each other"),
            &|x| x[0].gelu("none"),
        );
        let (weight, bias) = (leaf(&[128], Kind::Float), leaf(&[128], Kind::Float));
        let narrow = [weight.to_kind(kind), bias.to_kind(kind)];
        compare(
            c,
            "layer norm",
            &tokens,
            &|x| layer_norm(&x[0], &weight, &bias, 1e-6).expect("the tensors fit each other"),
            &|x| x[0].layer_norm([128], Some(&narrow[0]), Some(&narrow[1]), 1e-6, true),
        );
        // ConvMixer: 16 images, 256 channels, 16×16 pixels, kernels of 5×5.
        let maps = channels_last(&leaf(&[16, 256, 16, 16], kind))
            .expect("the tensors fit each other")
            .detach()
            .set_requires_grad(true);
        let inputs = [maps.shallow_clone(), leaf(&[256, 1, 5, 5], kind)];
        compare(
            c,
            "depthwise convolution",
            &inputs,
            &|x| depthwise(&x[0], &x[1], None, [2, 2]).expect("the tensors fit each other"),
            &|x| x[0].conv2d(&x[1], None::<&Tensor>, 1, 2, 1, 256),
        );
        let [weight, bias, running_mean, running_var] =
            &[0; 4].map(|_| Tensor::ones([256], (Kind::Float, Device::Cpu)));
        let norm = BatchNorm { weight, bias, running_mean, running_var, momentum: 0.1, eps: 1e-3 };
        compare(
            c,
            "batch norm of gelu",
            &[maps],
            &|x| gelu_batch_norm(&x[0], Gelu::Erf, None, norm, true).expect("the tensors fit each other"),
            &|x| {
                let (weight, bias) = (Some(weight), Some(bias));
                let (mean, var) = (Some(running_mean), Some(running_var));
                x[0].gelu("none").batch_norm(weight, bias, mean, var, true, 0.1, 1e-3, false)
            },
        );
    }
}

/// Dense 3×3 convolutions of 64 images: PatchConvNet's, CCT's second stage, and the fewest channels and pixels.
fn winograd_convolutions(c: &mut Criterion) {
    for (inputs, outputs, side) in [(256, 256, 12), (64, 128, 16), (32, 32, 32), (16, 16, 32), (256, 256, 3)]
    {
        let maps = leaf(&[64, inputs, side, side], Kind::Float).detach();
        let maps = channels_last(&maps).expect("it has four dimensions").set_requires_grad(true);
        compare(
            c,
            &format!("3×3 convolution, {inputs} to {outputs} channels at {side}×{side}"),
            &[maps, leaf(&[outputs, inputs, 3, 3], Kind::Float)],
            &|x| winograd(&x[0], &x[1], None, 1).expect("the tensors fit each other"),
            &|x| x[0].conv2d(&x[1], None::<&Tensor>, 1, 1, 1, 1),
        );
    }
}

criterion_group!(benches, kernels, winograd_convolutions);
criterion_main!(benches);
