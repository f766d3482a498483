//! The container's mounts: its root, the kernel's file systems, and what the spec adds.
//!
//! All of this runs in the container's process, in a mount namespace of its own. The root comes
//! first: once the process is inside of it, the kernel resolves every path and every symlink of the
//! image within the container, and nothing here needs to.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use bulkhead_protocol::rpc::agent::{ContainerSpec, Mount};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags,
};

/// Why the container's file systems could not be put together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// A share that is not there.
    #[error("cannot open the share {share:?}: {source}")]
    Share {
        /// Its name.
        share: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// The root could not be entered.
    #[error("cannot make the share {share:?} the container's root: {source}")]
    Root {
        /// The share.
        share: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// A mount failed.
    #[error("cannot mount {fstype} on {destination}: {source}")]
    Mount {
        /// "share" or a file system type.
        fstype: String,
        /// Path inside the container.
        destination: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// A mount point is not there and could not be made.
    #[error("cannot create the mount point {destination}: {source}")]
    MountPoint {
        /// Path inside the container.
        destination: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// A mount's destination is not an absolute path.
    #[error("the mount destination {0:?} is not an absolute path")]
    Relative(String),
    /// A device node or symlink under /dev could not be made.
    #[error("cannot create {path}: {source}")]
    Node {
        /// Its path.
        path: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
}

impl MountError {
    /// The errno to report.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Relative(_) => Errno::INVAL,
            Self::Share { source, .. }
            | Self::Root { source, .. }
            | Self::Mount { source, .. }
            | Self::MountPoint { source, .. }
            | Self::Node { source, .. } => *source,
        }
    }
}

/// What the agent hands to the container's process for its mounts.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// The directory of all shares, where virtio-fs is mounted.
    pub shares: &'a Path,
    /// A devpts mount that is not attached anywhere yet.
    pub devpts: BorrowedFd<'a>,
    /// The process has a terminal, the first one of `devpts`: it becomes /dev/console.
    pub console: bool,
    /// There is a cgroup v2 hierarchy to be mounted.
    pub cgroups: bool,
}

const DEVPTS: &str = "devpts";
const SHARE: &str = "share";

/// Mounts that every container has: destination, type, options (as in the OCI runtime
/// specification's example; /sys/fs/cgroup is writable, the VM being the container's own).
const DEFAULTS: [(&str, &str, &[&str]); 7] = [
    ("/proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ("/sys/fs/cgroup", "cgroup2", &["nosuid", "noexec", "nodev", "relatime"]),
    ("/dev", "tmpfs", &["nosuid", "noexec", "strictatime", "mode=755", "size=65536k"]),
    ("/dev/pts", DEVPTS, &["nosuid", "noexec"]),
    ("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777"]),
    ("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
];

/// Options of every devpts; `ptmxmode` lets /dev/ptmx be a symlink, gid 5 is "tty" everywhere.
const DEVPTS_OPTIONS: [(&str, &str); 3] = [("mode", "0620"), ("gid", "5"), ("ptmxmode", "0666")];

/// Device nodes (kernel, admin-guide/devices.txt) that every container has.
const NODES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// A mount to be made.
#[derive(Debug, PartialEq, Eq)]
struct Planned<'a> {
    destination: &'a str,
    fstype: &'a str,
    source: &'a str,
    options: Options,
}

/// A new devpts mount, attached nowhere. The agent opens terminals in it; the container gets it as
/// /dev/pts.
pub fn new_devpts() -> rustix::io::Result<OwnedFd> {
    let fs = rustix::mount::fsopen(DEVPTS, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in DEVPTS_OPTIONS {
        rustix::mount::fsconfig_set_string(fs.as_fd(), key, value)?;
    }
    rustix::mount::fsconfig_create(fs.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Puts the container's file systems together and makes them the calling process's root.
pub fn enter(spec: &ContainerSpec, sources: Sources<'_>) -> Result<(), MountError> {
    rustix::process::umask(Mode::empty());
    // Opened here, not by the agent: only mounts of the own mount namespace can be cloned.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let share = spec.root_share.as_str();
    let shares = rustix::fs::open(sources.shares, flags, Mode::empty())
        .map_err(|source| MountError::Share { share: share.to_owned(), source })?;
    let mounter = Mounter { shares, devpts: sources.devpts };
    mounter.enter_root(share)?;
    let (defaults, added) = plan(&spec.mounts, sources.cgroups)?;
    for mount in &defaults {
        mounter.mount(mount)?;
    }
    make_nodes()?;
    if sources.console {
        make_console()?;
    }
    for mount in &added {
        mounter.mount(mount)?;
    }
    if spec.root_readonly {
        let flags = MountFlags::BIND | MountFlags::RDONLY;
        rustix::mount::mount_remount("/", flags, "")
            .map_err(|source| MountError::Root { share: share.to_owned(), source })?;
    }
    Ok(())
}

/// The mount of the spec that takes the place of the default at `destination`: a file system, not a
/// share. /dev/pts stays what it is, terminals live in it.
fn replacement<'a>(mounts: &'a [Mount], destination: &str) -> Option<&'a Mount> {
    mounts.iter().find(|m| m.destination == destination && m.type_ != SHARE)
}

fn is_replacement(mounts: &[Mount], mount: &Mount) -> bool {
    DEFAULTS.iter().any(|(destination, ..)| {
        replacement(mounts, destination).is_some_and(|r| std::ptr::eq(r, mount))
    })
}

/// The default mounts, as changed by the spec's, and the spec's others in their order.
fn plan(
    mounts: &[Mount],
    cgroups: bool,
) -> Result<(Vec<Planned<'_>>, Vec<Planned<'_>>), MountError> {
    let wanted = DEFAULTS.into_iter().filter(|(_, fstype, _)| cgroups || *fstype != "cgroup2");
    let defaults = wanted.map(|(destination, fstype, options)| {
        let options = match replacement(mounts, destination) {
            Some(mount) if fstype != DEVPTS => Options::parse(&mount.options),
            _ => Options::parse(options),
        };
        Planned { destination, fstype, source: fstype, options }
    });
    let added = mounts.iter().filter(|mount| !is_replacement(mounts, mount)).map(|mount| {
        if !mount.destination.starts_with('/') {
            return Err(MountError::Relative(mount.destination.clone()));
        }
        Ok(Planned {
            destination: &mount.destination,
            fstype: &mount.type_,
            source: &mount.source,
            options: Options::parse(&mount.options),
        })
    });
    Ok((defaults.collect(), added.collect::<Result<_, _>>()?))
}

/// Makes mounts.
struct Mounter<'a> {
    shares: OwnedFd,
    devpts: BorrowedFd<'a>,
}

impl Mounter<'_> {
    /// Makes a share the root directory. It is mounted over the old one, as pivot_root(2) is not
    /// to be had on an initramfs.
    fn enter_root(&self, share: &str) -> Result<(), MountError> {
        let tree = self.open_share(share)?;
        let enter = || {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(tree.as_fd(), "", CWD, "/", flags)?;
            rustix::process::fchdir(&tree)?;
            rustix::process::chroot(".")
        };
        enter().map_err(|source| MountError::Root { share: share.to_owned(), source })
    }

    fn open_share(&self, share: &str) -> Result<OwnedFd, MountError> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        rustix::mount::open_tree(self.shares.as_fd(), share, flags)
            .map_err(|source| MountError::Share { share: share.to_owned(), source })
    }

    fn mount(&self, mount: &Planned<'_>) -> Result<(), MountError> {
        match mount.fstype {
            SHARE => mount.attach(self.open_share(mount.source)?.as_fd())?,
            DEVPTS => mount.attach(self.devpts)?,
            _ => mount.make()?,
        }
        match mount.options.propagation {
            Some(flags) => rustix::mount::mount_change(mount.destination, flags)
                .map_err(|source| mount.failed(source)),
            None => Ok(()),
        }
    }
}

