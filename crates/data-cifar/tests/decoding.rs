//! Pictures against PIL, torchvision and timm: `docs/parity/decoding.py` made the files and what is expected of
//! them, with Pillow 13.0.0, torchvision 0.29.2 and timm 1.0.31.

#![allow(clippy::unwrap_used)] // helpers of tests are not recognised as such

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use data_cifar::{DataError, RgbImage, decode, fit};
use proptest::prelude::*;
use run_record::{CropMode, Interpolation};
use safetensors::SafeTensors;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The pictures whose name begins with `prefix`, without it.
fn expected(prefix: &str) -> BTreeMap<String, RgbImage> {
    let bytes = fs::read(golden().join("decoding.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let pictures = tensors.iter().filter_map(|(name, tensor)| {
        let &[height, width, 3] = tensor.shape() else { panic!("{name}: {:?}", tensor.shape()) };
        let image = RgbImage { width: width as u32, height: height as u32, pixels: tensor.data().to_vec() };
        Some((name.strip_prefix(prefix)?.to_owned(), image))
    });
    pictures.collect()
}

fn file(name: &str) -> Vec<u8> {
    fs::read(golden().join("decoding").join(name)).unwrap()
}

fn decoded(bytes: &[u8]) -> Result<RgbImage, String> {
    decode(bytes, Path::new("picture"), u64::MAX).map_err(|error| error.to_string())
}

/// Largest difference, and how many of the values differ.
fn difference(a: &RgbImage, b: &RgbImage) -> (u8, f64) {
    assert_eq!((a.width, a.height, a.pixels.len()), (b.width, b.height, b.pixels.len()));
    let differences: Vec<u8> = a.pixels.iter().zip(&b.pixels).map(|(a, b)| a.abs_diff(*b)).collect();
    let count = differences.iter().filter(|&&difference| difference > 0).count();
    (differences.iter().copied().max().unwrap_or(0), count as f64 / differences.len() as f64)
}

#[test]
fn pixels_are_those_of_pil() {
    let expected = expected("pixels/");
    assert_eq!(expected.len(), 101);
    for (name, image) in expected {
        let (largest, share) = difference(&decoded(&file(&name)).unwrap(), &image);
        assert_eq!(largest, 0, "{name}: {share} of the values");
    }
}

