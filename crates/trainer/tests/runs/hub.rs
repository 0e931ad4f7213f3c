//! A stand-in for the Hugging Face hub.

#![allow(dead_code, reason = "no test program needs all of it")]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// The commit of every file.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A stand-in for the hub that serves files of `org/net`, and keeps what it was asked.
pub struct Hub {
    /// Its address.
    pub endpoint: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    /// Files by name with their contents and announced digests.
    pub fn new(files: Vec<(&'static str, Vec<u8>, String)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let endpoint = format!("http://{}", listener.local_addr().expect("it has an address"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Whoever hangs up has what it wants.
                let _ = answer(&stream, &files, &log);
            }
        });
        Self { endpoint, asked }
    }

    /// What it was asked since the last time.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().expect("nobody panicked"))
    }
}

fn answer(
    mut stream: &TcpStream,
    files: &[(&str, Vec<u8>, String)],
    log: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut range = String::new();
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("range: bytes=") {
            range = value.to_owned();
        }
    }
    log.lock().expect("nobody panicked").push(format!("{path} {range}"));
    let found = ["main", "v2", COMMIT].into_iter().find_map(|revision| {
        let name = path.strip_prefix(&format!("/org/net/resolve/{revision}/"))?;
        files.iter().find(|(file, ..)| *file == name)
    });
    let Some((_, bytes, etag)) = found else {
        let status = if path.starts_with("/org/net/") { "404 Not Found" } else { "401 Unauthorized" };
        return write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let (start, end) = range.split_once('-').unwrap_or(("0", ""));
    let start: usize = start.parse().unwrap_or(0);
    let end = end.parse().map_or(bytes.len(), |end: usize| (end + 1).min(bytes.len()));
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{}/{}\r\nETag: \"{etag}\"\r\n\
         X-Repo-Commit: {COMMIT}\r\nConnection: close\r\n\r\n",
        end - start,
        end - 1,
        bytes.len()
    )?;
    stream.write_all(&bytes[start..end])
}
