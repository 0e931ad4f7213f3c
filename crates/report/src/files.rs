//! Charts as files for a paper or a slide: SVG, and PNG that looks the same on a machine without fonts.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree, fontdb};
use run_record::write_atomically;

use crate::Error;

/// Pixels of a PNG for each of the drawing: sharp on a slide.
const SCALE: f32 = 2.0;

/// Names of the files of a run's charts.
pub const CHARTS: [&str; 5] = ["loss", "top1", "top5", "reliability", "confusion"];

/// Where a chart is written, and how the page refers to it.
#[derive(Debug)]
pub struct Files {
    /// The directory.
    pub directory: PathBuf,
    /// Its address, seen from the page, with a slash at the end.
    pub address: String,
    /// Name of the files, without an ending.
    pub name: String,
    /// Address of the numbers that are drawn.
    pub numbers: String,
}

impl Files {
    /// Writes a drawing unless it is there already, and returns what the page links to.
    ///
    /// # Errors
    /// A drawing that is no SVG, or a file that cannot be written.
    pub fn write(&self, svg: &str) -> Result<Vec<(&'static str, String)>, Error> {
        let at = |ending: &str| self.directory.join(format!("{}.{ending}", self.name));
        let is_there = at("png").is_file() && fs::read(at("svg")).is_ok_and(|old| old == svg.as_bytes());
        if !is_there {
            fs::create_dir_all(&self.directory).map_err(Error::io(&self.directory))?;
            // The SVG last: with it, both are there.
            write(&at("png"), &png(svg)?)?;
            write(&at("svg"), svg.as_bytes())?;
        }
        let address = |ending: &str| format!("{}{}.{ending}", self.address, self.name);
        Ok(vec![("SVG", address("svg")), ("PNG", address("png")), ("CSV", self.numbers.clone())])
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write_atomically(path, bytes).map_err(Error::io(path))
}

/// The drawing as pixels.
fn png(svg: &str) -> Result<Vec<u8>, Error> {
    let broken = |error: &dyn std::fmt::Display| Error::Chart(format!("as PNG: {error}"));
    let options = Options { fontdb: fonts(), ..Options::default() };
    let tree = Tree::from_str(svg, &options).map_err(|error| broken(&error))?;
    let size = tree.size().to_int_size();
    let pixels = |length: u32| (length as f32 * SCALE) as u32;
    let mut picture =
        Pixmap::new(pixels(size.width()), pixels(size.height())).ok_or_else(|| broken(&"no pixels"))?;
    resvg::render(&tree, Transform::from_scale(SCALE, SCALE), &mut picture.as_mut());
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, picture.width(), picture.height());
    encoder.set_color(png::ColorType::Rgba);
    encoder.set_compression(png::Compression::Fast);
    // The drawing is on white, so that no pixel is transparent.
    encoder
        .write_header()
        .and_then(|mut writer| writer.write_image_data(picture.data()))
        .map_err(|error| broken(&error))?;
    Ok(bytes)
}

/// The one font, which every generic name means.
fn fonts() -> Arc<fontdb::Database> {
    static FONTS: OnceLock<Arc<fontdb::Database>> = OnceLock::new();
    let load = || {
        let mut fonts = fontdb::Database::new();
        fonts.load_font_data(epaint_default_fonts::UBUNTU_LIGHT.to_vec());
        let family = fonts.faces().next().and_then(|face| Some(face.families.first()?.0.clone()));
        fonts.set_sans_serif_family(family.unwrap_or_default());
        Arc::new(fonts)
    };
    FONTS.get_or_init(load).clone()
}
