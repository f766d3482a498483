//! User namespaces (user_namespaces(7)): the container's IDs are others to the guest's kernel, and
//! so to its files.
//!
//! The process's other namespaces and its file systems are made before, by the guest's root; of the
//! mount namespace it gets a copy that is its own, so that it may mount.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use bulkhead_protocol::rpc::agent::{ContainerSpec, IdMapping};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{WaitOptions, waitpid};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};

use crate::clone::{Memory, Place, clone, exit};
use crate::mounts;

/// What an ID is called that has no mapping: /proc/sys/kernel/overflowuid.
const UNMAPPED: u32 = 65534;

/// The container's mappings.
#[derive(Clone, Debug)]
pub struct UserNamespace {
    uids: Vec<IdMapping>,
    gids: Vec<IdMapping>,
}

/// How a process comes into the container's user namespace.
#[derive(Clone, Copy, Debug)]
pub enum Entrance<'a> {
    /// It makes it.
    New(&'a UserNamespace),
    /// It joins the process behind this pidfd.
    Of(&'a UserNamespace, BorrowedFd<'a>),
}

impl UserNamespace {
    /// The container's, if it is to have one.
    pub fn of(spec: &ContainerSpec) -> Option<Self> {
        let (uids, gids) = (spec.uid_mappings.clone(), spec.gid_mappings.clone());
        (!uids.is_empty()).then_some(Self { uids, gids })
    }
}

impl Entrance<'_> {
    /// What the kernel calls a user and a group of the container.
    pub fn outside(self, uid: u32, gid: u32) -> (u32, u32) {
        let (Self::New(namespace) | Self::Of(namespace, _)) = self;
        (outside(&namespace.uids, uid), outside(&namespace.gids, gid))
    }

    /// Enters, with all capabilities there are inside.
    pub fn enter(self) -> rustix::io::Result<()> {
        match self {
            Self::New(namespace) => namespace.make(),
            Self::Of(_, process) => {
                let user = ThreadNameSpaceType::USER;
                rustix::thread::move_into_thread_name_spaces(process, user)
            }
        }
    }
}

fn outside(mappings: &[IdMapping], id: u32) -> u32 {
    let mapped = mappings.iter().find_map(|mapping| {
        let offset = id.checked_sub(mapping.container_id).filter(|n| *n < mapping.size)?;
        mapping.kernel_id.checked_add(offset)
    });
    mapped.unwrap_or(UNMAPPED)
}

impl UserNamespace {
    /// The mappings are written by a child that stays outside: inside, nobody may.
    fn make(&self) -> rustix::io::Result<()> {
        let proc = mounts::detached_proc()?;
        let (gate_of_child, gate) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let mut gate = Some(gate);
        let child = clone(Place::default(), Memory::Copied, || {
            // This end, which would keep the gate from ever closing.
            drop(gate.take());
            let opened = rustix::io::read(&gate_of_child, &mut [0; 1]);
            let written = match opened {
                Ok(1) => self.write(proc.as_fd()),
                _ => Err(Errno::CANCELED),
            };
            exit(written.err().map_or(0, |error| error.raw_os_error() & 0xff))
        })?;
        let flags = UnshareFlags::NEWUSER | UnshareFlags::NEWNS;
        // SAFETY: this process has one thread, and no descriptor of it is concerned.
        let unshared = unsafe { rustix::thread::unshare_unsafe(flags) };
        if let (Some(gate), Ok(())) = (gate.take(), unshared) {
            rustix::io::write(gate, &[1])?;
        }
        let status = waitpid(Some(child), WaitOptions::empty())?;
        unshared?;
        match status.and_then(|(_, status)| status.exit_status()) {
            Some(0) => Ok(()),
            Some(errno) => Err(Errno::from_raw_os_error(errno)),
            None => Err(Errno::CHILD),
        }
    }

    /// Writes the mappings of the container's first process: each file takes one write.
    fn write(&self, proc: BorrowedFd<'_>) -> rustix::io::Result<()> {
        for (file, mappings) in [("1/uid_map", &self.uids), ("1/gid_map", &self.gids)] {
            let line = |m: &IdMapping| format!("{} {} {}\n", m.container_id, m.kernel_id, m.size);
            let lines: String = mappings.iter().map(line).collect();
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let file: OwnedFd = rustix::fs::openat(proc, file, flags, Mode::empty())?;
            rustix::io::write(file, lines.as_bytes())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_mapped_or_nobodys() {
        let mapping = |container_id, kernel_id, size| IdMapping {
            container_id,
            kernel_id,
            size,
            ..Default::default()
        };
        let mappings = [mapping(0, 1000, 1), mapping(1, 100_000, 10), mapping(50, u32::MAX, 5)];
        let ids = [0, 1, 10, 11, 50, 51].map(|id| outside(&mappings, id));
        assert_eq!(ids, [1000, 100_000, 100_009, UNMAPPED, u32::MAX, UNMAPPED]);
    }
}
