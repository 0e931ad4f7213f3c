//! The handwritten digits that come with the project: the test part of the UCI "Optical Recognition
//! of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998, doi:10.24432/C50P49), real data without a download.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use csv::{ByteRecord, ReaderBuilder};
use ndarray::{ArcArray, Axis};
use run_record::sha256;

use crate::error::DataError;
use crate::sets::dataset::{Dataset, Labelled};

/// Side of an image in the file, in pixels.
const SIDE: usize = 8;
/// Each pixel of the file becomes a block of `BLOCK` by `BLOCK` pixels: 8×8 becomes 32×32.
const BLOCK: usize = 4;
const MAX_PIXEL: u8 = 16;
const MAX_LABEL: u8 = 9;
const ROWS: usize = 1_797;

/// Reads the digits: 1,471 training and 326 test images, 3×32×32, ten classes. `dir` holds `digits.csv`.
///
/// The split is by position: the sixth and the last of every eleven rows are for testing. The labels of the file repeat one sequence of
/// about 130 digits fourteen times: it is in the order of the forms that people filled in, so that both
/// parts have digits of every form. A test accuracy is therefore one for known handwritings.
///
/// # Errors
/// When the file is missing, has another number of rows, or holds anything that [`parse_digits`] refuses.
pub fn load_digits(dir: &Path) -> Result<Dataset, DataError> {
    let file = dir.join("digits.csv");
    let bytes = fs::read(&file).map_err(|source| match source.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => DataError::Missing {
            file: file.clone(),
            hint: "it comes with the project, as datasets/digits/digits.csv".into(),
        },
        _ => DataError::Read { file: file.clone(), source },
    })?;
    let all = parse_digits(&bytes, &file)?;
    if all.len() != ROWS {
        let hint = "restore the copy that comes with the project, datasets/digits/digits.csv".into();
        return Err(DataError::Rows { file, found: all.len(), expected: ROWS, hint });
    }
    Ok(Dataset {
        name: "digits".into(),
        class_names: (0..=MAX_LABEL).map(|digit| digit.to_string()).collect(),
        train: rows(&all, |row| !is_for_testing(row)),
        test: rows(&all, is_for_testing),
        coarse: None,
        validation: 0,
        skipped: Vec::new(),
        sha256: sha256(&bytes),
    })
}

/// Two rows of every eleven. Many forms count from 0 to 9, so that a step of five or ten would give the test
/// part some digits far more often than others.
fn is_for_testing(row: usize) -> bool {
    matches!(row % 11, 5 | 10)
}

/// A copy of the rows that are `chosen` by their position, counted from 0.
fn rows(all: &Labelled, chosen: impl Fn(usize) -> bool) -> Labelled {
    let rows: Vec<usize> = (0..all.len()).filter(|&row| chosen(row)).collect();
    Labelled {
        images: all.images.select(Axis(0), &rows).into_shared(),
        labels: all.labels.select(Axis(0), &rows),
    }
}

/// Parses rows of 65 integers: 64 pixels from 0 (white) to 16 (black ink), row by row from the top
/// left, then the digit. `file` names the source in messages.
///
/// The images are `[N, 3, 32, 32]`: each pixel becomes a 4×4 block of round(value·255/16), the same in
/// the three channels.
///
/// # Errors
/// At the first row with another number of columns, or value that is not an integer in its range, and
/// when there is no row at all.
pub fn parse_digits(bytes: &[u8], file: &Path) -> Result<Labelled, DataError> {
    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true) // the number of columns is checked here, with a better message
        .quoting(false)
        .from_reader(bytes);
    let mut pixels: Vec<u8> = Vec::new();
    let mut labels: Vec<u8> = Vec::new();
    let mut row = ByteRecord::new();
    while reader
        .read_byte_record(&mut row)
        .map_err(|error| DataError::Read { file: file.into(), source: error.into() })?
    {
        let line = row.position().map_or(0, csv::Position::line);
        if row.len() != SIDE * SIDE + 1 {
            return Err(DataError::Columns {
                file: file.into(),
                line,
                found: row.len(),
                expected: SIDE * SIDE + 1,
            });
        }
        for (index, text) in row.iter().enumerate() {
            let (kind, max, column) = if index < SIDE * SIDE {
                ("pixel", MAX_PIXEL, &mut pixels)
            } else {
                ("label", MAX_LABEL, &mut labels)
            };
            match integer(text).filter(|&value| value <= max) {
                Some(value) => column.push(value),
                None => {
                    let value = String::from_utf8_lossy(text).into_owned();
                    return Err(DataError::Value {
                        file: file.into(),
                        line,
                        column: index + 1,
                        kind,
                        value,
                        max,
                    });
                }
            }
        }
    }
    if labels.is_empty() {
        return Err(DataError::Empty { file: file.into() });
    }
    let images = ArcArray::from_shape_fn((labels.len(), 3, SIDE * BLOCK, SIDE * BLOCK), |(n, _, y, x)| {
        let value = u16::from(pixels[(n * SIDE + y / BLOCK) * SIDE + x / BLOCK]);
        ((value * 255 + 8) / 16) as u8 // + 8 rounds to nearest; at most 255
    });
    Ok(Labelled { images, labels: labels.into_iter().map(u16::from).collect() })
}

