//! Data sets in main memory or on the disk: what is read, decoded, labelled and divided into parts.

pub(crate) mod arrangement;
pub(crate) mod cache;
pub(crate) mod cifar;
pub(crate) mod class_names;
pub(crate) mod dataset;
pub(crate) mod decode;
pub(crate) mod digits;
pub(crate) mod folder;
pub(crate) mod index;
pub(crate) mod layout;
pub(crate) mod load;
pub(crate) mod statistics;
