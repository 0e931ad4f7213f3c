#![doc = include_str!("../README.md")]

mod config;
mod network;

pub use config::{VitConfig, VitInit};
pub use network::{Vit, resize_position_embedding};
