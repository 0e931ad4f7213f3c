//! Decoding a folder of pictures: into memory as a whole, or once through to know what it holds.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use ndarray::{ArcArray, Axis};
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use run_record::{FolderRecipe, OnError};
use sha2::{Digest, Sha256};

use crate::augment::fit::fit;
use crate::error::DataError;
use crate::sets::arrangement::Arrangement;
use crate::sets::cache;
use crate::sets::dataset::{Dataset, Labelled};
use crate::sets::decode::decode;
use crate::sets::folder::{Folder, PictureFile, image_bytes};
use crate::sets::index::{FolderIndex, Outcome};

/// The largest file that is read.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// Decoded bytes between two reports of progress, about.
const CHUNK_BYTES: usize = 64 << 20;

/// What happens while a folder is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FolderProgress<'a> {
    /// So many of all picture files were decoded.
    Decoded {
        /// How many.
        done: usize,
        /// Of how many.
        total: usize,
    },
    /// Something to know: why a cache is not used, or could not be written.
    Note(&'a str),
}

impl Folder {
    /// Decodes all pictures into memory, on `threads` threads, or reads them from `cache`.
    ///
    /// `cache` is a directory to keep the decoded images in; the next call for the same folder and options reads
    /// them from there, as long as no file was added, removed or changed (by size and time of change) and
    /// the images are still what was written. Whenever that is not so, they are decoded again and
    /// `progress` is told why. The result is the same in every case.
    ///
    /// # Errors
    /// When a picture cannot be decoded and that is to be an error, no picture of a class can be, nothing
    /// would be left to train on, or the images do not fit into memory. Without threads, too, and once `stop` is set.
    pub fn load(
        &self,
        cache: Option<&Path>,
        threads: usize,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(FolderProgress<'_>),
    ) -> Result<Dataset, DataError> {
        let pool = pool(threads)?;
        let path = cache.map(|directory| cache::cache_file(directory, self, true));
        let intact = |path: &Path| match cache::read_images(path, self)? {
            Some((index, pixels)) if !self.verify(&pool, &index, &pixels) => {
                Err("its images are damaged".into())
            }
            cached => Ok(cached),
        };
        if let Some((index, pixels)) = cached(path.as_deref(), intact, progress) {
            return dataset(&index, pixels);
        }
        let bytes = image_bytes(&self.options);
        let mut pixels = Vec::new();
        pixels.try_reserve_exact(self.len().saturating_mul(bytes)).map_err(|_| {
            DataError::Argument(format!("not enough memory for {} images of {bytes} bytes", self.len()))
        })?;
        let decoded = self.decode_all(&pool, stop, progress, |image| pixels.extend_from_slice(image))?;
        let index = FolderIndex::new(self, decoded.outcomes)?;
        arrange_pixels(&mut pixels, &index, bytes);
        if let Some(path) = path.filter(|_| decoded.is_final) {
            written(&path, cache::write(&path, &index, Some(&pixels)), progress);
        }
        dataset(&index, pixels)
    }

    /// Decodes all pictures once, on `threads` threads, and keeps what is known of them, not the pixels; or reads
    /// that from `cache`, under the same conditions as [`Folder::load`].
    ///
    /// # Errors
    /// Those of [`Folder::load`].
    pub fn index(
        &self,
        cache: Option<&Path>,
        threads: usize,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(FolderProgress<'_>),
    ) -> Result<FolderIndex, DataError> {
        let pool = pool(threads)?;
        let path = cache.map(|directory| cache::cache_file(directory, self, false));
        if let Some(index) = cached(path.as_deref(), |path| cache::read_index(path, self), progress) {
            return Ok(index);
        }
        let decoded = self.decode_all(&pool, stop, progress, |_| ())?;
        let index = FolderIndex::new(self, decoded.outcomes)?;
        if let Some(path) = path.filter(|_| decoded.is_final) {
            written(&path, cache::write(&path, &index, None), progress);
        }
        Ok(index)
    }

    /// Decodes the files in their order and hands each image's pixels to `keep`.
    fn decode_all(
        &self,
        pool: &ThreadPool,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(FolderProgress<'_>),
        mut keep: impl FnMut(&[u8]),
    ) -> Result<Decoded, DataError> {
        let bytes = image_bytes(&self.options);
        let chunk = (CHUNK_BYTES / bytes).clamp(2 * pool.current_num_threads(), 1024);
        let mut pixels = zeroed(chunk * bytes)?;
        let mut decoded = Decoded { outcomes: Vec::with_capacity(self.len()), is_final: true };
        for files in self.files.chunks(chunk) {
            let files: Vec<&PictureFile> = files.iter().collect();
            let results = read_batch(pool, &self.root, &self.options, self.memory, &files, &mut pixels, stop);
            if stop.load(Ordering::Relaxed) {
                return Err(DataError::Stopped);
            }
            for ((result, file), image) in results.into_iter().zip(files).zip(pixels.chunks_exact(bytes)) {
                decoded.outcomes.push(match result {
                    Ok(digest) => {
                        keep(image);
                        Outcome::Pixels(digest)
                    }
                    Err(error) if self.options.on_error == OnError::Fail => return Err(error),
                    Err(error @ DataError::Memory { .. }) => return Err(error),
                    Err(DataError::Picture { reason, .. }) => Outcome::Skipped(reason),
                    Err(DataError::Read { source, .. }) => {
                        decoded.is_final = false;
                        Outcome::Skipped(format!("cannot be read: {source}"))
                    }
                    Err(error) => return Err(DataError::Argument(format!("{}: {error}", file.path))),
                });
            }
            progress(FolderProgress::Decoded { done: decoded.outcomes.len(), total: self.len() });
        }
        Ok(decoded)
    }

    /// Whether every image has the pixels it is known to have.
    fn verify(&self, pool: &ThreadPool, index: &FolderIndex, pixels: &[u8]) -> bool {
        let images = pixels.par_chunks_exact(image_bytes(&self.options));
        let Arrangement { train, test, .. } = &index.arrangement;
        let is_intact = |(image, &n): (&[u8], &usize)| {
            <[u8; 32]>::from(Sha256::digest(image)) == *index.outcomes[n].digest()
        };
        pool.install(|| images.zip(train.par_iter().chain(test)).all(is_intact))
    }
}

struct Decoded {
    outcomes: Vec<Outcome>,
    /// `false` where a file could not be read: that may be otherwise the next time, without the file changing.
    is_final: bool,
}

/// What is in the cache at `path`, if it may be used; otherwise `progress` is told why not.
fn cached<T>(
    path: Option<&Path>,
    read: impl FnOnce(&Path) -> Result<Option<T>, String>,
    progress: &mut dyn FnMut(FolderProgress<'_>),
) -> Option<T> {
    let path = path?;
    read(path).unwrap_or_else(|reason| {
        let note = format!("the cache {} is made anew: {reason}", path.display());
        progress(FolderProgress::Note(&note));
        None
    })
}

fn written(path: &Path, result: std::io::Result<()>, progress: &mut dyn FnMut(FolderProgress<'_>)) {
    if let Err(error) = result {
        progress(FolderProgress::Note(&format!("cannot write the cache {}: {error}", path.display())));
    }
}

/// So many bytes, or an error where the system has none left: a process is not ended for it.
pub(crate) fn zeroed(len: usize) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::new();
    let reserved = bytes.try_reserve_exact(len);
    reserved.map_err(|_| DataError::Argument(format!("not enough memory for {len} bytes of pictures")))?;
    bytes.resize(len, 0);
    Ok(bytes)
}

/// Threads to decode on.
pub(crate) fn pool(threads: usize) -> Result<ThreadPool, DataError> {
    if threads == 0 {
        return Err(DataError::Argument("pictures are decoded on at least 1 thread, not 0".into()));
    }
    ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|n| format!("decode-{n}"))
        .build()
        .map_err(|error| DataError::Argument(format!("cannot start {threads} threads: {error}")))
}

/// Reads, decodes and resizes `files` into `pixels`, `[len, 3, S, S]` or longer: the SHA-256 of each image, or
/// why there is none. Once `stop` is set, what is left of the batch stays undone and its results mean nothing.
pub(crate) fn read_batch(
    pool: &ThreadPool,
    root: &Path,
    options: &FolderRecipe,
    memory: u64,
    files: &[&PictureFile],
    pixels: &mut [u8],
    stop: &AtomicBool,
) -> Vec<Result<[u8; 32], DataError>> {
    let images = pixels.par_chunks_exact_mut(image_bytes(options));
    pool.install(|| {
        files
            .par_iter()
            .zip(images)
            .with_max_len(1) // files differ in size
            .map(|(file, image)| {
                if stop.load(Ordering::Relaxed) {
                    return Ok([0; 32]);
                }
                read_image(&root.join(&file.path), options, memory, image)?;
                Ok(Sha256::digest(&*image).into())
            })
            .collect()
    })
}

/// Reads, decodes and resizes a file into `image`, `[3, S, S]`.
fn read_image(path: &Path, options: &FolderRecipe, memory: u64, image: &mut [u8]) -> Result<(), DataError> {
    let unreadable = |source| DataError::Read { file: path.to_path_buf(), source };
    let mut bytes = Vec::new();
    let mut file = File::open(path).map_err(unreadable)?.take(MAX_FILE_BYTES + 1);
    file.read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let reason = format!("larger than {MAX_FILE_BYTES} bytes");
        return Err(DataError::Picture { file: path.to_path_buf(), reason });
    }
    let FolderRecipe { stored_size, crop_mode, interpolation, .. } = *options;
    let square = fit(decode(&bytes, path, memory)?, stored_size, crop_mode, [0; 3], interpolation)?;
    for (channel, plane) in image.chunks_exact_mut(square.pixels.len() / 3).enumerate() {
        for (value, pixel) in plane.iter_mut().zip(square.pixels.chunks_exact(3)) {
            *value = pixel[channel];
        }
    }
    Ok(())
}

/// The decoded images, now in the order of their files, in that of the parts; in place, because they may be
/// most of what memory holds.
fn arrange_pixels(images: &mut [u8], index: &FolderIndex, bytes: usize) {
    let mut place_of_file = vec![0; index.outcomes.len()];
    let decoded = index.outcomes.iter().enumerate().filter(|(_, o)| matches!(o, Outcome::Pixels(_)));
    for (place, (file, _)) in decoded.enumerate() {
        place_of_file[file] = place;
    }
    let Arrangement { train, test, .. } = &index.arrangement;
    let mut source: Vec<usize> = train.iter().chain(test).map(|&file| place_of_file[file]).collect();
    let mut first = vec![0; bytes];
    for start in 0..source.len() {
        if source[start] == start {
            continue;
        }
        // Along the cycle of places that `start` is on, each takes the image of the next.
        first.copy_from_slice(&images[start * bytes..(start + 1) * bytes]);
        let mut to = start;
        while source[to] != start {
            let from = source[to];
            images.copy_within(from * bytes..(from + 1) * bytes, to * bytes);
            source[to] = to;
            to = from;
        }
        images[to * bytes..(to + 1) * bytes].copy_from_slice(&first);
        source[to] = to;
    }
}

/// The data set of pixels that are in the order of the parts, which have them in common.
fn dataset(index: &FolderIndex, pixels: Vec<u8>) -> Result<Dataset, DataError> {
    let FolderIndex { folder, arrangement: Arrangement { train, test, .. }, .. } = index;
    let side = folder.options.stored_size as usize;
    let images = ArcArray::from_shape_vec((train.len() + test.len(), 3, side, side), pixels)
        .map_err(|error| DataError::Argument(error.to_string()))?;
    let part = |order: &[usize], first: usize| {
        let mut images = images.clone();
        images.slice_axis_inplace(Axis(0), (first..first + order.len()).into());
        Labelled { images, labels: order.iter().map(|&n| folder.files[n].label).collect() }
    };
    Ok(Dataset {
        name: folder.root.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        class_names: folder.class_names.clone(),
        train: part(train, 0),
        test: part(test, train.len()),
        coarse: None,
        validation: index.validation(),
        skipped: index.skipped(),
        sha256: index.sha256().to_owned(),
    })
}
