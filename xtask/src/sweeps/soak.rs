//! `soak`: kills trainers at random moments, and compares what they end with with a run that was left alone.

mod left;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use run_record::{duration, visible};

use crate::process::{Place, Usage, ending, note, say, show};
use crate::sweeps::child::Trainers;
use crate::sweeps::presets::{recipes_of, select};
use crate::sweeps::train_all::prepare;
use left::{Began, Between, Left, began, differences, left};

/// So many starts in a row without a newer checkpoint are no accident: moments are spread over the whole run.
const PATIENCE: i32 = 30;

/// How much later the next kill may come after a start that left no newer checkpoint, and how much later at most:
/// a machine that has other things to do must still get somewhere.
const LATER: f64 = 1.25;
const LATEST: f64 = 10.0;

/// `cargo xtask soak`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Soak {
    /// How many kills at least, shared evenly among the models
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    kills: u32,
    /// Only these models, by model or recipe name, separated by commas
    #[arg(long, value_delimiter = ',')]
    models: Vec<String>,
    /// A directory of recipes/
    #[arg(long, default_value = "quick")]
    preset: String,
    /// Seed of training, and of the moments of the kills
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Steps between two checkpoints inside an epoch, in the half of the starts that have them
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    checkpoint_steps: u32,
    /// Replace a value of the recipes; without one for train.epochs, that is 3
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Where the data set is, if not in datasets/
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Passed to the trainer; equality to the last bit is only promised on a CPU
    #[arg(long, default_value = "cpu")]
    device: String,
    /// A new or empty directory for the runs, which are kept [default: a temporary one in results/soak, removed on success]
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
}

pub(crate) fn soak(place: &Place, args: &Soak) -> Result<u8> {
    let recipes = select(recipes_of(&place.root, &args.preset)?, &args.models)?;
    if let Some(dir) = &args.results {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let listing = || format!("cannot list {}", dir.display());
        if fs::read_dir(dir).with_context(listing)?.next().is_some() {
            return Err(Usage(format!("--results {} is not empty", dir.display())).into());
        }
    }
    let code = prepare(place, &recipes, args.data_dir.is_none())?;
    if code != 0 {
        return Ok(code);
    }
    let models: Vec<&str> = recipes.iter().map(|named| named.model()).collect();
    let trainers = Trainers::listening()?;
    let bench = |dir: &Path| {
        let trainer = || place.trainer_command();
        Bench {
            trainers: &trainers,
            trainer: &trainer,
            args,
            dir,
            draw: Draw(args.seed),
            tally: Tally::default(),
        }
        .run(&models)
    };
    if let Some(dir) = &args.results {
        return bench(dir);
    }
    let above = place.root.join("results/soak");
    let creating = || format!("cannot create a directory in {}", above.display());
    fs::create_dir_all(&above).with_context(creating)?;
    let dir = tempfile::Builder::new().prefix("soak-").tempdir_in(&above).with_context(creating)?;
    let code = bench(dir.path());
    if matches!(code, Ok(0)) {
        dir.close().with_context(|| format!("cannot clear {}", above.display()))?;
    } else {
        say(format!("the runs are kept in {}", dir.keep().display()));
    }
    code
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): the same moments for the same seed, on any machine.
struct Draw(u64);

impl Draw {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// Uniform in [0, 1).
    fn share(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// One model, and the run of it that was left alone.
struct Subject<'a> {
    model: &'a str,
    alone: Left,
    /// How long the last run took that no kill cut.
    time: Duration,
    kills: u32,
}

/// What all rounds came to.
#[derive(Debug, Default)]
struct Tally {
    kills: u32,
    rounds: u32,
    /// Rounds that went wrong or ended with something else.
    bad: u32,
    began: Vec<Began>,
    /// The longest time that starts in a row spent without leaving a newer checkpoint.
    longest: Duration,
}

/// One round: a run that is killed and started again until it finishes by itself.
#[derive(Debug, Default)]
struct Round {
    /// When the starts that were killed were killed, in seconds after each began.
    kills: Vec<f64>,
    began: Vec<Began>,
    problems: Vec<String>,
}

/// Why no round came to its end.
enum Cut {
    /// This program was asked to stop.
    Asked(u8),
    /// A trainer ended as none should.
    Failed(String),
}

/// Everything a round needs.
struct Bench<'a> {
    trainers: &'a Trainers,
    trainer: &'a dyn Fn() -> Command,
    args: &'a Soak,
    dir: &'a Path,
    draw: Draw,
    tally: Tally,
}

