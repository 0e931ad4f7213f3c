//! A decoded folder in a file, and when such a file may be used: only while it says the same as decoding
//! the folder again would.
//!
//! A cache is a safetensors file: `digests` `[files, 32]`, the SHA-256 of every picture's pixels, and, where the
//! images are kept, `images` `[N, 3, S, S]` and `labels` `[N]`, training part first. Its metadata tell what they
//! belong to, in JSON behind its checksum. A damaged or outdated file is never an error, but a reason to decode again.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use run_record::sha256;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::sets::dataset::Skipped;
use crate::sets::folder::Folder;
use crate::sets::index::{FolderIndex, Outcome};

/// Counted up whenever the same files would give other pixels, another order or another layout of the file.
const VERSION: u32 = 2;
/// That of the safetensors format.
const MAX_HEADER: u64 = 100_000_000;

/// What a cache is of.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: u32,
    root: String,
    options: String,
    /// Of path, size and time of change of every file.
    listing: String,
    class_names: Vec<String>,
    train: usize,
    validation: usize,
    test: usize,
    skipped: Vec<Skipped>,
    sha256: String,
}

impl Record {
    fn new(index: &FolderIndex) -> Self {
        Self {
            version: VERSION,
            root: index.folder.root.to_string_lossy().into_owned(),
            options: format!("{:?}", index.folder.options),
            listing: index.folder.listing_digest(),
            class_names: index.folder.class_names.clone(),
            train: index.train_len(),
            validation: index.validation(),
            test: index.test_len(),
            skipped: index.skipped(),
            sha256: index.sha256().to_owned(),
        }
    }
}

/// The file for a folder and its options: `KEY.safetensors` with the images, `KEY.index.safetensors` without.
pub(crate) fn cache_file(directory: &Path, folder: &Folder, with_images: bool) -> PathBuf {
    let mut key = Sha256::new();
    key.update(folder.root.as_os_str().as_encoded_bytes());
    key.update([0]); // in no path
    key.update(format!("{:?}", folder.options));
    if folder.classes_given {
        folder.class_names.iter().for_each(|name| key.update([&[0], name.as_bytes()].concat()));
    }
    let kind = if with_images { "safetensors" } else { "index.safetensors" };
    directory.join(format!("{}.{kind}", &base16ct::lower::encode_string(&key.finalize())[..32]))
}

/// The index in a cache without images; `None` where there is no such file.
pub(crate) fn read_index(path: &Path, folder: &Folder) -> Result<Option<FolderIndex>, String> {
    Ok(Cache::open(path, folder)?.map(|(_, index)| index))
}

/// The index and the pixels of the images in a cache, training part first, not yet compared with the index's digests; `None` where there is no
/// such file.
pub(crate) fn read_images(path: &Path, folder: &Folder) -> Result<Option<(FolderIndex, Vec<u8>)>, String> {
    let Some((mut cache, index)) = Cache::open(path, folder)? else { return Ok(None) };
    let n = index.train_len() + index.test_len();
    if cache.tensor("labels", Dtype::U16, &[n])? != labels(&index).collect::<Vec<u8>>() {
        return Err("its labels are not the folder's".into());
    }
    let side = folder.options.stored_size as usize;
    let pixels = cache.tensor("images", Dtype::U8, &[n, 3, side, side])?;
    Ok(Some((index, pixels)))
}

/// Writes the cache beside its place, then to it, so that whatever happens there is the old file or the new one.
pub(crate) fn write(path: &Path, index: &FolderIndex, pixels: Option<&[u8]>) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let digests: Vec<u8> = index.outcomes.iter().flat_map(|outcome| *outcome.digest()).collect();
    let mut parts: Vec<&[u8]> = vec![&digests];
    let mut tensors = vec![("digests", Dtype::U8, vec![index.outcomes.len(), 32], digests.len())];
    let labels: Vec<u8> = labels(index).collect();
    if let Some(pixels) = pixels {
        let side = index.folder.options.stored_size as usize;
        let n = index.train_len() + index.test_len();
        parts.extend([labels.as_slice(), pixels]);
        tensors.push(("labels", Dtype::U16, vec![n], labels.len()));
        tensors.push(("images", Dtype::U8, vec![n, 3, side, side], pixels.len()));
    }

    let mut file = NamedTempFile::new_in(directory)?;
    file.write_all(&header(index, tensors)?)?;
    for part in parts {
        file.write_all(part)?;
    }
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(directory)?.sync_all()
}

