//! Describes a variant and runs it once on random images:
//! `cargo run --release -p patchconvnet --example patchconvnet_summary -- patchconvnet_s60`.

use std::error::Error;

use core_layers::{Model, ModelConfig};
use patchconvnet::PatchConvNetConfig;
use tch::{Device, Kind, Tensor, nn};

fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "patchconvnet_reference".to_owned());
    let variants = PatchConvNetConfig::VARIANTS;
    let Some(variant) = variants.iter().find(|variant| variant.name == name) else {
        let known: Vec<&str> = variants.iter().map(|variant| variant.name).collect();
        return Err(format!("no variant is called {name}; there are {}", known.join(", ")).into());
    };
    let config = (variant.config)();
    println!("{name}: {} parameters", config.param_count());
    println!("{} multiply-accumulates per {}-pixel image", config.macs(), config.image_size);

    let vs = nn::VarStore::new(Device::Cpu);
    let network = config.init(&vs.root())?;
    let side = config.image_size;
    let images = Tensor::f_rand([2, 3, side, side], (Kind::Float, vs.device()))?;
    let (logits, maps) =
        tch::no_grad(|| (network.forward_t(&images, false), network.attention_maps(&images)));
    println!("logits {:?}", logits.size());
    if let Some(maps) = maps {
        println!("attention maps {:?}", maps.size());
    }
    Ok(())
}
