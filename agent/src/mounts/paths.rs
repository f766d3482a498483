//! Paths of the container that it must not read, or not write.

use std::fs;

use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::MountError;

/// Covers a path, so that nothing of it can be read; none that is not there.
pub fn mask(path: &str) -> Result<(), MountError> {
    absolute(path)?;
    let masked = match rustix::mount::mount_bind("/dev/null", path) {
        Err(Errno::NOTDIR) if rustix::fs::stat(path).is_ok() => {
            let flags = MountFlags::RDONLY;
            rustix::mount::mount("tmpfs", path, "tmpfs", flags, Some(c"size=0k"))
        }
        result => result,
    };
    if_there(path, "mask", masked)
}

/// Makes a path and what is below it read-only; none that is not there.
pub fn make_readonly(path: &str) -> Result<(), MountError> {
    absolute(path)?;
    let make = || {
        rustix::mount::mount_bind_recursive(path, path)?;
        remount_readonly(path)
    };
    if_there(path, "make read-only", make())
}

/// Adds "ro" to the flags that a mount has.
pub fn remount_readonly(path: &str) -> rustix::io::Result<()> {
    // The flags of statvfs(3) that are asked about here have the numbers of mount(2)'s.
    let kept = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let flags = rustix::fs::statvfs(path)?.f_flag.bits();
    let flags = MountFlags::from_bits_truncate(flags as u32) & kept;
    rustix::mount::mount_remount(path, flags | MountFlags::BIND | MountFlags::RDONLY, "")
}

/// Sets a kernel parameter, in the namespaces of the calling process, whose working directory is
/// the root of a proc file system.
pub fn set_sysctl(name: &str, value: &str) -> Result<(), MountError> {
    let failed = |source| MountError::Sysctl { name: name.to_owned(), source };
    // As sysctl(8): whichever of "." and "/" comes first is the separator, the other one a letter.
    let path: String = match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'.' => {
            let swap = |c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            };
            name.chars().map(swap).collect()
        }
        _ => name.to_owned(),
    };
    if path.split('/').any(|word| matches!(word, "" | "." | "..")) {
        return Err(failed(Errno::INVAL));
    }
    fs::write(format!("sys/{path}"), value)
        .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))
}

fn absolute(path: &str) -> Result<(), MountError> {
    if path.starts_with('/') { Ok(()) } else { Err(MountError::Relative(path.to_owned())) }
}

fn if_there(
    path: &str,
    step: &'static str,
    result: rustix::io::Result<()>,
) -> Result<(), MountError> {
    match result {
        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(source) => Err(MountError::Path { path: path.to_owned(), step, source }),
    }
}
