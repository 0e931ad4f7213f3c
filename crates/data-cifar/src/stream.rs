//! Batches of a folder that does not fit into memory, decoded ahead of their use.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use rayon::ThreadPool;
use run_record::FolderRecipe;
use tch::{Device, Kind, Tensor};

use crate::at_once;
use crate::device::{Batch, check_order};
use crate::error::DataError;
use crate::folder::{PartLabels, PictureFile, image_bytes};
use crate::load::{FolderIndex, pool, read_batch, zeroed};

/// A part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// The training images, with those of `val` at their end.
    Train,
    /// The test images.
    Test,
}

/// One part of a folder whose images are decoded each time they are asked for.
///
/// Its batches are those of a [`DeviceSet`](crate::DeviceSet) of the same part, in content and order, for any number of threads.
#[derive(Debug)]
pub struct StreamSet {
    source: Arc<Source>,
    device: Device,
    prefetch: usize,
}

/// The files of the part, in the order of its images, with what they must decode to.
#[derive(Debug)]
struct Source {
    root: PathBuf,
    options: FolderRecipe,
    files: Vec<PictureFile>,
    /// SHA-256 of each image's pixels.
    digests: Vec<[u8; 32]>,
    pool: ThreadPool,
}

impl FolderIndex {
    /// The class of each image.
    pub fn labels(&self) -> PartLabels {
        self.folder.labels(&self.arrangement)
    }

    /// A part's images, as indices of the folder's files.
    fn order(&self, part: Part) -> &[usize] {
        match part {
            Part::Train => &self.arrangement.train,
            Part::Test => &self.arrangement.test,
        }
    }

    /// A part of the folder as batches on `device`, decoded on `threads` threads while the batches before them
    /// are worked on: up to `prefetch` finished batches wait, fewer of large ones, and one more is in the making.
    ///
    /// # Errors
    /// Without threads, or when they cannot be started.
    pub fn stream(
        &self,
        part: Part,
        device: Device,
        threads: usize,
        prefetch: usize,
    ) -> Result<StreamSet, DataError> {
        let order = self.order(part);
        let source = Source {
            root: self.folder.root.clone(),
            options: self.folder.options,
            files: order.iter().map(|&n| self.folder.files[n].clone()).collect(),
            digests: order.iter().map(|&n| *self.outcomes[n].digest()).collect(),
            pool: pool(threads)?,
        };
        Ok(StreamSet { source: Arc::new(source), device, prefetch })
    }
}

impl Source {
    /// The batch of these images, pinned where it is for a GPU.
    fn read(&self, order: &[i64], device: Device, stop: &AtomicBool) -> Result<HostBatch, DataError> {
        let files: Vec<&PictureFile> = order.iter().map(|&image| &self.files[image as usize]).collect();
        let mut pixels = zeroed(files.len() * image_bytes(&self.options))?;
        let results = read_batch(&self.pool, &self.root, &self.options, &files, &mut pixels, stop);
        if stop.load(Ordering::Relaxed) {
            return Err(DataError::Stopped);
        }
        for (result, &image) in results.into_iter().zip(order) {
            if result? != self.digests[image as usize] {
                return Err(DataError::Picture {
                    file: self.root.join(&self.files[image as usize].path),
                    reason: "its pixels are no longer those it had when the folder was read first".into(),
                });
            }
        }
        let labels = files.iter().map(|file| file.label.into()).collect();
        let batch = HostBatch::Plain { pixels, labels };
        if !device.is_cuda() {
            return Ok(batch);
        }
        let (images, labels) = batch.into_tensors(self.options.stored_size)?;
        Ok(HostBatch::Pinned {
            images: images.f_internal_pin_memory(device)?,
            labels: labels.f_internal_pin_memory(device)?,
        })
    }
}

/// A batch in main memory.
#[derive(Debug)]
enum HostBatch {
    /// Made into tensors by whoever receives it: libtorch would start a second set of threads for the one that
    /// decodes, next to those that train.
    Plain { pixels: Vec<u8>, labels: Vec<i64> },
    /// In memory that a GPU copies from without anybody waiting.
    Pinned { images: Tensor, labels: Tensor },
}

impl HostBatch {
    /// `[B, 3, S, S]` and `[B]`.
    fn into_tensors(self, side: u32) -> Result<(Tensor, Tensor), DataError> {
        match self {
            Self::Pinned { images, labels } => Ok((images, labels)),
            Self::Plain { pixels, labels } => {
                let shape = [labels.len() as i64, 3, side.into(), side.into()];
                // On the host: what goes to a GPU is pinned next.
                Ok((Tensor::f_from_slice(&pixels)?.f_view(shape)?, Tensor::f_from_slice(&labels)?))
            }
        }
    }
}

