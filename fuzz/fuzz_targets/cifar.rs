//! The records of CIFAR-10 and CIFAR-100: either an error, or as many images as labels.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let file = Path::new("data_batch_1.bin");
    if let Ok(labelled) = data_cifar::parse_cifar10(bytes, file) {
        assert_eq!(labelled.labels.len(), bytes.len() / 3073);
        assert!(labelled.labels.iter().all(|label| *label < 10));
    }
    if let Ok((fine, coarse)) = data_cifar::parse_cifar100(bytes, file) {
        assert_eq!((fine.labels.len(), coarse.len()), (bytes.len() / 3074, bytes.len() / 3074));
        assert!(fine.labels.iter().all(|label| *label < 100) && coarse.iter().all(|label| *label < 20));
    }
});
