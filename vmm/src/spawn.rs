//! Runs this program again in a child process, in a PID namespace of its own if asked for.
//!
//! std's Command makes no namespaces, and to unshare(2) one before it would leave the VMM unable to
//! start threads. The child shares the parent's memory until it executes, as after vfork(2), so
//! that a large parent costs no more than a small one.

use std::ffi::{CString, c_char, c_int, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// More than the few system calls of [`child`] take.
const STACK_LEN: usize = 16 << 10;
/// What shells say of a program that cannot be executed.
const NOT_EXECUTED: c_int = 127;

/// What the child needs; prepared before, because it can allocate nothing.
struct Prepared {
    argv: Vec<*const c_char>,
    null: RawFd,
    inherited: Vec<RawFd>,
    /// errno of the step that failed.
    failed: c_int,
}

/// Executes this program with `arguments`, an empty environment, nothing on standard input and
/// output, and the descriptors `inherited`. Returns the child's pidfd.
pub fn again(
    arguments: &[String],
    inherited: &[OwnedFd],
    pid_namespace: bool,
) -> io::Result<OwnedFd> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let arguments: Vec<CString> = [c"bulkhead-vmm".to_owned()]
        .into_iter()
        .map(Ok)
        .chain(arguments.iter().map(|argument| CString::new(argument.as_str())))
        .collect::<Result<_, _>>()?;
    let argv = arguments.iter().map(|argument| argument.as_ptr()).chain([ptr::null()]).collect();
    let inherited = inherited.iter().map(AsRawFd::as_raw_fd).collect();
    let mut prepared = Prepared { argv, null: null.as_raw_fd(), inherited, failed: 0 };
    let mut stack = vec![0u128; STACK_LEN / size_of::<u128>()];
    let namespace = if pid_namespace { libc::CLONE_NEWPID } else { 0 };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD | namespace;
    let mut pidfd: c_int = -1;
    // SAFETY: the stack and `prepared` outlive the child's use of them, because CLONE_VFORK holds
    // this thread until the child has executed or ended; meanwhile nobody else touches them. The
    // stack grows down from its 16-byte aligned end.
    let pid = unsafe {
        let prepared = (&raw mut prepared).cast::<c_void>();
        let top = stack.as_mut_ptr_range().end.cast::<c_void>();
        libc::clone(child, top, flags, prepared, &raw mut pidfd)
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just handed this descriptor out and nothing else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    if prepared.failed != 0 {
        let id = rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&pidfd));
        let _ = rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED);
        return Err(io::Error::from_raw_os_error(prepared.failed));
    }
    Ok(pidfd)
}

/// The child: its descriptors are its own, its memory is the parent's.
extern "C" fn child(prepared: *mut c_void) -> c_int {
    // SAFETY: `again` passes a `Prepared` that nobody else uses until this process has executed
    // or ended. The calls allocate nothing and take no lock; argv ends with a null pointer.
    unsafe {
        let prepared = &mut *prepared.cast::<Prepared>();
        let stdio = [libc::STDIN_FILENO, libc::STDOUT_FILENO];
        let ready = stdio.iter().all(|fd| libc::dup2(prepared.null, *fd) >= 0)
            && prepared.inherited.iter().all(|fd| libc::fcntl(*fd, libc::F_SETFD, 0) >= 0);
        if ready {
            let environment = [ptr::null::<c_char>()];
            libc::execve(c"/proc/self/exe".as_ptr(), prepared.argv.as_ptr(), environment.as_ptr());
        }
        prepared.failed = *libc::__errno_location();
        libc::_exit(NOT_EXECUTED)
    }
}
