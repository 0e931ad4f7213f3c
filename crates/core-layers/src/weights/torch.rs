//! A PyTorch checkpoint, as `torch.save` writes it: a zip archive of a pickle and a file for each storage, or, before PyTorch
//! 1.6, pickles followed by the storages. Nothing in it is unpacked or run.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use safetensors::Dtype;
use zip::{CompressionMethod, ZipArchive};

use super::entry::Entry;
use super::error::Problem;
use super::first_few;
use super::names::WRAPPERS;
use super::pickle::{self, Pickle, Value, View};

/// The longest pickle there may be; that of weights has some kilobytes.
const LONGEST_PICKLE: u64 = 16 << 20;

/// The most files in an archive.
const MOST_FILES: usize = 100_000;

/// The most values of a checkpoint that are looked at.
const MOST_VALUES: usize = 200_000;

/// How deep they may lie in each other.
const DEEPEST: usize = 32;

/// The longest name of a tensor in bytes.
const LONGEST_NAME: usize = 1024;

/// What to do with a checkpoint that holds more than is read.
const RESAVE: &str = "only tensors, dictionaries, lists, text and numbers are read, and nothing is run; in Python, save its \
                      state_dict alone with torch.save or safetensors.torch.save_file and give that";

const AGAIN: &str = "copy or download it again";

/// What a legacy checkpoint begins with after a pickle's protocol: a number of 10 bytes.
const MAGIC: &[u8] = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

/// A checkpoint's tensors.
#[derive(Debug)]
pub(super) struct Checkpoint {
    /// What it was read from, and where that begins in the file.
    pub(super) head: (usize, Vec<u8>),
    pub(super) tensors: BTreeMap<String, Entry>,
    /// Which part was read, if not all of it.
    pub(super) notes: Vec<String>,
}

/// Reads a checkpoint of `size` bytes, but not its storages; `None` for a file that is something else.
///
/// # Errors
/// What is wrong with it, or a file that cannot be read.
pub(super) fn read(file: &mut (impl Read + Seek), size: u64) -> Result<Option<Checkpoint>, Problem> {
    let start = part(file, 0, 2 + MAGIC.len() as u64)?;
    if start.starts_with(b"PK\x03\x04") {
        let Some(archive) = archive(file, size)? else { return Ok(None) };
        return zipped(file, &archive).map(Some);
    }
    if start.first() == Some(&0x80) && start.get(2..) == Some(MAGIC) {
        return legacy(file, size).map(Some);
    }
    Ok(None)
}

fn part(file: &mut (impl Read + Seek), from: u64, length: u64) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(from))?;
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// By the names of an archive's files where their bytes lie, or why they cannot be read there.
type Archive = BTreeMap<String, Result<Range<u64>, String>>;

/// The files in the one folder of a zip archive; `None` for an archive that is no checkpoint, or not whole.
fn archive(file: &mut (impl Read + Seek), size: u64) -> Result<Option<Archive>, Problem> {
    let Ok(mut archive) = ZipArchive::new(file) else { return Ok(None) };
    if archive.len() > MOST_FILES {
        return Err(Problem::File(format!("an archive of {} files, which no checkpoint has", archive.len())));
    }
    let names: Vec<String> =
        archive.file_names().filter_map(|name| name.ok().map(|name| name.into_owned())).collect();
    let is_at_top = |name: &str, file: &str| {
        name.strip_suffix(file).is_some_and(|folder| !folder.is_empty() && !folder.contains('/'))
    };
    // A TorchScript program has a pickle as well.
    if names.iter().any(|name| is_at_top(name, "/constants.pkl")) {
        return Ok(None);
    }
    let mut pickles = names.iter().filter(|name| is_at_top(name, "/data.pkl"));
    let folder = match (pickles.next().and_then(|name| name.strip_suffix("data.pkl")), pickles.next()) {
        (None, _) => return Ok(None),
        (Some(folder), None) => folder,
        _ => return Err(Problem::File("an archive of several checkpoints; give one of them".to_owned())),
    };
    let mut files = Archive::new();
    for name in names.iter().filter(|name| name.starts_with(folder)) {
        files.insert(name[folder.len()..].to_owned(), place(&mut archive, name, size));
    }
    Ok(Some(files))
}

