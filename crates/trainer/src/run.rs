//! A training from its recipe to its record: what may begin, what happens, and what is left on the disk.

pub mod account;
pub mod checkpoint;
pub mod directory;
pub mod evaluate;
pub mod fit;
pub mod keeper;
pub mod measure;
pub mod outline;
pub mod peers;
pub mod plan;
pub mod recipes;
pub mod reduction;
pub mod replay;
pub mod request;
pub mod state;
pub mod train;
