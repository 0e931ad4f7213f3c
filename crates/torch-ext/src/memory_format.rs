//! The order of a tensor's values in memory.

use tch::Tensor;

use crate::TorchExtError;
use crate::ffi::{self, check, tensor_from};

/// The images or weights `[N, C, H, W]` with the values of one pixel beside each other in memory; the shape
/// stays.
///
/// Gradients pass through. A tensor that is so already is returned as it is, sharing its memory.
///
/// # Errors
/// What libtorch says of a tensor without exactly four dimensions.
pub fn channels_last(tensor: &Tensor) -> Result<Tensor, TorchExtError> {
    // SAFETY: the pointer is to a live tensor.
    tensor_from(|result| unsafe { ffi::torch_ext_channels_last(tensor.as_ptr(), result) })
}

/// Whether the values of `[N, C, H, W]` are in the order of [`channels_last`], without gaps.
///
/// A tensor with one channel, or with one pixel, is in both orders. One without exactly four dimensions is in
/// none.
///
/// # Errors
/// What libtorch says of a tensor without strides, as a sparse one.
pub fn is_channels_last(tensor: &Tensor) -> Result<bool, TorchExtError> {
    let mut result = false;
    // SAFETY: the pointers are to a live tensor and to a `bool` to write.
    check(unsafe { ffi::torch_ext_is_channels_last(tensor.as_ptr(), &mut result) })?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn ramp(shape: [i64; 4]) -> Tensor {
        let count: i64 = shape.iter().product();
        Tensor::arange(count, (Kind::Float, Device::Cpu)).view(shape)
    }

    #[test]
    fn strides_change_and_values_do_not() {
        let images = ramp([2, 3, 4, 5]);
        assert_eq!(images.stride(), [60, 20, 5, 1]);
        assert!(!is_channels_last(&images).unwrap());
        let moved = channels_last(&images).unwrap();
        assert_eq!(moved.stride(), [60, 1, 15, 3]);
        assert!(is_channels_last(&moved).unwrap());
        assert_eq!(moved, images);
        assert_eq!(channels_last(&moved).unwrap().data_ptr(), moved.data_ptr());
    }

    #[test]
    fn only_images_have_the_format() {
        let tokens = Tensor::zeros([2, 3, 4], (Kind::Float, Device::Cpu));
        assert!(matches!(channels_last(&tokens), Err(TorchExtError::Torch(_))));
        assert!(!is_channels_last(&tokens).unwrap());
        assert!(channels_last(&Tensor::new()).is_err());
        assert!(!matches!(is_channels_last(&Tensor::new()), Ok(true)));
    }

    #[test]
    fn gradients_pass() {
        let images = ramp([1, 2, 2, 2]).set_requires_grad(true);
        let moved = channels_last(&images).unwrap();
        (&moved * &moved).sum(Kind::Float).backward();
        assert_eq!(images.grad(), &images * 2.0);
    }
}
