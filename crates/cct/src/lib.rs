#![doc = include_str!("../README.md")]

mod config;
mod network;

pub use config::{CctConfig, CctInit, PositionEmbedding, Tokenizer, Wiring};
pub use network::Cct;
