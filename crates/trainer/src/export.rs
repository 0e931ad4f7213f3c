//! Trained networks for other programs: ONNX, TorchScript, timm, plain tensors.

mod card;
pub mod graph;
mod hub;
pub mod onnx;
pub mod script;
pub mod source;
pub mod timm;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::Path;

use clap::ValueEnum;
use core_layers::weights::CARD_KEY;
use run_record::{write_atomically, write_atomically_with};
use tch::{Kind, Tensor};

use crate::Error;
use crate::network::weights;
use crate::process::paths::check_output;
use graph::Graph;
use script::ScriptError;
use source::Source;

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tensors under the names of the published network, and all that this file says of itself.
    Safetensors,
    /// The same tensors and nothing else.
    StateDict,
    /// A program for torch.jit.load and libtorch.
    Torchscript,
    /// A graph for ONNX Runtime and other runtimes.
    Onnx,
    /// A directory for timm.create_model, with a model card.
    Timm,
    /// A directory to upload: tensors, an ONNX file that takes pixels, and a model card. For every network.
    Hub,
}

/// The kind of numbers that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// As trained.
    F32,
    /// Half the size, the range of f32, three digits.
    Bf16,
    /// Half the size, a small range, four digits.
    F16,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// What is written.
    pub format: Format,
    /// Where to.
    pub out: &'a Path,
    /// In which numbers.
    pub precision: Precision,
    /// Whether the network takes pixels from 0 to 1 and normalises them itself.
    pub normalize_inside: bool,
}

impl Request<'_> {
    /// Refuses what cannot be had, before anything is read.
    ///
    /// # Errors
    /// Such a combination, or an output that cannot be written or is the input.
    pub fn check(&self, input: &Path) -> Result<(), Error> {
        let refused = |problem: &str| Err(Error::Usage(problem.to_owned()));
        let program = matches!(self.format, Format::Torchscript | Format::Onnx);
        if self.normalize_inside && !program {
            return refused(
                "--normalize-inside is for programs, onnx and torchscript: tensors normalise nothing",
            );
        }
        match (self.format, self.precision) {
            (Format::Torchscript, Precision::Bf16 | Precision::F16) => refused(
                "--format torchscript is f32; whoever loads it can convert it, with .half() or .bfloat16(), or use autocast",
            ),
            (Format::Onnx, Precision::Bf16) => {
                refused("--format onnx is f32 or f16: runtimes have few operators for bf16")
            }
            (Format::Hub, Precision::Bf16) => refused(
                "--format hub has an ONNX file, which is f32 or f16: runtimes have few operators for bf16",
            ),
            (Format::Timm | Format::Hub, _) => {
                check_directory(self.out)?;
                // An empty directory is as good as none.
                if self.out.is_dir() { Ok(()) } else { check_output(self.out, &[input]) }
            }
            _ => check_output(self.out, &[input]),
        }
    }
}

/// Writes a network as it is asked for.
///
/// # Errors
/// A network or tensors that the format cannot hold, or a file that cannot be written.
pub fn export(source: &Source, request: &Request<'_>) -> Result<(), Error> {
    let graph = |normalize_inside: bool| {
        let stats = normalize_inside.then(|| source.stats()).transpose()?;
        let side = source.architecture.facts.image_size;
        Graph::of(source.network.as_ref(), &source.vs, side, stats)
    };
    let metadata = || {
        let mut metadata = described(source)?;
        metadata.insert(FORMAT_KEY.to_owned(), FORMAT.to_owned());
        Ok::<_, Error>(metadata)
    };
    let onnx = |normalize_inside: bool| {
        let half = request.precision == Precision::F16;
        onnx::encode(&graph(normalize_inside)?, &source.architecture.model, half, &described(source)?)
    };
    match request.format {
        Format::Hub => {
            if source.card.is_none() {
                return Err(Error::Usage(format!(
                    "{}: these weights say neither their classes nor how images are normalised, which --format hub needs; \
                     take a run's, or --format onnx",
                    source.path.display()
                )));
            }
            let tensors = tensors(source, request.precision)?;
            hub::write(request.out, &tensors, &metadata()?, &onnx(true)?, &card::text(source, None)?)
        }
        Format::Safetensors => {
            weights::save_with(request.out, &tensors(source, request.precision)?, &metadata()?)
        }
        Format::Timm => {
            timm::network(source)?;
            timm::write(source, &tensors(source, request.precision)?, &metadata()?, request.out)
        }
        Format::StateDict => {
            let metadata = [(FORMAT_KEY.to_owned(), FORMAT.to_owned())].into();
            weights::save_with(request.out, &tensors(source, request.precision)?, &metadata)
        }
        Format::Onnx => {
            let bytes = onnx(request.normalize_inside)?;
            write_atomically(request.out, &bytes).map_err(Error::io(request.out))
        }
        Format::Torchscript => {
            let graph = graph(request.normalize_inside)?;
            let trainable = source.vs.trainable_variables();
            let variables = source.vs.variables();
            let trainable = |name: &str| {
                variables.get(name).is_some_and(|tensor| {
                    trainable.iter().any(|trainable| trainable.data_ptr() == tensor.data_ptr())
                })
            };
            let files = described(source)?;
            let written = write_atomically_with(request.out, |file: &mut File| {
                let mut out = BufWriter::new(file);
                script::write(&mut out, &graph, trainable, &files)?;
                Ok::<_, ScriptError>(out.flush()?)
            });
            written.map_err(|error| match error {
                ScriptError::Io(error) => Error::io(request.out)(error),
                ScriptError::Torch(error) => error.into(),
            })
        }
    }
}

/// Refuses a directory that holds something.
///
/// # Errors
/// Such a directory, or one that cannot be read.
fn check_directory(directory: &Path) -> Result<(), Error> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(Error::io(directory))?,
    };
    match entries.into_iter().next() {
        None => Ok(()),
        Some(_) => Err(Error::Usage(format!(
            "{}: this directory holds files already; name another",
            directory.display()
        ))),
    }
}

/// Says which framework's tensors a file holds; some readers refuse one that does not.
const FORMAT_KEY: &str = "format";
/// See [`FORMAT_KEY`].
const FORMAT: &str = "pt";

/// What an exported file says of itself.
fn described(source: &Source) -> Result<BTreeMap<String, String>, Error> {
    let metadata = match &source.card {
        Some(card) => card.metadata(),
        None => weights::described(&source.architecture),
    };
    metadata
        .map_err(|error: io::Error| Error::Training(format!("{CARD_KEY} cannot be written as JSON: {error}")))
}

/// The network's tensors, floats in the precision that is asked for.
fn tensors(source: &Source, precision: Precision) -> Result<BTreeMap<String, Tensor>, Error> {
    let kind = match precision {
        Precision::F32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
        Precision::F16 => Kind::Half,
    };
    let converted = source.vs.variables().into_iter().map(|(name, tensor)| {
        let converted = if tensor.is_floating_point() { tensor.f_to_kind(kind)? } else { tensor };
        let lost = !bool::try_from(converted.f_isfinite()?.f_all()?)?;
        if lost {
            return Err(Error::Usage(format!(
                "{name} has values too large for f16; --precision bf16 has room for them"
            )));
        }
        Ok((name, converted))
    });
    converted.collect()
}
