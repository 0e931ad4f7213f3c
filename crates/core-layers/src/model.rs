//! What every architecture offers: a configuration with named variants, and the network built of it.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tch::nn::Path;
use tch::{TchError, Tensor};

/// An image classifier.
pub trait Model: fmt::Debug + Send {
    /// Images `[B, 3, H, W]`, floats as the network is fed them, to features whose shape is the
    /// architecture's. `train` switches dropout, stochastic depth and batch statistics on.
    fn forward_features(&self, images: &Tensor, train: bool) -> Tensor;

    /// Features to logits `[B, num_classes]`, before any softmax.
    fn forward_head(&self, features: &Tensor, train: bool) -> Tensor;

    /// Images `[B, 3, H, W]` to logits `[B, num_classes]`.
    fn forward_t(&self, images: &Tensor, train: bool) -> Tensor {
        self.forward_head(&self.forward_features(images, train), train)
    }

    /// Where the network looks, `[B, heads or 1, h, w]`, or `None` for one without attention.
    fn attention_maps(&self, _images: &Tensor) -> Option<Tensor> {
        None
    }

    /// Where the network looks, wherever in it that is worth a picture: a name, and `[B, heads or 1, h, w]`.
    fn attention_layers(&self, images: &Tensor) -> Vec<(String, Tensor)> {
        self.attention_maps(images).map(|maps| ("attention".to_owned(), maps)).into_iter().collect()
    }

    /// Attention followed through all blocks, `[B, 1, h, w]`, for a network whose tokens are the patches throughout.
    fn attention_rollout(&self, _images: &Tensor) -> Option<Tensor> {
        None
    }

    /// A pass in eval mode with the features that [`crate::grad_cam`] weighs.
    fn class_evidence(&self, images: &Tensor) -> ClassEvidence;

    /// Kernels that show something: a name, and `[N, 3 (colours) or 1, k, k]`.
    fn kernels(&self) -> Vec<(&'static str, Tensor)> {
        Vec::new()
    }

    /// How alike the learned embeddings of two positions are, `[h, w, h, w]`, for a network that has such.
    fn position_similarity(&self) -> Option<Tensor> {
        None
    }
}

/// A pass over images with the last features that still have a place in the image.
#[derive(Debug)]
pub struct ClassEvidence {
    /// Maps `[B, C, h, w]`, or tokens `[B, prefix + h·w, C]`, the grid's row by row after those that have no place.
    /// Logits depend on them, and on all of them but the prefix by way of their places alone.
    pub features: Tensor,
    /// Height and width of the grid.
    pub grid: [i64; 2],
    /// `[B, num_classes]`.
    pub logits: Tensor,
}

/// A configuration: plain data that decides a network completely, and answers for it before it is built.
pub trait ModelConfig: ToJson + fmt::Debug + Send + Sync {
    /// What is known of the network without building it.
    ///
    /// # Errors
    /// The first field out of its range, with the range.
    fn facts(&self) -> Result<Facts, ConfigError>;

    /// What the names of the tensors that depend on the number of classes start with: those are drawn
    /// anew when a pretrained network is given other classes.
    fn head(&self) -> &'static [&'static str];

    /// Whether the tensor `name` depends on the number of classes.
    fn is_head(&self, name: &str) -> bool {
        self.head().iter().any(|head| name.starts_with(head))
    }

    /// The last part of the names of trained tokens, position embeddings and tables of position biases. They have
    /// the shapes of weights, but are none, and weight decay is not for them (timm's `no_weight_decay`).
    fn embeddings(&self) -> &'static [&'static str];

    /// Where the tensor `name` stands in the network: 0 in the stem, embeddings included, 1 to n in the n blocks,
    /// n + 1 in what follows them. As in timm's `param_groups_layer_decay`, a norm right after the last block counts
    /// with that block.
    fn layer_id(&self, name: &str) -> i64;

    /// Our name of the tensor that a published checkpoint calls `name`, where checkpoints of one
    /// network do not agree on names.
    fn tensor_name(&self, name: &str) -> String {
        name.to_owned()
    }

    /// The tensor `name` of a checkpoint for images of another size, resampled to `shape`; `None` if
    /// that cannot be done.
    fn resample(&self, _name: &str, _tensor: &Tensor, _shape: &[i64]) -> Option<Tensor> {
        None
    }

    /// How timm builds the network.
    ///
    /// # Errors
    /// Why timm has none that computes the same, as the end of a sentence.
    fn timm(&self) -> Result<Timm, String> {
        Err("timm has no such architecture".to_owned())
    }

    /// What timm calls our tensor `name`, and its shape there.
    fn timm_tensor(&self, name: &str, shape: &[i64]) -> (String, Vec<i64>) {
        (name.to_owned(), shape.to_vec())
    }

    /// Builds the network with freshly drawn parameters under `vs`.
    ///
    /// # Errors
    /// A field out of its range, or what libtorch says when a tensor cannot be made.
    fn build(&self, vs: &Path) -> Result<Box<dyn Model>, ConfigError>;
}

/// How timm builds a network: what its `config.json` says of it, without classes and pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct Timm {
    /// The function that builds it.
    pub architecture: &'static str,
    /// What that function is called with.
    pub model_args: Value,
    /// Length of the features before the head.
    pub num_features: i64,
    /// How positions become one vector.
    pub global_pool: &'static str,
    /// The first convolution.
    pub first_conv: &'static str,
    /// The head.
    pub classifier: &'static str,
    /// Whether it takes images of one size only.
    pub fixed_input_size: bool,
}

