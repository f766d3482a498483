//! What the guest has open.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::dirents::Dirents;
use crate::inodes::lock;

/// A regular file, open.
#[derive(Debug)]
pub struct OpenFile {
    /// Its inode's ID.
    pub node: u64,
    /// Open with the access mode the guest asked for, or less.
    pub fd: OwnedFd,
    /// How it was opened.
    pub flags: OFlags,
}

/// A directory, open.
#[derive(Debug)]
pub struct OpenDir {
    /// Its inode's ID.
    pub node: u64,
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
    /// What an earlier server had open, and this one did not find again: EIO.
    Lost,
}

/// All handles, by the number the guest knows them by. Numbers are never used twice.
#[derive(Debug)]
pub struct Handles {
    open: Mutex<HashMap<u64, Handle>>,
    last: AtomicU64,
    max: usize,
}

impl Handle {
    /// Its inode's ID; 0, no inode's, if it is lost.
    fn node(&self) -> u64 {
        match self {
            Self::File(file) => file.node,
            Self::Dir(dir) => dir.node,
            Self::Lost => 0,
        }
    }
}

impl Handles {
    /// A table for at most `max` handles, whose numbers come after `last`.
    pub fn new(max: usize, last: u64) -> Self {
        Self { open: Mutex::default(), last: AtomicU64::new(last), max }
    }

    /// Adds a handle and returns its number; ENFILE if there are too many.
    pub fn add(&self, handle: Handle) -> Result<u64, Errno> {
        let mut open = lock(&self.open);
        if open.len() >= self.max {
            return Err(Errno::NFILE);
        }
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        open.insert(number, handle);
        Ok(number)
    }

    /// Adds a handle that an earlier server gave out, unless there are too many.
    pub fn restore(&self, number: u64, handle: Handle) {
        let mut open = lock(&self.open);
        if open.len() < self.max {
            open.insert(number, handle);
        }
    }

    /// All of them, with their numbers.
    pub fn list(&self) -> Vec<(u64, Handle)> {
        lock(&self.open).iter().map(|(number, handle)| (*number, handle.clone())).collect()
    }

    /// The last number given out.
    pub fn last_number(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    /// The open file `number`; EBADF if there is none.
    pub fn file(&self, number: u64) -> Result<Arc<OpenFile>, Errno> {
        match lock(&self.open).get(&number) {
            Some(Handle::File(file)) => Ok(file.clone()),
            Some(Handle::Lost) => Err(Errno::IO),
            _ => Err(Errno::BADF),
        }
    }

    /// The open directory `number`; EBADF if there is none.
    pub fn dir(&self, number: u64) -> Result<Arc<OpenDir>, Errno> {
        match lock(&self.open).get(&number) {
            Some(Handle::Dir(dir)) => Ok(dir.clone()),
            Some(Handle::Lost) => Err(Errno::IO),
            _ => Err(Errno::BADF),
        }
    }

    /// Closes `number`. The descriptor closes outside the lock: the last close of a large, deleted
    /// file takes its time.
    pub fn remove(&self, number: u64) -> Result<(), Errno> {
        let removed = lock(&self.open).remove(&number);
        removed.map(drop).ok_or(Errno::BADF)
    }

    /// Closes those of `nodes`.
    pub fn close(&self, nodes: &HashSet<u64>) {
        let of_them = |_: &u64, handle: &mut Handle| nodes.contains(&handle.node());
        let closed: Vec<_> = lock(&self.open).extract_if(of_them).collect();
        drop(closed);
    }

    /// Closes everything.
    pub fn clear(&self) {
        let open = std::mem::take(&mut *lock(&self.open));
        drop(open);
    }
}
