//! ONNX files, decoded and computed operator by operator as ONNX defines them.
//!
//! `docs/parity/export_parity.py` runs the same files in ONNX Runtime. tract, which would do it here, takes minutes to
//! compile.

use std::collections::BTreeMap;

use core_layers::Model;
use prost::Message;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::encode;
use super::proto::{
    AttributeProto, DimensionValue, FLOAT, FLOAT16, INT64, ModelProto, NodeProto, TensorProto,
};
use super::writer::{BATCH, IMAGES, LOGITS};
use crate::export::graph::{Graph, MEAN, STD};
use crate::network::registry::{self, Architecture};

/// One network of each architecture, and those that do something the others do not.
const NETWORKS: [&str; 8] = [
    "cct_reference",
    "cct_2_3x2_32",
    "cvt_2_4_32",
    "vit_reference",
    "convmixer_reference",
    "convmixer_256_8_k8_p1",
    "patchconvnet_reference",
    "gcvit_xxtiny_64",
];

/// A network in which no tensor is zero or nearly nothing.
fn network(name: &str) -> (Architecture, VarStore, Box<dyn Model>) {
    let architecture = registry::find(name).unwrap();
    let vs = VarStore::new(Device::Cpu);
    let network = architecture.init(&vs.root()).unwrap();
    let vectors = vs.variables().into_iter().filter(|(_, tensor)| tensor.dim() < 2);
    for (name, mut tensor) in vectors {
        let filled = test_support::tensor(&name, &tensor.size(), test_support::Role::Gain);
        tch::no_grad(|| tensor.copy_(&filled));
    }
    (architecture, vs, network)
}

fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name == name)
}

fn int(node: &NodeProto, name: &str) -> i64 {
    attribute(node, name).and_then(|attribute| attribute.i).unwrap_or_else(|| panic!("{name} of {node:?}"))
}

fn ints<'a>(node: &'a NodeProto, name: &str) -> &'a [i64] {
    &attribute(node, name).unwrap_or_else(|| panic!("{name} of {node:?}")).ints
}

fn values(tensor: &Tensor) -> Vec<i64> {
    Vec::try_from(tensor).unwrap()
}

fn read(tensor: &TensorProto) -> Tensor {
    let kind = match tensor.data_type {
        FLOAT => Kind::Float,
        FLOAT16 => Kind::Half,
        INT64 => Kind::Int64,
        other => panic!("{}: {other}", tensor.name),
    };
    Tensor::from_data_size(tensor.raw_data.as_ref().unwrap(), &tensor.dims, kind)
}

