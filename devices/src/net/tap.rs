//! The tap: system calls between guest memory and the host's network. Everything unsafe of the
//! device is here.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::fs::OFlags;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
};

use super::header;
use crate::iovec::{IoVecs, retry};

/// What a tap of ours is (linux/if_tun.h): frames, each with a virtio header and nothing else.
const TAP_FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// A tap interface: a descriptor that gives or takes one frame, with its header, at a time.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    /// Tests stand a socket in for it, which has no offloads to set.
    is_tap: bool,
}

impl Tap {
    /// Takes over the descriptor of /dev/net/tun, attached to a tap with IFF_NO_PI and
    /// IFF_VNET_HDR, whose open file description nobody else uses. Fails if it is no such thing.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let tap = Self { fd, is_tap: true };
        // SAFETY: ifreq is plain integers and unions of them, for which zero is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: TUNGETIFF writes an ifreq, which `request` is.
        tap.ioctl(|fd| unsafe { libc::ioctl(fd, libc::TUNGETIFF, &raw mut request) })?;
        // SAFETY: TUNGETIFF has filled this member in.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        if flags & TAP_FLAGS != TAP_FLAGS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let len = header::LEN as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads an int.
        tap.ioctl(|fd| unsafe { libc::ioctl(fd, libc::TUNSETVNETHDRSZ, &raw const len) })?;
        rustix::fs::fcntl_setfl(&tap.fd, OFlags::RDWR | OFlags::NONBLOCK)?;
        Ok(tap)
    }

    /// A datagram socket in place of a tap.
    #[cfg(any(test, feature = "testing"))]
    pub fn socket(fd: OwnedFd) -> Self {
        Self { fd, is_tap: false }
    }

    /// Lets the host leave to the guest what its driver accepted: checksums, segmentation.
    pub(super) fn set_offloads(&self, features: u64) -> io::Result<()> {
        if !self.is_tap {
            return Ok(());
        }
        let offloads = offloads(features);
        // SAFETY: TUNSETOFFLOAD takes a number.
        self.ioctl(|fd| unsafe { libc::ioctl(fd, libc::TUNSETOFFLOAD, offloads) })
    }

    /// Receives one frame to `buffers` and returns its length; what there is no room for is lost.
    /// `WouldBlock` if there is none.
    pub(super) fn receive<const N: usize>(&self, buffers: &IoVecs<N>) -> io::Result<usize> {
        // SAFETY: `buffers` holds `count` buffers that are valid for writes; nobody holds references
        // to guest memory, so the kernel may write to it as the guest may.
        retry(|| unsafe { libc::readv(self.as_raw_fd(), buffers.as_ptr(), buffers.count()) })
    }

    /// Sends `buffers` as one frame. `WouldBlock` if the host takes no more for now.
    pub(super) fn send<const N: usize>(&self, buffers: &IoVecs<N>) -> io::Result<()> {
        // SAFETY: `buffers` holds `count` buffers that are valid for reads; racing guest writes
        // change what is sent, nothing else.
        retry(|| unsafe { libc::writev(self.as_raw_fd(), buffers.as_ptr(), buffers.count()) })
            .map(drop)
    }

    fn ioctl(&self, call: impl FnOnce(RawFd) -> libc::c_int) -> io::Result<()> {
        match call(self.fd.as_raw_fd()) {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// The interface is gone: its network namespace was, or it was deleted.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV))
}

/// `TUN_F_*` for the feature bits that the driver accepted. Without checksums there is nothing
/// else.
fn offloads(features: u64) -> libc::c_uint {
    if features & 1 << VIRTIO_NET_F_GUEST_CSUM == 0 {
        return 0;
    }
    [
        (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
        (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
        (VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
    ]
    .into_iter()
    .filter(|(feature, _)| features & 1 << feature != 0)
    .fold(libc::TUN_F_CSUM, |offloads, (_, offload)| offloads | offload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_are_what_was_accepted() {
        let tso4 = 1 << VIRTIO_NET_F_GUEST_TSO4;
        assert_eq!(offloads(0), 0);
        assert_eq!(offloads(tso4), 0);
        assert_eq!(offloads(tso4 | 1 << VIRTIO_NET_F_GUEST_CSUM), 3);
    }

    #[test]
    fn only_a_tap_is_a_tap() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(Tap::new(null.into()).is_err());
    }
}
