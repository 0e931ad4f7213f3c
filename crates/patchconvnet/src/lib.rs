#![doc = include_str!("../README.md")]

mod config;
mod family;
mod network;
mod pooling;
mod trunk;

pub use config::{ClassTokens, Design, PatchConvNetConfig, PatchConvNetInit};
pub use core_layers::{self, Model, ModelConfig, weights};
pub use family::FAMILY;
pub use network::PatchConvNet;
pub use tch;