impl Planned<'_> {
    /// Makes a mount of a file system of the kernel's.
    fn make(&self) -> Result<(), MountError> {
        let data = CString::new(self.options.data.as_str());
        let data = data.map_err(|_| self.failed(Errno::INVAL))?;
        self.with_mount_point(FileType::Directory, || {
            let (source, fstype, flags) = (self.source, self.fstype, self.options.flags);
            rustix::mount::mount(source, self.destination, fstype, flags, data.as_c_str())
        })
    }

    /// Attaches a mount that is there already, then sets its flags.
    fn attach(&self, tree: BorrowedFd<'_>) -> Result<(), MountError> {
        let stat = rustix::fs::fstat(tree).map_err(|source| self.failed(source))?;
        self.with_mount_point(FileType::from_raw_mode(stat.st_mode), || {
            let flags =
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
            rustix::mount::move_mount(tree, "", CWD, self.destination, flags)?;
            if self.fstype == SHARE && !self.options.flags.is_empty() {
                let flags = MountFlags::BIND | self.options.flags;
                rustix::mount::mount_remount(self.destination, flags, "")?;
            }
            Ok(())
        })
    }

    /// Mounts; makes the mount point only if it turns out to be missing.
    fn with_mount_point(
        &self,
        kind: FileType,
        mount: impl Fn() -> rustix::io::Result<()>,
    ) -> Result<(), MountError> {
        let result = match mount() {
            Err(Errno::NOENT) => {
                make_mount_point(self.destination, kind).map_err(|source| {
                    MountError::MountPoint { destination: self.destination.to_owned(), source }
                })?;
                mount()
            }
            result => result,
        };
        result.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: Errno) -> MountError {
        MountError::Mount {
            fstype: self.fstype.to_owned(),
            destination: self.destination.to_owned(),
            source,
        }
    }
}

