//! Directories: OPENDIR, READDIR and READDIRPLUS.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::fs::{FileType, Mode, OFlags, openat};
use rustix::io::Errno;

use crate::attr::ENTRY_OUT_LEN;
use crate::dirents::{Dirent, Dirents};
use crate::handles::{Handle, OpenDir};
use crate::inodes::{Inode, lock};
use crate::io::put_open;
use crate::server::{Request, Server};
use crate::wire::{Name, PAYLOAD_MAX, ReadIn, Reply};

/// Length of `struct fuse_dirent` before the name.
const DIRENT_LEN: usize = 24;

impl Server {
    pub(crate) fn opendir(&self, request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        if self.root.is(request.header.nodeid) {
            return put_open(reply, 0, 0);
        }
        let inode = self.inodes.get(request.header.nodeid)?;
        let fd = self.open_dir(&inode)?;
        let dir = OpenDir { node: inode.id, fd, entries: Mutex::new(Dirents::default()) };
        put_open(reply, self.handles.add(Handle::Dir(Arc::new(dir)))?, 0)
    }

    /// Opens a directory for reading.
    pub(crate) fn open_dir(&self, inode: &Inode) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(&inode.fd, c".", flags, Mode::empty())
    }

    pub(crate) fn readdir(
        &self,
        mut request: Request<'_>,
        reply: &mut Reply<'_>,
        plus: bool,
    ) -> Result<(), Errno> {
        let mut asked = ReadIn::parse(&mut request.args)?;
        asked.size = asked.size.min(PAYLOAD_MAX as u32);
        if self.root.is(request.header.nodeid) {
            return self.root.readdir(&asked, reply, plus);
        }
        // The handle first: of a directory that is lost it says EIO, as a file's does.
        let dir = self.handles.dir(asked.fh)?;
        let inode = self.inodes.get(request.header.nodeid)?;
        match self.list(&inode, &dir, &asked, reply, plus) {
            // Entries listed so far count lookups and must reach the guest; the next request
            // meets the error again.
            Err(_) if reply.body_len() > 0 => Ok(()),
            result => result,
        }
    }

    fn list(
        &self,
        inode: &Inode,
        dir: &OpenDir,
        asked: &ReadIn,
        reply: &mut Reply<'_>,
        plus: bool,
    ) -> Result<(), Errno> {
        let mut entries = lock(&dir.entries);
        let listed = self.list_entries(inode, dir, &mut entries, asked, reply, plus);
        entries.settle(&self.batches);
        listed
    }

    fn list_entries(
        &self,
        inode: &Inode,
        dir: &OpenDir,
        entries: &mut Dirents,
        asked: &ReadIn,
        reply: &mut Reply<'_>,
        plus: bool,
    ) -> Result<(), Errno> {
        entries.seek(&dir.fd, asked.offset)?;
        while let Some(entry) = entries.peek(&dir.fd)? {
            let name = entry.name.to_bytes();
            if !fits(reply, asked.size as usize, name, plus) {
                // Nothing at all would mean the end of the directory.
                return if reply.body_len() == 0 { Err(Errno::INVAL) } else { Ok(()) };
            }
            if plus {
                self.put_looked_up(reply, inode, &entry)?;
            }
            put_dirent(reply, inode.guest_ino(entry.ino), entry.next, entry.file_type, name)?;
            let position = entry.position();
            entries.advance(position);
        }
        Ok(())
    }

    /// Looks a listed entry up and writes `struct fuse_entry_out`; a zeroed one, which counts no
    /// lookup, for "." and ".." and where the lookup fails.
    fn put_looked_up(
        &self,
        reply: &mut Reply<'_>,
        dir: &Inode,
        entry: &Dirent<'_>,
    ) -> Result<(), Errno> {
        match Name::listed(entry.name).map(|name| self.look_up(dir, name)) {
            Some(Ok((inode, stat))) => self.put_entry(reply, &inode, &stat),
            Some(Err(_)) | None => reply.zeros(ENTRY_OUT_LEN),
        }
    }
}

/// The `DT_*` of a type: its bits of the mode, moved down (`IFTODT` of dirent.h).
pub fn d_type(file_type: FileType) -> u8 {
    (file_type.as_raw_mode() >> 12) as u8
}

/// Whether an entry called `name` still fits a reply of at most `size` bytes.
pub fn fits(reply: &Reply<'_>, size: usize, name: &[u8], plus: bool) -> bool {
    let entry = if plus { ENTRY_OUT_LEN } else { 0 };
    reply.body_len() + entry + (DIRENT_LEN + name.len()).next_multiple_of(8) <= size
}

/// Writes `struct fuse_dirent`, padded to 8 bytes.
pub fn put_dirent(
    reply: &mut Reply<'_>,
    ino: u64,
    next: u64,
    file_type: u8,
    name: &[u8],
) -> Result<(), Errno> {
    reply.u64s([ino, next])?;
    reply.u32s([name.len() as u32, u32::from(file_type)])?;
    reply.bytes(name)?;
    reply.zeros(name.len().next_multiple_of(8) - name.len())
}
