//! A directory to upload to a model hub as it is: tensors that say all of themselves, an ONNX file that takes pixels, and a
//! model card with lines that run there.

use std::fs;
use std::path::Path;

use run_record::write_atomically;

use crate::Error;
use crate::export::card;
use crate::export::timm::WEIGHTS;

/// The ONNX file of the card's lines.
const ONNX: &str = "network.onnx";

/// Writes the directory; `save` writes the tensors. The card, which speaks of the others, comes last.
///
/// # Errors
/// What `save` answers, or a directory that cannot be written.
pub fn write(
    directory: &Path,
    save: impl FnOnce(&Path) -> Result<(), Error>,
    onnx: &[u8],
    card: &str,
) -> Result<(), Error> {
    fs::create_dir_all(directory).map_err(Error::io(directory))?;
    save(&directory.join(WEIGHTS))?;
    for (name, bytes) in [(ONNX, onnx), (card::FILE, card.as_bytes())] {
        let path = directory.join(name);
        write_atomically(&path, bytes).map_err(Error::io(&path))?;
    }
    Ok(())
}
