//! What the agent does as PID 1 of a VM: the guest's own mounts, cgroup, network and clock.

use std::cell::RefCell;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use std::path::{Path, PathBuf};

use bulkhead_protocol::rpc::agent::NetworkSpec;
use bulkhead_protocol::{FS_TAG, TEMPLATE};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Pid;
use rustix::time::{ClockId, Timespec};

use crate::devices::Filter;
use crate::mounts::machine_id;
use crate::network::{self, NetworkError};
use crate::plug;
use crate::process::{self, ProcessError, last_errno};

const SHARES: &str = "/shares";
const CGROUPS: &str = "/cgroup";
const CONTAINER: &str = "container";

/// Why the guest is not fit for a container.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {step}: {source}")]
pub struct GuestError {
    /// What was to be done.
    pub step: &'static str,
    /// The kernel's answer.
    pub source: Errno,
}

fn step(step: &'static str) -> impl FnOnce(Errno) -> GuestError {
    move |source| GuestError { step, source }
}

/// Opens /dev/null, and makes it if this is a bare initramfs. If the kernel found no console for
/// standard streams, it takes their places: nothing else must get their numbers.
pub fn open_null() -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let open = || rustix::fs::open("/dev/null", flags, Mode::empty());
    let null = match open() {
        Err(Errno::NOENT) => {
            let mode = Mode::from_raw_mode(0o755);
            let _ = rustix::fs::mkdir("/dev", mode);
            let mode = Mode::from_raw_mode(0o666);
            let device = rustix::fs::makedev(1, 3);
            rustix::fs::mknodat(CWD, "/dev/null", FileType::CharacterDevice, mode, device)?;
            open()?
        }
        null => null?,
    };
    if null.as_raw_fd() > 2 {
        return Ok(null);
    }
    // One of 0, 1, 2: fill what else is free up to 2 and leave them open for good.
    let place = null.as_raw_fd();
    std::mem::forget(null);
    for _ in place..2 {
        std::mem::forget(open()?);
    }
    open()
}

/// The virtio-fs mount and the container's cgroup.
#[derive(Debug)]
pub struct Guest {
    /// The directory of all shares, where virtio-fs is mounted.
    pub shares_path: PathBuf,
    shares: OwnedFd,
    /// The cgroup of the VM's own container; there is none outside of a VM.
    pub cgroup: Option<Cgroup>,
    in_vm: bool,
}

impl Guest {
    /// Makes the guest ready for its container.
    pub fn prepare() -> Result<Self, GuestError> {
        loopback_up().map_err(step("bring the loopback interface up"))?;
        let flags = MountFlags::empty();
        mount(FS_TAG, SHARES, "virtiofs", flags).map_err(step("mount the virtio-fs device"))?;
        let shares = open_directory(CWD, SHARES).map_err(step("open the virtio-fs mount"))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("cgroup2", CGROUPS, "cgroup2", flags).map_err(step("mount the cgroup hierarchy"))?;
        let cgroup = make_cgroup().map_err(step("make the container's cgroup"))?;
        if std::env::var_os(TEMPLATE).is_some() {
            cgroup.devices.replace(Filter::prepare());
        }
        rest();
        Ok(Self { shares_path: SHARES.into(), shares, cgroup: Some(cgroup), in_vm: true })
    }

    /// Shares from a directory, and no cgroup: for an agent that runs outside of a VM. It gets a
    /// mount namespace of its own, from which nothing spreads to the machine's.
    pub fn outside_vm(path: &Path) -> Result<Self, GuestError> {
        // SAFETY: no other thread shares the namespace, and it has no fds of its own.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
            .map_err(step("make a mount namespace"))?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).map_err(step("make the mounts private"))?;
        let shares = open_directory(CWD, path).map_err(step("open the directory of shares"))?;
        Ok(Self { shares_path: path.to_owned(), shares, cgroup: None, in_vm: false })
    }

    /// Makes a cgroup for a further container, of a name that none had yet.
    pub fn make_cgroup(&self, name: String) -> rustix::io::Result<Option<Cgroup>> {
        if !self.in_vm {
            return Ok(None);
        }
        let root = open_directory(CWD, CGROUPS)?;
        Cgroup::make(root.as_fd(), name).map(Some)
    }

    /// Sets the guest's wall clock, ns since the Unix epoch. Leaves the clock of a machine that is
    /// no VM alone.
    pub fn set_clock(&self, ns: u64) -> rustix::io::Result<()> {
        const SECOND_NS: u64 = 1_000_000_000;
        if !self.in_vm {
            return Ok(());
        }
        let time = Timespec { tv_sec: (ns / SECOND_NS) as i64, tv_nsec: (ns % SECOND_NS) as i64 };
        rustix::time::clock_settime(ClockId::Realtime, time)
    }

    /// Sets the guest's network up; leaves that of a machine that is no VM alone.
    pub fn set_network(&self, spec: &NetworkSpec) -> Result<(), NetworkError> {
        if self.in_vm { network::apply(spec) } else { Ok(()) }
    }

    /// The same with interfaces that were not there when the VM booted.
    pub fn add_network(&self, spec: &NetworkSpec) -> Result<(), NetworkError> {
        if !self.in_vm || spec.interfaces.is_empty() {
            return self.set_network(spec);
        }
        mount_sys().map_err(network::failed("mount", "/sys"))?;
        plug::find(spec.interfaces.len())
            .map_err(network::failed("find the drivers of", "new interfaces"))?;
        self.set_network(spec)
    }

    /// Gives a VM that goes on from a snapshot its network, which was set up as `was`.
    pub fn readdress(&self, was: &NetworkSpec, spec: &NetworkSpec) -> Result<(), NetworkError> {
        mount_proc();
        network::readdress(was, spec)
    }

    /// Has the container's machine ID ready, if it is to get one; whether it is. A machine that is no VM
    /// has its own.
    pub fn give_machine_id(&self, id: &str) -> Result<bool, ProcessError> {
        if id.is_empty() || !self.in_vm {
            return Ok(false);
        }
        machine_id::write(id).map_err(process::step("write the machine ID"))?;
        Ok(true)
    }

    /// Writes everything back to the host.
    pub fn sync(&self) {
        if let Err(error) = rustix::fs::syncfs(&self.shares) {
            crate::log::log!("cannot write back the container's files: {error}");
        }
    }
}

