//! Open files: OPEN, CREATE, TMPFILE, and what is done with their handles.

use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    FallocateFlags, FileType, OFlags, SeekFrom, Statx, copy_file_range, fallocate, fdatasync,
    fsync, openat, seek,
};
use rustix::io::{Errno, fcntl_dupfd_cloexec, pread, pwrite};

use crate::credentials::SET_ID_BITS;
use crate::handles::{Handle, OpenFile};
use crate::inodes::Inode;
use crate::server::{Request, Server, path_flags, stat};
use crate::wire::{
    CopyFileRangeIn, CreateIn, FSYNC_FDATASYNC, FallocateIn, FsyncIn, InHeader, LseekIn, Name,
    OPEN_KILL_SUIDGID, OpenIn, PAYLOAD_MAX, ReadIn, Reply, WRITE_CACHE, WRITE_KILL_SUIDGID,
    WriteIn, fopen,
};

/// Open flags passed on. O_DIRECT is not: the guest's alignment says nothing about our buffers.
const OPEN_FLAGS: OFlags = OFlags::RWMODE
    .union(OFlags::APPEND)
    .union(OFlags::TRUNC)
    .union(OFlags::DSYNC)
    .union(OFlags::SYNC)
    .union(OFlags::NOATIME);

/// The most bytes one COPY_FILE_RANGE copies: what a disk writes in about a second.
const COPY_MAX: u64 = 256 << 20;

impl Server {
    pub(crate) fn open(
        &self,
        mut request: Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let asked = OpenIn::parse(&mut request.args)?;
        if self.root.is(request.header.nodeid) {
            return Err(Errno::ISDIR);
        }
        let inode = self.inodes.get(request.header.nodeid)?;
        let (number, flags) = self.open_inode(&inode, asked.flags, asked.open_flags)?;
        put_open(reply, number, flags)
    }

    /// Opens a known file for I/O, and returns the handle's number and FOPEN flags.
    fn open_inode(&self, inode: &Inode, flags: u32, open_flags: u32) -> Result<(u64, u32), Errno> {
        let flags = host_flags(flags);
        if writes(flags) {
            self.before_writing(inode)?;
        }
        let kill = flags.contains(OFlags::TRUNC) && open_flags & OPEN_KILL_SUIDGID != 0;
        let fd = {
            let _lowered = kill.then(|| self.credentials.without_fsetid());
            self.open_file(inode, flags)?
        };
        let stat = stat(&fd)?;
        self.add_file(inode, fd, flags, &stat)
    }

    /// Opens a regular file, if its share lets it be opened in this way.
    pub(crate) fn open_file(&self, inode: &Inode, flags: OFlags) -> Result<OwnedFd, Errno> {
        match inode.file_type {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            FileType::Symlink => return Err(Errno::LOOP),
            // The guest's kernel opens these itself; here they would reach the host's devices.
            _ => return Err(Errno::NXIO),
        }
        if inode.readonly && writes(flags) {
            return Err(Errno::ROFS);
        }
        self.reopen(&inode.fd, flags)
    }

    /// Adds the handle of a file just opened.
    fn add_file(
        &self,
        inode: &Inode,
        fd: OwnedFd,
        flags: OFlags,
        stat: &Statx,
    ) -> Result<(u64, u32), Errno> {
        let mut answer = 0;
        if inode.is_cached(stat) {
            answer |= fopen::KEEP_CACHE;
        }
        if !writes(flags) {
            // Nothing written, nothing to flush: spares a request at each close.
            answer |= fopen::NOFLUSH;
        }
        let file = OpenFile { node: inode.id, fd, flags };
        let number = self.handles.add(Handle::File(Arc::new(file)))?;
        Ok((number, answer))
    }

