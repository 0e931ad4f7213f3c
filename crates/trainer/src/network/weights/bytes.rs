//! Tensors as the bytes of a safetensors file, and back without any leniency.

use std::collections::BTreeMap;

use core_layers::weights::{CARD_KEY, floating, write_safetensors};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use tch::Tensor;
use tch::nn::VarStore;

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

/// Copies the tensors of a safetensors file into `tensors`, one at a time. Names and shapes must agree; if they do not,
/// nothing is copied.
///
/// # Errors
/// The first tensor that is missing, unexpected, of another shape or of no floating type, or libtorch's refusal.
pub fn copy_exactly(tensors: &BTreeMap<String, Tensor>, saved: &SafeTensors) -> Result<(), String> {
    let mut names = saved.names();
    names.sort_unstable();
    if let Some(name) = names.into_iter().find(|name| !tensors.contains_key(*name)) {
        return Err(format!("{name} is not expected"));
    }
    let mut pairs = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let view = saved.tensor(name).map_err(|_| format!("{name} is missing"))?;
        let (want, got) = (tensor.size(), shape(&view));
        if got != want {
            return Err(format!("{name} is {got:?}, expected {want:?}"));
        }
        if floating(view.dtype()).is_none() {
            return Err(format!("{name} {}", not_floating(&view)));
        }
        pairs.push((tensor, view));
    }
    let copy = |(tensor, view): (&Tensor, TensorView)| {
        let saved = self::tensor(&view)?;
        tensor.shallow_clone().f_copy_(&saved).map_err(|error| error.to_string())
    };
    tch::no_grad(|| pairs.into_iter().try_for_each(copy))
}

/// A tensor of a safetensors file, on the CPU.
///
/// # Errors
/// One of no floating type, or libtorch's refusal.
pub fn tensor(view: &TensorView) -> Result<Tensor, String> {
    let kind = floating(view.dtype()).ok_or_else(|| not_floating(view))?;
    Tensor::f_from_data_size(view.data(), &shape(view), kind).map_err(|error| error.to_string())
}

fn not_floating(view: &TensorView) -> String {
    format!("holds {:?}, expected a floating type", view.dtype())
}

fn shape(view: &TensorView) -> Vec<i64> {
    view.shape().iter().map(|&size| size as i64).collect()
}
