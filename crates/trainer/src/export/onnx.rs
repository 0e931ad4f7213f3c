//! A network's graph as an ONNX file.

mod ops;
mod proto;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::BTreeMap;

use prost::Message;

use crate::Error;
use crate::export::graph::{Graph, MEAN};
use proto::{IR_VERSION, ModelProto, OPSET, OperatorSetIdProto, StringStringEntryProto};
use writer::Writer;

/// Protocol buffers end at 2 GiB; this is what tensors may take of it.
const LARGEST: usize = 2_000_000_000;

/// The bytes of a file. With `half`, it computes in f16; images and logits are f32 all the same. `metadata` is what the
/// file says of itself.
///
/// # Errors
/// An operation that there is no translation of, a network larger than a file can be, or libtorch's refusal.
pub fn encode(
    graph: &Graph,
    name: &str,
    half: bool,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, Error> {
    let bytes: usize = graph.tensors.values().map(|named| 4 * named.tensor.numel()).sum();
    let bytes = if half { bytes / 2 } else { bytes };
    if bytes > LARGEST {
        return Err(Error::Usage(format!(
            "{name} has {bytes} bytes of weights, and an ONNX file holds at most 2 GiB; --precision f16 halves them, and \
             --format torchscript has no such limit"
        )));
    }
    let mut writer = Writer::new(graph, half)?;
    for node in &graph.nodes {
        ops::add(&mut writer, node)?;
    }
    let proto = writer.finish(name)?;
    let metadata_props = metadata.iter().map(|(key, value)| entry(key, value)).collect();
    let takes = if graph.tensors.values().any(|named| named.name == MEAN) {
        "pixels from 0 to 1"
    } else {
        "normalised images"
    };
    let model = ModelProto {
        ir_version: IR_VERSION,
        producer_name: env!("CARGO_PKG_NAME").to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        doc_string: format!("{takes} [batch, 3, {0}, {0}] to logits [batch, {1}]", graph.side, graph.classes),
        graph: Some(proto),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
        metadata_props,
    };
    Ok(model.encode_to_vec())
}

fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: key.to_owned(), value: value.to_owned() }
}
