#![doc = include_str!("../README.md")]

pub mod checkpoint;
pub mod contact_sheet;
pub mod data;
pub mod environment;
pub mod error;
pub mod evaluate;
pub mod fit;
pub mod forward;
pub mod inspect;
pub mod presentation;
pub mod progress;
pub mod recipes;
pub mod registry;
pub mod run_dir;
pub mod schedule;
pub mod summary;
pub mod tensorboard;
pub mod train;
pub mod weights;

pub use error::Error;
