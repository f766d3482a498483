//! A thread's buffers: large, and costing memory only where they were written.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::ServeError;

/// Bytes at the front that [`Buffer::release`] keeps: enough for every request and reply that
/// carries no file data.
const KEPT: usize = 16 << 10;

/// Anonymous memory, zeroed, its pages allocated when first written.
#[derive(Debug)]
pub struct Buffer {
    start: NonNull<u8>,
    len: usize,
    /// Bytes that may have pages behind them.
    used: usize,
}

// SAFETY: a `Buffer` owns its mapping alone, as a `Box<[u8]>` would.
unsafe impl Send for Buffer {}

impl Buffer {
    /// Maps `len` bytes.
    pub fn new(len: usize) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Buffer { len, source };
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), len, protection, flags) }
            .map_err(failed)?;
        let start = NonNull::new(start.cast()).ok_or(failed(rustix::io::Errno::NOMEM))?;
        Ok(Self { start, len, used: 0 })
    }

    /// Notes that the first `len` bytes have been in use.
    pub fn touch(&mut self, len: usize) {
        self.used = self.used.max(len);
    }

    /// Whether [`Self::release`] would give anything back.
    pub fn is_large(&self) -> bool {
        self.used > KEPT
    }

    /// Gives the pages behind the first [`KEPT`] bytes back; they read as zero again.
    pub fn release(&mut self) {
        if !self.is_large() {
            return;
        }
        // SAFETY: the range lies within the mapping, which begins on a page as KEPT ends on one,
        // and `&mut self` keeps everyone from looking.
        let given_back = unsafe {
            let from = self.start.as_ptr().add(KEPT);
            madvise(from.cast(), self.len - KEPT, Advice::LinuxDontNeed)
        };
        if given_back.is_ok() {
            self.used = KEPT;
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start..start + len` is mapped, initialised (zero) and owned by self.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the mapping is self's own, and nobody borrows from a value being dropped.
        // A failure leaves memory mapped, which is all that can be done about it.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_keeps_the_front_and_zeroes_the_rest() {
        let mut buffer = Buffer::new(1 << 20).unwrap();
        buffer.fill(7);
        buffer.touch(1 << 20);
        assert!(buffer.is_large());
        buffer.release();
        assert!(!buffer.is_large());
        assert!(buffer[..KEPT].iter().all(|&byte| byte == 7));
        assert!(buffer[KEPT..].iter().all(|&byte| byte == 0));
    }
}
