//! Names: LOOKUP and what makes, moves and removes directory entries.

use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Mode, RenameFlags, Statx, linkat, makedev, mkdirat, mknodat, openat,
    readlinkat_raw, renameat, renameat_with, symlinkat, unlinkat,
};
use rustix::io::Errno;

use crate::attr::decode_device;
use crate::inodes::Inode;
use crate::server::{Request, Server, path_flags, proc_name, stat};
use crate::wire::{InHeader, MkdirIn, MknodIn, Name, Rename2In, Reply, op};

/// The longest target of a symbolic link, bytes (PATH_MAX without its NUL).
const TARGET_MAX: usize = 4095;

/// RENAME2's flags that file systems know.
const RENAME_FLAGS: RenameFlags =
    RenameFlags::NOREPLACE.union(RenameFlags::EXCHANGE).union(RenameFlags::WHITEOUT);

impl Server {
    pub(crate) fn lookup(
        &self,
        mut request: Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let name = request.args.name()?;
        if self.root.is(request.header.nodeid) {
            let inode = self.root.find(name)?;
            let stat = stat(&inode.fd)?;
            return match self.root.is_added(inode.share) {
                true => self.put_entry(reply, &inode, &stat),
                false => self.put_share(reply, &inode, &stat),
            };
        }
        let dir = self.inodes.get(request.header.nodeid)?;
        self.enter(reply, &dir, name)
    }

    /// Looks `name` up in `dir` and counts the lookup.
    pub(crate) fn look_up(
        &self,
        dir: &Inode,
        name: Name<'_>,
    ) -> Result<(Arc<Inode>, Statx), Errno> {
        let fd = openat(&dir.fd, name.as_c_str(), path_flags(), Mode::empty())?;
        self.know(dir, fd, Some(name))
    }

    /// Looks `name` up and writes the entry.
    fn enter(&self, reply: &mut Reply<'_>, dir: &Inode, name: Name<'_>) -> Result<(), Errno> {
        let (inode, stat) = self.look_up(dir, name)?;
        self.put_entry(reply, &inode, &stat)
    }

    /// Runs `create`, which makes a new object with the mode it is given, as the caller.
    pub(crate) fn create_as<T>(
        &self,
        caller: &InHeader,
        mode: u32,
        create: impl FnOnce(Mode) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let assumed = self.credentials.assume(caller.uid, caller.gid);
        create(Mode::from_bits_retain(assumed.mode(mode & 0o7777)))
    }

    pub(crate) fn mkdir(
        &self,
        mut request: Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let MkdirIn { mode, umask } = MkdirIn::parse(&mut request.args)?;
        let name = request.args.name()?;
        let dir = self.writable(request.header.nodeid)?;
        self.create_as(&request.header, mode & !umask, |mode| {
            mkdirat(&dir.fd, name.as_c_str(), mode)
        })?;
        self.enter(reply, &dir, name)
    }

    pub(crate) fn mknod(
        &self,
        mut request: Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let MknodIn { mode, rdev, umask, .. } = MknodIn::parse(&mut request.args)?;
        let name = request.args.name()?;
        let dir = self.writable(request.header.nodeid)?;
        let file_type = FileType::from_raw_mode(mode);
        if matches!(file_type, FileType::Directory | FileType::Symlink | FileType::Unknown) {
            return Err(Errno::INVAL);
        }
        let (major, minor) = decode_device(rdev);
        self.create_as(&request.header, mode & !umask, |mode| {
            mknodat(&dir.fd, name.as_c_str(), file_type, mode, makedev(major, minor))
        })?;
        self.enter(reply, &dir, name)
    }

    pub(crate) fn symlink(
        &self,
        mut request: Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let name = request.args.name()?;
        let target = request.args.string()?;
        let dir = self.writable(request.header.nodeid)?;
        self.create_as(&request.header, 0o777, |_| symlinkat(target, &dir.fd, name.as_c_str()))?;
        self.enter(reply, &dir, name)
    }

    pub(crate) fn readlink(
        &self,
        request: Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let inode = self.inodes.get(request.header.nodeid)?;
        let len = readlinkat_raw(&inode.fd, c"", reply.spare(TARGET_MAX)?)?;
        reply.grow(len)
    }

    pub(crate) fn link(
        &self,
        mut request: Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let inode = self.inodes.get(request.args.u64()?)?;
        let name = request.args.name()?;
        let dir = self.writable(request.header.nodeid)?;
        if inode.share != dir.share {
            return Err(Errno::XDEV);
        }
        // By way of /proc: AT_EMPTY_PATH would need CAP_DAC_READ_SEARCH.
        let itself = proc_name(&inode.fd);
        linkat(self.proc(), itself, &dir.fd, name.as_c_str(), AtFlags::SYMLINK_FOLLOW)?;
        self.enter(reply, &dir, name)
    }

    pub(crate) fn unlink(&self, mut request: Request<'_>, flags: AtFlags) -> Result<(), Errno> {
        let name = request.args.name()?;
        let dir = self.writable(request.header.nodeid)?;
        unlinkat(&dir.fd, name.as_c_str(), flags)
    }

    /// RENAME and RENAME2.
    pub(crate) fn rename(&self, mut request: Request<'_>) -> Result<(), Errno> {
        let (newdir, flags) = if request.header.opcode == op::RENAME {
            (request.args.u64()?, 0)
        } else {
            let Rename2In { newdir, flags, .. } = Rename2In::parse(&mut request.args)?;
            (newdir, flags)
        };
        let flags = RenameFlags::from_bits_retain(flags);
        let (old, new) = (request.args.name()?, request.args.name()?);
        let from = self.writable(request.header.nodeid)?;
        let to = self.writable(newdir)?;
        if from.share != to.share {
            return Err(Errno::XDEV);
        }
        let (old, new) = (old.as_c_str(), new.as_c_str());
        if flags.is_empty() {
            renameat(&from.fd, old, &to.fd, new)
        } else if RENAME_FLAGS.contains(flags) {
            renameat_with(&from.fd, old, &to.fd, new, flags)
        } else {
            Err(Errno::INVAL)
        }
    }
}
