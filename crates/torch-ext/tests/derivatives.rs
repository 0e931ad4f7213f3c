//! Gradients that are to be differentiated again.

use tch::{Device, Kind, Tensor};
use torch_ext::winograd;

#[test]
fn a_second_derivative_of_a_winograd_convolution_is_an_error_and_not_a_part_of_it() {
    let ones = |shape: [i64; 4]| Tensor::ones(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let (maps, weight) = (ones([2, 16, 4, 4]), ones([16, 16, 3, 3]));
    let loss = || winograd(&maps, &weight, None, 1).unwrap().square().sum(Kind::Float);
    let error = Tensor::f_run_backward(&[loss()], &[&maps, &weight], true, true).unwrap_err().to_string();
    assert!(error.contains("no second derivative"), "{error}");
    // A graph that is only kept gives the first as often as it is asked.
    let kept = loss();
    let first = Tensor::f_run_backward(&[&kept], &[&maps, &weight], true, false).unwrap();
    let again = Tensor::f_run_backward(&[&kept], &[&maps, &weight], false, false).unwrap();
    assert_eq!(first, again);
    // A corner sees 4 of a kernel's 9 pixels: 16 channels times that; and so on to the middle's 9.
    let (corner, edge, middle) = (16.0 * 4.0, 16.0 * 6.0, 16.0 * 9.0);
    let seen = 2.0 * 16.0 * (corner + 2.0 * edge + middle);
    assert!((first[0].double_value(&[0, 0, 0, 0]) - seen).abs() < 1e-5 * seen, "{:?}", first[0]);
}