/// Where the bytes of a file in an archive of `size` bytes are.
fn place(archive: &mut ZipArchive<impl Read + Seek>, name: &str, size: u64) -> Result<Range<u64>, String> {
    let damaged = |problem: &dyn std::fmt::Display| {
        format!("{name:?} in this PyTorch checkpoint is damaged ({problem}); {AGAIN}")
    };
    let index = archive.index_for_name(name).ok_or_else(|| damaged(&"it has no place"))?;
    let entry = archive.by_index_raw(index).map_err(|error| damaged(&error))?;
    if entry.encrypted() || entry.compression() != CompressionMethod::Stored {
        return Err(format!(
            "{name:?} in this PyTorch checkpoint is compressed or encrypted, which torch.save never does; save it again"
        ));
    }
    let start = entry.data_start().ok_or_else(|| damaged(&"it has no place"))?;
    let end =
        start.checked_add(entry.size()).filter(|&end| end <= size && entry.size() == entry.compressed_size());
    end.map(|end| start..end).ok_or_else(|| damaged(&format_args!("{} bytes are not there", entry.size())))
}

fn zipped(file: &mut (impl Read + Seek), archive: &Archive) -> Result<Checkpoint, Problem> {
    let find = |name: &str| {
        let found = archive.get(name).cloned();
        found.unwrap_or_else(|| Err(format!("this PyTorch checkpoint has no {name:?}; {AGAIN}")))
    };
    if archive.contains_key("byteorder") {
        let order = find("byteorder").map_err(Problem::File)?;
        let order = part(file, order.start, (order.end - order.start).min(8))?;
        if order != b"little" {
            return Err(Problem::File(big_endian(&String::from_utf8_lossy(&order))));
        }
    }
    let pickle = find("data.pkl").map_err(Problem::File)?;
    let length = pickle.end - pickle.start;
    if length > LONGEST_PICKLE {
        return Err(Problem::File(format!(
            "a PyTorch checkpoint with a pickle of {length} bytes, {LONGEST_PICKLE} at most are read; {RESAVE}"
        )));
    }
    let head = part(file, pickle.start, length)?;
    let read = pickle::read(&head).map_err(|problem| Problem::File(refused(&problem)))?;
    let storage = |key: &str| find(&format!("data/{key}"));
    let (tensors, notes) = tensors(&read.0, read.1, storage).map_err(Problem::File)?;
    Ok(Checkpoint { head: (index(pickle.start)?, head), tensors, notes })
}

