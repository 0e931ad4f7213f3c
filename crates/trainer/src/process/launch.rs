//! Several processes of one machine: this program again, once for each, with the variables that `torchrun` would set.

use std::env;
use std::net::TcpListener;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::iterator::Signals;

use crate::Error;
use crate::process::signals::STOPPING;

/// Says to a process who launched it.
const LAUNCHER: &str = "COMPACT_VISION_LAUNCHER";

/// How long the others may take to end after one has failed.
const GRACE: Duration = Duration::from_secs(20);

/// Runs this program's command line in so many processes, passes signals on to them, and ends when all have ended.
///
/// # Errors
/// The exit code of the first that failed; what went wrong was told there. Or the system's refusal to start one.
pub fn launch(processes: usize) -> Result<(), Error> {
    let refused = |what: &str| {
        let what = what.to_owned();
        move |error: std::io::Error| Error::Training(format!("{what}: {error}"))
    };
    let program = env::current_exe().map_err(refused("this program cannot be found"))?;
    let mut signals = Signals::new(STOPPING).map_err(refused("the system does not deliver signals"))?;
    // Nobody else is given it in the moment until the first process listens, as far as the system can help it.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = port.map_err(refused("there is no free port on this machine"))?.port();
    let threads = thread::available_parallelism().map_or(1, usize::from) / processes;
    let mut running = Running(Vec::new());
    for rank in 0..processes {
        let mut command = Command::new(&program);
        command.args(env::args_os().skip(1));
        command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
        command.env("WORLD_SIZE", processes.to_string());
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        command.env(LAUNCHER, std::process::id().to_string());
        if env::var_os("OMP_NUM_THREADS").is_none() {
            command.env("OMP_NUM_THREADS", threads.max(1).to_string());
        }
        // What a terminal sends comes here alone, and is passed on.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().map_err(refused("another process of this program cannot be started"))?;
        running.0.push(child);
    }
    running.wait(&mut signals)
}

/// In a process that was launched: to be asked to stop when its launcher ends, however that ends. Only Linux can.
pub fn end_with_launcher() {
    #[cfg(target_os = "linux")]
    if let Ok(launcher) = env::var(LAUNCHER) {
        use rustix::process::{getpid, getppid, set_parent_process_death_signal};
        // Without, a launcher that is killed leaves processes that go on to the end.
        let _ = set_parent_process_death_signal(Some(Signal::TERM));
        if getppid().is_some_and(|parent| parent.as_raw_nonzero().to_string() != launcher) {
            let _ = kill_process(getpid(), Signal::TERM);
        }
    }
}

/// Processes that end with this.
struct Running(Vec<Child>);

impl Running {
    fn wait(&mut self, signals: &mut Signals) -> Result<(), Error> {
        let mut failed: Option<(u8, Instant)> = None;
        loop {
            for signal in signals.pending() {
                self.signal(signal);
            }
            let mut ended = Vec::new();
            self.0.retain_mut(|child| match child.try_wait() {
                Ok(Some(status)) => {
                    ended.push(status);
                    false
                }
                _ => true,
            });
            let first = ended.into_iter().map(exit_code).find(|&code| code != 0);
            failed = failed.or(first.map(|code| (code, Instant::now())));
            match failed {
                Some((code, _)) if self.0.is_empty() => return Err(Error::Elsewhere { code }),
                None if self.0.is_empty() => return Ok(()),
                Some((_, when)) if when.elapsed() > GRACE => self.kill(),
                _ => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn signal(&self, number: i32) {
        let signal = Signal::from_named_raw(number);
        for pid in self.0.iter().filter_map(|child| Pid::from_raw(child.id().cast_signed())) {
            // One that has ended meanwhile needs none.
            let _ = signal.map(|signal| kill_process(pid, signal));
        }
    }

    fn kill(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        for child in &mut self.0 {
            let _ = child.wait();
        }
    }
}

/// As a shell has it.
fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
