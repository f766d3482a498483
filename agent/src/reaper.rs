//! Ended children, and the signals that tell of them.

use std::os::fd::{FromRawFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions};

use crate::process::last_errno;

/// Blocks SIGCHLD, to be read from the returned fd instead (signalfd(2)), and SIGPIPE, so that a
/// write to a closed pipe is an error and nothing more.
pub fn signals() -> rustix::io::Result<OwnedFd> {
    // SAFETY: sigset_t is plain memory that sigemptyset initialises; the calls only read it.
    let fd = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        libc::sigaddset(&raw mut set, libc::SIGPIPE);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        fd
    };
    if fd < 0 {
        return Err(last_errno());
    }
    // SAFETY: signalfd returned this fd to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Forgets the signals that were waiting.
pub fn drain(signals: &OwnedFd) {
    let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
    while rustix::io::read(signals, &mut info).is_ok() {}
}

/// Takes one ended child: its PID and exit code, 128 + n for signal n.
pub fn next_ended() -> Option<(Pid, u8)> {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                let killed = status.terminating_signal().map(|signal| 128 + signal);
                let code = killed.or(status.exit_status());
                return Some((pid, code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255)));
            }
            Err(Errno::INTR) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}
