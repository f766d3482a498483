//! New processes by clone3(2).

use std::convert::Infallible;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::Errno;
use rustix::process::Pid;

/// Where a child starts its life.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place<'a> {
    /// New namespaces (CLONE_NEW* of clone(2)).
    pub namespaces: libc::c_int,
    /// The directory of its cgroup; the agent's own if there is none.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// Whose memory a child works in until it executes a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// A copy of its own, as after fork(2).
    Copied,
    /// The agent's, which stands still meanwhile, as after vfork(2). Saves copying it, some 140,000
    /// instructions, but what the child allocates is never freed.
    Shared,
}

/// `struct clone_args`' CLONE_INTO_CGROUP (linux/sched.h), which libc's c_int cannot hold.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Starts a child that runs `body`, which must not return: not even by a panic, which ends it.
pub fn clone<F: FnMut() -> Infallible>(
    place: Place<'_>,
    memory: Memory,
    mut body: F,
) -> rustix::io::Result<Pid> {
    /// Runs the closure; a panic cannot leave an `extern "C"` function alive.
    extern "C" fn run<F: FnMut() -> Infallible>(body: *mut F) -> ! {
        // SAFETY: `clone` passes a pointer to its `body`, which outlives the child's use of it:
        // copied memory has its own, and with shared memory `clone` does not return before.
        match unsafe { (*body)() } {}
    }

    // SAFETY: clone_args is plain integers, for which zero is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.exit_signal = libc::SIGCHLD as u64;
    args.flags = u64::from(place.namespaces.unsigned_abs());
    if memory == Memory::Shared {
        args.flags |= (libc::CLONE_VM | libc::CLONE_VFORK) as u64;
    }
    if let Some(cgroup) = place.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    let result: isize;
    // SAFETY: the child leaves this block by `run`, which does not return, so nothing is returned
    // from twice. It goes on below the agent's stack pointer: on a copy of the stack, or on the
    // agent's own, which then waits for it (CLONE_VFORK) and needs nothing below its pointer (no
    // `nostack`). The agent has one thread: no lock is held by a thread that the child lacks.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov rdi, r12",
            "and rsp, -16",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") &raw const args,
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") &raw mut body,
            in("r13") run::<F> as extern "C" fn(*mut F) -> !,
            out("rcx") _,
            out("r11") _,
        );
    }
    // A PID, or a negated errno (both fit: the kernel's PIDs are ints).
    match i32::try_from(result).unwrap_or(-libc::EIO) {
        errno if errno < 0 => Err(Errno::from_raw_os_error(-errno)),
        pid => Pid::from_raw(pid).ok_or(Errno::IO),
    }
}

/// Ends the child without running anything of the agent's.
pub fn exit(code: i32) -> ! {
    // SAFETY: _exit touches no memory.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{WaitOptions, waitpid};

    fn exit_code(pid: Pid) -> Option<i32> {
        waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap().1.exit_status()
    }

    #[test]
    fn shared_memory_shows_what_the_child_did_and_copied_memory_does_not() {
        for (memory, expected) in [(Memory::Shared, 7), (Memory::Copied, 0)] {
            let mut value = 0;
            let pid = clone(Place::default(), memory, || {
                value = 7;
                exit(3)
            })
            .unwrap();
            assert_eq!(exit_code(pid), Some(3));
            assert_eq!(value, expected, "{memory:?}");
        }
    }

    #[test]
    fn the_kernels_refusal_is_an_error() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let cgroup = Some(std::os::fd::AsFd::as_fd(&null));
        let place = Place { namespaces: 0, cgroup };
        assert_eq!(clone(place, Memory::Copied, || exit(0)), Err(Errno::BADF));
    }
}
