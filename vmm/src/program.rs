//! How the programs of a start begin: without std's own beginning, which searches /proc/self/maps for the
//! end of the stack, to say a word about its overflow. The kernel's guard ends the process without that.

/// Does the rest of what std does before `main`: descriptors 0 to 2 are open, so that nothing else gets
/// their numbers, and writing to a pipe that nobody reads is an error, and no signal.
pub fn begin() {
    for fd in libc::STDIN_FILENO..=libc::STDERR_FILENO {
        // SAFETY: takes numbers and a constant string; opens the lowest number there is, which is `fd`.
        let open = unsafe {
            libc::fcntl(fd, libc::F_GETFD) >= 0
                || libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) == fd
        };
        if !open {
            std::process::abort();
        }
    }
    // SAFETY: no handler takes the place of another.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}
