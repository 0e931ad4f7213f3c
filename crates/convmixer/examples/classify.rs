//! Classifies pictures with weights that `cargo xtask train --model convmixer_reference --preset reference`
//! left: `cargo run --release -p convmixer --example classify -- WEIGHTS.safetensors PICTURE…`

use std::error::Error;

use convmixer::weights::{self, Head};
use convmixer::{ConvMixerConfig, Model};
use tch::vision::image;
use tch::{Device, Kind, nn};

const CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let weights = arguments.next().ok_or("give a weights file, then pictures")?;
    let vs = nn::VarStore::new(Device::Cpu);
    let config = ConvMixerConfig::reference();
    let network = config.init(&vs.root())?;
    weights::load(&vs, &config, weights.as_ref(), Head::Same)?;
    for picture in arguments {
        // Bytes [3, 32, 32] to the pixels from 0 to 1 that the network was trained on.
        let pixels = image::load_and_resize(&picture, 32, 32)?.to_kind(Kind::Float) / 255.0;
        let logits = tch::no_grad(|| network.forward_t(&pixels.unsqueeze(0), false));
        let (probability, class) = logits.softmax(-1, Kind::Float).max_dim(1, false);
        let class = usize::try_from(class.int64_value(&[0]))?;
        println!("{picture}: {} ({:.0} %)", CLASSES[class], 100.0 * probability.double_value(&[0]));
    }
    Ok(())
}
