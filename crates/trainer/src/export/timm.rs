//! A directory that timm loads a network from: its configuration, its tensors under timm's names, and a model card.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use core_layers::Timm;
use run_record::{DatasetName, Interpolation, Recipe, write_atomically};
use serde_json::{Value, json};
use tch::Tensor;

use crate::Error;
use crate::export::card;
use crate::export::source::Source;
use crate::network::weights;

/// How timm calls the files it looks for.
const CONFIG: &str = "config.json";
/// That of the weights, which other libraries look for too.
pub const WEIGHTS: &str = "model.safetensors";

/// How the network is built there.
///
/// # Errors
/// A network that timm does not have, with the reason.
pub fn network(source: &Source) -> Result<Timm, Error> {
    source.architecture.config.timm().map_err(|reason| {
        Error::Usage(format!(
            "timm cannot load {}: {reason}; --format hub, safetensors, onnx and torchscript are for every network",
            source.architecture.model
        ))
    })
}

/// Writes the directory. The configuration, without which timm finds nothing, comes last.
///
/// # Errors
/// A network that timm does not have, or a directory that cannot be written.
pub fn write(
    source: &Source,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
    directory: &Path,
) -> Result<(), Error> {
    let network = network(source)?;
    let renamed = tensors.iter().map(|(name, tensor)| {
        let (name, shape) = source.architecture.config.timm_tensor(name, &tensor.size());
        Ok((name, tensor.f_reshape(shape)?))
    });
    let renamed = renamed.collect::<Result<_, Error>>()?;
    let config = serde_json::to_vec_pretty(&config(source, &network))
        .map_err(|error| Error::Training(format!("{CONFIG} cannot be written as JSON: {error}")))?;
    let card = card::text(source, Some(&network))?;
    fs::create_dir_all(directory).map_err(Error::io(directory))?;
    weights::save_with(&directory.join(WEIGHTS), &renamed, metadata)?;
    for (name, bytes) in [(card::FILE, card.as_bytes()), (CONFIG, &config)] {
        let path = directory.join(name);
        write_atomically(&path, bytes).map_err(Error::io(&path))?;
    }
    Ok(())
}

/// `config.json`.
fn config(source: &Source, network: &Timm) -> Value {
    let facts = &source.architecture.facts;
    let side = facts.image_size;
    let mut pretrained = json!({
        "input_size": [3, side, side],
        "fixed_input_size": network.fixed_input_size,
        "num_classes": facts.num_classes,
        "pool_size": null,
        "first_conv": network.first_conv,
        "classifier": network.classifier,
    });
    let mut config = json!({
        "architecture": network.architecture,
        "num_classes": facts.num_classes,
        "num_features": network.num_features,
        "global_pool": network.global_pool,
        "model_args": network.model_args,
    });
    if let (Some(card), Ok([mean, std])) = (&source.card, source.stats()) {
        config["label_names"] = json!(card.class_names);
        pretrained["mean"] = json!(mean);
        pretrained["std"] = json!(std);
        let Shown { interpolation, crop_mode, crop_pct } = Shown::of(&card.recipe);
        pretrained["interpolation"] = json!(interpolation);
        pretrained["crop_mode"] = json!(crop_mode);
        pretrained["crop_pct"] = json!(crop_pct);
    }
    config["pretrained_cfg"] = pretrained;
    config
}

/// How pictures are cut, in timm's words.
struct Shown {
    interpolation: &'static str,
    crop_mode: String,
    crop_pct: f64,
}

impl Shown {
    fn of(recipe: &Recipe) -> Self {
        let folder = recipe.folder.filter(|_| recipe.dataset == DatasetName::Folder);
        let interpolation = match folder.map(|folder| folder.interpolation) {
            Some(Interpolation::Bilinear) => "bilinear",
            Some(Interpolation::Bicubic) | None => "bicubic",
        };
        let crop_mode = folder
            .and_then(|folder| serde_json::to_value(folder.crop_mode).ok()?.as_str().map(str::to_owned));
        let crop_pct = recipe.data.resize.map_or(1.0, |resize| resize.crop_pct);
        Self { interpolation, crop_mode: crop_mode.unwrap_or_else(|| "center".to_owned()), crop_pct }
    }
}

#[cfg(test)]
mod tests {
    use crate::network::registry;
    use std::collections::BTreeMap;

    #[test]
    fn networks_are_timms_where_it_has_them() {
        let timms = |name: &str| registry::find(name).unwrap().config.timm().map(|timm| timm.architecture);
        let mut found = BTreeMap::new();
        for name in registry::names() {
            if let Ok(timms) = timms(name) {
                // A variant of timm's is called as there.
                assert!(
                    name == timms || ["vit_b16_reference", "gcvit_xxtiny_64"].contains(&name),
                    "{name}: {timms}"
                );
                *found.entry(registry::find(name).unwrap().facts.family).or_insert(0) += 1;
            }
        }
        assert_eq!(found, [("convmixer", 3), ("gcvit", 6), ("vit", 19)].into());
        assert_eq!(timms("gcvit_xxtiny_64").unwrap(), "gcvit_xxtiny");
        assert!(timms("gcvit_reference").unwrap_err().contains("no zeros around"));
        assert!(timms("vit_reference").unwrap_err().contains("no activation after"));
    }
}
