//! A pickle read as data: the values of a PyTorch checkpoint, and a refusal of everything that would have to be run.
//!
//! A pickle is a program for a small stack machine. Of its instructions only those are known that make plain values, and of
//! the classes and functions it may name only those that a tensor is written with; no name is ever looked up.

use std::collections::HashMap;

use safetensors::Dtype;

/// The most instructions of a pickle. Each makes one value at most, so it bounds the memory too.
const MOST_INSTRUCTIONS: usize = 1_000_000;

/// The most dimensions of a tensor.
const MOST_DIMENSIONS: usize = 16;

const CUT: &str = "it ends in the middle of a value; copy or download it again";

/// A value. Lists, dictionaries, storages and tensors lie in the [`Pickle`], by number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    /// None, and numbers that no tensor is described with.
    Plain,
    Bool(bool),
    Int(i64),
    Text(&'a str),
    Tuple(usize),
    List(usize),
    Dict(usize),
    Class(Class),
    Storage(usize),
    Tensor(usize),
}

/// What a pickle may name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Class {
    OrderedDict,
    /// What training scripts keep their arguments in.
    Namespace,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
}

/// Numbers in a row, kept elsewhere in the file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Storage<'a> {
    pub(super) key: &'a str,
    pub(super) dtype: Dtype,
    /// How many numbers.
    pub(super) length: u64,
}

/// A view of a storage. Nothing says yet that it lies inside.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct View<'a> {
    pub(super) storage: Storage<'a>,
    /// In numbers, as strides are.
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    pub(super) strides: Vec<u64>,
}

/// What a pickle holds.
#[derive(Debug, Default)]
pub(super) struct Pickle<'a> {
    /// Of lists and tuples.
    pub(super) items: Vec<Vec<Value<'a>>>,
    pub(super) dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    pub(super) tensors: Vec<View<'a>>,
    storages: Vec<Storage<'a>>,
}

impl<'a> Pickle<'a> {
    /// The storage of this key.
    pub(super) fn storage(&self, key: &str) -> Option<&Storage<'a>> {
        self.storages.iter().find(|storage| storage.key == key)
    }
}

/// Reads the pickle that `bytes` begin with. Returned are its values, the one it stands for, and its length in bytes.
///
/// # Errors
/// What is not read, by name, or what is damaged, and where.
pub(super) fn read(bytes: &[u8]) -> Result<(Pickle<'_>, Value<'_>, usize), String> {
    let mut machine = Machine { bytes, ..Machine::default() };
    let mut at = 0;
    for _ in 0..MOST_INSTRUCTIONS {
        at = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(value)) => return Ok((machine.made, value, machine.at)),
            Err(problem) => return Err(format!("{problem} (byte {at} of its pickle)")),
        }
    }
    Err(format!("its pickle has more than {MOST_INSTRUCTIONS} instructions (byte {at})"))
}

#[derive(Debug, Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    /// Bytes read so far.
    at: usize,
    made: Pickle<'a>,
    stack: Vec<Value<'a>>,
    /// How high the stack was at each mark.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
}

