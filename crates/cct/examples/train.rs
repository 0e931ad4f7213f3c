//! A training loop of your own around a CCT, on images made up on the spot: is there a disc, or a square?
//! `cargo run --release -p cct --example train`

use std::error::Error;

use cct::{CctConfig, Model};
use tch::nn::OptimizerConfig;
use tch::{Device, Kind, Tensor, nn};
// For its link with libtorch_cuda, which a linker drops otherwise; see the crate's README.
use torch_ext as _;

/// 64 images `[B, 3, 32, 32]` of noise with a disc or a square somewhere, and which of them it is.
fn batch(device: Device) -> (Tensor, Tensor) {
    let labels = Tensor::randint(2, [64], (Kind::Int64, device));
    let is_disc = labels.eq(0).reshape([64, 1, 1, 1]);
    let place = || Tensor::rand([64, 1, 1, 1], (Kind::Float, device)) * 16.0 + 8.0;
    let pixels = Tensor::arange(32, (Kind::Float, device));
    let dx = (pixels.reshape([1, 1, 1, 32]) - place()).abs();
    let dy = (pixels.reshape([1, 1, 32, 1]) - place()).abs();
    let disc = (dx.square() + dy.square()).le(49.0);
    let square = dx.maximum(&dy).le(6.2); // as large
    let shape = disc.where_self(&is_disc, &square).to_kind(Kind::Float);
    (Tensor::rand([64, 3, 32, 32], (Kind::Float, device)) * 0.3 + shape, labels)
}

fn main() -> Result<(), Box<dyn Error>> {
    let vs = nn::VarStore::new(Device::cuda_if_available());
    let network = CctConfig { num_classes: 2, ..CctConfig::reference() }.init(&vs.root())?;
    let mut optimizer = nn::AdamW { wd: 1e-4, ..nn::AdamW::default() }.build(&vs, 1e-3)?;
    for step in 1..=60 {
        let (images, labels) = batch(vs.device());
        let loss = network.forward_t(&images, true).cross_entropy_for_logits(&labels);
        optimizer.backward_step(&loss);
        if step % 10 == 0 {
            println!("step {step}: loss {:.3}", loss.double_value(&[]));
        }
    }
    let (images, labels) = batch(vs.device());
    let logits = tch::no_grad(|| network.forward_t(&images, false));
    println!(
        "right on {:.0} % of 64 new images",
        100.0 * logits.accuracy_for_logits(&labels).double_value(&[])
    );
    Ok(())
}
