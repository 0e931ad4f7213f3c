//! Shows as text where a PatchConvNet looks: `cargo run --release -p patchconvnet --example where_it_looks --
//! WEIGHTS.safetensors PICTURE`, the weights those that
//! `cargo xtask train --model patchconvnet_reference --preset reference` left.

use std::error::Error;

use core_layers::Activation;
use patchconvnet::weights::{self, Head};
use patchconvnet::{Model, PatchConvNetConfig};
use tch::vision::image;
use tch::{Device, Kind, nn};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [weights, picture] = arguments.as_slice() else {
        return Err("give a weights file and a picture".into());
    };
    // The preset replaces the variant's activation by the one its published log was made with.
    let config = PatchConvNetConfig { activation: Activation::Gelu, ..PatchConvNetConfig::reference() };
    let vs = nn::VarStore::new(Device::Cpu);
    let network = config.init(&vs.root())?;
    weights::load(&vs, &config, weights.as_ref(), Head::Same)?;

    let side = config.image_size;
    let pixels = image::load_and_resize(picture, side, side)?.to_kind(Kind::Float) / 255.0;
    let maps = tch::no_grad(|| network.attention_maps(&pixels.unsqueeze(0)));
    let map = maps.ok_or("it has attention")?.squeeze(); // [12, 12]
    let shares: Vec<Vec<f64>> = Vec::try_from(&(&map / map.max()).to_kind(Kind::Double))?;
    // The more of the class token's attention a patch gets, the darker it is.
    for row in shares {
        let shade = |share: &f64| [" ", "░", "▒", "▓", "█"][(share * 4.0).round() as usize];
        println!("{}", row.iter().map(|share| shade(share).repeat(2)).collect::<String>());
    }
    println!(
        "the class token keeps {:.0} % of its attention for itself",
        100.0 * (1.0 - map.sum(Kind::Float).double_value(&[]))
    );
    Ok(())
}
