//! The root directory: made up, read-only, with an entry for each share.

use std::collections::HashSet;
use std::ffi::CStr;
use std::sync::{Arc, Mutex};

use rustix::fs::{FileType, Mode, OFlags, Statx, StatxFlags, openat};
use rustix::io::Errno;

use crate::dir::{d_type, fits, put_dirent};
use crate::inodes::{Found, Inode, Inodes, lock};
use crate::server::{Server, stat};
use crate::state::State;
use crate::wire::{Name, ROOT_ID, ReadIn, Reply, is_name};
use crate::{ServeError, ShareRoot};

/// A directory that everybody may read.
const MODE: u32 = libc::S_IFDIR | 0o555;
const BLOCK_SIZE: u32 = 4096;

/// The shares in the order given.
#[derive(Debug)]
pub struct Root {
    shares: Mutex<Shares>,
    /// How many there were from the beginning; the index of one that was added is not below it.
    at_start: usize,
}

#[derive(Debug, Default)]
struct Shares {
    list: Vec<Share>,
    /// The index of the next one: none is used twice.
    next: usize,
}

#[derive(Debug)]
struct Share {
    name: Vec<u8>,
    inode: Arc<Inode>,
    copied: bool,
}

impl Root {
    /// Checks the shares' names and makes their roots known for good, by the IDs that `state` has for
    /// them.
    pub fn new(roots: Vec<ShareRoot>, inodes: &Inodes, state: &State) -> Result<Self, ServeError> {
        let mut shares = Shares::default();
        for root in roots {
            if shares.has(root.name.as_bytes()) || !is_name(root.name.as_bytes()) {
                return Err(ServeError::ShareName(root.name));
            }
            let stat = match stat(&root.fd) {
                Ok(stat) => stat,
                Err(source) => return Err(ServeError::Share { name: root.name, source }),
            };
            let id = state.share(root.name.as_bytes());
            shares.push(root, stat, inodes, id);
        }
        Ok(Self { at_start: shares.next, shares: Mutex::new(shares) })
    }

    /// Adds all of `roots`, whose names are checked, or none: EEXIST if one's name is taken, ENFILE if too
    /// many files are known.
    pub fn add(&self, roots: Vec<ShareRoot>, inodes: &Inodes) -> Result<(), Errno> {
        let mut shares = lock(&self.shares);
        let mut names = HashSet::new();
        let taken = |root: &ShareRoot| shares.has(root.name.as_bytes());
        if roots.iter().any(|root| taken(root) || !names.insert(root.name.as_str())) {
            return Err(Errno::EXIST);
        }
        if roots.len() > inodes.room() {
            return Err(Errno::NFILE);
        }
        let stats: Vec<_> = roots.iter().map(|root| stat(&root.fd)).collect::<Result<_, _>>()?;
        for (root, stat) in roots.into_iter().zip(stats) {
            shares.push(root, stat, inodes, None);
        }
        Ok(())
    }

    /// Takes all shares called `names` away, or none: ENOENT if one was not added. Returns their indices.
    pub fn remove(&self, names: &[&[u8]]) -> Result<Vec<usize>, Errno> {
        let mut shares = lock(&self.shares);
        let added = |share: &Share| self.is_added(share.inode.share);
        let is = |name: &[u8], share: &Share| share.name == name && added(share);
        if names.iter().any(|name| !shares.list.iter().any(|share| is(name, share))) {
            return Err(Errno::NOENT);
        }
        let called = |share: &mut Share| names.contains(&share.name.as_slice());
        Ok(shares.list.extract_if(.., called).map(|share| share.inode.share).collect())
    }

    /// Whether the share with this index was added.
    pub fn is_added(&self, share: usize) -> bool {
        share >= self.at_start
    }

    /// Whether there are shares that were added.
    pub fn has_added(&self) -> bool {
        lock(&self.shares).list.len() > self.at_start
    }

    /// Whether `id` is the root's.
    pub fn is(&self, id: u64) -> bool {
        id == ROOT_ID
    }

    /// The root of the share called `name`; ENOENT if there is none.
    pub fn find(&self, name: Name<'_>) -> Result<Arc<Inode>, Errno> {
        let shares = lock(&self.shares);
        let share = shares.list.iter().find(|share| share.name == name.to_bytes());
        share.map(|share| share.inode.clone()).ok_or(Errno::NOENT)
    }

    /// Whether the share with this index is a copy.
    pub fn is_copied(&self, share: usize) -> bool {
        lock(&self.shares).list.iter().any(|found| found.inode.share == share && found.copied)
    }

    /// The shares' names and roots.
    pub fn shares(&self) -> Vec<(Vec<u8>, Arc<Inode>)> {
        let shares = lock(&self.shares);
        shares.list.iter().map(|share| (share.name.clone(), share.inode.clone())).collect()
    }

    /// The shares' roots.
    pub fn inodes(&self) -> Vec<Arc<Inode>> {
        lock(&self.shares).list.iter().map(|share| share.inode.clone()).collect()
    }