    pub(crate) fn create(
        &self,
        mut request: Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let asked = CreateIn::parse(&mut request.args)?;
        let name = request.args.name()?;
        let dir = self.writable(request.header.nodeid)?;
        // Always O_EXCL, so that what is opened here is new and regular.
        match self.create_new(&request.header, &dir, name, &asked) {
            Ok(fd) => self.enter_opened(reply, &dir, fd, host_flags(asked.flags)),
            Err(Errno::EXIST) if !asked.exclusive() => {
                // Made by someone else since the guest looked: an OPEN with another reply.
                let (inode, stat) = self.look_up(&dir, name)?;
                match self.open_inode(&inode, asked.flags, asked.open_flags) {
                    Ok((number, flags)) => {
                        self.put_entry(reply, &inode, &stat)?;
                        put_open(reply, number, flags)
                    }
                    Err(errno) => {
                        self.inodes.forget(inode.id, 1);
                        Err(errno)
                    }
                }
            }
            Err(errno) => Err(errno),
        }
    }

    fn create_new(
        &self,
        caller: &InHeader,
        dir: &Inode,
        name: Name<'_>,
        asked: &CreateIn,
    ) -> Result<OwnedFd, Errno> {
        let flags = host_flags(asked.flags)
            | OFlags::CREATE
            | OFlags::EXCL
            | OFlags::NOFOLLOW
            | OFlags::CLOEXEC;
        self.create_as(caller, asked.mode & !asked.umask, |mode| {
            openat(&dir.fd, name.as_c_str(), flags, mode)
        })
    }

    pub(crate) fn tmpfile(
        &self,
        mut request: Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let asked = CreateIn::parse(&mut request.args)?;
        let dir = self.writable(request.header.nodeid)?;
        let exclusive = if asked.exclusive() { OFlags::EXCL } else { OFlags::empty() };
        let flags = host_flags(asked.flags);
        let fd = self.create_as(&request.header, asked.mode & !asked.umask, |mode| {
            openat(&dir.fd, c".", flags | exclusive | OFlags::TMPFILE | OFlags::CLOEXEC, mode)
        })?;
        self.enter_opened(reply, &dir, fd, flags)
    }

    /// Replies to CREATE and TMPFILE: the entry and the handle of the new file `fd`.
    fn enter_opened(
        &self,
        reply: &mut Reply<'_>,
        dir: &Inode,
        fd: OwnedFd,
        flags: OFlags,
    ) -> Result<(), Errno> {
        let path = self.reopen(&fd, path_flags() - OFlags::NOFOLLOW)?;
        let (inode, stat) = self.know(dir, path, None)?;
        match self.add_file(&inode, fd, flags, &stat) {
            Ok((number, answer)) => {
                self.put_entry(reply, &inode, &stat)?;
                put_open(reply, number, answer)
            }
            Err(errno) => {
                self.inodes.forget(inode.id, 1);
                Err(errno)
            }
        }
    }

    pub(crate) fn read(
        &self,
        mut request: Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let asked = ReadIn::parse(&mut request.args)?;
        let file = self.handles.file(asked.fh)?;
        let size = (asked.size as usize).min(PAYLOAD_MAX);
        let len = pread(&file.fd, reply.spare(size)?, asked.offset)?;
        reply.grow(len)
    }

    pub(crate) fn write(
        &self,
        mut request: Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let asked = WriteIn::parse(&mut request.args)?;
        let data = request.args.bytes(asked.size as usize)?;
        let file = self.handles.file(asked.fh)?;
        if file.flags & OFlags::RWMODE == OFlags::RDONLY {
            // Not left to the host's kernel: below, the file may be opened anew.
            return Err(Errno::BADF);
        }
        // Looking costs less than lowering, and files with these bits are rare.
        let kill = asked.write_flags & WRITE_KILL_SUIDGID != 0
            && u32::from(stat(&file.fd)?.stx_mode) & SET_ID_BITS != 0;
        let _lowered = kill.then(|| self.credentials.without_fsetid());
        let append = file.flags.contains(OFlags::APPEND);
        let len = if append && asked.write_flags & WRITE_CACHE != 0 {
            // A page of a shared mapping belongs at its offset, whatever handle was at hand.
            pwrite(self.reopen(&file.fd, OFlags::WRONLY)?, data, asked.offset)?
        } else {
            pwrite(&file.fd, data, asked.offset)?
        };
        reply.u32s([len as u32, 0])
    }

