//! The architectures the trainer knows. A new one is one line in [`FAMILIES`].

use std::collections::BTreeMap;
use std::sync::Arc;

use core_layers::{Facts, Family, Model, ModelConfig, PublicWeights};
use run_record::FieldValue;
use serde_json::Value;
use tch::nn::Path;

use crate::Error;

/// Every architecture, in the order of `list`.
pub const FAMILIES: &[&dyn Family] =
    &[&cct::FAMILY, &gcvit::FAMILY, &patchconvnet::FAMILY, &vit::FAMILY, &convmixer::FAMILY];

/// One network, described completely but not built.
#[derive(Debug, Clone)]
pub struct Architecture {
    /// Variant name.
    pub model: String,
    /// What is known of it.
    pub facts: Facts,
    /// What decides it.
    pub config: Arc<dyn ModelConfig>,
}

impl Architecture {
    /// The network of this configuration.
    ///
    /// # Errors
    /// A field out of its range.
    pub fn new(model: &str, config: Box<dyn ModelConfig>) -> Result<Self, Error> {
        Ok(Self { model: model.to_owned(), facts: config.facts()?, config: config.into() })
    }

    /// Builds the network under `vs`, parameters freshly drawn.
    ///
    /// # Errors
    /// libtorch's refusal.
    pub fn init(&self, vs: &Path) -> Result<Box<dyn Model>, Error> {
        Ok(self.config.build(vs)?)
    }

    /// The same network with fields of its configuration replaced.
    ///
    /// # Errors
    /// A field the configuration does not have, a value of the wrong type or out of its range.
    pub fn with_fields(&self, fields: &BTreeMap<String, FieldValue>) -> Result<Self, Error> {
        let (mut config, mut parsed) = (self.config.to_json(), None);
        for (name, value) in fields {
            let wrong = |problem: &dyn std::fmt::Display| Error::Usage(format!("model.{name}: {problem}"));
            let known: Vec<&String> =
                config.as_object().into_iter().flat_map(|fields| fields.keys()).collect();
            if !known.contains(&name) {
                let known: Vec<&str> = known.into_iter().map(String::as_str).collect();
                let known = known.join(", ");
                return Err(wrong(&format_args!("{} has no such field; it has {known}", self.model)));
            }
            let value = serde_json::to_value(value).map_err(|error| wrong(&error))?;
            // JSON has no NaN and no infinity, and writes null for them.
            if value.is_null() {
                return Err(wrong(&"expected a finite number"));
            }
            config[name] = value;
            // One by one, so that a wrong type is reported with its field.
            parsed = Some(family(self.facts.family)?.parse(&config).map_err(|problem| wrong(&problem))?);
        }
        parsed.map_or_else(|| Ok(self.clone()), |config| Self::new(&self.model, config))
    }
}

/// The network of a family called `model`, with the configuration given as JSON.
///
/// # Errors
/// An unknown family, a configuration that does not fit it, or a field out of its range.
pub fn from_config(family_name: &str, model: &str, config: &Value) -> Result<Architecture, Error> {
    let parsed = family(family_name)?.parse(config);
    Architecture::new(model, parsed.map_err(|error| Error::Usage(error.to_string()))?)
}

fn family(name: &str) -> Result<&'static dyn Family, Error> {
    let found = FAMILIES.iter().find(|family| family.name() == name).copied();
    found.ok_or_else(|| Error::Usage(format!("this program does not know the architecture {name:?}")))
}

/// The names of all variants.
pub fn names() -> Vec<&'static str> {
    FAMILIES.iter().flat_map(|family| family.variants()).collect()
}

/// Published weights for the variant of this name, if there are such.
pub fn public_weights(name: &str) -> Option<&'static PublicWeights> {
    FAMILIES.iter().find_map(|family| family.public_weights(name))
}

/// The variant of this name.
///
/// # Errors
/// An unknown name, with the nearest known ones.
pub fn find(name: &str) -> Result<Architecture, Error> {
    if let Some(config) = FAMILIES.iter().find_map(|family| family.variant(name)) {
        return Architecture::new(name, config);
    }
    let names = names();
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
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_found_in_their_family() {
        let mut seen = HashSet::new();
        for family in FAMILIES {
            for name in family.variants() {
                assert!(seen.insert(name), "{name} twice");
                let found = find(name).unwrap();
                assert_eq!((found.model.as_str(), found.facts.family), (name, family.name()));
                let again = from_config(family.name(), name, &found.config.to_json()).unwrap();
                assert_eq!(again.config.to_json(), found.config.to_json());
            }
        }
    }

    #[test]
    fn published_weights_are_of_known_variants_from_places_that_can_be_given() {
        let published: Vec<&PublicWeights> = names().into_iter().filter_map(public_weights).collect();
        // One missing would be of a name that no variant has.
        let families = [&cct::FAMILY.published, &gcvit::FAMILY.published, &patchconvnet::FAMILY.published];
        let others = [&vit::FAMILY.published, &convmixer::FAMILY.published];
        assert_eq!(published.len(), families.into_iter().chain(others).map(|list| list.len()).sum::<usize>());
        for PublicWeights { variant, source, license } in published {
            let known = source.starts_with("https://") && source.ends_with(".pth")
                || source.parse::<crate::network::hub::Reference>().is_ok();
            assert!(
                known && ["Apache-2.0", "MIT", "CC-BY-NC-SA-4.0"].contains(license),
                "{variant}: {source}"
            );
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest() {
        let message = find("convmixer_referense").unwrap_err().to_string();
        assert!(message.contains("nearest: convmixer_reference,"), "{message}");
    }

    #[test]
    fn fields_are_replaced_by_name_and_type() {
        let base = find("convmixer_reference").unwrap();
        let fields = |name: &str, value| BTreeMap::from([(name.to_owned(), value)]);
        let narrow = base.with_fields(&fields("embed_dim", FieldValue::Integer(128))).unwrap();
        assert_eq!(
            (narrow.model.as_str(), &narrow.config.to_json()["embed_dim"]),
            ("convmixer_reference", &128.into())
        );
        assert!(narrow.facts.params < base.facts.params / 3);

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
