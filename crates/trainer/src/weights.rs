//! Weights as safetensors files: written with what is needed to use them, read strictly.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::nn::VarStore;
use tch::{Kind, Tensor};

use crate::Error;
use crate::registry::{self, Architecture};

/// The metadata key of a safetensors file under which its [`Card`] stands, as JSON.
const CARD_KEY: &str = "compact-vision";

/// What a weights file says of itself, besides the tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Card {
    /// Variant name.
    pub model: String,
    /// Family name.
    pub family: String,
    /// The network's configuration.
    pub config: Value,
    /// The recipe it was trained with.
    pub recipe: run_record::Recipe,
    /// SHA-256 of the data set it was trained on.
    pub data_sha256: String,
    /// Mean per channel on the scale 0 to 255 that images are normalised with.
    pub channel_mean: [f64; 3],
    /// Standard deviation per channel on the scale 0 to 255, likewise.
    pub channel_std: [f64; 3],
    /// Name of each class, in the order of the logits.
    pub class_names: Vec<String>,
    /// Epoch the weights are from, counted from 1.
    pub epoch: u32,
    /// Validation top-1 after that epoch.
    pub val_top1: f64,
}

impl Card {
    /// The network the weights belong to.
    ///
    /// # Errors
    /// An architecture or configuration this program does not know; `path` is named.
    pub fn architecture(&self, path: &Path) -> Result<Architecture, Error> {
        let found = registry::from_config(&self.family, self.config.clone());
        let architecture =
            found.map_err(|problem| wrong(path, format!("written for {}: {problem}", self.model)))?;
        Ok(architecture.named(&self.model))
    }
}

fn wrong(path: &Path, problem: impl Into<String>) -> Error {
    Error::Weights { path: path.to_owned(), problem: problem.into() }
}

/// Every tensor of `vs` and the card as the bytes of a safetensors file; the same input gives the
/// same bytes.
///
/// # Errors
/// libtorch's refusal to copy a tensor.
pub fn to_bytes(vs: &VarStore, card: &Card) -> Result<Vec<u8>, Error> {
    let mut contents = BTreeMap::new();
    for (name, tensor) in vs.variables() {
        let shape: Vec<usize> = tensor.size().iter().map(|&size| size as usize).collect();
        let flat = tensor.f_detach()?.f_to_kind(Kind::Float)?.f_contiguous()?.f_reshape([-1])?;
        let values = Vec::<f32>::try_from(flat)?;
        contents.insert(name, (shape, values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>()));
    }
    let broken =
        |error: &dyn std::fmt::Display| Error::Training(format!("the weights cannot be written: {error}"));
    let views = contents
        .iter()
        .map(|(name, (shape, bytes))| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|error| broken(&error))?;
    let card = serde_json::to_string(card).map_err(|error| broken(&error))?;
    // One entry only: the crate writes several in an order that changes from run to run.
    let metadata = HashMap::from([(CARD_KEY.to_owned(), card)]);
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(|error| broken(&error))?;
    Ok(bytes)
}

/// The card of a weights file this project wrote.
///
/// # Errors
/// A file that cannot be read, is not safetensors, or has no card.
pub fn read_card(path: &Path) -> Result<Card, Error> {
    let bytes = fs::read(path).map_err(Error::io(path))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| not_safetensors(path, &error))?;
    let card = header.metadata().as_ref().and_then(|entries| entries.get(CARD_KEY));
    let card = card.ok_or_else(|| {
        wrong(
            path,
            "these weights do not say which network and data they belong to; expected a file from a run",
        )
    })?;
    let card: Card = serde_json::from_str(card)
        .map_err(|error| wrong(path, format!("its description is damaged: {error}")))?;
    card.recipe.validate().map_err(|error| wrong(path, format!("its description is damaged: {error}")))?;
    Ok(card)
}

fn not_safetensors(path: &Path, error: &dyn std::fmt::Display) -> Error {
    wrong(path, format!("not a whole safetensors file: {error}"))
}

