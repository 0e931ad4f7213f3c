//! A network as a list of operations on any number of images.
//!
//! libtorch notes what a pass over images does; sizes are plain numbers in that. Passes over two and over three images
//! differ in exactly the numbers that come from how many there are: what is 2k in one and 3k in the other is k times the
//! batch. Everything else, the size of the images among it, is fixed.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use core_layers::Model;
use tch::nn::VarStore;
use tch::{Kind, Tensor};
use torch_ext::{Trace, TraceArgument, TraceNode};

use crate::Error;

/// The names of the tensors that pixels are normalised with.
pub const MEAN: &str = "normalize.mean";
/// See [`MEAN`].
pub const STD: &str = "normalize.std";

/// A network.
#[derive(Debug)]
pub struct Graph {
    /// What is done, in order.
    pub nodes: Vec<Node>,
    /// The number of the images.
    pub images: usize,
    /// Height and width of the images, in pixels.
    pub side: i64,
    /// The number of the logits.
    pub logits: usize,
    /// How many logits there are.
    pub classes: i64,
    /// Tensors by number: those of the network, of normalisation, and constants.
    pub tensors: BTreeMap<usize, Named>,
}

/// A tensor that is there before any image is.
#[derive(Debug)]
pub struct Named {
    /// Its name in the network, or one of its own if it is a constant.
    pub name: String,
    /// Its values, row-major: kernels of convolutions may lie otherwise in the network.
    pub tensor: Tensor,
}

/// An operation.
#[derive(Debug)]
pub struct Node {
    /// As libtorch calls it, without `aten::`.
    pub op: String,
    /// What it takes.
    pub arguments: Vec<Argument>,
    /// The name of each argument that can be given by name alone, and the empty one of the others.
    pub keywords: Vec<String>,
    /// What it makes.
    pub results: Vec<Made>,
}

/// An argument of an operation.
#[derive(Debug, Clone, PartialEq)]
pub enum Argument {
    /// None.
    None,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(Size),
    /// A number.
    Float(f64),
    /// A word.
    Text(String),
    /// Whole numbers.
    Ints(Vec<Size>),
    /// The tensor of that number.
    Value(usize),
    /// The tensors of these numbers.
    Values(Vec<usize>),
}

/// A whole number that may depend on how many images there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// The same for any number of images.
    Fixed(i64),
    /// So many times the number of images.
    Batch(i64),
}

/// What an operation makes.
#[derive(Debug)]
pub struct Made {
    /// Its number.
    pub id: usize,
    /// Its shape.
    pub shape: Vec<Size>,
}

impl Graph {
    /// The operations of a network in eval mode on square images of `side` pixels, as they are fed to it, or, with
    /// `stats`, mean and standard deviation per channel, on pixels from 0 to 1 on the scale of these.
    ///
    /// The kernels of `torch-ext` are off meanwhile, for all threads.
    ///
    /// # Errors
    /// A network whose operations depend on the number of images in another way, or libtorch's refusal.
    pub fn of(
        network: &dyn Model,
        vs: &VarStore,
        side: i64,
        stats: Option<[[f64; 3]; 2]>,
    ) -> Result<Self, Error> {
        let mut tensors: Vec<(String, Tensor)> = vs.variables().into_iter().collect();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        let stats = stats.map(|stats| {
            stats.map(|values| Tensor::from_slice(&values.map(|value| value as f32)).reshape([1, 3, 1, 1]))
        });
        if let Some([mean, std]) = &stats {
            tensors.push((MEAN.to_owned(), mean.shallow_clone()));
            tensors.push((STD.to_owned(), std.shallow_clone()));
        }
        let pass = |batch: i64| -> Result<Trace, Error> {
            let images = Tensor::f_zeros([batch, 3, side, side], (Kind::Float, vs.device()))?;
            let inputs: Vec<Tensor> = tensors
                .iter()
                .map(|(_, tensor)| tensor.shallow_clone())
                .chain([images.shallow_clone()])
                .collect();
            let forward = || match &stats {
                None => network.forward_t(&images, false),
                Some([mean, std]) => network.forward_t(&((&images - mean) / std), false),
            };
            Ok(tch::no_grad(|| torch_ext::trace(&inputs, forward))?)
        };
        let (two, three) = plainly(|| Ok::<_, Error>((pass(2)?, pass(3)?)))?;
        let mut graph = merge(&two, &three)?;
        let Some(images) = two.inputs.last() else { return Err(unlike("no images")) };
        (graph.images, graph.side) = (*images, side);
        let names = two.inputs.iter().zip(tensors);
        graph.tensors.extend(
            names.map(|(id, (name, tensor))| (*id, Named { name, tensor: tensor.detach().contiguous() })),
        );
        // A tensor that nothing needs is none of the graph's.
        let used: Vec<usize> = graph.nodes.iter().flat_map(Node::inputs).collect();
        graph.tensors.retain(|id, _| used.contains(id));
        Ok(graph)
    }
}

