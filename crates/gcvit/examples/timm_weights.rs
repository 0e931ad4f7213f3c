//! Turns timm's GCViT weights into ones under the official names:
//! `cargo run --release -p gcvit --example timm_weights -- gcvit_xxtiny TIMM.safetensors OURS.safetensors`

use std::error::Error;
use std::fs::File;

use gcvit::GcVitConfig;
use gcvit::weights::{self, Head, write_safetensors};
use tch::{Device, nn};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, from, to] = arguments.as_slice() else {
        return Err("give a model, timm's weights and the file to write".into());
    };
    let variant = GcVitConfig::VARIANTS.iter().find(|variant| variant.name == model);
    let config = variant.map(|variant| (variant.config)()).ok_or("there is no such model")?;

    let vs = nn::VarStore::new(Device::Cpu);
    let _network = config.init(&vs.root())?;
    // The loader knows timm's names, and that timm keeps the squeeze-excite matrices as 1×1 convolutions.
    let loaded = weights::load(&vs, &config, from.as_ref(), Head::Same)?;
    let tensors = vs.variables().into_iter().collect();
    write_safetensors(File::create_new(to)?, &tensors, &Default::default())?;
    println!("{} tensors of the file with SHA-256 {}", tensors.len(), loaded.sha256);
    Ok(())
}
