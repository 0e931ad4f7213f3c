//! Every operation against PIL itself, and what must hold for any operation.

#![allow(clippy::unwrap_used)] // a panic is how a test fails

use data_cifar::{DataError, Filter, Op, apply_ops};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};
use torch_ext::test_devices;

const FILTERS: [Filter; 3] = [Filter::Nearest, Filter::Bilinear, Filter::Bicubic];

/// Made by docs/parity/pil_operations.py with Pillow 13.0.0.
fn golden(set: &str) -> (Tensor, Vec<[f64; 12]>, Tensor) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/pil_operations.safetensors");
    let tensors = Tensor::read_safetensors(path).unwrap();
    let tensor = |part: &str| {
        let name = format!("{set}.{part}");
        tensors.iter().find(|(found, _)| *found == name).unwrap().1.shallow_clone()
    };
    let numbers = Vec::<f64>::try_from(tensor("ops").flatten(0, -1)).unwrap();
    let rows = numbers.chunks_exact(12).map(|row| row.try_into().unwrap()).collect();
    (tensor("images"), rows, tensor("results"))
}

/// The operation of a row, as the script numbers them.
fn op(row: &[f64; 12], height: i64, width: i64) -> Op {
    let filter = FILTERS[row[1] as usize];
    let fill = [row[2] as u8, row[3] as u8, row[4] as u8];
    let (number, factor) = (row[5], row[5] as f32);
    match row[0] as usize {
        0 => Op::AutoContrast,
        1 => Op::Equalize,
        2 => Op::Invert,
        3 => Op::Posterize { bits: number as u8 },
        4 => Op::Solarize { threshold: factor },
        5 => Op::SolarizeAdd { add: number as u8 },
        6 => Op::Brightness { factor },
        7 => Op::Contrast { factor },
        8 => Op::Color { factor },
        9 => Op::Sharpness { factor },
        10 => Op::Hue { shift: number as u8 },
        11 => Op::Affine { matrix: row[5..11].try_into().unwrap(), filter, fill },
        12 => Op::rotate(number, height, width, filter, fill),
        13 => Op::shear_x(number, filter, fill),
        14 => Op::shear_y(number, filter, fill),
        15 => Op::translate_x(number, filter, fill),
        16 => Op::translate_y(number, filter, fill),
        other => panic!("operation {other}"),
    }
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    Vec::try_from(tensor.contiguous().view([-1])).unwrap()
}

/// What all rows at once differ by from PIL, on `device`: the largest difference and the number of values, of rows
/// that interpolate and of others; and how many values there are of each.
fn differences(set: &str, device: Device) -> [(u8, usize, usize); 2] {
    let (images, rows, results) = golden(set);
    let (count, _, height, width) = images.size4().unwrap();
    let ops: Vec<Op> = rows.iter().map(|row| op(row, height, width)).collect();
    let batch = images.repeat([ops.len() as i64, 1, 1, 1]).to_device(device);
    let all: Vec<Option<Op>> = ops.iter().flat_map(|&op| vec![Some(op); count as usize]).collect();
    let made = bytes(&apply_ops(&batch, &all).unwrap().to_device(Device::Cpu));
    let expected = bytes(&results);
    assert_eq!(made.len(), expected.len());
    let mut found = [(0, 0, 0); 2];
    let values = made.len() / ops.len();
    for ((op, made), expected) in ops.iter().zip(made.chunks(values)).zip(expected.chunks(values)) {
        let interpolates = matches!(op, Op::Affine { filter: Filter::Bilinear | Filter::Bicubic, .. });
        let off: Vec<u8> = made
            .iter()
            .zip(expected)
            .map(|(made, expected)| made.abs_diff(*expected))
            .filter(|&by| by > 0)
            .collect();
        if !off.is_empty() {
            println!("{op:?}: {} of {values} differ, by up to {:?}", off.len(), off.iter().max());
        }
        let (largest, number, of) = &mut found[usize::from(interpolates)];
        *largest = off.iter().copied().fold(*largest, u8::max);
        *number += off.len();
        *of += values;
    }
    found
}

#[test]
fn every_operation_is_pils() {
    for device in test_devices() {
        for set in ["small", "large"] {
            let [exact, interpolated] = differences(set, device);
            assert_eq!((exact.0, exact.1), (0, 0), "{set} on {device:?}");
            // Most of these are whole numbers to which PIL's doubles come just short, as 0.3 times 10 does.
            let (largest, number, of) = interpolated;
            assert!(
                largest <= 1 && number * 200 <= of,
                "{set} on {device:?}: {number} of {of} differ, by up to {largest}"
            );
        }
    }
}