impl Bench<'_> {
    /// Runs rounds over the models in turn until every one has had its share of the kills. Returns the exit code.
    fn run(mut self, models: &[&str]) -> Result<u8> {
        let mut subjects = Vec::new();
        for model in models {
            match self.alone(model)? {
                Ok(subject) => {
                    note(format!("[{model}] left alone: {}", duration(subject.time.as_secs_f64())));
                    subjects.push(subject);
                }
                Err(Cut::Asked(code)) => {
                    say("stopped before the first kill");
                    return Ok(code);
                }
                Err(Cut::Failed(problem)) => bail!("{model}, left alone: {problem}"),
            }
        }
        let share = self.args.kills.div_ceil(u32::try_from(models.len().max(1)).unwrap_or(u32::MAX));
        while subjects.iter().any(|subject| subject.kills < share) {
            for subject in subjects.iter_mut().filter(|subject| subject.kills < share) {
                if let Some(code) = self.one_round(subject)? {
                    say(format!("stopped after {} kills in {} rounds", self.tally.kills, self.tally.rounds));
                    return Ok(code);
                }
            }
        }
        show(summary(&self.tally, models.len(), self.args.seed));
        Ok(u8::from(self.tally.bad > 0))
    }

    /// The command line of a start.
    fn command(&self, model: &str, run: &Path) -> Result<Command> {
        let mut command = (self.trainer)();
        command.args(["train", "--model", model, "--preset", &self.args.preset]);
        command.args(["--seed", &self.args.seed.to_string(), "--device", &self.args.device]);
        if !self.args.sets.iter().any(|set| set.trim_start().starts_with("train.epochs")) {
            command.args(["--set", "train.epochs=3"]);
        }
        for set in &self.args.sets {
            command.args(["--set", set]);
        }
        if let Some(dir) = &self.args.data_dir {
            command.arg("--data-dir").arg(dir);
        }
        command.arg("--quiet").arg("--out").arg(run);
        let errors = errors_of(run);
        let file = File::create(&errors).with_context(|| format!("cannot create {}", errors.display()))?;
        command.stdout(Stdio::null()).stderr(file);
        Ok(command)
    }

    /// The run that is left alone.
    fn alone<'a>(&mut self, model: &'a str) -> Result<Result<Subject<'a>, Cut>> {
        let run = self.dir.join(format!("{model}--alone"));
        let mut command = self.command(model, &run)?;
        command.arg("--fresh");
        let start = Instant::now();
        let Some(ended) = self.trainers.run(&mut command, None)? else {
            return Ok(Err(self.cut(String::new())));
        };
        let time = start.elapsed();
        if !ended.status.success() {
            return Ok(Err(self.cut(format!("the trainer {}{}", ending(ended.status), complaint_of(&run)))));
        }
        Ok(Ok(Subject { model, alone: left(&run)?, time, kills: 0 }))
    }

    /// A trainer's failure, unless it follows from a request to this program to stop.
    fn cut(&self, problem: String) -> Cut {
        self.trainers.asked_to_stop().map_or(Cut::Failed(problem), Cut::Asked)
    }

    /// Runs one round and tells of it. Returns the exit code if this program was asked to stop.
    fn one_round(&mut self, subject: &mut Subject<'_>) -> Result<Option<u8>> {
        self.tally.rounds += 1;
        let run = self.dir.join(format!("{}--round-{}", subject.model, self.tally.rounds));
        let mut round = Round::default();
        let cut = self.start_until_finished(subject, &run, &mut round)?;
        let kills = u32::try_from(round.kills.len()).unwrap_or(u32::MAX);
        subject.kills += kills;
        self.tally.kills += kills;
        match cut {
            Some(Cut::Asked(code)) => return Ok(Some(code)),
            Some(Cut::Failed(problem)) => {
                round.problems.push(problem);
                // What cannot be started will not get better, and would go on for ever.
                subject.kills = u32::MAX;
            }
            None => match left(&run) {
                Ok(left) => round.problems.extend(differences(&subject.alone, &left)),
                Err(error) => round.problems.push(format!("{error:#}")),
            },
        }
        show(line(&round, self.tally.rounds, subject.model));
        if round.problems.is_empty() {
            fs::remove_dir_all(&run).with_context(|| format!("cannot remove {}", run.display()))?;
            let errors = errors_of(&run);
            fs::remove_file(&errors).with_context(|| format!("cannot remove {}", errors.display()))?;
        } else {
            self.tally.bad += 1;
        }
        self.tally.began.append(&mut round.began);
        Ok(None)
    }

    /// Starts a run again and again, each time with a moment at which it will be killed, until one start ends
    /// before its moment.
    ///
    /// The moment is uniform between 0 and the time of the last run that no kill cut; the range grows after starts
    /// that left nothing. So a first start is hit with equal probability anywhere between the loader and the last
    /// file; a later one, which has less to do, either anywhere in what it does or not at all.
    fn start_until_finished(
        &mut self,
        subject: &mut Subject<'_>,
        run: &Path,
        round: &mut Round,
    ) -> Result<Option<Cut>> {
        let (mut stalled, mut in_a_row) = (Duration::ZERO, 0);
        let mut before = Between::look(run)?;
        loop {
            let later = LATER.powi(in_a_row).min(LATEST);
            let moment = subject.time.mul_f64(self.draw.share() * later);
            // The other half goes on from ends of epochs alone.
            let inside_epochs = self.draw.bits() >> 63 == 0;
            let mut command = self.command(subject.model, run)?;
            if inside_epochs {
                command.args(["--checkpoint-steps", &self.args.checkpoint_steps.to_string()]);
            }
            let start = Instant::now();
            let Some(ended) = self.trainers.run(&mut command, Some(moment))? else {
                return Ok(Some(self.cut(String::new())));
            };
            stalled += start.elapsed();
            // A record that a kill has spoilt is a finding, not a reason to end here.
            let after = match Between::look(run) {
                Ok(after) => after,
                Err(error) => return Ok(Some(Cut::Failed(format!("{error:#}")))),
            };
            if ended.killed {
                round.kills.push(moment.as_secs_f64());
            } else if !ended.status.success() {
                let complaint = complaint_of(run);
                return Ok(Some(self.cut(format!("the trainer {}{complaint}", ending(ended.status)))));
            }
            match began(&before, &after) {
                Ok(began) => round.began.push(began),
                Err(problem) => round.problems.push(problem),
            }
            in_a_row += 1;
            if after.has_advanced(&before) {
                (stalled, in_a_row) = (Duration::ZERO, 0);
            }
            self.tally.longest = self.tally.longest.max(stalled);
            if !ended.killed {
                // A whole run: where the machine has become faster, later moments would come too late too often.
                if round.kills.is_empty() {
                    subject.time = start.elapsed();
                }
                return Ok(None);
            }
            if in_a_row == PATIENCE {
                let problem = format!("{PATIENCE} starts in a row left no newer checkpoint");
                return Ok(Some(Cut::Failed(problem)));
            }
            before = after;
        }
    }
}

