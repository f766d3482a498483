//! The server's state, and which request goes where.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Statx, StatxFlags, openat, statx};
use rustix::io::Errno;
use rustix::path::DecInt;
use rustix::process::{fchdir, umask};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::credentials::Credentials;
use crate::dirents::Batches;
use crate::handles::Handles;
use crate::inodes::{Found, Inode, Inodes};
use crate::limits::{Budget, set_open_files};
use crate::mapped::{budget, is_code};
use crate::root::Root;
use crate::state::State;
use crate::wire::{
    Args, ForgetOne, HEADER_LEN_IN, InHeader, InitIn, MAJOR, MAP_ALIGNMENT_SHIFT, MINOR_MAX,
    MINOR_MIN, Name, PAGES_MAX, PAYLOAD_MAX, Reply, init, op,
};
use crate::{Options, ServeError, ShareRoot};

/// Requests the guest may have outstanding for readahead and asynchronous I/O, and how many of
/// them make it hold back: enough to keep every thread busy.
const BACKGROUND_MAX: u16 = 64;
const CONGESTION: u16 = 48;

/// INIT flags taken if the guest offers them. Left out on purpose: POSIX_LOCKS and FLOCK_LOCKS
/// (the guest keeps locks itself), DONT_MASK (it applies the umask), EXPORT_SUPPORT ("." and ".."
/// are never looked up), WRITEBACK_CACHE (the host sees writes at once), POSIX_ACL, SUBMOUNTS.
const INIT_FLAGS: u32 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::HANDLE_KILLPRIV_V2
    | init::MAP_ALIGNMENT
    | init::INIT_EXT;

/// Everything the threads share.
#[derive(Debug)]
pub struct Server {
    pub(crate) root: Root,
    pub(crate) inodes: Inodes,
    pub(crate) handles: Handles,
    /// Of open directories.
    pub(crate) batches: Batches,
    pub(crate) credentials: Credentials,
    pub(crate) options: Options,
    /// /proc/self/fd: the way from an O_PATH descriptor to one for I/O.
    proc: OwnedFd,
}

/// A request taken apart.
#[derive(Debug)]
pub struct Request<'a> {
    pub(crate) header: InHeader,
    pub(crate) args: Args<'a>,
    /// What came with it: the monitor's alone.
    pub(crate) files: Vec<OwnedFd>,
}

impl<'a> Request<'a> {
    /// Takes apart a whole message; `None` if it is shorter than a header.
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let header = InHeader::parse(message)?;
        Some(Self { header, args: Args::new(&message[HEADER_LEN_IN..]), files: Vec::new() })
    }
}

impl Server {
    /// Prepares this thread and opens the shares.
    pub fn new(shares: Vec<ShareRoot>, mut options: Options) -> Result<Self, ServeError> {
        let proc = match options.proc_self_fd.take() {
            Some(fd) => fd,
            None => openat(CWD, c"/proc/self/fd", path_flags(), Mode::empty())
                .map_err(ServeError::Proc)?,
        };
        prepare_thread(&proc).map_err(ServeError::Thread)?;
        let state = State::read(options.state.as_ref())?;
        let files = Budget::of(set_open_files(options.open_files_max));
        let slots = budget(options.window_slots);
        let inodes = Inodes::new(files.inodes, slots, state.numbers().last_node);
        let root = Root::new(shares, &inodes, &state)?;
        let handles = Handles::new(files.handles, state.numbers().last_handle);
        let (batches, credentials) = (Batches::default(), Credentials::new());
        let server = Self { root, inodes, handles, batches, credentials, options, proc };
        server.restore(&state);
        Ok(server)
    }

    /// Answers one request with the body of `reply`; silent requests are merely obeyed.
    pub fn dispatch(&self, request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        match request.header.opcode {
            op::INIT => self.init(request, reply),
            op::DESTROY => {
                self.start_over();
                Ok(())
            }
            op::LOOKUP => self.lookup(request, reply),
            op::FORGET => self.forget(request),
            op::BATCH_FORGET => self.batch_forget(request),
            op::GETATTR => self.getattr(request, reply),
            op::STATX => self.statx(request, reply),
            op::SETATTR => self.setattr(request, reply),
            op::STATFS => self.statfs(request, reply),
            op::READLINK => self.readlink(request, reply),
            op::SYMLINK => self.symlink(request, reply),
            op::MKNOD => self.mknod(request, reply),
            op::MKDIR => self.mkdir(request, reply),
            op::UNLINK => self.unlink(request, AtFlags::empty()),
            op::RMDIR => self.unlink(request, AtFlags::REMOVEDIR),
            op::RENAME | op::RENAME2 => self.rename(request),
            op::LINK => self.link(request, reply),
            op::OPEN => self.open(request, reply),
            op::CREATE => self.create(request, reply),
            op::TMPFILE => self.tmpfile(request, reply),
            op::READ => self.read(request, reply),
            op::WRITE => self.write(request, reply),
            op::FLUSH => self.flush(request),
            op::RELEASE | op::RELEASEDIR => self.release(request),
            op::FSYNC => self.fsync(request),
            op::FSYNCDIR => self.fsyncdir(request),
            op::SYNCFS => self.syncfs(),
            op::FALLOCATE => self.fallocate(request),
            op::LSEEK => self.lseek(request, reply),
            op::COPY_FILE_RANGE => self.copy_file_range(request, reply),
            op::SETUPMAPPING => self.set_up_mapping(request, reply),
            op::OPENDIR => self.opendir(request, reply),
            op::READDIR => self.readdir(request, reply, false),
            op::READDIRPLUS => self.readdir(request, reply, true),
            op::SAVE => self.save(reply),
            op::SHARE => self.share(request),
            op::UNSHARE => self.unshare(request),
            op::GETXATTR => self.getxattr(request, reply),
            op::SETXATTR => self.setxattr(request),
            op::LISTXATTR => self.listxattr(request, reply),
            op::REMOVEXATTR => self.removexattr(request),
            // INTERRUPT is silent: what runs runs to its end. The rest is what the guest's kernel
            // does itself when told once that nobody else does (ACCESS, BMAP, IOCTL, POLL, locks).
            _ => Err(Errno::NOSYS),
        }
    }

