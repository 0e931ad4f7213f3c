//! A run for TensorBoard: losses by step, all of an epoch's numbers, weights and pictures on request.

use std::path::PathBuf;

use image::DynamicImage;
use run_record::EpochStats;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::Error;
use crate::tensorboard::events::{EventWriter, Histogram};

/// A run's event file.
#[derive(Debug)]
pub struct Board {
    directory: PathBuf,
    events: EventWriter,
    /// Whether the weights' distributions are of interest.
    histograms: bool,
    /// Losses that nobody has waited for yet.
    losses: Vec<(u64, Tensor)>,
}

impl Board {
    /// A new file in `directory`, for a run that has made `updates`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(directory: PathBuf, updates: u64, histograms: bool) -> Result<Self, Error> {
        // The first that is reported is the one after them.
        let events = EventWriter::create(&directory, updates + 1).map_err(Error::io(&directory))?;
        Ok(Self { directory, events, histograms, losses: Vec::new() })
    }

    /// Goes on in another file from a run that has made `updates`; what was told of later ones is taken back there.
    ///
    /// # Errors
    /// What the file system says.
    pub fn rewind(&mut self, updates: u64) -> Result<(), Error> {
        self.flush()?;
        self.events =
            EventWriter::create(&self.directory, updates + 1).map_err(Error::io(&self.directory))?;
        Ok(())
    }

    /// The loss of an update, counted from 1; it stays on its device.
    pub fn step(&mut self, update: u64, loss: Tensor) {
        self.losses.push((update, loss));
    }

    /// A picture.
    ///
    /// # Errors
    /// One that PNG cannot hold.
    pub fn picture(&mut self, update: u64, tag: &str, picture: &DynamicImage) -> Result<(), Error> {
        self.events
            .image(update, tag, picture)
            .map_err(|error| Error::Training(format!("{tag}: the picture cannot be written as PNG: {error}")))
    }

    /// An epoch's numbers, and its weights where they were asked for.
    ///
    /// # Errors
    /// libtorch's refusal to copy a tensor, or what the file system says.
    pub fn epoch(&mut self, update: u64, stats: &EpochStats, vs: &VarStore) -> Result<(), Error> {
        let numbers = [
            ("train/loss", Some(stats.train_loss)),
            ("train/top1", Some(stats.train_top1)),
            ("train/top5", Some(stats.train_top5)),
            ("train/images_per_second", Some(stats.images_per_second)),
            ("train/lr", Some(stats.lr)),
            ("val/loss", Some(stats.val_loss)),
            ("val/top1", Some(stats.val_top1)),
            ("val/top5", Some(stats.val_top5)),
            ("ema/loss", stats.ema_val_loss),
            ("ema/top1", stats.ema_val_top1),
            ("ema/top5", stats.ema_val_top5),
        ];
        for (tag, value) in numbers {
            if let Some(value) = value {
                self.events.scalar(update, tag, value as f32);
            }
        }
        if self.histograms {
            let mut tensors: Vec<(String, Tensor)> = vs.variables().into_iter().collect();
            tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
            for (name, tensor) in tensors {
                let values = host(&tensor)?;
                if let Some(histogram) = Histogram::of(&values) {
                    self.events.histogram(update, &format!("weights/{name}"), &histogram);
                }
            }
        }
        self.flush()
    }

    /// Has everything in the file; waits for the device.
    ///
    /// # Errors
    /// What the file system says.
    pub fn flush(&mut self) -> Result<(), Error> {
        if !self.losses.is_empty() {
            let (updates, losses): (Vec<_>, Vec<_>) = std::mem::take(&mut self.losses).into_iter().unzip();
            for (update, loss) in updates.into_iter().zip(host(&Tensor::f_stack(&losses, 0)?)?) {
                self.events.scalar(update, "step/loss", loss);
            }
        }
        let path = self.events.path().to_owned();
        self.events.flush().map_err(Error::io(&path))
    }
}

fn host(tensor: &Tensor) -> Result<Vec<f32>, Error> {
    let flat = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_flatten(0, -1)?;
    Ok(Vec::try_from(flat)?)
}
