//! An ONNX graph that is written node by node: names, constants and shapes.

use std::collections::{BTreeMap, BTreeSet};

use tch::{Device, Kind, TchError, Tensor};

use super::proto::{
    AttributeProto, DimensionProto, DimensionValue, FLOAT, FLOAT16, GraphProto, INT64, NodeProto,
    TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use crate::Error;
use crate::export::graph::{Graph, Size};

/// The name of the input, `[batch, 3, H, W]`.
pub(super) const IMAGES: &str = "images";
/// The name of the output, `[batch, classes]`.
pub(super) const LOGITS: &str = "logits";
/// How the number of images is called.
pub(super) const BATCH: &str = "batch";

/// What is written so far.
pub(super) struct Writer<'a> {
    pub(super) graph: &'a Graph,
    half: bool,
    /// What a tensor of the graph is called in the file.
    pub(super) names: BTreeMap<usize, String>,
    /// Lists of tensors that are taken apart later: the tensor, and the dimension along which.
    pub(super) lists: BTreeMap<usize, (usize, i64)>,
    pub(super) shapes: BTreeMap<usize, Vec<Size>>,
    /// Every name of a value or node.
    taken: BTreeSet<String>,
    pub(super) nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    pub(super) infos: Vec<ValueInfoProto>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(graph: &'a Graph, half: bool) -> Result<Self, Error> {
        let mut writer = Self {
            graph,
            half,
            names: BTreeMap::new(),
            lists: BTreeMap::new(),
            shapes: BTreeMap::new(),
            taken: BTreeSet::new(),
            nodes: Vec::new(),
            initializers: Vec::new(),
            infos: Vec::new(),
        };
        for name in [IMAGES, LOGITS, BATCH] {
            writer.taken.insert(name.to_owned());
        }
        for (&id, named) in &graph.tensors {
            let name = writer.free(&named.name);
            writer.shapes.insert(id, named.tensor.size().into_iter().map(Size::Fixed).collect());
            let kind = match named.tensor.kind() {
                Kind::Int64 => Kind::Int64,
                _ => writer.kind(),
            };
            let values = named.tensor.f_to_kind(kind)?;
            writer.initializers.push(tensor(&name, &values)?);
            writer.names.insert(id, name);
        }
        let images = [Size::Batch(1), Size::Fixed(3), Size::Fixed(graph.side), Size::Fixed(graph.side)];
        writer.shapes.insert(graph.images, images.to_vec());
        let name = match half {
            true => writer.node("Cast", "to_f16", &[IMAGES], [AttributeProto::int("to", FLOAT16.into())]),
            false => IMAGES.to_owned(),
        };
        writer.names.insert(graph.images, name);
        Ok(writer)
    }

    /// The kind of floats that are computed with.
    fn kind(&self) -> Kind {
        if self.half { Kind::Half } else { Kind::Float }
    }

    /// The name, or one like it if something has it.
    pub(super) fn free(&mut self, name: &str) -> String {
        let numbered = (2..).map(|number| format!("{name}_{number}"));
        let free = std::iter::once(name.to_owned()).chain(numbered).find(|name| !self.taken.contains(name));
        let free = free.unwrap_or_default();
        self.taken.insert(free.clone());
        free
    }

    /// Adds an operation with one result, named like the operation. Returned is that name.
    pub(super) fn node(
        &mut self,
        op: &str,
        name: &str,
        inputs: &[&str],
        attributes: impl IntoIterator<Item = AttributeProto>,
    ) -> String {
        let name = self.free(name);
        self.push(op, &name, inputs, vec![name.clone()], attributes);
        name
    }

    pub(super) fn push(
        &mut self,
        op: &str,
        name: &str,
        inputs: &[&str],
        output: Vec<String>,
        attributes: impl IntoIterator<Item = AttributeProto>,
    ) {
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output,
            name: name.to_owned(),
            op_type: op.to_owned(),
            attribute: attributes.into_iter().collect(),
        });
    }

    /// The name of a tensor of these whole numbers, in one dimension.
    pub(super) fn ints(&mut self, values: &[i64]) -> Result<String, Error> {
        let words: Vec<String> = values.iter().map(ToString::to_string).collect();
        let name = format!("ints[{}]", words.join(","));
        self.constant(name, || Ok(Tensor::f_from_slice(values)?))
    }

    /// The name of a whole number.
    pub(super) fn int(&mut self, value: i64) -> Result<String, Error> {
        self.constant(format!("int[{value}]"), || Ok(Tensor::f_from_slice(&[value])?.f_reshape([0i64; 0])?))
    }

    /// The name of a number of the kind that is computed with.
    pub(super) fn float(&mut self, value: f64) -> Result<String, Error> {
        let kind = self.kind();
        self.constant(format!("float[{value:?}]"), || {
            Ok(Tensor::f_from_slice(&[value])?.f_reshape([0i64; 0])?.f_to_kind(kind)?)
        })
    }

    fn constant(
        &mut self,
        name: String,
        values: impl FnOnce() -> Result<Tensor, Error>,
    ) -> Result<String, Error> {
        if self.taken.insert(name.clone()) {
            self.initializers.push(tensor(&name, &values()?)?);
        }
        Ok(name)
    }

    pub(super) fn finish(mut self, name: &str) -> Result<GraphProto, Error> {
        let logits = self.names.get(&self.graph.logits).cloned().unwrap_or_default();
        match self.half {
            true => self.push(
                "Cast",
                "to_f32",
                &[&logits],
                vec![LOGITS.to_owned()],
                [AttributeProto::int("to", FLOAT.into())],
            ),
            false => {
                // The last operation makes it, and nothing else takes it.
                let last = self.nodes.iter_mut().flat_map(|node| &mut node.output);
                last.filter(|output| **output == logits).for_each(|output| LOGITS.clone_into(output));
                self.infos.retain(|info| info.name != logits);
            }
        }
        let images =
            [Size::Batch(1), Size::Fixed(3), Size::Fixed(self.graph.side), Size::Fixed(self.graph.side)];
        let logits = [Size::Batch(1), Size::Fixed(self.graph.classes)];
        Ok(GraphProto {
            node: self.nodes,
            name: name.to_owned(),
            initializer: self.initializers,
            input: vec![info(IMAGES, &images, FLOAT)],
            output: vec![info(LOGITS, &logits, FLOAT)],
            value_info: self.infos,
        })
    }

    /// Says which shape a tensor has.
    pub(super) fn inform(&mut self, name: &str, shape: &[Size]) {
        let kind = if self.half { FLOAT16 } else { FLOAT };
        self.infos.push(info(name, shape, kind));
    }
}