#[test]
fn the_content_says_what_a_file_is() {
    for (name, wrong) in
        [("png_rgb.png", "a.jpg"), ("gif.gif", "a.tiff"), ("tiff.tif", "a"), ("bmp_rgb.bmp", "a.webp")]
    {
        assert_eq!(decode(&file(name), Path::new(wrong), u64::MAX).unwrap(), decoded(&file(name)).unwrap());
    }
    let box_of = |brands: &[u8]| [&[0, 0, 0, 8 + brands.len() as u8], &b"ftyp"[..], brands, b"more"].concat();
    for (bytes, reason) in [
        (b"".to_vec(), "empty"),
        (vec![0; 500], "nothing but zeros; copy it anew"),
        (box_of(b"avif\0\0\0\0mif1"), "an AVIF picture, which is not read; convert it to JPEG or PNG"),
        (box_of(b"mif1\0\0\0\0avif"), "an AVIF picture, which is not read; convert it to JPEG or PNG"),
        (box_of(b"heic\0\0\0\0mif1"), "a HEIC (HEIF) picture, which is not read; convert it to JPEG or PNG"),
        (box_of(b"mif1\0\0\0\0heic"), "a HEIC (HEIF) picture, which is not read; convert it to JPEG or PNG"),
        (box_of(b"isom\0\0\0\0mp42"), "a video, which is not read; convert it to JPEG or PNG"),
        (b"\xff\x0a\xfa\x1f".to_vec(), "a JPEG XL picture, which is not read; convert it to JPEG or PNG"),
        (
            b"\0\0\0\x0cJXL \r\n\x87\n".to_vec(),
            "a JPEG XL picture, which is not read; convert it to JPEG or PNG",
        ),
        (
            b"\0\0\0\x0cjP  \r\n\x87\n".to_vec(),
            "a JPEG 2000 picture, which is not read; convert it to JPEG or PNG",
        ),
        (b"8BPS\0\x01".to_vec(), "a Photoshop document, which is not read; convert it to JPEG or PNG"),
        (b"%PDF-1.7\n".to_vec(), "a PDF document, which is not read; convert it to JPEG or PNG"),
        (b"P6\n1 1\n255\nabc".to_vec(), "a PPM picture, which is not read; convert it to JPEG or PNG"),
        ([&[0; 128][..], b"DICM"].concat(), "a DICOM picture, which is not read; convert it to JPEG or PNG"),
        (b"PK\x03\x04\0".to_vec(), "an archive or compressed file; unpack it"),
        (
            b"\xef\xbb\xbf <?xml version='1.0'?><svg/>".to_vec(),
            "an SVG drawing, which is not read; convert it to PNG",
        ),
        (b"\n<!DOCTYPE HTML><svg/>".to_vec(), "an HTML page in place of the picture; download it anew"),
        (b"<HTML>404".to_vec(), "an HTML page in place of the picture; download it anew"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n".to_vec(),
            "a Git LFS pointer in place of the picture; fetch it with git lfs pull",
        ),
        ("Überraschung\n".into(), "text, not a picture"),
        (
            b"\n\xff\xd8\xff\xe0\0\x10JFIF".to_vec(),
            "none of JPEG, PNG, WebP, BMP, GIF and TIFF: it begins with the bytes 0a ff d8 ff e0 00 10 4a",
        ),
    ] {
        assert_eq!(decoded(&bytes).unwrap_err(), format!("picture: {reason}"));
    }
}

/// As in PIL: a file is a picture only with all of its pixels, for most JPEGs to the last byte.
#[test]
fn truncated_files_are_errors() {
    for (name, most) in [
        ("jpeg_420.jpg", 1),
        ("jpeg_444.jpg", 1),
        ("jpeg_grey.jpg", 3), // its pixels are complete without the end-of-image marker
        ("jpeg_cmyk.jpg", 1),
        ("jpeg_progressive.jpg", 1),
        ("jpeg_arithmetic.jpg", 3), // its decoder takes zeros for the last bits, as PIL's does
        ("jpeg_restart.jpg", 1),
        ("png_rgb.png", 13),
        ("png_interlaced.png", 13),
        ("bmp_rgb.bmp", 2),
        ("bmp_565.bmp", 2),
        ("webp_lossless.webp", 2),
        ("gif.gif", 5),
        ("gif_interlaced.gif", 5),
        ("tiff_tiles.tif", 1),
        ("tiff_lzw.tif", 1),
    ] {
        let bytes = file(name);
        for length in 0..=bytes.len() - most {
            let result = decoded(&bytes[..length]);
            assert!(result.is_err(), "{name}: {length} of {} bytes", bytes.len());
        }
        if !name.starts_with("tiff") {
            // The tags, which are at a TIFF's end, are missed first.
            assert_eq!(decoded(&bytes[..bytes.len() / 2]).unwrap_err(), "picture: truncated", "{name}");
        }
    }
}

