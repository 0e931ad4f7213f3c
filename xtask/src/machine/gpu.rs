//! NVIDIA cards, as nvidia-smi lists them, and whether the pinned libtorch can use them.

use std::fmt::{self, Display};
use std::io::Read;
use std::mem::replace;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::process::{SILENCE, note};

/// The oldest driver that CUDA 13 runs on.
pub(crate) const DRIVER: &str = "580";

/// The oldest compute capability, Turing's, that CUDA 13 compiles for.
pub(crate) const CAPABILITY: &str = "7.5";

/// How long nvidia-smi may take: it wakes every card of a machine, which can take seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// What nvidia-smi says of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Gpus {
    /// There is no nvidia-smi, or `CUDA_VISIBLE_DEVICES` hides all cards.
    None,
    /// There may be cards, but nvidia-smi does not list them, for this reason.
    Unclear(String),
    /// The cards, one at least.
    Cards(Vec<Card>),
}

/// A card; what is not known is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Card {
    pub(crate) driver: String,
    pub(crate) capability: String,
    /// In MiB.
    pub(crate) memory: String,
    pub(crate) name: String,
}

impl Gpus {
    /// Asks nvidia-smi.
    pub(crate) fn here() -> Self {
        match std::env::var("CUDA_VISIBLE_DEVICES") {
            Ok(list) if matches!(list.as_str(), "" | "-1") => Self::None,
            _ => {
                let query = "--query-gpu=driver_version,compute_cap,memory.total,name";
                ask(Command::new("nvidia-smi").args([query, "--format=csv,noheader,nounits"]), PATIENCE)
            }
        }
    }

    /// Whether one card at least can be used.
    pub(crate) fn usable(&self) -> bool {
        matches!(self, Self::Cards(cards) if cards.iter().any(|card| card.problem().is_none()))
    }

    /// Why no card can be used, if there seems to be one.
    pub(crate) fn problem(&self) -> Option<String> {
        match self {
            Self::Unclear(why) => Some(why.clone()),
            Self::Cards(cards) if !self.usable() => {
                let problems =
                    cards.iter().filter_map(|card| Some(format!("{}: {}", card.name, card.problem()?)));
                let mut problems: Vec<String> = problems.collect();
                problems.dedup(); // a machine full of one kind of card
                Some(problems.join("; "))
            }
            Self::None | Self::Cards(_) => None,
        }
    }
}

impl Card {
    /// What is too old about it. What is not known is not held against it: training will tell.
    pub(crate) fn problem(&self) -> Option<String> {
        // A new driver is of no use to an old card.
        too_old("compute capability", &self.capability, CAPABILITY).or(self.old_driver())
    }

    /// The same of its driver alone, which can be mended.
    pub(crate) fn old_driver(&self) -> Option<String> {
        too_old("driver", &self.driver, DRIVER)
    }
}

fn too_old(what: &str, found: &str, needed: &str) -> Option<String> {
    let is_older = !found.is_empty() && numbers(found) < numbers(needed);
    is_older.then(|| format!("{what} {found} is too old, CUDA 13 needs {needed} or later"))
}

impl Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_unknown = |text: &str| if text.is_empty() { "unknown".to_owned() } else { text.to_owned() };
        write!(f, "{}", self.name)?;
        if !self.memory.is_empty() {
            write!(f, ", {} MiB", self.memory)?;
        }
        let (capability, driver) = (or_unknown(&self.capability), or_unknown(&self.driver));
        write!(
            f,
            ", compute capability {capability} ({CAPABILITY} is needed), driver {driver} ({DRIVER} is needed)"
        )
    }
}

/// The numbers of a version, for comparing; what follows a `-` does not count.
pub(crate) fn numbers(version: &str) -> Vec<u32> {
    version.split('-').next().unwrap_or_default().split('.').map_while(|part| part.parse().ok()).collect()
}

fn ask(command: &mut Command, patience: Duration) -> Gpus {
    let mut child = match command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn() {
        Ok(child) => child,
        // A container may be given a card without the program.
        Err(_) if Path::new("/dev/nvidia0").exists() => {
            return Gpus::Unclear("/dev/nvidia0 is there, but nvidia-smi cannot be started".to_owned());
        }
        Err(_) => return Gpus::None,
    };
    let start = Instant::now();
    let mut is_said = false;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if start.elapsed() < patience => {
                if start.elapsed() > SILENCE && !replace(&mut is_said, true) {
                    note("waiting for nvidia-smi to list the cards");
                }
                thread::sleep(Duration::from_millis(5));
            }
            _ => {
                // Not waited for: a process that hangs in the driver does not even end when it is killed.
                let _ = child.kill();
                return Gpus::Unclear(format!("nvidia-smi does not answer within {} s", patience.as_secs()));
            }
        }
    };
    let mut text = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        // What cannot be read is missing from the list, which is seen below.
        let _ = stdout.read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text);
    if !status.success() {
        // It says why on stdout, such as that it cannot communicate with the driver.
        let why = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it gives no reason");
        return Gpus::Unclear(format!("nvidia-smi fails: {why}"));
    }
    listed(&text)
}

