//! PyTorch checkpoints: what `torch.save` wrote is read to the bit, and everything that could do harm is refused.
//! docs/parity/torch_checkpoints.py wrote the files.

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use core_layers::weights::WeightsFile;
use tch::{Kind, Tensor};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn values(file: &WeightsFile, name: &str) -> (Vec<i64>, Vec<f64>) {
    let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(tensor.kind(), Kind::Float);
    let numbers: Vec<f64> = tensor.flatten(0, -1).to_kind(Kind::Double).try_into().expect("numbers in a row");
    (tensor.size(), numbers)
}

fn refusal(bytes: &[u8]) -> String {
    let read = WeightsFile::from_bytes(Path::new("w.pt"), bytes.to_vec());
    let line = read.map(|_| "it was read".to_owned()).unwrap_or_else(|error| error.to_string());
    assert!(line.starts_with("w.pt: ") && !line.contains('\n'), "{line}");
    line
}

#[test]
fn every_tensor_is_read_to_the_bit_from_every_form() {
    for name in ["plain.pt", "protocol4.pt", "legacy.pt"] {
        let bytes = fs::read(golden(name)).expect("it is in the repository");
        for file in [WeightsFile::open(&golden(name)), WeightsFile::from_bytes(Path::new(name), bytes)] {
            let file = file.unwrap_or_else(|error| panic!("{error}"));
            let base: Vec<f64> = (0..12).map(|number| f64::from(number) / 4.0 - 1.0).collect();
            let pick = |places: &[usize]| places.iter().map(|&place| base[place]).collect::<Vec<_>>();
            for (tensor, shape, numbers) in [
                ("base", vec![3, 4], base.clone()),
                ("transposed", vec![4, 3], pick(&[0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11])),
                ("column", vec![3], pick(&[1, 5, 9])),
                ("block", vec![2, 2], pick(&[5, 6, 9, 10])),
                ("every_second", vec![6], pick(&[1, 3, 5, 7, 9, 11])),
                ("parameter", vec![2], vec![0.5, -0.25]),
                ("half", vec![3], vec![1.5, -2.25, 65504.0]),
                ("bfloat", vec![3], vec![1.5, -2.25, 2f64.powi(100)]),
                ("double", vec![2], vec![f64::from(0.1f32), 0.0]),
                ("scalar", vec![], vec![7.0]),
                ("empty", vec![0, 3], vec![]),
            ] {
                assert_eq!(values(&file, tensor), (shape, numbers), "{tensor} of {name}");
            }
            let counter = file.tensor("counter").expect_err("it is no weight").to_string();
            assert!(counter.ends_with("counter holds I64, expected a floating type"), "{counter}");
        }
    }
}

/// SHA-256 is of the whole file, whatever it is.
#[test]
fn the_digest_is_that_of_the_file() {
    let file = WeightsFile::open(&golden("plain.pt")).expect("it is a checkpoint");
    let bytes = fs::read(golden("plain.pt")).expect("it is in the repository");
    let safetensors = WeightsFile::from_bytes(Path::new("plain.pt"), bytes).expect("it is a checkpoint");
    assert_eq!(file.sha256().expect("it is there"), safetensors.sha256().expect("it is in memory"));
    let digest = "ad1b412ccb8e99285d7ba9e12f6470bb73b6c1725a043fbe71448a423cf8c633";
    assert_eq!(file.sha256().expect("it is there"), digest);
}

#[test]
fn of_a_training_checkpoint_the_averaged_weights_are_read() {
    let file = WeightsFile::open(&golden("training.pt")).expect("it is a checkpoint");
    assert_eq!(values(&file, "module.weight"), (vec![2, 2], vec![10.0, 20.0, 30.0, 40.0]));
    assert_eq!(values(&file, "module.bias"), (vec![2], vec![50.0, 60.0]));
    let other = file.tensor("weight").expect_err("it is not averaged").to_string();
    assert!(other.ends_with("it has no tensor \"weight\"; it has module.bias, module.weight"), "{other}");
    // Beside them are a training script's arguments, an argparse.Namespace.
    let with_arguments = WeightsFile::open(&golden("namespace.pt")).expect("it is a checkpoint");
    assert_eq!(values(&with_arguments, "weight"), (vec![2, 2], vec![1.0, 2.0, 3.0, 4.0]));
    let compiled = WeightsFile::open(&golden("compiled.pt")).expect("it is a checkpoint");
    assert_eq!(values(&compiled, "_orig_mod.bias"), (vec![2], vec![5.0, 6.0]));
}

