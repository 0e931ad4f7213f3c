//! Weights as safetensors files: written with what is needed to use them, read strictly.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::Error;
use crate::registry::{self, Architecture};

/// The metadata key of a safetensors file under which its [`Card`] stands, as JSON.
const CARD_KEY: &str = "compact-vision";

/// What training scripts wrap a network's tensors in, the one to prefer first: an average of the weights
/// is what their authors publish numbers for.
const WRAPPERS: [&str; 5] = ["state_dict_ema.", "model_ema.", "state_dict.", "model.", "module."];

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
    let card = serde_json::to_string(card)
        .map_err(|error| Error::Training(format!("the weights cannot be described: {error}")))?;
    // One entry only: the crate writes several in an order that changes from run to run.
    let metadata = HashMap::from([(CARD_KEY.to_owned(), card)]);
    tensors_to_bytes(vs.variables().into_iter().collect(), Some(metadata))
}

/// Named tensors as the bytes of a safetensors file, in f32.
///
/// # Errors
/// libtorch's refusal to copy a tensor.
pub fn tensors_to_bytes(
    tensors: BTreeMap<String, Tensor>,
    metadata: Option<HashMap<String, String>>,
) -> Result<Vec<u8>, Error> {
    let mut contents = BTreeMap::new();
    for (name, tensor) in tensors {
        let shape: Vec<usize> = tensor.size().iter().map(|&size| size as usize).collect();
        let floats = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
        let mut bytes = vec![0; 4 * floats.numel()];
        // libtorch runs on little-endian machines only, and that is the file's order too.
        floats.f_copy_data_u8(&mut bytes, floats.numel())?;
        contents.insert(name, (shape, bytes));
    }
    let views: Result<Vec<_>, safetensors::SafeTensorError> = contents
        .iter()
        .map(|(name, (shape, bytes))| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect();
    views
        .and_then(|views| safetensors::serialize(views, metadata))
        .map_err(|error| Error::Training(format!("the tensors cannot be written: {error}")))
}

/// The tensors of a safetensors file in f32, by name, on the CPU.
///
/// # Errors
/// Bytes that are not safetensors, or tensors of another type.
pub fn tensors_from_bytes(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let tensor = |(name, view): (String, TensorView)| match view.dtype() {
        Dtype::F32 => {
            let tensor = Tensor::f_from_data_size(view.data(), &shape(&view), Kind::Float);
            Ok((name, tensor.map_err(|error| error.to_string())?))
        }
        other => Err(format!("{name} holds {other:?}, expected F32")),
    };
    file.tensors().into_iter().map(tensor).collect()
}

/// Copies `saved` into the tensors of the same names. Names and shapes must agree; if they do not, nothing is copied.
///
/// # Errors
/// The first tensor that is missing, unexpected or of another shape, or libtorch's refusal.
pub fn copy_exactly(
    tensors: &BTreeMap<String, Tensor>,
    saved: &BTreeMap<String, Tensor>,
) -> Result<(), String> {
    if let Some(name) = saved.keys().find(|name| !tensors.contains_key(*name)) {
        return Err(format!("{name} is not expected"));
    }
    for (name, tensor) in tensors {
        let (want, got) = (tensor.size(), saved.get(name).map(Tensor::size));
        match got {
            None => return Err(format!("{name} is missing")),
            Some(got) if got != want => return Err(format!("{name} is {got:?}, expected {want:?}")),
            Some(_) => {}
        }
    }
    let copy = |(name, tensor): (&String, &Tensor)| tensor.shallow_clone().f_copy_(&saved[name]);
    tch::no_grad(|| tensors.iter().try_for_each(copy)).map_err(|error| error.to_string())
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

/// The tensor of this name in a safetensors file, as f32 on the CPU.
///
/// # Errors
/// A file that cannot be read, is not safetensors or has no such tensor of a floating type.
pub fn read_tensor(path: &Path, name: &str) -> Result<Tensor, Error> {
    let bytes = fs::read(path).map_err(Error::io(path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| not_safetensors(path, &error))?;
    let view = file.tensor(name).map_err(|_| {
        let names = file.names().join(", ");
        wrong(path, format!("it has no tensor {name:?}; it has: {names}"))
    })?;
    Ok(to_tensor(path, name, &view)?.f_to_kind(Kind::Float)?)
}

fn to_tensor(path: &Path, name: &str, view: &TensorView) -> Result<Tensor, Error> {
    let kind = match view.dtype() {
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        other => return Err(wrong(path, format!("{name} holds {other:?}, expected a floating type"))),
    };
    Ok(Tensor::f_from_data_size(view.data(), &shape(view), kind)?)
}

fn shape(view: &TensorView) -> Vec<i64> {
    view.shape().iter().map(|&size| size as i64).collect()
}

/// Copies the tensors of a weights file into `vs`, the tensors of the network `architecture`. Every tensor
/// of the network must be in the file with its shape, and nothing else may be. What is the same thing
/// written differently is understood:
///
/// * tensors wrapped in one of the usual prefixes (`module.`, `state_dict.`, …);
/// * another checkpoint's names, where the architecture knows them;
/// * a matrix kept as a 1×1 convolution, and the other way round;
/// * batch counters and window indices, which say nothing, and a head for pre-training, which is left out;
/// * a position embedding for another size of image, which is resampled.
///
/// With `new_head`, the head keeps what it was drawn as if the file's is for another number of classes. A file that does not
/// fit leaves the network unchanged. Returned are notes on weights that were resampled, replaced or left out.
///
/// # Errors
/// A file that cannot be read or is not safetensors; all missing, unexpected and misshapen tensors
/// in one message.
pub fn load(
    vs: &VarStore,
    architecture: &Architecture,
    path: &Path,
    new_head: bool,
) -> Result<Vec<String>, Error> {
    let bytes = fs::read(path).map_err(Error::io(path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| not_safetensors(path, &error))?;
    let mut variables: BTreeMap<String, Tensor> = vs.variables().into_iter().collect();
    let mut notes = Vec::new();
    let found = unwrap(file.tensors().into_iter().collect(), path, &mut notes)?;
    let mut found = rename(found, architecture, path, &mut notes)?;

    if new_head {
        replace_head(&mut variables, &mut found, architecture, &mut notes);
    }
    let (mut missing, mut misshapen) = (Vec::new(), Vec::new());
    let mut loaded = Vec::new();
    for (name, variable) in &variables {
        let want = variable.size();
        let Some(view) = found.remove(name) else {
            missing.push(name.clone());
            continue;
        };
        let got = shape(&view);
        if without_unit_ends(&got) == without_unit_ends(&want) {
            loaded
                .push((variable.shallow_clone(), to_tensor(path, name, &view)?.f_reshape(want.as_slice())?));
        } else if let Some(fitted) =
            (architecture.resample)(name, &to_tensor(path, name, &view)?.f_to_kind(Kind::Float)?, &want)
            && fitted.size() == want
        {
            notes.push(format!("{name} was resampled from {got:?} to {want:?}"));
            loaded.push((variable.shallow_clone(), fitted));
        } else {
            misshapen.push(format!("{name} is {got:?}, the network has {want:?}"));
        }
    }
    let unexpected: Vec<String> = found.into_keys().collect();
    let problems: Vec<String> =
        [("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)]
            .into_iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(what, names)| format!("{what}: {}", names.join(", ")))
            .collect();
    if !problems.is_empty() {
        return Err(wrong(path, format!("the tensors are not the network's; {}", problems.join("; "))));
    }
    tch::no_grad(|| loaded.iter_mut().try_for_each(|(variable, tensor)| variable.f_copy_(tensor)))?;
    Ok(notes)
}

/// Takes the head out of what is to be loaded and out of the file, all of it or nothing: unless the two
/// have the same tensors, none of the file's can be of the classes that are asked for.
fn replace_head(
    variables: &mut BTreeMap<String, Tensor>,
    found: &mut BTreeMap<String, TensorView>,
    architecture: &Architecture,
    notes: &mut Vec<String>,
) {
    let is_head = |name: &String| architecture.head.iter().any(|head| name.starts_with(head));
    let entry = |name: &String, shape: Vec<i64>| (name.clone(), without_unit_ends(&shape).to_vec());
    let ours = variables.iter().filter(|(name, _)| is_head(name)).map(|(name, t)| entry(name, t.size()));
    let theirs = found.iter().filter(|(name, _)| is_head(name)).map(|(name, v)| entry(name, shape(v)));
    let (ours, theirs): (Vec<_>, Vec<_>) = (ours.collect(), theirs.collect());
    if ours == theirs {
        return;
    }
    let why = if theirs.is_empty() { "the file has no head" } else { "the file's head is for other classes" };
    let names = match ours.as_slice() {
        [(first, _), .., (last, _)] if ours.len() > 4 => format!("{first} to {last}"),
        few => few.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", "),
    };
    notes.push(format!("{why}; drawn anew: {names}"));
    variables.retain(|name, _| !is_head(name));
    found.retain(|name, _| !is_head(name));
}

/// The tensors without the prefixes that training scripts add.
fn unwrap<'a>(
    mut found: BTreeMap<String, TensorView<'a>>,
    path: &Path,
    notes: &mut Vec<String>,
) -> Result<BTreeMap<String, TensorView<'a>>, Error> {
    let wrapper = |name: &str| WRAPPERS.iter().position(|wrapper| name.starts_with(wrapper));
    while let Some(best) = found.keys().filter_map(|name| wrapper(name)).min() {
        let (mut inner, mut others) = (BTreeMap::new(), 0);
        for (name, view) in found {
            if wrapper(&name).is_some_and(|this| this != best) {
                others += 1;
                continue;
            }
            let name = name.strip_prefix(WRAPPERS[best]).map_or(name.clone(), str::to_owned);
            if inner.insert(name.clone(), view).is_some() {
                return Err(wrong(path, format!("it has {name} both with and without {:?}", WRAPPERS[best])));
            }
        }
        if others > 0 {
            notes.push(format!(
                "read were the tensors under {:?}; {others} under another prefix were not",
                WRAPPERS[best]
            ));
        }
        found = inner;
    }
    Ok(found)
}

/// The tensors under the network's names, without those that say nothing about its weights.
fn rename<'a>(
    found: BTreeMap<String, TensorView<'a>>,
    architecture: &Architecture,
    path: &Path,
    notes: &mut Vec<String>,
) -> Result<BTreeMap<String, TensorView<'a>>, Error> {
    let pre_logits = |name: &str| name.starts_with("pre_logits.");
    if found.keys().any(|name| pre_logits(name)) {
        notes.push("the layer before the head of pre-training, \"pre_logits\", was left out".to_owned());
    }
    let says_nothing = |name: &str| {
        name.ends_with(".num_batches_tracked")
            || name.ends_with(".relative_position_index")
            || pre_logits(name)
    };
    let (names, views): (Vec<String>, Vec<TensorView>) =
        found.into_iter().filter(|(name, _)| !says_nothing(name)).unzip();
    let ours = architecture.tensor_names(&names)?;
    let mut renamed = BTreeMap::new();
    for ((ours, view), theirs) in ours.into_iter().zip(views).zip(names) {
        if renamed.insert(ours.clone(), view).is_some() {
            return Err(wrong(path, format!("it has {ours} twice, once as {theirs}")));
        }
    }
    Ok(renamed)
}