fn matrices() -> impl Strategy<Value = [f64; 6]> {
    let small = -2.0..2.0f64;
    let far = -20.0..20.0f64;
    let any = prop_oneof![small.clone(), Just(0.0), Just(1.0), Just(-1.0)];
    prop_oneof![
        (any.clone(), any.clone(), far.clone(), any.clone(), any, far.clone())
            .prop_map(|(a, b, c, d, e, f)| [a, b, c, d, e, f]),
        (small.clone(), far.clone()).prop_map(|(b, c)| [1.0, b, c, 0.0, 1.0, 0.0]),
        (small, far).prop_map(|(d, f)| [1.0, 0.0, 0.0, d, 1.0, f]),
        [-1e300..1e300, -1e9..1e9, -1e300..1e300, -1e9..1e9, -1e300..1e300, -1e18..1e18f64],
    ]
}

fn operations() -> impl Strategy<Value = Op> {
    let factor = || 0.0..4.0f32;
    prop_oneof![
        Just(Op::AutoContrast),
        Just(Op::Equalize),
        Just(Op::Invert),
        (0..=8u8).prop_map(|bits| Op::Posterize { bits }),
        (0.0..=256.0f32).prop_map(|threshold| Op::Solarize { threshold }),
        any::<u8>().prop_map(|add| Op::SolarizeAdd { add }),
        factor().prop_map(|factor| Op::Brightness { factor }),
        factor().prop_map(|factor| Op::Contrast { factor }),
        factor().prop_map(|factor| Op::Color { factor }),
        factor().prop_map(|factor| Op::Sharpness { factor }),
        any::<u8>().prop_map(|shift| Op::Hue { shift }),
        (matrices(), 0..3usize, any::<[u8; 3]>()).prop_map(|(matrix, filter, fill)| Op::Affine {
            matrix,
            filter: FILTERS[filter],
            fill
        }),
        (-400.0..400.0f64, 0..3usize).prop_map(|(degrees, filter)| Op::rotate(
            degrees,
            7,
            6,
            FILTERS[filter],
            [9; 3]
        )),
    ]
}

/// Random bytes `[n, 3, height, width]`, with few different values in some of the images.
fn random_images(n: usize, height: i64, width: i64, seed: u64) -> Tensor {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    let mut pixels: Vec<u8> = Vec::new();
    for _ in 0..n {
        let mask = [0xff, 0xff, 0xf0, 0x80, 0x01][usize::from(next() % 5)];
        pixels.extend((0..3 * height * width).map(|_| next() & mask));
    }
    Tensor::from_slice(&pixels).view([n as i64, 3, height, width])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Kind, shape and values do not depend on which other images there are.
    #[test]
    fn a_batch_is_its_images_one_by_one(
        ops in proptest::collection::vec(proptest::option::weighted(0.8, operations()), 1..24),
        height in 1..9i64,
        width in 1..9i64,
        seed in any::<u64>(),
    ) {
        let images = random_images(ops.len(), height, width, seed);
        let before = images.copy();
        let made = apply_ops(&images, &ops).unwrap();
        prop_assert_eq!((made.kind(), made.size()), (Kind::Uint8, images.size()));
        prop_assert_eq!(&images, &before);
        for (number, op) in ops.iter().enumerate() {
            let image = images.narrow(0, number as i64, 1);
            let alone = apply_ops(&image, &[*op]).unwrap();
            prop_assert_eq!(&alone, &made.narrow(0, number as i64, 1), "{:?}", op);
            if op.is_none() {
                prop_assert_eq!(alone, image);
            }
        }
    }

    #[test]
    fn what_changes_nothing_changes_nothing(height in 1..40i64, width in 1..40i64, seed in any::<u64>()) {
        let fill = [1, 2, 3];
        let mut ops = vec![
            Op::Posterize { bits: 8 },
            Op::Solarize { threshold: 256.0 },
            Op::SolarizeAdd { add: 0 },
            Op::Brightness { factor: 1.0 },
            Op::Contrast { factor: 1.0 },
            Op::Color { factor: 1.0 },
            Op::Sharpness { factor: 1.0 },
        ];
        for filter in FILTERS {
            ops.push(Op::Affine { matrix: [1.0, 0.0, 0.0, 0.0, 1.0, 0.0], filter, fill });
            ops.push(Op::rotate(360.0, height, width, filter, fill));
            ops.push(Op::shear_x(0.0, filter, fill));
            ops.push(Op::shear_y(0.0, filter, fill));
            ops.push(Op::translate_x(0.0, filter, fill));
            ops.push(Op::translate_y(0.0, filter, fill));
        }
        let images = random_images(ops.len(), height, width, seed);
        let ops: Vec<Option<Op>> = ops.into_iter().map(Some).collect();
        prop_assert_eq!(apply_ops(&images, &ops).unwrap(), images);
    }
}

