//! A VMM that is part of the process that started it.

use std::io;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use crate::signals::PASSED_ON;

/// Lets this process die with its parent, which has the ID `parent`, and leaves to that one the signals
/// that a terminal or a process group sends to both. (A process group of its own would keep them away
/// as well, but could not read the terminal.) The parent blocks them until it can serve them, so that
/// none comes too early.
pub fn die_with(parent: u32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // Had it died before that, nobody would be told.
    if getppid().is_none_or(|ours| ours.as_raw_nonzero().get() as u32 != parent) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    for signal in PASSED_ON {
        // SAFETY: no handler takes the place of another.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a child ends that does as `act` says.
    fn child(act: impl FnOnce() -> i32) -> i32 {
        // SAFETY: the child makes system calls alone, and ends without returning.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::_exit(act());
            }
            let mut status = 0;
            libc::waitpid(child, &raw mut status, 0);
            status
        }
    }

    #[test]
    fn a_parent_s_signals_do_not_reach_its_vmm() {
        let parent = std::process::id();
        let status = child(|| {
            let done = die_with(parent).is_ok();
            // SAFETY: takes a number.
            PASSED_ON.iter().for_each(|signal| unsafe { _ = libc::raise(*signal) });
            if done { 7 } else { 1 }
        });
        assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, 7));
    }

    #[test]
    fn an_orphan_does_not_begin() {
        let status = child(|| die_with(u32::MAX).is_err() as i32);
        assert_eq!(libc::WEXITSTATUS(status), 1);
    }
}