/// Runs `compute` with libtorch's operations alone, for one thread after the other: what is switched is the process's.
fn plainly<T>(compute: impl FnOnce() -> T) -> T {
    static SWITCH: Mutex<()> = Mutex::new(());
    let _alone = SWITCH.lock().unwrap_or_else(PoisonError::into_inner);
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            torch_ext::set_kernels(self.0);
        }
    }
    let _before = Before(torch_ext::kernel_instructions() != "off");
    torch_ext::set_kernels(false);
    compute()
}

impl Node {
    /// The numbers of all tensors it takes.
    pub fn inputs(&self) -> Vec<usize> {
        let of = |argument: &Argument| match argument {
            Argument::Value(id) => vec![*id],
            Argument::Values(ids) => ids.clone(),
            _ => Vec::new(),
        };
        self.arguments.iter().flat_map(of).collect()
    }
}

/// What is the same in passes over two and three images, and what grows with them.
fn merge(two: &Trace, three: &Trace) -> Result<Graph, Error> {
    if (two.nodes.len(), &two.inputs) != (three.nodes.len(), &three.inputs) {
        return Err(unlike("another number of operations"));
    }
    // Constants get the numbers after all others.
    let last = two.nodes.iter().flat_map(|node| &node.results).map(|result| result.id);
    let first = last.chain(two.inputs.iter().copied()).max().map_or(0, |id| id + 1);
    let ids: BTreeMap<usize, usize> = two
        .nodes
        .iter()
        .zip(&three.nodes)
        .flat_map(|(a, b)| b.results.iter().zip(&a.results))
        .map(|(b, a)| (b.id, a.id))
        .chain(two.inputs.iter().map(|&id| (id, id)))
        .collect();
    let merger = Merger { ids, first };
    let nodes = two.nodes.iter().zip(&three.nodes).map(|(a, b)| merger.node(a, b));
    let nodes = nodes.collect::<Result<Vec<_>, _>>()?;
    let mut tensors = BTreeMap::new();
    for (number, (a, b)) in two.constants.iter().zip(&three.constants).enumerate() {
        if a.size() != b.size() || a != b {
            return Err(unlike("another constant"));
        }
        tensors.insert(
            first + number,
            Named { name: format!("constants.{number}"), tensor: a.detach().contiguous() },
        );
    }
    let logits = two.output;
    let shape = nodes.iter().flat_map(|node| &node.results).find(|made| made.id == logits);
    match shape.map(|made| made.shape.as_slice()) {
        Some(&[Size::Batch(1), Size::Fixed(classes)]) => {
            Ok(Graph { nodes, images: 0, side: 0, logits, classes, tensors })
        }
        other => Err(unlike(&format!("logits of the shape {other:?}"))),
    }
}

struct Merger {
    /// What a number of the second trace is in the first.
    ids: BTreeMap<usize, usize>,
    /// The number of the first constant.
    first: usize,
}

impl Merger {
    fn node(&self, two: &TraceNode, three: &TraceNode) -> Result<Node, Error> {
        let wrong = || unlike(&format!("{} instead of {}", three.op, two.op));
        if (&two.op, two.arguments.len(), two.results.len())
            != (&three.op, three.arguments.len(), three.results.len())
        {
            return Err(wrong());
        }
        // The rest of a convolution's are what the process has set for cuDNN, and none of the network's.
        let of_network = if two.op == "aten::_convolution" { 9 } else { usize::MAX };
        let arguments = two.arguments.iter().zip(&three.arguments).take(of_network);
        let arguments = arguments.map(|(a, b)| self.argument(a, b).ok_or_else(wrong));
        let results = two
            .results
            .iter()
            .zip(&three.results)
            .map(|(a, b)| Ok(Made { id: a.id, shape: sizes(&a.shape, &b.shape).ok_or_else(wrong)? }));
        let op = two.op.strip_prefix("aten::").unwrap_or(&two.op).to_owned();
        Ok(Node {
            op,
            arguments: arguments.collect::<Result<_, _>>()?,
            keywords: two.keywords.clone(),
            results: results.collect::<Result<_, Error>>()?,
        })
    }

