//! What a trained network sees: its answers for pictures and for parts of a data set, and what they rest on.

pub mod answers;
pub mod colours;
pub mod explain;
pub mod figure;
pub mod glance;
pub mod outcome;
pub mod pictures;
pub mod predict;
pub mod trained;
pub mod verify;
