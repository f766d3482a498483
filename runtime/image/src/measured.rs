//! A reader that counts and hashes what passes through it.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use crate::digest::Digest;

/// Counts and hashes; ends with an error where more than `limit` bytes come.
pub struct Measured<R> {
    source: R,
    hash: Sha256,
    read: u64,
    limit: u64,
}

impl<R: Read> Measured<R> {
    /// Measures `source`, of which at most `limit` bytes are wanted.
    pub fn new(source: R, limit: u64) -> Self {
        Self { source, hash: Sha256::new(), read: 0, limit }
    }

    /// Reads what is left; returns digest and size of all of it.
    pub fn finish(mut self) -> io::Result<(Digest, u64)> {
        let mut buffer = vec![0; 64 << 10];
        while self.read(&mut buffer)? > 0 {}
        Ok((Digest::finish(self.hash), self.read))
    }
}

impl<R: Read> Read for Measured<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        self.read += length as u64;
        if self.read > self.limit {
            let message = format!("more than {} bytes come", self.limit);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        self.hash.update(&buffer[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_hashed_and_too_much_is_an_error() {
        let mut measured = Measured::new(&b"hello"[..], 5);
        measured.read_exact(&mut [0; 2]).unwrap();
        assert_eq!(measured.finish().unwrap(), (Digest::of(b"hello"), 5));
        let error = Measured::new(&b"hello"[..], 4).finish().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