/// Reads nvidia-smi's list.
fn listed(text: &str) -> Gpus {
    let cards: Option<Vec<Card>> = text.lines().filter(|line| !line.trim().is_empty()).map(card).collect();
    match cards {
        Some(cards) if !cards.is_empty() => Gpus::Cards(cards),
        Some(_) => Gpus::Unclear("nvidia-smi lists no card".to_owned()),
        None => {
            let line = text.lines().find(|line| card(line).is_none() && !line.trim().is_empty());
            let start: String = line.unwrap_or_default().trim().chars().take(80).collect();
            Gpus::Unclear(format!("nvidia-smi prints what is no list of cards ({start})"))
        }
    }
}

/// `580.95.05, 9.0, 81559, NVIDIA H100 80GB HBM3`; `[N/A]` and the like stand for what is not known.
fn card(line: &str) -> Option<Card> {
    let known = |field: &str| if field.starts_with('[') { String::new() } else { field.to_owned() };
    let mut fields = line.splitn(4, ',').map(|field| known(field.trim()));
    let card = Card {
        driver: fields.next()?,
        capability: fields.next()?,
        memory: fields.next()?,
        name: fields.next()?,
    };
    let are_numbers = [&card.driver, &card.capability, &card.memory]
        .into_iter()
        .all(|text| text.is_empty() || !numbers(text).is_empty());
    are_numbers.then_some(card)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cards(text: &str) -> Vec<Card> {
        match listed(text) {
            Gpus::Cards(cards) => cards,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_list_is_read_and_one_usable_card_is_enough() {
        let h100 = "580.95.05, 9.0, 81559, NVIDIA H100 80GB HBM3\n";
        let v100 = "580.95.05, 7.0, 16384, Tesla V100-SXM2-16GB\n";
        let found = cards(h100);
        assert_eq!(
            found[0].to_string(),
            "NVIDIA H100 80GB HBM3, 81559 MiB, compute capability 9.0 (7.5 is needed), driver 580.95.05 (580 is needed)"
        );
        assert_eq!(found[0].problem(), None);
        assert!(listed(&format!("{v100}{h100}")).usable() && !listed(v100).usable());
        assert_eq!(listed(&format!("{v100}{h100}")).problem(), None);
        assert_eq!(
            listed(&format!("{v100}{v100}")).problem().unwrap(),
            "Tesla V100-SXM2-16GB: compute capability 7.0 is too old, CUDA 13 needs 7.5 or later"
        );
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        for (line, problem) in [
            (
                "570.211.01, 8.6, 24564, NVIDIA RTX A5000",
                Some("driver 570.211.01 is too old, CUDA 13 needs 580 or later"),
            ),
            ("1000.1, 10.0, 1, B", None),
            ("580, 7.5, 1, T4", None),
            ("580.1, 12.0, 1, B", None),
        ] {
            assert_eq!(cards(line)[0].problem().as_deref(), problem, "{line}");
        }
        assert!(numbers("1.100.0") > numbers("1.95") && numbers("1.95.0-nightly") >= numbers("1.95"));
        assert!(numbers("1.94.1") < numbers("1.95") && numbers("") < numbers("1.0"));
    }

    #[test]
    fn what_is_not_known_is_no_problem() {
        let found = cards("580.95.05, [N/A], [Not Supported], NVIDIA GB10\n");
        assert_eq!(found[0].problem(), None);
        assert_eq!(
            found[0].to_string(),
            "NVIDIA GB10, compute capability unknown (7.5 is needed), driver 580.95.05 (580 is needed)"
        );
        assert_eq!(cards("[N/A], [N/A], [N/A], [N/A]").len(), 1);
    }

    #[test]
    fn what_is_no_list_is_unclear() {
        for (text, part) in [
            ("", "lists no card"),
            ("\n \n", "lists no card"),
            ("No devices were found", "(No devices were found)"),
            ("580.95.05, 9.0, 81559, H100\n\u{1b}[2J\u{fffd},,", "no list of cards"),
            ("a, b, c, d", "(a, b, c, d)"),
        ] {
            let gpus = listed(text);
            assert!(!gpus.usable());
            assert!(gpus.problem().unwrap().contains(part), "{text:?}: {gpus:?}");
        }
    }

    #[test]
    fn a_program_that_hangs_is_not_waited_for() {
        // `yes` prints until its pipe is full, and then waits for somebody to read it.
        for command in [Command::new("sleep").arg("60"), &mut Command::new("yes")] {
            let gpus = ask(command, Duration::from_millis(50));
            assert_eq!(gpus, Gpus::Unclear("nvidia-smi does not answer within 0 s".to_owned()));
        }
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let says = ["-c", "echo; echo \"NVIDIA-SMI has failed because it couldn't communicate\"; exit 9"];
        let gpus = ask(Command::new("sh").args(says), PATIENCE);
        let want = "nvidia-smi fails: NVIDIA-SMI has failed because it couldn't communicate";
        assert_eq!(gpus.problem().unwrap(), want);
        assert_eq!(
            ask(&mut Command::new("false"), PATIENCE).problem().unwrap(),
            "nvidia-smi fails: it gives no reason"
        );
    }
}