/// What the instructions of a pickle look like.
fn text(text: &str) -> Vec<u8> {
    [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

fn int(number: i32) -> Vec<u8> {
    [b"J".as_slice(), &number.to_le_bytes()].concat()
}

fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(".to_vec(), items.concat(), b"t".to_vec()].concat()
}

fn storage(key: &str, length: i32) -> Vec<u8> {
    let id = [text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text(key), text("cpu"), int(length)];
    [tuple(&id), b"Q".to_vec()].concat()
}

fn tensor(storage: &[u8], offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let sizes = |sizes: &[i32]| tuple(&sizes.iter().map(|&size| int(size)).collect::<Vec<_>>());
    let hooks = b"ccollections\nOrderedDict\n)R".to_vec();
    let arguments = tuple(&[storage.to_vec(), int(offset), sizes(shape), sizes(strides), vec![0x89], hooks]);
    [b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(), arguments, b"R".to_vec()].concat()
}

/// A dictionary with one entry, as a whole pickle.
fn dict(key: &str, value: &[u8]) -> Vec<u8> {
    [b"\x80\x02}".to_vec(), text(key), value.to_vec(), b"s.".to_vec()].concat()
}

fn archive(files: &[(&str, &[u8])], compression: CompressionMethod) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in files {
        let options = SimpleFileOptions::default().compression_method(compression);
        archive.start_file(*name, options).expect("memory takes it");
        archive.write_all(bytes).expect("memory takes it");
    }
    archive.finish().expect("memory takes it").into_inner()
}

fn checkpoint(pickle: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
    let files = [&[("w/data.pkl", pickle), ("w/byteorder", b"little".as_slice())], storages].concat();
    archive(&files, CompressionMethod::Stored)
}

const TWO: [u8; 8] = [0, 0, 0x80, 0x3f, 0, 0, 0, 0x40];

#[test]
fn a_checkpoint_made_here_is_read() {
    let pickle = dict("a", &tensor(&storage("0", 2), 0, &[2], &[1]));
    let file = WeightsFile::from_bytes(Path::new("w"), checkpoint(&pickle, &[("w/data/0", &TWO)]));
    assert_eq!(values(&file.expect("it is whole"), "a"), (vec![2], vec![1.0, 2.0]));
}

/// Pickles that would run something in Python: nothing is run, and what they name is named.
#[test]
fn what_would_be_run_is_refused_by_name() {
    let directory = tempfile::tempdir().expect("a place for files");
    let mark = directory.path().join("mark");
    let command = text(&format!("touch {}", mark.display()));
    let call = |module: &str, name: &str| {
        let named = format!("\x63{module}\n{name}\n").into_bytes();
        [named, tuple(std::slice::from_ref(&command)), b"R".to_vec()].concat()
    };
    let by_text = [text("builtins"), text("eval"), vec![0x93], tuple(&[text("1")]), b"R".to_vec()].concat();
    for (value, words) in [
        (call("os", "system"), "it names os.system (byte"),
        (call("posix", "system"), "it names posix.system (byte"),
        (call("builtins", "eval"), "it names builtins.eval (byte"),
        (call("torch", "load"), "it names torch.load (byte"),
        (
            call("torch._utils", "_rebuild_tensor_v2.__globals__"),
            "it names torch._utils._rebuild_tensor_v2.__",
        ),
        (by_text, "it names builtins.eval (byte"),
        (call("argparse", "Namespace"), "it describes a tensor or a dictionary in a way"),
        (b"cargparse\nNamespace\nK\x01\x85\x81".to_vec(), "it makes an object of a class other"),
        ([b"(".to_vec(), command.clone(), b"ios\nsystem\n".to_vec()].concat(), "it has the instruction INST"),
        (b"\x82\x01".to_vec(), "it has the instruction EXT1"),
        (b"ccollections\nOrderedDict\n)\x81".to_vec(), "it makes an object of a class other"),
        (b"K\x01)\x81".to_vec(), "it makes an object of a class other"),
        (b"ccollections\nOrderedDict\n(I1\ntR".to_vec(), "it has the instruction INT"),
        (b"ccollections\nOrderedDict\nK\x01\x85R".to_vec(), "it describes a tensor or a dictionary in a way"),
        (b"ctorch\nFloatStorage\n)R".to_vec(), "it describes a tensor or a dictionary in a way"),
        (b"K\x01)R".to_vec(), "it calls something that is no function"),
        (b"K\x01}b".to_vec(), "it sets attributes of something else"),
        (b"\xff".to_vec(), "it has a byte 0xff that is no instruction"),
    ] {
        let pickle = dict("a", &value);
        let magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.".to_vec();
        for bytes in [checkpoint(&pickle, &[]), [magic, pickle.clone()].concat()] {
            let line = refusal(&bytes);
            assert!(line.contains(words) && line.contains("nothing is run"), "{line}");
        }
    }
    assert!(!mark.exists());
}

#[test]
fn what_does_not_lie_in_the_file_is_refused() {
    let whole = |value: &[u8], storages: &[(&str, &[u8])]| refusal(&checkpoint(&dict("a", value), storages));
    let two = storage("0", 2);
    let kept: &[(&str, &[u8])] = &[("w/data/0", &TWO)];
    for (line, words) in [
        (whole(&tensor(&two, 0, &[2], &[1]), &[]), "a: this PyTorch checkpoint has no \"data/0\""),
        (
            whole(&tensor(&storage("0", 3), 0, &[2], &[1]), kept),
            "a storage of 3 numbers, of which the file has 8 bytes",
        ),
        (whole(&tensor(&storage("0", i32::MAX), 0, &[2], &[1]), kept), "of which the file has 8 bytes"),
        (whole(&tensor(&two, 1, &[2], &[1]), kept), "outside its storage of 2 numbers"),
        (whole(&tensor(&two, 0, &[2], &[2]), kept), "outside its storage of 2 numbers"),
        (whole(&tensor(&two, 3, &[0], &[1]), kept), "outside its storage of 2 numbers"),
        // A thousand million numbers out of one.
        (whole(&tensor(&two, 0, &[1 << 30], &[0]), kept), "outside its storage of 2 numbers"),
        (whole(&tensor(&two, 0, &[i32::MAX; 16], &[i32::MAX; 16]), kept), "outside its storage of 2 numbers"),
        (whole(&tensor(&two, 0, &[1; 17], &[1; 17]), kept), "a tensor has 17 dimensions"),
        (whole(&tensor(&two, -1, &[1], &[1]), kept), "it describes a tensor in a way"),
        (whole(&tensor(&two, 0, &[-1], &[1]), kept), "it describes a tensor in a way"),
        (whole(&tensor(&two, 0, &[1], &[1, 1]), kept), "it describes a tensor in a way"),
        (whole(&storage("0", -1), kept), "it describes a storage in a way"),
        (whole(&tensor(b"K\x00", 0, &[1], &[1]), kept), "it describes a tensor or a dictionary in a way"),
    ] {
        assert!(line.contains(words), "{line}");
    }
}

#[test]
fn files_cut_short_and_of_another_byte_order_are_refused() {
    for name in ["plain.pt", "legacy.pt"] {
        let bytes = fs::read(golden(name)).expect("it is in the repository");
        for length in 0..bytes.len() {
            let line = refusal(&bytes[..length]);
            // Of the first bytes nobody can tell more.
            let early = [
                "neither a safetensors file nor a PyTorch checkpoint",
                "a zip archive; unpack",
                "a pickle, but not",
            ];
            let told = early.iter().any(|words| length < 45 && line.contains(words));
            assert!(told || line.contains("copy or download it again"), "{length}: {line}");
        }
    }
    let pickle = dict("a", &tensor(&storage("0", 2), 0, &[2], &[1]));
    let big = [("w/data.pkl", pickle.as_slice()), ("w/byteorder", b"big"), ("w/data/0", &TWO)];
    let line = refusal(&archive(&big, CompressionMethod::Stored));
    assert!(line.contains("another byte order (big); save it again on a little-endian machine"), "{line}");
    let bytes = fs::read(golden("legacy.pt")).expect("it is in the repository");
    let place =
        bytes.windows(13).position(|bytes| bytes == b"little_endian").expect("it says its byte order");
    let mut other = bytes.clone();
    // TRUE becomes FALSE.
    let said =
        place + 13 + bytes[place + 13..].iter().position(|&byte| byte == 0x88).expect("it says little");
    other[said] = 0x89;
    let line = refusal(&other);
    assert!(line.contains("another byte order (big)"), "{line}");
}

/// The most memory this process has had, in bytes.
#[cfg(target_os = "linux")]
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux says it");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("Linux says it");
    let kilobytes: u64 =
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number");
    kilobytes << 10
}

