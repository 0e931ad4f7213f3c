//! Whether a weights file is a network's, from its header alone, and loading it.

use std::collections::BTreeMap;

use run_record::first_few;
use safetensors::Dtype;
use serde::Deserialize;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::file::{WeightsFile, floating};
use super::names::{Names, match_names};
use super::{Card, wrong};
use crate::Error;
use crate::registry::{Architecture, Resample};

/// Names and shapes of a network's tensors.
pub type Shapes = BTreeMap<String, Vec<i64>>;

/// Names and shapes of the tensors in `vs`.
pub fn shapes(vs: &VarStore) -> Shapes {
    vs.variables().into_iter().map(|(name, tensor)| (name, tensor.size())).collect()
}

/// What to do about the head, which depends on the classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head<'a> {
    /// It must be in the file, as everything else.
    Same,
    /// It is the file's if it has the size, and otherwise stays as it was drawn.
    OfSize,
    /// It is the file's if that is for these classes in this order, or of the size if the file does not name its classes,
    /// and otherwise stays as it was drawn.
    For(&'a [String]),
}

/// A file's tensors and a network's, found to belong together.
#[derive(Debug, Clone)]
pub struct Fit {
    /// What is resampled, replaced, renamed or left out.
    pub notes: Vec<String>,
    /// By the network's name, the file's name of each tensor to load.
    names: BTreeMap<String, String>,
    resample: Resample,
}

/// What the file has under one of the network's names.
struct Found {
    name: String,
    shape: Vec<i64>,
    dtype: Dtype,
}

/// The part of a [`Card`] that a head depends on, which may come from a later version of this program.
#[derive(Deserialize)]
struct Classes {
    class_names: Vec<String>,
}

impl WeightsFile {
    /// Compares the file with the network `architecture` whose tensors are `network`. Every tensor of the network must be in
    /// the file with its shape, and nothing else may be. What is the same thing written differently is understood:
    ///
    /// * tensors wrapped in one of the usual prefixes (`module.`, `state_dict.`, `_orig_mod.`, …), or all in another;
    /// * another checkpoint's names, where the architecture knows them;
    /// * a matrix kept as a 1×1 convolution, and the other way round;
    /// * batch counters and window indices, which say nothing, and a head for pre-training, which is left out;
    /// * a position embedding for another size of image, which is resampled.
    ///
    /// # Errors
    /// All missing, unexpected and misshapen tensors in one message.
    pub fn fit(&self, architecture: &Architecture, network: &Shapes, head: Head<'_>) -> Result<Fit, Error> {
        let (theirs, about): (Vec<String>, Vec<_>) =
            self.contents().map(|(name, shape, dtype)| (name, (shape, dtype))).unzip();
        let mut contents: BTreeMap<String, _> = theirs.iter().cloned().zip(about).collect();
        let Names { found, mut notes, prefix } = match_names(theirs, self.path(), architecture, network)?;
        let mut network = network.clone();
        let mut found: BTreeMap<String, Found> = found
            .into_iter()
            .filter_map(|(ours, name)| {
                let (shape, dtype) = contents.remove(&name)?;
                Some((ours, Found { name, shape, dtype }))
            })
            .collect();
        self.replace_head(&mut network, &mut found, architecture, head, &mut notes);

        let (mut missing, mut misshapen, mut mistyped) = (Vec::new(), Vec::new(), Vec::new());
        let mut names = BTreeMap::new();
        for (ours, want) in network {
            let Some(Found { name, shape, dtype }) = found.remove(&ours) else {
                missing.push(ours);
                continue;
            };
            if floating(dtype).is_none() {
                mistyped.push(format!("{ours} holds {dtype:?}"));
            } else if without_unit_ends(&shape) == without_unit_ends(&want) {
                names.insert(ours, name);
            } else if can_be_resampled(architecture, &ours, &shape, &want) {
                notes.push(format!("{ours} was resampled from {shape:?} to {want:?}"));
                names.insert(ours, name);
            } else {
                misshapen.push(format!("{ours} is {shape:?}, the network has {want:?}"));
            }
        }
        let unexpected: Vec<String> = found.into_keys().collect();
        let mut problems: Vec<String> = [
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
            ("not of a floating type", mistyped),
        ]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("{what}: {}", first_few(&names)))
        .collect();
        if problems.is_empty() {
            return Ok(Fit { notes, names, resample: architecture.resample });
        }
        problems.extend(prefix.map(|prefix| format!("all names begin with {prefix:?}")));
        problems.extend(self.card().ok().and_then(|card| difference(&card, architecture)));
        let model = &architecture.model;
        Err(wrong(self.path(), format!("the tensors are not those of {model}; {}", problems.join("; "))))
    }

    /// Copies the file's values into the network's tensors in `vs`.
    ///
    /// # Errors
    /// A file that can no longer be read, values that are not finite numbers, or libtorch's refusal. The network is then
    /// unchanged.
    pub fn load(&self, fit: &Fit, vs: &VarStore) -> Result<(), Error> {
        let variables = vs.variables();
        let (mut loaded, mut broken) = (Vec::new(), Vec::new());
        for (ours, name) in &fit.names {
            let other = || wrong(self.path(), format!("{name} was compared with another network's {ours}"));
            let variable = variables.get(ours).ok_or_else(other)?;
            let (tensor, want) = (self.tensor(name)?, variable.size());
            if tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
                broken.push(name.clone());
            }
            let tensor = if without_unit_ends(&tensor.size()) == without_unit_ends(&want) {
                tensor.f_reshape(want.as_slice())?
            } else {
                (fit.resample)(ours, &tensor, &want)
                    .filter(|fitted| fitted.size() == want)
                    .ok_or_else(other)?
            };
            loaded.push((variable.shallow_clone(), tensor));
        }
        if !broken.is_empty() {
            let problem = format!(
                "NaN or infinity in {} of {} tensors: {}; nothing can start from these weights",
                broken.len(),
                loaded.len(),
                first_few(&broken)
            );
            return Err(wrong(self.path(), problem));
        }
        tch::no_grad(|| loaded.iter_mut().try_for_each(|(variable, tensor)| variable.f_copy_(tensor)))?;
        Ok(())
    }

    /// Takes the head out of what is to be loaded and out of what was found, all of it or nothing: unless the two
    /// have the same tensors, none of the file's can be of the classes that are asked for.
    fn replace_head(
        &self,
        network: &mut Shapes,
        found: &mut BTreeMap<String, Found>,
        architecture: &Architecture,
        head: Head<'_>,
        notes: &mut Vec<String>,
    ) {
        let is_head = |name: &String| architecture.head.iter().any(|head| name.starts_with(head));
        let entry = |name: &String, shape: &[i64]| (name.clone(), without_unit_ends(shape).to_vec());
        let ours = network.iter().filter(|(name, _)| is_head(name)).map(|(name, shape)| entry(name, shape));
        let theirs =
            found.iter().filter(|(name, _)| is_head(name)).map(|(name, found)| entry(name, &found.shape));
        let (ours, theirs): (Vec<_>, Vec<_>) = (ours.collect(), theirs.collect());
        let same_size = ours == theirs;
        let named = self.described().and_then(|card| serde_json::from_str::<Classes>(card).ok());
        let why = match (head, named) {
            (Head::Same, _) => return,
            (Head::OfSize, _) if same_size => return,
            (Head::For(classes), Some(named)) if same_size && named.class_names == classes => return,
            (Head::For(_), None) if same_size => {
                notes.push("the file does not name its classes; its head is kept".to_owned());
                return;
            }
            _ if theirs.is_empty() => "the file has no head".to_owned(),
            (Head::For(classes), Some(named)) => other_classes(&named.class_names, classes),
            _ => "the file's head is for other classes".to_owned(),
        };
        let names = match ours.as_slice() {
            [(first, _), .., (last, _)] if ours.len() > 4 => format!("{first} to {last}"),
            few => few.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", "),
        };
        notes.push(format!("{why}; drawn anew: {names}"));
        network.retain(|name, _| !is_head(name));
        found.retain(|name, _| !is_head(name));
    }
}

