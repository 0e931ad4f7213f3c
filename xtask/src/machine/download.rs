//! Downloads through the machine's own curl, so that its proxies and certificates apply: continued where they stopped,
//! and checked against a SHA-256.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};

use crate::machine::disk::{megabytes, verify_sha256};
use crate::machine::progress::watched;
use crate::process::note;

/// Tries in a row that bring no new byte before giving up.
const TRIES: u32 = 4;

/// How much longer each pause before a try is than the one before, as long as nothing arrives.
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 1000 });

/// What installs curl.
pub(crate) const INSTALL_CURL: &str = "apt install curl (Debian and Ubuntu), dnf install curl (Fedora)";

/// Downloads `url`, of `size` bytes if that is known, to `target`, unless `target` is there already with the right
/// checksum.
///
/// What has arrived waits in `<target>.partial` for the next attempt. A file with the wrong checksum is deleted.
pub(crate) fn fetch(url: &str, target: &Path, sha256: &str, size: Option<u64>) -> Result<()> {
    if target.exists() && verify_sha256(target, sha256).is_ok() {
        return Ok(());
    }
    let parent = target.parent().context("the download has no directory")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let mut partial = target.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let was_begun = partial.exists();
    complete(url, &partial, size)?;
    let mut verified = verify_sha256(&partial, sha256);
    if verified.is_err() && was_begun {
        // The file may have changed between its first part and the rest.
        note(format!("{url} does not continue what was downloaded earlier, and is downloaded anew"));
        fs::remove_file(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
        complete(url, &partial, size)?;
        verified = verify_sha256(&partial, sha256);
    }
    verified.map_err(|error| {
        let _ = fs::remove_file(&partial);
        error.context(format!("{url} is not the expected file, and what was downloaded is deleted"))
    })?;
    fs::rename(&partial, target).with_context(|| format!("cannot name {}", target.display()))
}

/// Adds to `partial` until all of it has arrived.
fn complete(url: &str, partial: &Path, size: Option<u64>) -> Result<()> {
    let mut fruitless = 0;
    loop {
        let before = size_of(partial);
        match attempt(url, partial, size) {
            Ok(()) => return Ok(()),
            Err(Failure::Final(error)) => return Err(error.context(format!("cannot download {url}"))),
            Err(Failure::Transient(error)) => {
                let have = size_of(partial);
                fruitless = if have > before { 0 } else { fruitless + 1 };
                if fruitless >= TRIES {
                    return Err(
                        error.context(format!("cannot download {url} ({have} bytes so far are kept)"))
                    );
                }
                note(match have {
                    0 => format!("nothing arrived, and it is tried again: {error:#}"),
                    have => format!("the download stopped at {} and is resumed: {error:#}", megabytes(have)),
                });
                thread::sleep(PAUSE * fruitless);
            }
        }
    }
}

/// Whether trying again can help.
#[derive(Debug)]
enum Failure {
    Transient(Error),
    Final(Error),
}

/// One request; appends what it brings to `partial`.
fn attempt(url: &str, partial: &Path, size: Option<u64>) -> Result<(), Failure> {
    let mut curl = Command::new("curl");
    curl.args(["--fail", "--location", "--silent", "--show-error", "--globoff", "--continue-at", "-"])
        .args(["--proto", "=http,https", "--proto-redir", "=http,https"])
        // No limit on the whole, but on silence.
        .args(["--connect-timeout", "20", "--speed-limit", "1", "--speed-time", "60"])
        .args(["--write-out", "%{http_code}", "--url", url, "--output"])
        .arg(partial);
    let label = partial.file_stem().unwrap_or_default().to_string_lossy();
    let output = watched(&mut curl, &label, size, || size_of(partial)).map_err(|error| {
        Failure::Final(error.context(format!(
            "curl is needed to download: {INSTALL_CURL}; or fetch {url} by other means and give it with --archive FILE"
        )))
    })?;
    let said = String::from_utf8_lossy(&output.stderr);
    let said =
        said.trim().lines().last().map_or("curl gives no reason", |line| line.trim_start_matches("curl: "));
    let status = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Err(match (output.status.code(), status.as_str()) {
        (Some(0), _) => return Ok(()),
        // Nothing is left to send: all of it was there. The checksum tells if that is true.
        (Some(22), "416") if size_of(partial) > 0 => return Ok(()),
        (Some(22), "408" | "429" | "500" | "502" | "503" | "504") => {
            Failure::Transient(anyhow!("the server answers {status}"))
        }
        (Some(22), _) => Failure::Final(anyhow!("the server answers {status}")),
        // The server sends all of it instead of the rest.
        (Some(33), _) => match fs::remove_file(partial) {
            Ok(()) => Failure::Transient(anyhow!("the server cannot continue, and begins again")),
            Err(error) => {
                Failure::Final(Error::new(error).context(format!("cannot remove {}", partial.display())))
            }
        },
        (Some(23), _) => Failure::Final(anyhow!("cannot write {}: {said}", partial.display())),
        // An address or a certificate that will not be right the next time either, too many redirections.
        (Some(1 | 2 | 3 | 47 | 60 | 77), _) => Failure::Final(anyhow!("{said}")),
        _ => Failure::Transient(anyhow!("{said}")),
    })
}

fn size_of(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use run_record::sha256;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::{Arc, Mutex};

    /// What the test server does with one connection.
    #[derive(Clone, Copy)]
    pub(crate) enum Serve {
        /// The whole of what is asked for.
        Whole,
        /// This many bytes of it, then the connection closes.
        Cut(usize),
        /// This status and no body.
        Status(u16),
        /// Everything from the start, whatever range is asked for.
        IgnoreRange,
    }

    /// Serves `content` to one connection after the other, as `plan` says; returns the address and
    /// the `Range` headers it saw.
    pub(crate) fn server(content: Vec<u8>, plan: Vec<Serve>) -> (String, Arc<Mutex<Vec<Option<String>>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/file.bin", listener.local_addr().unwrap());
        let ranges = Arc::new(Mutex::new(Vec::new()));
        let seen = ranges.clone();
        thread::spawn(move || {
            for serve in plan {
                let (mut stream, _) = listener.accept().unwrap();
                let mut range = None;
                for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                    let line = line.unwrap().to_ascii_lowercase();
                    if line.is_empty() {
                        break;
                    }
                    range = line.strip_prefix("range: bytes=").map(str::to_owned).or(range);
                }
                seen.lock().unwrap().push(range.clone());
                let from = match (serve, range) {
                    (Serve::IgnoreRange, _) | (_, None) => None,
                    (_, Some(range)) => Some(range.trim_end_matches('-').parse::<usize>().unwrap()),
                };
                let rest = &content[from.unwrap_or(0).min(content.len())..];
                let status = match (serve, from) {
                    (Serve::Status(status), _) => format!("{status} Test\r\nContent-Length: 0"),
                    (_, Some(from)) if from >= content.len() => "416 Test\r\nContent-Length: 0".to_owned(),
                    (_, Some(from)) => format!(
                        "206 Partial Content\r\nContent-Range: bytes {from}-{}/{}\r\nContent-Length: {}",
                        content.len() - 1,
                        content.len(),
                        rest.len()
                    ),
                    (_, None) => format!("200 OK\r\nContent-Length: {}", rest.len()),
                };
                let body = match serve {
                    Serve::Cut(n) => &rest[..n.min(rest.len())],
                    Serve::Status(_) => &[],
                    _ if status.starts_with("416") => &[],
                    _ => rest,
                };
                let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n\r\n");
                // The client may hang up first; that is its right.
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
            }
        });
        (url, ranges)
    }

    fn content() -> (Vec<u8>, String) {
        let content: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
        let sha256 = sha256(&content);
        (content, sha256)
    }

    #[test]
    fn a_cut_connection_is_resumed_where_it_stopped() {
        let (content, sha256) = content();
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("downloads/file.bin");
        let (url, ranges) =
            server(content.clone(), vec![Serve::Cut(100_000), Serve::Status(503), Serve::Whole]);
        fetch(&url, &target, &sha256, None).unwrap();
        assert_eq!(fs::read(&target).unwrap(), content);
        let rest = Some("100000-".to_owned());
        assert_eq!(*ranges.lock().unwrap(), [None, rest.clone(), rest]);
        // Nothing but the file is left, and a second fetch asks nobody.
        assert_eq!(fs::read_dir(target.parent().unwrap()).unwrap().count(), 1);
        fetch("http://127.0.0.1:1/unreachable", &target, &sha256, None).unwrap();
    }

    #[test]
    fn a_file_that_changed_or_a_server_without_ranges_starts_over() {
        let (content, sha256) = content();
        for serve in [Serve::Whole, Serve::IgnoreRange] {
            let dir = tempfile::tempdir().unwrap();
            let target = dir.path().join("file.bin");
            let begun = "the start of another file";
            fs::write(dir.path().join("file.bin.partial"), begun).unwrap();
            let (url, ranges) = server(content.clone(), vec![serve, Serve::Whole]);
            fetch(&url, &target, &sha256, None).unwrap();
            assert_eq!(fs::read(&target).unwrap(), content);
            assert_eq!(*ranges.lock().unwrap(), [Some(format!("{}-", begun.len())), None]);
        }
    }

    #[test]
    fn a_server_that_sends_nothing_more_is_given_up_and_what_came_is_kept() {
        let (content, sha256) = content();
        let dir = tempfile::tempdir().unwrap();
        let cut = [vec![Serve::Cut(1000)], vec![Serve::Cut(0); TRIES as usize]].concat();
        let (url, ranges) = server(content.clone(), cut);
        let error = format!("{:#}", fetch(&url, &dir.path().join("x"), &sha256, None).unwrap_err());
        assert!(error.contains("(1000 bytes so far are kept)"), "{error}");
        assert_eq!(ranges.lock().unwrap().len(), 1 + TRIES as usize);
        assert_eq!(fs::read(dir.path().join("x.partial")).unwrap(), content[..1000]);
    }

    #[test]
    fn a_complete_partial_file_is_taken_and_a_wrong_one_deleted() {
        let (content, sha256) = content();
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("file.bin");
        let partial = dir.path().join("file.bin.partial");
        fs::write(&partial, &content).unwrap();
        let (url, _) = server(content.clone(), vec![Serve::Whole]);
        fetch(&url, &target, &sha256, None).unwrap();

        let wrong = "0".repeat(64);
        fs::remove_file(&target).unwrap();
        let (url, _) = server(content, vec![Serve::Whole]);
        let error = format!("{:#}", fetch(&url, &target, &wrong, None).unwrap_err());
        assert!(error.contains(&sha256) && error.contains(&wrong), "{error}");
        assert!(!partial.exists() && !target.exists());
    }

    #[test]
    fn an_answer_that_will_not_change_is_not_asked_for_again() {
        let dir = tempfile::tempdir().unwrap();
        let (url, ranges) = server(Vec::new(), vec![Serve::Status(404), Serve::Status(404)]);
        let error = format!("{:#}", fetch(&url, &dir.path().join("x"), "00", None).unwrap_err());
        assert!(error.contains("404") && error.contains(&url), "{error}");
        assert_eq!(ranges.lock().unwrap().len(), 1);
    }
}