/// Pickles of a number, a version, the machine, the values and the keys of the storages, which follow, each after its length.
fn legacy(file: &mut (impl Read + Seek), size: u64) -> Result<Checkpoint, Problem> {
    let mut head = part(file, 0, LONGEST_PICKLE)?;
    let mut at = 0;
    let mut next = || {
        let (pickle, value, length) = pickle::read(&head[at..]).map_err(|problem| refused(&problem))?;
        at += length;
        Ok::<_, String>((pickle, value))
    };
    let mut header = || Ok::<_, String>((next()?, next()?, next()?, next()?, next()?));
    let (_, _, (machine, about), (values, root), (list, keys)) = header().map_err(Problem::File)?;
    if field(&machine, about, "little_endian") != Some(Value::Bool(true)) {
        return Err(Problem::File(big_endian("big")));
    }
    let Value::List(keys) = keys else {
        return Err(Problem::File(refused("it has no list of its storages")));
    };
    let mut places = BTreeMap::new();
    let mut place = at as u64;
    for key in &list.items[keys] {
        let Value::Text(key) = *key else {
            return Err(Problem::File(refused("a storage has no name")));
        };
        let Some(storage) = values.storage(key) else {
            return Err(Problem::File(refused("it has a storage that no tensor lies in")));
        };
        let length = part(file, place, 8)?;
        let length = length.first_chunk().map(|length| u64::from_le_bytes(*length));
        let start = place + 8;
        let end = length.and_then(|length| length.checked_mul(width(storage.dtype))?.checked_add(start));
        let Some(end) = end.filter(|&end| end <= size) else {
            return Err(Problem::File(format!(
                "a PyTorch checkpoint that is cut short: {size} bytes; {AGAIN}"
            )));
        };
        places.insert(key, start..end);
        place = end;
    }
    let storage = |key: &str| {
        let found = places.get(key).cloned();
        found.ok_or_else(|| format!("this PyTorch checkpoint has no storage {key:?}; {AGAIN}"))
    };
    let (tensors, notes) = tensors(&values, root, storage).map_err(Problem::File)?;
    head.truncate(at);
    Ok(Checkpoint { head: (0, head), tensors, notes })
}

fn refused(problem: &str) -> String {
    format!("a PyTorch checkpoint that cannot be read as weights: {problem}; {RESAVE}")
}

fn big_endian(order: &str) -> String {
    format!("a PyTorch checkpoint of another byte order ({order}); save it again on a little-endian machine")
}

/// A number of bytes or a place in a file as libtorch and slices count.
fn index(number: u64) -> Result<usize, Problem> {
    usize::try_from(number)
        .map_err(|_| Problem::File(format!("{number} bytes are more than this machine can address")))
}

fn width(dtype: Dtype) -> u64 {
    (dtype.bitsize() / 8) as u64
}

/// The value under a key of a dictionary; of several, the last.
fn field<'a>(pickle: &Pickle<'a>, value: Value<'a>, key: &str) -> Option<Value<'a>> {
    let Value::Dict(dict) = value else { return None };
    pickle.dicts[dict].iter().rev().find(|(found, _)| *found == Value::Text(key)).map(|(_, value)| *value)
}

/// The tensors of the values, by the keys that lead to them, and what was left alone.
fn tensors(
    pickle: &Pickle,
    root: Value,
    storage: impl Fn(&str) -> Result<Range<u64>, String>,
) -> Result<(BTreeMap<String, Entry>, Vec<String>), String> {
    let (mut value, mut notes) = (root, Vec::new());
    // Of the parts of a training checkpoint, the weights; a dictionary that holds itself ends the search too.
    for _ in 0..DEEPEST {
        let part = WRAPPERS.iter().map(|wrapper| wrapper.trim_end_matches('.'));
        let mut part = part.filter_map(|key| Some((key, field(pickle, value, key)?)));
        let Some((key, inner)) = part.find(|(_, inner)| matches!(inner, Value::Dict(_))) else { break };
        if let Value::Dict(dict) = value {
            let others = pickle.dicts[dict].iter().filter_map(|(other, _)| match other {
                Value::Text(other) if *other != key => Some(*other),
                _ => None,
            });
            let others: Vec<&str> = others.collect();
            let alone = match others.as_slice() {
                [] => String::new(),
                others => format!("; left alone: {}", first_few(others)),
            };
            notes.push(format!("read were the tensors under {key:?} of this checkpoint{alone}"));
        }
        value = inner;
    }
    let mut found = BTreeMap::new();
    let mut left = MOST_VALUES;
    collect(pickle, value, &mut String::new(), DEEPEST, &mut left, &mut found)?;
    let mut tensors = BTreeMap::new();
    for (name, view) in found {
        let entry = entry(view, storage(view.storage.key).map_err(|problem| format!("{name}: {problem}"))?);
        tensors.insert(
            name.clone(),
            entry.map_err(|problem| format!("a PyTorch checkpoint whose {name} {problem}"))?,
        );
    }
    Ok((tensors, notes))
}

