#![doc = include_str!("../README.md")]

mod config;
mod family;
mod network;

pub use config::{CctConfig, CctInit, PositionEmbedding, Tokenizer, Wiring};
pub use core_layers::{self, Model, ModelConfig, weights};
pub use family::FAMILY;
pub use network::Cct;
pub use tch;
