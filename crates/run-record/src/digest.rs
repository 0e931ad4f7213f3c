//! SHA-256 in lower-case hexadecimal, of bytes, of a file, and of what is being read or written.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

/// SHA-256 of bytes.
pub fn sha256(bytes: impl AsRef<[u8]>) -> String {
    base16ct::lower::encode_string(&Sha256::digest(bytes))
}

/// SHA-256 of a file, read piece by piece.
///
/// # Errors
/// What the file system says; the message does not name the path, so add it.
pub fn sha256_file(path: &Path) -> io::Result<String> {
    let mut file = Hashing::new(File::open(path)?);
    io::copy(&mut file, &mut io::sink())?;
    Ok(file.finish().1.sha256)
}

/// What bytes are known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hashed {
    /// How many there are.
    pub bytes: u64,
    /// Their SHA-256.
    pub sha256: String,
}

/// A reader or a writer that hashes what passes it.
#[derive(Debug)]
pub struct Hashing<T> {
    inner: T,
    digest: Sha256,
    bytes: u64,
}

impl<T> Hashing<T> {
    /// Of all that passes `inner` from here on.
    pub fn new(inner: T) -> Self {
        Self { inner, digest: Sha256::new(), bytes: 0 }
    }

    /// What was read or written through, and what passed.
    pub fn finish(self) -> (T, Hashed) {
        let sha256 = base16ct::lower::encode_string(&self.digest.finalize());
        (self.inner, Hashed { bytes: self.bytes, sha256 })
    }

    fn passed(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.passed(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.passed(&buffer[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-4's example.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn what_is_held_written_and_read_has_one_digest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("abc");
        let mut file = Hashing::new(File::create(&path).unwrap());
        file.write_all(b"a").unwrap();
        file.write_all(b"bc").unwrap();
        let abc = Hashed { bytes: 3, sha256: ABC.to_owned() };
        assert_eq!(file.finish().1, abc);
        assert_eq!([sha256("abc"), sha256_file(&path).unwrap()], [ABC, ABC]);
        let mut file = Hashing::new(File::open(&path).unwrap());
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), file.finish().1), ("abc", abc));
    }
}
