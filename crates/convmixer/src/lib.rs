#![doc = include_str!("../README.md")]

mod config;
mod network;

pub use config::ConvMixerConfig;
pub use network::ConvMixer;
