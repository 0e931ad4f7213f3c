//! `predict`: what a network says of pictures.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::PathBuf;

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use run_record::visible;
use serde_json::json;
use trainer::look::pictures::{Found, Unread};
use trainer::look::predict::{Prediction, predict};
use trainer::look::trained::Trained;
use trainer::network::located;
use trainer::optim::precision::{self, Precision};
use trainer::process::lines::note;
use trainer::{Error, process::environment, run::recipes};

use super::listen;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pictures, folders of pictures, patterns such as 'photos/*.jpg', or - for standard input: one picture, or a list of
    /// paths.
    #[arg(required = true, value_name = "PICTURE")]
    pictures: Vec<PathBuf>,
    /// Weights of a run: its directory, a file, a network in weights/, or hf:ORG/NAME[@REVISION][/FILE] [default: those of
    /// the newest finished run, or without one the best in weights/].
    #[arg(long, value_name = "WEIGHTS")]
    weights: Option<PathBuf>,
    /// Classes to name.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    top: u16,
    /// How answers are written.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Arithmetic; auto is bf16 where the device computes in it, which is faster and moves probabilities by about 1 %.
    #[arg(long, value_enum, default_value_t = precision::Choice::F32)]
    precision: precision::Choice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Columns to read.
    Table,
    /// A header and a row per picture.
    Csv,
    /// A JSON object per line.
    Json,
}

/// Opens the weights that were asked for, or those that are taken by default, and says which.
pub fn open(weights: Option<&PathBuf>, device: &str) -> Result<Trained, Error> {
    let device = environment::device(device)?;
    match weights {
        Some(weights) => Trained::open(weights, device),
        None => {
            let trained = Trained::open(&located::by_default(&recipes::workspace_root()?)?, device)?;
            note(&trained.in_words());
            Ok(trained)
        }
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Error> {
    let stop = listen()?;
    let trained = open(args.weights.as_ref(), &args.device)?;
    let found = Found::new(&args.pictures, io::stdin().lock());
    found.notes.iter().for_each(|text| note(text));
    let total = found.pictures.len();
    let top = usize::from(args.top).min(trained.card.class_names.len());
    let bar = progress_bar(total);
    let sheet = Sheet { format: args.format, top, class_width: class_width(&trained.card.class_names) };
    let mut listening = bar.suspend(|| sheet.header())?;
    if !listening {
        return Ok(());
    }
    let unread =
        predict(&trained, Precision::of(args.precision, trained.device)?, found, top, &stop, |answer| {
            bar.inc(1);
            listening = bar.suspend(|| sheet.row(&answer))?;
            Ok(listening)
        })?;
    bar.finish_and_clear();
    if unread > 0 && listening {
        return Err(Error::Unread { unread, total });
    }
    Ok(())
}

fn progress_bar(pictures: usize) -> ProgressBar {
    let shown = pictures > 1 && io::stderr().is_terminal();
    let target = if shown { ProgressDrawTarget::stderr_with_hz(4) } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(pictures as u64), target);
    if let Ok(style) =
        ProgressStyle::with_template("{pos}/{len} pictures {wide_bar} {percent:>3} % · ETA {eta}")
    {
        bar.set_style(style.progress_chars("█▌ "));
    }
    bar
}

/// Columns of the longest name, within reason.
fn class_width(classes: &[String]) -> usize {
    classes.iter().map(|class| visible(class).chars().count()).max().unwrap_or(0).clamp(5, 24)
}

/// How answers are laid out.
struct Sheet {
    format: Format,
    top: usize,
    class_width: usize,
}

impl Sheet {
    /// What comes first. `false` if nobody reads it.
    fn header(&self) -> Result<bool, Error> {
        let ranks = 1..=self.top;
        match self.format {
            Format::Table => {
                let columns =
                    ranks.map(|rank| format!("{:<1$}", format!("top-{rank}"), self.class_width + 11));
                print(&format!("{}picture", columns.collect::<String>()))
            }
            Format::Csv => {
                let columns = ranks.flat_map(|rank| [format!("top{rank}"), format!("probability{rank}")]);
                print(&csv_row(["picture".to_owned()].into_iter().chain(columns))?)
            }
            Format::Json => Ok(true),
        }
    }

    /// An answer; why there is none goes to standard error.
    fn row(&self, answer: &Result<Prediction, Unread>) -> Result<bool, Error> {
        match answer {
            Ok(Prediction { name, top, remarks }) => {
                remarks.iter().for_each(|remark| note(&format!("{name}: {remark}")));
                print(&self.line(name, top)?)
            }
            Err(Unread { name, problem }) => {
                note(&format!("{name}: {problem}"));
                match self.format {
                    Format::Json => print(&json!({ "picture": name, "error": problem }).to_string()),
                    Format::Table | Format::Csv => Ok(true),
                }
            }
        }
    }

    fn line(&self, name: &str, top: &[(String, f64)]) -> Result<String, Error> {
        Ok(match self.format {
            Format::Table => {
                let column = |(class, share): &(String, f64)| {
                    let class: String = visible(class).chars().take(self.class_width).collect();
                    format!("{class:<0$} {1:>6.2} %  ", self.class_width, 100.0 * share)
                };
                format!("{}{}", top.iter().map(column).collect::<String>(), name)
            }
            Format::Csv => {
                let cells = top.iter().flat_map(|(class, share)| [class.clone(), format!("{share:.6}")]);
                csv_row([name.to_owned()].into_iter().chain(cells))?
            }
            Format::Json => {
                let top = top.iter().map(|(class, share)| json!({ "class": class, "probability": share }));
                json!({ "picture": name, "top": top.collect::<Vec<_>>() }).to_string()
            }
        })
    }
}

fn csv_row(cells: impl Iterator<Item = String>) -> Result<String, Error> {
    let broken =
        |error: &dyn std::fmt::Display| Error::Training(format!("a row cannot be written as CSV: {error}"));
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(cells.collect::<Vec<_>>()).map_err(|error| broken(&error))?;
    let bytes = writer.into_inner().map_err(|error| broken(&error))?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

/// A line of results; `false` if nobody reads them any more, which is no error (`| head`).
fn print(line: &str) -> Result<bool, Error> {
    match writeln!(io::stdout(), "{}", visible(line)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::io(std::path::Path::new("standard output"))(error)),
    }
}