/// A whole-pixel move and a half turn take pixels as they are, whatever the filter.
#[test]
fn whole_moves_and_turns_are_exact() {
    let images = random_images(1, 5, 7, 3);
    for filter in FILTERS {
        let one = |op: Op| apply_ops(&images, &[Some(op)]).unwrap();
        let left = one(Op::translate_x(2.0, filter, [9, 8, 7]));
        assert_eq!(left.narrow(3, 0, 5), images.narrow(3, 2, 5));
        let beyond = Tensor::from_slice(&[9u8, 8, 7]).view([1, 3, 1, 1]).expand([1, 3, 5, 2], false);
        assert_eq!(left.narrow(3, 5, 2), beyond);
        let down = one(Op::translate_y(-1.0, filter, [0; 3]));
        assert_eq!(down.narrow(2, 1, 4), images.narrow(2, 0, 4));
        assert_eq!(one(Op::rotate(180.0, 5, 7, filter, [0; 3])), images.flip([2, 3]));
        let square = random_images(1, 6, 6, 4);
        let turned = apply_ops(&square, &[Some(Op::rotate(90.0, 6, 6, filter, [0; 3]))]).unwrap();
        assert_eq!(turned, square.rot90(1, [2, 3])); // counter-clockwise
    }
}

/// Images seen through a view and batches of none are as good as others.
#[test]
fn layouts_and_empty_batches() {
    let images = random_images(4, 6, 6, 5);
    let view = images.transpose(2, 3).flip([0]);
    let ops =
        [Op::Equalize, Op::Sharpness { factor: 0.3 }, Op::shear_y(0.2, Filter::Bicubic, [0; 3]), Op::Invert];
    let ops = ops.map(Some);
    assert_eq!(apply_ops(&view, &ops).unwrap(), apply_ops(&view.contiguous(), &ops).unwrap());
    let none = apply_ops(&images.narrow(0, 0, 0), &[]).unwrap();
    assert_eq!(none.size(), [0, 3, 6, 6]);
}

#[test]
fn bad_arguments_are_errors() {
    let images = random_images(1, 4, 4, 6);
    let affine = |matrix| Op::Affine { matrix, filter: Filter::Nearest, fill: [0; 3] };
    for (op, part) in [
        (Op::Posterize { bits: 9 }, "0 to 8 bits, not 9"),
        (Op::Solarize { threshold: 256.5 }, "0 to 256, not 256.5"),
        (Op::Solarize { threshold: f32::NAN }, "not NaN"),
        (Op::Brightness { factor: -0.1 }, "not -0.1"),
        (Op::Contrast { factor: f32::INFINITY }, "not inf"),
        (Op::Color { factor: f32::NAN }, "not NaN"),
        (Op::Sharpness { factor: -1.0 }, "not -1"),
        (affine([1.0, 0.0, f64::NAN, 0.0, 1.0, 0.0]), "finite"),
        (Op::translate_x(f64::INFINITY, Filter::Bilinear, [0; 3]), "finite"),
        (Op::rotate(f64::NAN, 4, 4, Filter::Bicubic, [0; 3]), "finite"),
    ] {
        let error = apply_ops(&images, &[Some(op)]).unwrap_err();
        assert!(matches!(&error, DataError::Argument(what) if what.contains(part)), "{op:?}: {error}");
    }
    for images in
        [images.to_kind(Kind::Float), images.squeeze(), images.repeat([2, 1, 1, 1]), images.narrow(1, 0, 1)]
    {
        assert!(matches!(apply_ops(&images, &[Some(Op::Invert)]), Err(DataError::Argument(_))));
    }
}
