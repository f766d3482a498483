//! Guest buffers in the form of system calls: readv(2), writev(2), recvmsg(2), sendmsg(2).

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use vm_memory::VolatileSlice;

/// Up to `N` buffers, all valid for reads and writes as long as `'m` lasts.
pub(crate) struct IoVecs<'m, const N: usize> {
    entries: [MaybeUninit<libc::iovec>; N],
    count: usize,
    bytes: usize,
    _buffers: PhantomData<VolatileSlice<'m>>,
}

impl<'m, const N: usize> IoVecs<'m, N> {
    /// No buffers.
    pub(crate) fn new() -> Self {
        let entries = [MaybeUninit::uninit(); N];
        Self { entries, count: 0, bytes: 0, _buffers: PhantomData }
    }

    /// Adds the first `limit` bytes of `slices`; false if there is not room for all of them.
    pub(crate) fn push(&mut self, slices: &[VolatileSlice<'m>], mut limit: usize) -> bool {
        for slice in slices {
            if limit == 0 {
                break;
            }
            let Some(entry) = self.entries.get_mut(self.count) else { return false };
            let iov_len = slice.len().min(limit);
            entry.write(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len });
            limit -= iov_len;
            self.count += 1;
            self.bytes += iov_len;
        }
        true
    }

    /// How many bytes the buffers hold together.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The first buffer.
    pub(crate) fn as_ptr(&self) -> *const libc::iovec {
        self.entries.as_ptr().cast()
    }

    /// How many buffers there are.
    pub(crate) fn count(&self) -> i32 {
        self.count as i32
    }

    /// Copies `bytes` to the buffers from their byte `at` on, as far as there is room.
    pub(crate) fn write_at(&self, at: usize, mut bytes: &[u8]) {
        for (to, len) in self.parts(at) {
            let (now, later) = bytes.split_at(len.min(bytes.len()));
            // SAFETY: `to` is valid for writes of `len` bytes, and `bytes` lies elsewhere; nobody
            // holds references to the buffers, which the guest may write to meanwhile.
            unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), to, now.len()) };
            bytes = later;
        }
    }

    /// A copy of what the buffers hold from their byte `at` on.
    pub(crate) fn copy_from(&self, at: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes.saturating_sub(at)];
        let mut done = 0;
        for (from, len) in self.parts(at) {
            // SAFETY: `from` is valid for reads of `len` bytes, and the parts have as many bytes
            // together as `bytes`, which lies elsewhere. What the guest writes meanwhile is its own.
            unsafe { std::ptr::copy_nonoverlapping(from, bytes[done..].as_mut_ptr(), len) };
            done += len;
        }
        bytes
    }

    /// Address and length of what there is of each buffer behind the first `skip` bytes of all.
    fn parts(&self, mut skip: usize) -> impl Iterator<Item = (*mut u8, usize)> {
        // SAFETY: the first `count` entries were written.
        let entries = unsafe {
            std::slice::from_raw_parts(self.entries.as_ptr().cast::<libc::iovec>(), self.count)
        };
        entries.iter().map(move |entry| {
            let skipped = skip.min(entry.iov_len);
            skip -= skipped;
            (entry.iov_base.cast::<u8>().wrapping_add(skipped), entry.iov_len - skipped)
        })
    }

    /// A message of these buffers, valid as long as they are.
    pub(crate) fn message(&mut self) -> libc::msghdr {
        // SAFETY: a msghdr of zeros is one without name, buffers and control data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.entries.as_mut_ptr().cast();
        message.msg_iovlen = self.count as _;
        message
    }
}

/// Repeats a call that a signal interrupted.
pub(crate) fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
