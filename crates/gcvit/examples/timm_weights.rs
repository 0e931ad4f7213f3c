//! Turns timm's GCViT weights into ones under the official names, which `nn::VarStore::load` takes:
//! `cargo run --release -p gcvit --example timm_weights -- gcvit_xxtiny TIMM.safetensors OURS.safetensors`

use std::collections::HashMap;
use std::error::Error;

use core_layers::ModelConfig;
use gcvit::GcVitConfig;
use tch::{Device, Tensor, nn};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, from, to] = arguments.as_slice() else {
        return Err("give a model, timm's weights and the file to write".into());
    };
    let variant = GcVitConfig::VARIANTS.iter().find(|variant| variant.name == model);
    let config = variant.map(|variant| (variant.config)()).ok_or("there is no such model")?;

    let theirs: HashMap<String, Tensor> = Tensor::read_safetensors(from)?
        .into_iter()
        .map(|(name, tensor)| (config.tensor_name(&name), tensor))
        .collect();
    let mut vs = nn::VarStore::new(Device::Cpu);
    let _ = config.init(&vs.root())?;
    let mut ours = Vec::new();
    for (name, tensor) in vs.variables() {
        let found = theirs.get(&name).ok_or_else(|| format!("{from} has no {name}"))?;
        // timm keeps the squeeze-excite matrices as 1×1 convolutions.
        ours.push((name, found.f_reshape(tensor.size())?));
    }
    Tensor::write_safetensors(&ours, to)?;
    vs.load(to)?;
    println!("{} tensors, {} parameters", ours.len(), config.param_count());
    Ok(())
}
