//! A safetensors file or a PyTorch checkpoint: an error, or a header that agrees with the tensors it describes.
#![no_main]

use std::path::Path;

use core_layers::weights::WeightsFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(weights) = WeightsFile::from_bytes(Path::new("weights"), bytes.to_vec()) {
        for name in ["a", "b", "base", "block"] {
            let _ = weights.tensor(name);
        }
        let _ = weights.card();
        assert_eq!(weights.sha256().expect("its bytes are in memory").len(), 64);
    }
});
