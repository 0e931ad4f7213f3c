//! Pictures against PIL, torchvision and timm: `docs/parity/decoding.py` made the files and what is expected of
//! them, with Pillow 13.0.0, torchvision 0.26.0 and timm 1.0.31.

#![allow(clippy::unwrap_used)] // helpers of tests are not recognised as such

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use data_cifar::{CropMode, Filter, RgbImage, decode, fit};
use proptest::prelude::*;
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
    decode(bytes, Path::new("picture")).map_err(|error| error.to_string())
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
    assert_eq!(expected.len(), 34);
    for (name, image) in expected {
        let (largest, share) = difference(&decoded(&file(&name)).unwrap(), &image);
        assert_eq!(largest, 0, "{name}: {share} of the values");
    }
}

#[test]
fn the_content_says_what_a_file_is() {
    let png = decoded(&file("png_rgb.png")).unwrap();
    assert_eq!(decode(&file("png_rgb.png"), Path::new("wrong.jpg")).unwrap(), png);
    for (bytes, part) in [
        (&b""[..], "picture: empty"),
        (b"GIF89a and more", "not a JPEG, PNG, WebP or BMP"),
        (b"<html>", "not a JPEG"),
        (&file("jpeg_cmyk.jpg"), "CMYK"),
    ] {
        let message = decoded(bytes).unwrap_err();
        assert!(message.contains(part), "{message}");
    }
}

/// As in PIL: without its last byte a file is no picture any more. (A BMP may have padding there, and behind
/// a WebP's or PNG's pixels there is nothing to miss.)
#[test]
fn truncated_files_are_errors() {
    for (name, most) in [
        ("jpeg_420.jpg", 1),
        ("jpeg_444.jpg", 1),
        ("jpeg_grey.jpg", 1),
        ("jpeg_progressive.jpg", 1),
        ("jpeg_restart.jpg", 1),
        ("png_rgb.png", 13),
        ("png_interlaced.png", 13),
        ("bmp_rgb.bmp", 2),
        ("webp_lossless.webp", 2),
    ] {
        let bytes = file(name);
        for length in 0..=bytes.len() - most {
            let result = decoded(&bytes[..length]);
            assert!(result.is_err(), "{name}: {length} of {} bytes", bytes.len());
        }
        let message = decoded(&bytes[..bytes.len() / 2]).unwrap_err();
        assert!(!name.starts_with("jpeg") || message == "picture: truncated", "{message}");
    }
}

/// Files of a few bytes that claim 65,000 by 65,000 pixels.
#[test]
fn enormous_pictures_are_errors() {
    let mut jpeg = file("jpeg_420.jpg");
    let frame = jpeg.windows(2).position(|bytes| bytes == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xfd, 0xe8, 0xfd, 0xe8]);
    let mut png = file("png_rgb.png");
    png[16..24].copy_from_slice(&[0, 0, 0xfd, 0xe8, 0, 0, 0xfd, 0xe8]);
    let crc = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    let mut bmp = file("bmp_rgb.bmp");
    bmp[18..26].copy_from_slice(&[0xe8, 0xfd, 0, 0, 0xe8, 0xfd, 0, 0]);
    let mut webp = file("webp_lossless.webp");
    webp[21..25].copy_from_slice(&[0xfe, 0xbf, 0xff, 0x0f]); // 16,383 x 16,383
    for bytes in [jpeg, png, bmp, webp] {
        let message = decoded(&bytes).unwrap_err();
        assert!(message.contains("pixels; the most is 100000000"), "{message}");
    }
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
            _ => CropMode::Border { fill: [9, 99, 199] },
        };
        let filter = if filter == "bicubic" { Filter::Bicubic } else { Filter::Bilinear };
        let square = fit(sources[source].clone(), side.parse().unwrap(), crop_mode, filter).unwrap();
        assert_eq!(difference(&square, &image), (0, 0.0), "{name}");
    }
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
        start in prop::sample::select(vec![&b""[..], b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF\x40\0\0\0WEBPVP8L"]),
        rest in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let _ = decoded(&[start, &rest].concat());
    }

    #[test]
    fn any_picture_becomes_a_square(width in 1u32..50, height in 1u32..50, side in 1u32..40, mode in 0..3) {
        let mode = [CropMode::Center, CropMode::Squash, CropMode::Border { fill: [77; 3] }][mode as usize];
        for filter in [Filter::Bilinear, Filter::Bicubic] {
            // A picture of one colour stays one, border included.
            let image = RgbImage { width, height, pixels: vec![77; (3 * width * height) as usize] };
            let square = fit(image, side, mode, filter).unwrap();
            prop_assert_eq!((square.width, square.height), (side, side));
            prop_assert!(square.pixels.iter().all(|&value| value == 77));
        }
    }
}