/// Where a run's trainer writes its errors, for the last start.
fn errors_of(run: &Path) -> PathBuf {
    let mut name = run.as_os_str().to_owned();
    name.push(".stderr");
    name.into()
}

/// The last line the trainer wrote there.
fn complaint_of(run: &Path) -> String {
    let text = fs::read(errors_of(run)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines()
        .rfind(|line| !line.trim().is_empty())
        .map_or(String::new(), |line| format!(": {}", line.trim()))
}

/// A round, for people.
fn line(round: &Round, number: u32, model: &str) -> String {
    let moments: Vec<String> = round.kills.iter().map(|moment| format!("{moment:.2}")).collect();
    let kills = match moments.len() {
        0 => "no kill".to_owned(),
        1 => format!("1 kill, at {} s", moments[0]),
        n => format!("{n} kills, at {} s", moments.join(", ")),
    };
    let resumed: Vec<&str> = round
        .began
        .iter()
        .filter_map(|began| match began {
            Began::Inside(name) | Began::AtAnEnd(name) => Some(name.as_str()),
            _ => None,
        })
        .collect();
    let resumed =
        if resumed.is_empty() { String::new() } else { format!("; went on from {}", resumed.join(", ")) };
    let verdict = if round.problems.is_empty() {
        "; equal".to_owned()
    } else {
        round.problems.iter().map(|problem| format!("\n  DIFFERENT: {}", visible(problem))).collect()
    };
    format!("[round {number}, {model}] {kills}{resumed}{verdict}")
}

/// All rounds, for people.
fn summary(tally: &Tally, models: usize, seed: u64) -> String {
    let count = |which: fn(&Began) -> bool| tally.began.iter().filter(|began| which(began)).count();
    let verdict = if tally.bad == 0 {
        "all equal: weights and histories are those of the runs that were left alone".to_owned()
    } else {
        format!("NOT EQUAL: {} of {} rounds went wrong", tally.bad, tally.rounds)
    };
    format!(
        "{} kills in {} rounds of {models} models, seed {seed}\n\
         starts: {} went on inside an epoch, {} at an epoch's end, {} began at the start, {} were killed before \
         their record said, {} found the run finished\n\
         longest time without progress: {}\n{verdict}",
        tally.kills,
        tally.rounds,
        count(|began| matches!(began, Began::Inside(_))),
        count(|began| matches!(began, Began::AtAnEnd(_))),
        count(|began| *began == Began::AtTheStart),
        count(|began| *began == Began::NotYet),
        count(|began| *began == Began::Finished),
        duration(tally.longest.as_secs_f64()),
    )
}

#[cfg(test)]
mod tests;
