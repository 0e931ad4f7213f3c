//! Takes a ViT's weights to images of another size: the position embedding is resampled, all else stays.
//! `cargo run --release -p vit --example larger_images [WEIGHTS.safetensors]`, the weights those of timm's
//! `vit_tiny_patch16_224`; without them, freshly drawn ones show the mechanics.

use std::error::Error;

use core_layers::{Model, ModelConfig};
use tch::{Device, Kind, Tensor, nn};
use vit::VitConfig;

fn main() -> Result<(), Box<dyn Error>> {
    let mut small = nn::VarStore::new(Device::Cpu);
    let at_224 = VitConfig::tiny(16, 224).init(&small.root())?;
    if let Some(weights) = std::env::args().nth(1) {
        small.load(weights)?;
    }

    let large = nn::VarStore::new(Device::Cpu);
    let at_384 = VitConfig::tiny(16, 384).init(&large.root())?;
    let own = small.variables();
    tch::no_grad(|| {
        for (name, mut tensor) in large.variables() {
            let shape = tensor.size();
            let same = own.get(&name).filter(|from| from.size() == shape).map(Tensor::shallow_clone);
            let fitted = same.or_else(|| VitConfig::resample(&name, own.get(&name)?, &shape));
            tensor.f_copy_(&fitted.ok_or_else(|| format!("{name} does not fit"))?)?;
        }
        Ok::<_, Box<dyn Error>>(())
    })?;

    let image = Tensor::rand([1, 3, 384, 384], (Kind::Float, Device::Cpu));
    let reduced = image.upsample_bilinear2d([224, 224], false, None, None);
    let (a, b) =
        tch::no_grad(|| (at_384.forward_features(&image, false), at_224.forward_features(&reduced, false)));
    let similarity = Tensor::cosine_similarity(&a, &b, 1, 1e-8).double_value(&[0]);
    println!("features of one picture at 384 and at 224 pixels: cosine similarity {similarity:.3}");
    Ok(())
}
