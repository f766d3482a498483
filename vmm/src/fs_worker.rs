//! The file-system worker: the process that serves a VM's shares over FUSE.
//!
//! It is this same program run again as `bulkhead-vmm fs-worker`. The VMM opens the shares and
//! hands them over as `O_PATH` descriptors, so the worker resolves no host path and the VMM keeps
//! no host file; between the two is one stream socket that carries FUSE messages.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use bulkhead_fs_server::{Options, ShareRoot};
use rustix::fs::{Mode, OFlags};
use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use crate::jail::{JailError, Tree, WorkerJail};
use crate::spawn;
use crate::spec::Share;

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

/// A running worker; killed and reaped when dropped.
pub struct FsWorker(OwnedFd);

impl FsWorker {
    /// Starts a worker for `shares` that is to build `jail`; returns it with the VMM's end of its
    /// socket. The guest has known `generation` other workers before this one: it finds none of their
    /// numbers used again.
    pub fn spawn(
        shares: &[Share],
        generation: u32,
        jail: WorkerJail,
    ) -> Result<(Self, OwnedFd), FsWorkerError> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|error| FsWorkerError::Spawn(error.into()))?;
        let numbers = [theirs.as_raw_fd().to_string(), generation.to_string()];
        let mut arguments = vec![VERB.to_owned()];
        arguments.extend(numbers);
        arguments.push(jail.to_string());
        let mut inherited = vec![theirs];
        for share in shares {
            let mode = if share.readonly { "ro" } else { "rw" };
            let root = open_share(share, jail).map_err(|source| {
                let (name, path) = (share.name.clone(), share.source.clone());
                FsWorkerError::Share { name, path, source }
            })?;
            arguments.push(format!("{mode}:{}:{}", root.as_raw_fd(), share.name));
            inherited.push(root);
        }
        let worker = spawn::again(&arguments, &inherited, jail.is_on());
        Ok((Self(worker.map_err(FsWorkerError::Spawn)?), ours))
    }
}

/// The share as the worker gets it: in a jail a mount of its own, whose ".." leads nowhere. A flat
/// one takes such a mount to be without what is mounted below it.
fn open_share(share: &Share, jail: WorkerJail) -> io::Result<OwnedFd> {
    if let Some(fd) = share.fd {
        return take_inherited(fd).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF));
    }
    if jail.is_on() || share.flat {
        return Ok(Tree::cut_out(&share.source, share.readonly, share.flat)?.into_fd());
    }
    Ok(rustix::fs::open(&share.source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

impl Drop for FsWorker {
    fn drop(&mut self) {
        // Whoever waits for the VMM may want to unmount what the worker has open.
        let _ = pidfd_send_signal(&self.0, Signal::KILL);
        let _ = waitid(WaitId::PidFd(self.0.as_fd()), WaitIdOptions::EXITED);
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
    let generation = arguments.next().unwrap_or_default();
    let generation = generation
        .to_str()
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| FsWorkerError::Argument(generation.clone()))?;
    let jail = arguments.next().unwrap_or_default();
    let jail: WorkerJail = jail
        .to_str()
        .and_then(|word| word.parse().ok())
        .ok_or_else(|| FsWorkerError::Argument(jail.clone()))?;
    let shares = arguments
        .map(|argument| share_root(&argument).ok_or(FsWorkerError::Argument(argument)))
        .collect::<Result<Vec<_>, _>>()?;
    // The jail takes away what this needs.
    bulkhead_fs_server::limits::raise_open_files();
    let options = Options { generation, proc_self_fd: jail.enter()?, ..Default::default() };
    Ok(bulkhead_fs_server::serve(socket, shares, options)?)
}

fn share_root(argument: &OsString) -> Option<ShareRoot> {
    let mut parts = argument.to_str()?.splitn(3, ':');
    let readonly = match parts.next()? {
        "ro" => true,
        "rw" => false,
        _ => return None,
    };
    let fd = inherited(&OsString::from(parts.next()?))?;
    Some(ShareRoot { name: parts.next()?.to_owned(), fd, readonly })
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
