//! The process and its surroundings: terminal, signals, memory, files, the machine.

pub mod environment;
pub mod launch;
pub mod lines;
pub mod meeting;
pub mod memory;
pub mod paths;
pub mod progress;
pub mod signals;
pub mod table;
