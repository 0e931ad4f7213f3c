//! What can be wrong with a data set, said so that a person can mend it.

use std::io;
use std::path::PathBuf;

/// Why a data set could not be read, split or batched.
///
/// Records of a binary file are counted from 0, lines and columns of a text file from 1.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file of the data set is not there.
    #[error("{} not found; {hint}", .file.display())]
    Missing {
        /// The file that was looked for.
        file: PathBuf,
        /// What to do.
        hint: String,
    },
    /// A file is there and cannot be read.
    #[error("cannot read {}: {source}", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of a fixed size has another one.
    #[error("{} is {what}: {found} bytes instead of {expected}; {hint}", .file.display())]
    Size {
        /// The file.
        file: PathBuf,
        /// "truncated" or "too long".
        what: &'static str,
        /// Its size in bytes.
        found: u64,
        /// The size it must have, in bytes.
        expected: u64,
        /// What to do.
        hint: String,
    },
    /// Bytes that are not a positive whole number of records.
    #[error(
        "{}: {found} bytes are not a whole number of {record}-byte records: record {index} has {rest} bytes",
        .file.display()
    )]
    Length {
        /// The file.
        file: PathBuf,
        /// Its length in bytes.
        found: usize,
        /// The length of one record in bytes.
        record: usize,
        /// The incomplete record, from 0.
        index: usize,
        /// How many bytes that record has.
        rest: usize,
    },
    /// A label byte outside the classes.
    #[error("{}: record {record} has {kind} {value}; the largest is {max}", .file.display())]
    Label {
        /// The file.
        file: PathBuf,
        /// The record, from 0.
        record: usize,
        /// "label", "coarse label" or "fine label".
        kind: &'static str,
        /// The byte found.
        value: u8,
        /// The largest allowed.
        max: u8,
    },
    /// A text file without a single row.
    #[error("{} is empty", .file.display())]
    Empty {
        /// The file.
        file: PathBuf,
    },
    /// A row with too few or too many columns.
    #[error("{}, line {line}: {found} columns instead of {expected}", .file.display())]
    Columns {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: u64,
        /// Columns found.
        found: usize,
        /// Columns expected.
        expected: usize,
    },
    /// A value in a text file that is not an integer in its range.
    #[error("{}, line {line}, column {column}: {kind} {value:?} is not an integer from 0 to {max}", .file.display())]
    Value {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The column, from 1.
        column: usize,
        /// "pixel" or "label".
        kind: &'static str,
        /// The text found.
        value: String,
        /// The largest allowed.
        max: u8,
    },
    /// A text file with another number of rows than the data set has.
    #[error("{} has {found} rows instead of {expected}; {hint}", .file.display())]
    Rows {
        /// The file.
        file: PathBuf,
        /// Rows found.
        found: usize,
        /// Rows expected.
        expected: usize,
        /// What to do.
        hint: String,
    },
    /// A picture that cannot be decoded.
    #[error("{}: {reason}", .file.display())]
    Picture {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A picture that takes more memory to decode than there is.
    #[error(
        "{}: {width}x{height} pixels take {} MB of memory to decode, more than the {} MB there are; make the picture \
         smaller, take it out of the folder, or allow more memory",
        .file.display(),
        bytes.div_ceil(1_000_000),
        most / 1_000_000
    )]
    Memory {
        /// The file.
        file: PathBuf,
        /// Pixels in a row, as its header says.
        width: u64,
        /// Rows.
        height: u64,
        /// Bytes that decoding takes.
        bytes: u64,
        /// Bytes that it may take.
        most: u64,
    },
    /// A folder of pictures that is not laid out as one.
    #[error("{}: {problem}", .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What is wrong and what it must be.
        problem: String,
    },
    /// An argument that makes no sense, with its value and what it must be.
    #[error("{0}")]
    Argument(String),
    /// Settings out of their ranges.
    #[error(transparent)]
    Recipe(#[from] run_record::RecipeErrors),
    /// Somebody wanted it to stop.
    #[error("reading was stopped")]
    Stopped,
    /// libtorch refused an operation: out of memory, or a device that is not there.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}
