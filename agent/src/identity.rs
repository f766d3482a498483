//! What makes this VM itself, asked for when it may have been saved: fresh randomness and the wall
//! clock.
//!
//! A VM that goes on from a template or another snapshot wakes up right behind the
//! [`BootMark::Waiting`] of the agent, with the random state that was saved. Nothing may be drawn from it before it is mixed with what
//! the VMM gives to this VM alone: hence one fd opened in advance, a few words read from a port, two
//! ioctls, and only then anything else.

use std::os::fd::{AsRawFd as _, OwnedFd};

use bulkhead_protocol::{BootMark, GuestInfo};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::time::{ClockId, Timespec};

use crate::boot_mark::BootMarks;
use crate::log::log;
use crate::process::last_errno;

const RANDOM: &str = "/dev/urandom";
/// RNDADDENTROPY and RNDRESEEDCRNG (linux/random.h).
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
const SECOND_NS: u64 = 1_000_000_000;

/// `struct rand_pool_info` with its buffer.
#[repr(C)]
struct Entropy {
    bits: libc::c_int,
    len: libc::c_int,
    bytes: [u8; GuestInfo::SEED_LEN],
}

/// Who the VM is from now on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity {
    /// It knows what time it is.
    pub clock_is_set: bool,
    /// It goes on from a snapshot that was taken at this mark.
    pub restored: bool,
}

/// Says that the agent waits, and takes over who it is from then on. Outside of a VM of ours nothing
/// happens.
pub fn assume(marks: BootMarks) -> Identity {
    if !marks.are_enabled() {
        return Identity::default();
    }
    let random = open_random();
    marks.stamp(BootMark::Waiting);
    // From here on this may be one of many clones.
    let Some(info) = marks.read_info() else { return Identity::default() };
    let reseeded = match (&random, info.seed) {
        (Ok(random), Some(seed)) => reseed(random, seed),
        (Err(error), _) => Err(*error),
        (_, None) => Err(rustix::io::Errno::NODATA),
    };
    if let Err(error) = reseeded {
        // A clone's random numbers would be another's.
        panic!("cannot make random numbers this VM's own: {error}");
    }
    let (seconds, ns) = (info.realtime_ns / SECOND_NS, info.realtime_ns % SECOND_NS);
    let now = Timespec { tv_sec: seconds as i64, tv_nsec: ns as i64 };
    let set = rustix::time::clock_settime(ClockId::Realtime, now);
    if let Err(error) = &set {
        log!("cannot set the clock: {error}");
    }
    Identity { clock_is_set: set.is_ok(), restored: info.restored }
}

/// The device, made if this is a bare initramfs.
fn open_random() -> rustix::io::Result<OwnedFd> {
    let device = rustix::fs::makedev(1, 9);
    let _ = rustix::fs::mknodat(CWD, RANDOM, FileType::CharacterDevice, Mode::RUSR, device);
    rustix::fs::open(RANDOM, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Mixes `seed` in, and has the kernel start all its generators anew from the pool.
fn reseed(random: &OwnedFd, seed: [u8; GuestInfo::SEED_LEN]) -> rustix::io::Result<()> {
    let len = GuestInfo::SEED_LEN as libc::c_int;
    let entropy = Entropy { bits: 8 * len, len, bytes: seed };
    // SAFETY: RNDADDENTROPY reads a rand_pool_info followed by `len` bytes, which `entropy` is.
    check(unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &raw const entropy) })?;
    // SAFETY: RNDRESEEDCRNG takes no argument.
    check(unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) })
}

fn check(result: libc::c_int) -> rustix::io::Result<()> {
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}
