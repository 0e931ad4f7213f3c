//! The architectures the trainer knows. A new one is one line in [`FAMILIES`].

use std::collections::BTreeMap;

use core_layers::{Model, ModelConfig};
use run_record::FieldValue;
use serde::Serialize;
use serde_json::Value;
use tch::Tensor;
use tch::nn::Path;

use crate::Error;

/// Every architecture, in the order of `list`.
pub const FAMILIES: &[Family] = &[
    Family::of::<cct::CctConfig>(),
    Family::of::<gcvit::GcVitConfig>(),
    Family::of::<patchconvnet::PatchConvNetConfig>(),
    Family::of::<vit::VitConfig>(),
    Family::of::<convmixer::ConvMixerConfig>(),
];

/// An architecture with its types erased.
#[derive(Debug)]
pub struct Family {
    /// The architecture's name, and the stem of its recipe files.
    pub name: &'static str,
    variants: fn() -> Vec<Architecture>,
    check_types: fn(&Value) -> Result<(), serde_json::Error>,
    from_config: fn(Value) -> Result<Architecture, Error>,
}

type Init = fn(&Value, &Path) -> Result<Box<dyn Model>, Error>;
type TensorNames = fn(&Value, &[String]) -> Result<Vec<String>, Error>;
type LayerIds = fn(&Value, &[String]) -> Result<Vec<i64>, Error>;
/// A tensor of a checkpoint by its name, resampled to a shape; see [`ModelConfig::resample`].
pub type Resample = fn(&str, &Tensor, &[i64]) -> Option<Tensor>;

/// One network, described completely but not built.
#[derive(Debug, Clone, Serialize)]
pub struct Architecture {
    /// Variant name.
    pub model: String,
    /// Family name.
    pub family: &'static str,
    /// Side of the images, in pixels.
    pub image_size: i64,
    /// Number of logits.
    pub num_classes: i64,
    /// Trainable parameters.
    pub params: u64,
    /// Multiply-accumulates per image.
    pub macs: u64,
    /// The configuration, field by field.
    pub config: Value,
    /// What the names of the tensors that depend on the number of classes start with.
    #[serde(skip)]
    pub head: &'static [&'static str],
    /// The last part of the names of trained tokens, position embeddings and tables of position biases.
    #[serde(skip)]
    pub embeddings: &'static [&'static str],
    /// A checkpoint's tensor for another size of image, resampled to a shape.
    #[serde(skip)]
    pub resample: Resample,
    #[serde(skip)]
    init: Init,
    #[serde(skip)]
    tensor_names: TensorNames,
    #[serde(skip)]
    layer_ids: LayerIds,
}

impl Family {
    /// The family of a configuration type.
    pub const fn of<C: ModelConfig>() -> Self {
        Self {
            name: C::FAMILY,
            variants: || {
                C::VARIANTS.iter().map(|variant| describe(variant.name, &(variant.config)())).collect()
            },
            check_types: |config| C::deserialize(config).map(drop),
            from_config: |config| {
                let config = typed::<C>(&config)?;
                config.validate()?;
                Ok(describe("", &config))
            },
        }
    }

    /// Every named variant.
    pub fn variants(&self) -> Vec<Architecture> {
        (self.variants)()
    }
}

fn typed<C: ModelConfig>(config: &Value) -> Result<C, Error> {
    C::deserialize(config).map_err(|error| Error::Usage(error.to_string()))
}

fn describe<C: ModelConfig>(model: &str, config: &C) -> Architecture {
    Architecture {
        model: model.to_owned(),
        family: C::FAMILY,
        image_size: config.image_size(),
        num_classes: config.num_classes(),
        params: config.param_count(),
        macs: config.macs(),
        // A configuration is plain data; one that does not serialise cannot be read back either.
        config: serde_json::to_value(config).unwrap_or(Value::Null),
        head: config.head(),
        embeddings: C::EMBEDDINGS,
        resample: C::resample,
        init: |config, vs| Ok(Box::new(typed::<C>(config)?.init(vs)?)),
        tensor_names: |config, names| {
            let config = typed::<C>(config)?;
            Ok(names.iter().map(|name| config.tensor_name(name)).collect())
        },
        layer_ids: |config, names| {
            let config = typed::<C>(config)?;
            Ok(names.iter().map(|name| config.layer_id(name)).collect())
        },
    }
}

impl Architecture {
    /// Builds the network under `vs`, parameters freshly drawn.
    ///
    /// # Errors
    /// A field out of its range, or libtorch's refusal.
    pub fn init(&self, vs: &Path) -> Result<Box<dyn Model>, Error> {
        (self.init)(&self.config, vs)
    }

