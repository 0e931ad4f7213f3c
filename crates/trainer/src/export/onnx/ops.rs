//! Each operation of libtorch that networks use, in ONNX's operators.

use std::f64::consts::{FRAC_2_PI, SQRT_2};

use super::proto::AttributeProto;
use super::writer::{BATCH, IMAGES, Writer};
use crate::Error;
use crate::export::graph::{Argument, Made, Node, Size};

/// A GELU of the tanh form has this before the cube.
const GELU_CUBIC: f64 = 0.044715;

/// The arguments of an operation by place.
struct Call<'a> {
    node: &'a Node,
    /// What to call what it makes.
    name: String,
}

impl Call<'_> {
    fn wrong(&self, place: usize) -> Error {
        refused(&format!(
            "the argument {} of {} is {:?}",
            place + 1,
            self.node.op,
            self.node.arguments.get(place)
        ))
    }

    fn argument(&self, place: usize) -> &Argument {
        self.node.arguments.get(place).unwrap_or(&Argument::None)
    }

    fn id(&self, place: usize) -> Result<usize, Error> {
        self.optional(place).ok_or_else(|| self.wrong(place))
    }

    fn optional(&self, place: usize) -> Option<usize> {
        match self.argument(place) {
            Argument::Value(id) => Some(*id),
            _ => None,
        }
    }

    fn int(&self, place: usize) -> Result<i64, Error> {
        match self.argument(place) {
            Argument::Int(Size::Fixed(value)) => Ok(*value),
            _ => Err(self.wrong(place)),
        }
    }

    fn ints(&self, place: usize) -> Result<Vec<i64>, Error> {
        let Argument::Ints(sizes) = self.argument(place) else { return Err(self.wrong(place)) };
        let fixed = sizes.iter().map(|size| match size {
            Size::Fixed(value) => Ok(*value),
            Size::Batch(_) => Err(self.wrong(place)),
        });
        fixed.collect()
    }

    fn float(&self, place: usize) -> Result<f64, Error> {
        match self.argument(place) {
            Argument::Float(value) => Ok(*value),
            Argument::Int(Size::Fixed(value)) => Ok(*value as f64),
            _ => Err(self.wrong(place)),
        }
    }

    /// Refuses an argument that is not `expected`, because nothing is written for another.
    fn expect(&self, place: usize, expected: &Argument) -> Result<(), Error> {
        if self.argument(place) == expected { Ok(()) } else { Err(self.wrong(place)) }
    }

    fn made(&self) -> Result<&Made, Error> {
        self.node.results.first().ok_or_else(|| refused(&format!("{} makes nothing", self.node.op)))
    }
}

/// Adds what `node` does.
///
/// # Errors
/// An operation or an argument that is not in the table.
pub(super) fn add(writer: &mut Writer<'_>, node: &Node) -> Result<(), Error> {
    let call = Call { node, name: writer.name_for(node) };
    let made = call.made()?;
    if let Some(name) = writer.translate(&call)? {
        writer.names.insert(made.id, name.clone());
        writer.shapes.insert(made.id, made.shape.clone());
        // What does nothing in eval mode has the name of what it takes.
        let new = writer.nodes.last().is_some_and(|node| node.output.contains(&name));
        if new && writer.infos.last().is_none_or(|info| info.name != name) {
            writer.inform(&name, &made.shape);
        }
    }
    Ok(())
}

