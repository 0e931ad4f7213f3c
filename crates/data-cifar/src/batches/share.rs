//! What one of several processes computes of every batch.

use std::ops::Range;

/// One of several processes that compute the same batches together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// This process, from 0.
    pub rank: usize,
    /// How many there are, at least 1.
    pub processes: usize,
    /// Parts that a batch is passed through a network in, one after the other, at least 1. Each of them is shared.
    pub parts: usize,
}

/// What a process computes of a part of a batch: places in the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The part.
    pub part: Range<usize>,
    /// The process's own images, at least one.
    pub own: Range<usize>,
    /// Whether they count. In a part of fewer images than processes, those without one compute the first image, for
    /// nothing: what all have to do together stays the same for all.
    pub counts: bool,
}

impl Share {
    /// All of every batch.
    pub fn alone(parts: usize) -> Self {
        Self { rank: 0, processes: 1, parts }
    }

    /// What it is of a batch of so many images: consecutive ones of each part, of all processes together every one once.
    /// The first processes have one more where a part cannot be divided evenly.
    ///
    /// ```
    /// use data_cifar::Share;
    /// let second = Share { rank: 1, processes: 2, parts: 2 };
    /// let own: Vec<_> = second.slices(9).into_iter().map(|slice| slice.own).collect();
    /// assert_eq!(own, [3..5, 7..9]);
    /// ```
    pub fn slices(self, batch: usize) -> Vec<Slice> {
        let Self { rank, processes, parts } = self;
        let len = batch.div_ceil(parts.max(1)).max(1);
        let slice = |start: usize| {
            let part = start..batch.min(start + len);
            let (each, more) = (part.len() / processes, part.len() % processes);
            let first = start + rank * each + rank.min(more);
            let own = first..first + each + usize::from(rank < more);
            let counts = !own.is_empty();
            Slice { own: if counts { own } else { start..start + 1 }, part, counts }
        };
        (0..batch).step_by(len).map(slice).collect()
    }

    /// The places in a batch of the images it needs, in order: its own, and where images are mixed with those as far from
    /// the batch's end as they are from its start, these too.
    pub fn places(self, batch: usize, mixed: bool) -> Vec<usize> {
        let own = self.slices(batch).into_iter().flat_map(|slice| slice.own);
        let mut places: Vec<usize> = match mixed {
            true => own.flat_map(|place| [place, batch - 1 - place]).collect(),
            false => own.collect(),
        };
        places.sort_unstable();
        places.dedup();
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_images_belong_to_one_process_each() {
        for batch in 1..40 {
            for parts in 1..5 {
                for processes in 1..6 {
                    let share = |rank| Share { rank, processes, parts };
                    let slices: Vec<Vec<Slice>> =
                        (0..processes).map(|rank| share(rank).slices(batch)).collect();
                    let mut all = Vec::new();
                    for slice in slices.iter().flatten() {
                        assert!(slice.part.start <= slice.own.start && slice.own.end <= slice.part.end);
                        assert!(!slice.own.is_empty());
                        all.extend(slice.own.clone().filter(|_| slice.counts));
                    }
                    all.sort_unstable();
                    assert_eq!(all, (0..batch).collect::<Vec<_>>(), "{batch} {parts} {processes}");
                    assert!(slices.iter().all(|own| own.len() == slices[0].len()));
                    for rank in 0..processes {
                        let places = share(rank).places(batch, true);
                        let mirrored: Vec<usize> = places.iter().rev().map(|at| batch - 1 - at).collect();
                        assert_eq!(places, mirrored);
                    }
                }
            }
        }
        let whole = Slice { part: 0..7, own: 0..7, counts: true };
        assert_eq!(Share::alone(1).slices(7), [whole]);
    }
}
