#![doc = include_str!("../README.md")]

mod augment;
mod cifar;
mod device;
mod digits;
mod error;
mod host;
mod normalize;
mod rng;

pub use augment::{Augmentation, Draws, flip, rotate, zoom};
pub use cifar::{load_cifar10, load_cifar100, parse_cifar10, parse_cifar100};
pub use device::{Batch, Batches, DeviceSet, resize};
pub use digits::{load_digits, parse_digits};
pub use error::DataError;
pub use host::{CoarseLabels, Dataset, Labelled, ValidationFrom, split};
pub use normalize::{ChannelStats, Normalizer, channel_stats};
pub use rng::{keyed_rng, keyed_seed, permutation};
