//! Progress in bytes: a line that is written over on a terminal, a plain line per fifth elsewhere.

use std::io::{IsTerminal, Write, stderr};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use run_record::visible;

use crate::machine::disk::megabytes;
use crate::process::{cannot_start, note};

/// How often the line on a terminal is written over.
const PERIOD: Duration = Duration::from_millis(100);

/// Progress of one thing whose size in bytes may be known.
pub(crate) struct Meter {
    what: String,
    total: Option<u64>,
    on_terminal: bool,
    /// When the line was last written.
    shown: Option<Instant>,
    /// The part, in fifths of the total, last written as a line.
    fifths: u64,
}

impl Meter {
    pub(crate) fn new(what: &str, total: Option<u64>) -> Self {
        let what = visible(what).into_owned();
        Self { what, total, on_terminal: stderr().is_terminal(), shown: None, fifths: 0 }
    }

    /// Shows that `bytes` are done.
    pub(crate) fn set(&mut self, bytes: u64) {
        let of = self.total.map_or(String::new(), |total| format!(" of {}", megabytes(total)));
        let line = format!("{}: {}{of}", self.what, megabytes(bytes));
        if self.on_terminal {
            if self.shown.is_none_or(|shown| shown.elapsed() >= PERIOD) {
                self.shown = Some(Instant::now());
                let _ = write!(stderr(), "\r\x1b[K{line}");
            }
        } else if let Some(total) = self.total.filter(|total| *total > 20_000_000) {
            let fifths = (bytes.min(total) * 5) / total;
            if fifths > self.fifths {
                self.fifths = fifths;
                note(line);
            }
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.shown.is_some() {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}

/// Runs a program that downloads, and shows meanwhile how many bytes there are.
pub(crate) fn watched(
    command: &mut Command,
    what: &str,
    total: Option<u64>,
    bytes: impl Fn() -> u64,
) -> Result<Output> {
    let pipes = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = pipes.spawn().with_context(|| cannot_start(command))?;
    let ended = thread::spawn(move || child.wait_with_output());
    let mut meter = Meter::new(what, total);
    while !ended.is_finished() {
        thread::sleep(PERIOD / 4);
        meter.set(bytes());
    }
    let output = ended.join().map_err(|_| anyhow!("the thread that waits for it has failed"))?;
    output.with_context(|| format!("cannot wait for {}", command.get_program().display()))
}
