//! Namespaces: a user namespace for those who are not root, then all the others at once.

use std::fs::{self, File};
use std::io;
use std::os::fd::BorrowedFd;

use rustix::process::{getgid, getuid};
use rustix::thread::{
    CapabilitySet, LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe,
};

use super::{JailError, identity};

/// What is left behind besides users and mounts.
const OTHERS: UnshareFlags =
    UnshareFlags::NEWNET.union(UnshareFlags::NEWIPC).union(UnshareFlags::NEWUTS);

/// Enters a user namespace that knows this user and group alone, with all capabilities there, and
/// a mount namespace of its own.
pub fn become_user_namespace_root() -> Result<(), JailError> {
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS).map_err(JailError::at(
        "a user namespace (root needs none; see `bulkhead doctor --security`)",
    ))?;
    let write = |file: &str, text: String| {
        fs::write(format!("/proc/self/{file}"), text)
            .map_err(JailError::at("mapping this user into its user namespace"))
    };
    // Who could drop groups could pass a file that denies access to one.
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("{uid} {uid} 1"))?;
    write("gid_map", format!("{gid} {gid} 1"))?;
    identity::pass_on(CapabilitySet::SYS_ADMIN | CapabilitySet::SETPCAP)
}

/// Leaves the host's network, IPC and host name. Done before the worker starts, which then is in the
/// same empty ones: to make a network takes the kernel as long as all the rest of a jail.
pub fn leave_network() -> Result<(), JailError> {
    unshare(OTHERS).map_err(JailError::at("making namespaces"))
}

/// Leaves the mounts there are for a copy of them.
pub fn leave_mounts() -> Result<(), JailError> {
    unshare(UnshareFlags::NEWNS).map_err(JailError::at("making a mount namespace"))
}

/// The mount namespace of this process, open.
pub fn mounts() -> io::Result<File> {
    File::open("/proc/self/ns/mnt")
}

/// Enters a mount namespace.
pub fn enter_mounts(namespace: BorrowedFd<'_>) -> io::Result<()> {
    let mounts = Some(LinkNameSpaceType::Mount);
    Ok(move_into_link_name_space(namespace, mounts)?)
}

fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: none of the flags makes this thread's descriptors its own, which is what could make
    // one thread's descriptor another's.
    unsafe { unshare_unsafe(flags) }
}
