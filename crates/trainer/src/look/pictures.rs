//! Pictures as a person names them: files, folders, patterns, standard input.

use std::ffi::OsStr;
use std::fs;
use std::io::{Cursor, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use data_cifar::{DataError, PICTURE_EXTENSIONS, RgbImage, decode};
use image::metadata::Orientation;
use image::{DynamicImage, ImageFormat};
use walkdir::WalkDir;

use crate::process::memory;

/// Bytes of the largest file that is taken for a picture; PIL's largest picture, uncompressed, is half of it.
const LONGEST: u64 = 1 << 30;

/// One picture that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Picture {
    /// In a file.
    File(PathBuf),
    /// Read from standard input.
    Bytes(Vec<u8>),
}

/// What could not be read, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// The file or the argument.
    pub name: String,
    /// Why, and what to do.
    pub problem: String,
}

/// A picture in memory.
#[derive(Debug)]
pub struct Upright {
    /// Its pixels.
    pub image: RgbImage,
    /// What was done to it that its owner may want to know.
    pub remarks: Vec<&'static str>,
}

/// What arguments name.
#[derive(Debug, Default)]
pub struct Found {
    /// Pictures and what was not found, in order.
    pub pictures: Vec<Result<Picture, Unread>>,
    /// What is worth saying.
    pub notes: Vec<String>,
}

impl Picture {
    /// What it is called.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Bytes(_) => "-".to_owned(),
        }
    }

    /// Decodes it and turns it upright.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn read(&self) -> Result<Upright, Unread> {
        let unread = |problem: String| Unread { name: self.name(), problem };
        match self {
            Self::File(path) => read_file(path).and_then(|bytes| upright(&bytes)).map_err(unread),
            Self::Bytes(bytes) => upright(bytes).map_err(unread),
        }
    }
}

impl Found {
    /// The pictures that `arguments` name: files; folders, for all files in them that are named like pictures; patterns
    /// that no file is called; and `-` for what `input` holds: the bytes of one picture, or paths, a line each (or each
    /// ended by a zero byte). Paths in `input` are those of files and folders.
    pub fn new(arguments: &[PathBuf], input: impl Read) -> Self {
        let mut found = Self::default();
        let mut input = Some(input);
        for argument in arguments {
            match (argument.as_os_str() == "-", input.take_if(|_| argument.as_os_str() == "-")) {
                (true, Some(input)) => found.add_input(input),
                (true, None) => {}
                (false, _) => found.add(argument),
            }
        }
        found
    }

    fn add(&mut self, path: &Path) {
        let about = match fs::metadata(path) {
            Ok(about) => about,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return self.add_pattern(path),
            Err(error) => return self.miss(path, error.to_string()),
        };
        if !about.is_dir() {
            return self.pictures.push(Ok(Picture::File(path.to_owned())));
        }
        let (before, mut others) = (self.pictures.len(), 0);
        for entry in WalkDir::new(path).follow_links(true).sort_by_file_name() {
            match entry {
                Ok(entry) if entry.file_type().is_dir() => {}
                Ok(entry) if is_named_like_a_picture(entry.path()) => {
                    self.pictures.push(Ok(Picture::File(entry.into_path())));
                }
                Ok(_) => others += 1,
                Err(error) => {
                    let place = error.path().unwrap_or(path).to_owned();
                    self.miss(&place, error.to_string());
                }
            }
        }
        if others > 0 {
            self.notes.push(format!(
                "{}: passed over {others} files that are not named like pictures",
                path.display()
            ));
        }
        if self.pictures.len() == before {
            self.miss(path, format!("no picture in this folder ({})", PICTURE_EXTENSIONS.join(", ")));
        }
    }

    fn add_pattern(&mut self, pattern: &Path) {
        let text = pattern.to_str().filter(|text| text.contains(['*', '?', '[']));
        let Some(text) = text else { return self.miss(pattern, "there is no such file".to_owned()) };
        let matches = match glob::glob(text) {
            Ok(matches) => matches,
            Err(error) => return self.miss(pattern, format!("no file, and no pattern either: {error}")),
        };
        let before = self.pictures.len();
        for path in matches {
            match path {
                Ok(path) => self.add(&path),
                Err(error) => self.miss(error.path(), error.error().to_string()),
            }
        }
        if self.pictures.len() == before {
            self.miss(pattern, "no file matches this pattern".to_owned());
        }
    }

    fn add_input(&mut self, input: impl Read) {
        let mut bytes = Vec::new();
        let name = Path::new("-");
        if let Err(error) = input.take(LONGEST + 1).read_to_end(&mut bytes) {
            return self.miss(name, format!("standard input cannot be read: {error}"));
        }
        if bytes.is_empty() {
            return self.miss(name, "standard input is empty".to_owned());
        }
        if bytes.len() as u64 > LONGEST {
            return self.miss(name, TOO_LONG.to_owned());
        }
        let is_text = |byte: &u8| *byte >= b' ' || byte.is_ascii_whitespace() || *byte == 0;
        let start = &bytes[..bytes.len().min(1024)];
        if image::guess_format(start).is_ok() || start[0] == 0 || !start.iter().all(is_text) {
            return self.pictures.push(Ok(Picture::Bytes(bytes)));
        }
        let end = if bytes.contains(&0) { 0 } else { b'\n' };
        for line in bytes.split(|byte| *byte == end) {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if !line.is_empty() {
                self.add(Path::new(OsStr::from_bytes(line)));
            }
        }
    }

