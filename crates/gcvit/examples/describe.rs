//! Builds a variant, shows what it costs, and runs a batch of noise through it:
//! `cargo run --release -p gcvit --example describe -- gcvit_xxtiny_64`.

use std::error::Error;

use core_layers::{Model, ModelConfig};
use gcvit::GcVitConfig;
use tch::{Device, Kind, Tensor, nn};

fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "gcvit_xxtiny_64".to_owned());
    let variants = GcVitConfig::VARIANTS;
    let Some(variant) = variants.iter().find(|variant| variant.name == name) else {
        let known: Vec<&str> = variants.iter().map(|variant| variant.name).collect();
        return Err(format!("there is no {name}; there are {}", known.join(", ")).into());
    };
    let config = (variant.config)();
    println!("{name}: {} parameters, {} multiply-accumulates per image", config.param_count(), config.macs());

    let vs = nn::VarStore::new(Device::Cpu);
    let network = config.init(&vs.root())?;
    let images = Tensor::randn([2, 3, config.image_size, config.image_size], (Kind::Float, vs.device()));
    let (logits, maps) =
        tch::no_grad(|| (network.forward_t(&images, false), network.attention_maps(&images)));
    println!("images {:?} give logits {:?}", images.size(), logits.size());
    if let Some(maps) = maps {
        println!("attention maps of the last block: {:?}", maps.size());
    }
    Ok(())
}
