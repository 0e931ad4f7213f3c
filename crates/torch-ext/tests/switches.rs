//! Settings of the process, in a process of their own: libtorch reads them without a lock, so nothing may compute meanwhile.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use torch_ext::{
    Determinism, MatmulPrecision, Switch, determinism, matmul_precision, set_determinism,
    set_matmul_precision,
};

#[test]
fn what_is_set_is_read_back() {
    use Switch::{CudnnBenchmark, CudnnDeterministic, FillUninitializedMemory, Tf32Cudnn, Tf32Matmul};
    let first = [
        (CudnnDeterministic, false),
        (CudnnBenchmark, false),
        (Tf32Matmul, false),
        (Tf32Cudnn, true),
        (FillUninitializedMemory, true),
    ];
    for (switch, on) in first {
        assert_eq!(switch.get().unwrap(), on, "{switch:?} at first");
    }
    for (switch, on) in first {
        switch.set(!on).unwrap();
        assert_eq!(switch.get().unwrap(), !on, "{switch:?}");
        for (other, on) in first.into_iter().filter(|(other, _)| *other != switch) {
            assert_eq!(other.get().unwrap(), on, "{other:?} after {switch:?}");
        }
        switch.set(on).unwrap();
        assert_eq!(switch.get().unwrap(), on, "{switch:?}");
    }

    assert_eq!(determinism().unwrap(), Determinism::Off);
    for value in [Determinism::Warn, Determinism::Error, Determinism::Off] {
        set_determinism(value).unwrap();
        assert_eq!(determinism().unwrap(), value);
    }

    assert_eq!(matmul_precision().unwrap(), MatmulPrecision::Highest);
    for value in [MatmulPrecision::High, MatmulPrecision::Medium, MatmulPrecision::Highest] {
        set_matmul_precision(value).unwrap();
        assert_eq!(matmul_precision().unwrap(), value);
        assert_eq!(Tf32Matmul.get().unwrap(), value != MatmulPrecision::Highest);
    }
}