    /// The network's names of the tensors that a published checkpoint calls `names`.
    ///
    /// # Errors
    /// A configuration that is not one.
    pub fn tensor_names(&self, names: &[String]) -> Result<Vec<String>, Error> {
        (self.tensor_names)(&self.config, names)
    }

    /// Where each of the network's tensors `names` stands: 0 in the stem, 1 to n in the n blocks, n + 1 in what
    /// follows them. See [`ModelConfig::layer_id`].
    ///
    /// # Errors
    /// A configuration that is not one.
    pub fn layer_ids(&self, names: &[String]) -> Result<Vec<i64>, Error> {
        (self.layer_ids)(&self.config, names)
    }

    /// The same network with fields of its configuration replaced.
    ///
    /// # Errors
    /// A field the configuration does not have, a value of the wrong type or out of its range.
    pub fn with_fields(&self, fields: &BTreeMap<String, FieldValue>) -> Result<Self, Error> {
        let mut config = self.config.clone();
        for (name, value) in fields {
            let known: Vec<&str> =
                config.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
            if !known.contains(&name.as_str()) {
                let known = known.join(", ");
                return Err(Error::Usage(format!(
                    "model.{name}: {} has no such field; it has {known}",
                    self.model
                )));
            }
            let wrong = |problem: &dyn std::fmt::Display| Error::Usage(format!("model.{name}: {problem}"));
            let value = serde_json::to_value(value).map_err(|error| wrong(&error))?;
            // JSON has no NaN and no infinity, and writes null for them.
            if value.is_null() {
                return Err(wrong(&"expected a finite number"));
            }
            config[name] = value;
            // One by one, so that a wrong type is reported with its field.
            (find_family(self.family)?.check_types)(&config).map_err(|problem| wrong(&problem))?;
        }
        Ok(from_config(self.family, config)?.named(&self.model))
    }

    /// The same network under another name.
    pub fn named(self, model: &str) -> Self {
        Self { model: model.to_owned(), ..self }
    }
}

/// The network of a family with the configuration given as JSON.
///
/// # Errors
/// An unknown family, a configuration that does not fit it, or a field out of its range.
pub fn from_config(family: &str, config: Value) -> Result<Architecture, Error> {
    (find_family(family)?.from_config)(config)
}

fn find_family(name: &str) -> Result<&'static Family, Error> {
    let found = FAMILIES.iter().find(|family| family.name == name);
    found.ok_or_else(|| Error::Usage(format!("this program does not know the architecture {name:?}")))
}

/// The variant of this name.
///
/// # Errors
/// An unknown name, with the nearest known ones.
pub fn find(name: &str) -> Result<Architecture, Error> {
    let variants: Vec<Architecture> = FAMILIES.iter().flat_map(Family::variants).collect();
    if let Some(found) = variants.iter().find(|variant| variant.model == name) {
        return Ok(found.clone());
    }
    let names: Vec<&str> = variants.iter().map(|variant| variant.model.as_str()).collect();
    Err(Error::Usage(format!(
        "there is no model {name:?}; nearest: {}; `list` shows all {}",
        nearest(name, &names).join(", "),
        names.len()
    )))
}

