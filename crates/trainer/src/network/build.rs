//! A recipe's network: its description, its first draws, what it takes, and batches it cannot learn from.

use core_layers::{Model, trace};
use data_cifar::{Share, keyed_seed};
use run_record::{Algorithm, FieldValue, Recipe};
use tch::nn::VarStore;
use tch::{Kind, Tensor};

use crate::Error;
use crate::network::registry::{self, Architecture};

/// The recipe's network, with the input its data ask for and a head for so many classes, or the variant's.
///
/// # Errors
/// An unknown name or field, a field that the data decides, or one out of its range.
pub fn architecture(recipe: &Recipe, num_classes: Option<i64>) -> Result<Architecture, Error> {
    let decided = [
        ("image_size", Some(recipe.data.image_size), "data.image_size"),
        ("num_classes", num_classes, "the data set"),
    ];
    let mut fields = recipe.model.fields.clone();
    for (field, value, by) in decided {
        if fields.contains_key(field) {
            return Err(Error::Usage(format!(
                "model.{field} is decided by {by}; leave it out of the recipe"
            )));
        }
        if let Some(value) = value {
            fields.insert(field.to_owned(), FieldValue::Integer(value));
        }
    }
    registry::find(&recipe.model.name)?.with_fields(&fields)
}

/// Seeds the generator that a network's parameters are drawn from.
pub fn seed_initial_weights(seed: u64) {
    tch::manual_seed(keyed_seed(seed, "init", 0, 0));
}

/// Bytes of a network's weights, their gradients, what the optimiser keeps of them, and their average.
pub fn network_bytes(recipe: &Recipe, architecture: &Architecture) -> u64 {
    let kept = match recipe.optimizer.algorithm {
        Algorithm::Sgd { momentum: 0.0, .. } => 0,
        Algorithm::Sgd { .. } | Algorithm::Lion { .. } => 1,
        // Muon keeps less of matrices.
        Algorithm::AdamW { .. } | Algorithm::Lamb { .. } | Algorithm::Muon { .. } => 2,
    };
    let copies = [recipe.ema.is_some(), recipe.optimizer.lookahead.is_some()];
    4 * architecture.facts.params * (2 + kept + copies.map(u64::from).iter().sum::<u64>())
}

/// Refuses batches, or parts of them, of a single image where batch norm would see a single value of a channel: its
/// variance is not defined, and the running one is lost for good. One that is shared sees the images of all processes.
///
/// # Errors
/// Such a batch, or libtorch's refusal.
pub fn check_batch_norm(
    recipe: &Recipe,
    architecture: &Architecture,
    vs: &VarStore,
    network: &dyn Model,
    images: usize,
    processes: usize,
) -> Result<(), Error> {
    let batch_size = recipe.train.batch_size;
    let batches = [batch_size.min(images), images % batch_size];
    let parts = recipe.train.accumulate.unwrap_or(1);
    let processes = if recipe.train.sync_batch_norm { 1 } else { processes };
    if !batches.into_iter().any(|batch| has_lone_image(batch, parts, processes)) {
        return Ok(());
    }
    let side = architecture.facts.image_size;
    let image = Tensor::f_zeros([1, 3, side, side], (Kind::Float, vs.device()))?;
    let (_, steps) = trace::record(|| tch::no_grad(|| network.forward_t(&image, false)));
    let alone =
        steps.iter().find(|step| step.kind == "BatchNorm2d" && step.output[2..].iter().all(|&n| n == 1));
    let Some(alone) = alone else { return Ok(()) };
    let variables = vs.variables();
    let name = variables.iter().find(|(_, variable)| {
        alone.tensors.first().is_some_and(|tensor| tensor.data_ptr() == variable.data_ptr())
    });
    let name = name.and_then(|(name, _)| name.rsplit_once('.')).map_or("a layer", |(layer, _)| layer);
    let shared = if processes > 1 { format!(" in one of {processes} processes") } else { String::new() };
    Err(Error::Usage(format!(
        "train.batch_size = {batch_size}: of {images} training images a step sees a single one{shared}, and the batch norm \
         {name} then a single value of each channel, which has no variance; choose a batch size that leaves 2 or more"
    )))
}

/// Whether one of so many processes is given a single image of a part of a batch.
fn has_lone_image(batch: usize, parts: usize, processes: usize) -> bool {
    let slices = (0..processes).flat_map(|rank| Share { rank, processes, parts }.slices(batch));
    slices.into_iter().any(|slice| slice.own.len() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::recipes;
    use std::path::Path;

    #[test]
    fn the_data_decides_the_head_and_the_input() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let recipe = |set: &str| {
            recipes::from_preset(&root, "reference", "convmixer_reference", &[set.to_owned()]).unwrap().recipe
        };
        let ten = architecture(&recipe("data.image_size=64"), Some(10)).unwrap();
        assert_eq!((ten.facts.num_classes, ten.facts.image_size), (10, 64));
        let hundred = architecture(&recipe("dataset=cifar100"), Some(100)).unwrap();
        assert_eq!((hundred.facts.num_classes, hundred.facts.image_size), (100, 32));
        let refused = architecture(&recipe("model.num_classes=7"), None).unwrap_err().to_string();
        assert!(refused.contains("model.num_classes is decided by the data set"), "{refused}");
    }
}
