//! A checkpoint's manifest, sealed with its own digest: an error, or a checkpoint at that position.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};
use trainer::run::checkpoint::{Position, load};

fuzz_target!(|body: &[u8]| {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let position = Position { epoch: 1, step: None };
    let path = directory.path().join(position.to_string());
    fs::create_dir(&path).expect("a directory in it");
    let digest: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
    let sealed = [body, format!(",\n  \"sha256\": \"{digest}\"\n}}\n").as_bytes()].concat();
    fs::write(path.join("manifest.json"), sealed).expect("a file in it");
    if let Ok(checkpoint) = load(directory.path(), position, &[]) {
        assert_eq!(checkpoint.position, position);
    }
});
