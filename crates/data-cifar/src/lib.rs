#![doc = include_str!("../README.md")]

mod augment;
mod batches;
mod error;
mod rng;
mod sets;

pub use augment::apply::apply_ops;
pub use augment::erase::{Erasure, draw_erasure, erase};
pub use augment::fit::{RgbImage, fit};
pub use augment::keras::{flip, resize, rotate, zoom};
pub use augment::mix::{Mixing, draw_mixings, mix};
pub use augment::normalize::{ChannelStats, Normalizer};
pub use augment::ops::{Filter, Op};
pub use augment::policy::{draw_jitter, draw_ops};
pub use augment::resample::{
    CropBox, center_crop, crop, crop_offset, draw_crop, mirrored_resized_crop, pad_crop, pil_resize,
    resized_crop,
};
pub use batches::device::DeviceSet;
pub use batches::image_set::{Batch, Batches, ImageSet};
pub use batches::order::repeated;
pub use batches::pipeline::{Augmented, Draw, Epoch, Pipeline};
pub use batches::share::{Share, Slice};
pub use batches::stream::StreamSet;
pub use error::DataError;
pub use rng::{keyed_rng, keyed_seed, permutation};
pub use sets::arrangement::PartLabels;
pub use sets::cifar::{load_cifar10, load_cifar100, parse_cifar10, parse_cifar100};
pub use sets::dataset::{CoarseLabels, Dataset, Labelled, Pixels, Skipped};
pub use sets::decode::{EXTENSIONS as PICTURE_EXTENSIONS, decode};
pub use sets::digits::{load_digits, parse_digits};
pub use sets::folder::{Folder, list_folder};
pub use sets::index::FolderIndex;
pub use sets::load::FolderProgress;
pub use sets::statistics::channel_stats;