impl<'a> Machine<'a> {
    /// One instruction; the value of the pickle if it was the last.
    fn step(&mut self) -> Result<Option<Value<'a>>, String> {
        let [instruction] = self.array()?;
        match instruction {
            b'.' => return Ok(Some(self.pop()?)),
            // Protocol and frames say nothing about values.
            0x80 => drop(self.array::<1>()?),
            0x95 => drop(self.array::<8>()?),
            b'N' => self.stack.push(Value::Plain),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'G' => {
                self.array::<8>()?;
                self.stack.push(Value::Plain);
            }
            b'J' => {
                let number = i32::from_le_bytes(self.array()?);
                self.stack.push(Value::Int(number.into()));
            }
            b'K' => {
                let number = u8::from_le_bytes(self.array()?);
                self.stack.push(Value::Int(number.into()));
            }
            b'M' => {
                let number = u16::from_le_bytes(self.array()?);
                self.stack.push(Value::Int(number.into()));
            }
            0x8a => self.long()?,
            b'X' => {
                let length = u32::from_le_bytes(self.array()?);
                self.text(length.into())?;
            }
            0x8c => {
                let length = u8::from_le_bytes(self.array()?);
                self.text(length.into())?;
            }
            0x8d => {
                let length = u64::from_le_bytes(self.array()?);
                self.text(length)?;
            }
            b'(' => self.marks.push(self.stack.len()),
            b')' => self.tuple(Vec::new()),
            b't' => {
                let items = self.since_mark()?;
                self.tuple(items);
            }
            0x85..=0x87 => {
                let items = self.top(usize::from(instruction - 0x84))?;
                self.tuple(items);
            }
            b']' => {
                self.made.items.push(Vec::new());
                self.stack.push(Value::List(self.made.items.len() - 1));
            }
            b'}' => self.dict(),
            b'a' => {
                let items = self.top(1)?;
                self.append(items)?;
            }
            b'e' => {
                let items = self.since_mark()?;
                self.append(items)?;
            }
            b's' => {
                let pair = self.top(2)?;
                self.set(&pair)?;
            }
            b'u' => {
                let pairs = self.since_mark()?;
                self.set(&pairs)?;
            }
            b'q' | b'r' | 0x94 => self.remember(instruction)?,
            b'h' => {
                let [place] = self.array()?;
                self.recall(place.into())?;
            }
            b'j' => {
                let place = u32::from_le_bytes(self.array()?);
                self.recall(place)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.stack.push(Value::Class(class(module, name)?));
            }
            0x93 => match self.top(2)?.as_slice() {
                [Value::Text(module), Value::Text(name)] => {
                    self.stack.push(Value::Class(class(module, name)?));
                }
                _ => return Err("it names a class by something else than text".to_owned()),
            },
            b'Q' => {
                let id = self.pop()?;
                self.storage(id)?;
            }
            b'R' => self.call()?,
            0x81 => self.object()?,
            b'b' => self.build()?,
            other => return Err(refused(other)),
        }
        Ok(None)
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let taken = usize::try_from(length).ok().and_then(|length| rest.get(..length));
        let taken = taken.ok_or(CUT)?;
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let taken = self.take(N as u64)?;
        Ok(*taken.first_chunk().ok_or(CUT)?)
    }

    fn text(&mut self, length: u64) -> Result<(), String> {
        let text = str::from_utf8(self.take(length)?).map_err(|_| "a text in it is not UTF-8")?;
        self.stack.push(Value::Text(text));
        Ok(())
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&byte| byte == b'\n').ok_or(CUT)?;
        let line = self.take(end as u64 + 1)?;
        str::from_utf8(&line[..end]).map_err(|_| "a name in it is not UTF-8".to_owned())
    }

    /// A whole number of any length; one that tensors cannot be described with is any.
    fn long(&mut self) -> Result<(), String> {
        let [length] = self.array()?;
        let bytes = self.take(length.into())?;
        let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
        let mut whole = [if negative { 0xff } else { 0 }; 8];
        let value = match whole.get_mut(..bytes.len()) {
            Some(start) => {
                start.copy_from_slice(bytes);
                Value::Int(i64::from_le_bytes(whole))
            }
            None => Value::Plain,
        };
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value<'a>, String> {
        let mut top = self.top(1)?;
        top.pop().ok_or_else(missing)
    }

    /// The last `count` values, off the stack. Those before a mark cannot be reached.
    fn top(&mut self, count: usize) -> Result<Vec<Value<'a>>, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let start =
            self.stack.len().checked_sub(count).filter(|&start| start >= floor).ok_or_else(missing)?;
        Ok(self.stack.split_off(start))
    }

    fn since_mark(&mut self) -> Result<Vec<Value<'a>>, String> {
        let mark = self.marks.pop().ok_or_else(missing)?;
        Ok(self.stack.split_off(mark))
    }

    /// The value that the next instruction changes.
    fn last(&self) -> Result<Value<'a>, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack.get(floor..).and_then(<[_]>::last).copied().ok_or_else(missing)
    }

    fn tuple(&mut self, items: Vec<Value<'a>>) {
        self.made.items.push(items);
        self.stack.push(Value::Tuple(self.made.items.len() - 1));
    }

    fn dict(&mut self) {
        self.made.dicts.push(Vec::new());
        self.stack.push(Value::Dict(self.made.dicts.len() - 1));
    }

    fn append(&mut self, items: Vec<Value<'a>>) -> Result<(), String> {
        let Value::List(list) = self.last()? else {
            return Err("it appends to something else than a list".to_owned());
        };
        self.made.items[list].extend(items);
        Ok(())
    }

    fn set(&mut self, pairs: &[Value<'a>]) -> Result<(), String> {
        let (Value::Dict(dict), (pairs, [])) = (self.last()?, pairs.as_chunks()) else {
            return Err("it sets entries of something else than a dictionary".to_owned());
        };
        self.made.dicts[dict].extend(pairs.iter().map(|&[key, value]| (key, value)));
        Ok(())
    }

    fn remember(&mut self, instruction: u8) -> Result<(), String> {
        let place = match instruction {
            b'q' => u8::from_le_bytes(self.array()?).into(),
            b'r' => u32::from_le_bytes(self.array()?),
            // As many as were remembered before.
            _ => u32::try_from(self.memo.len()).map_err(|error| error.to_string())?,
        };
        let value = self.last()?;
        self.memo.insert(place, value);
        Ok(())
    }

    fn recall(&mut self, place: u32) -> Result<(), String> {
        let value = self.memo.get(&place).ok_or("it recalls a value that it has not made")?;
        self.stack.push(*value);
        Ok(())
    }

    /// What `torch.save` writes in place of a storage.
    fn storage(&mut self, id: Value<'a>) -> Result<(), String> {
        let Value::Tuple(id) = id else { return Err(odd("a storage")) };
        let (fields, view) = self.made.items[id].split_at_checked(5).ok_or_else(|| odd("a storage"))?;
        let storage = match (fields, view) {
            (
                &[
                    Value::Text("storage"),
                    Value::Class(Class::Storage(dtype)),
                    Value::Text(key),
                    Value::Text(_),
                    Value::Int(length),
                ],
                [] | [Value::Plain],
            ) => length.try_into().ok().map(|length| Storage { key, dtype, length }),
            _ => None,
        };
        self.made.storages.push(storage.ok_or_else(|| odd("a storage"))?);
        self.stack.push(Value::Storage(self.made.storages.len() - 1));
        Ok(())
    }

    /// One of the calls that a checkpoint is written with, as the value it stands for.
    fn call(&mut self) -> Result<(), String> {
        let called = self.top(2)?;
        let [Value::Class(class), Value::Tuple(arguments)] = called[..] else {
            return Err("it calls something that is no function".to_owned());
        };
        let arguments = &self.made.items[arguments];
        match (class, arguments.as_slice()) {
            (Class::OrderedDict, []) => self.dict(),
            (Class::RebuildParameter, &[Value::Tensor(tensor), ..]) => {
                self.stack.push(Value::Tensor(tensor));
            }
            (
                Class::RebuildTensor,
                &[
                    Value::Storage(storage),
                    Value::Int(offset),
                    Value::Tuple(shape),
                    Value::Tuple(strides),
                    ..,
                ],
            ) => {
                let sizes = |items: usize| -> Result<Vec<u64>, String> {
                    let items = &self.made.items[items];
                    if items.len() > MOST_DIMENSIONS {
                        return Err(format!(
                            "a tensor has {} dimensions, {MOST_DIMENSIONS} at most are read",
                            items.len()
                        ));
                    }
                    let size = |item: &Value| match *item {
                        Value::Int(size) => size.try_into().ok(),
                        _ => None,
                    };
                    items.iter().map(size).collect::<Option<_>>().ok_or_else(|| odd("a tensor"))
                };
                let (shape, strides) = (sizes(shape)?, sizes(strides)?);
                let offset = offset.try_into().map_err(|_| odd("a tensor"))?;
                if shape.len() != strides.len() {
                    return Err(odd("a tensor"));
                }
                let storage = self.made.storages[storage];
                self.made.tensors.push(View { storage, offset, shape, strides });
                self.stack.push(Value::Tensor(self.made.tensors.len() - 1));
            }
            _ => return Err(odd("a tensor or a dictionary")),
        }
        Ok(())
    }

    /// An object without arguments: its attributes, which follow, are entries of a dictionary.
    fn object(&mut self) -> Result<(), String> {
        match self.top(2)?[..] {
            [Value::Class(Class::Namespace), Value::Tuple(arguments)]
                if self.made.items[arguments].is_empty() =>
            {
                self.dict();
                Ok(())
            }
            _ => Err("it makes an object of a class other than argparse.Namespace".to_owned()),
        }
    }

    /// Attributes of a dictionary, such as the versions of the modules a `state_dict` is of.
    fn build(&mut self) -> Result<(), String> {
        let _attributes = self.pop()?;
        match self.last()? {
            Value::Dict(_) => Ok(()),
            _ => Err("it sets attributes of something else than a dictionary".to_owned()),
        }
    }
}

