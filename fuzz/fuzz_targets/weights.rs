//! A safetensors file: an error, or a header that agrees with the tensors it describes.
#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use trainer::weights::WeightsFile;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("it can be written");
    if let Ok(weights) = WeightsFile::open(file.path()) {
        for name in ["a", "b"] {
            let _ = weights.tensor(name);
        }
        let _ = weights.card();
        assert_eq!(weights.sha256().expect("it can still be read").len(), 64);
    }
});
