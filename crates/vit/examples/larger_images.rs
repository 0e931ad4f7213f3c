//! Takes a ViT's weights to images of another size: the position embedding is resampled, all else stays.
//! `cargo run --release -p vit --example larger_images [WEIGHTS.safetensors]`, the weights those of timm's
//! `vit_tiny_patch16_224`; without them, freshly drawn ones show the mechanics.

use std::error::Error;
use std::fs::File;
use std::path::PathBuf;

use tch::{Device, Kind, Tensor, nn};
use vit::weights::{self, Head, write_safetensors};
use vit::{Model, VitConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let small = nn::VarStore::new(Device::Cpu);
    let at_224 = VitConfig::tiny(16, 224).init(&small.root())?;
    let file = match std::env::args().nth(1) {
        Some(weights) => {
            weights::load(&small, &VitConfig::tiny(16, 224), weights.as_ref(), Head::Same)?;
            PathBuf::from(weights)
        }
        None => {
            let drawn = std::env::temp_dir().join(format!("vit-at-224-{}.safetensors", std::process::id()));
            write_safetensors(
                File::create(&drawn)?,
                &small.variables().into_iter().collect(),
                &Default::default(),
            )?;
            drawn
        }
    };

    let large = nn::VarStore::new(Device::Cpu);
    let at_384 = VitConfig::tiny(16, 384).init(&large.root())?;
    let loaded = weights::load(&large, &VitConfig::tiny(16, 384), &file, Head::Same)?;
    loaded.notes.iter().for_each(|note| println!("{note}"));

    let image = Tensor::rand([1, 3, 384, 384], (Kind::Float, Device::Cpu));
    let reduced = image.upsample_bilinear2d([224, 224], false, None, None);
    let (a, b) =
        tch::no_grad(|| (at_384.forward_features(&image, false), at_224.forward_features(&reduced, false)));
    let similarity = Tensor::cosine_similarity(&a, &b, 1, 1e-8).double_value(&[0]);
    println!("features of one picture at 384 and at 224 pixels: cosine similarity {similarity:.3}");
    Ok(())
}
