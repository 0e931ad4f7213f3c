//! What a pass through a network consists of, operation by operation, and networks as TorchScript files.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_void};
use std::io::{self, Write};
use std::marker::PhantomData;

use serde::{Deserialize, Deserializer};
use tch::Tensor;
use torch_sys::C_tensor;

use crate::TorchExtError;
use crate::ffi::{self, check, pointers};

/// What was computed, in the order it was.
#[derive(Debug)]
pub struct Trace {
    /// The numbers of the tensors that were given.
    pub inputs: Vec<usize>,
    /// The operations. None is there whose result nothing needs.
    pub nodes: Vec<TraceNode>,
    /// The number of the result.
    pub output: usize,
    /// Tensors that were there before, and not among those given.
    pub constants: Vec<Tensor>,
}

/// An operation.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct TraceNode {
    /// As libtorch calls it, for example `aten::conv2d`.
    pub op: String,
    /// What it was called with.
    pub arguments: Vec<TraceArgument>,
    /// The name of each argument that can be given by name alone, and the empty one of the others.
    pub keywords: Vec<String>,
    /// What came of it.
    pub results: Vec<TraceValue>,
}

/// An argument of an operation.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub enum TraceArgument {
    /// None.
    None,
    /// A truth value.
    Bool(bool),
    /// A whole number, or the number of a kind of number.
    Int(i64),
    /// A number.
    #[serde(deserialize_with = "from_bits")]
    Float(f64),
    /// A word.
    Text(String),
    /// Whole numbers.
    Ints(Vec<i64>),
    /// The tensor of that number.
    Value(usize),
    /// The tensors of these numbers.
    Values(Vec<usize>),
    /// One of [`Trace::constants`].
    Constant(usize),
}

/// A tensor that an operation made.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TraceValue {
    /// Its number.
    pub id: usize,
    /// Its shape; empty for a list of tensors.
    pub shape: Vec<i64>,
}

fn from_bits<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    u64::deserialize(deserializer).map(f64::from_bits)
}

/// While it lives, this thread traces.
struct Tracing {
    not_send: PhantomData<*const ()>,
}

impl Drop for Tracing {
    fn drop(&mut self) {
        // SAFETY: takes no pointers. After torch_ext_trace_end there is nothing to abandon.
        let abandoned = check(unsafe { ffi::torch_ext_trace_abandon() });
        debug_assert!(abandoned.is_ok(), "{abandoned:?}");
    }
}

/// Runs `compute`, and returns what it did with `inputs`, none of which may need a gradient.
///
/// Sizes that `compute` asks a tensor for are plain numbers in what it does with them. Kernels of this crate are no
/// operations of libtorch's: switch them off with [`crate::set_kernels`] before.
///
/// ```
/// # fn main() -> Result<(), torch_ext::TorchExtError> {
/// let x = tch::Tensor::ones([2, 3], tch::kind::FLOAT_CPU);
/// let trace = torch_ext::trace(&[x.shallow_clone()], || x.relu())?;
/// assert_eq!(trace.nodes[0].op, "aten::relu");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// A trace in a trace, or an argument of a type that [`TraceArgument`] does not have.
pub fn trace(inputs: &[Tensor], compute: impl FnOnce() -> Tensor) -> Result<Trace, TorchExtError> {
    /// Where the graph's text and its constants go.
    #[derive(Default)]
    struct Found {
        text: Vec<u8>,
        constants: Vec<Tensor>,
    }
    extern "C" fn take(found: *mut c_void, text: *const c_char, length: usize) {
        // SAFETY: the pointers are to `found` below, and to so many bytes that live as long as the call.
        let (found, text) =
            unsafe { (&mut *found.cast::<Found>(), std::slice::from_raw_parts(text.cast::<u8>(), length)) };
        found.text.extend_from_slice(text);
    }
    extern "C" fn add(found: *mut c_void, tensor: *mut C_tensor) {
        // SAFETY: the pointers are to `found` below, and to a tensor that is now ours to delete.
        let (found, tensor) = unsafe { (&mut *found.cast::<Found>(), Tensor::from_ptr(tensor)) };
        found.constants.push(tensor);
    }
    #[derive(Deserialize)]
    struct Graph {
        inputs: Vec<usize>,
        nodes: Vec<TraceNode>,
        output: usize,
    }
    let given = pointers(inputs);
    // SAFETY: the pointers are to live tensors.
    check(unsafe { ffi::torch_ext_trace_start(given.as_ptr(), given.len()) })?;
    let tracing = Tracing { not_send: PhantomData };
    let output = compute();
    let mut found = Found::default();
    // SAFETY: the pointers are to a live tensor, and to `found`, which `take` and `add` get during this call alone.
    check(unsafe { ffi::torch_ext_trace_end(output.as_ptr(), (&raw mut found).cast(), take, add) })?;
    drop(tracing);
    let graph: Graph = serde_json::from_slice(&found.text)
        .map_err(|error| TorchExtError::Argument(format!("the trace cannot be read: {error}")))?;
    let Graph { inputs, nodes, output } = graph;
    Ok(Trace { inputs, nodes, output, constants: found.constants })
}

