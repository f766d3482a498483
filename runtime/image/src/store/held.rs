//! Directories that live as long as their owner: work in progress, and writable layers.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::locks::{Lock, open};
use super::{Store, StoreError, failed};

const LOCK: &str = "lock";
/// Bytes of randomness in a name.
const NAME_BYTES: usize = 8;

/// A directory of ours; removed when dropped.
#[derive(Debug)]
pub struct Held {
    path: PathBuf,
    lock: File,
    /// Somebody else holds the lock, too.
    left: bool,
}

impl Held {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What its life hangs on.
    pub fn lock(&self) -> &File {
        &self.lock
    }

    /// Leaves it to whoever else has inherited its lock.
    pub fn leave(mut self) {
        self.left = true;
    }

    /// Makes a directory in it, for this user alone.
    pub fn make(&self, name: &str) -> Result<PathBuf, StoreError> {
        let path = self.path.join(name);
        DirBuilder::new().mode(0o700).create(&path).map_err(failed("make directory", &path))?;
        Ok(path)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.left {
            // What stays is swept later: its lock is free.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

impl Store {
    /// Makes a directory of a name of its own in `tmp` or `containers`. Sharing the store keeps
    /// sweepers away until its lock is held.
    pub(crate) fn hold(&self, within: &str, _shared: &Lock) -> Result<Held, StoreError> {
        let mut name = [0; NAME_BYTES];
        let path = self.dir.join(within);
        rustix::rand::getrandom(&mut name, rustix::rand::GetRandomFlags::empty())
            .map_err(failed("find a name in", &path))?;
        let name: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = path.join(name);
        DirBuilder::new().mode(0o700).create(&path).map_err(failed("make directory", &path))?;
        let file = path.join(LOCK);
        let lock = open(&file).map_err(failed("make", &file))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(failed("lock", &file))?;
        Ok(Held { path, lock, left: false })
    }

    /// Removes what the dead left.
    pub(super) fn sweep(&self, _own: &Lock) {
        for path in self.names_in("tmp").chain(self.names_in("containers")) {
            if is_dead(&path) {
                // What cannot be removed now is the next one's to try.
                let _ = fs::remove_dir_all(path);
            }
        }
    }
}

/// Whether nobody holds a directory. Those being made are kept away by the store's lock.
pub fn is_dead(path: &Path) -> bool {
    match File::open(path.join(LOCK)) {
        Ok(lock) => {
            !matches!(flock(&lock, FlockOperation::NonBlockingLockExclusive), Err(Errno::AGAIN))
        }
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}