    fn init(&self, mut request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let asked = InitIn::parse(&mut request.args)?;
        if asked.major > MAJOR {
            // The guest asks again, with our major version.
            return reply.u32s([MAJOR, MINOR_MAX, 0, 0, 0, 0]);
        }
        if asked.major < MAJOR || asked.minor < MINOR_MIN {
            return Err(Errno::PROTO);
        }
        self.start_over();
        let minor = asked.minor.min(MINOR_MAX);
        reply.u32s([MAJOR, minor, asked.max_readahead, asked.flags & INIT_FLAGS])?;
        reply.u32s([u32::from(BACKGROUND_MAX) | u32::from(CONGESTION) << 16])?;
        let time_granularity_ns = 1;
        // The guest makes use of it if its device has a window.
        let pages = u32::from(PAGES_MAX) | MAP_ALIGNMENT_SHIFT << 16;
        reply.u32s([PAYLOAD_MAX as u32, time_granularity_ns, pages])?;
        reply.u32s([init::HAS_INODE_DAX])?;
        // max_stack_depth and what is unused.
        reply.zeros(28)
    }

    /// Forgets what an earlier guest kernel, or an earlier mount, knew.
    fn start_over(&self) {
        self.handles.clear();
        self.inodes.clear();
    }

    fn forget(&self, mut request: Request<'_>) -> Result<(), Errno> {
        self.inodes.forget(request.header.nodeid, request.args.u64()?);
        Ok(())
    }

    fn batch_forget(&self, mut request: Request<'_>) -> Result<(), Errno> {
        let count = request.args.u32()?;
        let _padding = request.args.u32()?;
        for _ in 0..count {
            let one = ForgetOne::parse(&mut request.args)?;
            self.inodes.forget(one.nodeid, one.nlookup);
        }
        Ok(())
    }

    /// The inode `id`, to be changed. EROFS if its share is read-only, or `id` is the root.
    pub(crate) fn writable(&self, id: u64) -> Result<Arc<Inode>, Errno> {
        if self.root.is(id) {
            return Err(Errno::ROFS);
        }
        let inode = self.inodes.get(id)?;
        if inode.readonly { Err(Errno::ROFS) } else { Ok(inode) }
    }

    /// Opens anew what `fd` refers to, in the way `flags` say.
    pub(crate) fn reopen(&self, fd: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        openat(&self.proc, proc_name(fd), flags | OFlags::CLOEXEC, Mode::empty())
    }

    /// /proc/self/fd, for `*at()` calls on [`proc_name`] that follow the link there.
    pub(crate) fn proc(&self) -> &OwnedFd {
        &self.proc
    }

    /// Counts a lookup of the file that `fd`, an O_PATH descriptor, refers to.
    /// It has just been made if it has no `name` yet.
    pub(crate) fn know(
        &self,
        like: &Inode,
        fd: OwnedFd,
        name: Option<Name<'_>>,
    ) -> Result<(Arc<Inode>, Statx), Errno> {
        let stat = stat(&fd)?;
        let (share, readonly) = (like.share, like.readonly);
        let code = name.is_some_and(|name| is_code(&stat, name.as_c_str().to_bytes()));
        Ok((self.inodes.add(Found { share, readonly, fd, stat }, code)?, stat))
    }
}

/// The name of `fd` in /proc/self/fd. Following that link needs no path and meets no other.
pub(crate) fn proc_name(fd: &OwnedFd) -> DecInt {
    DecInt::from_fd(fd.as_fd())
}

/// What FUSE attributes are made of, and what tells files apart.
pub(crate) fn stat(fd: impl AsFd) -> Result<Statx, Errno> {
    stat_with(fd, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)
}

/// statx(2) on what `fd` itself refers to.
pub(crate) fn stat_with(fd: impl AsFd, mask: StatxFlags) -> Result<Statx, Errno> {
    let itself: &CStr = c"";
    statx(fd, itself, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW, mask)
}

/// How files become known: without opening them.
pub(crate) fn path_flags() -> OFlags {
    OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Gives this thread, and those it will start, a working directory and a umask of their own:
/// /proc/self/fd because extended attributes have no `*at()` calls (before Linux 6.13), and no
/// umask because the guest applies its own.
fn prepare_thread(proc: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: only the thread's working directory, root and umask become its own; no descriptor
    // and no memory is concerned.
    unsafe { unshare_unsafe(UnshareFlags::FS)? };
    fchdir(proc)?;
    umask(Mode::empty());
    Ok(())
}
