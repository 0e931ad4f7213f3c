#![doc = include_str!("../README.md")]

mod activation;
mod conv;
mod init;
mod linear;
mod model;
mod norm;
mod padding;
pub mod parity;

pub use activation::Activation;
pub use conv::{Conv2d, Padding};
pub use init::{Init, InitScheme, buffer, parameter};
pub use linear::Linear;
pub use model::{ConfigError, Model, ModelConfig, Variant, count, field_error};
pub use norm::{BatchNorm2d, LayerNorm};
pub use padding::{pad_same, same_padding};