/// A container's cgroup.
#[derive(Debug)]
pub struct Cgroup {
    /// Its name among those of containers.
    name: String,
    /// Its directory.
    pub dir: OwnedFd,
    /// The devices it may use.
    pub devices: RefCell<Filter>,
}

impl Cgroup {
    fn make(root: BorrowedFd<'_>, name: String) -> rustix::io::Result<Self> {
        rustix::fs::mkdirat(root, &*name, Mode::from_raw_mode(0o755))?;
        let dir = open_directory(root, &*name)?;
        Ok(Self { name, dir, devices: RefCell::default() })
    }

    /// One of its files.
    pub fn file(&self, name: &str) -> Option<String> {
        read_file(self.dir.as_fd(), name).ok()
    }

    /// Whether a process is in it, or below it.
    pub fn has(&self, pid: &str) -> bool {
        let path = path_of(pid).ok();
        let below = path.as_deref().and_then(|path| path.strip_prefix(&*self.name));
        below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Removes it, once nothing is in it any more.
    pub fn remove(&self) -> rustix::io::Result<()> {
        remove_cgroup(&self.name)
    }
}

/// Removes a container's cgroup, which must be empty.
pub fn remove_cgroup(name: &str) -> rustix::io::Result<()> {
    rustix::fs::rmdir(format!("{CGROUPS}/{name}"))
}

/// The cgroup of a process of a container, which may have moved below the container's own.
pub fn cgroup_of(pid: Pid) -> rustix::io::Result<OwnedFd> {
    let path = path_of(&pid.as_raw_nonzero().to_string())?;
    open_directory(CWD, &*format!("{CGROUPS}/{path}"))
}

/// Where the cgroup of a process is, below the hierarchy's root.
fn path_of(pid: &str) -> rustix::io::Result<String> {
    mount_proc();
    let text = read_file(CWD, &format!("/proc/{pid}/cgroup"))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
    path.map(str::to_owned).ok_or(Errno::NOENT)
}

/// Keeps the kernel from waking up for housekeeping that an idle guest can do without: a host has
/// hundreds (admin-guide/sysctl/vm.rst of the kernel). Compaction still happens where an allocation
/// wants it; counters, which are exact to some pages a CPU, are summed up once a minute.
fn rest() {
    const SETTINGS: [(&str, &[u8]); 2] =
        [("/proc/sys/vm/compaction_proactiveness", b"0"), ("/proc/sys/vm/stat_interval", b"60")];
    mount_proc();
    for (file, value) in SETTINGS {
        if let Ok(file) = rustix::fs::open(file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
            // A guest that cannot be told costs its host some wakes.
            let _ = rustix::io::write(&file, value);
        }
    }
}

/// Mounts the agent's own /proc, which few calls need, if it is not there yet. Outside of a VM it is.
pub fn mount_proc() {
    if !Path::new("/proc/self").exists() {
        let _ = mount("proc", "/proc", "proc", MountFlags::empty());
    }
}

/// Mounts the agent's own /sys, if it is not there yet. A container that mounted its own read-only
/// first has made the file system so, not only its mount: that is taken back.
fn mount_sys() -> rustix::io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if !Path::new("/sys/bus").exists() {
        mount("sysfs", "/sys", "sysfs", flags)?;
    }
    rustix::mount::mount_remount("/sys", flags, "")
}

fn mount(source: &str, target: &str, fstype: &str, flags: MountFlags) -> rustix::io::Result<()> {
    match rustix::fs::mkdir(target, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => rustix::mount::mount(source, target, fstype, flags, None),
        error => error,
    }
}

fn open_directory(at: BorrowedFd<'_>, path: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(at, path, flags, Mode::empty())
}

/// Makes the container's cgroup with every controller the kernel has.
fn make_cgroup() -> rustix::io::Result<Cgroup> {
    let root = open_directory(CWD, CGROUPS)?;
    let controllers = read_file(root.as_fd(), "cgroup.controllers")?;
    let wanted: Vec<String> = controllers.split_whitespace().map(|c| format!("+{c}")).collect();
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let control = rustix::fs::openat(&root, "cgroup.subtree_control", flags, Mode::empty())?;
    rustix::io::write(control, wanted.join(" ").as_bytes())?;
    Cgroup::make(root.as_fd(), CONTAINER.to_owned())
}

/// Reads a small file of the kernel's.
fn read_file(at: BorrowedFd<'_>, path: &str) -> rustix::io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(at, path, flags, Mode::empty())?;
    let mut bytes = [0; 4096];
    let length = rustix::io::read(file, &mut bytes[..])?;
    Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

/// Sets IFF_UP on "lo" (netdevice(7)); the kernel adds 127.0.0.1 and ::1.
fn loopback_up() -> rustix::io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    // SAFETY: ifreq is plain integers and unions of them, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which `request` is.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}
