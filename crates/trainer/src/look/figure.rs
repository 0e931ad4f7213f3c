//! A drawing of pictures and lines of text, written as PNG and as SVG.

use std::fmt::Write;
use std::io::Cursor;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, Rgb, RgbImage, imageops};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use crate::Error;

/// What is drawn on white paper.
#[derive(Debug, Default)]
pub struct Figure {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// What it shows, for who cannot see it.
    pub description: String,
    marks: Vec<Mark>,
}

#[derive(Debug)]
enum Mark {
    Picture { x: u32, y: u32, image: RgbImage },
    Text { x: u32, y: u32, text: String, style: Style },
}

/// How a line of text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Large, from `x` on.
    Title,
    /// From `x` on.
    Left,
    /// Up to `x`.
    Right,
}

/// Pixels from one line of text to the next.
pub const LINE: u32 = 20;

/// Pixels of the large line.
pub const TITLE: u32 = 28;

const PAPER: Rgb<u8> = Rgb([255; 3]);
const INK: Rgb<u8> = Rgb([34; 3]);

impl Style {
    fn font(self) -> (FontWeight, RasterHeight) {
        match self {
            Self::Title => (FontWeight::Bold, RasterHeight::Size20),
            Self::Left | Self::Right => (FontWeight::Regular, RasterHeight::Size16),
        }
    }

    fn character(self) -> u32 {
        let (weight, height) = self.font();
        get_raster_width(weight, height) as u32
    }
}

/// As much of a text as has room in `width` pixels, its end replaced if that is not all.
pub fn cut(text: &str, width: u32, style: Style) -> String {
    let room = (width / style.character()) as usize;
    if text.chars().count() <= room {
        return text.to_owned();
    }
    let kept: String = text.chars().take(room.saturating_sub(2)).collect();
    format!("{}..", kept.trim_end())
}

impl Figure {
    /// A figure with a title and nothing else; what is drawn begins [`TITLE`] below the margin.
    pub fn new(title: &str, description: impl Into<String>) -> Self {
        let mut figure = Self { description: description.into(), ..Self::default() };
        figure.text(MARGIN, MARGIN, Style::Title, title);
        figure
    }

    /// A picture with its upper left corner at `x`, `y`. The figure grows with it.
    pub fn picture(&mut self, x: u32, y: u32, image: RgbImage) {
        self.grow(x + image.width(), y + image.height());
        self.marks.push(Mark::Picture { x, y, image });
    }

    /// A line of text, its top at `y`. The figure grows with it.
    pub fn text(&mut self, x: u32, y: u32, style: Style, text: impl Into<String>) {
        let text = text.into();
        let width = text.chars().count() as u32 * style.character();
        self.grow(if style == Style::Right { x } else { x + width }, y + LINE);
        self.marks.push(Mark::Text { x, y, text, style });
    }

    /// Makes room up to `x`, `y` and a margin.
    pub fn grow(&mut self, x: u32, y: u32) {
        self.width = self.width.max(x + MARGIN);
        self.height = self.height.max(y + MARGIN);
    }

    /// The figure as pixels.
    pub fn sheet(&self) -> RgbImage {
        let mut sheet = RgbImage::from_pixel(self.width, self.height, PAPER);
        for mark in &self.marks {
            match mark {
                Mark::Picture { x, y, image } => {
                    imageops::replace(&mut sheet, image, (*x).into(), (*y).into())
                }
                Mark::Text { x, y, text, style } => write_text(&mut sheet, (*x, *y), text, *style),
            }
        }
        sheet
    }

    /// The figure as an SVG file. Text stays text, in the reader's own font.
    ///
    /// # Errors
    /// A picture in it that cannot be written.
    pub fn svg(&self) -> Result<String, Error> {
        let Self { width, height, description, .. } = self;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" role=\"img\" font-family=\"system-ui, sans-serif\" fill=\"#222\">\n\
             <title>{}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
            escaped(description)
        );
        for mark in &self.marks {
            match mark {
                Mark::Picture { x, y, image } => {
                    let (width, height, data) = (image.width(), image.height(), STANDARD.encode(png(image)?));
                    // Writing to a string cannot fail.
                    let _ = writeln!(
                        svg,
                        "<image x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" \
                         href=\"data:image/png;base64,{data}\"/>"
                    );
                }
                Mark::Text { x, y, text, style } => {
                    let (size, weight, anchor) = match style {
                        Style::Title => (18, "bold", "start"),
                        Style::Left => (14, "normal", "start"),
                        Style::Right => (14, "normal", "end"),
                    };
                    let _ = writeln!(
                        svg,
                        "<text x=\"{x}\" y=\"{}\" font-size=\"{size}\" font-weight=\"{weight}\" \
                         text-anchor=\"{anchor}\">{}</text>",
                        y + size,
                        escaped(text)
                    );
                }
            }
        }
        svg.push_str("</svg>\n");
        Ok(svg)
    }
}