    /// Writes the root's `struct fuse_attr`: a directory that everybody may read.
    pub fn put_attr(&self, reply: &mut Reply<'_>) -> Result<(), Errno> {
        // ino; size, blocks, atime, mtime, ctime; their nanoseconds.
        reply.u64s([ROOT_ID, 0, 0, 0, 0, 0])?;
        reply.u32s([0, 0, 0])?;
        // mode, nlink, uid, gid, rdev, blksize, flags.
        reply.u32s([MODE, self.links(), 0, 0, 0, BLOCK_SIZE, 0])
    }

    /// Writes what STATX says of the root: spare, then `struct fuse_statx`.
    pub fn put_statx(&self, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let mask = StatxFlags::BASIC_STATS.bits();
        reply.u64s([0, 0])?;
        reply.u32s([mask, BLOCK_SIZE])?;
        reply.u64s([0])?;
        reply.u32s([self.links(), 0, 0, MODE])?;
        reply.u64s([ROOT_ID, 0, 0, 0])?;
        // Four times, device numbers, spare.
        reply.zeros(4 * 16 + 4 * 4 + 14 * 8)
    }

    fn links(&self) -> u32 {
        2 + lock(&self.shares).list.len() as u32
    }

    /// READDIR and READDIRPLUS: offsets count entries. Lookups are left to LOOKUP.
    pub fn readdir(&self, read: &ReadIn, reply: &mut Reply<'_>, plus: bool) -> Result<(), Errno> {
        let size = read.size as usize;
        let dots = [&b"."[..], b".."].map(|name| (ROOT_ID, FileType::Directory, name));
        let shares = lock(&self.shares);
        let shares = shares.list.iter();
        let shares =
            shares.map(|share| (share.inode.id, share.inode.file_type, share.name.as_slice()));
        let entries = dots.into_iter().chain(shares).zip(1..);
        let start = usize::try_from(read.offset).unwrap_or(usize::MAX);
        for ((ino, file_type, name), next) in entries.skip(start) {
            if !fits(reply, size, name, plus) {
                break;
            }
            if plus {
                reply.zeros(crate::attr::ENTRY_OUT_LEN)?;
            }
            put_dirent(reply, ino, next, d_type(file_type), name)?;
        }
        Ok(())
    }
}

impl Shares {
    fn has(&self, name: &[u8]) -> bool {
        self.list.iter().any(|share| share.name == name)
    }

    /// Adds one and makes its root known as long as it is there, by `id` if an earlier server called it
    /// that.
    fn push(&mut self, root: ShareRoot, stat: Statx, inodes: &Inodes, id: Option<u64>) {
        let ShareRoot { name, fd, readonly, copied } = root;
        let inode = inodes.pin(Found { share: self.next, readonly, fd, stat }, id);
        self.list.push(Share { name: name.into_bytes(), inode, copied });
        self.next += 1;
    }
}

impl Server {
    /// SYNCFS: syncs the host file system of every share that can be written to.
    pub(crate) fn syncfs(&self) -> Result<(), Errno> {
        let itself: &CStr = c".";
        for inode in self.root.inodes().iter().filter(|inode| !inode.readonly) {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let fd = if inode.file_type.is_dir() {
                openat(&inode.fd, itself, flags | OFlags::DIRECTORY, Mode::empty())?
            } else if inode.file_type.is_file() {
                self.reopen(&inode.fd, flags)?
            } else {
                continue;
            };
            rustix::fs::syncfs(fd)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::CWD;

    use super::*;
    use crate::server::path_flags;

    #[test]
    fn added_shares_are_counted_among_the_files_that_may_be_known() {
        let temp = tempfile::tempdir().unwrap();
        let root = |name: &str| ShareRoot {
            name: name.to_owned(),
            fd: openat(CWD, temp.path(), path_flags(), Mode::empty()).unwrap(),
            readonly: false,
            copied: false,
        };
        let inodes = Inodes::new(3, 0, ROOT_ID);
        let shares = Root::new(vec![root("first")], &inodes, &State::default()).unwrap();
        let too_many = ["a", "b", "c"].map(root).into();
        assert_eq!(shares.add(too_many, &inodes), Err(Errno::NFILE));
        assert_eq!((shares.has_added(), inodes.len()), (false, 1));
        assert_eq!(shares.add(["a", "b"].map(root).into(), &inodes), Ok(()));
        assert_eq!(shares.add(vec![root("c")], &inodes), Err(Errno::NFILE));
        let gone = shares.remove(&[b"a"]).unwrap();
        assert_eq!((gone.as_slice(), shares.has_added()), (&[1][..], true));
        assert_eq!(inodes.remove_share(1).len(), 1);
        assert_eq!(shares.add(vec![root("c")], &inodes), Ok(()));
        assert!(shares.is_added(3) && !shares.is_added(0));
        // A request that was under way when its share went.
        let stat = stat(root("a").fd).unwrap();
        let found = Found { share: 1, readonly: false, fd: root("a").fd, stat };
        assert!(matches!(inodes.add(found, false), Err(Errno::STALE)));
    }
}
