//! Which images of a batch this thread computes, where several processes share one: what is drawn for an image is then
//! the same whoever computes it.

use std::cell::Cell;

use tch::Tensor;

/// Consecutive images of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchShare {
    /// Images of the batch before them.
    pub first: i64,
    /// How many they are, at least 1.
    pub len: i64,
    /// Images of the batch.
    pub whole: i64,
}

thread_local! {
    static SHARE: Cell<Option<BatchShare>> = const { Cell::new(None) };
}

/// What of a batch this thread computes, if not all of it.
pub fn batch_share() -> Option<BatchShare> {
    SHARE.get()
}

/// Does `work`, whose images are a share of a batch: dropout is that of these images in the whole batch.
pub fn with_batch_share<T>(share: BatchShare, work: impl FnOnce() -> T) -> T {
    struct Before(Option<BatchShare>);
    impl Drop for Before {
        fn drop(&mut self) {
            SHARE.set(self.0);
        }
    }
    let _before = Before(SHARE.replace(Some(share)));
    work()
}

impl BatchShare {
    /// `first` and `whole` where the share's images take `count` rows: several each, for windows of an image.
    pub fn scaled(self, count: i64) -> [i64; 2] {
        let each = count / self.len.max(1);
        [self.first * each, self.whole * each]
    }

    /// Of what was drawn for the whole batch, `[whole, ..]` or several rows for each image, the rows of the share's images.
    pub fn rows(self, drawn: &Tensor) -> Tensor {
        let each = drawn.size().first().map_or(0, |rows| rows / self.whole.max(1));
        drawn.narrow(0, self.first * each, self.len * each)
    }
}