/// A shape without trailing dimensions of 1: `[8, 4, 1, 1]` holds the same matrix as `[8, 4]`.
fn without_unit_ends(shape: &[i64]) -> &[i64] {
    let ones = shape.iter().rev().take_while(|&&size| size == 1).count();
    &shape[..shape.len() - ones]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry;
    use tch::nn;

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
        assert_eq!(load(&other, &again, &path, false).unwrap(), [""; 0]);
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

        let (target, seven) = network(7);
        let _ = target.root().var("extra", &[1], nn::Init::Const(0.0));
        let before = target.variables()["stem.0.weight"].copy();
        let message = load(&target, &seven, &path, false).unwrap_err().to_string();
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
            let message = load(&vs, &architecture, &path, false).unwrap_err().to_string();
            assert!(message.contains("not a whole safetensors file"), "{message}");
        }
        assert!(
            load(&vs, &architecture, &directory.path().join("none"), false)
                .unwrap_err()
                .to_string()
                .contains("none: ")
        );
    }

    /// Saves the network's tensors under other names and loads them into a new network.
    fn reload(
        rename: impl Fn(&str) -> Vec<String>,
        new_head: bool,
        classes: i64,
    ) -> Result<Vec<String>, Error> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("theirs.safetensors");
        let (vs, _) = network(10);
        let mut tensors = BTreeMap::new();
        for (name, tensor) in vs.variables() {
            for (copies, new) in (0..).zip(rename(&name)) {
                tensors.insert(new, &tensor + f64::from(copies));
            }
        }
        fs::write(&path, tensors_to_bytes(tensors, None).unwrap()).unwrap();
        let (target, architecture) = network(classes);
        let before = target.variables()["head.weight"].copy();
        let notes = load(&target, &architecture, &path, new_head)?;
        let own = vs.variables();
        for (name, tensor) in target.variables() {
            if classes != 10 && name.starts_with("head.") {
                continue;
            }
            assert_eq!(tensor, own[&name], "{name}");
        }
        if classes != 10 {
            assert_eq!(before, target.variables()["head.weight"]);
        }
        Ok(notes)
    }

    #[test]
    fn wrapped_weights_are_unwrapped_and_the_averaged_ones_preferred() {
        let none: [&str; 0] = [];
        for prefix in ["module.", "model.", "state_dict.module.", "model_ema.module."] {
            assert_eq!(reload(|name| vec![format!("{prefix}{name}")], false, 10).unwrap(), none, "{prefix}");
        }
        let both = |name: &str| vec![format!("state_dict_ema.{name}"), format!("state_dict.{name}")];
        let notes = reload(both, false, 10).unwrap();
        assert!(notes.len() == 1 && notes[0].contains("under \"state_dict_ema.\""), "{notes:?}");
        // A tensor outside the wrapper is still one too many.
        let stray =
            |name: &str| vec![if name == "head.bias" { "bias".to_owned() } else { format!("model.{name}") }];
        let message = reload(stray, false, 10).unwrap_err().to_string();
        assert!(message.contains("missing: head.bias; unexpected: bias"), "{message}");
        // So is one that is there with and without it.
        let twice = |name: &str| vec![format!("model.{name}"), name.to_owned()];
        let message = reload(twice, false, 10).unwrap_err().to_string();
        assert!(message.contains("both with and without \"model.\""), "{message}");
    }

    #[test]
    fn other_checkpoints_names_are_known_and_counters_left_out() {
        let authors = |name: &str| {
            let name = name.replace("stem.", "").replace("blocks.0.", "3.").replace("head.", "6.");
            vec![name.clone(), format!("{name}.num_batches_tracked")]
        };
        assert_eq!(reload(authors, false, 10).unwrap(), [""; 0]);
    }

    #[test]
    fn a_head_for_other_classes_is_replaced_only_if_asked() {
        let same = |name: &str| vec![name.to_owned()];
        let message = reload(same, false, 7).unwrap_err().to_string();
        assert!(message.contains("head.weight is [10, 8], the network has [7, 8]"), "{message}");
        let notes = reload(same, true, 7).unwrap();
        assert_eq!(notes, ["the file's head is for other classes; drawn anew: head.bias, head.weight"]);
        // So is a head that is not there.
        let headless = |name: &str| if name.starts_with("head.") { vec![] } else { vec![name.to_owned()] };
        let notes = reload(headless, true, 7).unwrap();
        assert_eq!(notes, ["the file has no head; drawn anew: head.bias, head.weight"]);
        assert_eq!(reload(same, true, 10).unwrap(), [""; 0]);
        assert!(reload(headless, false, 10).is_err());
        // The body is still strict.
        let bodiless = |name: &str| if name.starts_with("stem.") { vec![] } else { vec![name.to_owned()] };
        assert!(reload(bodiless, true, 7).unwrap_err().to_string().contains("missing: stem.0.bias"));
    }

    /// Two thirds of a per-class head have the right shapes in a file for more classes, and none of them is
    /// of the right class.
    #[test]
    fn a_head_of_many_tensors_is_replaced_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("seven.safetensors");
        let multi = |classes: i64| {
            let fields = [("depth", 1), ("image_size", 16), ("embed_dim", 8), ("num_classes", classes)];
            let fields =
                fields.map(|(name, value)| (name.to_owned(), run_record::FieldValue::Integer(value)));
            registry::find("patchconvnet_s60_multi").unwrap().with_fields(&fields.into()).unwrap()
        };
        let (seven, three) = (nn::VarStore::new(Device::Cpu), nn::VarStore::new(Device::Cpu));
        multi(7).init(&seven.root()).unwrap();
        multi(3).init(&three.root()).unwrap();
        fs::write(&path, tensors_to_bytes(seven.variables().into_iter().collect(), None).unwrap()).unwrap();
        let value = |vs: &VarStore, name: &str| vs.variables()[name].copy();
        let before = value(&three, "head.0.weight");
        let notes = load(&three, &multi(3), &path, true).unwrap();
        assert_eq!(notes, ["the file's head is for other classes; drawn anew: cls_token to head.2.weight"]);
        assert_eq!(value(&three, "head.0.weight"), before);
        assert_eq!(value(&three, "norm.weight"), value(&seven, "norm.weight"));
        let body = "blocks.0.attn.qkv_pos.0.weight";
        assert_eq!(value(&three, body), value(&seven, body));
        assert!(load(&three, &multi(3), &path, false).is_err());
    }

    #[test]
    fn a_position_embedding_is_resampled_with_a_note() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("small.safetensors");
        let vit = |image_size: i64| {
            let fields = [("depth", 1), ("image_size", image_size)];
            let fields =
                fields.map(|(name, value)| (name.to_owned(), run_record::FieldValue::Integer(value)));
            registry::find("vit_reference").unwrap().with_fields(&fields.into()).unwrap()
        };
        let (small, large) = (nn::VarStore::new(Device::Cpu), nn::VarStore::new(Device::Cpu));
        vit(24).init(&small.root()).unwrap();
        vit(36).init(&large.root()).unwrap();
        let tensors = small.variables().into_iter().collect();
        fs::write(&path, tensors_to_bytes(tensors, None).unwrap()).unwrap();
        let notes = load(&large, &vit(36), &path, false).unwrap();
        assert_eq!(notes, ["pos_embed was resampled from [1, 17, 64] to [1, 37, 64]"]);
        let class = |vs: &VarStore| vs.variables()["pos_embed"].select(1, 0);
        assert_eq!(class(&small), class(&large));
    }
}
