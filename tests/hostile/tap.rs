//! A tap of the host's whose other end is the guest's.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

use rustix::io::FdFlags;

/// The interface's name, and the host's address and the guest's on it.
const NAME: &str = "bh-hostile";
const HOST: &str = "10.98.0.1/24";
pub const GUEST: &str = "10.98.0.2";

/// An interface that is up, and its descriptor, which children inherit.
pub struct Tap {
    file: File,
}

impl Tap {
    /// Makes it; it goes with its descriptor.
    pub fn new() -> Self {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .expect("taps can be made");
        // SAFETY: ifreq is plain integers and unions of them, for which zero is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(NAME.bytes()) {
            *to = from as libc::c_char;
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes an ifreq, which `request` is.
        let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        assert_eq!(made, 0, "a tap is made: {}", std::io::Error::last_os_error());
        rustix::io::fcntl_setfd(&file, FdFlags::empty()).expect("a descriptor of ours");
        for command in [
            format!("addr add {HOST} dev {NAME}"),
            format!("link set {NAME} up"),
            format!("neigh add {GUEST} lladdr 02:00:00:00:00:01 dev {NAME}"),
        ] {
            let status = Command::new("ip").args(command.split(' ')).status().expect("ip runs");
            assert!(status.success(), "ip {command}");
        }
        Self { file }
    }

    /// The member of a VM's spec that gives it this tap.
    pub fn spec(&self) -> String {
        format!(r#""nets":[{{"mac":[2,0,0,0,0,1],"link_fd":{}}}]"#, self.file.as_raw_fd())
    }

    /// A counter of the interface's: "rx_packets" are frames from the guest, "tx_bytes" bytes of
    /// frames that the monitor has taken for it.
    pub fn count(&self, counter: &str) -> u64 {
        let path = format!("/sys/class/net/{NAME}/statistics/{counter}");
        let text = fs::read_to_string(path).expect("the interface counts");
        text.trim().parse().expect("a number")
    }
}
