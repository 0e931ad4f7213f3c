//! Where things are, how this program speaks, and how it starts others.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use run_record::{visible, visible_lines};

/// The two directories everything is relative to.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The workspace.
    pub(crate) root: PathBuf,
    /// Downloads and unpacked libraries, shared by all clones.
    pub(crate) cache: PathBuf,
}

impl Place {
    pub(crate) fn from_env() -> Result<Self> {
        // `cargo run` names the package directory, so a moved clone is found without a rebuild.
        let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into());
        let package = PathBuf::from(package);
        let root = package.parent().context("the xtask package has no directory above it")?.to_path_buf();
        let cache = run_record::cache_dir()
            .context("no place for downloads: set HOME, or COMPACT_VISION_CACHE to a directory")?;
        // Links into the cache must hold from anywhere.
        let cache = std::path::absolute(&cache).with_context(|| format!("the cache {}", cache.display()))?;
        Ok(Self { root, cache })
    }

    pub(crate) fn libtorch_link(&self) -> PathBuf {
        self.root.join(".libtorch")
    }

    /// Where cargo builds; a relative CARGO_TARGET_DIR counts from the workspace, where cargo runs.
    pub(crate) fn target(&self) -> PathBuf {
        self.root.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or("target".into()))
    }

    pub(crate) fn trainer(&self) -> PathBuf {
        self.target().join("release/trainer")
    }

    /// The trainer, ready for its arguments.
    pub(crate) fn trainer_command(&self) -> Command {
        let mut command = Command::new(self.trainer());
        self.find_libraries(&mut command);
        command
    }

    /// The search paths in the binaries hold for target/ in the workspace; binaries built
    /// elsewhere are told where libtorch is.
    pub(crate) fn find_libraries(&self, command: &mut Command) {
        if std::env::var_os("CARGO_TARGET_DIR").is_none() {
            return;
        }
        let variable =
            if cfg!(target_os = "macos") { "DYLD_FALLBACK_LIBRARY_PATH" } else { "LD_LIBRARY_PATH" };
        let mut paths = vec![self.libtorch_link().join("lib")];
        paths.extend(std::env::var_os(variable).iter().flat_map(std::env::split_paths));
        if let Ok(joined) = std::env::join_paths(paths) {
            command.env(variable, joined);
        }
    }
}

/// A mistake in the command line: the exit code is 2.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Whoever waits for longer says what for.
pub(crate) const SILENCE: Duration = Duration::from_secs(1);

/// Prints a line of results on stdout, with [`visible`] names. A reader that stopped listening (`| head`) is no error.
pub(crate) fn say(line: impl Display) {
    show(visible(&line.to_string()));
}