impl Writer<'_> {
    /// The name of the layer, if the operation has a weight, or that of the operation.
    fn name_for(&self, node: &Node) -> String {
        let mut weights = node.arguments.iter().filter_map(|argument| match argument {
            Argument::Value(id) => self.graph.tensors.get(id)?.name.strip_suffix(".weight"),
            _ => None,
        });
        weights.next_back().unwrap_or(&node.op).to_owned()
    }

    /// The name of a tensor.
    fn of(&self, id: usize) -> Result<String, Error> {
        self.names.get(&id).cloned().ok_or_else(|| refused("a tensor is used before it is made"))
    }

    fn shape(&self, id: usize) -> &[Size] {
        self.shapes.get(&id).map_or(&[], Vec::as_slice)
    }

    /// A dimension counted from the first, of a tensor with so many of them.
    fn axis(&self, id: usize, axis: i64) -> i64 {
        if axis < 0 { axis + self.shape(id).len() as i64 } else { axis }
    }

    /// The name of what a call makes, or `None` where that is a list of tensors or several.
    fn translate(&mut self, call: &Call<'_>) -> Result<Option<String>, Error> {
        let name = call.name.as_str();
        Ok(Some(match call.node.op.as_str() {
            "dropout" => {
                call.expect(2, &Argument::Bool(false))?;
                self.of(call.id(0)?)?
            }
            "contiguous" | "detach" | "alias" => self.of(call.id(0)?)?,
            "_convolution" => self.convolution(call)?,
            "linear" => self.linear(call)?,
            "matmul" => self.binary("MatMul", call)?,
            "add" | "sub" => {
                call.expect(2, &Argument::Int(Size::Fixed(1)))?;
                self.binary(if call.node.op == "add" { "Add" } else { "Sub" }, call)?
            }
            "mul" => self.binary("Mul", call)?,
            "div" => self.binary("Div", call)?,
            "relu" => self.unary("Relu", call, [])?,
            "sigmoid" => self.unary("Sigmoid", call, [])?,
            "gelu" => self.gelu(call)?,
            "softmax" => {
                let axis = self.axis(call.id(0)?, call.int(1)?);
                self.unary("Softmax", call, [AttributeProto::int("axis", axis)])?
            }
            "layer_norm" => {
                let axis = -(call.ints(1)?.len() as i64);
                let inputs = [self.of(call.id(0)?)?, self.of(call.id(2)?)?, self.of(call.id(3)?)?];
                let attributes =
                    [AttributeProto::int("axis", axis), AttributeProto::float("epsilon", call.float(4)?)];
                self.node("LayerNormalization", name, &inputs.each_ref().map(String::as_str), attributes)
            }
            "batch_norm" => {
                call.expect(5, &Argument::Bool(false))?;
                let inputs = (0..5).map(|place| self.of(call.id(place)?)).collect::<Result<Vec<_>, _>>()?;
                let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
                let attributes = [AttributeProto::float("epsilon", call.float(7)?)];
                self.node("BatchNormalization", name, &inputs, attributes)
            }
            "max_pool2d" => self.max_pool(call)?,
            "mean" => {
                let mut axes = call.ints(1)?;
                axes.iter_mut().for_each(|axis| *axis = self.shape_axis(call, *axis));
                let keep = i64::from(*call.argument(2) == Argument::Bool(true));
                let attributes = [AttributeProto::ints("axes", &axes), AttributeProto::int("keepdims", keep)];
                self.unary("ReduceMean", call, attributes)?
            }
            "sum" => {
                let axes = self.ints(&call.ints(1)?)?;
                let keep = i64::from(*call.argument(2) == Argument::Bool(true));
                let x = self.of(call.id(0)?)?;
                self.node("ReduceSum", name, &[&x, &axes], [AttributeProto::int("keepdims", keep)])
            }
            "pad" => {
                call.expect(2, &Argument::Text("constant".to_owned()))?;
                self.pad(call, 3)?
            }
            "constant_pad_nd" => self.pad(call, 2)?,
            "flatten" | "reshape" | "view" | "squeeze" | "unsqueeze" => {
                let x = self.of(call.id(0)?)?;
                self.reshaped(name, &x, &call.made()?.shape)?
            }
            "transpose" => {
                let x = call.id(0)?;
                let mut order: Vec<i64> = (0..self.shape(x).len() as i64).collect();
                let (a, b) = (self.axis(x, call.int(1)?), self.axis(x, call.int(2)?));
                order.swap(a as usize, b as usize);
                self.unary("Transpose", call, [AttributeProto::ints("perm", &order)])?
            }
            "permute" => {
                let order: Vec<i64> =
                    call.ints(1)?.into_iter().map(|axis| self.shape_axis(call, axis)).collect();
                self.unary("Transpose", call, [AttributeProto::ints("perm", &order)])?
            }
            "select" => {
                let (axis, index) = (self.shape_axis(call, call.int(1)?), self.int(call.int(2)?)?);
                let x = self.of(call.id(0)?)?;
                self.node("Gather", name, &[&x, &index], [AttributeProto::int("axis", axis)])
            }
            "index_select" => {
                let axis = self.shape_axis(call, call.int(1)?);
                let (x, index) = (self.of(call.id(0)?)?, self.of(call.id(2)?)?);
                self.node("Gather", name, &[&x, &index], [AttributeProto::int("axis", axis)])
            }
            "narrow" => {
                let (start, length) = (call.int(2)?, call.int(3)?);
                let axis = self.shape_axis(call, call.int(1)?);
                let parts = [[start], [start + length], [axis]].map(|part| self.ints(&part));
                let [start, end, axis] = parts;
                let x = self.of(call.id(0)?)?;
                self.node("Slice", name, &[&x, &start?, &end?, &axis?], [])
            }
            "cat" => {
                let Argument::Values(ids) = call.argument(0) else { return Err(call.wrong(0)) };
                let first = *ids.first().ok_or_else(|| call.wrong(0))?;
                let axis = self.axis(first, call.int(1)?);
                let inputs = ids.iter().map(|id| self.of(*id)).collect::<Result<Vec<_>, _>>()?;
                let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
                self.node("Concat", name, &inputs, [AttributeProto::int("axis", axis)])
            }
            "chunk" => {
                let x = call.id(0)?;
                self.lists.insert(call.made()?.id, (x, self.axis(x, call.int(2)?)));
                return Ok(None);
            }
            "prim::ListUnpack" => {
                self.split(call)?;
                return Ok(None);
            }
            "expand" => {
                let x = self.of(call.id(0)?)?;
                let shape = self.computed_shape(&call.made()?.shape)?;
                self.node("Expand", name, &[&x, &shape], [])
            }
            "repeat_interleave" => self.repeat(call)?,
            other => return Err(refused(&format!("there is no translation of {other}"))),
        }))
    }

    /// A dimension of the first argument counted from the first.
    fn shape_axis(&self, call: &Call<'_>, axis: i64) -> i64 {
        call.optional(0).map_or(axis, |id| self.axis(id, axis))
    }

    fn unary(
        &mut self,
        op: &str,
        call: &Call<'_>,
        attributes: impl IntoIterator<Item = AttributeProto>,
    ) -> Result<String, Error> {
        let x = self.of(call.id(0)?)?;
        Ok(self.node(op, &call.name, &[&x], attributes))
    }

    /// An operation on two tensors, or a tensor and a number.
    fn binary(&mut self, op: &str, call: &Call<'_>) -> Result<String, Error> {
        let x = self.of(call.id(0)?)?;
        let y = match call.optional(1) {
            Some(id) => self.of(id)?,
            None => self.float(call.float(1)?)?,
        };
        Ok(self.node(op, &call.name, &[&x, &y], []))
    }

    /// Arguments: images, weight, bias, stride, padding, dilation, transposed, padding of the result, groups.
    fn convolution(&mut self, call: &Call<'_>) -> Result<String, Error> {
        call.expect(6, &Argument::Bool(false))?;
        let mut inputs = vec![self.of(call.id(0)?)?, self.of(call.id(1)?)?];
        if let Some(bias) = call.optional(2) {
            inputs.push(self.of(bias)?);
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let padding = call.ints(4)?;
        let kernel = fixed(&self.shape(call.id(1)?)[2..]).ok_or_else(|| call.wrong(1))?;
        let attributes = [
            AttributeProto::ints("kernel_shape", &kernel),
            AttributeProto::ints("strides", &call.ints(3)?),
            AttributeProto::ints("pads", &[padding.clone(), padding].concat()),
            AttributeProto::ints("dilations", &call.ints(5)?),
            AttributeProto::int("group", call.int(8)?),
        ];
        Ok(self.node("Conv", &call.name, &inputs, attributes))
    }

    /// Weights are `[out, in]`, as the network has them.
    fn linear(&mut self, call: &Call<'_>) -> Result<String, Error> {
        let (x, weight) = (call.id(0)?, call.id(1)?);
        let bias = call.optional(2).map(|bias| self.of(bias)).transpose()?;
        let (input, weight) = (self.of(x)?, self.of(weight)?);
        if let (2, Some(bias)) = (self.shape(x).len(), &bias) {
            let attributes = [AttributeProto::int("transB", 1)];
            return Ok(self.node("Gemm", &call.name, &[&input, &weight, bias], attributes));
        }
        let transposed = self.node(
            "Transpose",
            &format!("{}.transposed", call.name),
            &[&weight],
            [AttributeProto::ints("perm", &[1, 0])],
        );
        let Some(bias) = bias else {
            return Ok(self.node("MatMul", &call.name, &[&input, &transposed], []));
        };
        let product = self.node("MatMul", &format!("{}.product", call.name), &[&input, &transposed], []);
        Ok(self.node("Add", &call.name, &[&product, &bias], []))
    }

    /// In the order of operations that runtimes recognise.
    fn gelu(&mut self, call: &Call<'_>) -> Result<String, Error> {
        let x = self.of(call.id(0)?)?;
        let name = |part: &str| format!("{}.{part}", call.name);
        let (one, half) = (self.float(1.0)?, self.float(0.5)?);
        let inner = match call.argument(1) {
            Argument::Text(form) if form == "none" => {
                let root = self.float(SQRT_2)?;
                let scaled = self.node("Div", &name("scaled"), &[&x, &root], []);
                self.node("Erf", &name("erf"), &[&scaled], [])
            }
            Argument::Text(form) if form == "tanh" => {
                let (three, cubic, factor) =
                    (self.float(3.0)?, self.float(GELU_CUBIC)?, self.float(FRAC_2_PI.sqrt())?);
                let cube = self.node("Pow", &name("cube"), &[&x, &three], []);
                let cube = self.node("Mul", &name("cubic"), &[&cube, &cubic], []);
                let sum = self.node("Add", &name("sum"), &[&x, &cube], []);
                let scaled = self.node("Mul", &name("scaled"), &[&sum, &factor], []);
                self.node("Tanh", &name("tanh"), &[&scaled], [])
            }
            _ => return Err(call.wrong(1)),
        };
        let share = self.node("Add", &name("share"), &[&inner, &one], []);
        let product = self.node("Mul", &name("product"), &[&x, &share], []);
        Ok(self.node("Mul", &call.name, &[&product, &half], []))
    }

    /// With as much padding at the end as the windows reach over it, which says the same as rounding up does.
    fn max_pool(&mut self, call: &Call<'_>) -> Result<String, Error> {
        call.expect(4, &Argument::Ints(vec![Size::Fixed(1), Size::Fixed(1)]))?;
        let (kernel, stride, before) = (call.ints(1)?, call.ints(2)?, call.ints(3)?);
        let made = &call.made()?.shape;
        let sides = |shape: &[Size]| shape.get(2..).and_then(fixed);
        let (from, to) = (sides(self.shape(call.id(0)?)), sides(made));
        let (Some(from), Some(to)) = (from, to) else { return Err(call.wrong(0)) };
        let after = |d: usize| ((to[d] - 1) * stride[d] + kernel[d] - from[d] - before[d]).max(0);
        let pads = [before[0], before[1], after(0), after(1)];
        let attributes = [
            AttributeProto::ints("kernel_shape", &kernel),
            AttributeProto::ints("strides", &stride),
            AttributeProto::ints("pads", &pads),
        ];
        self.unary("MaxPool", call, attributes)
    }

    /// libtorch lists before and after from the last dimension on; ONNX all befores, then all afters.
    fn pad(&mut self, call: &Call<'_>, fill: usize) -> Result<String, Error> {
        let (pads, dims) = (call.ints(1)?, self.shape(call.id(0)?).len());
        let mut all = vec![0; 2 * dims];
        for (d, pair) in pads.chunks_exact(2).enumerate() {
            let place = dims.checked_sub(d + 1).ok_or_else(|| call.wrong(1))?;
            (all[place], all[dims + place]) = (pair[0], pair[1]);
        }
        let value = if *call.argument(fill) == Argument::None { 0.0 } else { call.float(fill)? };
        let (x, pads, value) = (self.of(call.id(0)?)?, self.ints(&all)?, self.float(value)?);
        Ok(self.node("Pad", &call.name, &[&x, &pads, &value], [AttributeProto::text("mode", "constant")]))
    }

    /// A tensor as one of this shape.
    fn reshaped(&mut self, name: &str, x: &str, shape: &[Size]) -> Result<String, Error> {
        let batches = shape.iter().filter(|size| matches!(size, Size::Batch(_))).count();
        if batches > 1 {
            return Err(refused("a shape with the number of images in two places"));
        }
        let sizes: Vec<i64> =
            shape.iter().map(|size| if let Size::Fixed(n) = size { *n } else { -1 }).collect();
        let sizes = self.ints(&sizes)?;
        Ok(self.node("Reshape", name, &[x, &sizes], []))
    }

    /// The name of a shape, with the number of images taken from them.
    fn computed_shape(&mut self, shape: &[Size]) -> Result<String, Error> {
        if let Some(sizes) = fixed(shape) {
            return self.ints(&sizes);
        }
        if !self.nodes.iter().any(|node| node.name == BATCH) {
            let ends = [AttributeProto::int("start", 0), AttributeProto::int("end", 1)];
            self.push("Shape", BATCH, &[IMAGES], vec![BATCH.to_owned()], ends);
        }
        let mut parts = Vec::with_capacity(shape.len());
        for size in shape {
            parts.push(match size {
                Size::Fixed(size) => self.ints(&[*size])?,
                Size::Batch(1) => BATCH.to_owned(),
                Size::Batch(times) => {
                    let times = self.ints(&[*times])?;
                    self.node("Mul", "batch_times", &[BATCH, &times], [])
                }
            });
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        Ok(self.node("Concat", "shape", &parts, [AttributeProto::int("axis", 0)]))
    }

    /// Takes a tensor apart.
    fn split(&mut self, call: &Call<'_>) -> Result<(), Error> {
        let list = call.id(0)?;
        let &(x, axis) = self.lists.get(&list).ok_or_else(|| call.wrong(0))?;
        let results = &call.node.results;
        let sizes = results.iter().map(|made| made.shape.get(axis as usize).copied());
        let sizes: Option<Vec<Size>> = sizes.collect();
        let sizes = self.ints(&sizes.as_deref().and_then(fixed).ok_or_else(|| call.wrong(0))?)?;
        let name = self.free("split");
        let outputs: Vec<String> =
            (0..results.len()).map(|part| self.free(&format!("{name}.{part}"))).collect();
        let x = self.of(x)?;
        self.push("Split", &name, &[&x, &sizes], outputs.clone(), [AttributeProto::int("axis", axis)]);
        for (made, output) in results.iter().zip(outputs) {
            self.inform(&output, &made.shape);
            self.shapes.insert(made.id, made.shape.clone());
            self.names.insert(made.id, output);
        }
        Ok(())
    }

    /// Each entry of a dimension several times in a row: along a dimension of its own, which is then merged.
    fn repeat(&mut self, call: &Call<'_>) -> Result<String, Error> {
        let (times, made) = (call.int(1)?, &call.made()?.shape);
        let x = call.id(0)?;
        let after = self.axis(x, call.int(2)?) + 1;
        let mut sizes = vec![1; made.len() + 1];
        sizes[after as usize] = times;
        let (sizes, after, input) = (self.ints(&sizes)?, self.ints(&[after])?, self.of(x)?);
        let apart = self.node("Unsqueeze", &format!("{}.apart", call.name), &[&input, &after], []);
        let repeated = self.node("Expand", &format!("{}.repeated", call.name), &[&apart, &sizes], []);
        self.reshaped(&call.name, &repeated, made)
    }
}

/// The sizes, if none depends on the number of images.
fn fixed(shape: &[Size]) -> Option<Vec<i64>> {
    shape.iter().map(|size| if let Size::Fixed(size) = size { Some(*size) } else { None }).collect()
}

fn refused(what: &str) -> Error {
    Error::Training(format!("this network cannot be written as ONNX: {what}"))
}
