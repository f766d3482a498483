//! System calls between guest memory and the socket: bytes go straight from one to the other.
//! Everything unsafe of the device is here.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use vm_memory::GuestMemoryBackend;

use super::request::{Segment, rest};
use crate::GuestMemory;
use crate::iovec::retry;

/// The most buffers of one system call: a readahead of 128 KiB, page by page, and then some. What
/// is left over is for the next call.
const BUFFERS_MAX: usize = 64;

/// The most files that go with a message.
pub const FILES_MAX: usize = 128;

const FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Buffers of one system call: guest memory, or bytes, that live for `'m`.
struct Vectors<'m> {
    entries: [libc::iovec; BUFFERS_MAX],
    count: usize,
    /// How many bytes more are wanted.
    room: usize,
    _borrows: std::marker::PhantomData<&'m [u8]>,
}

/// Sends both parts of `front`, then what follows after the first `skip` bytes of `segments`, as much as the
/// socket takes at once; returns how many bytes. `WouldBlock` if it takes none.
pub fn send(
    socket: &OwnedFd,
    front: [&[u8]; 2],
    memory: &GuestMemory,
    segments: &[Segment],
    skip: usize,
) -> io::Result<usize> {
    let mut vectors = Vectors::new(usize::MAX);
    front.iter().for_each(|part| vectors.push_bytes(part));
    vectors.push_guest(memory, segments, skip);
    let message = vectors.message();
    retry(|| {
        // SAFETY: `vectors` holds valid pointers, as `Vectors` keeps, that the kernel reads from;
        // racing guest writes change what is sent, nothing else.
        unsafe { libc::sendmsg(socket.as_raw_fd(), &message, FLAGS) }
    })
}

/// Receives up to `len` bytes to after the first `skip` bytes of `segments`; returns how many. 0 if
/// the other side has closed, `WouldBlock` if nothing is there.
pub fn receive(
    socket: &OwnedFd,
    memory: &GuestMemory,
    segments: &[Segment],
    skip: usize,
    len: usize,
) -> io::Result<usize> {
    let mut vectors = Vectors::new(len);
    vectors.push_guest(memory, segments, skip);
    let mut message = vectors.message();
    retry(|| {
        // SAFETY: `vectors` holds valid pointers to guest memory, as `Vectors` keeps; nobody holds
        // references to guest memory, so the kernel may write to it as the guest may.
        unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, FLAGS) }
    })
}

/// Sends `bytes`, as [`send`] does.
pub fn send_bytes(socket: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    retry(|| {
        // SAFETY: the kernel reads `bytes.len()` bytes from `bytes`.
        unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), FLAGS) }
    })
}

/// The same, with up to [`FILES_MAX`] `files` that come along if anything is sent.
pub fn send_files(socket: &OwnedFd, bytes: &[u8], files: &[OwnedFd]) -> io::Result<usize> {
    let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let parts = [IoSlice::new(bytes)];
    Ok(retry_on_intr(|| sendmsg(socket, &parts, &mut control, flags))?)
}

/// Receives to `bytes`, as [`receive`] does, and files that come along.
pub fn receive_bytes(
    socket: &OwnedFd,
    bytes: &mut [u8],
    files: &mut impl Extend<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut to = [IoSliceMut::new(bytes)];
    let received = retry_on_intr(|| recvmsg(socket, &mut to, &mut control, flags))?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            files.extend(rights);
        }
    }
    Ok(received.bytes)
}

impl<'m> Vectors<'m> {
    fn new(room: usize) -> Self {
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let _borrows = std::marker::PhantomData;
        Self { entries: [empty; BUFFERS_MAX], count: 0, room, _borrows }
    }

    /// Adds guest memory after the first `skip` bytes of `segments`, as much as there is room for.
    fn push_guest(&mut self, memory: &'m GuestMemory, segments: &[Segment], skip: usize) {
        for segment in rest(segments, skip) {
            for slice in memory.get_slices(segment.address, segment.len) {
                // The segment was found to lie in guest memory, which does not shrink.
                let Ok(slice) = slice else { return };
                let guard = slice.ptr_guard_mut();
                if !self.push(guard.as_ptr(), slice.len()) {
                    return;
                }
            }
        }
    }

    /// Adds bytes, which are only ever read.
    fn push_bytes(&mut self, bytes: &'m [u8]) {
        self.push(bytes.as_ptr().cast_mut(), bytes.len());
    }

    /// Adds a buffer that lives for `'m`; false if there is no room for more after it. Buffers side
    /// by side become one, as pages that the guest allocated together are.
    fn push(&mut self, start: *mut u8, len: usize) -> bool {
        let len = len.min(self.room);
        if len == 0 {
            return self.room > 0;
        }
        if let Some(last) = self.count.checked_sub(1).map(|last| &mut self.entries[last])
            && last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == start
        {
            last.iov_len += len;
        } else if let Some(entry) = self.entries.get_mut(self.count) {
            *entry = libc::iovec { iov_base: start.cast(), iov_len: len };
            self.count += 1;
        } else {
            return false;
        }
        self.room -= len;
        self.room > 0
    }

    fn message(&mut self) -> libc::msghdr {
        // SAFETY: all zeros is a message header: null pointers with zero lengths.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.entries.as_mut_ptr();
        message.msg_iovlen = self.count as _;
        message
    }
}
