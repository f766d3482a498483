//! The container's mounts: its root, the kernel's file systems, and what the spec adds.
//!
//! All of this runs in the container's process, in a mount namespace of its own. The root comes
//! first: once the process is inside of it, the kernel resolves every path and every symlink of the
//! image within the container, and nothing here needs to.

mod copy_up;
pub mod machine_id;
mod nodes;
mod options;
mod paths;
mod points;

use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use bulkhead_protocol::rpc::agent::{ContainerSpec, Mount};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags,
};

use options::Options;
pub use points::directories as make_directories;

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
        path: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// A path could not be masked or made read-only.
    #[error("cannot {step} {path}: {source}")]
    Path {
        /// The path.
        path: String,
        /// What was to be done.
        step: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
    /// A kernel parameter could not be set.
    #[error("cannot set the kernel parameter {name:?}: {source}")]
    Sysctl {
        /// The parameter.
        name: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// No propagation of that name.
    #[error(
        "unknown mount propagation {0:?}; use private, shared, slave or unbindable, or \"r\" and one of them"
    )]
    Propagation(String),
}

impl MountError {
    /// The errno to report.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Relative(_) | Self::Propagation(_) => Errno::INVAL,
            Self::Share { source, .. }
            | Self::Root { source, .. }
            | Self::Mount { source, .. }
            | Self::MountPoint { source, .. }
            | Self::Path { source, .. }
            | Self::Sysctl { source, .. }
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
    /// The container was given a [machine ID](machine_id).
    pub machine_id: bool,
}

const DEVPTS: &str = "devpts";
const SHARE: &str = "share";
const CGROUP: &str = "cgroup2";
const DEV: &str = "/dev";
const PTS: &str = "/dev/pts";

/// Mounts that every container has: destination, type, options (as in the OCI runtime
/// specification's example; /sys/fs/cgroup is writable, the VM being the container's own).
const DEFAULTS: [(&str, &str, &[&str]); 7] = [
    ("/proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ("/sys/fs/cgroup", CGROUP, &["nosuid", "noexec", "nodev", "relatime"]),
    (DEV, "tmpfs", &["nosuid", "noexec", "strictatime", "mode=755", "size=65536k"]),
    (PTS, DEVPTS, &["nosuid", "noexec"]),
    ("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777"]),
    ("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
];

/// Options of a devpts for which the spec has none; `ptmxmode` lets /dev/ptmx be a symlink, gid 5
/// is "tty" everywhere.
const DEVPTS_OPTIONS: [&str; 3] = ["mode=0620", "gid=5", "ptmxmode=0666"];
/// What a devpts may be told.
const DEVPTS_KEYS: [&str; 5] = ["mode", "uid", "gid", "ptmxmode", "max"];

/// A mount to be made.
#[derive(Debug, PartialEq, Eq)]
struct Planned<'a> {
    destination: &'a str,
    fstype: &'a str,
    source: &'a str,
    options: Options,
}

