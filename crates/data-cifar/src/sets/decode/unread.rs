//! What a file is that is no picture, or one in a format that is not read, in words.

use super::FORMATS;

/// Formats by how a file of them begins.
const PREFIXES: [(&[u8], &str); 22] = [
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"8BPS", "a Photoshop document"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"\0\0\x01\0", "an icon (ICO)"),
    (b"\0\0\x02\0", "a cursor (CUR)"),
    (b"P1\n", "a PBM picture"),
    (b"P2\n", "a PGM picture"),
    (b"P3\n", "a PPM picture"),
    (b"P4\n", "a PBM picture"),
    (b"P5\n", "a PGM picture"),
    (b"P6\n", "a PPM picture"),
    (b"qoif", "a QOI picture"),
    (b"DDS ", "a DirectDraw surface"),
    (b"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (b"#?RADIANCE", "a Radiance picture"),
    (b"SIMPLE  =", "a FITS picture"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1aE\xdf\xa3", "a video"),
];

/// Files that hold something else altogether, by how they begin.
const ARCHIVES: [&[u8]; 5] = [b"PK\x03\x04", b"\x1f\x8b", b"Rar!", b"7z\xbc\xaf", b"\xfd7zXZ"];

/// Why `bytes` are not decoded, and what to do.
pub(super) fn describe(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "empty".into();
    }
    if bytes.iter().all(|&byte| byte == 0) {
        return "nothing but zeros; copy it anew".into();
    }
    let picture = iso_media(bytes).or_else(|| {
        let known = PREFIXES.iter().find(|(prefix, _)| bytes.starts_with(prefix));
        known
            .map(|(_, what)| *what)
            .or_else(|| (bytes.get(128..132)? == b"DICM").then_some("a DICOM picture"))
    });
    if let Some(what) = picture {
        return format!("{what}, which is not read; convert it to JPEG or PNG");
    }
    if ARCHIVES.iter().any(|prefix| bytes.starts_with(prefix)) {
        return "an archive or compressed file; unpack it".into();
    }
    if let Some(what) = text(bytes) {
        return what.into();
    }
    let start: Vec<String> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("none of {FORMATS}: it begins with the bytes {}", start.join(" "))
}

/// Pictures and videos in the container of MPEG-4: behind `ftyp` the chief brand, its version, and the others.
fn iso_media(bytes: &[u8]) -> Option<&'static str> {
    if bytes.get(4..8)? != b"ftyp" {
        return None;
    }
    let length = u32::from_be_bytes(*bytes.first_chunk()?) as usize;
    let brands = bytes.get(8..length.min(bytes.len()))?.as_chunks::<4>().0;
    let has = |names: &[&[u8; 4]]| brands.iter().any(|brand| names.contains(&brand));
    Some(if has(&[b"avif", b"avis"]) {
        "an AVIF picture"
    } else if has(&[b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"]) {
        "a HEIC (HEIF) picture"
    } else {
        "a video"
    })
}

fn text(bytes: &[u8]) -> Option<&'static str> {
    let start = &bytes[..bytes.len().min(1024)];
    let is_text = |byte: &u8| *byte >= b' ' || byte.is_ascii_whitespace();
    if !start.iter().all(is_text) {
        return None;
    }
    let start = String::from_utf8_lossy(start).to_lowercase();
    let start = start.trim_start_matches('\u{feff}').trim_start();
    Some(if start.starts_with("version https://git-lfs.") {
        "a Git LFS pointer in place of the picture; fetch it with git lfs pull"
    } else if start.starts_with("<!doctype html") || start.starts_with("<html") {
        "an HTML page in place of the picture; download it anew"
    } else if start.contains("<svg") {
        "an SVG drawing, which is not read; convert it to PNG"
    } else {
        "text, not a picture"
    })
}
