//! Landlock, where the kernel has it: a second wall behind the empty root.
//!
//! Numbers from linux/landlock.h; each version of the interface knows more rights, and refuses
//! those it does not know.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `struct landlock_ruleset_attr`.
#[repr(C)]
struct RulesetAttr {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

const CREATE_RULESET_VERSION: u32 = 1;
/// Bind and connect of TCP sockets.
const NET: u64 = 0b11;
/// Abstract Unix sockets out of the domain. Not signals: the VMM ends its worker by one.
const SCOPES: u64 = 0b01;

/// Denies this process every access to files by path, TCP, and abstract Unix sockets of others. Descriptors that
/// are open, and connections to Unix sockets that have a path, stay.
pub fn forbid_everything() -> io::Result<()> {
    let Some(version) = version() else { return Ok(()) };
    let attr = RulesetAttr {
        handled_access_fs: (1 << rights(version)) - 1,
        handled_access_net: if version >= 4 { NET } else { 0 },
        scoped: if version >= 6 { SCOPES } else { 0 },
    };
    // SAFETY: `attr` is as long as is said and lives until the call returns; the fields an older
    // kernel does not know are zero, as it demands.
    let ruleset = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &attr, size_of::<RulesetAttr>(), 0)
    };
    let ruleset = checked(ruleset)?;
    // SAFETY: the kernel just handed this descriptor out and nothing else owns it.
    let ruleset = unsafe { OwnedFd::from_raw_fd(ruleset as i32) };
    // SAFETY: the call takes two numbers.
    checked(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) })
        .map(drop)
}

/// The version of the interface; `None` without Landlock.
pub fn version() -> Option<u32> {
    // SAFETY: asked for its version, the call reads no memory.
    let version = unsafe {
        let nothing = std::ptr::null::<RulesetAttr>();
        libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0, CREATE_RULESET_VERSION)
    };
    u32::try_from(version).ok().filter(|version| *version > 0)
}

/// How many rights to files a version knows.
fn rights(version: u32) -> u32 {
    match version {
        1 => 13,
        2 => 14,
        3 | 4 => 15,
        _ => 16,
    }
}

fn checked(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Both at once, for a thread that was restricted can do little else.
    #[test]
    fn no_path_leads_anywhere_and_what_is_open_stays() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let open = File::open("/proc/version").unwrap();
        // Restricts the calling thread alone.
        let restricted = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            forbid_everything().unwrap();
            let refused = |error: io::Error| error.kind() == io::ErrorKind::PermissionDenied;
            let file = File::open("/proc/version").err().is_some_and(refused);
            let socket = TcpStream::connect(address).err().is_some_and(refused);
            (file, socket, open.metadata().is_ok())
        });
        let version = version().unwrap_or(0);
        let refused = (version >= 1, version >= 4, true);
        assert_eq!(restricted.join().unwrap(), refused, "version {version}");
    }
}
