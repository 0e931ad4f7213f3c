//! Whether a weights file is a network's, from its header alone, and loading it.

use std::collections::BTreeMap;

use safetensors::Dtype;
use tch::nn::VarStore;
use tch::{Device, Kind, TchError, Tensor};

use super::error::{Mismatch, Misshapen, Problem, WeightsError};
use super::file::{WeightsFile, floating};
use super::names::{Names, match_names};
use super::{Shapes, first_few};
use crate::ModelConfig;

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
}

/// What the file has under one of the network's names.
struct Stored {
    name: String,
    shape: Vec<i64>,
    dtype: Dtype,
}

impl WeightsFile {
    /// Compares the file with the network of `config`, whose tensors are `network`. Every tensor of the network must be in
    /// the file with its shape, and nothing else may be. What is the same thing written differently is understood:
    ///
    /// * tensors wrapped in one of the usual prefixes (`module.`, `state_dict.`, `_orig_mod.`, …), or all in another;
    /// * another checkpoint's names, where the architecture knows them;
    /// * a matrix kept as a 1×1 convolution, and the other way round;
    /// * batch counters and window indices, which say nothing, and a head for pre-training, which is left out;
    /// * a position embedding for another size of image, which is resampled.
    ///
    /// # Errors
    /// All missing, unexpected, misshapen and mistyped tensors at once.
    pub fn fit(
        &self,
        config: &dyn ModelConfig,
        network: &Shapes,
        head: Head<'_>,
    ) -> Result<Fit, WeightsError> {
        let (theirs, about): (Vec<String>, Vec<_>) =
            self.contents().map(|(name, shape, dtype)| (name, (shape, dtype))).unzip();
        let mut contents: BTreeMap<String, _> = theirs.iter().cloned().zip(about).collect();
        let Names { found, mut notes, prefix } =
            match_names(theirs, config, network).map_err(|problem| self.wrong(problem))?;
        notes.splice(..0, self.notes().iter().cloned());
        let mut network = network.clone();
        let mut found: BTreeMap<String, Stored> = found
            .into_iter()
            .filter_map(|(ours, name)| {
                let (shape, dtype) = contents.remove(&name)?;
                Some((ours, Stored { name, shape, dtype }))
            })
            .collect();
        self.replace_head(&mut network, &mut found, config, head, &mut notes);

        let mut mismatch = Mismatch { prefix, ..Mismatch::default() };
        let mut names = BTreeMap::new();
        for (ours, want) in network {
            let Some(Stored { name, shape, dtype }) = found.remove(&ours) else {
                mismatch.missing.push(ours);
                continue;
            };
            if floating(dtype).is_none() {
                mismatch.mistyped.push((ours, format!("{dtype:?}")));
            } else if without_unit_ends(&shape) == without_unit_ends(&want) {
                names.insert(ours, name);
            } else if can_be_resampled(config, &ours, &shape, &want) {
                notes.push(format!("{ours} was resampled from {shape:?} to {want:?}"));
                names.insert(ours, name);
            } else {
                mismatch.misshapen.push(Misshapen { name: ours, file: shape, network: want });
            }
        }
        mismatch.unexpected = found.into_keys().collect();
        if mismatch.is_none() {
            Ok(Fit { notes, names })
        } else {
            Err(self.error(Problem::Mismatch(mismatch.into())))
        }
    }

    /// Copies the file's values into the tensors in `vs` of the network that the file was compared with.
    ///
    /// # Errors
    /// A file that can no longer be read, values that are not finite numbers, or libtorch's refusal. The network is then
    /// unchanged.
    pub fn load(&self, fit: &Fit, config: &dyn ModelConfig, vs: &VarStore) -> Result<(), WeightsError> {
        let variables = vs.variables();
        let (mut loaded, mut broken) = (Vec::new(), Vec::new());
        for (ours, name) in &fit.names {
            let other = || self.wrong(format!("{name} was compared with another network's {ours}"));
            let variable = variables.get(ours).ok_or_else(other)?;
            let tensor = self.tensor(name)?;
            if !is_finite(&tensor).map_err(|error| self.error(error))? {
                broken.push(name.clone());
            }
            let tensor = fitted(config, ours, &tensor, &variable.size()).ok_or_else(other)?;
            loaded.push((variable.shallow_clone(), tensor));
        }
        if !broken.is_empty() {
            return Err(self.error(Problem::NotFinite { tensors: broken, of: loaded.len() }));
        }
        tch::no_grad(|| loaded.iter_mut().try_for_each(|(variable, tensor)| variable.f_copy_(tensor)))
            .map_err(|error| self.error(error))
    }

