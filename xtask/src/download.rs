//! Downloads over HTTP that continue where they stopped, checked against a SHA-256.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};
use ureq::http::{HeaderMap, StatusCode};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::disk::{megabytes, verify_sha256};
use crate::process::note;
use crate::progress::Meter;

/// Tries in a row that bring no new byte before giving up.
const TRIES: u32 = 4;

/// Downloads `url` to `target`, unless `target` is there already with the right checksum.
///
/// What has arrived waits in `<target>.partial` for the next attempt. A file with the wrong
/// checksum is deleted.
pub(crate) fn fetch(url: &str, target: &Path, sha256: &str) -> Result<()> {
    if target.exists() && verify_sha256(target, sha256).is_ok() {
        return Ok(());
    }
    let parent = target.parent().context("the download has no directory")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let partial = with_suffix(target, ".partial");
    let agent = agent()?;
    let mut fruitless = 0;
    loop {
        let before = size_of(&partial);
        match attempt(&agent, url, &partial) {
            Ok(()) => break,
            Err(Failure::Final(error)) => return Err(error.context(format!("cannot download {url}"))),
            Err(Failure::Transient(error)) => {
                fruitless = if size_of(&partial) > before { 0 } else { fruitless + 1 };
                if fruitless >= TRIES {
                    let so_far =
                        format!("cannot download {url} ({} bytes so far are kept)", size_of(&partial));
                    return Err(error.context(so_far));
                }
                note(match size_of(&partial) {
                    0 => format!("nothing arrived, and it is tried again: {error:#}"),
                    have => format!("the download stopped at {} and is resumed: {error:#}", megabytes(have)),
                });
                thread::sleep(Duration::from_secs(u64::from(fruitless)));
            }
        }
    }
    verify_sha256(&partial, sha256).map_err(|error| {
        let _ = fs::remove_file(&partial);
        error.context(format!("{url} is not the expected file, and what was downloaded is deleted"))
    })?;
    let _ = fs::remove_file(with_suffix(&partial, ".etag"));
    fs::rename(&partial, target).with_context(|| format!("cannot name {}", target.display()))
}

/// Whether trying again can help.
enum Failure {
    Transient(Error),
    Final(Error),
}

/// One request; appends what it brings to `partial`.
fn attempt(agent: &Agent, url: &str, partial: &Path) -> Result<(), Failure> {
    let etag_path = with_suffix(partial, ".etag");
    let have = size_of(partial);
    // An answer in another coding would not be the file whose checksum is known.
    let mut request = agent.get(url).header("Accept-Encoding", "identity");
    if have > 0 {
        request = request.header("Range", format!("bytes={have}-"));
        // If the file changed meanwhile, the server sends all of it instead of the rest.
        if let Ok(etag) = fs::read_to_string(&etag_path) {
            request = request.header("If-Range", etag);
        }
    }
    let response = request.call().map_err(|error| Failure::Transient(error.into()))?;
    let (parts, body) = response.into_parts();
    let offset = match parts.status {
        StatusCode::OK => 0,
        StatusCode::PARTIAL_CONTENT if range_start(&parts.headers) == Some(have) => have,
        // Nothing is left to send: all of it was there. The checksum tells if that is true.
        StatusCode::RANGE_NOT_SATISFIABLE if have > 0 => return Ok(()),
        status => {
            let error = anyhow!("the server answers {status}");
            let passing = status.is_server_error() || matches!(status.as_u16(), 206 | 408 | 429);
            return Err(if passing { Failure::Transient(error) } else { Failure::Final(error) });
        }
    };
    let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
    // A weak tag does not promise the same bytes and may not be used to continue.
    let written = match header("etag").filter(|tag| !tag.starts_with("W/")) {
        Some(tag) => fs::write(&etag_path, tag),
        None => fs::remove_file(&etag_path).or(Ok(())),
    };
    written.map_err(|error| {
        Failure::Final(Error::new(error).context(format!("cannot write {}", etag_path.display())))
    })?;
    let rest = header("content-length").and_then(|length| length.parse::<u64>().ok());
    receive(body, partial, offset, rest)
}

/// Writes a response's body behind the first `offset` bytes of `partial`.
fn receive(body: Body, partial: &Path, offset: u64, rest: Option<u64>) -> Result<(), Failure> {
    let writing = |error: std::io::Error| {
        Failure::Final(Error::new(error).context(format!("cannot write {}", partial.display())))
    };
    let mut file =
        if offset == 0 { File::create(partial) } else { OpenOptions::new().append(true).open(partial) }
            .map_err(writing)?;
    let total = rest.map(|rest| offset + rest);
    let label = partial.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut meter = Meter::new(label, total);
    let mut reader = body.into_reader();
    let mut buffer = vec![0; 1 << 18];
    let mut have = offset;
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                file.write_all(&buffer[..n]).map_err(writing)?;
                have += n as u64;
                meter.set(have);
            }
            Err(error) => return Err(Failure::Transient(error.into())),
        }
    }
    file.sync_all().map_err(writing)?;
    match total {
        Some(total) if have < total => {
            Err(Failure::Transient(anyhow!("the connection ended after {have} of {total} bytes")))
        }
        _ => Ok(()),
    }
}

