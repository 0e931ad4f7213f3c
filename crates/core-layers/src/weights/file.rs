//! A weights file, opened once: its header first, its tensors when they are asked for.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

use super::entry::Entry;
use super::error::{Problem, WeightsError};
use super::{first_few, other, torch};

/// The metadata key under which a file from this project's trainer describes itself, as a JSON object. Its `class_names` are
/// the names of the classes in the order of the logits.
pub const CARD_KEY: &str = "compact-vision";

/// Bytes before the header: its length.
const LENGTH: u64 = 8;

/// The longest header there may be, as in every other reader of the format.
const LONGEST_HEADER: u64 = 100_000_000;

/// A safetensors file or a PyTorch checkpoint, with a valid header and the length that it says.
#[derive(Debug)]
pub struct WeightsFile {
    path: PathBuf,
    /// `None` if all bytes were there from the start.
    file: Option<File>,
    size: usize,
    header: Header,
    /// All bytes, once somebody asked for a tensor or the digest.
    bytes: OnceCell<Vec<u8>>,
}

/// What is known of a file before its tensors are read.
#[derive(Debug)]
struct Header {
    /// The bytes that say it, and where they begin.
    start: usize,
    bytes: Vec<u8>,
    tensors: BTreeMap<String, Entry>,
    /// What the file says of itself.
    card: Option<String>,
    /// What of it is not read.
    notes: Vec<String>,
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
    /// A file that cannot be read, is cut or too long, is a checkpoint of more than tensors and plain values, or is neither
    /// a safetensors file nor a PyTorch checkpoint: then with what it is instead.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let fail = |problem| WeightsError { path: path.to_owned(), problem };
        let kind = fs::metadata(path).map_err(|error| fail(error.into()))?;
        // Opening a pipe that nobody writes to would wait.
        if !kind.is_file() {
            return Err(fail(Problem::File(other::not_a_file(path, &kind))));
        }
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (size, mut file) = opened.map_err(|error| fail(error.into()))?;
        let header = read_header(&mut file, size).map_err(fail)?;
        let size = usize::try_from(size).map_err(|error| fail(Problem::File(error.to_string())))?;
        Ok(Self { path: path.to_owned(), file: Some(file), size, header, bytes: OnceCell::new() })
    }

    /// The same of the bytes of a file that is in memory already; errors call it `path`.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, WeightsError> {
        let size = bytes.len();
        let read = read_header(&mut Cursor::new(&bytes), size as u64);
        let header = read.map_err(|problem| WeightsError { path: path.to_owned(), problem })?;
        Ok(Self { path: path.to_owned(), file: None, size, header, bytes: bytes.into() })
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
        self.header.card.as_deref()
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
        let entry = self.header.tensors.get(name).ok_or_else(|| {
            let names: Vec<&String> = self.header.tensors.keys().collect();
            let there = if names.is_empty() { "none".to_owned() } else { first_few(&names) };
            self.wrong(format!("it has no tensor {name:?}; it has {there}"))
        })?;
        let kind = floating(entry.dtype)
            .ok_or_else(|| self.wrong(format!("{name} holds {:?}, expected a floating type", entry.dtype)))?;
        let bytes = &self.bytes()?[entry.bytes.clone()];
        let tensor = match &entry.strides {
            None => Tensor::f_from_data_size(bytes, &entry.shape, kind),
            Some(strides) => {
                let count = (bytes.len() / kind.elt_size_in_bytes()) as i64;
                Tensor::f_from_data_size(bytes, &[count], kind)
                    .and_then(|numbers| numbers.f_as_strided(&entry.shape, strides, 0)?.f_contiguous())
            }
        };
        tensor.and_then(|tensor| tensor.f_to_kind(Kind::Float)).map_err(|error| self.error(error))
    }

    /// Name, shape and type of every tensor.
    pub(super) fn contents(&self) -> impl Iterator<Item = (String, Vec<i64>, Dtype)> {
        self.header.tensors.iter().map(|(name, entry)| (name.clone(), entry.shape.clone(), entry.dtype))
    }

    /// What of the file is not read, and which part is.
    pub(super) fn notes(&self) -> &[String] {
        &self.header.notes
    }

    /// The file's bytes, read at the first call. Those of the header are the ones that were read before.
    pub(super) fn bytes(&self) -> Result<&[u8], WeightsError> {
        if let Some(bytes) = self.bytes.get() {
            return Ok(bytes);
        }
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(self.size)
            .map_err(|_| self.wrong(format!("there is no memory for its {} bytes", self.size)))?;
        if let Some(mut file) = self.file.as_ref() {
            file.seek(SeekFrom::Start(0))
                .and_then(|_| file.take(self.size as u64).read_to_end(&mut bytes))
                .map_err(|error| self.error(error))?;
        }
        if bytes.len() != self.size {
            return Err(self.wrong("it became shorter while it was read; start again when it is whole"));
        }
        let Header { start, bytes: header, .. } = &self.header;
        if bytes.get(*start..).is_none_or(|rest| !rest.starts_with(header)) {
            return Err(self.wrong("it changed while it was read; start again when it is whole"));
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

/// What a safetensors file or a PyTorch checkpoint says of its tensors.
fn read_header(file: &mut (impl Read + Seek), size: u64) -> Result<Header, Problem> {
    let mut start = Vec::new();
    file.by_ref().take(LENGTH + 1).read_to_end(&mut start)?;
    let length = start.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let looks_right = start.get(LENGTH as usize) == Some(&b'{') && length <= LONGEST_HEADER;
    if !looks_right || length > size.saturating_sub(LENGTH) {
        if let Some(torch::Checkpoint { head: (start, bytes), tensors, notes }) = torch::read(file, size)? {
            return Ok(Header { start, bytes, tensors, card: None, notes });
        }
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
        Some(0) => Ok(of_safetensors(head, &header)),
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

fn of_safetensors(head: Vec<u8>, header: &Metadata) -> Header {
    let tensors = header.tensors().into_iter().map(|(name, info)| {
        let (start, end) = info.data_offsets;
        // A size past what libtorch can count is the largest it can, and fits nothing.
        let shape = info.shape.iter().map(|&size| i64::try_from(size).unwrap_or(i64::MAX)).collect();
        let bytes = head.len() + start..head.len() + end;
        (name, Entry { dtype: info.dtype, shape, strides: None, bytes })
    });
    let tensors = tensors.collect();
    let card = header.metadata().as_ref().and_then(|metadata| metadata.get(CARD_KEY).cloned());
    Header { start: 0, bytes: head, tensors, card, notes: Vec::new() }
}
