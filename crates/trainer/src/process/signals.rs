//! Being asked to stop: a step is finished, what must last is saved, and the same command goes on later. And a limit on
//! the size of files, which is an error where it is met.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};
use signal_hook::flag;

/// What a shell adds to a signal's number to say that it ended a program.
const BY_SIGNAL: i32 = 128;

/// The signals that ask to stop.
pub const STOPPING: [i32; 3] = [SIGINT, SIGTERM, SIGUSR1];

/// Whether somebody has asked this process to stop.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    signal: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
}

impl Stop {
    /// Listens for Ctrl-C, SIGTERM and SIGUSR1 from now on. A second Ctrl-C ends the process at once.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn listen() -> io::Result<Self> {
        let stop = Self::default();
        let again = Arc::new(AtomicBool::new(false));
        // In this order: the first Ctrl-C finds the switch off and turns it on, the second finds it on.
        flag::register_conditional_shutdown(SIGINT, BY_SIGNAL + SIGINT, Arc::clone(&again))?;
        flag::register(SIGINT, again)?;
        for signal in STOPPING {
            flag::register_usize(signal, Arc::clone(&stop.signal), signal.unsigned_abs() as usize)?;
            flag::register(signal, Arc::clone(&stop.stopped))?;
        }
        Ok(stop)
    }

    /// Set once a signal has come, for what looks often.
    pub fn flag(&self) -> &AtomicBool {
        &self.stopped
    }

    /// # Errors
    /// [`Stopped`] once a signal has come.
    pub fn check(&self) -> Result<(), Stopped> {
        match self.signal.load(Ordering::Relaxed) {
            0 => Ok(()),
            signal => Err(Stopped { signal: signal as i32 }),
        }
    }
}

/// From now on a file that grows past the limit on the size of files (`ulimit -f`) is an error of writing it, as on a full
/// disk, and not the end of the process.
///
/// # Errors
/// The system's refusal.
pub fn survive_file_limit() -> io::Result<()> {
    flag::register(SIGXFSZ, Arc::default()).map(drop)
}

/// Somebody asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stopped by {}", name(*signal))]
pub struct Stopped {
    /// The signal.
    pub signal: i32,
}

impl Stopped {
    /// What a shell expects of a process that the signal ended.
    pub fn exit_code(self) -> u8 {
        u8::try_from(BY_SIGNAL + self.signal).unwrap_or(1)
    }
}

/// The name of a signal that stops.
fn name(signal: i32) -> &'static str {
    match signal {
        SIGINT => "Ctrl-C",
        SIGTERM => "SIGTERM",
        SIGUSR1 => "SIGUSR1",
        _ => "a signal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_told_with_its_exit_code() {
        let stop = Stop::listen().unwrap();
        assert!(stop.check().is_ok());
        signal_hook::low_level::raise(SIGUSR1).unwrap();
        let error = stop.check().unwrap_err();
        assert_eq!(error.exit_code(), 138);
        assert!(error.to_string().contains("SIGUSR1"), "{error}");
        assert!(Stop::default().check().is_ok());
    }
}
