//! The jail: what the VMM and its file worker give up before the guest's first instruction.
//!
//! The order matters, and `tests/e2e/jail.rs` looks at its result on live processes:
//!
//! ```text
//!  begin   inherited descriptors the spec does not name are closed, the environment is wiped;
//!          without root's privileges: a user namespace that knows this user alone;
//!          cores of the container's own, which the worker shares;
//!          network, IPC and UTS namespaces, which the worker shares
//!  (build) everything is opened: KVM, kernel, agent, sockets; the worker starts (see worker.rs)
//!  enter   a mount namespace, copied from the worker's, which is empty; a root likewise, read-only; limits;
//!          a user of this VM's own; no capabilities, no_new_privs; Landlock
//!  (run)   vCPU threads start, each behind its filter, and wait; the event loop takes its own
//!  filter  last of all, because all of the above needs system calls that it forbids
//! ```
//!
//! The VMM is the process that callers watch, so it stays in their PID namespace; that it can
//! signal nobody there is the filter's doing, and its user's. The worker has a PID namespace.
//!
//! A step that fails ends the VMM: there is no half a jail. What a host may lack (Landlock, core
//! scheduling, a user to spare) is left out there, unless the jail is to be [`Confinement::Sealed`].
//! [`Confinement::Off`] is for finding out why one fails.

mod descriptors;
mod identity;
mod landlock;
mod limits;
mod mounts;
mod namespaces;
mod root;
mod seccomp;
mod threshold;
mod worker;

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::process::{getpid, getuid};

use crate::spec::{Confinement, VmSpec};

pub use mounts::Tree;
pub use seccomp::Policy;
pub use threshold::Threshold;
pub use worker::WorkerJail;

/// The users of VMMs start here; a process ID is added. Between the ranges that systemd gives to
/// containers (to 0x6fff_ffff) and to foreign file systems (from 0x7ffe_0000).
const FIRST_USER: u32 = 0x7000_0000;

/// Says whether cores have threads of which more than one is in use (admin-guide/hw-vuln/l1tf.rst).
const HYPER_THREADS: &str = "/sys/devices/system/cpu/smt/active";

/// A step of building the jail that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot build the jail: {action} failed: {source}")]
pub struct JailError {
    /// What was tried.
    pub action: &'static str,
    /// What failed.
    pub source: io::Error,
}

impl JailError {
    /// What this host does not have.
    fn lacking(action: &'static str) -> Self {
        Self { action, source: io::ErrorKind::Unsupported.into() }
    }

    fn at<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self { action, source: source.into() }
    }
}

/// Whose privileges there are to build the jail with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Builder {
    /// Root's; the VMM becomes this user. Living processes have different IDs, so the users of
    /// living VMMs differ, and a dead one's user owned nothing. A rootless engine's user namespace
    /// has but one to spare, for all of its VMMs.
    Root { user: u32 },
    /// A user's own, inside a user namespace.
    User,
}

impl Builder {
    /// Whether the VMM's user is no one else's.
    fn has_own_user(self) -> bool {
        matches!(self, Self::Root { user: FIRST_USER.. })
    }
}

/// The jail of a VMM, as far as it is built.
#[derive(Debug)]
pub struct Jail {
    builder: Option<Builder>,
    sockets: Option<OwnedFd>,
}

/// Lets no thread of another container share a core with this process's, nor with its worker's, which
/// starts later. A core has one thread or the kernel no core scheduling: nothing to do then, unless the
/// VM is to be sealed.
fn take_cores(sealed: bool) -> Result<(), JailError> {
    let scope = rustix::thread::CoreSchedulingScope::ThreadGroup;
    let alone = rustix::thread::create_core_scheduling_cookie(getpid(), scope);
    let hyper_threads = || fs::read(HYPER_THREADS).is_ok_and(|on| on.trim_ascii() == b"1");
    match alone {
        Err(error) if sealed && hyper_threads() => {
            Err(JailError::at("core scheduling, to seal the VM,")(error))
        }
        _ => Ok(()),
    }
}

impl Jail {
    /// Takes the first steps. To be called before anything is opened, while the process has one
    /// thread.
    pub fn begin(spec: &VmSpec) -> Result<Self, JailError> {
        if spec.jail == Confinement::Off {
            return Ok(Self { builder: None, sockets: None });
        }
        descriptors::close_all_but(spec.inherited_fds())
            .map_err(JailError::at("closing inherited descriptors"))?;
        // SAFETY: the caller says that there is no other thread, and this one keeps no reference
        // into the environment.
        unsafe { descriptors::wipe_environment() };
        let wanted = FIRST_USER + getpid().as_raw_nonzero().get() as u32;
        let spare = identity::is_privileged().then(|| identity::spare_user(wanted)).flatten();
        let builder = match spare {
            Some(user) => Builder::Root { user },
            None => {
                namespaces::become_user_namespace_root()?;
                Builder::User
            }
        };
        if spec.jail == Confinement::Sealed && !builder.has_own_user() {
            return Err(JailError::lacking("taking a user of the VM's own, to seal it,"));
        }
        take_cores(spec.jail == Confinement::Sealed)?;
        namespaces::leave_network()?;
        let sockets = root::sockets(&spec.vsock, builder)
            .map_err(JailError::at("keeping the directory of the VM's sockets"))?;
        Ok(Self { builder: Some(builder), sockets })
    }

    /// Where the jailed VMM finds what is at `socket` now, and its neighbours.
    pub fn socket(&self, socket: &Path) -> PathBuf {
        match (self.builder, socket.file_name()) {
            (Some(_), Some(name)) => Path::new(root::SOCKETS).join(name),
            _ => socket.to_owned(),
        }
    }

    /// The jail that the file worker is to build for itself.
    pub fn worker(&self) -> WorkerJail {
        match self.builder {
            None => WorkerJail::Off,
            Some(Builder::Root { user }) => WorkerJail::Root { parent: user },
            Some(Builder::User) => WorkerJail::User,
        }
    }

    /// Gives up all but what is open. The process must still have one thread. `mounts` is the worker's
    /// mount namespace, in which there is but an empty root: to copy the host's takes a VMM the longer
    /// the more is mounted there.
    pub fn enter(&mut self, spec: &VmSpec, mounts: Option<OwnedFd>) -> Result<(), JailError> {
        let Some(builder) = self.builder else { return Ok(()) };
        if let Some(mounts) = mounts {
            // Takes CAP_SYS_CHROOT, which not everyone has who can make namespaces: then it is the
            // host's that is copied.
            let _ = namespaces::enter_mounts(mounts.as_fd());
        }
        namespaces::leave_mounts()?;
        root::empty(self.sockets.take())?;
        limits::of_vmm(spec, builder).map_err(JailError::at("limiting resources"))?;
        let sealed = spec.jail == Confinement::Sealed;
        let user = match builder {
            Builder::Root { user } => user,
            Builder::User => getuid().as_raw(),
        };
        identity::become_nobody(user, builder)?;
        if sealed && landlock::version().is_none() {
            return Err(JailError::lacking("Landlock, to seal the VM,"));
        }
        landlock::forbid_everything().map_err(JailError::at("Landlock"))
    }

    /// Where `threads` threads of the VMM meet before the guest runs.
    pub fn threshold(&self, threads: usize) -> Threshold {
        Threshold::new(self.builder.is_some(), threads)
    }
}
