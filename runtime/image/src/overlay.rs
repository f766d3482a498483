//! Overlays without a mount point: made by fsopen(2) and its companions, they are a descriptor and
//! nothing else. No path leads to one, there is nothing to unmount, and it is gone with the last
//! process that has it, whatever that dies of.

use std::fmt::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use crate::user;

/// The longest value that fsconfig(2) takes, bytes (fs/fsopen.c).
const VALUE_MAX: usize = 255;

/// Why there is no overlay.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// Not root, and not of a user namespace, or of a kernel before 5.11.
    #[error(
        "cannot mount an overlay without root's privileges, or those of a user namespace and Linux 5.11; \
         run as root, or unpack the image and give --rootfs DIR"
    )]
    NotRoot,
    /// A kernel without overlayfs, or older than 5.2.
    #[error("this kernel has no overlay file system (CONFIG_OVERLAY_FS, Linux 5.2 or later)")]
    Missing,
    /// Before Linux 6.7 all layers have to fit into one option.
    #[error("the image has {0} layers; before Linux 6.7 a kernel stacks no more than about 15")]
    Layers(usize),
    /// A step failed; the kernel's own words, if it has any.
    #[error("cannot mount an overlay: {step}: {source}{said}")]
    Step {
        /// Which.
        step: &'static str,
        /// What the kernel said, or nothing.
        said: String,
        /// What failed.
        source: std::io::Error,
    },
}

/// Where what is written to an overlay goes.
#[derive(Clone, Copy, Debug)]
pub struct Upper<'a> {
    /// The directory for it.
    pub upper: BorrowedFd<'a>,
    /// One on the same file system, for overlayfs itself.
    pub work: BorrowedFd<'a>,
    /// It is thrown away with the container: it need not survive a power failure.
    pub volatile: bool,
}

/// An overlay of `lower`, topmost first; without an `upper` one that nobody can write to, which takes
/// two layers at least. Descriptors of directories stand for their paths, which could be too long, or
/// changed.
pub fn mount(
    lower: &[OwnedFd],
    upper: Option<Upper<'_>>,
    read_only: bool,
) -> Result<OwnedFd, OverlayError> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| match errno {
        Errno::PERM => OverlayError::NotRoot,
        Errno::NODEV | Errno::NOSYS => OverlayError::Missing,
        errno => OverlayError::Step { step: "fsopen", said: String::new(), source: errno.into() },
    })?;
    let context = context.as_fd();
    let failed = |step| move |errno| step_error(context, step, errno);
    set_lower(context, lower)?;
    if let Some(Upper { upper, work, volatile }) = upper {
        for (key, directory) in [("upperdir", upper), ("workdir", work)] {
            fsconfig_set_string(context, key, path(directory)).map_err(failed(key))?;
        }
        if volatile {
            fsconfig_set_flag(context, "volatile").map_err(failed("volatile"))?;
        }
    }
    if !user::is_host_root() {
        // Attributes of its own that a user namespace may write (Linux 5.11).
        fsconfig_set_flag(context, "userxattr").map_err(failed("userxattr"))?;
    }
    // Names that layers could be made to redirect, and inode numbers that outlive the overlay.
    for (key, value) in [("metacopy", "off"), ("index", "off")] {
        fsconfig_set_string(context, key, value).map_err(failed(key))?;
    }
    fsconfig_create(context).map_err(failed("creating it"))?;
    // Only the guest executes what is in it, and only the guest's devices are meant.
    let safe = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let attributes = match read_only {
        true => safe | MountAttrFlags::MOUNT_ATTR_RDONLY,
        false => safe,
    };
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed("fsmount"))
}

/// One by one where the kernel takes them so (`lowerdir+`, Linux 6.7).
fn set_lower(context: BorrowedFd<'_>, lower: &[OwnedFd]) -> Result<(), OverlayError> {
    let failed = |errno| step_error(context, "lowerdir", errno);
    for (index, layer) in lower.iter().enumerate() {
        match fsconfig_set_string(context, "lowerdir+", path(layer.as_fd())) {
            Err(Errno::INVAL) if index == 0 => {
                let paths: Vec<_> = lower.iter().map(|layer| path(layer.as_fd())).collect();
                let value = paths.join(":");
                if value.len() > VALUE_MAX {
                    return Err(OverlayError::Layers(lower.len()));
                }
                return fsconfig_set_string(context, "lowerdir", value).map_err(failed);
            }
            set => set.map_err(failed)?,
        }
    }
    Ok(())
}

fn path(directory: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", directory.as_raw_fd())
}

/// The kernel explains itself in the context's log, a line "e overlay: why" a read.
fn step_error(context: BorrowedFd<'_>, step: &'static str, errno: Errno) -> OverlayError {
    let mut said = String::new();
    let mut line = [0; 512];
    while let Ok(length @ 1..) = rustix::io::read(context, &mut line) {
        let text = String::from_utf8_lossy(&line[..length]);
        let _ = write!(said, " ({})", text.trim_start_matches(['e', 'w', 'i', ' ']).trim());
    }
    match errno {
        Errno::PERM => OverlayError::NotRoot,
        errno => OverlayError::Step { step, said, source: errno.into() },
    }
}
