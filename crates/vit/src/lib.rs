#![doc = include_str!("../README.md")]

mod config;
mod network;

pub use config::{VitConfig, VitInit};
pub use network::Vit;
