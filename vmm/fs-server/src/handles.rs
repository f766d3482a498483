//! What the guest has open.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use crate::dirents::Dirents;
use crate::inodes::lock;

/// A regular file, open.
#[derive(Debug)]
pub struct OpenFile {
    /// Open with the access mode the guest asked for, or less.
    pub fd: OwnedFd,
    /// Opened with O_APPEND: the kernel ignores offsets of writes.
    pub append: bool,
}

/// A directory, open.
#[derive(Debug)]
pub struct OpenDir {
    /// Open for reading.
    pub fd: OwnedFd,
    /// Where reading stands. The lock makes concurrent reads of one handle take turns.
    pub entries: Mutex<Dirents>,
}

/// An open file or directory.
#[derive(Clone, Debug)]
pub enum Handle {
    /// A regular file.
    File(Arc<OpenFile>),
    /// A directory.
    Dir(Arc<OpenDir>),
}

/// All handles, by the number the guest knows them by. Numbers are never used twice.
#[derive(Debug)]
pub struct Handles {
    open: Mutex<HashMap<u64, Handle>>,
    next: AtomicU64,
    max: usize,
}

impl Handles {
    /// A table for at most `max` handles, numbered from `first` on.
    pub fn new(max: usize, first: u64) -> Self {
        Self { open: Mutex::default(), next: AtomicU64::new(first), max }
    }

    /// Adds a handle and returns its number; ENFILE if there are too many.
    pub fn add(&self, handle: Handle) -> Result<u64, Errno> {
        let mut open = lock(&self.open);
        if open.len() >= self.max {
            return Err(Errno::NFILE);
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        open.insert(number, handle);
        Ok(number)
    }

    /// The open file `number`; EBADF if there is none.
    pub fn file(&self, number: u64) -> Result<Arc<OpenFile>, Errno> {
        match lock(&self.open).get(&number) {
            Some(Handle::File(file)) => Ok(file.clone()),
            _ => Err(Errno::BADF),
        }
    }

    /// The open directory `number`; EBADF if there is none.
    pub fn dir(&self, number: u64) -> Result<Arc<OpenDir>, Errno> {
        match lock(&self.open).get(&number) {
            Some(Handle::Dir(dir)) => Ok(dir.clone()),
            _ => Err(Errno::BADF),
        }
    }

    /// Closes `number`. The descriptor closes outside the lock: the last close of a large, deleted
    /// file takes its time.
    pub fn remove(&self, number: u64) -> Result<(), Errno> {
        let removed = lock(&self.open).remove(&number);
        removed.map(drop).ok_or(Errno::BADF)
    }

    /// Closes everything.
    pub fn clear(&self) {
        let open = std::mem::take(&mut *lock(&self.open));
        drop(open);
    }
}
