#![doc = include_str!("../README.md")]

mod config;
mod conv;
mod family;
mod names;
mod network;

pub use config::{GcVitConfig, GcVitInit, QueryPool};
pub use core_layers::{self, Model, ModelConfig, weights};
pub use family::FAMILY;
pub use names::timm_name;
pub use network::GcVit;
pub use tch;
