//! A trained network with all that its weights file says of how pictures are shown to it.

use std::path::{Path, PathBuf};

use data_cifar::{ChannelStats, RgbImage, fit};
use image::imageops::{self, FilterType};
use run_record::{CropMode, DatasetName, FolderRecipe, Interpolation, Recipe};
use tch::nn::VarStore;
use tch::{Device, Tensor};

use core_layers::Model;

use crate::Error;
use crate::data::presentation::Presentation;
use crate::network::located;
use crate::network::weights::{self, Card, Head, WeightsFile};

/// Side of the images of a data set that has pictures of one size only, in pixels.
const FIXED_SIDE: u32 = 32;

/// A trained network.
#[derive(Debug)]
pub struct Trained {
    /// Its weights file.
    pub path: PathBuf,
    /// What the file says of itself.
    pub card: Card,
    /// The network.
    pub network: Box<dyn Model>,
    /// How bytes are shown to it.
    pub presentation: Presentation,
    /// How pictures become those bytes.
    pub frame: Frame,
    /// Where it computes.
    pub device: Device,
}

impl Trained {
    /// The network of weights that [`located::locate`] finds.
    ///
    /// # Errors
    /// Those of that, or a file that is no weights file of this project, or is damaged.
    pub fn open(path: &Path, device: Device) -> Result<Self, Error> {
        let path = located::locate(path)?.path;
        let file = WeightsFile::open(&path)?;
        let card = Card::of(&file)?;
        let vs = VarStore::new(device);
        let architecture = card.architecture(&path)?;
        let network = architecture.init(&vs.root())?;
        weights::load_opened(&vs, &architecture, &file, Head::Same)?;
        let stats = ChannelStats { mean: card.channel_mean, std: card.channel_std };
        let classes = card.class_names.len() as i64;
        let presentation = Presentation::new(&card.recipe, &stats, classes, device)?;
        let frame = Frame::of(&card.recipe);
        Ok(Self { path, card, network, presentation, frame, device })
    }

    /// What the network is fed for pictures that [`Frame::stored`] made, `[B, 3, S, S]`.
    ///
    /// # Errors
    /// libtorch's refusal.
    pub fn see(&self, pictures: &[RgbImage]) -> Result<Tensor, Error> {
        let bytes = pictures.iter().map(|picture| {
            let size = [i64::from(picture.height), i64::from(picture.width), 3];
            Tensor::f_from_data_size(&picture.pixels, &size, tch::Kind::Uint8)?.f_permute([2, 0, 1])
        });
        let bytes = Tensor::f_stack(&bytes.collect::<Result<Vec<_>, _>>()?, 0)?;
        self.presentation.plain(&bytes.f_contiguous()?.f_to_device(self.device)?)
    }

    /// Model, data and file in words.
    pub fn in_words(&self) -> String {
        let Card { model, recipe, class_names, epoch, val_top1, .. } = &self.card;
        let accuracy =
            val_top1.map_or_else(String::new, |top1| format!(", validation top-1 {:.2} %", 100.0 * top1));
        format!(
            "{model}, trained on {} ({} classes), epoch {epoch}{accuracy}: {}",
            recipe.dataset,
            class_names.len(),
            self.path.display()
        )
    }
}

/// Which part of a picture of any size a network is shown, and how large.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// Side in pixels of what the recipe keeps of a picture.
    side: u32,
    mode: CropMode,
    interpolation: Interpolation,
    /// Share of that side that evaluation looks at.
    crop_pct: f64,
}

/// Pictures up to this side are shown with hard pixel edges.
const SMALL: u32 = 64;

impl Frame {
    /// The recipe's. Data sets with images of one size are met by the middle of a picture.
    pub fn of(recipe: &Recipe) -> Self {
        let crop_pct = recipe.data.resize.map_or(1.0, |resize| resize.crop_pct);
        match (recipe.folder, recipe.dataset) {
            (Some(FolderRecipe { stored_size, crop_mode, interpolation, .. }), DatasetName::Folder) => {
                Self { side: stored_size, mode: crop_mode, interpolation, crop_pct }
            }
            _ => {
                let interpolation = Interpolation::Bicubic;
                Self { side: FIXED_SIDE, mode: CropMode::Center, interpolation, crop_pct }
            }
        }
    }

    /// The picture as a data set of the recipe keeps it.
    ///
    /// # Errors
    /// A picture without pixels.
    pub fn stored(&self, picture: RgbImage) -> Result<RgbImage, Error> {
        self.square(picture, self.side)
    }

    /// As a folder of pictures is decoded, borders included.
    fn square(&self, picture: RgbImage, side: u32) -> Result<RgbImage, Error> {
        Ok(fit(picture, side, self.mode, [0; 3], self.interpolation)?)
    }

    /// What the network sees of a picture, to be looked at: a square of at most `side` pixels, as near to it as whole
    /// pixels allow if the picture is small, smooth if it is not.
    ///
    /// # Errors
    /// A picture without pixels.
    pub fn shown(&self, picture: RgbImage, side: u32) -> Result<image::RgbImage, Error> {
        let small = picture.width.max(picture.height) <= SMALL;
        let whole = match small {
            true => self.side,
            false => (f64::from(side) / self.crop_pct).round() as u32,
        };
        let square = self.square(picture, whole)?;
        let RgbImage { width, height, pixels } = square;
        let square = image::RgbImage::from_raw(width, height, pixels)
            .ok_or_else(|| Error::Training("a picture lost pixels".to_owned()))?;
        let seen = ((f64::from(whole) * self.crop_pct).round() as u32).clamp(1, whole);
        let rest = (whole - seen) / 2;
        let seen = imageops::crop_imm(&square, rest, rest, seen, seen).to_image();
        let side = if small { side / seen.width() * seen.width() } else { side };
        Ok(match seen.width() {
            width if width == side => seen,
            width if width > side || side == 0 => seen,
            _ if small => imageops::resize(&seen, side, side, FilterType::Nearest),
            _ => imageops::resize(&seen, side, side, FilterType::CatmullRom),
        })
    }
}
