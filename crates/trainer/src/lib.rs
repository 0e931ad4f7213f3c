#![doc = include_str!("../README.md")]

pub mod data;
pub mod error;
pub mod export;
pub mod look;
pub mod network;
pub mod optim;
pub mod process;
pub mod run;
pub mod tensorboard;

pub use error::Error;