/// Up to three of `names`, those most like `name` first.
pub fn nearest<'a>(name: &str, names: &[&'a str]) -> Vec<&'a str> {
    let mut ranked: Vec<(f64, &str)> =
        names.iter().map(|known| (strsim::jaro_winkler(name, known), *known)).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    ranked.into_iter().take(3).map(|(_, known)| known).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeSet, HashSet};
    use tch::Device;
    use tch::nn::VarStore;

    #[test]
    fn names_are_unique() {
        let mut seen = HashSet::new();
        for variant in FAMILIES.iter().flat_map(Family::variants) {
            assert!(seen.insert(variant.model.clone()), "{} twice", variant.model);
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest() {
        let message = find("convmixer_referense").unwrap_err().to_string();
        assert!(message.contains("nearest: convmixer_reference,"), "{message}");
    }

    /// The network with as many layers and few channels.
    fn narrow(variant: &Architecture) -> Architecture {
        let field = |name: &str| variant.config[name].as_i64().unwrap();
        let fields = match variant.family {
            "cct" => vec![("embed_dim", 8), ("head_dim", 1), ("mlp_hidden", 8)],
            "gcvit" => vec![("embed_dim", 4 * variant.config["num_heads"][0].as_i64().unwrap())],
            "vit" => vec![("embed_dim", field("num_heads")), ("mlp_hidden", 8)],
            "patchconvnet" => vec![("embed_dim", 8), ("mlp_hidden", 8)],
            _ => vec![("embed_dim", 8)],
        };
        let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), FieldValue::Integer(value)));
        variant.with_fields(&fields.collect()).unwrap()
    }

    #[test]
    fn every_tensor_has_its_layer() {
        for variant in FAMILIES.iter().flat_map(Family::variants) {
            let vs = VarStore::new(Device::Cpu);
            let _network = narrow(&variant).init(&vs.root()).unwrap();
            let mut names: Vec<String> = vs.variables().into_keys().collect();
            names.sort();
            let layers = variant.layer_ids(&names).unwrap();
            let config = &variant.config;
            let blocks = match variant.family {
                "gcvit" => config["depths"].as_array().unwrap().iter().filter_map(Value::as_i64).sum(),
                "patchconvnet" if config["tied_trunk"] == true => 1,
                _ => config["depth"].as_i64().unwrap(),
            };
            let found: BTreeSet<i64> = layers.iter().copied().collect();
            assert!(found.into_iter().eq(0..=blocks + 1), "{}: {layers:?}", variant.model);

            // What a network begins and ends with, and nothing else, is in the first and the last layer.
            let (stem, end): (&[&str], &[&str]) = match variant.family {
                "cct" => (
                    &["tokenizer", "classifier.positional_emb", "classifier.class_emb"],
                    &["classifier.attention_pool", "classifier.fc"],
                ),
                "gcvit" => (&["patch_embed"], &["head"]),
                "vit" => (&["patch_embed", "cls_token", "pos_embed"], &["head"]),
                "patchconvnet" if config["design"] == "tutorial" => (
                    &["stem"],
                    &["cls_token", "norm1", "norm2", "norm3", "q", "k", "v", "proj", "fc1", "fc2", "head"],
                ),
                "patchconvnet" => (&["patch_embed"], &["cls_token", "blocks_token_only", "norm", "head"]),
                _ => (&["stem"], &["head"]),
            };
            for (name, layer) in names.iter().zip(&layers) {
                let within = |parts: &[&str]| {
                    let rest = parts.iter().filter_map(|part| name.strip_prefix(part));
                    rest.into_iter().any(|rest| rest.is_empty() || rest.starts_with('.'))
                };
                assert_eq!(within(stem), *layer == 0, "{}: {name} {layer}", variant.model);
                assert_eq!(within(end), *layer == blocks + 1, "{}: {name} {layer}", variant.model);
            }

            // A name of an embedding is the name of one: none is a matrix of a layer, and no list is idle.
            let last = |name: &String| name.rsplit('.').next().map(str::to_owned);
            let known: BTreeSet<_> = names.iter().filter_map(last).collect();
            for embedding in variant.embeddings {
                let optional = variant.family == "cct" && *embedding == "class_emb";
                assert!(optional || known.contains(*embedding), "{}: {embedding}", variant.model);
            }
        }
    }

    #[test]
    fn fields_are_replaced_by_name_and_type() {
        let base = find("convmixer_reference").unwrap();
        let fields = |name: &str, value| BTreeMap::from([(name.to_owned(), value)]);
        let narrow = base.with_fields(&fields("embed_dim", FieldValue::Integer(128))).unwrap();
        assert_eq!(
            (narrow.model.as_str(), &narrow.config["embed_dim"]),
            ("convmixer_reference", &128.into())
        );
        assert!(narrow.params < base.params / 3);

        let unknown = base.with_fields(&fields("embed_dims", FieldValue::Integer(128))).unwrap_err();
        assert!(unknown.to_string().contains("has no such field; it has activation"), "{unknown}");
        for (field, value, words) in [
            (
                "depth",
                FieldValue::Text("deep".into()),
                "model.depth: invalid type: string \"deep\", expected i64",
            ),
            ("bn_eps", FieldValue::Float(f64::NAN), "model.bn_eps: expected a finite number"),
            ("depth", FieldValue::Integer(-1), "model.depth = -1: 1 to"),
            ("patch_size", FieldValue::Integer(0), "model.patch_size = 0: 1 to"),
            ("embed_dim", FieldValue::Integer(i64::MAX), "model.embed_dim = 9223372036854775807: 1 to"),
            ("patch_size", FieldValue::Integer(33), "model.patch_size = 33: at most image_size, 32"),
        ] {
            let error = base.with_fields(&fields(field, value)).unwrap_err();
            assert!(error.to_string().starts_with(words) && error.exit_code() == 2, "{error}");
        }
    }
}
