//! A progress bar on a terminal, a plain line per fifth elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use run_record::visible;

use crate::disk::megabytes;
use crate::process::note;

/// Progress of one thing whose size in bytes may be known.
pub(crate) struct Meter {
    what: String,
    total: Option<u64>,
    /// On a terminal.
    bar: Option<ProgressBar>,
    /// The part, in fifths of the total, last written as a line.
    fifths: u64,
}

impl Meter {
    pub(crate) fn new(what: impl Into<String>, total: Option<u64>) -> Self {
        let what = visible(&what.into()).into_owned();
        let bar = std::io::stderr().is_terminal().then(|| {
            let (bar, template) = match total {
                Some(total) => {
                    (ProgressBar::new(total), "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
                }
                None => (ProgressBar::new_spinner(), "{msg} {spinner} {bytes} {bytes_per_sec}"),
            };
            // The template is a constant of ours; a bar in the default style is no reason to stop.
            let style = ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar());
            bar.with_style(style).with_message(what.clone())
        });
        Self { what, total, bar, fifths: 0 }
    }

    /// Shows that `bytes` are done.
    pub(crate) fn set(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
        } else if let Some(total) = self.total.filter(|total| *total > 20_000_000) {
            let fifths = (bytes.min(total) * 5) / total;
            if fifths > self.fifths {
                self.fifths = fifths;
                note(format!("{}: {} of {}", self.what, megabytes(bytes.min(total)), megabytes(total)));
            }
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
