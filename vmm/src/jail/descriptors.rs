//! What a process inherits besides its memory: descriptors and the environment.

use std::ffi::c_char;
use std::io;
use std::os::fd::RawFd;

/// Closes every descriptor above standard error that is not in `kept`; those the worker does not inherit.
pub fn close_all_but(kept: impl IntoIterator<Item = RawFd>) -> io::Result<()> {
    let mut first = libc::STDERR_FILENO as u32 + 1;
    let mut kept: Vec<u32> = kept.into_iter().filter_map(|fd| u32::try_from(fd).ok()).collect();
    kept.retain(|fd| *fd >= first);
    kept.sort_unstable();
    kept.dedup();
    for fd in kept {
        if fd > first {
            close_range(first, fd - 1, 0)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX, 0)?;
    close_range(libc::STDERR_FILENO as u32 + 1, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: the descriptors were inherited and are in nobody's list: nothing in this process
    // knows of them.
    match unsafe { libc::close_range(first, last, flags as i32) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Overwrites the environment where /proc/PID/environ would show it, and empties it.
///
/// # Safety
/// No other thread may run, and nobody may hold a pointer into the environment.
pub unsafe fn wipe_environment() {
    unsafe extern "C" {
        static mut environ: *mut *mut c_char;
    }
    // SAFETY: `environ` is an array of NUL-terminated strings that ends with a null pointer, or
    // null itself; the caller vouches that nobody else looks at it. The kernel made the strings
    // writable, and so did setenv(3).
    unsafe {
        let mut variable = environ;
        while !variable.is_null() && !(*variable).is_null() {
            let text = *variable;
            text.write_bytes(0, libc::strlen(text));
            *variable = std::ptr::null_mut();
            variable = variable.add(1);
        }
    }
}