/// A tensor of a TorchScript module.
#[derive(Debug)]
pub struct ScriptTensor {
    /// Its name; each part before the last is a module's.
    pub name: String,
    /// Its values.
    pub tensor: Tensor,
    /// Whether it can be trained, and not a buffer.
    pub parameter: bool,
}

/// Writes a TorchScript module to `out`: these tensors, and the method `source`, in eval mode. `files` are kept beside
/// them under their names.
///
/// # Errors
/// Source that is no TorchScript, names that a module cannot have, or the refusal of `out`, which comes as
/// [`io::Error`] in the inner result.
pub fn write_script(
    out: &mut dyn Write,
    source: &str,
    tensors: &[ScriptTensor],
    files: &BTreeMap<String, String>,
) -> Result<io::Result<()>, TorchExtError> {
    struct Sink<'a> {
        out: &'a mut dyn Write,
        outcome: io::Result<()>,
    }
    extern "C" fn write(sink: *mut c_void, bytes: *const c_void, length: usize) -> bool {
        if length == 0 {
            return true;
        }
        // SAFETY: the pointers are to `sink` below, and to so many bytes that live as long as the call.
        let (sink, bytes) = unsafe {
            (&mut *sink.cast::<Sink<'_>>(), std::slice::from_raw_parts(bytes.cast::<u8>(), length))
        };
        if sink.outcome.is_ok() {
            sink.outcome = sink.out.write_all(bytes);
        }
        sink.outcome.is_ok()
    }
    let text = |text: &str| {
        CString::new(text).map_err(|_| TorchExtError::Argument(format!("{text:?} has a zero in it")))
    };
    let source = text(source)?;
    let owned = tensors.iter().map(|tensor| text(&tensor.name)).collect::<Result<Vec<_>, _>>()?;
    let names: Vec<*const c_char> = owned.iter().map(|name| name.as_ptr()).collect();
    let given: Vec<*const C_tensor> = tensors.iter().map(|tensor| tensor.tensor.as_ptr()).collect();
    let parameters: Vec<bool> = tensors.iter().map(|tensor| tensor.parameter).collect();
    let files = files
        .iter()
        .map(|(name, content)| Ok([text(name)?, text(content)?]))
        .collect::<Result<Vec<_>, TorchExtError>>()?;
    let [file_names, contents] =
        [0, 1].map(|part| files.iter().map(|file| file[part].as_ptr()).collect::<Vec<_>>());
    let mut sink = Sink { out, outcome: Ok(()) };
    let into = (&raw mut sink).cast();
    // SAFETY: the pointers are to so many live tensors, truth values and strings that end with a zero as is said, and
    // to `sink`, which `write` gets during this call alone.
    let status = check(unsafe {
        ffi::torch_ext_script(
            source.as_ptr(),
            names.as_ptr(),
            given.as_ptr(),
            parameters.as_ptr(),
            names.len(),
            file_names.as_ptr(),
            contents.as_ptr(),
            file_names.len(),
            into,
            write,
        )
    });
    match sink.outcome {
        Err(error) => Ok(Err(error)),
        Ok(()) => status.map(Ok),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::kind::FLOAT_CPU;

    #[test]
    fn a_trace_has_arguments_constants_and_shapes_and_does_not_nest() {
        let (x, constant) = (Tensor::ones([2, 3], FLOAT_CPU), Tensor::from_slice(&[5f32]));
        let trace = trace(&[x.shallow_clone()], || {
            assert!(super::trace(&[], || Tensor::from(1.0)).is_err());
            let _unused = x.relu();
            x.constant_pad_nd([1, 0]).pad([0, 1], "constant", f64::NEG_INFINITY) + &constant
        });
        let trace = trace.unwrap();
        let ops: Vec<&str> = trace.nodes.iter().map(|node| node.op.as_str()).collect();
        assert_eq!(ops, ["aten::constant_pad_nd", "aten::pad", "aten::add"]);
        let [first, pad, add] = trace.nodes.as_slice() else { panic!("{ops:?}") };
        assert_eq!(
            first.arguments[..2],
            [TraceArgument::Value(trace.inputs[0]), TraceArgument::Ints(vec![1, 0])]
        );
        let fill = [TraceArgument::Text("constant".into()), TraceArgument::Float(f64::NEG_INFINITY)];
        assert_eq!((&pad.arguments[2..], &pad.results[0].shape), (&fill[..], &vec![2, 5]));
        assert_eq!(add.arguments[1..], [TraceArgument::Constant(0), TraceArgument::Int(1)]);
        assert_eq!(add.keywords, ["", "", "alpha"]);
        assert_eq!((trace.output, trace.constants), (add.results[0].id, vec![constant]));
    }

    #[test]
    fn a_panic_ends_the_trace() {
        let x = Tensor::ones([2], FLOAT_CPU);
        let caught = std::panic::catch_unwind(|| trace(&[], || panic!("in the middle")).map(|_| ()));
        assert!(caught.is_err());
        assert_eq!(trace(&[x.shallow_clone()], || x.relu()).unwrap().nodes.len(), 1);
    }

    #[test]
    fn scripts_are_compiled_and_what_is_wrong_is_said() {
        let tensor = |name: &str| ScriptTensor {
            name: name.to_owned(),
            tensor: Tensor::from_slice(&[2f32, 3.]),
            parameter: true,
        };
        let write = |source: &str, tensors: &[ScriptTensor]| {
            let mut bytes = Vec::new();
            write_script(&mut bytes, source, tensors, &BTreeMap::new()).map(|written| {
                written.unwrap();
                bytes
            })
        };
        let source =
            "def forward(self, x: Tensor) -> Tensor:\n    return x * getattr(self.blocks, \"0\").gain\n";
        let file = write(source, &[tensor("blocks.0.gain")]).unwrap();
        let module = tch::CModule::load_data(&mut file.as_slice()).unwrap();
        let y = module.forward_ts(&[Tensor::from_slice(&[1f32, 2.])]).unwrap();
        assert_eq!(Vec::<f32>::try_from(y).unwrap(), [2., 6.]);
        let wrong = write("def forward(self, x: Tensor) -> Tensor:\n    return y\n", &[]).unwrap_err();
        assert!(wrong.to_string().contains("undefined value y"), "{wrong}");
        assert!(write(source, &[tensor("")]).unwrap_err().to_string().contains("no name"));

        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let full = write_script(&mut Full, source, &[tensor("blocks.0.gain")], &BTreeMap::new());
        assert_eq!(full.unwrap().unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
