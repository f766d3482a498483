//! Owners of files who are others on the host than in the guest: a user namespace to translate by, for
//! mounts (mount_setattr(2), MOUNT_ATTR_IDMAP).

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde::{Deserialize, Serialize};

/// The guest's users and groups 0 to `count` - 1 own their files on the host as `host` and up. Others
/// own nothing there: to make a file for one of them fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdMap {
    /// The host's ID of the guest's root.
    pub host: u32,
    /// How many follow it, itself among them.
    pub count: u32,
}

impl IdMap {
    /// Whether there are such IDs: the last one of all means "none" to the kernel.
    pub fn is_possible(&self) -> bool {
        self.host > 0 && self.count > 0 && self.host.checked_add(self.count).is_some()
    }

    /// A user namespace in which files of the host's IDs are the guest's. Takes root's privileges.
    pub fn user_namespace(&self) -> io::Result<OwnedFd> {
        let child = start()?;
        let made = self.describe(child);
        let _ = kill_process(child, Signal::KILL);
        let _ = waitpid(Some(child), WaitOptions::empty());
        made
    }

    fn describe(&self, child: Pid) -> io::Result<OwnedFd> {
        let proc = |file: &str| format!("/proc/{}/{file}", child.as_raw_nonzero());
        // What is on disk, what it is to be, how many.
        let map = format!("{} 0 {}", self.host, self.count);
        fs::write(proc("uid_map"), &map)?;
        fs::write(proc("gid_map"), &map)?;
        Ok(File::open(proc("ns/user"))?.into())
    }
}

/// A process that is in a user namespace of its own and does nothing else, until it is killed.
fn start() -> io::Result<Pid> {
    let flags = i64::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and without a stack this is fork(2): the child has a copy of this
    // thread, and makes no calls but the two below, which need nothing of any other.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match child {
        -1 => Err(io::Error::last_os_error()),
        0 => loop {
            // SAFETY: both take plain numbers, and touch no memory.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::pause();
            }
        },
        child => {
            let pid = i32::try_from(child).ok().and_then(Pid::from_raw);
            pid.ok_or_else(|| io::ErrorKind::InvalidData.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_are_none_are_known() {
        let possible = |host, count| IdMap { host, count }.is_possible();
        assert!(possible(1, 1) && possible(100_000, 65_536) && possible(u32::MAX - 5, 5));
        assert!(!possible(0, 10) && !possible(5, 0) && !possible(u32::MAX - 5, 6));
    }

    #[test]
    fn a_namespace_maps_and_its_process_is_gone() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let namespace = IdMap { host: 100_000, count: 10 }.user_namespace().unwrap();
        let own = fs::metadata("/proc/self/ns/user").unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_ne!(File::from(namespace).metadata().unwrap().ino(), own.ino());
    }
}
