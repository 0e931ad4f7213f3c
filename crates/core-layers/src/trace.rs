//! What a forward pass goes through, layer by layer: for tables of layers, and to check that counted
//! multiply-accumulates are the executed ones.

use std::cell::RefCell;

use tch::Tensor;

use crate::count;

/// One layer's part in a forward pass.
#[derive(Debug)]
pub struct Step {
    /// What kind of layer it is.
    pub kind: &'static str,
    /// The layer's own tensors; their names are those under which they are in the `VarStore`.
    pub tensors: Vec<Tensor>,
    /// Shape of what the layer put out.
    pub output: Vec<i64>,
    /// Multiply-accumulates of convolutions and matrix products, for the whole batch.
    pub macs: u64,
}

thread_local! {
    /// The steps so far, while somebody on this thread is recording.
    static STEPS: RefCell<Option<Vec<Step>>> = const { RefCell::new(None) };
}

/// Runs `forward` and returns what it returns, with every step its layers took on this thread.
pub fn record<T>(forward: impl FnOnce() -> T) -> (T, Vec<Step>) {
    /// Stops recording however the pass ends.
    struct Outer(Option<Vec<Step>>);
    impl Drop for Outer {
        fn drop(&mut self) {
            STEPS.set(self.0.take());
        }
    }
    let _outer = Outer(STEPS.replace(Some(Vec::new())));
    let result = forward();
    (result, STEPS.take().unwrap_or_default())
}

/// Notes a layer's step if somebody is recording. Each output element costs the product of
/// `macs_per_output` multiply-accumulates; a layer that multiplies no matrices passes `[0]`.
pub fn step(kind: &'static str, tensors: &[Option<&Tensor>], output: &Tensor, macs_per_output: &[i64]) {
    STEPS.with_borrow_mut(|steps| {
        if let Some(steps) = steps {
            steps.push(Step {
                kind,
                tensors: tensors.iter().flatten().map(|tensor| tensor.shallow_clone()).collect(),
                output: output.size(),
                macs: count(&output.size()).saturating_mul(count(macs_per_output)),
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Conv2d, Init, Linear};
    use tch::{Device, Kind, nn};

    #[test]
    fn steps_are_those_of_the_recorded_pass_with_their_cost() {
        let vs = nn::VarStore::new(Device::Cpu);
        let conv = Conv2d::depthwise(&(vs.root() / "conv"), 4, 3, Init::Ones, None).unwrap();
        let linear = Linear::new(&(vs.root() / "fc"), 6, 5, Init::Ones, Some(Init::Zeros)).unwrap();
        let image = Tensor::zeros([2, 4, 8, 8], (Kind::Float, Device::Cpu));
        let _ = conv.forward(&image); // nobody records
        let (y, steps) = record(|| linear.forward(&conv.forward(&image)));
        assert_eq!(y.size(), [2, 4, 6, 5]);
        assert_eq!(steps.iter().map(|s| s.kind).collect::<Vec<_>>(), ["Conv2d", "Linear"]);
        // 2·4·6·6 outputs of a 3×3 kernel; 2·4·6·5 outputs of 6 inputs.
        assert_eq!(steps.iter().map(|s| s.macs).collect::<Vec<_>>(), [288 * 9, 240 * 6]);
        assert_eq!(steps[0].output, [2, 4, 6, 6]);
        assert_eq!(steps[1].tensors[0].data_ptr(), vs.variables()["fc.weight"].data_ptr());
        assert_eq!((steps[0].tensors.len(), steps[1].tensors.len()), (1, 2));
        assert!(record(|| ()).1.is_empty());
        // Nobody records after a pass that panicked.
        assert!(std::panic::catch_unwind(|| record(|| panic!("out of memory"))).is_err());
        assert!(STEPS.take().is_none());
    }
}
