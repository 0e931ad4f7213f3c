//! A weights file, opened once: its header first, its tensors when they are asked for.

use std::cell::OnceCell;
use std::fs::{self, File};
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

use super::error::{Problem, WeightsError};
use super::{first_few, other};

/// The metadata key under which a file from this project's trainer describes itself, as a JSON object. Its `class_names` are
/// the names of the classes in the order of the logits.
pub const CARD_KEY: &str = "compact-vision";

/// Bytes before the header: its length.
const LENGTH: u64 = 8;

/// The longest header there may be, as in every other reader of the format.
const LONGEST_HEADER: u64 = 100_000_000;

/// A safetensors file with a valid header and the length that it says.
#[derive(Debug)]
pub struct WeightsFile {
    path: PathBuf,
    /// `None` if all bytes were there from the start.
    file: Option<File>,
    /// Bytes up to the end of the header.
    head: Vec<u8>,
    header: Metadata,
    /// All bytes, once somebody asked for a tensor or the digest.
    bytes: OnceCell<Vec<u8>>,
}

/// The part of a description that a head depends on.
#[derive(Deserialize)]
struct Classes {
    class_names: Vec<String>,
}

impl WeightsFile {
    /// Opens a file and reads its header, and no more of it.
    ///
    /// # Errors
    /// A file that cannot be read, is cut or too long, or is no safetensors file: then with what it is instead.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let fail = |problem| WeightsError { path: path.to_owned(), problem };
        let kind = fs::metadata(path).map_err(|error| fail(error.into()))?;
        // Opening a pipe that nobody writes to would wait.
        if !kind.is_file() {
            return Err(fail(Problem::File(other::not_a_file(path, &kind))));
        }
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (size, mut file) = opened.map_err(|error| fail(error.into()))?;
        let (head, header) = read_head(&mut file, size).map_err(fail)?;
        Ok(Self { path: path.to_owned(), file: Some(file), head, header, bytes: OnceCell::new() })
    }

    /// The same of the bytes of a file that is in memory already; errors call it `path`.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, WeightsError> {
        let read = read_head(&mut Cursor::new(&bytes), bytes.len() as u64);
        let (head, header) = read.map_err(|problem| WeightsError { path: path.to_owned(), problem })?;
        Ok(Self { path: path.to_owned(), file: None, head, header, bytes: bytes.into() })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// SHA-256 of the whole file in lower-case hexadecimal. What is hashed is what is loaded.
    ///
    /// # Errors
    /// A file that can no longer be read.
    pub fn sha256(&self) -> Result<String, WeightsError> {
        Ok(base16ct::lower::encode_string(&Sha256::digest(self.bytes()?)))
    }

    /// What the file says of itself under [`CARD_KEY`].
    pub fn card(&self) -> Option<&str> {
        self.header.metadata().as_ref()?.get(CARD_KEY).map(String::as_str)
    }

    /// The names of the classes in the order of the logits, if the file gives them.
    pub fn class_names(&self) -> Option<Vec<String>> {
        // Read by itself: the rest of a description may be of a later version.
        Some(serde_json::from_str::<Classes>(self.card()?).ok()?.class_names)
    }

    /// The tensor of this name, as f32 on the CPU.
    ///
    /// # Errors
    /// No such tensor, one of another than a floating type, or a file that can no longer be read.
    pub fn tensor(&self, name: &str) -> Result<Tensor, WeightsError> {
        let info = self.header.info(name).ok_or_else(|| {
            let mut names = self.header.offset_keys();
            names.sort();
            let there = if names.is_empty() { "none".to_owned() } else { first_few(&names) };
            self.wrong(format!("it has no tensor {name:?}; it has {there}"))
        })?;
        let kind = floating(info.dtype)
            .ok_or_else(|| self.wrong(format!("{name} holds {:?}, expected a floating type", info.dtype)))?;
        let (start, end) = info.data_offsets;
        let bytes = &self.bytes()?[self.head.len()..][start..end];
        let tensor = Tensor::f_from_data_size(bytes, &shape(info), kind);
        tensor.and_then(|tensor| tensor.f_to_kind(Kind::Float)).map_err(|error| self.error(error))
    }

    /// Name, shape and type of every tensor.
    pub(super) fn contents(&self) -> impl Iterator<Item = (String, Vec<i64>, Dtype)> {
        self.header.tensors().into_iter().map(|(name, info)| (name, shape(info), info.dtype))
    }

    /// The file's bytes, those after the header read at the first call.
    pub(super) fn bytes(&self) -> Result<&[u8], WeightsError> {
        if let Some(bytes) = self.bytes.get() {
            return Ok(bytes);
        }
        let length = self.head.len() + self.header.data_len();
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(length)
            .map_err(|_| self.wrong(format!("there is no memory for its {length} bytes")))?;
        bytes.extend_from_slice(&self.head);
        if let Some(mut file) = self.file.as_ref() {
            file.seek(SeekFrom::Start(self.head.len() as u64))
                .and_then(|_| file.take(self.header.data_len() as u64).read_to_end(&mut bytes))
                .map_err(|error| self.error(error))?;
        }
        if bytes.len() != length {
            return Err(self.wrong("it became shorter while it was read; start again when it is whole"));
        }
        Ok(self.bytes.get_or_init(|| bytes))
    }

    pub(super) fn wrong(&self, problem: impl Into<String>) -> WeightsError {
        self.error(Problem::File(problem.into()))
    }

    pub(super) fn error(&self, problem: impl Into<Problem>) -> WeightsError {
        WeightsError { path: self.path.clone(), problem: problem.into() }
    }
}

