//! Attributes: GETATTR, STATX, SETATTR, STATFS.

use std::time::Duration;

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Statx, StatxFlags, StatxTimestamp, Timespec, Timestamps, Uid,
    chmodat, chownat, fstatfs, ftruncate, utimensat,
};
use rustix::io::Errno;

use crate::inodes::Inode;
use crate::server::{Request, Server, proc_name, stat, stat_with};
use crate::wire::{ATTR_DAX, Reply, SetattrIn, StatxIn, fattr};

/// Length of `struct fuse_entry_out`.
pub const ENTRY_OUT_LEN: usize = 128;

/// For how long the guest may believe what cannot change: a share's name in the root directory.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

impl Server {
    pub(crate) fn getattr(&self, request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        // The handle that GETATTR may name is of no interest: it refers to the same file.
        if self.root.is(request.header.nodeid) {
            put_attr_timeout(reply, FOREVER)?;
            return self.root.put_attr(reply);
        }
        let inode = self.inodes.get(request.header.nodeid)?;
        let stat = stat(&inode.fd)?;
        self.put_attr_out(reply, &inode, &stat)
    }

    pub(crate) fn statx(
        &self,
        mut request: Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let asked = StatxIn::parse(&mut request.args)?;
        if self.root.is(request.header.nodeid) {
            put_attr_timeout(reply, FOREVER)?;
            return self.root.put_statx(reply);
        }
        let inode = self.inodes.get(request.header.nodeid)?;
        // The kernel refuses the bit that would change the structure.
        let mask = StatxFlags::from_bits_retain(asked.sx_mask & !libc::STATX__RESERVED as u32);
        let stat = stat_with(&inode.fd, mask | StatxFlags::BASIC_STATS)?;
        put_attr_timeout(reply, self.options.attr_timeout)?;
        reply.u64s([0, 0])?;
        put_statx(reply, &inode, &stat)
    }

