//! The switch of our own operations, in a process of its own because it is one of the whole process.

use tch::{Device, Kind, Tensor};
use torch_ext::{Autocast, has_kernels, kernel_instructions, set_kernels};

#[test]
fn nothing_has_kernels_when_they_are_switched_off() {
    let f32s = Tensor::zeros([2], (Kind::Float, Device::Cpu));
    assert!(has_kernels(&f32s) && has_kernels(&f32s.to_kind(Kind::BFloat16)));
    assert!(!has_kernels(&f32s.to_kind(Kind::Double)) && !has_kernels(&f32s.to_kind(Kind::Int64)));
    assert!(["avx512_bf16", "avx512", "avx2", "plain"].contains(&kernel_instructions().as_str()));
    {
        // A kernel would write bf16 where autocast wants f16.
        let _half = Autocast::enter(Device::Cpu, Kind::Half).unwrap();
        assert!(!has_kernels(&f32s));
        let _narrow = Autocast::enter(Device::Cpu, Kind::BFloat16).unwrap();
        assert!(has_kernels(&f32s));
    }
    set_kernels(false);
    assert!(!has_kernels(&f32s));
    assert_eq!(kernel_instructions(), "off");
    set_kernels(true);
    assert!(has_kernels(&f32s));
}