type Tensors = Vec<(&'static str, Dtype, Vec<usize>, usize)>;

/// Length and header of a safetensors file.
fn header(index: &FolderIndex, tensors: Tensors) -> std::io::Result<Vec<u8>> {
    let record = serde_json::to_string(&Record::new(index))?;
    let checksum = sha256(&record);
    let metadata = HashMap::from([("folder".to_owned(), format!("{checksum} {record}"))]);
    let mut end = 0;
    let infos = tensors.into_iter().map(|(name, dtype, shape, bytes)| {
        let start = end;
        end += bytes;
        (name.to_owned(), TensorInfo { dtype, shape, data_offsets: (start, end) })
    });
    let metadata = Metadata::new(Some(metadata), infos.collect()).map_err(std::io::Error::other)?;
    let mut json = serde_json::to_vec(&metadata)?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    Ok(header)
}

/// The label of every image, as little-endian bytes.
fn labels(index: &FolderIndex) -> impl Iterator<Item = u8> {
    let arrangement = &index.arrangement;
    arrangement.train.iter().chain(&arrangement.test).flat_map(|&n| index.folder.files[n].label.to_le_bytes())
}

/// An open cache whose header was read.
struct Cache {
    file: File,
    header: Metadata,
    /// Where the tensors' bytes begin.
    data: u64,
}

impl Cache {
    fn open(path: &Path, folder: &Folder) -> Result<Option<(Self, FolderIndex)>, String> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let text = |error: std::io::Error| error.to_string();
        let len = file.metadata().map_err(text)?.len();
        let mut size = [0; 8];
        file.read_exact(&mut size).map_err(text)?;
        let size = u64::from_le_bytes(size);
        if size > MAX_HEADER.min(len.saturating_sub(8)) {
            return Err("its header is damaged".into());
        }
        let mut json = vec![0; size as usize];
        file.read_exact(&mut json).map_err(text)?;
        let header: Metadata = serde_json::from_slice(&json).map_err(|error| error.to_string())?;
        let data = 8 + size;
        if len - data != header.data_len() as u64 {
            return Err("it was cut or has grown".into());
        }
        let mut cache = Self { file, header, data };
        let index = cache.index(folder)?;
        Ok(Some((cache, index)))
    }

    fn index(&mut self, folder: &Folder) -> Result<FolderIndex, String> {
        let metadata = self.header.metadata().as_ref().and_then(|metadata| metadata.get("folder"));
        let (checksum, json) =
            metadata.and_then(|text| text.split_once(' ')).ok_or("its metadata are missing")?;
        if checksum != sha256(json) {
            return Err("its metadata are damaged".into());
        }
        let record: Record = serde_json::from_str(json).map_err(|error| error.to_string())?;
        if record.version != VERSION {
            return Err(format!("it is of version {}, not {VERSION}", record.version));
        }
        if record.listing != folder.listing_digest() {
            return Err("files of the folder were added, removed or changed".into());
        }
        let reasons: HashMap<&str, &str> =
            record.skipped.iter().map(|skipped| (skipped.file.as_str(), skipped.reason.as_str())).collect();
        let n = folder.files.len();
        let digests = self.tensor("digests", Dtype::U8, &[n, 32])?;
        let (digests, _) = digests.as_chunks::<32>();
        let outcomes =
            folder.files.iter().zip(digests).map(|(file, digest)| match reasons.get(file.path.as_str()) {
                Some(&reason) => Outcome::Skipped(reason.to_owned()),
                None => Outcome::Pixels(*digest),
            });
        let index = FolderIndex::new(folder, outcomes.collect()).map_err(|error| error.to_string())?;
        if record != Record::new(&index) {
            return Err("its digests are not those of its images".into());
        }
        Ok(index)
    }

    /// The bytes of a tensor of this kind and shape.
    fn tensor(&mut self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<Vec<u8>, String> {
        let info = self.header.info(name).ok_or_else(|| format!("it has no tensor {name}"))?;
        if info.dtype != dtype || info.shape != shape {
            return Err(format!(
                "its tensor {name} is {:?} {:?}, not {dtype:?} {shape:?}",
                info.dtype, info.shape
            ));
        }
        let (start, end) = info.data_offsets;
        self.file.seek(SeekFrom::Start(self.data + start as u64)).map_err(|error| error.to_string())?;
        let (length, mut bytes) = (end - start, Vec::new());
        bytes.try_reserve_exact(length).map_err(|_| format!("{length} bytes do not fit into memory"))?;
        bytes.resize(length, 0);
        self.file.read_exact(&mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    }
}
