//! What a file that is not safetensors is instead, told by its content, and what to do about it.

use std::fs::{self, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use serde_json::Value;

use super::first_few;

/// Of a file that is nothing known.
pub(super) const UNKNOWN: &str = "neither a safetensors file nor a PyTorch checkpoint; expected one, as \
                                  safetensors.torch.save_file or torch.save write it";

/// What to do with a pickle that torch.save did not write.
const RESAVE: &str = "save its state_dict with torch.save or safetensors.torch.save_file and give that";

/// What to do with weights of another program.
const REWRITE: &str = "write its arrays under this network's tensor names as safetensors";

/// Bytes that are looked at, at the start and at the end.
const LOOK: u64 = 64 << 10;

/// A JSON file up to this size is read to tell what it is.
const JSON: u64 = 64 << 20;

/// Formats that begin with bytes of their own.
const MAGIC: [(&[u8], &str); 9] = [
    (b"GGUF", "a GGUF file; give the safetensors weights it was made from"),
    (b"\x1f\x8b", "compressed with gzip; unpack it and give what is inside"),
    (b"BZh", "compressed with bzip2; unpack it and give what is inside"),
    (b"\xfd7zXZ\0", "compressed with xz; unpack it and give what is inside"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it and give what is inside"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it and give what is inside"),
    (b"Rar!", "a RAR archive; unpack it and give what is inside"),
    (b"\x89PNG", "a PNG picture; expected weights"),
    (b"\xff\xd8\xff", "a JPEG picture; expected weights"),
];

/// A directory, a pipe or a device.
pub(super) fn not_a_file(path: &Path, kind: &Metadata) -> String {
    if !kind.is_dir() {
        return "neither a file nor a link to one; give a safetensors file or a PyTorch checkpoint"
            .to_owned();
    }
    let is_weights = |name: &String| name.ends_with(".safetensors");
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut weights: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(is_weights).collect();
    weights.sort();
    let such = weights.first().map_or(String::new(), |name| format!(", such as {name}"));
    format!("a directory; give a safetensors file in it{such}")
}

/// What the file is; `None` if that cannot be told.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn kind(file: &mut (impl Read + Seek), size: u64) -> io::Result<Option<String>> {
    let start = part(file, 0, LOOK)?;
    let with = |what: &str, remedy: &str| Some(format!("{what}; {remedy}"));
    if start.is_empty() {
        return Ok(with("an empty file", "copy or download it again"));
    }
    if let Some((_, kind)) = MAGIC.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Ok(Some((*kind).to_owned()));
    }
    if start.starts_with(b"PK\x03\x04") {
        let end = part(file, size.saturating_sub(LOOK), LOOK)?;
        return Ok(Some(zip(&start, &end)));
    }
    if let Some(kind) = text(file, size, &start)? {
        return Ok(Some(kind));
    }
    Ok(match start.as_slice() {
        // The first opcode of a pickle names its protocol.
        [0x80, 1..=5, ..] => with("a pickle, but not as torch.save writes it", RESAVE),
        [0x89, b'H', b'D', b'F', ..] => with("an HDF5 file, as Keras saves (.h5)", REWRITE),
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => with("a NumPy array (.npy)", REWRITE),
        [_, _, _, _, b'T', b'F', b'L', b'3', ..] => with("a TensorFlow Lite model", REWRITE),
        _ if start.get(257..262) == Some(b"ustar") => {
            with("a tar archive", "unpack it and give what is inside")
        }
        // Protocol buffers: a small version, and then another field of the message.
        [0x08, 1, 0x12, ..] => with("a TensorFlow SavedModel", REWRITE),
        [0x08, 1..=20, 0x12 | 0x1a | 0x22 | 0x28 | 0x32 | 0x3a | 0x42, ..] => with("an ONNX model", REWRITE),
        // A map whose first key is a string.
        [0x81..=0x8f, 0xa1..=0xbf | 0xd9, ..]
        | [0xde, _, _, 0xa1..=0xbf | 0xd9, ..]
        | [0xdf, _, _, _, _, 0xa1..=0xbf | 0xd9, ..] => with("a MessagePack file, as Flax saves", REWRITE),
        _ => None,
    })
}

