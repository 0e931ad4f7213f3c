//! Batches of a folder that does not fit into memory, decoded ahead of their use.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use rayon::ThreadPool;
use run_record::FolderRecipe;
use tch::{Device, Kind, Tensor};

use crate::batches::at_once;
use crate::error::DataError;
use crate::sets::folder::{PictureFile, image_bytes};
use crate::sets::index::FolderIndex;
use crate::sets::load::{pool, read_batch, zeroed};

/// One part of a folder whose images are decoded each time they are asked for.
///
/// Its batches are those of a [`DeviceSet`](crate::DeviceSet) of the same part, in content and order, for any number of
/// threads.
#[derive(Debug)]
pub struct StreamSet {
    files: Arc<PartFiles>,
    device: Device,
    prefetch: usize,
}

/// The files of the part, in the order of its images, with what they must decode to.
#[derive(Debug)]
struct PartFiles {
    root: PathBuf,
    options: FolderRecipe,
    /// Bytes of memory that decoding a picture may take.
    memory: u64,
    pictures: Vec<PictureFile>,
    /// SHA-256 of each image's pixels.
    digests: Vec<[u8; 32]>,
    pool: ThreadPool,
}

impl FolderIndex {
    /// The training part, with the images of `val` at its end, and the test part. Each is decoded on `threads` threads while
    /// the batches before are worked on: up to `prefetch` finished batches wait on or for `device`, fewer of large ones,
    /// and one more is in the making.
    ///
    /// # Errors
    /// Without threads, or when they cannot be started.
    pub fn stream(
        &self,
        device: Device,
        threads: usize,
        prefetch: usize,
    ) -> Result<(StreamSet, StreamSet), DataError> {
        let part = |order: &[usize]| -> Result<StreamSet, DataError> {
            let files = PartFiles {
                root: self.folder.root.clone(),
                options: self.folder.options,
                memory: self.folder.memory,
                pictures: order.iter().map(|&n| self.folder.files[n].clone()).collect(),
                digests: order.iter().map(|&n| *self.outcomes[n].digest()).collect(),
                pool: pool(threads)?,
            };
            Ok(StreamSet { files: Arc::new(files), device, prefetch })
        };
        Ok((part(&self.arrangement.train)?, part(&self.arrangement.test)?))
    }
}

impl PartFiles {
    /// The batch of these images, pinned where it is for a GPU.
    fn read(&self, order: &[i64], device: Device, stop: &AtomicBool) -> Result<HostBatch, DataError> {
        let files: Vec<&PictureFile> = order.iter().map(|&image| &self.pictures[image as usize]).collect();
        let mut pixels = zeroed(files.len() * image_bytes(&self.options))?;
        let results =
            read_batch(&self.pool, &self.root, &self.options, self.memory, &files, &mut pixels, stop);
        if stop.load(Ordering::Relaxed) {
            return Err(DataError::Stopped);
        }
        for (result, &image) in results.into_iter().zip(order) {
            if result? != self.digests[image as usize] {
                return Err(DataError::Picture {
                    file: self.root.join(&self.pictures[image as usize].path),
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
        self.files.pictures.len()
    }

    /// `true` without images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pixels of an image.
    pub(crate) fn image_pixels(&self) -> usize {
        image_bytes(&self.files.options) / 3
    }

    /// How many images are decoded at the same time.
    pub(crate) fn threads(&self) -> usize {
        self.files.pool.current_num_threads()
    }

    /// The device of the batches.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Starts to decode the images of `order`, which are there, in batches of `batch_size`, which is not 0.
    pub(crate) fn decode_ahead(&self, order: Vec<i64>, batch_size: usize) -> Result<DecodedAhead, DataError> {
        let side = self.files.options.stored_size;
        let waiting = at_once::waiting(batch_size.saturating_mul(image_bytes(&self.files.options)));
        let (sender, receiver) = sync_channel(waiting.min(self.prefetch));
        let stop = Arc::new(AtomicBool::new(false));
        let (files, device) = (Arc::clone(&self.files), self.device);
        let work = Work { files, order, batch_size, device, stop: Arc::clone(&stop) };
        let thread = thread::Builder::new()
            .name("prefetch".into())
            .spawn(move || work.run(&sender))
            .map_err(|error| DataError::Argument(format!("cannot start a thread: {error}")))?;
        Ok(DecodedAhead { receiver: Some(receiver), thread: Some(thread), stop, side, device })
    }
}

/// What the thread behind the batches does.
struct Work {
    files: Arc<PartFiles>,
    order: Vec<i64>,
    batch_size: usize,
    device: Device,
    stop: Arc<AtomicBool>,
}

impl Work {
    fn run(&self, sender: &SyncSender<Result<HostBatch, DataError>>) {
        for images in self.order.chunks(self.batch_size) {
            let batch = self.files.read(images, self.device, &self.stop);
            let is_last = batch.is_err();
            // Nobody receives once the iterator is dropped.
            if sender.send(batch).is_err() || is_last {
                return;
            }
        }
    }
}

/// Batches that a thread decodes ahead of their use, until this is dropped.
#[derive(Debug)]
pub(crate) struct DecodedAhead {
    /// Always there until the end.
    receiver: Option<Receiver<Result<HostBatch, DataError>>>,
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    side: u32,
    device: Device,
}

impl DecodedAhead {
    /// Images `[B, 3, S, S]` and labels `[B]` of the next batch.
    pub(crate) fn receive(&self) -> Result<(Tensor, Tensor), DataError> {
        let received = self.receiver.as_ref().and_then(|receiver| receiver.recv().ok());
        let Some(batch) = received else {
            return Err(DataError::Argument("the thread that decodes pictures ended early".into()));
        };
        let (images, labels) = batch?.into_tensors(self.side)?;
        let upload = |tensor: &Tensor, kind| tensor.f_to_device_(self.device, kind, true, false);
        Ok((upload(&images, Kind::Uint8)?, upload(&labels, Kind::Int64)?))
    }
}

impl Drop for DecodedAhead {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.receiver = None; // wakes a thread that waits for room
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there ended the batches early, which `receive` reported
        }
    }
}