/// What an operator makes of its inputs.
fn compute(node: &NodeProto, inputs: &[Tensor]) -> Vec<Tensor> {
    let [x, rest @ ..] = inputs else { panic!("{node:?}") };
    let y = |n: usize| &rest[n - 1];
    vec![match node.op_type.as_str() {
        "Add" => x + y(1),
        "Sub" => x - y(1),
        "Mul" => x * y(1),
        "Div" => x / y(1),
        "Pow" => x.pow(y(1)),
        "MatMul" => x.matmul(y(1)),
        "Relu" => x.relu(),
        "Sigmoid" => x.sigmoid(),
        "Erf" => x.erf(),
        "Tanh" => x.tanh(),
        "Softmax" => x.softmax(int(node, "axis"), x.kind()),
        "Gemm" => x.matmul(&y(1).transpose(0, 1)) + y(2),
        "Transpose" => x.permute(ints(node, "perm")),
        "Cast" => x.to_kind(if int(node, "to") == i64::from(FLOAT) { Kind::Float } else { Kind::Half }),
        "Shape" => {
            let (start, end) = (int(node, "start") as usize, int(node, "end") as usize);
            Tensor::from_slice(&x.size()[start..end])
        }
        "Reshape" => x.reshape(values(y(1))),
        "Unsqueeze" => values(y(1)).into_iter().fold(x.shallow_clone(), |x, axis| x.unsqueeze(axis)),
        // Either side may have the ones.
        "Expand" => x + Tensor::zeros(values(y(1)), (x.kind(), Device::Cpu)),
        "Concat" => Tensor::cat(inputs, int(node, "axis")),
        "Gather" if y(1).dim() == 0 => x.select(int(node, "axis"), y(1).int64_value(&[])),
        "Gather" => x.index_select(int(node, "axis"), y(1)),
        "Slice" => {
            let [start, end, axis] = [1, 2, 3].map(|place| values(y(place))[0]);
            x.narrow(axis, start, end - start)
        }
        "Split" => return x.split_with_sizes(values(y(1)), int(node, "axis")),
        "ReduceMean" => x.mean_dim(ints(node, "axes"), int(node, "keepdims") == 1, x.kind()),
        "ReduceSum" => x.sum_dim_intlist(values(y(1)), int(node, "keepdims") == 1, x.kind()),
        "LayerNormalization" => {
            let axis = x.dim() as i64 + int(node, "axis");
            let shape = &x.size()[axis as usize..];
            let eps = f64::from(attribute(node, "epsilon").unwrap().f.unwrap());
            x.layer_norm(shape, Some(y(1)), Some(y(2)), eps, false)
        }
        "BatchNormalization" => {
            let eps = f64::from(attribute(node, "epsilon").unwrap().f.unwrap());
            let by_channel = |n: usize| y(n).reshape([-1, 1, 1]);
            (x - by_channel(3)) / (by_channel(4) + eps).sqrt() * by_channel(1) + by_channel(2)
        }
        "Conv" => {
            let pads = ints(node, "pads");
            let padded = x.constant_pad_nd([pads[1], pads[3], pads[0], pads[2]]);
            assert_eq!(ints(node, "kernel_shape"), &y(1).size()[2..]);
            padded.conv2d(
                y(1),
                rest.get(1),
                ints(node, "strides"),
                [0, 0],
                ints(node, "dilations"),
                int(node, "group"),
            )
        }
        "MaxPool" => {
            let pads = ints(node, "pads");
            let ends = [pads[1], pads[3], pads[0], pads[2]];
            let padded = x.pad(ends, "constant", f64::NEG_INFINITY);
            padded.max_pool2d(ints(node, "kernel_shape"), ints(node, "strides"), [0, 0], [1, 1], false)
        }
        "Pad" => {
            let (pads, dims) = (values(y(1)), x.dim());
            let ends = (0..dims).rev().flat_map(|d| [pads[d], pads[dims + d]]).collect::<Vec<_>>();
            x.pad(ends, "constant", y(2).double_value(&[]))
        }
        other => panic!("{other} is not in this list"),
    }]
}

/// The logits of a file, with every shape that it says of a tensor checked.
fn run(file: &ModelProto, images: &Tensor) -> Tensor {
    let graph = file.graph.as_ref().unwrap();
    let batch = images.size()[0];
    let mut known: BTreeMap<&str, Tensor> =
        graph.initializer.iter().map(|tensor| (tensor.name.as_str(), read(tensor))).collect();
    assert!(known.insert(IMAGES, images.shallow_clone()).is_none());
    for node in &graph.node {
        let inputs: Vec<Tensor> =
            node.input.iter().map(|name| known[name.as_str()].shallow_clone()).collect();
        for (name, tensor) in node.output.iter().zip(compute(node, &inputs)) {
            assert!(known.insert(name, tensor).is_none(), "{name} is made twice");
        }
    }
    let mut said = 0;
    for info in graph.value_info.iter().chain(&graph.input).chain(&graph.output) {
        let shape = info.r#type.as_ref().and_then(|info| info.tensor_type.as_ref()).unwrap().shape.as_ref();
        let shape: Vec<i64> = shape
            .unwrap()
            .dim
            .iter()
            .map(|dim| match dim.value.as_ref().unwrap() {
                DimensionValue::Fixed(size) => *size,
                DimensionValue::Named(name) => match name.strip_suffix(BATCH).unwrap() {
                    "" => batch,
                    times => times.strip_suffix('*').unwrap().parse::<i64>().unwrap() * batch,
                },
            })
            .collect();
        assert_eq!(known[info.name.as_str()].size(), shape, "{}", info.name);
        said += 1;
    }
    assert!(said > 10);
    known.remove(LOGITS).unwrap()
}

fn decoded(graph: &Graph, half: bool) -> ModelProto {
    let about = [("about".to_owned(), "this".to_owned())].into();
    ModelProto::decode(encode(graph, "network", half, &about).unwrap().as_slice()).unwrap()
}

