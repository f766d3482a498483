//! The root directory: made up, read-only, with an entry for each share.

use std::ffi::CStr;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, StatxFlags, openat};
use rustix::io::Errno;

use crate::dir::{d_type, fits, put_dirent};
use crate::inodes::{Found, Inode, Inodes};
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
    shares: Vec<Share>,
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
        let mut shares: Vec<Share> = Vec::with_capacity(roots.len());
        for (index, root) in roots.into_iter().enumerate() {
            let ShareRoot { name, fd, readonly, copied } = root;
            let taken = shares.iter().any(|share| share.name == name.as_bytes());
            if taken || !is_name(name.as_bytes()) {
                return Err(ServeError::ShareName(name));
            }
            let stat = match stat(&fd) {
                Ok(stat) => stat,
                Err(source) => return Err(ServeError::Share { name, source }),
            };
            let id = state.share(name.as_bytes());
            let inode = inodes.pin(Found { share: index, readonly, fd, stat }, id);
            shares.push(Share { name: name.into_bytes(), inode, copied });
        }
        Ok(Self { shares })
    }

    /// Whether `id` is the root's.
    pub fn is(&self, id: u64) -> bool {
        id == ROOT_ID
    }

    /// The root of the share called `name`; ENOENT if there is none.
    pub fn find(&self, name: Name<'_>) -> Result<&Arc<Inode>, Errno> {
        let share = self.shares.iter().find(|share| share.name == name.to_bytes());
        share.map(|share| &share.inode).ok_or(Errno::NOENT)
    }

    /// Whether the share with this index is a copy.
    pub fn is_copied(&self, share: usize) -> bool {
        self.shares.get(share).is_some_and(|share| share.copied)
    }

    /// The shares' names and roots.
    pub fn shares(&self) -> impl Iterator<Item = (&[u8], &Arc<Inode>)> {
        self.shares.iter().map(|share| (share.name.as_slice(), &share.inode))
    }

    /// The shares' roots.
    pub fn inodes(&self) -> impl Iterator<Item = &Arc<Inode>> {
        self.shares.iter().map(|share| &share.inode)
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
        2 + self.shares.len() as u32
    }

    /// READDIR and READDIRPLUS: offsets count entries. Lookups are left to LOOKUP.
    pub fn readdir(&self, read: &ReadIn, reply: &mut Reply<'_>, plus: bool) -> Result<(), Errno> {
        let size = read.size as usize;
        let dots = [&b"."[..], b".."].map(|name| (ROOT_ID, FileType::Directory, name));
        let shares = self
            .shares
            .iter()
            .map(|share| (share.inode.id, share.inode.file_type, share.name.as_slice()));
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

impl Server {
    /// SYNCFS: syncs the host file system of every share that can be written to.
    pub(crate) fn syncfs(&self) -> Result<(), Errno> {
        let itself: &CStr = c".";
        for inode in self.root.inodes().filter(|inode| !inode.readonly) {
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
