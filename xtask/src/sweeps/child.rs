//! Trainers as children: one at a time, told of the signals that ask this program to stop.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::process::cannot_start;

/// The signals at which a trainer saves a checkpoint and ends with 128 + the number.
const STOP: [i32; 3] = [SIGINT, SIGTERM, SIGUSR1];

/// How often a running child is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Whether this exit code says that a trainer was asked to stop.
pub(crate) fn is_stop(code: u8) -> bool {
    STOP.iter().any(|signal| 128 + signal == i32::from(code))
}

/// How a child ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// Whether that was by the SIGKILL it had been given a time for.
    pub(crate) killed: bool,
}

/// Starts trainers one at a time.
#[derive(Debug, Default)]
pub(crate) struct Trainers {
    /// The child that runs. It is waited for under this lock and taken out at once, so that its number
    /// belongs to no other process while it is here.
    running: Arc<Mutex<Option<Child>>>,
    /// The last signal that asked this program to stop; 0 for none.
    asked: Arc<AtomicUsize>,
}

impl Trainers {
    /// From here on SIGINT, SIGTERM and SIGUSR1 no longer end this program. The last two are passed on to the
    /// trainer; a Ctrl-C reaches it anyway, and a second one would have it drop everything.
    pub(crate) fn listening() -> Result<Self> {
        let trainers = Self::default();
        for signal in STOP {
            // In the handler itself: it is noted before anything that follows from it.
            signal_hook::flag::register_usize(signal, trainers.asked.clone(), signal.unsigned_abs() as usize)
                .context("cannot listen for signals")?;
        }
        let mut signals = Signals::new([SIGTERM, SIGUSR1]).context("cannot listen for signals")?;
        let running = trainers.running.clone();
        thread::spawn(move || {
            for signal in signals.forever() {
                pass_on(&running, if signal == SIGTERM { Signal::TERM } else { Signal::USR1 });
            }
        });
        Ok(trainers)
    }

    /// The exit code of a program that was asked to stop, if this one was.
    pub(crate) fn asked_to_stop(&self) -> Option<u8> {
        match self.asked.load(Ordering::SeqCst) {
            0 => None,
            signal => u8::try_from(128 + signal).ok(),
        }
    }

    /// Runs a trainer to its end, or kills it after a time; `None` if it was not started because this program
    /// was asked to stop.
    pub(crate) fn run(&self, command: &mut Command, kill_after: Option<Duration>) -> Result<Option<Ended>> {
        {
            // A signal that comes while the child is being started waits for the lock, and then finds it.
            let mut running = locked(&self.running);
            if self.asked_to_stop().is_some() {
                return Ok(None);
            }
            let child = running.insert(command.spawn().with_context(|| cannot_start(command))?);
            if self.asked.load(Ordering::SeqCst) == SIGINT as usize {
                // A Ctrl-C in between did not reach it. The other two signals are passed on once the lock is free.
                let _ = kill_process(Pid::from_child(child), Signal::TERM);
            }
        }
        let start = Instant::now();
        let mut killed = false;
        loop {
            let left = kill_after.map(|after| after.saturating_sub(start.elapsed()));
            let mut running = locked(&self.running);
            let Some(child) = running.as_mut() else {
                anyhow::bail!("a second trainer was started beside the first");
            };
            let waited = if killed { child.wait().map(Some) } else { child.try_wait() };
            if let Some(status) = waited.context("cannot wait for the trainer")? {
                *running = None;
                // A child that had just ended by itself is not one that was killed.
                let killed = killed && status.signal() == Some(Signal::KILL.as_raw());
                return Ok(Some(Ended { status, killed }));
            }
            if left == Some(Duration::ZERO) {
                child.kill().context("cannot kill the trainer")?;
                killed = true;
                continue;
            }
            drop(running);
            thread::sleep(left.map_or(LOOK, |left| left.min(LOOK)));
        }
    }
}

/// Sends a signal to the child, if one runs.
fn pass_on(running: &Mutex<Option<Child>>, signal: Signal) {
    if let Some(child) = locked(running).as_ref() {
        // A child that has ended and not been waited for yet takes no harm.
        let _ = kill_process(Pid::from_child(child), signal);
    }
}

/// Nothing panics while it holds the lock, and what it guards is whole at any moment.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn only_signals_that_ask_for_it_are_a_stop() {
        assert_eq!([130, 143, 128 + SIGUSR1 as u8].map(is_stop), [true; 3]);
        assert_eq!([0, 1, 2, 137, 139].map(is_stop), [false; 5]);
    }

    #[test]
    fn a_child_ends_by_itself_or_at_its_time() {
        let trainers = Trainers::default();
        let ended = trainers.run(&mut shell("exit 3"), Some(Duration::from_secs(60))).unwrap().unwrap();
        assert_eq!((ended.status.code(), ended.killed), (Some(3), false));
        let ended = trainers.run(&mut shell("exec sleep 60"), Some(Duration::ZERO)).unwrap().unwrap();
        assert_eq!((ended.status.signal(), ended.killed), (Some(9), true));
        // Someone else's kill is not ours.
        let ended = trainers.run(&mut shell("kill -9 $$"), Some(Duration::from_secs(60))).unwrap().unwrap();
        assert_eq!((ended.status.signal(), ended.killed), (Some(9), false));
        assert!(trainers.run(&mut Command::new("/nowhere/trainer"), None).is_err());
    }

    #[test]
    fn a_signal_is_passed_on_to_the_child_that_runs_and_to_no_other() {
        let trainers = Trainers::default();
        pass_on(&trainers.running, Signal::TERM); // no child: nothing happens
        let dir = tempfile::tempdir().unwrap();
        let ready = dir.path().join("ready");
        let script = format!("trap 'exit 143' TERM; : > {}; while :; do sleep 0.01; done", ready.display());
        let running = trainers.running.clone();
        let sender = thread::spawn(move || {
            while !ready.exists() {
                thread::sleep(LOOK);
            }
            pass_on(&running, Signal::TERM);
        });
        let ended = trainers.run(&mut shell(&script), None).unwrap().unwrap();
        sender.join().unwrap();
        assert_eq!(ended.status.code(), Some(143));
        assert!(locked(&trainers.running).is_none(), "it is forgotten with its end");
    }

    #[test]
    fn after_a_signal_nothing_more_is_started() {
        let trainers = Trainers::default();
        trainers.asked.store(15, Ordering::SeqCst);
        assert!(trainers.run(&mut shell("exit 0"), None).unwrap().is_none());
        assert_eq!(trainers.asked_to_stop(), Some(143));
    }
}
