#![doc = include_str!("../README.md")]

mod config;
mod family;
mod network;

pub use config::ConvMixerConfig;
pub use core_layers::{self, Model, ModelConfig, weights};
pub use family::FAMILY;
pub use network::ConvMixer;
pub use tch;