fn part(file: &mut (impl Read + Seek), from: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(from))?;
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A zip archive, by the name of its first entry and its directory at the end.
fn zip(start: &[u8], end: &[u8]) -> String {
    let length = start.get(26..28).map_or(0, |n| usize::from(u16::from_le_bytes([n[0], n[1]])));
    let first = start.get(30..30 + length).map_or(String::new(), |name| String::from_utf8_lossy(name).into());
    let has = |name: &[u8]| end.windows(name.len()).any(|bytes| bytes == name);
    if has(b"/constants.pkl") {
        "a TorchScript program; save the state_dict() of what torch.jit.load returns with safetensors.torch.save_file and \
         give that"
            .to_owned()
    } else if first.ends_with(".pkl") || has(b"/data.pkl") {
        "a PyTorch checkpoint that is damaged or cut short; copy or download it again".to_owned()
    } else if first.ends_with(".npy") || has(b".npy") {
        format!("NumPy arrays (.npz); {REWRITE}")
    } else if has(b"model.weights.h5") {
        format!("a Keras model (.keras); {REWRITE}")
    } else {
        "a zip archive; unpack it and give what is inside".to_owned()
    }
}

/// What a text is.
fn text(file: &mut (impl Read + Seek), size: u64, start: &[u8]) -> io::Result<Option<String>> {
    // A character may be cut at the end of what was looked at.
    let utf8 = match str::from_utf8(start) {
        Ok(text) => text,
        Err(error) if error.valid_up_to() + 4 > LOOK as usize => {
            str::from_utf8(&start[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return Ok(None),
    };
    let text = utf8.trim_start_matches('\u{feff}').trim_start();
    let begins = |word: &str| text.get(..word.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(word));
    if begins("version https://git-lfs.github.com/spec/") {
        let pointer = "a Git LFS pointer, not the file itself; `git lfs pull` fetches it";
        return Ok(Some(pointer.to_owned()));
    }
    if begins("<!doctype html") || begins("<html") || begins("<?xml") {
        let page = "a web page, not weights: what was downloaded is a server's answer; look at it and download again";
        return Ok(Some(page.to_owned()));
    }
    if !text.starts_with(['{', '[']) {
        return Ok(None);
    }
    let whole = if size <= JSON { part(file, 0, JSON)? } else { Vec::new() };
    Ok(serde_json::from_slice::<Value>(&whole).ok().map(|json| match json["weight_map"].as_object() {
        Some(map) => {
            let mut files: Vec<String> = map.values().filter_map(Value::as_str).map(str::to_owned).collect();
            files.sort();
            files.dedup();
            format!("an index of other files ({}); give one file that holds all tensors", first_few(&files))
        }
        None => "a JSON file; give the safetensors file it describes".to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn told(bytes: &[u8]) -> Option<String> {
        kind(&mut Cursor::new(bytes), bytes.len() as u64).unwrap()
    }

    /// A zip archive of empty files, without what no reader here looks at.
    fn zip_of(names: &[&str]) -> Vec<u8> {
        let (mut bytes, mut directory) = (Vec::new(), Vec::new());
        for name in names {
            let length = (name.len() as u16).to_le_bytes();
            bytes.extend([b"PK\x03\x04".as_slice(), &[0; 22], &length, &[0; 2], name.as_bytes()].concat());
            directory
                .extend([b"PK\x01\x02".as_slice(), &[0; 24], &length, &[0; 16], name.as_bytes()].concat());
        }
        // More than is looked at lies between the two.
        bytes.extend(vec![0; 2 * LOOK as usize]);
        bytes.extend(directory);
        bytes
    }

    #[test]
    fn files_are_told_by_their_content() {
        let tar = [[0; 257].as_slice(), b"ustar\0"].concat();
        let pages = b"\xef\xbb\xbf \n<!DOCTYPE html><title>404</title>";
        let index = br#"{"metadata":{},"weight_map":{"a":"m-2.safetensors","b":"m-1.safetensors","c":"m-1.safetensors"}}"#;
        for (bytes, words) in [
            (&[] as &[u8], "an empty file"),
            (&zip_of(&["w/data.pkl", "w/byteorder", "w/data/0"]), "a PyTorch checkpoint that is damaged"),
            (&zip_of(&["w/version", "w/data.pkl"]), "a PyTorch checkpoint that is damaged"),
            (&zip_of(&["w/data.pkl", "w/code/__torch__.py", "w/constants.pkl"]), "a TorchScript program"),
            (&zip_of(&["arr_0.npy"]), "NumPy arrays (.npz)"),
            (&zip_of(&["metadata.json", "config.json", "model.weights.h5"]), "a Keras model"),
            (&zip_of(&["readme.txt"]), "a zip archive; unpack"),
            (b"PK\x03\x04", "a zip archive; unpack"),
            (
                b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
                "a pickle, but not as torch.save writes it; save its state_dict",
            ),
            (b"\x80\x05\x95", "a pickle, but not as torch.save writes it; save its state_dict"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "`git lfs pull` fetches it"),
            (pages, "a web page"),
            (b"<?xml version=\"1.0\"?><Error/>", "a web page"),
            (index, "an index of other files (m-1.safetensors, m-2.safetensors); give one file"),
            (br#"{"model_type": "vit"}"#, "a JSON file"),
            (br#"{"meta":{"weight_map": 1}}"#, "a JSON file"),
            (b"[1]", "a JSON file"),
            (b"GGUF\x03\0\0\0", "a GGUF file"),
            (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras saves"),
            (b"\x93NUMPY\x01\0", "a NumPy array"),
            (b"\x08\x08\x12\x07pytorch", "an ONNX model"),
            (b"\x08\x01\x12\x90\x05", "a TensorFlow SavedModel"),
            (b"\x1c\0\0\0TFL3", "a TensorFlow Lite model"),
            (b"\x81\xa6params\x82", "a MessagePack file, as Flax saves"),
            (b"\xde\0\x10\xa6params", "a MessagePack file, as Flax saves"),
            (&tar, "a tar archive"),
            (b"\x1f\x8b\x08\0", "compressed with gzip"),
        ] {
            let kind = told(bytes).unwrap_or_else(|| panic!("nothing told of {words}"));
            assert!(kind.contains(words) && !kind.contains('\n'), "{kind}");
        }
        for unknown in [b"\0" as &[u8], b"garbage-garbage", b"{ not JSON", "é".as_bytes(), &[0xc3; 99]] {
            assert_eq!(told(unknown), None);
        }
    }

    #[test]
    fn a_long_text_is_told_even_if_what_is_looked_at_ends_inside_a_character() {
        let pad =
            |length: usize| format!("{{\"a\": \"{}\"}}", "x".repeat(length) + &"é".repeat(LOOK as usize));
        for length in [0, 1] {
            assert_eq!(
                told(pad(length).as_bytes()).unwrap(),
                "a JSON file; give the safetensors file it describes"
            );
        }
    }

    #[test]
    fn of_a_directory_the_weights_in_it_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let told = || not_a_file(directory.path(), &fs::metadata(directory.path()).unwrap());
        assert_eq!(told(), "a directory; give a safetensors file in it");
        for name in ["last.safetensors", "best.safetensors", "a.json"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        assert_eq!(told(), "a directory; give a safetensors file in it, such as best.safetensors");
        let device = fs::metadata("/dev/null").unwrap();
        assert!(not_a_file(Path::new("/dev/null"), &device).contains("neither a file"));
    }
}
