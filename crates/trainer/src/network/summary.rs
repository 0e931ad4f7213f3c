//! A network as a table of its layers: names, output shapes, parameters, multiply-accumulates.

use std::collections::{HashMap, HashSet};

use core_layers::trace;
use run_record::grouped;
use serde::Serialize;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::Error;
use crate::network::registry::Architecture;
use crate::process::table::table;

/// One layer, in the order of the forward pass.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Layer {
    /// Path of the layer's tensors, or where a layer without any stands.
    pub name: String,
    /// What kind of layer it is.
    pub kind: &'static str,
    /// Shape of its output for one image.
    pub output: Vec<i64>,
    /// Numbers in its tensors, running statistics included; 0 where an earlier row has them.
    pub params: u64,
    /// Whether its tensors are those of an earlier row.
    pub shared: bool,
    /// Multiply-accumulates for one image.
    pub macs: u64,
}

/// A network's layers and their sums.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Variant name.
    pub model: String,
    /// Shape of the input.
    pub input: Vec<i64>,
    /// The layers one image passes.
    pub layers: Vec<Layer>,
    /// Numbers in trainable tensors.
    pub trainable: u64,
    /// Numbers in tensors that are not trained: running statistics, fixed embeddings.
    pub not_trainable: u64,
    /// Multiply-accumulates for one image.
    pub macs: u64,
}

/// Builds the network, runs one image of zeros through it and notes what it passes.
///
/// # Errors
/// A configuration out of range, or libtorch's refusal.
pub fn summarize(architecture: &Architecture) -> Result<Summary, Error> {
    let vs = VarStore::new(Device::Cpu);
    let network = architecture.init(&vs.root())?;
    let side = architecture.facts.image_size;
    let image = Tensor::f_zeros([1, 3, side, side], (Kind::Float, Device::Cpu))?;
    let (_, steps) = trace::record(|| tch::no_grad(|| network.forward_t(&image, false)));

    let names: HashMap<_, _> =
        vs.variables().into_iter().map(|(name, tensor)| (tensor.data_ptr(), name)).collect();
    let (mut seen, mut layers) = (HashSet::new(), Vec::<Layer>::new());
    for step in steps {
        let tensors: Vec<&str> = step
            .tensors
            .iter()
            .filter_map(|tensor| names.get(&tensor.data_ptr()).map(String::as_str))
            .collect();
        let name = match tensors.as_slice() {
            // Beside the layer before it, whose output it takes.
            [] => {
                let beside = layers.last().and_then(|layer| layer.name.rsplit_once('.'));
                beside.map_or("-", |(parent, _)| parent).to_owned()
            }
            [only] => only.strip_suffix(".weight").unwrap_or(only).to_owned(),
            several => common_path(several),
        };
        let new: Vec<&Tensor> = step.tensors.iter().filter(|tensor| seen.insert(tensor.data_ptr())).collect();
        layers.push(Layer {
            name,
            kind: step.kind,
            output: step.output,
            params: new.iter().map(|tensor| tensor.numel() as u64).sum(),
            shared: new.is_empty() && !step.tensors.is_empty(),
            macs: step.macs,
        });
    }
    let numbers = |trainable: bool| {
        let all = vs.variables();
        let chosen = all.values().filter(|tensor| tensor.requires_grad() == trainable);
        chosen.map(|tensor| tensor.numel() as u64).sum()
    };
    Ok(Summary {
        model: architecture.model.clone(),
        input: vec![1, 3, side, side],
        macs: layers.iter().map(|layer| layer.macs).sum(),
        layers,
        trainable: numbers(true),
        not_trainable: numbers(false),
    })
}

/// The longest path that all tensors are under.
fn common_path(names: &[&str]) -> String {
    let mut common: Vec<&str> = names.first().map(|name| name.split('.').collect()).unwrap_or_default();
    for name in names {
        let same = common.iter().zip(name.split('.')).take_while(|(a, b)| *a == b).count();
        common.truncate(same);
    }
    common.join(".")
}

impl Summary {
    /// The table as text, a line per layer, and the sums below it.
    pub fn to_text(&self) -> String {
        let shape = |shape: &[i64]| {
            let inner: Vec<String> = shape.iter().map(i64::to_string).collect();
            format!("[{}]", inner.join(", "))
        };
        let params = |layer: &Layer| {
            if layer.shared { "shared".to_owned() } else { grouped(layer.params) }
        };
        let input = [String::new(), "Input".to_owned(), shape(&self.input), grouped(0), grouped(0)];
        let rows = self.layers.iter().map(|layer| {
            let (name, kind) = (layer.name.clone(), layer.kind.to_owned());
            [name, kind, shape(&layer.output), params(layer), grouped(layer.macs)]
        });
        let rows = std::iter::once(input).chain(rows);
        let layers = table(["layer", "kind", "output", "params", "MACs"], 3..5, rows);
        format!(
            "{layers}\n{}: {} parameters ({} trainable, {} not), {} multiply-accumulates per image",
            self.model,
            grouped(self.trainable + self.not_trainable),
            grouped(self.trainable),
            grouped(self.not_trainable),
            grouped(self.macs),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::registry;

    #[test]
    fn layers_come_in_order_with_their_cost() {
        let summary = summarize(&registry::find("convmixer_reference").unwrap()).unwrap();
        let first: Vec<_> = summary
            .layers
            .iter()
            .take(3)
            .map(|l| (l.name.as_str(), l.kind, l.output.clone(), l.params, l.macs))
            .collect();
        // 2×2 patches of three channels; gain, shift, mean and variance; a 5×5 kernel per channel.
        let map = vec![1, 256, 16, 16];
        let want = [
            ("stem.0", "Conv2d", map.clone(), 3_328, 256 * 256 * 12),
            ("stem.2", "BatchNorm2d", map.clone(), 1_024, 0),
            ("blocks.0.0.fn.0", "Conv2d", map, 6_656, 256 * 256 * 25),
        ];
        assert_eq!(first, want);
        assert_eq!((summary.trainable, summary.not_trainable), (594_186, 8_704));
        assert_eq!(summary.macs, 148_113_920);
        let text = summary.to_text();
        assert!(text.contains("602,890 parameters (594,186 trainable, 8,704 not)"), "{text}");
    }

    #[test]
    fn shared_layers_are_counted_once() {
        let summary = summarize(&registry::find("patchconvnet_reference").unwrap()).unwrap();
        let twice: Vec<_> = summary.layers.iter().filter(|layer| layer.name == "trunk.conv3").collect();
        assert_eq!(twice.len(), 2);
        assert_eq!((twice[0].params, twice[0].shared), (590_080, false));
        assert_eq!((twice[1].params, twice[1].shared), (0, true));
        assert_eq!(twice[0].macs, twice[1].macs);
        assert!(summary.to_text().contains("shared"));
    }
}
