//! The file-system worker: the process that serves a VM's shares over FUSE.
//!
//! It is this same program run again as `bulkhead-vmm fs-worker`. The VMM opens the shares and
//! hands them over as `O_PATH` descriptors, so the worker resolves no host path and the VMM keeps
//! no host file; between the two is one stream socket that carries FUSE messages.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bulkhead_fs_server::limits::{OPEN_FILES, set_open_files};
use bulkhead_fs_server::{Options, ShareRoot};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::fs::{Mode, OFlags};
use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use crate::control::descriptor;
use crate::ending::{Ending, Unexpected};
use crate::jail::{JailError, Tree, WorkerJail};
use crate::spawn;
use crate::spec::{Share, VmSpec};
use crate::window;

/// The verb of `bulkhead-vmm` that makes it a worker.
pub const VERB: &str = "fs-worker";

/// Why the worker could not be started or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum FsWorkerError {
    /// A share's source cannot be opened.
    #[error("cannot open {path}, which the guest is to see as {name:?}: {source}")]
    Share {
        /// The share's name.
        name: String,
        /// Its host path.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// No namespace to translate by.
    #[error(
        "cannot map the guest's users to others of the host, which takes root's privileges: {0}"
    )]
    IdMap(#[source] io::Error),
    /// A share's owners cannot be translated.
    #[error(
        "cannot show {path} with other owners ({source}): its file system, or one mounted below it, \
         maps no IDs"
    )]
    Unmapped {
        /// Its host path.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// No socket pair, or no process.
    #[error("cannot start the file-system worker: {0}")]
    Spawn(#[source] io::Error),
    /// Started by hand, or by another version.
    #[error("the file-system worker is started by bulkhead-vmm alone; it does not take {0:?}")]
    Argument(OsString),
    /// The jail cannot be built.
    #[error("the file-system worker has no jail: {0}")]
    Jail(#[from] JailError),
    /// The server stopped.
    #[error("the file-system worker stopped: {0}")]
    Serve(#[from] bulkhead_fs_server::ServeError),
}

/// How long the worker may take to write down what it knows: some microseconds a file.
const SAVE_MAX: Duration = Duration::from_secs(30);

/// A running worker; killed and reaped when dropped.
pub struct FsWorker {
    pidfd: OwnedFd,
    /// The device's socket: for [`FsWorker::save`] while the device has no use for it.
    socket: UnixStream,
    /// What the worker knows, when it was asked.
    state: File,
}

impl FsWorker {
    /// Starts a worker for `shares` that is to build `jail`; returns it with the VMM's end of its
    /// socket. It knows what another one knew that [saved](FsWorker::save) `files`, if those are any.
    pub fn spawn(
        spec: &VmSpec,
        files: &[u8],
        jail: WorkerJail,
    ) -> Result<(Self, OwnedFd), FsWorkerError> {
        let state = state_file(files).map_err(FsWorkerError::Spawn)?;
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|error| FsWorkerError::Spawn(error.into()))?;
        let socket = second_end(&ours).map_err(FsWorkerError::Spawn)?;
        let mut inherited = vec![theirs, state.try_clone().map_err(FsWorkerError::Spawn)?.into()];
        let mut arguments = vec![VERB.to_owned()];
        arguments.extend(inherited.iter().map(|fd| fd.as_raw_fd().to_string()));
        arguments.push(jail.to_string());
        arguments.push(spec.limits.fs_files.unwrap_or(*OPEN_FILES.end()).to_string());
        arguments.push(window::slots(spec.window_mib()).to_string());
        for share in &spec.shares {
            let mode = match (share.readonly, share.copied) {
                (true, _) => "ro",
                (false, false) => "rw",
                (false, true) => "copy",
            };
            let root = open_share(share, jail)?;
            arguments.push(format!("{mode}:{}:{}", root.as_raw_fd(), share.name));
            inherited.push(root);
        }
        let pidfd = spawn::again(&arguments, &inherited, jail.is_on());
        let pidfd = pidfd.map_err(FsWorkerError::Spawn)?;
        Ok((Self { pidfd, socket, state }, ours))
    }

    /// Waits for the mount namespace that the worker makes for its jail, with nothing in it any more. To be
    /// called once if there is to be a jail, before the device has any use for the socket.
    pub fn mounts(&self) -> Result<OwnedFd, FsWorkerError> {
        let received = descriptor::receive(&self.socket, &mut [0]).map_err(FsWorkerError::Spawn)?;
        let namespace = received.1.into_iter().next();
        // It says itself why it has ended.
        namespace.ok_or_else(|| FsWorkerError::Spawn(io::ErrorKind::UnexpectedEof.into()))
    }

    /// What the worker knows of the guest, for another one. The device must be idle.
    pub fn save(&self) -> io::Result<Vec<u8>> {
        let len = bulkhead_fs_server::save(&self.socket)?;
        // The worker's word is not taken for more than it may be.
        if len > bulkhead_fs_server::STATE_MAX as u64 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut files = vec![0; len as usize];
        self.state.read_exact_at(&mut files, 0)?;
        Ok(files)
    }
}

/// Ends the VM when its worker has ended: without files a container would go on failing for ever.
pub struct Watch {
    pidfd: OwnedFd,
    ending: Ending,
}

impl FsWorker {
    /// A watch over this worker.
    pub fn watch(&self, ending: &Ending) -> io::Result<Watch> {
        Ok(Watch { pidfd: self.pidfd.try_clone()?, ending: ending.clone() })
    }
}

impl MutEventSubscriber for Watch {
    fn init(&mut self, ops: &mut EventOps) {
        // Cannot fail but for lack of kernel memory; then nobody could tell that the worker died.
        ops.add(Events::new(&self.pidfd, EventSet::IN)).expect("a pidfd can be polled");
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        // It stays for `FsWorker` to reap.
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = waitid(WaitId::PidFd(self.pidfd.as_fd()), look).ok().flatten();
        let signal = status.and_then(|status| status.terminating_signal()).unwrap_or(0);
        self.ending.unexpected(Unexpected::FsWorker { signal });
        let _ = ops.remove(events);
    }
}

/// A file in memory for [`Options::state`].
fn state_file(files: &[u8]) -> io::Result<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create("fs-state", flags)?);
    file.write_all_at(files, 0)?;
    Ok(file)
}

