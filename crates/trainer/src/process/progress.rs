//! What a person or a program sees while a run goes on: a bar on a terminal, a line per epoch everywhere and in the
//! run's log, or JSON.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use run_record::{EpochStats, duration, visible};
use serde_json::{Value, json};

use crate::process::lines::say;
use crate::run::state::State;

/// How a run tells of itself on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Lines to read, and a bar on a terminal.
    Text,
    /// A JSON object per line, told apart by its `event`.
    Json,
    /// Not at all.
    Quiet,
}

impl Output {
    /// Tells something in words.
    pub fn say(self, text: &str) {
        match self {
            Self::Text => say(text),
            Self::Json => say(&json!({ "event": "note", "text": text }).to_string()),
            Self::Quiet => {}
        }
    }

    /// Tells programs something; nobody else.
    pub fn event(self, name: &str, mut fields: Value) {
        if self == Self::Json {
            fields["event"] = name.into();
            say(&fields.to_string());
        }
    }
}

/// A run's log, if this process writes it.
#[derive(Debug)]
pub struct Log(pub Option<File>);

impl Log {
    /// Adds a line with the time.
    pub fn line(&self, text: &str) {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
        // The log repeats what the history and the record keep; a full disk is theirs to report.
        let _ = self.0.as_ref().map(|mut file| writeln!(file, "{now} {}", visible(text)));
    }
}

/// Numbers as a line of bars, the lowest for `low` and the highest for `high`.
pub fn bars(numbers: &[f64], low: f64, high: f64) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let share = |number: &f64| if high > low { (number - low) / (high - low) } else { 0.0 };
    numbers.iter().map(|number| BARS[((share(number) * 7.0).round() as usize).min(7)]).collect()
}

/// Epochs whose numbers are drawn beside the bar.
const DRAWN: usize = 8;

/// The last epochs' validation loss and top-1 as bars, each between its least and its largest.
fn sparklines(history: &[EpochStats]) -> String {
    let last = &history[history.len().saturating_sub(DRAWN)..];
    let line = |value: fn(&EpochStats) -> f64| {
        let numbers: Vec<f64> = last.iter().map(value).collect();
        let low = numbers.iter().copied().fold(f64::INFINITY, f64::min);
        bars(&numbers, low, numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max))
    };
    if last.len() < 2 {
        return String::new();
    }
    format!(" loss {} top-1 {}", line(EpochStats::kept_loss), line(EpochStats::kept_top1))
}

/// The progress of one run.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    log: Log,
    output: Output,
    epochs: u32,
    images: usize,
    /// When this process began to train, and how many epochs were done then.
    started: Cell<(Instant, u32)>,
    /// The epochs that are done.
    history: RefCell<Vec<EpochStats>>,
}

impl Progress {
    /// For a run of `epochs` epochs over `images` training images each.
    pub fn new(epochs: u32, images: usize, output: Output, log: Log) -> Self {
        let shown = output == Output::Text && std::io::stderr().is_terminal();
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
        Self {
            bar,
            log,
            output,
            epochs,
            images,
            started: Cell::new((Instant::now(), 0)),
            history: RefCell::default(),
        }
    }

    /// A line for the person, above the bar if there is one, and for the log.
    pub fn line(&self, text: &str) {
        self.log(text);
        self.bar.suspend(|| self.output.say(text));
    }

    /// Training goes on from here.
    pub fn at(&self, state: &State) {
        let done = state.counters.epoch() - 1;
        self.started.set((Instant::now(), done));
        let images = u64::from(done) * self.images as u64 + state.sums.images().unsigned_abs();
        self.bar.set_position(images);
        self.bar.reset_eta();
        self.history.replace(state.counters.history.clone());
        self.show_epoch(done + 1);
    }

    /// What stands beside the bar.
    fn show_epoch(&self, epoch: u32) {
        self.bar.set_message(format!("epoch {epoch}/{}{}", self.epochs, sparklines(&self.history.borrow())));
    }

    /// A step over this many images has been asked for. On a GPU the bar runs ahead of the device
    /// within an epoch: nothing here waits for it.
    pub fn step(&self, images: usize) {
        self.bar.inc(images as u64);
    }

    /// The epoch's numbers.
    pub fn epoch_done(&self, stats: &EpochStats, best: bool) {
        let left = self.epochs - stats.epoch;
        let (started, before) = self.started.get();
        let eta = match left {
            0 => String::new(),
            _ => {
                let each = started.elapsed().as_secs_f64() / f64::from((stats.epoch - before).max(1));
                format!("  ETA {}", duration(each * f64::from(left)))
            }
        };
        let averaged =
            stats.ema_val_top1.map_or(String::new(), |top1| format!(" averaged {:5.2} %", 100.0 * top1));
        let text = format!(
            "epoch {:>width$}/{}  train loss {:.4} top-1 {:5.2} %  val loss {:.4} top-1 {:5.2} %{averaged}{}  {:.0} images/s{eta}",
            stats.epoch,
            self.epochs,
            stats.train_loss,
            100.0 * stats.train_top1,
            stats.val_loss,
            100.0 * stats.val_top1,
            if best { " best" } else { "     " },
            stats.images_per_second,
            width = self.epochs.to_string().len(),
        );
        self.history.borrow_mut().push(stats.clone());
        self.show_epoch((stats.epoch + 1).min(self.epochs));
        if self.output == Output::Json {
            self.log(&text);
            self.output.event("epoch", json!({ "stats": stats, "best": best }));
        } else {
            self.line(&text);
        }
    }

    /// A line for the log alone.
    pub fn log(&self, text: &str) {
        self.log.line(text);
    }
}

impl Drop for Progress {
    /// Takes the bar away, however training ends.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_epochs_are_drawn_between_their_least_and_largest() {
        let epoch = |top1: f64| EpochStats { val_loss: 1.0 - top1, val_top1: top1, ..EpochStats::default() };
        let history: Vec<EpochStats> = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8].map(epoch).to_vec();
        assert_eq!(sparklines(&history), " loss █▇▆▅▄▃▂▁ top-1 ▁▂▃▄▅▆▇█");
        assert_eq!(sparklines(&history[..1]), "");
        assert_eq!(sparklines(&[epoch(0.5), epoch(0.5)]), " loss ▁▁ top-1 ▁▁");
        assert_eq!(bars(&[f64::NAN, 2.0], 0.0, 1.0), "▁█");
    }
}
