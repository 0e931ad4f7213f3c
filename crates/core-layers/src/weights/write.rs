//! Writes named tensors as a safetensors file, one tensor after the other.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, Write};

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::ser::{Serialize, SerializeMap, Serializer};
use tch::{Device, Kind, TchError, Tensor};

/// The name under which a header holds what is no tensor.
const METADATA: &str = "__metadata__";

/// The header is padded with spaces to a multiple of this, so that the data after it is aligned.
const ALIGNMENT: usize = 8;

/// Why tensors cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The format has no such type.
    #[error("{name} holds {kind:?}, for which safetensors has no type")]
    Kind {
        /// The tensor.
        name: String,
        /// What it holds.
        kind: Kind,
    },
    /// The format keeps the name for something else.
    #[error("no tensor of a safetensors file can be called {METADATA:?}")]
    Name,
    /// libtorch could not copy a tensor.
    #[error("libtorch could not copy {name}: {error}")]
    Torch {
        /// The tensor.
        name: String,
        /// What libtorch says.
        error: TchError,
    },
    /// What is written to refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Writes `tensors`, on whatever device and however they lie in memory, and the file's own `metadata` to `out` as the
/// safetensors crate orders and aligns them; the same input gives the same bytes. Only one tensor at a time is copied.
///
/// # Errors
/// A tensor of a type or with a name that the format does not have, before anything is written; a refusal of libtorch
/// or of `out`.
pub fn write_safetensors(
    mut out: impl Write,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), WriteError> {
    let entries = ordered(tensors)?;
    let mut header = serde_json::to_vec(&Header { entries: &entries, metadata }).map_err(io::Error::from)?;
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    let mut bytes = Vec::new();
    for (name, info) in entries {
        let (start, end) = info.data_offsets;
        bytes.resize(end - start, 0);
        copy(&tensors[name], &mut bytes)
            .map_err(|error| WriteError::Torch { name: name.to_owned(), error })?;
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// The tensors in the order of their bytes: the widest type first, so that each is aligned, then by name.
fn ordered(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<(&str, TensorInfo)>, WriteError> {
    let mut entries = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        if name == METADATA {
            return Err(WriteError::Name);
        }
        let kind = tensor.kind();
        let dtype = dtype(kind).ok_or_else(|| WriteError::Kind { name: name.clone(), kind })?;
        let shape = tensor.size().into_iter().map(|size| size as usize).collect();
        let length = tensor.numel() * kind.elt_size_in_bytes();
        entries.push((name.as_str(), TensorInfo { dtype, shape, data_offsets: (0, length) }));
    }
    entries.sort_by_key(|(_, info)| Reverse(info.dtype));
    let mut end = 0;
    for (_, info) in &mut entries {
        info.data_offsets = (end, end + info.data_offsets.1);
        end = info.data_offsets.1;
    }
    Ok(entries)
}

fn dtype(kind: Kind) -> Option<Dtype> {
    Some(match kind {
        Kind::Bool => Dtype::BOOL,
        Kind::Uint8 => Dtype::U8,
        Kind::Int8 => Dtype::I8,
        Kind::Int16 => Dtype::I16,
        Kind::Int => Dtype::I32,
        Kind::Int64 => Dtype::I64,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        Kind::ComplexFloat => Dtype::C64,
        _ => return None,
    })
}

/// Copies the elements, row-major. libtorch runs on little-endian machines only, and that is the file's order too.
fn copy(tensor: &Tensor, bytes: &mut [u8]) -> Result<(), TchError> {
    let tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
    tensor.f_copy_data_u8(bytes, tensor.numel())
}

/// The JSON of a header. That of the safetensors crate writes metadata in an order that changes from run to run.
struct Header<'a> {
    entries: &'a [(&'a str, TensorInfo)],
    metadata: &'a BTreeMap<String, String>,
}

impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA, self.metadata)?;
        }
        for (name, info) in self.entries {
            map.serialize_entry(name, info)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;
    use safetensors::tensor::TensorView;

    /// Tensors of every type the format has, a scalar, an empty one, and ones that lie in memory in another order.
    fn tensors() -> BTreeMap<String, Tensor> {
        let range = |kind| Tensor::arange(24, (kind, Device::Cpu)).reshape([2, 3, 4]);
        let mut tensors: BTreeMap<String, Tensor> = [
            Kind::Uint8,
            Kind::Int8,
            Kind::Int16,
            Kind::Int,
            Kind::Int64,
            Kind::Half,
            Kind::BFloat16,
            Kind::Float,
            Kind::Double,
        ]
        .map(|kind| (format!("{kind:?}"), range(kind)))
        .into();
        tensors.insert("a.bool".into(), range(Kind::Float).gt(7.0));
        tensors.insert("a.\"quoted\\é".into(), range(Kind::Float).set_requires_grad(true));
        tensors.insert("complex".into(), Tensor::complex(&range(Kind::Float), &range(Kind::Float)));
        tensors.insert("empty".into(), Tensor::zeros([0, 3], (Kind::Float, Device::Cpu)));
        tensors.insert("scalar".into(), Tensor::from(2.5f64));
        tensors.insert("transposed".into(), range(Kind::Float).transpose(0, 2));
        tensors.insert("part".into(), range(Kind::Half).narrow(1, 1, 2));
        tensors
    }

    fn written(tensors: &BTreeMap<String, Tensor>, metadata: &[(&str, &str)]) -> Vec<u8> {
        let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut bytes = Vec::new();
        write_safetensors(&mut bytes, tensors, &metadata).unwrap();
        bytes
    }

    #[test]
    fn the_bytes_are_those_of_the_safetensors_crate() {
        let tensors = tensors();
        let mut contents = BTreeMap::new();
        for (name, tensor) in &tensors {
            let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
            copy(tensor, &mut bytes).unwrap();
            contents.insert(name.clone(), (tensor, bytes));
        }
        let views = || {
            contents.iter().map(|(name, (tensor, bytes))| {
                let shape = tensor.size().into_iter().map(|size| size as usize).collect();
                (name, TensorView::new(dtype(tensor.kind()).unwrap(), shape, bytes).unwrap())
            })
        };
        assert_eq!(written(&tensors, &[]), safetensors::serialize(views(), None).unwrap());
        let metadata = [("key".to_owned(), "a \"value\"\nof two lines".to_owned())];
        let theirs = safetensors::serialize(views(), Some(metadata.into())).unwrap();
        assert_eq!(written(&tensors, &[("key", "a \"value\"\nof two lines")]), theirs);
        assert_eq!(written(&BTreeMap::new(), &[]), b"\x08\0\0\0\0\0\0\0{}      ");
    }

    #[test]
    fn the_reader_of_the_safetensors_crate_finds_every_value() {
        let tensors = tensors();
        let bytes = written(&tensors, &[("b", "2"), ("a", "1")]);
        let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert!(bytes[8..start].starts_with(br#"{"__metadata__":{"a":"1","b":"2"},"#));
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.len(), tensors.len());
        for (name, tensor) in &tensors {
            let view = file.tensor(name).unwrap();
            let again = Tensor::from_data_size(view.data(), &tensor.size(), tensor.kind());
            assert_eq!(again, *tensor, "{name}");
            let offset = view.data().as_ptr() as usize - bytes[start..].as_ptr() as usize;
            assert_eq!(offset % tensor.kind().elt_size_in_bytes(), 0, "{name} is not aligned");
        }
        let transposed = file.tensor("transposed").unwrap();
        assert_eq!(transposed.shape(), [4, 3, 2]);
        assert_eq!(transposed.data()[..8], [0f32.to_le_bytes(), 12f32.to_le_bytes()].concat());
    }

    /// Notes the longest piece it was given, and takes no more than `room` bytes.
    struct Disk {
        longest: usize,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.longest = self.longest.max(bytes.len());
            self.room = self.room.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn tensors_are_copied_one_at_a_time_and_a_full_disk_is_said() {
        let ones = || Tensor::ones([1000], (Kind::Float, Device::Cpu));
        let tensors: BTreeMap<String, Tensor> = (0..20).map(|i| (format!("t{i}"), ones())).collect();
        let mut disk = Disk { longest: 0, room: usize::MAX };
        write_safetensors(&mut disk, &tensors, &BTreeMap::new()).unwrap();
        assert_eq!(disk.longest, 4000);
        let full = write_safetensors(Disk { longest: 0, room: 50_000 }, &tensors, &BTreeMap::new());
        assert!(matches!(full, Err(WriteError::Io(error)) if error.kind() == io::ErrorKind::StorageFull));
    }

    #[test]
    fn what_the_format_does_not_have_is_named_before_anything_is_written() {
        let zeros = |kind| Tensor::zeros([2], (kind, Device::Cpu));
        for (name, kind, words) in [
            ("wave", Kind::ComplexDouble, "wave holds ComplexDouble, for which safetensors has no type"),
            (METADATA, Kind::Float, "no tensor of a safetensors file can be called \"__metadata__\""),
        ] {
            let tensors = [("a".to_owned(), zeros(Kind::Float)), (name.to_owned(), zeros(kind))].into();
            let mut bytes = Vec::new();
            let error = write_safetensors(&mut bytes, &tensors, &BTreeMap::new()).unwrap_err();
            assert_eq!((error.to_string().as_str(), bytes.len()), (words, 0));
        }
    }
}