/// Finds the tensors in a value, whose keys so far are `name`.
fn collect<'p, 'a>(
    pickle: &'p Pickle<'a>,
    value: Value<'a>,
    name: &mut String,
    depth: usize,
    left: &mut usize,
    found: &mut BTreeMap<String, &'p View<'a>>,
) -> Result<(), String> {
    let too_much =
        || refused(&format!("it holds more than {MOST_VALUES} values, or {DEEPEST} in each other"));
    *left = left.checked_sub(1).ok_or_else(too_much)?;
    let mut inner = |key: &dyn std::fmt::Display, value: Value<'a>| {
        let depth = depth.checked_sub(1).ok_or_else(too_much)?;
        let length = name.len();
        let dot = if name.is_empty() { "" } else { "." };
        name.push_str(&format!("{dot}{key}"));
        if name.len() > LONGEST_NAME {
            return Err(refused(&format!("a name in it has more than {LONGEST_NAME} bytes")));
        }
        collect(pickle, value, name, depth, left, found)?;
        name.truncate(length);
        Ok(())
    };
    match value {
        Value::Dict(dict) => pickle.dicts[dict].iter().try_for_each(|&(key, value)| match key {
            Value::Text(key) => inner(&key, value),
            Value::Int(key) => inner(&key, value),
            // No name leads to it.
            _ => Ok(()),
        }),
        Value::List(items) | Value::Tuple(items) => {
            pickle.items[items].iter().enumerate().try_for_each(|(place, &value)| inner(&place, value))
        }
        Value::Tensor(tensor) => match found.insert(name.clone(), &pickle.tensors[tensor]) {
            None => Ok(()),
            Some(_) => Err(refused(&format!("it has {name} twice"))),
        },
        _ => Ok(()),
    }
}

/// Where a tensor's numbers are, if all of them lie in the storage, whose bytes are given, and are no more than it has.
fn entry(view: &View, storage: Range<u64>) -> Result<Entry, String> {
    let width = width(view.storage.dtype);
    let claimed = view.storage.length.checked_mul(width);
    if claimed.is_none_or(|claimed| claimed > storage.end - storage.start) {
        let (length, there) = (view.storage.length, storage.end - storage.start);
        return Err(format!(
            "lies in a storage of {length} numbers, of which the file has {there} bytes; {AGAIN}"
        ));
    }
    let outside = || {
        let View { offset, shape, strides, storage } = view;
        let length = storage.length;
        format!(
            "has the shape {shape:?} in steps of {strides:?} from {offset}, outside its storage of {length} numbers"
        )
    };
    let numbers =
        view.shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size)).ok_or_else(outside)?;
    // Numbers from the first to the last.
    let span = if numbers == 0 {
        0
    } else {
        let steps = view.shape.iter().zip(&view.strides);
        let last = steps.map(|(&size, &stride)| (size - 1).checked_mul(stride));
        let last = last.into_iter().try_fold(0u64, |sum, step| sum.checked_add(step?));
        last.and_then(|last| last.checked_add(1)).ok_or_else(outside)?
    };
    let end = view
        .offset
        .checked_add(span)
        .filter(|&end| end <= view.storage.length && numbers <= view.storage.length);
    let end = end.ok_or_else(outside)?;
    let place = |number: u64| usize::try_from(storage.start + number * width).map_err(|_| outside());
    let whole = |sizes: &[u64]| sizes.iter().map(|&size| i64::try_from(size)).collect::<Result<Vec<_>, _>>();
    let (Ok(shape), Ok(strides)) = (whole(&view.shape), whole(&view.strides)) else { return Err(outside()) };
    let bytes = place(view.offset)?..place(end)?;
    Ok(Entry { dtype: view.storage.dtype, shape, strides: Some(strides), bytes })
}
