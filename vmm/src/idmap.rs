//! Owners of files who are others on the host than in the guest: a user namespace to translate by, for
//! mounts (mount_setattr(2), MOUNT_ATTR_IDMAP).

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde::{Deserialize, Serialize};

/// The most ranges of a map (user_namespaces(7)).
const RANGES_MAX: usize = 340;

/// Who the guest's users and groups are in the files of a share. Others own nothing there: to make a
/// file for one of them fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdMap {
    /// Users.
    pub uids: Vec<IdRange>,
    /// Groups.
    pub gids: Vec<IdRange>,
}

/// IDs that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdRange {
    /// The first of the files'.
    pub file: u32,
    /// What that is to the guest's kernel.
    pub guest: u32,
    /// How many follow it, itself among them.
    pub count: u32,
}

impl IdMap {
    /// The guest's users and groups 0 to `count` - 1 own their files as `host` and up.
    pub fn of_root(host: u32, count: u32) -> Self {
        let range = vec![IdRange { file: host, guest: 0, count }];
        Self { uids: range.clone(), gids: range }
    }

    /// Whether there are such IDs: the last one of all means "none" to the kernel.
    pub fn is_possible(&self) -> bool {
        let ends =
            |range: &IdRange| [range.file, range.guest].map(|id| id.checked_add(range.count));
        let possible = |range: &IdRange| range.count > 0 && !ends(range).contains(&None);
        [&self.uids, &self.gids]
            .into_iter()
            .all(|ranges| (1..=RANGES_MAX).contains(&ranges.len()) && ranges.iter().all(possible))
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
        fs::write(proc("uid_map"), map(&self.uids))?;
        fs::write(proc("gid_map"), map(&self.gids))?;
        Ok(File::open(proc("ns/user"))?.into())
    }
}

/// Lines of what is on disk, what it is to be, how many.
fn map(ranges: &[IdRange]) -> String {
    let line = |range: &IdRange| format!("{} {} {}\n", range.file, range.guest, range.count);
    ranges.iter().map(line).collect()
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
        let possible = |host, count| IdMap::of_root(host, count).is_possible();
        assert!(possible(1, 1) && possible(100_000, 65_536) && possible(u32::MAX - 5, 5));
        assert!(!possible(5, 0) && !possible(u32::MAX - 5, 6));
        let many = vec![IdRange { file: 1, guest: 2, count: 3 }; RANGES_MAX + 1];
        assert_eq!(map(&many[..2]), "1 2 3\n1 2 3\n");
        assert!(!IdMap { uids: many, ..IdMap::of_root(1, 1) }.is_possible());
        assert!(!IdMap { gids: Vec::new(), ..IdMap::of_root(1, 1) }.is_possible());
    }

    #[test]
    fn a_namespace_maps_and_its_process_is_gone() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let namespace = IdMap::of_root(100_000, 10).user_namespace().unwrap();
        let own = fs::metadata("/proc/self/ns/user").unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_ne!(File::from(namespace).metadata().unwrap().ino(), own.ino());
    }
}