impl StreamSet {
    /// The number of images.
    pub fn len(&self) -> usize {
        self.source.files.len()
    }

    /// `true` without images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pixels of an image.
    pub(crate) fn image_pixels(&self) -> usize {
        image_bytes(&self.source.options) / 3
    }

    /// How many images are decoded at the same time.
    pub(crate) fn threads(&self) -> usize {
        self.source.pool.current_num_threads()
    }

    /// The device of the batches.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The images of `order` in batches of `batch_size`; the last one holds what is left.
    ///
    /// A batch is an error, and the last one, when one of its files cannot be decoded any more or has other
    /// pixels than it had; the error names it. Dropping the iterator stops the decoding.
    ///
    /// # Errors
    /// When the batch size is 0, an index is out of range or no thread can be started.
    pub fn batches(&self, order: &[i64], batch_size: usize) -> Result<StreamBatches, DataError> {
        self.batches_from(order, batch_size, 0)
    }

    /// As [`StreamSet::batches`], from batch number `first` on, numbered as if the others had been there.
    ///
    /// # Errors
    /// Those of [`StreamSet::batches`].
    pub fn batches_from(
        &self,
        order: &[i64],
        batch_size: usize,
        first: usize,
    ) -> Result<StreamBatches, DataError> {
        check_order(order, batch_size, self.len())?;
        let start = first.saturating_mul(batch_size).min(order.len());
        let waiting = at_once::waiting(batch_size.saturating_mul(image_bytes(&self.source.options)));
        let (sender, receiver) = sync_channel(waiting.min(self.prefetch));
        let stop = Arc::new(AtomicBool::new(false));
        let work = Work {
            source: Arc::clone(&self.source),
            order: order[start..].to_vec(),
            batch_size,
            device: self.device,
            stop: Arc::clone(&stop),
        };
        let thread = thread::Builder::new()
            .name("prefetch".into())
            .spawn(move || work.run(&sender))
            .map_err(|error| DataError::Argument(format!("cannot start a thread: {error}")))?;
        Ok(StreamBatches {
            receiver: Some(receiver),
            thread: Some(thread),
            stop,
            side: self.source.options.stored_size,
            device: self.device,
            order: order.to_vec(),
            batch_size,
            start,
        })
    }
}

/// What the thread behind an iterator does.
struct Work {
    source: Arc<Source>,
    order: Vec<i64>,
    batch_size: usize,
    device: Device,
    stop: Arc<AtomicBool>,
}

impl Work {
    fn run(&self, sender: &SyncSender<Result<HostBatch, DataError>>) {
        for images in self.order.chunks(self.batch_size) {
            let batch = self.source.read(images, self.device, &self.stop);
            let is_last = batch.is_err();
            // Nobody receives once the iterator is dropped.
            if sender.send(batch).is_err() || is_last {
                return;
            }
        }
    }
}

/// The batches of one pass over a [`StreamSet`]; see [`StreamSet::batches`].
#[derive(Debug)]
pub struct StreamBatches {
    /// Always there until the iterator is dropped.
    receiver: Option<Receiver<Result<HostBatch, DataError>>>,
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    side: u32,
    device: Device,
    order: Vec<i64>,
    batch_size: usize,
    start: usize,
}

impl StreamBatches {
    fn receive(&self, len: usize) -> Result<Batch, DataError> {
        let received = self.receiver.as_ref().and_then(|receiver| receiver.recv().ok());
        let Some(batch) = received else {
            return Err(DataError::Argument("the thread that decodes pictures ended early".into()));
        };
        let (images, labels) = batch?.into_tensors(self.side)?;
        let upload = |tensor: &Tensor, kind| tensor.f_to_device_(self.device, kind, true, false);
        Ok(Batch {
            images: upload(&images, Kind::Uint8)?,
            labels: upload(&labels, Kind::Int64)?,
            indices: self.order[self.start..self.start + len].to_vec(),
            start: self.start,
            number: (self.start / self.batch_size) as u64,
        })
    }
}

impl Iterator for StreamBatches {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let len = self.batch_size.min(self.order.len() - self.start);
        if len == 0 {
            return None;
        }
        let batch = self.receive(len);
        self.start = if batch.is_ok() { self.start + len } else { self.order.len() };
        Some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.order.len() - self.start).div_ceil(self.batch_size);
        (left, Some(left))
    }
}

impl ExactSizeIterator for StreamBatches {}

impl Drop for StreamBatches {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.receiver = None; // wakes a thread that waits for room
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there ended the batches early, which `receive` reported
        }
    }
}
