//! The first picture of a GIF, placed on its screen as PIL does it.

use std::iter::repeat;

use gif::{ColorOutput, DecodeOptions, MemoryLimit};

use super::{Source, check_size, damaged};
use crate::augment::fit::RgbImage;

pub(super) fn decode(source: Source<'_>) -> Result<RgbImage, String> {
    let watch = source.watch;
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.allow_unknown_blocks(true);
    options.set_memory_limit(MemoryLimit::Unlimited); // the size is checked before the pixels are read
    let mut decoder = options.read_info(source).map_err(damaged)?;
    let (screen_width, screen_height) = (decoder.width(), decoder.height());
    let frame = decoder.next_frame_info().map_err(damaged)?.ok_or("a GIF without a picture")?;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let frame_width = usize::from(frame.width);
    let background = frame.transparent.unwrap_or(0);
    // A picture that does not fit makes the screen larger.
    let width = usize::from(screen_width).max(left + frame_width);
    let height = usize::from(screen_height).max(top + usize::from(frame.height));
    check_size(width as u64, height as u64)?;
    watch.check_memory(width as u64, height as u64, 1 + 3)?;
    let mut indices = vec![0; decoder.buffer_size()];
    decoder.read_into_buffer(&mut indices).map_err(damaged)?;

    // As in PIL, a palette that turns every index into the same level of grey counts as none.
    let local = decoder.current_frame_info().and_then(|frame| frame.palette.as_deref());
    let palette = [local, decoder.global_palette()].into_iter().flatten().find(|palette| has_colors(palette));
    let colors: Vec<[u8; 3]> = match palette {
        Some(palette) => palette.as_chunks().0.iter().copied().chain(repeat([0; 3])).take(256).collect(),
        None => (0..=255).map(|level| [level; 3]).collect(),
    };
    let mut pixels = colors[usize::from(background)].repeat(width * height);
    if frame_width > 0 {
        let rows = pixels.chunks_exact_mut(3 * width).skip(top);
        for (row, indices) in rows.zip(indices.chunks_exact(frame_width)) {
            for (pixel, &index) in row[3 * left..].as_chunks_mut().0.iter_mut().zip(indices) {
                *pixel = colors[usize::from(index)];
            }
        }
    }
    Ok(RgbImage { width: width as u32, height: height as u32, pixels })
}

fn has_colors(palette: &[u8]) -> bool {
    palette.as_chunks::<3>().0.iter().zip(0..=255).any(|(color, level)| *color != [level; 3])
}
