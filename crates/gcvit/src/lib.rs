#![doc = include_str!("../README.md")]

mod config;
mod conv;
mod names;
mod network;

pub use config::{GcVitConfig, GcVitInit, QueryPool};
pub use names::timm_name;
pub use network::GcVit;