/// A new devpts mount, attached nowhere, with the options the spec has for it. The agent opens
/// terminals in it; the container gets it as /dev/pts.
pub fn new_devpts(spec: &ContainerSpec) -> rustix::io::Result<OwnedFd> {
    let fs = rustix::mount::fsopen(DEVPTS, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let asked = spec.mounts.iter().find(|mount| mount.type_ == DEVPTS);
    let defaults = DEVPTS_OPTIONS.into_iter();
    let asked = asked.into_iter().flat_map(|mount| mount.options.iter().map(String::as_str));
    for (key, value) in defaults.chain(asked).filter_map(|word| word.split_once('=')) {
        if DEVPTS_KEYS.contains(&key) {
            rustix::mount::fsconfig_set_string(fs.as_fd(), key, value)?;
        }
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
    let machine_id = sources.machine_id.then(machine_id::open).transpose()?;
    let mounter = Mounter { shares, devpts: sources.devpts };
    mounter.enter_root(share)?;
    // Before the spec's own mounts, which may be there, too.
    machine_id.map(machine_id::mount).transpose()?;
    let (mut first, added) = plan(spec, sources.cgroups)?;
    // Things are to be made in it first.
    let dev_is_read_only = make_dev_writable(&mut first);
    for mount in &first {
        mounter.mount(mount)?;
    }
    // A share at /dev brings its own.
    if !first.iter().any(|mount| mount.destination == DEV && mount.fstype == SHARE) {
        for device in &spec.devices {
            nodes::make(device)?;
        }
        nodes::make_all()?;
        if sources.console && first.iter().any(|mount| mount.is(DEVPTS, PTS)) {
            nodes::make_console()?;
        }
    }
    for mount in &added {
        mounter.mount(mount)?;
    }
    set_sysctls(spec)?;
    if dev_is_read_only {
        let (path, step) = (DEV.to_owned(), "make read-only");
        paths::remount_readonly(DEV).map_err(|source| MountError::Path { path, step, source })?;
    }
    restrict(spec)
}

/// Takes "ro" from a file system at /dev; whether there was one.
fn make_dev_writable(mounts: &mut [Planned<'_>]) -> bool {
    let dev = mounts.iter_mut().find(|mount| mount.destination == DEV && mount.fstype != SHARE);
    let Some(Planned { options, .. }) = dev else { return false };
    let is_read_only = options.flags.contains(MountFlags::RDONLY);
    options.flags.remove(MountFlags::RDONLY);
    is_read_only
}

/// The root of a proc file system that is attached nowhere, of the calling process's PID namespace.
pub fn detached_proc() -> rustix::io::Result<OwnedFd> {
    let fs = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(fs.as_fd())?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    rustix::mount::fsmount(fs.as_fd(), flags, MountAttrFlags::empty())
}

/// Sets kernel parameters by way of a proc that is attached nowhere: the container's may be
/// missing, or be something else.
fn set_sysctls(spec: &ContainerSpec) -> Result<(), MountError> {
    if spec.sysctls.is_empty() {
        return Ok(());
    }
    let proc = || detached_proc().and_then(|proc| rustix::process::fchdir(&proc).map(|()| proc));
    let failed = |source| MountError::Mount {
        fstype: "proc".to_owned(),
        destination: "(nowhere)".to_owned(),
        source,
    };
    let _proc = proc().map_err(failed)?;
    for setting in &spec.sysctls {
        paths::set_sysctl(&setting.name, &setting.value)?;
    }
    rustix::process::chdir("/").map_err(failed)
}

/// What the container must not read or write, last of all.
fn restrict(spec: &ContainerSpec) -> Result<(), MountError> {
    let root = |source| MountError::Root { share: spec.root_share.clone(), source };
    for path in &spec.readonly_paths {
        paths::make_readonly(path)?;
    }
    for path in &spec.masked_paths {
        paths::mask(path)?;
    }
    if !spec.root_propagation.is_empty() {
        let flags = options::propagation(&spec.root_propagation)
            .ok_or_else(|| MountError::Propagation(spec.root_propagation.clone()))?;
        rustix::mount::mount_change("/", flags).map_err(root)?;
    }
    if spec.root_readonly {
        paths::remount_readonly("/").map_err(root)?;
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

/// The mounts to be made before the device nodes, and those to be made after them: the defaults, as
/// changed by the spec, and the spec's others in their order; or the spec's alone.
fn plan(
    spec: &ContainerSpec,
    cgroups: bool,
) -> Result<(Vec<Planned<'_>>, Vec<Planned<'_>>), MountError> {
    let mounts = spec.mounts.as_slice();
    if spec.only_these_mounts {
        let mounts = mounts.iter().filter(|mount| cgroups || mount.type_ != CGROUP);
        return Ok((mounts.map(Planned::of).collect::<Result<_, _>>()?, Vec::new()));
    }
    let wanted = DEFAULTS.into_iter().filter(|(_, fstype, _)| cgroups || *fstype != CGROUP);
    let defaults = wanted.map(|(destination, fstype, options)| {
        let options = match replacement(mounts, destination) {
            Some(mount) if fstype != DEVPTS => Options::parse(&mount.options),
            _ => Options::parse(options),
        };
        Planned { destination, fstype, source: fstype, options }
    });
    let added = mounts.iter().filter(|mount| !is_replacement(mounts, mount));
    Ok((defaults.collect(), added.map(Planned::of).collect::<Result<_, _>>()?))
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

impl<'a> Planned<'a> {
    fn of(mount: &'a Mount) -> Result<Self, MountError> {
        if !mount.destination.starts_with('/') {
            return Err(MountError::Relative(mount.destination.clone()));
        }
        Ok(Self {
            destination: &mount.destination,
            fstype: &mount.type_,
            source: &mount.source,
            options: Options::parse(&mount.options),
        })
    }

    fn is(&self, fstype: &str, destination: &str) -> bool {
        self.fstype == fstype && self.destination == destination
    }

    /// Makes a mount of a file system of the kernel's.
    fn make(&self) -> Result<(), MountError> {
        let data = CString::new(self.data()).map_err(|_| self.failed(Errno::INVAL))?;
        let covered = self.options.copy_up.then(|| copy_up::open(CWD, self.destination).ok());
        let readonly = MountFlags::RDONLY;
        let flags = self.options.flags.difference(if self.options.copy_up {
            readonly
        } else {
            MountFlags::empty()
        });
        self.with_mount_point(FileType::Directory, || {
            rustix::mount::mount(self.source, self.destination, self.fstype, flags, data.as_c_str())
        })?;
        let Some(covered) = covered.flatten() else { return Ok(()) };
        let copy = || {
            copy_up::copy(covered.as_fd(), copy_up::open(CWD, self.destination)?.as_fd())?;
            match self.options.flags.contains(readonly) {
                true => paths::remount_readonly(self.destination),
                false => Ok(()),
            }
        };
        copy().map_err(|source| self.failed(source))
    }

    /// The file system's own options. A tmpfs takes over the mode of the directory it covers, unless
    /// it was told another.
    fn data(&self) -> String {
        let data = self.options.data.as_str();
        if self.fstype != "tmpfs" || data.split(',').any(|word| word.starts_with("mode=")) {
            return data.to_owned();
        }
        let Ok(covered) = rustix::fs::stat(self.destination) else { return data.to_owned() };
        let comma = if data.is_empty() { "" } else { "," };
        format!("{data}{comma}mode={:o}", covered.st_mode & 0o7777)
    }

    /// Attaches a mount that is there already, then sets its flags.
    fn attach(&self, tree: BorrowedFd<'_>) -> Result<(), MountError> {
        let stat = rustix::fs::fstat(tree).map_err(|source| self.failed(source))?;
        self.with_mount_point(FileType::from_raw_mode(stat.st_mode), || {
            let flags =
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
            rustix::mount::move_mount(tree, "", CWD, self.destination, flags)?;
            if !self.options.flags.is_empty() {
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
                points::make(self.destination, kind).map_err(|source| MountError::MountPoint {
                    destination: self.destination.to_owned(),
                    source,
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

#[cfg(test)]
mod tests;