/// A picture of a few bytes whose header claims another size.
fn claiming(name: &str, [width, height]: [u16; 2]) -> Vec<u8> {
    let mut bytes = file(name);
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let little = [width.to_le_bytes(), height.to_le_bytes()];
    let big = [width.to_be_bytes(), height.to_be_bytes()];
    match name.split('_').next().unwrap() {
        "jpeg" => {
            let frame = file(name).windows(2).position(|bytes| bytes == [0xff, 0xc0]).unwrap();
            put(frame + 5, &[big[1], big[0]].concat());
        }
        "png" => {
            put(16, &[&[0, 0], &big[0][..], &[0, 0], &big[1]].concat());
            let crc = crc32(&bytes[12..29]);
            bytes[29..33].copy_from_slice(&crc.to_be_bytes());
        }
        "bmp" => put(18, &[&little[0][..], &[0, 0], &little[1], &[0, 0]].concat()),
        "webp" => put(24, &[&little[0][..], &[0], &little[1], &[0]].concat()), // of the canvas, less 1
        "gif" => put(6, &little.concat()),
        _ => {
            // Width, height and the rows of the only strip are the values of these tags.
            let tags = u32::from_le_bytes(*file(name)[4..].first_chunk().unwrap()) as usize + 2;
            put(tags + 8, &little[0]);
            put(tags + 12 + 8, &little[1]);
            put(tags + 7 * 12 + 8, &little[1]);
        }
    }
    bytes
}

/// The message about it.
fn refused(name: &str, size: [u16; 2]) -> String {
    decoded(&claiming(name, size)).unwrap_err()
}

#[test]
fn enormous_pictures_are_errors() {
    for (name, side) in [
        ("jpeg_420.jpg", 65000),
        ("png_rgb.png", 65000),
        ("bmp_rgb.bmp", 65000),
        ("webp_animated.webp", 65001),
        ("gif_small_on_screen.gif", 65000),
        ("tiff_grey_8bit.tif", 65000),
    ] {
        let expected = format!("picture: claims {side}x{side} pixels; the most is 178956970, as in PIL");
        assert_eq!(refused(name, [65000; 2]), expected, "{name}");
    }
}

/// Fewer pixels than PIL refuses, and none of them are there: before they are missed, memory would be taken for all.
#[test]
fn pictures_that_take_more_memory_than_there_is_are_named() {
    for (name, side, bytes_per_pixel) in [
        ("jpeg_420.jpg", 13_000, 9),
        ("png_rgb.png", 13_000, 3),
        ("png_16bit_rgb.png", 13_000, 9),
        ("bmp_rgb.bmp", 13_000, 3),
        ("webp_animated.webp", 13_001, 3),
        ("gif_small_on_screen.gif", 13_000, 4),
        ("tiff_grey_8bit.tif", 13_000, 4),
    ] {
        let bytes = claiming(name, [13_000; 2]);
        let message = decode(&bytes, Path::new("some/picture"), 256 << 20).unwrap_err().to_string();
        let megabytes = (side * side * bytes_per_pixel as usize).div_ceil(1_000_000);
        let expected = format!(
            "some/picture: {side}x{side} pixels take {megabytes} MB of memory to decode, more than the 268 MB there are"
        );
        assert!(message.starts_with(&expected), "{name}: {message}");
    }
    let (bytes, [width, height]) = (file("png_rgb.png"), {
        let picture = decoded(&file("png_rgb.png")).unwrap();
        [picture.width, picture.height].map(u64::from)
    });
    let with = |memory| decode(&bytes, Path::new("picture"), memory);
    assert!(with(3 * width * height).is_ok());
    assert!(matches!(with(3 * width * height - 1), Err(DataError::Memory { .. })));
}

#[test]
fn pictures_without_pixels_are_errors() {
    for name in ["png_rgb.png", "bmp_rgb.bmp"] {
        assert_eq!(refused(name, [0, 7]), "picture: has no pixels: 0x7", "{name}");
        assert_eq!(refused(name, [7, 0]), "picture: has no pixels: 7x0", "{name}");
    }
    assert_eq!(refused("jpeg_420.jpg", [7, 0]), "picture: libjpeg: Empty JPEG image (DNL not supported)");
    assert_eq!(
        refused("tiff_grey_8bit.tif", [0, 7]),
        "picture: damaged: format error: invalid dimensions: 0x7"
    );
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
    })
}