/// What is known of a network before it is built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// The architecture's name.
    pub family: &'static str,
    /// Side of the square images the variant is made for, in pixels.
    pub image_size: i64,
    /// Number of logits.
    pub num_classes: i64,
    /// Trainable parameters.
    pub params: u64,
    /// Multiply-accumulates of convolutions and matrix products in one forward pass on one image
    /// of that size, attention products included.
    pub macs: u64,
}

/// What serde can write, as JSON.
pub trait ToJson {
    /// The value, field by field.
    fn to_json(&self) -> Value;
}

impl<T: Serialize> ToJson for T {
    fn to_json(&self) -> Value {
        // Only a map with other keys than strings fails, and a configuration that has one cannot be read back either.
        serde_json::to_value(self).unwrap_or(Value::Null)
    }
}

/// Weights of a network that its authors or others have published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PublicWeights {
    /// The variant they are for.
    #[serde(skip)]
    pub variant: &'static str,
    /// Where they are: on the Hugging Face hub (`hf:ORG/NAME`), or a file's address.
    pub source: &'static str,
    /// The licence of the weights, by its SPDX identifier.
    pub license: &'static str,
}

/// An architecture: its named variants, and its configurations as they stand in files.
pub trait Family: Sync {
    /// The architecture's name; its recipes are `recipes/<preset>/<name>.toml`.
    fn name(&self) -> &'static str;

    /// The names of all variants.
    fn variants(&self) -> Vec<&'static str>;

    /// The variant of this name.
    fn variant(&self, name: &str) -> Option<Box<dyn ModelConfig>>;

    /// Published weights for the variant of this name, if there are such.
    fn public_weights(&self, name: &str) -> Option<&'static PublicWeights>;

    /// A configuration from its fields, of the right types but not checked otherwise.
    ///
    /// # Errors
    /// A field that is missing, unknown or of another type.
    fn parse(&self, fields: &Value) -> Result<Box<dyn ModelConfig>, serde_json::Error>;
}

/// The [`Family`] of a type of configuration.
#[derive(Debug)]
pub struct Variants<C: 'static> {
    /// The architecture's name.
    pub family: &'static str,
    /// Every variant with a name.
    pub named: &'static [Variant<C>],
    /// Published weights, one for a variant at most.
    pub published: &'static [PublicWeights],
}

/// A named configuration of an architecture.
#[derive(Debug)]
pub struct Variant<C> {
    /// The name recipes, tables and `--model` use.
    pub name: &'static str,
    /// Makes the configuration.
    pub config: fn() -> C,
}

impl<C: ModelConfig + DeserializeOwned> Family for Variants<C> {
    fn name(&self) -> &'static str {
        self.family
    }

    fn variants(&self) -> Vec<&'static str> {
        self.named.iter().map(|variant| variant.name).collect()
    }

    fn variant(&self, name: &str) -> Option<Box<dyn ModelConfig>> {
        let found = self.named.iter().find(|variant| variant.name == name)?;
        Some(Box::new((found.config)()))
    }

    fn public_weights(&self, name: &str) -> Option<&'static PublicWeights> {
        self.published.iter().find(|weights| weights.variant == name)
    }

    fn parse(&self, fields: &Value) -> Result<Box<dyn ModelConfig>, serde_json::Error> {
        Ok(Box::new(C::deserialize(fields)?))
    }
}

/// Why a configuration does not make a network.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A field is out of its range.
    #[error("model.{field} = {value}: {expected}")]
    Field {
        /// The field of the configuration.
        field: &'static str,
        /// What it is set to.
        value: String,
        /// What it has to be.
        expected: String,
    },
    /// libtorch could not make a tensor.
    #[error("libtorch could not build the network: {}", first_line(.0))]
    Torch(#[from] TchError),
}

/// The [`ConfigError`] for a field out of its range.
pub fn field_error(
    field: &'static str,
    value: impl fmt::Display,
    expected: impl fmt::Display,
) -> ConfigError {
    ConfigError::Field { field, value: value.to_string(), expected: expected.to_string() }
}

/// Checks that each (field, value, most) lies in 1 to most.
///
/// # Errors
/// The first that does not.
pub fn require_sizes(sizes: &[(&'static str, i64, i64)]) -> Result<(), ConfigError> {
    match sizes.iter().find(|(_, value, most)| !(1..=*most).contains(value)) {
        Some((field, value, most)) => Err(field_error(field, value, format!("1 to {most}"))),
        None => Ok(()),
    }
}

/// Checks that each (field, rate) of dropping lies in 0 to 1, 1 excluded.
///
/// # Errors
/// The first that does not.
pub fn require_rates(rates: &[(&'static str, f64)]) -> Result<(), ConfigError> {
    match rates.iter().find(|(_, rate)| !(0.0..1.0).contains(rate)) {
        Some((field, rate)) => Err(field_error(field, rate, "0 or more, below 1")),
        None => Ok(()),
    }
}

/// The first line of libtorch's message; the rest is a C++ stack.
fn first_line(error: &TchError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// The number after `prefix` in a tensor's name: 7 in `blocks.7.norm1.weight` after `blocks.`.
pub fn number_after(name: &str, prefix: &str) -> Option<i64> {
    let (number, _) = name.strip_prefix(prefix)?.split_once('.')?;
    number.parse::<u32>().ok().map(i64::from)
}

/// A product of the fields of a valid configuration as a count; one past u64 saturates.
pub fn count(factors: &[i64]) -> u64 {
    factors.iter().fold(1, |product: u64, &factor| product.saturating_mul(u64::try_from(factor).unwrap_or(0)))
}