/// White around everything.
pub const MARGIN: u32 = 16;

/// A picture as a PNG file.
///
/// # Errors
/// One that is too large.
pub fn png(image: &RgbImage) -> Result<Vec<u8>, Error> {
    let mut png = Cursor::new(Vec::new());
    image
        .write_to(&mut png, ImageFormat::Png)
        .map_err(|error| Error::Training(format!("a figure cannot be written as PNG: {error}")))?;
    Ok(png.into_inner())
}

/// What the font lacks becomes a question mark.
fn write_text(sheet: &mut RgbImage, (x, y): (u32, u32), text: &str, style: Style) {
    let (weight, size) = style.font();
    let width = style.character();
    let left = if style == Style::Right { x.saturating_sub(text.chars().count() as u32 * width) } else { x };
    for (column, character) in (0..).zip(text.chars()) {
        let raster = get_raster(character, weight, size).or_else(|| get_raster('?', weight, size));
        let rows = raster.iter().flat_map(|raster| raster.rows());
        for (dy, row) in (0..).zip(rows) {
            for (dx, ink) in (0..).zip(row.iter()) {
                let (x, y) = (left + column * width + dx, y + dy);
                if x < sheet.width() && y < sheet.height() {
                    let pixel = sheet.get_pixel_mut(x, y);
                    let ink = f64::from(*ink) / 255.0;
                    for (value, of_ink) in pixel.0.iter_mut().zip(INK.0) {
                        *value = (f64::from(*value) * (1.0 - ink) + f64::from(of_ink) * ink).round() as u8;
                    }
                }
            }
        }
    }
}

/// Text inside an SVG file, which may hold no control characters.
fn escaped(text: &str) -> String {
    let text = run_record::visible(text);
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_holds_its_pictures_and_text() {
        let mut figure = Figure { description: "a <b> & \"c\"".to_owned(), ..Figure::default() };
        figure.picture(16, 40, RgbImage::from_pixel(30, 10, Rgb([1, 2, 3])));
        figure.text(16, 16, Style::Left, "\u{e9}\u{1f33b}<");
        figure.text(100, 60, Style::Right, "ab");
        let png = figure.sheet();
        assert_eq!(png.dimensions(), (116, 96));
        assert_eq!((png.get_pixel(16, 40).0, png.get_pixel(45, 49).0), ([1, 2, 3], [1, 2, 3]));
        assert_eq!(png.get_pixel(46, 49).0, [255; 3]);
        let ink = |from: u32, to: u32, top: u32| {
            (from..to)
                .flat_map(|x| (top..top + 18).map(move |y| (x, y)))
                .filter(|(x, y)| png.get_pixel(*x, *y).0[0] < 128)
                .count()
        };
        assert!(ink(16, 60, 16) > 20 && ink(70, 100, 60) > 20 && ink(100, 116, 60) == 0);
        let svg = figure.svg().unwrap();
        assert!(svg.contains("<title>a &lt;b&gt; &amp; &quot;c&quot;</title>"), "{svg}");
        assert!(
            svg.contains("\u{e9}\u{1f33b}&lt;</text>") && svg.contains("text-anchor=\"end\">ab<"),
            "{svg}"
        );
        assert!(svg.contains(
            "<image x=\"16\" y=\"40\" width=\"30\" height=\"10\" href=\"data:image/png;base64,iVBOR"
        ));
    }

    #[test]
    fn what_has_no_room_is_cut() {
        let width = Style::Left.character();
        assert_eq!(cut("abcdef", 6 * width, Style::Left), "abcdef");
        assert_eq!(cut("abcdef", 5 * width, Style::Left), "abc..");
        assert_eq!(cut("abcdef", 0, Style::Left), "..");
    }
}