#[test]
fn squares_are_those_of_timm() {
    let sources = expected("source/");
    let squares = expected("fit/");
    assert_eq!(squares.len(), 72);
    for (name, image) in squares {
        let [source, mode, filter, side] = name.split('/').collect::<Vec<_>>()[..] else { panic!("{name}") };
        let crop_mode = match mode {
            "center" => CropMode::Center,
            "squash" => CropMode::Squash,
            _ => CropMode::Border,
        };
        let filter = if filter == "bicubic" { Interpolation::Bicubic } else { Interpolation::Bilinear };
        let square =
            fit(sources[source].clone(), side.parse().unwrap(), crop_mode, [9, 99, 199], filter).unwrap();
        assert_eq!(difference(&square, &image), (0, 0.0), "{name}");
    }
}

/// Whatever a file claims in any of its fields, it takes no more than the largest picture does.
#[cfg(target_os = "linux")]
#[test]
fn no_claim_takes_unbounded_memory() {
    let before = peak_memory();
    for entry in fs::read_dir(golden().join("decoding")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        // Headers are at the start, a TIFF's tags at the end.
        for at in (0..bytes.len() - 4).filter(|at| *at < 64 || at + 200 > bytes.len()) {
            let mut claims = bytes.clone();
            claims[at..at + 4].fill(0xff);
            let _ = decoded(&claims);
        }
        let taken = peak_memory() - before;
        assert!(taken < 4 << 30, "{}: {taken} bytes", path.display());
    }
}

/// The most address space that this process has had, in bytes, used or not.
#[cfg(target_os = "linux")]
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    1024 * line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
}

#[derive(Debug, Clone)]
enum Damage {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<prop::sample::Index>(), 1u8..).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        1 => any::<prop::sample::Index>().prop_map(Damage::Cut),
        1 => (any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 1..9))
            .prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..Default::default() })]

    #[test]
    fn damaged_files_never_panic(
        which in any::<prop::sample::Index>(),
        damages in prop::collection::vec(damage(), 1..6),
    ) {
        let mut names: Vec<_> =
            fs::read_dir(golden().join("decoding")).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        let mut bytes = fs::read(which.get(&names)).unwrap();
        for damage in damages {
            match damage {
                _ if bytes.is_empty() => {}
                Damage::Flip(at, bits) => {
                    let at = at.index(bytes.len());
                    bytes[at] ^= bits;
                }
                Damage::Cut(at) => bytes.truncate(at.index(bytes.len())),
                Damage::Insert(at, more) => {
                    let at = at.index(bytes.len());
                    bytes.splice(at..at, more);
                }
            }
        }
        if let Ok(image) = decoded(&bytes) {
            prop_assert_eq!(image.pixels.len(), 3 * image.width as usize * image.height as usize);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        start in prop::sample::select(vec![
            &b""[..],
            b"\xff\xd8\xff",
            b"\x89PNG\r\n\x1a\n",
            b"BM",
            b"RIFF\x40\0\0\0WEBPVP8L",
            b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\x12\0\0\0",
            b"GIF89a",
            b"II*\0\x08\0\0\0",
            b"MM\0+\0\x08\0\0\0\0\0\0\0\0\0\x10",
            b"\0\0\0\x20ftyp",
        ]),
        rest in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let _ = decoded(&[start, &rest].concat());
    }

    #[test]
    fn any_picture_becomes_a_square(width in 1u32..50, height in 1u32..50, side in 1u32..40, mode in 0..3) {
        let mode = [CropMode::Center, CropMode::Squash, CropMode::Border][mode as usize];
        for filter in [Interpolation::Bilinear, Interpolation::Bicubic] {
            // A picture of one colour stays one, border included.
            let image = RgbImage { width, height, pixels: vec![77; (3 * width * height) as usize] };
            let square = fit(image, side, mode, [77; 3], filter).unwrap();
            prop_assert_eq!((square.width, square.height), (side, side));
            prop_assert!(square.pixels.iter().all(|&value| value == 77));
        }
    }
}