fn make_mount_point(path: &str, kind: FileType) -> rustix::io::Result<()> {
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    if kind == FileType::Directory {
        return make_directories(path).map_err(errno);
    }
    if let Some((parent, _)) = path.trim_end_matches('/').rsplit_once('/') {
        make_directories(parent).map_err(errno)?;
    }
    let flags = OFlags::CREATE | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::from_raw_mode(0o644)).map(drop)
}

/// mkdir -p, mode 0755.
pub fn make_directories(path: &str) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    if path.is_empty() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}

fn make_nodes() -> Result<(), MountError> {
    for (path, major, minor) in NODES {
        let device = rustix::fs::makedev(major, minor);
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, mode, device)
            .map_err(|source| MountError::Node { path, source })?;
    }
    for (target, path) in LINKS {
        rustix::fs::symlink(target, path).map_err(|source| MountError::Node { path, source })?;
    }
    Ok(())
}

/// The process's terminal is the first of its devpts, so its path is known.
fn make_console() -> Result<(), MountError> {
    let path = "/dev/console";
    rustix::fs::open(path, OFlags::CREATE | OFlags::CLOEXEC, Mode::from_raw_mode(0o600))
        .and_then(|_| rustix::mount::mount_bind("/dev/pts/0", path))
        .map_err(|source| MountError::Node { path, source })
}

/// A mount's options: kernel flags apart from the file system's own words.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    flags: MountFlags,
    propagation: Option<MountPropagationFlags>,
    data: String,
}

impl Options {
    /// Sorts options as mount(8) has them. Words that are no flag belong to the file system, which
    /// refuses those it does not know.
    fn parse(words: &[impl AsRef<str>]) -> Self {
        let mut options =
            Self { flags: MountFlags::empty(), propagation: None, data: String::new() };
        for word in words.iter().map(AsRef::as_ref) {
            if let Some((flag, set)) = flag(word) {
                options.flags.set(flag, set);
            } else if let Some(propagation) = propagation(word) {
                options.propagation = Some(propagation);
            } else if !matches!(word, "" | "defaults" | "bind" | "rbind") {
                if !options.data.is_empty() {
                    options.data.push(',');
                }
                options.data.push_str(word);
            }
        }
        options
    }
}

/// The mount flag an option stands for, and whether it sets or clears it. The "r" forms (of
/// mount_setattr(2), recursive) are the same here: shares have no mounts below them.
fn flag(word: &str) -> Option<(MountFlags, bool)> {
    Some(match word {
        "ro" | "rro" => (MountFlags::RDONLY, true),
        "rw" | "rrw" => (MountFlags::RDONLY, false),
        "nosuid" | "rnosuid" => (MountFlags::NOSUID, true),
        "suid" | "rsuid" => (MountFlags::NOSUID, false),
        "nodev" | "rnodev" => (MountFlags::NODEV, true),
        "dev" | "rdev" => (MountFlags::NODEV, false),
        "noexec" | "rnoexec" => (MountFlags::NOEXEC, true),
        "exec" | "rexec" => (MountFlags::NOEXEC, false),
        "noatime" | "rnoatime" => (MountFlags::NOATIME, true),
        "atime" | "ratime" => (MountFlags::NOATIME, false),
        "nodiratime" | "rnodiratime" => (MountFlags::NODIRATIME, true),
        "diratime" | "rdiratime" => (MountFlags::NODIRATIME, false),
        "relatime" | "rrelatime" => (MountFlags::RELATIME, true),
        "norelatime" | "rnorelatime" => (MountFlags::RELATIME, false),
        "strictatime" | "rstrictatime" => (MountFlags::STRICTATIME, true),
        "nostrictatime" | "rnostrictatime" => (MountFlags::STRICTATIME, false),
        "sync" => (MountFlags::SYNCHRONOUS, true),
        "async" => (MountFlags::SYNCHRONOUS, false),
        "dirsync" => (MountFlags::DIRSYNC, true),
        "lazytime" => (MountFlags::LAZYTIME, true),
        "nolazytime" => (MountFlags::LAZYTIME, false),
        "silent" => (MountFlags::SILENT, true),
        "loud" => (MountFlags::SILENT, false),
        _ => return None,
    })
}

fn propagation(word: &str) -> Option<MountPropagationFlags> {
    let recursive = word.starts_with('r');
    let flags = match word.strip_prefix('r').unwrap_or(word) {
        "private" => MountPropagationFlags::PRIVATE,
        "shared" => MountPropagationFlags::SHARED,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    };
    Some(if recursive { flags | MountPropagationFlags::REC } else { flags })
}

#[cfg(test)]
mod tests;