fn difference(ours: &Tensor, theirs: &Tensor) -> f64 {
    assert_eq!(ours.size(), theirs.size());
    let scale = ours.abs().max().double_value(&[]);
    assert!(scale > 1e-3, "logits of {scale} say nothing");
    (ours - theirs).abs().max().double_value(&[]) / scale.max(1.0)
}

#[test]
fn operators_compute_what_the_network_does_for_one_image_and_for_three() {
    for name in NETWORKS {
        let (architecture, vs, network) = network(name);
        let side = architecture.facts.image_size;
        let graph = Graph::of(network.as_ref(), &vs, side, None).unwrap();
        let file = decoded(&graph, false);
        for batch in [1, 3] {
            let images = test_support::images(batch, side) / 127.5 - 1.0;
            let ours = tch::no_grad(|| network.forward_t(&images, false));
            let full = difference(&ours, &tch::no_grad(|| run(&file, &images)));
            assert!(full < 1e-4, "{name}, {batch}: {full}");
        }
        let tensors: Vec<&str> =
            file.graph.as_ref().unwrap().initializer.iter().map(|tensor| tensor.name.as_str()).collect();
        for (tensor, values) in vs.variables() {
            let place = tensors.iter().position(|name| *name == tensor);
            let place = place.unwrap_or_else(|| panic!("{name}: {tensor} is not in the file"));
            assert_eq!(read(&file.graph.as_ref().unwrap().initializer[place]), values, "{tensor}");
        }
    }
}

/// Of one network: libtorch's f16 is slow on the processor.
#[test]
fn f16_is_computed_with_between_f32_images_and_f32_logits() {
    let (architecture, vs, network) = network("cct_2_3x2_32");
    let side = architecture.facts.image_size;
    let graph = Graph::of(network.as_ref(), &vs, side, None).unwrap();
    let images = test_support::images(1, side) / 127.5 - 1.0;
    let ours = tch::no_grad(|| network.forward_t(&images, false));
    let theirs = tch::no_grad(|| run(&decoded(&graph, true), &images));
    assert_eq!(theirs.kind(), Kind::Float);
    let half = difference(&ours, &theirs);
    assert!(half > 0.0 && half < 2e-2, "{half}");
}

#[test]
fn pixels_are_normalised_inside() {
    let (architecture, vs, network) = network("vit_reference");
    let side = architecture.facts.image_size;
    let (mean, std) = ([0.5, 0.4, 0.3], [0.25, 0.2, 0.5]);
    let graph = Graph::of(network.as_ref(), &vs, side, Some([mean, std])).unwrap();
    let named: Vec<&str> = graph.tensors.values().map(|named| named.name.as_str()).collect();
    assert!(named.contains(&MEAN) && named.contains(&STD));
    let pixels = test_support::images(2, side) / 255.0;
    let channel = |values: [f64; 3]| Tensor::from_slice(&values).to_kind(Kind::Float).reshape([3, 1, 1]);
    let fed = (&pixels - channel(mean)) / channel(std);
    let ours = tch::no_grad(|| network.forward_t(&fed, false));
    let file = decoded(&graph, false);
    assert!(difference(&ours, &tch::no_grad(|| run(&file, &pixels))) < 1e-4);
    assert_eq!(file.doc_string, "pixels from 0 to 1 [batch, 3, 72, 72] to logits [batch, 10]");
    assert_eq!((file.metadata_props[0].key.as_str(), file.opset_import[0].version), ("about", 17));
}

/// The fields have the numbers of `onnx.proto`: 1 is the version, 7 the graph, 8 the operators' version.
#[test]
fn a_file_begins_as_onnx_says() {
    let (architecture, vs, network) = network("vit_reference");
    let graph = Graph::of(network.as_ref(), &vs, architecture.facts.image_size, None).unwrap();
    let file = encode(&graph, "vit_reference", false, &BTreeMap::new()).unwrap();
    assert_eq!(file[..11], *b"\x08\x08\x12\x07trainer");
    assert!(file.ends_with(b"B\x04\n\0\x10\x11") || file.ends_with(b"B\x02\x10\x11"));
    let conv = file.windows(6).filter(|bytes| bytes == b"\x22\x04Conv").count();
    assert_eq!(conv, 1, "the patch embedding, as field 4 of a node");
}