/// What keeps a head for the classes `theirs` from being one for `ours`.
fn other_classes(theirs: &[String], ours: &[String]) -> String {
    let sorted = |classes: &[String]| {
        let mut classes = classes.to_vec();
        classes.sort();
        classes
    };
    if theirs == ours {
        "the file's head is of another form".to_owned()
    } else if sorted(theirs) == sorted(ours) {
        format!("the file's head has the classes in another order ({})", first_few(theirs))
    } else {
        format!("the file's head is for {} other classes ({})", theirs.len(), first_few(theirs))
    }
}

/// In what the network a file is of differs from `architecture`, as far as the two say.
fn difference(card: &Card, architecture: &Architecture) -> Option<String> {
    if card.family != architecture.family {
        return Some(format!("the file is of {}", card.model));
    }
    let fields = card.config.as_object()?.iter();
    let other = fields.filter(|(field, value)| architecture.config[field.as_str()] != **value);
    let other: Vec<String> = other.map(|(field, value)| format!("model.{field} = {value}")).collect();
    (!other.is_empty()).then(|| format!("the file is of {} with {}", card.model, first_few(&other)))
}

/// Whether the network knows how to make a tensor of one shape one of another. Tried on zeros that take no memory.
fn can_be_resampled(architecture: &Architecture, name: &str, shape: &[i64], want: &[i64]) -> bool {
    let zeros = || Tensor::f_zeros([1], (Kind::Float, Device::Cpu))?.f_expand(shape, false);
    let resampled = |zeros| (architecture.resample)(name, &zeros, want);
    !shape.contains(&0) && zeros().ok().and_then(resampled).is_some_and(|fitted| fitted.size() == want)
}

/// A shape without trailing dimensions of 1: `[8, 4, 1, 1]` holds the same matrix as `[8, 4]`.
fn without_unit_ends(shape: &[i64]) -> &[i64] {
    let ones = shape.iter().rev().take_while(|&&size| size == 1).count();
    &shape[..shape.len() - ones]
}