    fn argument(&self, two: &TraceArgument, three: &TraceArgument) -> Option<Argument> {
        use TraceArgument as T;
        Some(match (two, three) {
            (T::None, T::None) => Argument::None,
            (T::Bool(a), T::Bool(b)) if a == b => Argument::Bool(*a),
            (T::Float(a), T::Float(b)) if a.to_bits() == b.to_bits() => Argument::Float(*a),
            (T::Text(a), T::Text(b)) if a == b => Argument::Text(a.clone()),
            (T::Int(a), T::Int(b)) => Argument::Int(size(*a, *b)?),
            (T::Ints(a), T::Ints(b)) => Argument::Ints(sizes(a, b)?),
            (T::Value(a), T::Value(b)) if self.ids.get(b) == Some(a) => Argument::Value(*a),
            (T::Values(a), T::Values(b)) => {
                let same = b.iter().map(|b| self.ids.get(b)).eq(a.iter().map(Some));
                same.then(|| Argument::Values(a.clone()))?
            }
            (T::Constant(a), T::Constant(b)) if a == b => Argument::Value(self.first + a),
            _ => return None,
        })
    }
}

fn sizes(two: &[i64], three: &[i64]) -> Option<Vec<Size>> {
    (two.len() == three.len()).then(|| two.iter().zip(three).map(|(a, b)| size(*a, *b)).collect())?
}

/// What is `two` for two images and `three` for three.
fn size(two: i64, three: i64) -> Option<Size> {
    match three - two {
        0 => Some(Size::Fixed(two)),
        times => (two == 2 * times).then_some(Size::Batch(times)),
    }
}

fn unlike(what: &str) -> Error {
    Error::Training(format!(
        "the network's operations depend on how many images there are in a way that cannot be exported: {what}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_fixed_or_so_many_times_the_batch() {
        assert_eq!(size(5, 5), Some(Size::Fixed(5)));
        assert_eq!(size(2, 3), Some(Size::Batch(1)));
        assert_eq!(size(32, 48), Some(Size::Batch(16)));
        // One more than the batch is neither.
        assert_eq!(size(3, 4), None);
        assert_eq!(
            sizes(&[2, 7, -1], &[3, 7, -1]),
            Some(vec![Size::Batch(1), Size::Fixed(7), Size::Fixed(-1)])
        );
        assert_eq!(sizes(&[2], &[3, 1]), None);
    }

    #[test]
    fn what_the_process_has_set_for_convolutions_is_no_part_of_the_network() {
        let pass = |batch: i64| {
            let images = Tensor::ones([batch, 1, 3, 3], (Kind::Float, tch::Device::Cpu));
            let weight = Tensor::ones([1, 1, 3, 3], (Kind::Float, tch::Device::Cpu));
            let compute = || images.conv2d::<Tensor>(&weight, None, [1, 1], [0, 0], [1, 1], 1).flatten(1, -1);
            torch_ext::trace(&[images.shallow_clone()], compute).unwrap()
        };
        let (two, mut three) = (pass(2), pass(3));
        for node in &mut three.nodes {
            for argument in node.arguments.iter_mut().skip(9) {
                if let TraceArgument::Bool(setting) = argument {
                    *setting = !*setting;
                }
            }
        }
        let graph = merge(&two, &three).unwrap();
        assert_eq!(graph.nodes.iter().filter(|node| node.op == "_convolution").count(), 1);
    }

    #[test]
    fn operations_that_depend_on_the_batch_otherwise_are_refused() {
        let pass = |batch: i64, compute: fn(&Tensor) -> Tensor| {
            let images = Tensor::ones([batch, 4], (Kind::Float, tch::Device::Cpu));
            torch_ext::trace(&[images.shallow_clone()], || compute(&images)).unwrap()
        };
        let refused = |compute: fn(&Tensor) -> Tensor| {
            merge(&pass(2, compute), &pass(3, compute)).unwrap_err().to_string()
        };
        let other = refused(|x| if x.size()[0] == 2 { x.relu() } else { x.sigmoid() });
        assert!(other.contains("aten::sigmoid instead of aten::relu"), "{other}");
        let number = refused(|x| x * (x.size()[0] as f64));
        assert!(number.contains("aten::mul"), "{number}");
        let added = refused(|x| x.reshape([1, -1]).constant_pad_nd([0, x.size()[0] + 1]));
        assert!(added.contains("aten::constant_pad_nd"), "{added}");
        let graph = merge(
            &pass(2, |x| x.reshape([x.size()[0], 2, -1]).flatten(1, 2)),
            &pass(3, |x| x.reshape([x.size()[0], 2, -1]).flatten(1, 2)),
        )
        .unwrap();
        assert_eq!(graph.classes, 4);
        assert_eq!(
            graph.nodes[0].arguments[1],
            Argument::Ints(vec![Size::Batch(1), Size::Fixed(2), Size::Fixed(-1)])
        );
    }
}