/// Small files that would fill the memory of who believes them.
#[cfg(target_os = "linux")]
#[test]
fn memory_is_bounded_whatever_a_file_claims() {
    let before = peak();
    let zeros = vec![0; 64 << 20];
    let pickle = dict("a", &tensor(&storage("0", 16 << 20), 0, &[16 << 20], &[1]));
    let bomb = archive(&[("w/data.pkl", &zeros)], CompressionMethod::Deflated);
    let bombs = archive(&[("w/data.pkl", &pickle), ("w/data/0", &zeros)], CompressionMethod::Deflated);
    assert!(bomb.len() < 1 << 20 && bombs.len() < 1 << 20);
    for bytes in [&bomb, &bombs] {
        let line = refusal(bytes);
        assert!(line.contains("\"w/data.pkl\" in this PyTorch checkpoint is compressed"), "{line}");
    }
    let mut part = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes, method) in [
        ("w/data.pkl", &pickle, CompressionMethod::Stored),
        ("w/data/0", &zeros, CompressionMethod::Deflated),
    ] {
        part.start_file(name, SimpleFileOptions::default().compression_method(method))
            .expect("memory takes it");
        part.write_all(bytes).expect("memory takes it");
    }
    let part = part.finish().expect("memory takes it").into_inner();
    let line = refusal(&part);
    assert!(line.contains("a: \"w/data/0\" in this PyTorch checkpoint is compressed"), "{line}");

    // An archive that claims an entry of a terabyte.
    let mut claims = checkpoint(&dict("a", &tensor(&storage("0", 2), 0, &[2], &[1])), &[("w/data/0", &TWO)]);
    let entry = claims.windows(8).rposition(|bytes| bytes == b"w/data/0").expect("the directory has it");
    claims[entry - 26..entry - 18].copy_from_slice(&[0xf0; 8]);
    let line = refusal(&claims);
    assert!(line.contains("copy or download it again"), "{line}");

    let long = [b"\x80\x02\x8d".as_slice(), &u64::MAX.to_le_bytes()].concat();
    let line = refusal(&checkpoint(&long, &[]));
    assert!(line.contains("it ends in the middle of a value"), "{line}");
    let many = [b"\x80\x02".as_slice(), &b"}".repeat(4 << 20)].concat();
    let line = refusal(&checkpoint(&many, &[]));
    assert!(line.contains("more than 1000000 instructions"), "{line}");
    let line = refusal(&checkpoint(&vec![b'}'; 17 << 20], &[]));
    assert!(line.contains("a pickle of 17825792 bytes"), "{line}");
    // Lists of the same list ten times, thirty times over: a tensor at 10^30 places.
    let mut lists =
        [b"\x80\x02".to_vec(), tensor(&storage("0", 2), 0, &[2], &[1]), b"q\x00".to_vec()].concat();
    for level in 0..30u8 {
        lists.extend([b"](".as_slice(), &[b'h', level].repeat(10), &[b'e', b'q', level + 1]].concat());
    }
    lists.push(b'.');
    let line = refusal(&checkpoint(&lists, &[("w/data/0", &TWO)]));
    assert!(line.contains("more than 200000 values, or 32 in each other"), "{line}");
    // A list in itself.
    let line = refusal(&checkpoint(b"\x80\x02]q\x00h\x00a.", &[]));
    assert!(line.contains("32 in each other"), "{line}");
    // Dictionaries in themselves, under a name that would be looked through.
    let own = [b"\x80\x02}q\x00".to_vec(), text("model"), b"h\x00s.".to_vec()].concat();
    let line = refusal(&checkpoint(&own, &[]));
    assert!(line.contains("32 in each other"), "{line}");
    let name = "n".repeat(1025);
    let line =
        refusal(&checkpoint(&dict(&name, &tensor(&storage("0", 2), 0, &[2], &[1])), &[("w/data/0", &TWO)]));
    assert!(line.contains("a name in it has more than 1024 bytes"), "{line}");

    let more = (peak() - before) >> 20;
    assert!(more < 400, "{more} MiB more than before");
}