fn missing() -> String {
    "it needs a value that it has not made".to_owned()
}

fn odd(what: &str) -> String {
    format!("it describes {what} in a way that torch.save does not")
}

/// What a pickle may name, or the refusal of everything else.
fn class(module: &str, name: &str) -> Result<Class, String> {
    let dtype = match (module, name) {
        ("collections", "OrderedDict") => return Ok(Class::OrderedDict),
        ("argparse", "Namespace") => return Ok(Class::Namespace),
        ("torch._utils", "_rebuild_tensor_v2") => return Ok(Class::RebuildTensor),
        ("torch._utils", "_rebuild_parameter") => return Ok(Class::RebuildParameter),
        ("torch", "FloatStorage") => Dtype::F32,
        ("torch", "DoubleStorage") => Dtype::F64,
        ("torch", "HalfStorage") => Dtype::F16,
        ("torch", "BFloat16Storage") => Dtype::BF16,
        ("torch", "LongStorage") => Dtype::I64,
        ("torch", "IntStorage") => Dtype::I32,
        ("torch", "ShortStorage") => Dtype::I16,
        ("torch", "CharStorage") => Dtype::I8,
        ("torch", "ByteStorage") => Dtype::U8,
        ("torch", "BoolStorage") => Dtype::BOOL,
        _ => {
            let name: String = format!("{module}.{name}").chars().take(100).collect();
            return Err(format!("it names {name}"));
        }
    };
    Ok(Class::Storage(dtype))
}

/// The refusal of an instruction, by Python's name of it.
fn refused(instruction: u8) -> String {
    let name = match instruction {
        b'0' => "POP",
        b'1' => "POP_MARK",
        b'2' => "DUP",
        b'F' => "FLOAT",
        b'I' => "INT",
        b'L' => "LONG",
        b'P' => "PERSID",
        b'S' => "STRING",
        b'T' => "BINSTRING",
        b'U' => "SHORT_BINSTRING",
        b'V' => "UNICODE",
        b'B' => "BINBYTES",
        b'C' => "SHORT_BINBYTES",
        b'd' => "DICT",
        b'g' => "GET",
        b'i' => "INST",
        b'l' => "LIST",
        b'o' => "OBJ",
        b'p' => "PUT",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        0x8b => "LONG4",
        0x8e => "BINBYTES8",
        0x8f => "EMPTY_SET",
        0x90 => "ADDITEMS",
        0x91 => "FROZENSET",
        0x92 => "NEWOBJ_EX",
        0x96 => "BYTEARRAY8",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        other => return format!("it has a byte {other:#04x} that is no instruction"),
    };
    format!("it has the instruction {name}")
}