fn info(name: &str, shape: &[Size], elem_type: i32) -> ValueInfoProto {
    let dim = shape.iter().map(|size| DimensionProto {
        value: Some(match size {
            Size::Fixed(size) => DimensionValue::Fixed(*size),
            Size::Batch(1) => DimensionValue::Named(BATCH.to_owned()),
            Size::Batch(times) => DimensionValue::Named(format!("{times}*{BATCH}")),
        }),
    });
    let shape = Some(TensorShapeProto { dim: dim.collect() });
    let tensor_type = Some(TensorTypeProto { elem_type, shape });
    ValueInfoProto { name: name.to_owned(), r#type: Some(TypeProto { tensor_type }) }
}

fn tensor(name: &str, values: &Tensor) -> Result<TensorProto, TchError> {
    let data_type = match values.kind() {
        Kind::Int64 => INT64,
        Kind::Half => FLOAT16,
        Kind::Float => FLOAT,
        kind => return Err(TchError::Kind(format!("{name} holds {kind:?}"))),
    };
    let values = values.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
    let mut bytes = vec![0; values.numel() * values.kind().elt_size_in_bytes()];
    values.f_copy_data_u8(&mut bytes, values.numel())?;
    Ok(TensorProto {
        dims: values.size(),
        data_type,
        name: name.to_owned(),
        raw_data: Some(bytes),
        ..TensorProto::default()
    })
}