/// The bytes of a safetensors file up to the end of its header, and the header.
fn read_head(file: &mut (impl Read + Seek), size: u64) -> Result<(Vec<u8>, Metadata), Problem> {
    let mut start = Vec::new();
    file.by_ref().take(LENGTH + 1).read_to_end(&mut start)?;
    let length = start.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let looks_right = start.get(LENGTH as usize) == Some(&b'{') && length <= LONGEST_HEADER;
    if !looks_right || length > size.saturating_sub(LENGTH) {
        return Err(Problem::File(match other::kind(file, size)? {
            Some(kind) => kind,
            None if looks_right => {
                let head = LENGTH + length;
                format!(
                    "cut short: {size} bytes, and its header alone takes {head}; copy or download it again"
                )
            }
            None => other::UNKNOWN.to_owned(),
        }));
    }
    let mut head = vec![0; (LENGTH + length) as usize];
    file.seek(SeekFrom::Start(0))?;
    file.read_exact(&mut head)?;
    let header: Metadata = serde_json::from_slice(&head[LENGTH as usize..]).map_err(|error| {
        Problem::File(format!("the header of this safetensors file is damaged ({error})"))
    })?;
    let whole = head.len() as u64 + header.data_len() as u64;
    let again = "copy or download it again";
    match size.checked_sub(whole) {
        Some(0) => Ok((head, header)),
        None => Err(Problem::File(format!("cut short: {size} of {whole} bytes; {again}"))),
        Some(more) => Err(Problem::File(format!(
            "{more} bytes too many: by its header this safetensors file has {whole}, not {size}; {again}"
        ))),
    }
}

/// What libtorch calls a type of weights; `None` for one that is no floating type.
pub(super) fn floating(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::F32 => Some(Kind::Float),
        Dtype::F64 => Some(Kind::Double),
        Dtype::F16 => Some(Kind::Half),
        Dtype::BF16 => Some(Kind::BFloat16),
        _ => None,
    }
}

/// A size past what libtorch can count is the largest it can, and fits nothing.
fn shape(info: &TensorInfo) -> Vec<i64> {
    info.shape.iter().map(|&size| i64::try_from(size).unwrap_or(i64::MAX)).collect()
}
