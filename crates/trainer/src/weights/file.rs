//! A weights file, opened once: its header first, its tensors when they are asked for.

use std::cell::OnceCell;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use run_record::{Hashing, first_few};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use tch::{Kind, Tensor};

use super::{CARD_KEY, Card, other, wrong};
use crate::Error;

/// Bytes before the header: its length.
const LENGTH: u64 = 8;

/// The longest header there may be, as in every other reader of the format.
const LONGEST_HEADER: u64 = 100_000_000;

/// An open safetensors file with a valid header and the length that it says.
#[derive(Debug)]
pub struct WeightsFile {
    path: PathBuf,
    file: File,
    /// The file's first bytes, as far as the header goes.
    head: Vec<u8>,
    header: Metadata,
    /// The bytes after it, once somebody asked for a tensor or the digest.
    tensors: OnceCell<Vec<u8>>,
}

impl WeightsFile {
    /// Opens a file and reads its header, and no more of it.
    ///
    /// # Errors
    /// A file that cannot be read, is cut or too long, or is no safetensors file: then with what it is instead.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let kind = fs::metadata(path).map_err(Error::io(path))?;
        // Opening a pipe that nobody writes to would wait.
        if !kind.is_file() {
            return Err(wrong(path, other::not_a_file(path, &kind)));
        }
        let mut file = File::open(path).map_err(Error::io(path))?;
        let size = file.metadata().map_err(Error::io(path))?.len();
        let head = match read_head(&mut file, size).map_err(Error::io(path))? {
            Ok(head) => head,
            Err(problem) => return Err(wrong(path, problem)),
        };
        let header: Metadata = serde_json::from_slice(&head[LENGTH as usize..]).map_err(|error| {
            wrong(path, format!("the header of this safetensors file is damaged ({error})"))
        })?;
        let whole = head.len() as u64 + header.data_len() as u64;
        if size < whole {
            let problem = format!("cut short: {size} of {whole} bytes; copy or download it again");
            return Err(wrong(path, problem));
        }
        if size > whole {
            let problem = format!(
                "{} bytes too many: by its header this safetensors file has {whole}, not {size}; copy or download it again",
                size - whole
            );
            return Err(wrong(path, problem));
        }
        Ok(Self { path: path.to_owned(), file, head, header, tensors: OnceCell::new() })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// SHA-256 of the whole file in lower-case hexadecimal. What is hashed is what is loaded.
    ///
    /// # Errors
    /// A file that can no longer be read.
    pub fn sha256(&self) -> Result<String, Error> {
        let mut file = Hashing::new(self.head.as_slice().chain(self.tensors()?));
        io::copy(&mut file, &mut io::sink()).map_err(Error::io(&self.path))?;
        Ok(file.finish().1.sha256)
    }

    /// What a weights file of this project says of itself.
    ///
    /// # Errors
    /// A file that says nothing, or whose description is damaged.
    pub fn card(&self) -> Result<Card, Error> {
        let card = self.described().ok_or_else(|| {
            wrong(
                &self.path,
                "these weights do not say which network and data they belong to; expected a file from a run",
            )
        })?;
        let damaged = |problem: &dyn std::fmt::Display| {
            wrong(&self.path, format!("its description is damaged: {problem}"))
        };
        let card: Card = serde_json::from_str(card).map_err(|error| damaged(&error))?;
        card.recipe.validate().map_err(|error| damaged(&error))?;
        Ok(card)
    }

    /// The text of the card.
    pub(super) fn described(&self) -> Option<&str> {
        self.header.metadata().as_ref()?.get(CARD_KEY).map(String::as_str)
    }

    /// The tensor of this name, as f32 on the CPU.
    ///
    /// # Errors
    /// No such tensor, one of another than a floating type, or a file that can no longer be read.
    pub fn tensor(&self, name: &str) -> Result<Tensor, Error> {
        let info = self.header.info(name).ok_or_else(|| {
            let mut names = self.header.offset_keys();
            names.sort();
            let there = if names.is_empty() { "none".to_owned() } else { first_few(&names) };
            wrong(&self.path, format!("it has no tensor {name:?}; it has {there}"))
        })?;
        let kind = floating(info.dtype).ok_or_else(|| {
            wrong(&self.path, format!("{name} holds {:?}, expected a floating type", info.dtype))
        })?;
        let (start, end) = info.data_offsets;
        let bytes = &self.tensors()?[start..end];
        Ok(Tensor::f_from_data_size(bytes, &shape(info), kind)?.f_to_kind(Kind::Float)?)
    }

    /// Name, shape and type of every tensor.
    pub(super) fn contents(&self) -> impl Iterator<Item = (String, Vec<i64>, Dtype)> {
        self.header.tensors().into_iter().map(|(name, info)| (name, shape(info), info.dtype))
    }

    /// The bytes after the header, read at the first call.
    fn tensors(&self) -> Result<&[u8], Error> {
        if let Some(bytes) = self.tensors.get() {
            return Ok(bytes);
        }
        let length = self.header.data_len();
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(length)
            .map_err(|_| wrong(&self.path, format!("there is no memory for its {length} bytes")))?;
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.head.len() as u64))
            .and_then(|_| file.take(length as u64).read_to_end(&mut bytes))
            .map_err(Error::io(&self.path))?;
        if bytes.len() != length {
            return Err(wrong(
                &self.path,
                "it became shorter while it was read; start again when it is whole",
            ));
        }
        Ok(self.tensors.get_or_init(|| bytes))
    }
}

/// The length and the header of a safetensors file, or what is wrong with the file.
fn read_head(file: &mut File, size: u64) -> io::Result<Result<Vec<u8>, String>> {
    let mut start = Vec::new();
    file.by_ref().take(LENGTH + 1).read_to_end(&mut start)?;
    let length = start.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let looks_right = start.get(LENGTH as usize) == Some(&b'{') && length <= LONGEST_HEADER;
    if !looks_right || length > size.saturating_sub(LENGTH) {
        return Ok(Err(match other::kind(file, size)? {
            Some(kind) => kind,
            None if looks_right => {
                format!(
                    "cut short: {size} bytes, and its header alone takes {}; copy or download it again",
                    LENGTH + length
                )
            }
            None => other::UNKNOWN.to_owned(),
        }));
    }
    let mut head = vec![0; (LENGTH + length) as usize];
    file.seek(SeekFrom::Start(0))?;
    file.read_exact(&mut head)?;
    Ok(Ok(head))
}

/// The type of a tensor of weights.
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