/// First byte of `Content-Range: bytes FIRST-LAST/TOTAL`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get("content-range")?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// A client without a limit on the whole, but on silence; HTTP(S)_PROXY apply.
fn agent() -> Result<Agent> {
    let mut config = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .timeout_per_read(Some(Duration::from_secs(60)));
    // The usual way to name the certificates of a network with its own authority.
    if let Some(path) = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from) {
        let pem =
            fs::read(&path).with_context(|| format!("cannot read SSL_CERT_FILE = {}", path.display()))?;
        let certificates: Vec<_> = parse_pem(&pem)
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .collect();
        if certificates.is_empty() {
            bail!("SSL_CERT_FILE = {} holds no certificate: correct or unset it", path.display());
        }
        config = config
            .tls_config(TlsConfig::builder().root_certs(RootCerts::new_with_certs(&certificates)).build());
    }
    Ok(config.build().new_agent())
}

fn size_of(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::disk::sha256_file;
    use std::io::{BufRead, BufReader};
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
                let mut if_range = None;
                for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                    let line = line.unwrap().to_ascii_lowercase();
                    if line.is_empty() {
                        break;
                    }
                    range = line.strip_prefix("range: bytes=").map(str::to_owned).or(range);
                    if_range = line.strip_prefix("if-range: ").map(str::to_owned).or(if_range);
                }
                seen.lock().unwrap().push(range.clone());
                let from = match (serve, range, if_range.as_deref()) {
                    (Serve::IgnoreRange, ..) | (_, None, _) => None,
                    (_, _, Some(tag)) if tag != "\"v1\"" => None,
                    (_, Some(range), _) => Some(range.trim_end_matches('-').parse::<usize>().unwrap()),
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
                let head = format!("HTTP/1.1 {status}\r\nETag: \"v1\"\r\nConnection: close\r\n\r\n");
                // The client may hang up first; that is its right.
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
            }
        });
        (url, ranges)
    }

    fn content() -> (Vec<u8>, String) {
        let content: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &content).unwrap();
        let sha256 = sha256_file(file.path()).unwrap();
        (content, sha256)
    }

    #[test]
    fn a_cut_connection_is_resumed_where_it_stopped() {
        let (content, sha256) = content();
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("downloads/file.bin");
        let (url, ranges) =
            server(content.clone(), vec![Serve::Cut(100_000), Serve::Status(503), Serve::Whole]);
        fetch(&url, &target, &sha256).unwrap();
        assert_eq!(fs::read(&target).unwrap(), content);
        let rest = Some("100000-".to_owned());
        assert_eq!(*ranges.lock().unwrap(), [None, rest.clone(), rest]);
        // Nothing but the file is left, and a second fetch asks nobody.
        assert_eq!(fs::read_dir(target.parent().unwrap()).unwrap().count(), 1);
        fetch("http://127.0.0.1:1/unreachable", &target, &sha256).unwrap();
    }

    #[test]
    fn a_file_that_changed_or_a_server_without_ranges_starts_over() {
        let (content, sha256) = content();
        for (etag, serve) in [("\"v0\"", Serve::Whole), ("\"v1\"", Serve::IgnoreRange)] {
            let dir = tempfile::tempdir().unwrap();
            let target = dir.path().join("file.bin");
            fs::write(dir.path().join("file.bin.partial"), "the start of another file").unwrap();
            fs::write(dir.path().join("file.bin.partial.etag"), etag).unwrap();
            let (url, _) = server(content.clone(), vec![serve]);
            fetch(&url, &target, &sha256).unwrap();
            assert_eq!(fs::read(&target).unwrap(), content);
        }
    }

    #[test]
    fn a_complete_partial_file_is_taken_and_a_wrong_one_deleted() {
        let (content, sha256) = content();
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("file.bin");
        let partial = dir.path().join("file.bin.partial");
        fs::write(&partial, &content).unwrap();
        let (url, _) = server(content.clone(), vec![Serve::Whole]);
        fetch(&url, &target, &sha256).unwrap();

        let wrong = "0".repeat(64);
        fs::remove_file(&target).unwrap();
        let (url, _) = server(content, vec![Serve::Whole]);
        let error = format!("{:#}", fetch(&url, &target, &wrong).unwrap_err());
        assert!(error.contains(&sha256) && error.contains(&wrong), "{error}");
        assert!(!partial.exists() && !target.exists());
    }

    #[test]
    fn an_answer_that_will_not_change_is_not_asked_for_again() {
        let dir = tempfile::tempdir().unwrap();
        let (url, ranges) = server(Vec::new(), vec![Serve::Status(404), Serve::Status(404)]);
        let error = format!("{:#}", fetch(&url, &dir.path().join("x"), "00").unwrap_err());
        assert!(error.contains("404") && error.contains(&url), "{error}");
        assert_eq!(ranges.lock().unwrap().len(), 1);
    }
}
