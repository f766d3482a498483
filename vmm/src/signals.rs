//! Signals that are passed on to the container, as a descriptor to read them from.

use std::fs::File;
use std::io::{self, Read};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};
use std::ptr;

/// What is passed on to the container's process.
pub const PASSED_ON: [i32; 6] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2];

const RECORD: usize = size_of::<libc::signalfd_siginfo>();
/// Signals read at once; more wait for the next read.
const RECORDS_MAX: usize = 8;

/// Those of [`PASSED_ON`] that were not ignored when we started (as nohup(1) and shells in the
/// background want them to be), and SIGWINCH, blocked and readable. Threads started later block them
/// too.
#[derive(Debug)]
pub struct Signals(File);

impl Signals {
    /// Blocks the signals, to be read from now on.
    pub fn block() -> io::Result<Self> {
        let wanted = PASSED_ON.into_iter().filter(|signal| !is_ignored(*signal));
        let set = set(wanted.chain([libc::SIGWINCH]));
        // SAFETY: `set` is initialised, and nobody wants to know the old mask.
        let blocked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) };
        if blocked != 0 {
            return Err(io::Error::from_raw_os_error(blocked));
        }
        // SAFETY: `set` is initialised; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just handed this descriptor out and nothing else owns it.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// The signals that have arrived.
    pub fn read(&self) -> io::Result<Vec<i32>> {
        let mut records = [0; RECORD * RECORDS_MAX];
        match (&self.0).read(&mut records) {
            // `ssi_signo` is the first field of a record, a u32.
            Ok(length) => Ok(records[..length]
                .chunks_exact(RECORD)
                .map(|record| i32::from_ne_bytes([record[0], record[1], record[2], record[3]]))
                .collect()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call only fills the old one in.
    let asked = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all zeros are a valid action too, should the call have failed.
    asked == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

fn set(signals: impl Iterator<Item = i32>) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in signals {
        // SAFETY: the set is initialised; a number that is no signal would only be refused.
        unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    }
    // SAFETY: initialised above.
    unsafe { set.assume_init() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_is_read() {
        let signals = Signals::block().unwrap();
        assert_eq!(signals.read().unwrap(), [0; 0]);
        // SAFETY: raises a signal that this thread has just blocked.
        unsafe { libc::raise(libc::SIGUSR1) };
        assert_eq!(signals.read().unwrap(), [libc::SIGUSR1]);
        assert_eq!(signals.read().unwrap(), [0; 0]);
    }

    #[test]
    fn an_ignored_signal_stays_ignored() {
        // SAFETY: no handler is installed, and no other test wants this signal.
        unsafe { libc::signal(libc::SIGUSR2, libc::SIG_IGN) };
        let signals = Signals::block().unwrap();
        // SAFETY: the signal is ignored.
        unsafe { libc::raise(libc::SIGUSR2) };
        assert_eq!(signals.read().unwrap(), [0; 0]);
    }
}