/// A small generator of numbers, the same ones each time (Knuth's multiplier and increment).
fn next(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize
}

#[test]
fn a_thousand_changed_bytes_are_read_or_refused() {
    tch::set_num_threads(1);
    for name in ["plain.pt", "legacy.pt", "training.pt"] {
        let whole = fs::read(golden(name)).expect("it is in the repository");
        let (mut state, mut read, mut refused) = (20_260_101, 0, 0);
        for _ in 0..1000 {
            let mut bytes = whole.clone();
            let place = next(&mut state) % bytes.len();
            bytes[place] ^= 1 << (next(&mut state) % 8);
            match WeightsFile::from_bytes(Path::new("w.pt"), bytes) {
                Err(error) => {
                    let line = error.to_string();
                    assert!(line.len() > 30 && !line.contains('\n'), "byte {place}: {line}");
                    refused += 1;
                }
                Ok(file) => {
                    for tensor in [
                        "base",
                        "transposed",
                        "block",
                        "half",
                        "bfloat",
                        "double",
                        "scalar",
                        "empty",
                        "module.bias",
                    ] {
                        let tensor: Result<Tensor, _> = file.tensor(tensor);
                        tensor.map_or_else(
                            |error| assert!(!error.to_string().is_empty()),
                            |tensor| {
                                assert!(tensor.numel() <= 12, "byte {place}");
                            },
                        );
                    }
                    read += 1;
                }
            }
        }
        assert!(read > 100 && refused > 100, "{name}: {read} read, {refused} refused");
    }
}
