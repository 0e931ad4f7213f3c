//! A run's pictures in the page: those there is room for inside it, and links to the others.

use std::fs;
use std::io::Cursor;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use run_record::layout::FIGURES;
use serde::Serialize;

use crate::Error;
use crate::runs::Run;

/// Bytes of pictures that the page holds, of all runs together; others are linked.
pub const PICTURES: usize = 1_900_000;

/// Of a JPEG in the page; the run keeps the PNG.
const QUALITY: f32 = 80.0;

#[derive(Serialize)]
pub struct Picture {
    about: String,
    source: String,
    /// Address of the file.
    file: String,
    is_embedded: bool,
}

/// Mistakes and the batch first, then explanations, the latest before earlier ones; what has no room is linked. Files are
/// at `address`, seen from the page.
///
/// # Errors
/// A picture that cannot be read.
pub fn pictures(run: &Run, address: &dyn Fn(&str) -> String, mut room: usize) -> Result<Vec<Picture>, Error> {
    let is_first = |name: &&String| matches!(name.as_str(), "mistakes.png" | "batch.png");
    let (mut names, mut others): (Vec<&String>, Vec<&String>) = run.pictures.iter().partition(is_first);
    names.reverse();
    others.reverse();
    let mut pictures = Vec::new();
    for name in names.into_iter().chain(others) {
        let path = run.dir.join(FIGURES).join(name);
        let bytes = fs::read(&path).map_err(Error::io(&path))?;
        let (kind, bytes) = match as_jpeg(&bytes).filter(|jpeg| jpeg.len() < bytes.len()) {
            Some(jpeg) => ("jpeg", jpeg),
            None => ("png", bytes),
        };
        let is_embedded = bytes.len() * 4 / 3 <= room;
        let file = address(name);
        let source = if is_embedded {
            room -= bytes.len() * 4 / 3;
            format!("data:image/{kind};base64,{}", STANDARD.encode(&bytes))
        } else {
            file.clone()
        };
        pictures.push(Picture { about: about(name), source, file, is_embedded });
    }
    Ok(pictures)
}

/// A PNG of 8-bit RGB as a JPEG without less of colour than of light; nothing of any other file.
fn as_jpeg(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info().ok()?;
    let mut pixels = vec![0; reader.output_buffer_size()?];
    let picture = reader.next_frame(&mut pixels).ok()?;
    if (picture.color_type, picture.bit_depth) != (png::ColorType::Rgb, png::BitDepth::Eight) {
        return None;
    }
    let mut jpeg = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
    jpeg.set_size(picture.width as usize, picture.height as usize);
    jpeg.set_quality(QUALITY);
    jpeg.set_chroma_sampling_pixel_sizes((1, 1), (1, 1));
    let mut jpeg = jpeg.start_compress(Vec::new()).ok()?;
    jpeg.write_scanlines(&pixels[..picture.buffer_size()]).ok()?;
    jpeg.finish().ok()
}

fn about(name: &str) -> String {
    let stem = name.trim_end_matches(".png");
    let (kind, epoch) = match stem.rsplit_once('-') {
        Some((kind, digits)) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            (kind, format!(", epoch {}", digits.trim_start_matches('0')))
        }
        _ => (stem, String::new()),
    };
    let what = match kind {
        "mistakes" => "Most confident mistakes on test images, with true and given class".to_owned(),
        "batch" => "Images of the first training batch beside what the network saw of them".to_owned(),
        "explain" => "What the network looks at in validation pictures".to_owned(),
        "positions" => "Similarity of position embeddings".to_owned(),
        kind => kind.replace('-', " "),
    };
    what + &epoch
}
