//! A directory to upload to a model hub as it is: tensors that say all of themselves, an ONNX file that takes pixels, and a
//! model card with lines that run there.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use run_record::write_atomically;
use tch::Tensor;

use crate::Error;
use crate::export::card;
use crate::export::timm::WEIGHTS;
use crate::network::weights;

/// The ONNX file of the card's lines.
const ONNX: &str = "network.onnx";

/// Writes the directory. The card, which speaks of the others, comes last.
///
/// # Errors
/// A directory that cannot be written.
pub fn write(
    directory: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
    onnx: &[u8],
    card: &str,
) -> Result<(), Error> {
    fs::create_dir_all(directory).map_err(Error::io(directory))?;
    weights::save_with(&directory.join(WEIGHTS), tensors, metadata)?;
    for (name, bytes) in [(ONNX, onnx), (card::FILE, card.as_bytes())] {
        let path = directory.join(name);
        write_atomically(&path, bytes).map_err(Error::io(&path))?;
    }
    Ok(())
}