/// Copies the tensors of a weights file into `vs`. Every tensor of the network must be in the file
/// with its shape, and nothing else may be; only batch counters, which change nothing, are
/// overlooked. A file that does not fit leaves the network unchanged.
///
/// # Errors
/// A file that cannot be read or is not safetensors; all missing, unexpected and misshapen tensors
/// in one message.
pub fn load(vs: &VarStore, path: &Path) -> Result<(), Error> {
    let bytes = fs::read(path).map_err(Error::io(path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| not_safetensors(path, &error))?;
    let variables: BTreeMap<String, Tensor> = vs.variables().into_iter().collect();
    let mut found: BTreeMap<String, TensorView> = file.tensors().into_iter().collect();
    found.retain(|name, _| !name.ends_with(".num_batches_tracked"));

    let missing: Vec<&str> =
        variables.keys().filter(|name| !found.contains_key(*name)).map(String::as_str).collect();
    let unexpected: Vec<&str> =
        found.keys().filter(|name| !variables.contains_key(*name)).map(String::as_str).collect();
    let shape_of = |view: &TensorView| view.shape().iter().map(|&size| size as i64).collect::<Vec<i64>>();
    let misshapen: Vec<String> = variables
        .iter()
        .filter_map(|(name, tensor)| {
            let (want, got) = (tensor.size(), shape_of(found.get(name)?));
            (want != got).then(|| format!("{name} is {got:?}, the network has {want:?}"))
        })
        .collect();
    let problems: Vec<String> = [
        ("missing", missing.join(", ")),
        ("unexpected", unexpected.join(", ")),
        ("of another shape", misshapen.join(", ")),
    ]
    .into_iter()
    .filter(|(_, names)| !names.is_empty())
    .map(|(what, names)| format!("{what}: {names}"))
    .collect();
    if !problems.is_empty() {
        return Err(wrong(path, format!("the tensors are not the network's; {}", problems.join("; "))));
    }

    let mut loaded = Vec::new();
    for (name, variable) in &variables {
        let Some(view) = found.get(name) else { continue };
        let kind = match view.dtype() {
            Dtype::F32 => Kind::Float,
            Dtype::F64 => Kind::Double,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            other => return Err(wrong(path, format!("{name} holds {other:?}, expected a floating type"))),
        };
        loaded
            .push((variable.shallow_clone(), Tensor::f_from_data_size(view.data(), &variable.size(), kind)?));
    }
    tch::no_grad(|| {
        for (variable, tensor) in &mut loaded {
            variable.f_copy_(tensor)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry;
    use tch::{Device, nn};

    fn network(classes: i64) -> (VarStore, Architecture) {
        let fields = [("embed_dim", 8), ("depth", 1), ("num_classes", classes)];
        let fields = fields.map(|(name, value)| (name.to_owned(), run_record::FieldValue::Integer(value)));
        let architecture =
            registry::find("convmixer_reference").unwrap().with_fields(&fields.into()).unwrap();
        let vs = nn::VarStore::new(Device::Cpu);
        architecture.init(&vs.root()).unwrap();
        (vs, architecture)
    }

    fn card(architecture: &Architecture) -> Card {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let recipe = crate::recipes::from_preset(&root, "quick", "convmixer_reference", &[]).unwrap().recipe;
        Card {
            model: architecture.model.clone(),
            family: architecture.family.to_owned(),
            config: architecture.config.clone(),
            recipe,
            data_sha256: "ab".into(),
            channel_mean: [0.0; 3],
            channel_std: [255.0; 3],
            class_names: vec!["0".into(), "1".into()],
            epoch: 3,
            val_top1: 0.5,
        }
    }

    #[test]
    fn a_round_trip_keeps_every_value_and_the_card() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("best.safetensors");
        let (vs, architecture) = network(10);
        fs::write(&path, to_bytes(&vs, &card(&architecture)).unwrap()).unwrap();
        assert_eq!(read_card(&path).unwrap(), card(&architecture));

        let again = read_card(&path).unwrap().architecture(&path).unwrap();
        let other = nn::VarStore::new(Device::Cpu);
        again.init(&other.root()).unwrap();
        load(&other, &path).unwrap();
        let other = other.variables();
        for (name, tensor) in vs.variables() {
            assert_eq!(tensor, other[&name], "{name}");
        }
    }

    #[test]
    fn every_mismatch_is_reported_and_nothing_is_changed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("best.safetensors");
        let (vs, architecture) = network(10);
        fs::write(&path, to_bytes(&vs, &card(&architecture)).unwrap()).unwrap();

        let (target, _) = network(7);
        let _ = target.root().var("extra", &[1], nn::Init::Const(0.0));
        let before = target.variables()["stem.0.weight"].copy();
        let message = load(&target, &path).unwrap_err().to_string();
        assert!(message.contains("missing: extra;"), "{message}");
        assert!(message.contains("head.bias is [10], the network has [7]"), "{message}");
        assert_eq!(before, target.variables()["stem.0.weight"]);
    }

    #[test]
    fn damaged_files_are_errors() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("best.safetensors");
        let (vs, architecture) = network(10);
        let bytes = to_bytes(&vs, &card(&architecture)).unwrap();
        for length in [0, 7, 100, bytes.len() - 1] {
            fs::write(&path, &bytes[..length]).unwrap();
            let message = load(&vs, &path).unwrap_err().to_string();
            assert!(message.contains("not a whole safetensors file"), "{message}");
        }
        assert!(load(&vs, &directory.path().join("none")).unwrap_err().to_string().contains("none: "));
    }
}
