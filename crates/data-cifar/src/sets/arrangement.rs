//! Which images of a folder are in which part, and in which order.

use std::collections::BTreeMap;

use crate::error::DataError;
use crate::rng::{keyed_rng, shuffle};
use crate::sets::folder::Folder;
use crate::sets::layout::{Part, problem};

/// The class of each image by part, in the order of the images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartLabels {
    /// Of the training images, those of the folder's own validation part at their end.
    pub train: Vec<u16>,
    /// How many of the last of them come from there.
    pub validation: usize,
    /// Of the test images.
    pub test: Vec<u16>,
}

/// The images of each part, as indices of a folder's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arrangement {
    pub train: Vec<usize>,
    /// How many at the end of `train` come from the validation directory.
    pub validation: usize,
    pub test: Vec<usize>,
}

impl Folder {
    /// The labels the parts have if every file can be decoded.
    ///
    /// # Errors
    /// Those of the division into parts: nothing left to train on.
    pub fn expected_labels(&self) -> Result<PartLabels, DataError> {
        Ok(self.labels(&self.arrange(&vec![true; self.len()])?))
    }

    pub(crate) fn labels(&self, Arrangement { train, validation, test }: &Arrangement) -> PartLabels {
        let of = |files: &[usize]| files.iter().map(|&file| self.files[file].label).collect();
        PartLabels { train: of(train), validation: *validation, test: of(test) }
    }

    /// The order of the images whose files are `decoded`, as indices of `files`.
    pub(crate) fn arrange(&self, decoded: &[bool]) -> Result<Arrangement, DataError> {
        let mut of_class = vec![0; self.class_names.len()];
        let mut parts = [Vec::new(), Vec::new(), Vec::new()];
        for (index, file) in self.files.iter().enumerate().filter(|(index, _)| decoded[*index]) {
            parts[file.part as usize].push(index);
            if file.part == Part::Train {
                of_class[usize::from(file.label)] += 1;
            }
        }
        if let Some(class) = of_class.iter().position(|&count| count == 0)
            && !self.classes_given
        {
            let name = &self.class_names[class];
            return Err(problem(&self.root, format!("no picture of class {name} could be decoded")));
        }
        let labels: Vec<u16> = self.files.iter().map(|file| file.label).collect();
        let [mut train, validation, mut test] = parts.map(|files| stratified(&files, &labels));
        if let (false, Some(share), n @ 1..) = (self.has_test, self.options.test_fraction, train.len()) {
            let count = ((n as f64 * share).round() as usize).max(1);
            if count >= n {
                let text = format!(
                    "cannot cut {count} of {n} images off for testing: none would be left to train on"
                );
                return Err(problem(&self.root, text));
            }
            test = train.split_off(n - count);
        }
        let validation_count = validation.len();
        train.extend(validation);
        Ok(Arrangement { train, validation: validation_count, test })
    }
}

/// The files shuffled within their classes and then merged in proportion; see [`list_folder`](crate::list_folder).
fn stratified(files: &[usize], labels: &[u16]) -> Vec<usize> {
    let mut classes = BTreeMap::<u16, Vec<usize>>::new();
    for &file in files {
        classes.entry(labels[file]).or_default().push(file);
    }
    // (2r + 1, n, class, file): the position is the first over twice the second.
    let mut placed = Vec::with_capacity(files.len());
    for (class, mut members) in classes {
        let mut rng = keyed_rng(0, "folder", class.into(), 0);
        shuffle(&mut rng, &mut members);
        let count = members.len() as u64;
        placed.extend(members.into_iter().zip(0u64..).map(|(file, rank)| (2 * rank + 1, count, class, file)));
    }
    placed.sort_by(|a, b| (a.0 * b.1).cmp(&(b.0 * a.1)).then(a.2.cmp(&b.2)));
    placed.into_iter().map(|(.., file)| file).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Four of one class and two of another by hand: positions 1/8, 3/8, 5/8, 7/8 and 1/4, 3/4.
    #[test]
    fn classes_are_merged_in_proportion() {
        let labels = [0, 0, 0, 0, 1, 1];
        let order = stratified(&[0, 1, 2, 3, 4, 5], &labels);
        assert_eq!(order.iter().map(|&file| labels[file]).collect::<Vec<_>>(), [0, 1, 0, 0, 1, 0]);
        let twice = stratified(&[0, 1, 2, 4, 5], &[1, 1, 1, 9, 0, 0]);
        assert_eq!(twice.iter().map(|&file| [1, 1, 1, 9, 0, 0][file]).collect::<Vec<_>>(), [1, 0, 1, 0, 1]);
    }

    /// Every result on a folder rests on it. Computed from the definitions by a separate program.
    #[test]
    fn the_order_never_changes() {
        let files: Vec<usize> = (0..12).collect();
        let labels = [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1];
        assert_eq!(stratified(&files, &labels), [5, 8, 1, 9, 3, 11, 0, 10, 2, 7, 4, 6]);
    }

    proptest! {
        #[test]
        fn every_stretch_has_the_classes_in_proportion(labels in prop::collection::vec(0u16..5, 1..300), cut in any::<prop::sample::Index>()) {
            let n = labels.len();
            let order = stratified(&(0..n).collect::<Vec<_>>(), &labels);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            let tail = &order[cut.index(n)..];
            for class in 0..5 {
                let of_class = labels.iter().filter(|&&label| label == class).count();
                let found = tail.iter().filter(|&&file| labels[file] == class).count();
                let expected = of_class as f64 * tail.len() as f64 / n as f64;
                // Each class is within one half of its share at every position on [0, 1], and the number of images
                // up to a position within one half per class.
                prop_assert!((found as f64 - expected).abs() <= 0.5 + 2.5, "{} of {}", found, expected);
            }
        }
    }
}
