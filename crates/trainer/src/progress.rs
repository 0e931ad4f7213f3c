//! What a person sees while a run goes on: a bar on a terminal, a line per epoch everywhere and in
//! the run's log.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use run_record::{EpochStats, duration};

/// Prints a line of results. A reader that stopped listening (`| head`) is no reason to stop
/// training.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// The progress of one run.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    log: File,
    quiet: bool,
    epochs: u32,
    started: Instant,
}

impl Progress {
    /// For a run of `epochs` epochs over `images` training images each.
    pub fn new(epochs: u32, images: usize, quiet: bool, log: File) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        let target = if shown { ProgressDrawTarget::stderr_with_hz(4) } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(u64::from(epochs) * images as u64), target);
        let style = "{msg} {wide_bar} {percent:>3} % · {per_sec} · ETA {eta}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            let per_second = |state: &indicatif::ProgressState, out: &mut dyn std::fmt::Write| {
                // A terminal that refuses text leaves nobody to tell.
                let _ = write!(out, "{:.0} images/s", state.per_sec());
            };
            bar.set_style(style.with_key("per_sec", per_second).progress_chars("█▌ "));
        }
        Self { bar, log, quiet, epochs, started: Instant::now() }
    }

    /// A line for the person, above the bar if there is one, and for the log.
    pub fn line(&self, text: &str) {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
        // The log repeats what the history and the record keep; a full disk is theirs to report.
        let _ = writeln!(&self.log, "{now} {text}");
        if !self.quiet {
            self.bar.suspend(|| say(text));
        }
    }

    /// The epoch that starts now, counted from 1.
    pub fn epoch(&self, epoch: u32) {
        self.bar.set_message(format!("epoch {epoch}/{}", self.epochs));
    }

    /// A step over this many images has been asked for. On a GPU the bar runs ahead of the device
    /// within an epoch: nothing here waits for it.
    pub fn step(&self, images: usize) {
        self.bar.inc(images as u64);
    }

    /// The epoch's numbers.
    pub fn epoch_done(&self, stats: &EpochStats, best: bool) {
        let left = self.epochs - stats.epoch;
        let eta = match left {
            0 => String::new(),
            _ => {
                let each = self.started.elapsed().as_secs_f64() / f64::from(stats.epoch);
                format!("  ETA {}", duration(each * f64::from(left)))
            }
        };
        self.line(&format!(
            "epoch {:>width$}/{}  train loss {:.4} top-1 {:5.2} %  val loss {:.4} top-1 {:5.2} %{}  {:.0} images/s{eta}",
            stats.epoch,
            self.epochs,
            stats.train_loss,
            100.0 * stats.train_top1,
            stats.val_loss,
            100.0 * stats.val_top1,
            if best { " best" } else { "     " },
            stats.images_per_second,
            width = self.epochs.to_string().len(),
        ));
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
