//! Device nodes and symlinks under /dev.

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use bulkhead_protocol::rpc::agent::Device;

use super::MountError;

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

fn failed(path: &str) -> impl FnOnce(Errno) -> MountError {
    move |source| MountError::Node { path: path.to_owned(), source }
}

/// Makes what every container has. What the image or a mount brought is left as it is.
pub fn make_all() -> Result<(), MountError> {
    let kind = FileType::CharacterDevice;
    for (path, major, minor) in NODES {
        let device = rustix::fs::makedev(major, minor);
        made(rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o666), device))
            .map_err(failed(path))?;
    }
    for (target, path) in LINKS {
        made(rustix::fs::symlink(target, path)).map_err(failed(path))?;
    }
    Ok(())
}

fn made(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    if result == Err(Errno::EXIST) { Ok(()) } else { result }
}

/// Makes a device node of the spec's.
pub fn make(device: &Device) -> Result<(), MountError> {
    let path = device.path.as_str();
    let make = || {
        let number = rustix::fs::makedev(device.major, device.minor);
        let kind = FileType::from_raw_mode(device.mode);
        let mode = Mode::from_raw_mode(device.mode);
        made(rustix::fs::mknodat(CWD, path, kind, mode, number))?;
        let owner = (Some(Uid::from_raw(device.uid)), Some(Gid::from_raw(device.gid)));
        rustix::fs::chownat(CWD, path, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
    };
    let result = match make() {
        Err(Errno::NOENT) => {
            let parent = path.rsplit_once('/').map_or("/", |(parent, _)| parent);
            super::points::make(parent, FileType::Directory).and_then(|()| make())
        }
        result => result,
    };
    result.map_err(failed(path))
}

/// The process's terminal is the first of its devpts, so its path is known.
pub fn make_console() -> Result<(), MountError> {
    let path = "/dev/console";
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let created = rustix::fs::open(path, flags, Mode::from_raw_mode(0o600)).map(drop);
    made(created).and_then(|()| rustix::mount::mount_bind("/dev/pts/0", path)).map_err(failed(path))
}
