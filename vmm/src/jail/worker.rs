//! The file worker's jail. The VMM starts the worker in a PID namespace, without a network, and hands it its shares as
//! mounts of their own (see [`super::Tree`]), so that ".." from a share ends at its top; the rest
//! the worker does itself, before it reads a request.
//!
//! Root's worker keeps euid 0, because host files belong to any user, with the file capabilities
//! in [`KEPT`] alone. Not among them: MKNOD, so that a guest makes no device nodes on the host;
//! DAC_READ_SEARCH, with which open_by_handle_at(2) opens any file of the file system, and which
//! inodes held by handle instead of by descriptor would need; SYS_ADMIN, SYS_RESOURCE. Its real
//! user is the VMM's, which may thus end it. Without root's privileges it keeps no capability.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;

use rustix::fs::{Gid, Uid};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{CapabilitySet, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::{Builder, JailError, Policy, Tree, identity, limits, namespaces, root};

/// What serving files of any user takes.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETFCAP);

/// Which jail a worker is to build; one word on its command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerJail {
    /// None.
    Off,
    /// With root's privileges; the VMM becomes user `parent`.
    Root {
        /// The VMM's user.
        parent: u32,
    },
    /// Within a user namespace that the VMM has made.
    User,
}

impl WorkerJail {
    /// Whether there is a jail to build.
    pub fn is_on(self) -> bool {
        self != Self::Off
    }

    /// Builds it. The process must have one thread, its limit of open files raised already. `share` is
    /// to hand the VMM the mount namespace, once nothing is left in it. Returns what serves as
    /// /proc/self/fd from then on.
    pub fn enter(
        self,
        share: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
    ) -> Result<Option<OwnedFd>, JailError> {
        let builder = match self {
            Self::Off => return Ok(None),
            Self::Root { parent } => Builder::Root { user: parent },
            Self::User => Builder::User,
        };
        // Cut out: from /proc itself "../1/root" would lead to the host's tree.
        let proc =
            Tree::cut_out_one(c"/proc/self/fd").map_err(JailError::at("keeping /proc/self/fd"))?;
        namespaces::leave_mounts()?;
        let mounts = namespaces::mounts().map_err(JailError::at("keeping the mount namespace"))?;
        root::empty(None)?;
        share(mounts.as_fd()).map_err(JailError::at("sharing the mount namespace"))?;
        limits::of_worker().map_err(JailError::at("limiting resources"))?;
        let kept = match builder {
            Builder::Root { user } => {
                become_root_for(user)?;
                KEPT
            }
            Builder::User => CapabilitySet::empty(),
        };
        identity::drop_bounding_set(kept)?;
        identity::keep_capabilities(kept)?;
        // A change of user takes it away.
        set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(JailError::at("PR_SET_PDEATHSIG"))?;
        Policy::FsWorker.apply().map_err(JailError::at("installing the system call filter"))?;
        Ok(Some(proc))
    }
}

/// Lets user `parent` signal this process.
fn become_root_for(parent: u32) -> Result<(), JailError> {
    set_thread_groups(&[]).map_err(JailError::at("dropping groups"))?;
    set_thread_res_gid(Gid::from_raw(parent), Gid::ROOT, Gid::ROOT)
        .map_err(JailError::at("changing the real group"))?;
    set_thread_res_uid(Uid::from_raw(parent), Uid::ROOT, Uid::ROOT)
        .map_err(JailError::at("changing the real user"))
}

impl std::fmt::Display for WorkerJail {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Off => write!(f, "off"),
            Self::Root { parent } => write!(f, "root:{parent}"),
            Self::User => write!(f, "user"),
        }
    }
}

impl FromStr for WorkerJail {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match (text, text.strip_prefix("root:")) {
            ("off", _) => Ok(Self::Off),
            ("user", _) => Ok(Self::User),
            (_, Some(parent)) => parent.parse().map(|parent| Self::Root { parent }).map_err(drop),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_says_which_jail() {
        for jail in [WorkerJail::Off, WorkerJail::User, WorkerJail::Root { parent: 1 << 30 }] {
            assert_eq!(jail.to_string().parse(), Ok(jail));
        }
        for word in ["", "root", "root:", "root:x", "OFF"] {
            assert_eq!(word.parse::<WorkerJail>(), Err(()));
        }
    }
}
