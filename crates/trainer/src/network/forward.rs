//! One forward pass from file to file: the bridge by which any other program can check a network.

use std::collections::BTreeMap;
use std::path::Path;

use tch::Device;
use tch::nn::VarStore;

use crate::Error;
use crate::network::located;
use crate::network::registry::Architecture;
use crate::network::weights::{self, Head, WeightsFile};
use crate::process::paths::check_output;

/// Runs the images in `input`, a safetensors file (or a PyTorch checkpoint) with a tensor `input` `[B, 3, H, W]`, exactly as the
/// network is to see them, through the network with the weights that [`located::locate`] finds. `output` becomes a safetensors file
/// with `logits` `[B, K]`, `features`, and `attention` `[B, heads or 1, h, w]` where the network has it.
/// Returned are notes on how the weights were read.
///
/// # Errors
/// An output that is an input or cannot be written, files that cannot be read, weights that do not fit, an input of another shape.
pub fn forward(
    architecture: &Architecture,
    weights: &Path,
    head: Head<'_>,
    input: &Path,
    output: &Path,
    device: Device,
) -> Result<Vec<String>, Error> {
    let located = located::locate(weights)?.path;
    check_output(output, &[&located, input])?;
    let images = WeightsFile::open(input)?.tensor("input")?;
    let side = architecture.facts.image_size;
    match images.size().as_slice() {
        [batch, 3, height, width] if *batch > 0 && (*height, *width) == (side, side) => {}
        other => {
            return Err(Error::Weights {
                path: input.to_owned(),
                problem: format!(
                    "the tensor \"input\" is {other:?}, {} takes [B, 3, {side}, {side}]; --image-size makes it \
                     another network",
                    architecture.model
                ),
            });
        }
    }
    let vs = VarStore::new(device);
    let network = architecture.init(&vs.root())?;
    let notes = weights::load(&vs, architecture, &located, head)?;
    let images = images.f_to_device(device)?;
    let tensors = tch::no_grad(|| {
        let features = network.forward_features(&images, false);
        let logits = network.forward_head(&features, false);
        let attention = network.attention_maps(&images).map(|maps| ("attention", maps));
        let named = [("features", features), ("logits", logits)].into_iter().chain(attention);
        named.map(|(name, tensor)| (name.to_owned(), tensor)).collect::<BTreeMap<_, _>>()
    });
    weights::save(output, &tensors)?;
    Ok(notes)
}
