//! Tensors as the bytes of a safetensors file, and back without any leniency.

use std::collections::BTreeMap;

use core_layers::weights::{CARD_KEY, write_safetensors};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tch::nn::VarStore;
use tch::{Kind, Tensor};

use super::Card;
use crate::Error;

/// Every tensor of `vs` and the card as the bytes of a safetensors file; the same input gives the
/// same bytes.
///
/// # Errors
/// libtorch's refusal to copy a tensor.
pub fn to_bytes(vs: &VarStore, card: &Card) -> Result<Vec<u8>, Error> {
    let card = serde_json::to_string(card)
        .map_err(|error| Error::Training(format!("the weights cannot be described: {error}")))?;
    let metadata = BTreeMap::from([(CARD_KEY.to_owned(), card)]);
    tensors_to_bytes(vs.variables().into_iter().collect(), Some(metadata))
}

/// Named tensors as the bytes of a safetensors file.
///
/// # Errors
/// A tensor of a type that the format does not have, or libtorch's refusal to copy one.
pub fn tensors_to_bytes(
    tensors: BTreeMap<String, Tensor>,
    metadata: Option<BTreeMap<String, String>>,
) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    write_safetensors(&mut bytes, &tensors, &metadata.unwrap_or_default())
        .map_err(|error| Error::Training(format!("the tensors cannot be written: {error}")))?;
    Ok(bytes)
}

/// The tensors of a safetensors file in f32, by name, on the CPU.
///
/// # Errors
/// Bytes that are not safetensors, or tensors of another type.
pub fn tensors_from_bytes(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let tensor = |(name, view): (String, TensorView)| match view.dtype() {
        Dtype::F32 => {
            let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
            let tensor = Tensor::f_from_data_size(view.data(), &shape, Kind::Float);
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