    /// Copies the file's values into `tensors`, one at a time. The file must hold exactly these, under these names and with
    /// these shapes, in any floating type; nothing is renamed, resampled or left out.
    ///
    /// # Errors
    /// All missing, unexpected, misshapen and mistyped tensors at once; a file that can no longer be read. Nothing is then
    /// copied. Or libtorch's refusal.
    pub fn copy_to(&self, tensors: &BTreeMap<String, Tensor>) -> Result<(), WeightsError> {
        let mut contents: BTreeMap<String, _> =
            self.contents().map(|(name, shape, dtype)| (name, (shape, dtype))).collect();
        let mut mismatch = Mismatch::default();
        for (name, tensor) in tensors {
            let (name, want) = (name.clone(), tensor.size());
            match contents.remove(&name) {
                None => mismatch.missing.push(name),
                Some((_, dtype)) if floating(dtype).is_none() => {
                    mismatch.mistyped.push((name, format!("{dtype:?}")));
                }
                Some((shape, _)) if shape != want => {
                    mismatch.misshapen.push(Misshapen { name, file: shape, network: want });
                }
                Some(_) => {}
            }
        }
        mismatch.unexpected = contents.into_keys().collect();
        if !mismatch.is_none() {
            return Err(self.error(Problem::Mismatch(mismatch.into())));
        }
        self.bytes()?;
        tch::no_grad(|| {
            tensors.iter().try_for_each(|(name, tensor)| {
                let saved = self.tensor(name)?;
                tensor.shallow_clone().f_copy_(&saved).map_err(|error| self.error(error))
            })
        })
    }

    /// Takes the head out of what is to be loaded and out of what was found, all of it or nothing: unless the two
    /// have the same tensors, none of the file's can be of the classes that are asked for.
    fn replace_head(
        &self,
        network: &mut Shapes,
        found: &mut BTreeMap<String, Stored>,
        config: &dyn ModelConfig,
        head: Head<'_>,
        notes: &mut Vec<String>,
    ) {
        let is_head = |name: &String| config.is_head(name);
        let entry = |name: &String, shape: &[i64]| (name.clone(), without_unit_ends(shape).to_vec());
        let ours = network.iter().filter(|(name, _)| is_head(name)).map(|(name, shape)| entry(name, shape));
        let theirs =
            found.iter().filter(|(name, _)| is_head(name)).map(|(name, found)| entry(name, &found.shape));
        let (ours, theirs): (Vec<_>, Vec<_>) = (ours.collect(), theirs.collect());
        let same_size = ours == theirs;
        let named = self.class_names();
        let why = match (head, named) {
            (Head::Same, _) => return,
            (Head::OfSize, _) if same_size => return,
            (Head::For(classes), Some(named)) if same_size && named == classes => return,
            (Head::For(_), None) if same_size => {
                notes.push("the file does not name its classes; its head is kept".to_owned());
                return;
            }
            _ if theirs.is_empty() => "the file has no head".to_owned(),
            (Head::For(classes), Some(named)) => other_classes(&named, classes),
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

/// The tensor in the shape `want`, resampled where the network knows how to.
fn fitted(config: &dyn ModelConfig, name: &str, tensor: &Tensor, want: &[i64]) -> Option<Tensor> {
    if without_unit_ends(&tensor.size()) == without_unit_ends(want) {
        return tensor.f_reshape(want).ok();
    }
    config.resample(name, tensor, want).filter(|resampled| resampled.size() == want)
}

/// Whether the network knows how to make a tensor of one shape one of another. Tried on zeros that take no memory.
fn can_be_resampled(config: &dyn ModelConfig, name: &str, shape: &[i64], want: &[i64]) -> bool {
    let zeros = || Tensor::f_zeros([1], (Kind::Float, Device::Cpu))?.f_expand(shape, false);
    !shape.contains(&0) && zeros().ok().and_then(|zeros| fitted(config, name, &zeros, want)).is_some()
}

fn is_finite(tensor: &Tensor) -> Result<bool, TchError> {
    Ok(tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0)
}

/// A shape without trailing dimensions of 1: `[8, 4, 1, 1]` holds the same matrix as `[8, 4]`.
fn without_unit_ends(shape: &[i64]) -> &[i64] {
    let ones = shape.iter().rev().take_while(|&&size| size == 1).count();
    &shape[..shape.len() - ones]
}
