//! What this machine has and what is put on it: libtorch, data sets, cards, disks.

mod archive;
pub(crate) mod datasets;
mod disk;
pub(crate) mod doctor;
mod download;
pub(crate) mod fetch;
pub(crate) mod gpu;
mod install;
pub(crate) mod libtorch;
mod pins;
mod pip;
mod progress;
pub(crate) mod setup;
mod tree;
