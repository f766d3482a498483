//! Locks of the store: on open files, so that none outlives its holder, whatever that dies of.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};

use super::{Store, StoreError, failed};
use crate::digest::Digest;

/// Held until dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Store {
    /// Keeps what is there from being taken away. Waits for one that is doing that.
    pub(crate) fn share(&self) -> Result<Lock, StoreError> {
        let path = self.dir.join("lock");
        let file = open(&path).map_err(failed("open", &path))?;
        retry_on_intr(|| flock(&file, FlockOperation::LockShared))
            .map_err(failed("lock", &path))?;
        Ok(Lock { _file: file })
    }

    /// Allows taking things away; `None` while somebody adds or starts to use something.
    pub(crate) fn try_own(&self) -> Result<Option<Lock>, StoreError> {
        let path = self.dir.join("lock");
        let file = open(&path).map_err(failed("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::AGAIN) => Ok(None),
            locked => locked.map(|()| Some(Lock { _file: file })).map_err(failed("lock", &path)),
        }
    }

    /// Waits until nobody else works on what `key` names (unpacks a layer, fetches an image), and
    /// keeps others waiting. Two keys of the same number, which is next to impossible, wait for
    /// each other in vain, no worse.
    pub(crate) fn lock_key(&self, key: &Digest) -> Result<Lock, StoreError> {
        let path = self.dir.join("busy");
        let file = open(&path).map_err(failed("open", &path))?;
        let start = (key.number() >> 1) as i64;
        // SAFETY: an all-zero struct flock is a valid one.
        let mut wanted: libc::flock = unsafe { std::mem::zeroed() };
        wanted.l_type = libc::F_WRLCK as _;
        wanted.l_whence = libc::SEEK_SET as _;
        wanted.l_start = start;
        wanted.l_len = 1;
        loop {
            // SAFETY: `wanted` is a struct flock that lives through the call; the kernel reads it.
            match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLKW, &raw const wanted) } {
                0 => return Ok(Lock { _file: file }),
                _ => {
                    let error = std::io::Error::last_os_error();
                    if error.kind() != std::io::ErrorKind::Interrupted {
                        return Err(failed("lock", &path)(error));
                    }
                }
            }
        }
    }
}

pub fn open(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true).mode(0o600).open(path)
}
