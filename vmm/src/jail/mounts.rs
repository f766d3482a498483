//! Mounts without a place: a directory cut out of the host's tree, so that ".." ends at its top.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

const RDONLY: u64 = 0x1;
const NOSUID: u64 = 0x2;
const NODEV: u64 = 0x4;
const NOEXEC: u64 = 0x8;
const IDMAP: u64 = 0x10_0000;

/// A detached copy of a host directory or file, with what is mounted below it.
#[derive(Debug)]
pub struct Tree(OwnedFd);

impl Tree {
    /// Cuts `path` out, with what is mounted below it unless `flat`. Nothing can be executed in the copy, and no device or set-id bit counts;
    /// mounts made on the host later do not show, and `readonly` makes it refuse every write.
    pub fn cut_out(path: &Path, readonly: bool, flat: bool) -> io::Result<Self> {
        let below = if flat { OpenTreeFlags::empty() } else { OpenTreeFlags::AT_RECURSIVE };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | below;
        let path = CString::new(path.as_os_str().as_bytes())?;
        let tree = open_tree(CWD, path.as_c_str(), flags)?;
        let readonly = if readonly { RDONLY } else { 0 };
        let private = libc::MS_PRIVATE;
        set(tree.as_fd(), NOSUID | NODEV | NOEXEC | readonly, private, libc::AT_RECURSIVE)?;
        Ok(Self(tree))
    }

    /// Translates its files' owners by a user namespace. Fails with EINVAL on file systems that cannot.
    pub fn map_ids(&self, namespace: BorrowedFd) -> io::Result<()> {
        let userns_fd = namespace.as_raw_fd() as u64;
        let attr = MountAttr { attr_set: IDMAP, userns_fd, ..Default::default() };
        set_attr(self.0.as_fd(), &attr, libc::AT_RECURSIVE)
    }

    /// Cuts out one directory alone, as it is.
    pub fn cut_out_one(path: &CStr) -> io::Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        Ok(open_tree(CWD, path, flags)?)
    }

    /// Its top; as good as an `O_PATH` descriptor.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }
}

/// Makes a mount read-only, and without devices, set-id bits and programs.
pub fn make_readonly(mount: BorrowedFd) -> io::Result<()> {
    set(mount, RDONLY | NOSUID | NODEV | NOEXEC, 0, 0)
}

fn set(mount: BorrowedFd, attr_set: u64, propagation: u64, flags: i32) -> io::Result<()> {
    set_attr(mount, &MountAttr { attr_set, propagation, ..Default::default() }, flags)
}

fn set_attr(mount: BorrowedFd, attr: &MountAttr, flags: i32) -> io::Result<()> {
    // SAFETY: the path is a C string, and `attr` a struct mount_attr of the size given; both live
    // until the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            &raw const *attr,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
