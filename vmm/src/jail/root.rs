//! The empty root directory.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, mkdirat, open};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, unmount,
};
use rustix::process::{chdir, fchdir, geteuid, pivot_root};

use super::mounts::{Tree, make_readonly};
use super::{Builder, JailError};

/// Where the directory of the VM's sockets is in the jail.
pub const SOCKETS: &str = "/sockets";
/// What group and others may do with a directory that is private.
const NOT_PRIVATE: u32 = 0o077;
/// The owner may do all, the group may reach what it knows the name of; new sockets get the group.
const REACHABLE: u32 = 0o2710;

/// The directory that `vsock` is in, for the VMM to connect to the sockets of guest-initiated
/// connections. `None` if it is not private to this user: then it may hold anything.
pub fn sockets(vsock: &Path, builder: Builder) -> io::Result<Option<OwnedFd>> {
    let Some(dir) = vsock.parent().filter(|dir| !dir.as_os_str().is_empty()) else {
        return Ok(None);
    };
    let metadata = dir.symlink_metadata()?;
    let own = metadata.is_dir() && metadata.uid() == geteuid().as_raw();
    if !own || metadata.mode() & NOT_PRIVATE != 0 {
        return Ok(None);
    }
    if let Builder::Root { user } = builder {
        std::os::unix::fs::lchown(dir, None, Some(user))?;
        rustix::fs::chmod(dir, Mode::from_bits_retain(REACHABLE))?;
    }
    Ok(Some(Tree::cut_out(dir, true, false)?.into_fd()))
}

/// Changes the root to a directory with nothing in it but `sockets`, if given. This process must
/// have a mount namespace of its own.
pub fn empty(sockets: Option<OwnedFd>) -> Result<(), JailError> {
    let failed = |action| JailError::at::<rustix::io::Errno>(action);
    let old = open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed("opening the root directory"))?;
    // What is unmounted here must stay mounted elsewhere.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change(c"/", private).map_err(failed("making mounts private"))?;
    let new = tmpfs().map_err(failed("mounting an empty directory"))?;
    move_mount(&new, c"", CWD, c"/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(failed("mounting an empty directory"))?;
    fchdir(&new).map_err(failed("entering an empty directory"))?;
    pivot_root(c".", c".").map_err(failed("pivot_root"))?;
    fchdir(&old)
        .and_then(|()| unmount(c".", UnmountFlags::DETACH))
        .and_then(|()| chdir(c"/"))
        .map_err(failed("unmounting the host's tree"))?;
    if let Some(sockets) = sockets {
        mkdirat(&new, &SOCKETS[1..], Mode::from_bits_retain(0o755))
            .and_then(|()| {
                let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                move_mount(&sockets, c"", &new, &SOCKETS[1..], empty)
            })
            .map_err(failed("mounting the directory of the VM's sockets"))?;
    }
    make_readonly(new.as_fd()).map_err(JailError::at("making the root read-only"))
}

fn tmpfs() -> rustix::io::Result<OwnedFd> {
    let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, c"mode", c"755")?;
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_a_private_directory_of_one_s_own_is_taken_into_the_jail() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let vsock = dir.path().join("vsock.sock");
        assert!(sockets(&vsock, Builder::User).unwrap().is_none());
        assert!(sockets(Path::new("vsock.sock"), Builder::User).unwrap().is_none());
        // A link to one is somebody's choice of another directory, and none is changed.
        let private = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(private.path(), &link).unwrap();
        fs::set_permissions(private.path(), Permissions::from_mode(0o700)).unwrap();
        let root = Builder::Root { user: 12345 };
        assert!(sockets(&link.join("vsock.sock"), root).unwrap().is_none());
        if geteuid().is_root() {
            std::os::unix::fs::chown(private.path(), Some(1000), Some(1000)).unwrap();
            assert!(sockets(&private.path().join("vsock.sock"), root).unwrap().is_none());
            assert_eq!(private.path().metadata().unwrap().gid(), 1000);
        }
        assert!(sockets(Path::new("/nonexistent/vsock.sock"), Builder::User).is_err());
    }
}