    /// FLUSH, at close: lets file systems that write at close do so, and say how it went.
    pub(crate) fn flush(&self, mut request: Request<'_>) -> Result<(), Errno> {
        let file = self.handles.file(request.args.u64()?)?;
        let copy = fcntl_dupfd_cloexec(&file.fd, 0)?;
        // SAFETY: the number was taken out of its owner, so it is closed this once.
        let result = unsafe { libc::close(copy.into_raw_fd()) };
        match result {
            0 => Ok(()),
            _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
        }
    }

    /// RELEASE and RELEASEDIR.
    pub(crate) fn release(&self, mut request: Request<'_>) -> Result<(), Errno> {
        let number = request.args.u64()?;
        if self.root.is(request.header.nodeid) { Ok(()) } else { self.handles.remove(number) }
    }

    pub(crate) fn fsync(&self, mut request: Request<'_>) -> Result<(), Errno> {
        let asked = FsyncIn::parse(&mut request.args)?;
        sync(&self.handles.file(asked.fh)?.fd, asked.fsync_flags)
    }

    pub(crate) fn fsyncdir(&self, mut request: Request<'_>) -> Result<(), Errno> {
        let asked = FsyncIn::parse(&mut request.args)?;
        if self.root.is(request.header.nodeid) {
            return Ok(());
        }
        sync(&self.handles.dir(asked.fh)?.fd, asked.fsync_flags)
    }

    pub(crate) fn fallocate(&self, mut request: Request<'_>) -> Result<(), Errno> {
        let asked = FallocateIn::parse(&mut request.args)?;
        let file = self.handles.file(asked.fh)?;
        let mode = FallocateFlags::from_bits_retain(asked.mode);
        fallocate(&file.fd, mode, asked.offset, asked.length)
    }

    /// LSEEK: holes and data only; the guest's kernel does the rest itself.
    pub(crate) fn lseek(
        &self,
        mut request: Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let asked = LseekIn::parse(&mut request.args)?;
        let file = self.handles.file(asked.fh)?;
        let to = match asked.whence as i32 {
            libc::SEEK_DATA => SeekFrom::Data(asked.offset),
            libc::SEEK_HOLE => SeekFrom::Hole(asked.offset),
            _ => return Err(Errno::INVAL),
        };
        reply.u64s([seek(&file.fd, to)?])
    }

    pub(crate) fn copy_file_range(
        &self,
        mut request: Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let asked = CopyFileRangeIn::parse(&mut request.args)?;
        let (from, to) = (self.handles.file(asked.fh_in)?, self.handles.file(asked.fh_out)?);
        let (mut off_in, mut off_out) = (asked.off_in, asked.off_out);
        let len = asked.len.min(COPY_MAX) as usize;
        let copied = copy_file_range(&from.fd, Some(&mut off_in), &to.fd, Some(&mut off_out), len)?;
        reply.u32s([copied as u32, 0])
    }
}

impl CreateIn {
    fn exclusive(&self) -> bool {
        OFlags::from_bits_retain(self.flags).contains(OFlags::EXCL)
    }
}

/// Those of the guest's open flags that are passed on.
pub fn host_flags(flags: u32) -> OFlags {
    OFlags::from_bits_retain(flags) & OPEN_FLAGS
}

/// Whether opening with `flags` can change the file.
fn writes(flags: OFlags) -> bool {
    flags & OFlags::RWMODE != OFlags::RDONLY || flags.contains(OFlags::TRUNC)
}

fn sync(fd: &OwnedFd, flags: u32) -> Result<(), Errno> {
    if flags & FSYNC_FDATASYNC != 0 { fdatasync(fd) } else { fsync(fd) }
}

/// Writes `struct fuse_open_out`.
pub fn put_open(reply: &mut Reply<'_>, number: u64, flags: u32) -> Result<(), Errno> {
    reply.u64s([number])?;
    reply.u32s([flags, 0])
}