    fn miss(&mut self, name: &Path, problem: String) {
        self.pictures.push(Err(Unread { name: name.display().to_string(), problem }));
    }
}

const TOO_LONG: &str = "longer than 1 GiB, which no picture is that can be decoded";

fn is_named_like_a_picture(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    extension.is_some_and(|extension| PICTURE_EXTENSIONS.contains(&extension.as_str()))
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let about = fs::metadata(path).map_err(|error| error.to_string())?;
    // Reading a pipe that nobody writes to would wait, and a device may never end.
    if !about.is_file() {
        return Err("this is not a regular file; - reads a picture from standard input".to_owned());
    }
    if about.len() > LONGEST {
        return Err(TOO_LONG.to_owned());
    }
    fs::read(path).map_err(|error| error.to_string())
}

fn upright(bytes: &[u8]) -> Result<Upright, String> {
    let image = decode(bytes, Path::new(""), memory::most()).map_err(|error| match error {
        DataError::Picture { reason, .. } => reason,
        // Without the name of a file.
        other => other.to_string().trim_start_matches(": ").to_owned(),
    })?;
    let mut remarks: Vec<&'static str> = special(bytes).into_iter().collect();
    let Some((orientation, turned)) = orientation(bytes) else {
        return Ok(Upright { image, remarks });
    };
    remarks.push(turned);
    let RgbImage { width, height, pixels } = image;
    let picture = image::RgbImage::from_raw(width, height, pixels).ok_or("its pixels are not all there")?;
    let mut picture = DynamicImage::from(picture);
    picture.apply_orientation(orientation);
    let picture = picture.into_rgb8();
    let (width, height) = picture.dimensions();
    Ok(Upright { image: RgbImage { width, height, pixels: picture.into_raw() }, remarks })
}

/// What of a picture is left out or converted, for the kinds of which that is easily overlooked.
fn special(bytes: &[u8]) -> Option<&'static str> {
    match image::guess_format(bytes).ok()? {
        ImageFormat::Gif => {
            let mut options = gif::DecodeOptions::new();
            options.skip_frame_decoding(true);
            let mut frames = options.read_info(bytes).ok()?;
            let second = frames.next_frame_info().is_ok() && matches!(frames.next_frame_info(), Ok(Some(_)));
            second.then_some("an animation; its first picture is taken")
        }
        // The bit depth is the first byte after width and height.
        ImageFormat::Png if bytes.get(24) == Some(&16) => Some("16 bits a colour; the upper 8 are taken"),
        ImageFormat::Jpeg if jpeg_colours(bytes) == Some(4) => {
            Some("CMYK; converted without a colour profile")
        }
        _ => None,
    }
}

/// How many colours a JPEG's frame header says there are.
fn jpeg_colours(bytes: &[u8]) -> Option<u8> {
    let mut at = 2;
    loop {
        let &[0xff, marker, high, low] = bytes.get(at..)?.first_chunk()? else { return None };
        // A frame's header, and not a table of Huffman or arithmetic codes or a JPEG extension.
        if matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc) {
            return bytes.get(at + 9).copied();
        }
        at += 2 + usize::from(u16::from_be_bytes([high, low]));
    }
}

/// How a JPEG, PNG or WebP file says that it is to be turned (Exif), in words too. A TIFF is decoded upright.
fn orientation(bytes: &[u8]) -> Option<(Orientation, &'static str)> {
    if matches!(image::guess_format(bytes), Ok(ImageFormat::Tiff)) {
        return None;
    }
    let exif = exif::Reader::new().read_from_container(&mut Cursor::new(bytes)).ok()?;
    let field = exif.get_field(exif::Tag::Orientation, exif::In::PRIMARY)?;
    let orientation = Orientation::from_exif(u8::try_from(field.value.get_uint(0)?).ok()?)?;
    let words = match orientation {
        Orientation::NoTransforms => return None,
        Orientation::Rotate90 => "turned clockwise by 90 degrees, as its Exif orientation says",
        Orientation::Rotate180 => "turned by 180 degrees, as its Exif orientation says",
        Orientation::Rotate270 => "turned counter-clockwise by 90 degrees, as its Exif orientation says",
        Orientation::FlipHorizontal | Orientation::FlipVertical => "mirrored, as its Exif orientation says",
        Orientation::Rotate90FlipH | Orientation::Rotate270FlipH => {
            "turned by 90 degrees and mirrored, as its Exif orientation says"
        }
    };
    Some((orientation, words))
}
