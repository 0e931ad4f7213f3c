#![doc = include_str!("../README.md")]

mod config;
mod network;
mod pooling;
mod trunk;

pub use config::{ClassTokens, Design, PatchConvNetConfig, PatchConvNetInit};
pub use network::PatchConvNet;
