//! Which networks there are, what they are made of, and their weights as files.

pub mod build;
pub mod forward;
pub mod hub;
pub mod located;
pub mod registry;
pub mod summary;
pub mod weights;
