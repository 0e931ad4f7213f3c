#![doc = include_str!("../README.md")]

mod at_once;
mod cache;
mod cifar;
mod class_names;
mod colour;
mod decode;
mod device;
mod digits;
mod erase;
mod error;
mod fit;
mod folder;
mod host;
mod image_set;
mod keras;
mod layout;
mod load;
mod mix;
mod normalize;
mod ops;
mod order;
mod pipeline;
mod policy;
mod resample;
mod rng;
mod stream;
mod warp;

pub use at_once::step_bytes;
pub use cifar::{load_cifar10, load_cifar100, parse_cifar10, parse_cifar100};
pub use decode::{EXTENSIONS as PICTURE_EXTENSIONS, RgbImage, decode};
pub use device::{Batch, Batches, DeviceSet, resize};
pub use digits::{load_digits, parse_digits};
pub use erase::{EraseMode, Erasure, RandomErasing, erase};
pub use error::DataError;
pub use fit::{CropMode, fit};
pub use folder::{Folder, FolderOptions, OnError, PartLabels, list_folder};
pub use host::{CoarseLabels, Dataset, Labelled, Pixels, Skipped, ValidationFrom, split};
pub use image_set::{ImageBatches, ImageSet};
pub use keras::{flip, rotate, zoom};
pub use load::{FolderIndex, FolderProgress};
pub use mix::{Mix, MixMode, Mixing, mix};
pub use normalize::{ChannelStats, Normalizer, channel_stats};
pub use ops::{Filter, Op, apply_ops};
pub use order::repeated;
pub use pipeline::{Augmentation, Augmented, Cut, Draw, Epoch, Pipeline};
pub use policy::{ColorJitter, Policy, TimmRandAugment};
pub use resample::{
    CropBox, Interpolation, RandomResizedCrop, center_crop, crop, crop_offset, mirrored_resized_crop,
    pad_crop, pil_resize, resized_crop,
};
pub use rng::{keyed_rng, keyed_seed, permutation};
pub use stream::{Part, StreamBatches, StreamSet};
