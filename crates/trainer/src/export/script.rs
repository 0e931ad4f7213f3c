//! A network's graph as a TorchScript file: source that libtorch compiles, with the tensors under their names.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};

use torch_ext::{ScriptTensor, TorchExtError, write_script};

use crate::export::graph::{Argument, Graph, Node, Size};

/// How the number of images is called.
const BATCH: &str = "batch";

/// Why no file was written.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// libtorch does not compile the source, which would be a fault of this program.
    #[error(transparent)]
    Torch(#[from] TorchExtError),
    /// What is written to refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Writes a module whose `forward` takes images `[B, 3, H, W]` and gives logits `[B, classes]`, for any B. `trainable`
/// says which tensors can be trained, by name. `files` are kept in the file under their names.
///
/// # Errors
/// Those of [`ScriptError`].
pub fn write(
    out: &mut impl Write,
    graph: &Graph,
    trainable: impl Fn(&str) -> bool,
    files: &BTreeMap<String, String>,
) -> Result<(), ScriptError> {
    let tensors = graph.tensors.values().map(|named| ScriptTensor {
        name: named.name.clone(),
        tensor: named.tensor.shallow_clone(),
        parameter: trainable(&named.name),
    });
    let tensors: Vec<ScriptTensor> = tensors.collect();
    Ok(write_script(out, &source(graph), &tensors, files)??)
}

/// The method `forward`.
fn source(graph: &Graph) -> String {
    let mut source = String::from("def forward(self, images: Tensor) -> Tensor:\n");
    // To a string, writing cannot fail.
    let _ = writeln!(source, "    {BATCH} = torch.size(images, 0)");
    for node in &graph.nodes {
        let results: Vec<String> = node.results.iter().map(|made| value(graph, made.id)).collect();
        // A list of one is taken apart, too.
        let comma = if node.op == "prim::ListUnpack" && results.len() == 1 { "," } else { "" };
        let _ = writeln!(source, "    {}{comma} = {}", results.join(", "), call(graph, node));
    }
    let _ = writeln!(source, "    return {}", value(graph, graph.logits));
    source
}

fn call(graph: &Graph, node: &Node) -> String {
    let arguments: Vec<String> = node
        .arguments
        .iter()
        .zip(&node.keywords)
        .map(|(argument, keyword)| {
            let words = argument_in_words(graph, argument);
            if keyword.is_empty() { words } else { format!("{keyword}={words}") }
        })
        .collect();
    match (node.op.as_str(), arguments.as_slice()) {
        ("prim::ListUnpack", [list]) => list.clone(),
        // As it is called in programs: without how the result is padded, and without cuDNN's switches.
        ("_convolution", [images, weight, bias, stride, padding, dilation, _, _, groups, ..]) => {
            format!("torch.conv2d({images}, {weight}, {bias}, {stride}, {padding}, {dilation}, {groups})")
        }
        (op, arguments) => format!("torch.{op}({})", arguments.join(", ")),
    }
}

fn argument_in_words(graph: &Graph, argument: &Argument) -> String {
    let list = |items: Vec<String>| format!("[{}]", items.join(", "));
    match argument {
        Argument::None => "None".to_owned(),
        Argument::Bool(true) => "True".to_owned(),
        Argument::Bool(false) => "False".to_owned(),
        Argument::Int(value) => size(*value),
        Argument::Float(value) if *value == f64::INFINITY => "float('inf')".to_owned(),
        Argument::Float(value) if *value == f64::NEG_INFINITY => "float('-inf')".to_owned(),
        Argument::Float(value) => format!("{value:?}"),
        Argument::Text(word) => format!("{word:?}"),
        Argument::Ints(sizes) => list(sizes.iter().map(|value| size(*value)).collect()),
        Argument::Value(id) => value(graph, *id),
        Argument::Values(ids) => list(ids.iter().map(|id| value(graph, *id)).collect()),
    }
}

fn size(size: Size) -> String {
    match size {
        Size::Fixed(value) => value.to_string(),
        Size::Batch(1) => BATCH.to_owned(),
        Size::Batch(times) => format!("{times} * {BATCH}"),
    }
}

/// A tensor: one of the module's under its name, the images, or what an operation made.
fn value(graph: &Graph, id: usize) -> String {
    match graph.tensors.get(&id) {
        None if id == graph.images => "images".to_owned(),
        None => format!("x{id}"),
        Some(named) => named.name.split('.').fold("self".to_owned(), |path, part| {
            // Blocks are numbered, and a number is no attribute that can be written after a dot.
            let plain = part.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
            if plain { format!("{path}.{part}") } else { format!("getattr({path}, {part:?})") }
        }),
    }
}