/// A non-negative integer of at most three plain digits: no sign, no blank.
fn integer(text: &[u8]) -> Option<u8> {
    let digits = text.iter().all(u8::is_ascii_digit).then_some(text)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digits() -> Dataset {
        load_digits(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/digits")).unwrap()
    }

    fn parse(text: &str) -> Result<Labelled, String> {
        parse_digits(text.as_bytes(), Path::new("some/digits.csv")).map_err(|error| error.to_string())
    }

    /// A row of 64 times `pixel`, then `label`.
    fn row(pixel: &str, label: &str) -> String {
        format!("{}{label}\n", format!("{pixel},").repeat(64))
    }

    fn counts(labels: &ndarray::Array1<u16>) -> [usize; 10] {
        std::array::from_fn(|class| labels.iter().filter(|&&label| usize::from(label) == class).count())
    }

    #[test]
    fn the_file_is_the_published_one() {
        let set = digits();
        assert_eq!(set.sha256, "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8");
        assert_eq!((set.name.as_str(), set.class_names.join("")), ("digits", "0123456789".into()));
        assert_eq!(set.train.images.shape(), [1471, 3, 32, 32]);
        assert_eq!(set.test.images.shape(), [326, 3, 32, 32]);
        assert_eq!(counts(&set.train.labels), [147, 153, 146, 151, 146, 142, 153, 145, 141, 147]);
        assert_eq!(counts(&set.test.labels), [31, 29, 31, 32, 35, 40, 28, 34, 33, 33]);
        // A form starts with three runs of 0 to 9.
        assert_eq!(set.train.labels.to_vec()[..12], [0, 1, 2, 3, 4, 6, 7, 8, 9, 1, 2, 3]);
        assert_eq!(set.test.labels.to_vec()[..10], [5, 0, 6, 1, 7, 5, 8, 7, 0, 2]);
        assert_eq!(set.test.labels.to_vec()[325], 9);
    }

    /// A zero, upright: neither transposed nor mirrored.
    #[test]
    fn the_first_image_is_known() {
        let images = digits().train.images;
        let value = |y: usize, x: usize| (u32::from(images[[0, 0, y * 4, x * 4]]) * 16 + 128) / 255;
        let rows: Vec<Vec<u32>> = (0..8).map(|y| (0..8).map(|x| value(y, x)).collect()).collect();
        assert_eq!(
            rows,
            [
                [0, 0, 5, 13, 9, 1, 0, 0],
                [0, 0, 13, 15, 10, 15, 5, 0],
                [0, 3, 15, 2, 0, 11, 8, 0],
                [0, 4, 12, 0, 0, 8, 8, 0],
                [0, 5, 8, 0, 0, 9, 8, 0],
                [0, 4, 11, 0, 1, 12, 7, 0],
                [0, 2, 14, 5, 10, 12, 0, 0],
                [0, 0, 6, 13, 10, 0, 0, 0],
            ]
        );
        // 13, 15 and 8 sixteenths of 255, rounded to nearest.
        assert_eq!([images[[0, 0, 0, 12]], images[[0, 0, 4, 12]], images[[0, 0, 8, 24]]], [207, 239, 128]);
    }

    #[test]
    fn a_pixel_becomes_a_block_in_every_channel() {
        let images = digits().train.images;
        for ((n, _, y, x), &value) in images.indexed_iter() {
            assert_eq!(value, images[[n, 0, y / 4 * 4, x / 4 * 4]], "image {n}, row {y}, column {x}");
        }
    }

    #[test]
    fn values_are_scaled_to_bytes_and_rounded() {
        let text: String = (0..=16).map(|value| row(&value.to_string(), "7")).collect();
        let set = parse(&text).unwrap();
        for (value, image) in set.images.outer_iter().enumerate() {
            let byte = (value as f64 * 255.0 / 16.0).round() as u8;
            assert!(image.iter().all(|&pixel| pixel == byte), "{value}");
        }
        assert_eq!((set.images[[0, 0, 0, 0]], set.images[[16, 0, 0, 0]]), (0, 255));
        assert_eq!(counts(&set.labels), [0, 0, 0, 0, 0, 0, 0, 17, 0, 0]);
    }

    #[test]
    fn errors_name_line_column_and_value() {
        let good = row("16", "9");
        for (text, parts) in [
            (String::new(), vec!["some/digits.csv is empty"]),
            ("\n\n".into(), vec!["is empty"]),
            (
                good.clone() + &row("0", "10"),
                vec!["some/digits.csv, line 2, column 65: label \"10\"", "0 to 9"],
            ),
            (row("17", "1"), vec!["line 1, column 1: pixel \"17\"", "0 to 16"]),
            (good.clone() + &good + &good.replacen("16", "x", 1), vec!["line 3, column 1: pixel \"x\""]),
            (row("0.5", "1"), vec!["pixel \"0.5\""]),
            (row("-1", "1"), vec!["pixel \"-1\""]),
            (row("+1", "1"), vec!["pixel \"+1\""]),
            (row(" 1", "1"), vec!["pixel \" 1\""]),
            (row("\"1\"", "1"), vec!["pixel \"\\\"1\\\"\""]),
            (row("", "1"), vec!["pixel \"\""]),
            (row("256", "1"), vec!["pixel \"256\""]),
            (row("1", ""), vec!["column 65: label \"\""]),
            (good.clone() + "1,2,3\n", vec!["line 2: 3 columns instead of 65"]),
            (row("1", "1,1"), vec!["line 1: 66 columns instead of 65"]),
        ] {
            let message = parse(&text).unwrap_err();
            for part in parts {
                assert!(message.contains(part), "{part:?} is not in {message:?}");
            }
        }
        let bytes = [&[0xff], &good.as_bytes()[2..]].concat(); // not UTF-8
        let message = parse_digits(&bytes, Path::new("f")).unwrap_err().to_string();
        assert!(message.contains("line 1, column 1: pixel \"\u{fffd}\""), "{message}");
    }

    #[test]
    fn a_missing_or_cut_file_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let message = load_digits(dir.path()).unwrap_err().to_string();
        assert!(message.contains("digits.csv not found; it comes with the project"), "{message}");
        fs::write(dir.path().join("digits.csv"), row("1", "1")).unwrap();
        let message = load_digits(dir.path()).unwrap_err().to_string();
        assert!(message.contains("digits.csv has 1 rows instead of 1797; restore"), "{message}");
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "[0-9,\n\r\" x.-]{0,400}") {
            let _ = parse(&text);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse_digits(&bytes, Path::new("f"));
        }

        #[test]
        fn rows_of_integers_survive(
            rows in prop::collection::vec((prop::collection::vec(0u8..=16, 64), 0u8..=9), 1..5),
        ) {
            let line = |(pixels, label): &(Vec<u8>, u8)| -> String {
                pixels.iter().chain([label]).map(u8::to_string).collect::<Vec<_>>().join(",")
            };
            let set = parse(&rows.iter().map(line).collect::<Vec<_>>().join("\n")).unwrap();
            for (n, (pixels, label)) in rows.iter().enumerate() {
                prop_assert_eq!(set.labels[n], u16::from(*label));
                for (index, &pixel) in pixels.iter().enumerate() {
                    let byte = (f64::from(pixel) * 255.0 / 16.0).round() as u8;
                    prop_assert_eq!(set.images[[n, 1, index / 8 * 4, index % 8 * 4 + 3]], byte);
                }
            }
        }
    }
}