/// The device's socket once more, with an end to each wait (of which the device has none).
fn second_end(device: &OwnedFd) -> io::Result<UnixStream> {
    let socket = UnixStream::from(device.try_clone()?);
    socket.set_read_timeout(Some(SAVE_MAX))?;
    Ok(socket)
}

/// The share as a worker without a jail may have it: if such a mount is not needed, no privileges are.
fn open_share(share: &Share, jail: WorkerJail) -> Result<OwnedFd, FsWorkerError> {
    if !jail.is_on() && share.fd.is_none() && !share.flat && share.idmap.is_none() {
        let opened = rustix::fs::open(&share.source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        return opened.map_err(|error| FsWorkerError::Share {
            name: share.name.clone(),
            path: share.source.clone(),
            source: error.into(),
        });
    }
    open(share)
}

/// Opens a share as a worker gets it: a mount of its own, cut out of this process's mount namespace, whose
/// ".." leads nowhere, without what is mounted below it if it is flat, and with translated owners if it has
/// such. Takes CAP_SYS_ADMIN in that namespace. An inherited descriptor is taken over as it is.
pub fn open(share: &Share) -> Result<OwnedFd, FsWorkerError> {
    let path = || share.source.clone();
    let failed = |source| FsWorkerError::Share { name: share.name.clone(), path: path(), source };
    if let Some(fd) = share.fd {
        return take_inherited(fd).ok_or_else(|| failed(io::Error::from_raw_os_error(libc::EBADF)));
    }
    let tree = Tree::cut_out(&share.source, share.readonly, share.flat).map_err(failed)?;
    if let Some(ids) = &share.idmap {
        let ids = ids.user_namespace().map_err(FsWorkerError::IdMap)?;
        let mapped = tree.map_ids(ids.as_fd());
        mapped.map_err(|source| FsWorkerError::Unmapped { path: path(), source })?;
    }
    Ok(tree.into_fd())
}

impl Drop for FsWorker {
    fn drop(&mut self) {
        // Whoever waits for the VMM may want to unmount what the worker has open.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
    }
}

/// The worker's main function; `arguments` are those after the verb.
pub fn main(arguments: impl Iterator<Item = OsString>) -> Result<(), FsWorkerError> {
    // The worker must not outlive its VM, however that ends.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| FsWorkerError::Spawn(error.into()))?;
    // It was executed as /proc/self/exe, and would be called "exe".
    rustix::thread::set_name(c"bulkhead-fs").map_err(|error| FsWorkerError::Spawn(error.into()))?;
    let mut arguments = arguments;
    let socket = arguments.next().unwrap_or_default();
    let socket = inherited(&socket).ok_or(FsWorkerError::Argument(socket))?;
    let state = arguments.next().unwrap_or_default();
    let state = Some(inherited(&state).ok_or(FsWorkerError::Argument(state))?.into());
    let jail = arguments.next().unwrap_or_default();
    let jail: WorkerJail = jail
        .to_str()
        .and_then(|word| word.parse().ok())
        .ok_or_else(|| FsWorkerError::Argument(jail.clone()))?;
    let open_files_max = number(arguments.next())?;
    let window_slots = number(arguments.next())?;
    let shares = arguments
        .map(|argument| share_root(&argument).ok_or(FsWorkerError::Argument(argument)))
        .collect::<Result<Vec<_>, _>>()?;
    // The jail takes away what this needs.
    set_open_files(open_files_max);
    let socket = UnixStream::from(socket);
    let share = |mounts: BorrowedFd<'_>| descriptor::send(&socket, &[0], &[mounts]).map(drop);
    let proc_self_fd = jail.enter(share)?;
    let options =
        Options { state, proc_self_fd, open_files_max, window_slots, ..Default::default() };
    Ok(bulkhead_fs_server::serve(socket.into(), shares, options)?)
}

fn number<T: FromStr>(argument: Option<OsString>) -> Result<T, FsWorkerError> {
    let argument = argument.unwrap_or_default();
    let number = argument.to_str().and_then(|number| number.parse().ok());
    number.ok_or(FsWorkerError::Argument(argument))
}

fn share_root(argument: &OsString) -> Option<ShareRoot> {
    let mut parts = argument.to_str()?.splitn(3, ':');
    let (readonly, copied) = match parts.next()? {
        "ro" => (true, false),
        "rw" => (false, false),
        "copy" => (false, true),
        _ => return None,
    };
    let fd = inherited(&OsString::from(parts.next()?))?;
    Some(ShareRoot { name: parts.next()?.to_owned(), fd, readonly, copied })
}

/// Takes an inherited descriptor by its number.
fn inherited(number: &OsString) -> Option<OwnedFd> {
    take_inherited(number.to_str()?.parse().ok()?)
}

fn take_inherited(fd: RawFd) -> Option<OwnedFd> {
    if fd <= 2 {
        return None;
    }
    // SAFETY: F_GETFD takes no pointer; it only asks whether the descriptor is open.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: the descriptor is open (just asked) and was inherited for this use alone.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC).ok()?;
    Some(fd)
}
