//! The file-system worker: the process that serves a VM's shares over FUSE.
//!
//! It is this same program run again as `bulkhead-vmm fs-worker`. The VMM opens the shares and
//! hands them over as `O_PATH` descriptors, so the worker resolves no host path and the VMM keeps
//! no host file; between the two is one stream socket that carries FUSE messages.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use bulkhead_fs_server::ShareRoot;
use rustix::fs::{Mode, OFlags};
use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Signal;

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
    /// The server stopped.
    #[error("the file-system worker stopped: {0}")]
    Serve(#[from] bulkhead_fs_server::ServeError),
}

/// A running worker; killed and reaped when dropped.
pub struct FsWorker(Child);

impl FsWorker {
    /// Starts a worker for `shares`; returns it with the VMM's end of its socket.
    ///
    /// Must be called while the process has one thread: for a moment there are descriptors that any
    /// other child would inherit.
    pub fn spawn(shares: &[Share]) -> Result<(Self, OwnedFd), FsWorkerError> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|error| FsWorkerError::Spawn(error.into()))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg(VERB).arg(theirs.as_raw_fd().to_string());
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null());
        let mut inherited = vec![theirs];
        for share in shares {
            let mode = if share.readonly { "ro" } else { "rw" };
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let root = rustix::fs::open(&share.source, flags, Mode::empty()).map_err(|error| {
                let (name, path) = (share.name.clone(), share.source.clone());
                FsWorkerError::Share { name, path, source: error.into() }
            })?;
            command.arg(format!("{mode}:{}:{}", root.as_raw_fd(), share.name));
            inherited.push(root);
        }
        for fd in &inherited {
            rustix::io::fcntl_setfd(fd, FdFlags::empty())
                .map_err(|error| FsWorkerError::Spawn(error.into()))?;
        }
        let child = command.spawn().map_err(FsWorkerError::Spawn)?;
        Ok((Self(child), ours))
    }
}

impl Drop for FsWorker {
    fn drop(&mut self) {
        // Whoever waits for the VMM may want to unmount what the worker has open.
        let _ = self.0.kill();
        let _ = self.0.wait();
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
    let shares = arguments
        .map(|argument| share_root(&argument).ok_or(FsWorkerError::Argument(argument)))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(bulkhead_fs_server::serve(socket, shares, Default::default())?)
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
    let fd: RawFd = number.to_str()?.parse().ok().filter(|fd| *fd > 2)?;
    // SAFETY: F_GETFD takes no pointer; it only asks whether the descriptor is open.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: the descriptor is open (just asked) and was inherited for this use alone.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC).ok()?;
    Some(fd)
}
