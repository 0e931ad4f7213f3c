//! What happens to the weights in a step: the loss, the rate, the arithmetic, the update, the average.

pub mod ema;
pub mod loss;
mod muon;
pub mod optimizer;
pub mod precision;
pub mod schedule;
