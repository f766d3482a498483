//! Taps, which the guest's frames come from and go to.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

/// How the names of taps begin. A tap lives as long as its VM: one that is there says that its
/// network namespace has a VM already.
pub const NAME_PREFIX: &str = "bhtap";
/// [`NAME_PREFIX`], and a number that is the kernel's to choose.
const NAME_PATTERN: &CStr = c"bhtap%d";
const DEVICE: &str = "/dev/net/tun";

/// A tap, and its name.
#[derive(Debug)]
pub struct Tap {
    /// Frames with virtio headers go through it; the tap goes when it is closed.
    pub fd: OwnedFd,
    /// The interface's name.
    pub name: String,
}

/// Makes a tap in the calling thread's network namespace.
pub fn create() -> io::Result<Tap> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open(DEVICE, flags, Mode::empty())?;
    // SAFETY: ifreq is plain integers and unions of them, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME_PATTERN.to_bytes()) {
        *to = *from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an ifreq, which `request` is.
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let name = request.ifr_name.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
    let name = String::from_utf8(name).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(Tap { fd, name })
}
