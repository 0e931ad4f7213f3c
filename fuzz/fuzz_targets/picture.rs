//! A picture file: either an error, or as many pixels as its size says.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;

fuzz_target!(
    // A decoder's panic is an error of `decode`, which catches it; only one that escapes is a finding.
    init: std::panic::set_hook(Box::new(|_| ())),
    |bytes: &[u8]| {
        if let Ok(picture) = data_cifar::decode(bytes, Path::new("picture"), 1 << 30) {
            let pixels = u64::from(picture.width) * u64::from(picture.height);
            assert_eq!(picture.pixels.len() as u64, 3 * pixels);
            assert!(pixels > 0);
        }
    }
);