/// Prints results of several lines: a table, a help. A name in them must be [`visible`] already, or it may break a line.
pub(crate) fn show(text: impl Display) {
    let text = visible_lines(&text.to_string());
    #[cfg(test)]
    return println!("{text}"); // which the test harness captures
    #[cfg(not(test))]
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// As [`show`], with the signed numbers in one column of a table in green and red, where a person reads it in colour.
pub(crate) fn show_with_deltas(table: impl Display, column: usize) {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
    if !std::io::stdout().is_terminal() || is_set("NO_COLOR") || is_dumb {
        return show(table);
    }
    let text = with_coloured_deltas(&visible_lines(&table.to_string()), column);
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn with_coloured_deltas(table: &str, column: usize) -> String {
    let coloured = |(place, cell): (usize, &str)| {
        // Before the first column there is nothing but a bar.
        let colour = match cell.trim().as_bytes().first() {
            Some(b'+') if place == column + 1 => 32,
            Some(b'-') if place == column + 1 && !cell.contains("--") => 31,
            _ => return cell.to_owned(),
        };
        format!("\x1b[{colour}m{cell}\x1b[0m")
    };
    let line = |line: &str| line.split('|').enumerate().map(coloured).collect::<Vec<_>>().join("|");
    table.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Prints a line of news about progress on stderr, so that stdout stays what was asked for. A stderr that is closed or
/// full changes nothing.
pub(crate) fn note(line: impl Display) {
    let line = line.to_string();
    let line = visible(&line);
    #[cfg(test)]
    return eprintln!("{line}");
    #[cfg(not(test))]
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The cargo that runs this program, or the one in PATH, in the environment a plain shell would
/// give it: a LIBTORCH that came out of .cargo/config.toml is left for cargo to set again.
pub(crate) fn cargo(place: &Place) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(&place.root);
    if user_libtorch(place).is_none() {
        command.env_remove("LIBTORCH");
    }
    command
}

/// The LIBTORCH the user set, as opposed to the one out of .cargo/config.toml.
pub(crate) fn user_libtorch(place: &Place) -> Option<PathBuf> {
    let value = PathBuf::from(std::env::var_os("LIBTORCH").filter(|value| !value.is_empty())?);
    let same_place = match (value.parent().map(Path::canonicalize), place.root.canonicalize()) {
        (Some(Ok(parent)), Ok(root)) => parent == root,
        _ => false,
    };
    let configured = same_place && value.file_name() == Some(".libtorch".as_ref());
    (!configured).then_some(value)
}

/// The Python whose pip is used: that of an active virtual environment, or python3.
pub(crate) fn python() -> PathBuf {
    match std::env::var_os("VIRTUAL_ENV").map(|env| PathBuf::from(env).join("bin/python")) {
        Some(python) if python.exists() => python,
        _ => "python3".into(),
    }
}

/// Runs cargo on our own terminal and returns the exit code to end with: 1 for any failure cargo
/// reports, which has codes of its own for them.
pub(crate) fn run_cargo(command: &mut Command) -> Result<u8> {
    Ok(code_of_cargo(command.status().with_context(|| cannot_start(command))?))
}

fn code_of_cargo(status: ExitStatus) -> u8 {
    if status.code().is_some() { u8::from(!status.success()) } else { exit_code(status) }
}

/// The same, and says what it is about if that takes its time.
pub(crate) fn run_quiet_cargo(command: &mut Command, about: &str) -> Result<u8> {
    let mut child = command.arg("--quiet").spawn().with_context(|| cannot_start(command))?;
    let start = Instant::now();
    while start.elapsed() < SILENCE && matches!(child.try_wait(), Ok(None)) {
        thread::sleep(Duration::from_millis(5));
    }
    if matches!(child.try_wait(), Ok(None)) {
        note(about);
    }
    let status = child.wait().context("cannot wait for cargo")?;
    Ok(code_of_cargo(status))
}

/// A child's stdout, trimmed; `None` when it cannot be started or fails.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

pub(crate) fn cannot_start(command: &Command) -> String {
    format!("cannot start {}", command.get_program().display())
}

/// The child's exit code; like a shell, 128 + the number for a signal.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(1),
        (None, Some(signal)) => u8::try_from(128 + signal).unwrap_or(1),
        (None, None) => 1,
    }
}

/// How a child ended, in words.
pub(crate) fn ending(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (_, Some(signal)) => format!("was killed by signal {signal}"),
        (Some(code), None) => format!("ended with exit code {code}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn signed_numbers_of_one_column_are_coloured() {
        let table =
            "| name | delta |\n|------|-------|\n| a    | +0.35 |\n| b    | -1.20 |\n| +1   |       |";
        let want = "| name | delta |\n|------|-------|\n| a    |\x1b[32m +0.35 \x1b[0m|\n| b    |\x1b[31m -1.20 \x1b[0m|\n| +1   |       |";
        assert_eq!(with_coloured_deltas(table, 1), want);
    }

    #[test]
    fn a_signal_is_told_from_an_exit_code() {
        let (interrupted, failed) = (ExitStatus::from_raw(2), ExitStatus::from_raw(3 << 8));
        assert_eq!((exit_code(interrupted), exit_code(failed)), (130, 3));
        assert_eq!(ending(interrupted), "was killed by signal 2");
        assert_eq!(ending(failed), "ended with exit code 3");
    }
}