    pub(crate) fn setattr(
        &self,
        mut request: Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let set = SetattrIn::parse(&mut request.args)?;
        let inode = self.writable(request.header.nodeid)?;
        if set.valid & fattr::SIZE != 0 {
            self.truncate(&inode, &set)?;
        }
        if set.valid & (fattr::UID | fattr::GID) != 0 {
            // The kernel clears set-id bits here by itself; MODE comes after, to have its say.
            let uid = id(set.valid, fattr::UID, set.uid)?.map(Uid::from_raw);
            let gid = id(set.valid, fattr::GID, set.gid)?.map(Gid::from_raw);
            chownat(&inode.fd, c"", uid, gid, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if set.valid & fattr::MODE != 0 {
            let mode = Mode::from_bits_retain(set.mode & 0o7777);
            chmodat(self.proc(), proc_name(&inode.fd), mode, AtFlags::empty())?;
        }
        if set.valid & (fattr::ATIME | fattr::MTIME) != 0 {
            let times = Timestamps {
                last_access: time(
                    set.valid & fattr::ATIME != 0,
                    set.valid & fattr::ATIME_NOW != 0,
                    (set.atime, set.atimensec),
                ),
                last_modification: time(
                    set.valid & fattr::MTIME != 0,
                    set.valid & fattr::MTIME_NOW != 0,
                    (set.mtime, set.mtimensec),
                ),
            };
            utimensat(self.proc(), proc_name(&inode.fd), &times, AtFlags::empty())?;
        }
        let stat = stat(&inode.fd)?;
        self.put_attr_out(reply, &inode, &stat)
    }

    fn truncate(&self, inode: &Inode, set: &SetattrIn) -> Result<(), Errno> {
        if !inode.file_type.is_file() {
            return Err(if inode.file_type.is_dir() { Errno::ISDIR } else { Errno::INVAL });
        }
        self.before_writing(inode)?;
        let kill = set.valid & fattr::KILL_SUIDGID != 0;
        if set.valid & fattr::FH != 0 {
            let file = self.handles.file(set.fh)?;
            let _lowered = kill.then(|| self.credentials.without_fsetid());
            ftruncate(&file.fd, set.size)
        } else {
            let fd = self.reopen(&inode.fd, OFlags::WRONLY)?;
            let _lowered = kill.then(|| self.credentials.without_fsetid());
            ftruncate(fd, set.size)
        }
    }

    pub(crate) fn statfs(&self, request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        // The root stands for the first share: `df` of the mount point then says something.
        let inode = if self.root.is(request.header.nodeid) {
            self.root.inodes().into_iter().next().ok_or(Errno::NOSYS)?
        } else {
            self.inodes.get(request.header.nodeid)?
        };
        let fs = fstatfs(&inode.fd)?;
        reply.u64s([fs.f_blocks, fs.f_bfree, fs.f_bavail, fs.f_files, fs.f_ffree])?;
        reply.u32s([fs.f_bsize as u32, fs.f_namelen as u32, fs.f_frsize as u32])?;
        reply.zeros(28)
    }

    /// Writes `struct fuse_attr_out`.
    fn put_attr_out(
        &self,
        reply: &mut Reply<'_>,
        inode: &Inode,
        stat: &Statx,
    ) -> Result<(), Errno> {
        put_attr_timeout(reply, self.options.attr_timeout)?;
        put_attr(reply, inode, stat)
    }

    /// Writes `struct fuse_entry_out`, with which the guest's kernel counts one lookup.
    pub(crate) fn put_entry(
        &self,
        reply: &mut Reply<'_>,
        inode: &Inode,
        stat: &Statx,
    ) -> Result<(), Errno> {
        put_entry_for(reply, inode, stat, self.options.entry_timeout, self.options.attr_timeout)
    }

    /// As [`Self::put_entry`], for the root of a share that was there from the beginning, whose name never changes.
    pub(crate) fn put_share(
        &self,
        reply: &mut Reply<'_>,
        inode: &Inode,
        stat: &Statx,
    ) -> Result<(), Errno> {
        put_entry_for(reply, inode, stat, FOREVER, self.options.attr_timeout)
    }
}

fn put_entry_for(
    reply: &mut Reply<'_>,
    inode: &Inode,
    stat: &Statx,
    entry: Duration,
    attr: Duration,
) -> Result<(), Errno> {
    // Node IDs are never used twice, so there is but one generation.
    let generation = 0;
    reply.u64s([inode.id, generation, entry.as_secs(), attr.as_secs()])?;
    reply.u32s([entry.subsec_nanos(), attr.subsec_nanos()])?;
    put_attr(reply, inode, stat)
}

fn put_attr_timeout(reply: &mut Reply<'_>, timeout: Duration) -> Result<(), Errno> {
    reply.u64s([timeout.as_secs()])?;
    reply.u32s([timeout.subsec_nanos(), 0])
}

/// Writes `struct fuse_attr`.
fn put_attr(reply: &mut Reply<'_>, inode: &Inode, stat: &Statx) -> Result<(), Errno> {
    let (atime, mtime, ctime) = (stat.stx_atime, stat.stx_mtime, stat.stx_ctime);
    reply.u64s([inode.guest_ino(stat.stx_ino), stat.stx_size, stat.stx_blocks])?;
    reply.u64s([atime.tv_sec as u64, mtime.tv_sec as u64, ctime.tv_sec as u64])?;
    reply.u32s([atime.tv_nsec, mtime.tv_nsec, ctime.tv_nsec])?;
    reply.u32s([u32::from(stat.stx_mode), stat.stx_nlink, stat.stx_uid, stat.stx_gid])?;
    let rdev = encode_device(stat.stx_rdev_major, stat.stx_rdev_minor);
    reply.u32s([rdev, stat.stx_blksize, if inode.dax { ATTR_DAX } else { 0 }])
}

/// Writes `struct fuse_statx`.
fn put_statx(reply: &mut Reply<'_>, inode: &Inode, stat: &Statx) -> Result<(), Errno> {
    reply.u32s([stat.stx_mask, stat.stx_blksize])?;
    reply.u64s([stat.stx_attributes.bits()])?;
    reply.u32s([stat.stx_nlink, stat.stx_uid, stat.stx_gid, u32::from(stat.stx_mode)])?;
    reply.u64s([inode.guest_ino(stat.stx_ino), stat.stx_size, stat.stx_blocks])?;
    reply.u64s([stat.stx_attributes_mask.bits()])?;
    for time in [stat.stx_atime, stat.stx_btime, stat.stx_ctime, stat.stx_mtime] {
        put_time(reply, time)?;
    }
    // The guest's kernel gives the device number of its own mount.
    reply.u32s([stat.stx_rdev_major, stat.stx_rdev_minor, 0, 0])?;
    reply.zeros(14 * 8)
}

fn put_time(reply: &mut Reply<'_>, time: StatxTimestamp) -> Result<(), Errno> {
    reply.u64s([time.tv_sec as u64])?;
    reply.u32s([time.tv_nsec, 0])
}

/// The kernel's 32-bit form of a device number (`new_encode_dev` of include/linux/kdev_t.h).
fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The inverse of [`encode_device`]: major and minor.
pub fn decode_device(device: u32) -> (u32, u32) {
    ((device & 0xf_ff00) >> 8, (device & 0xff) | ((device >> 12) & 0xf_ff00))
}

/// The ID to change to; `None` leaves it. -1 is no ID: the system call would take it for "leave".
fn id(valid: u32, flag: u32, id: u32) -> Result<Option<u32>, Errno> {
    match (valid & flag != 0, id) {
        (false, _) => Ok(None),
        (true, u32::MAX) => Err(Errno::INVAL),
        (true, id) => Ok(Some(id)),
    }
}

fn time(set: bool, now: bool, (secs, nanos): (u64, u32)) -> Timespec {
    match (set, now) {
        (false, _) => Timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
        (true, true) => Timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW },
        (true, false) => Timespec { tv_sec: secs as i64, tv_nsec: i64::from(nanos) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_the_wire() {
        for (major, minor) in [(0, 0), (8, 1), (0xfff, 0xf_ffff), (259, 300), (1, 0x1_00ff)] {
            assert_eq!(decode_device(encode_device(major, minor)), (major, minor));
        }
        assert_eq!(encode_device(8, 1), 0x801);
    }
}
