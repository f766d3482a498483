//! The socket as requests are read from it, with the descriptors that come along (SCM_RIGHTS, unix(7)).

use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::shares::SHARES_MAX;

/// The end that requests come from. A descriptor is here no later than the request it came with.
#[derive(Debug)]
pub struct Incoming<'s> {
    socket: &'s UnixStream,
    files: Vec<OwnedFd>,
}

impl<'s> Incoming<'s> {
    /// Reads from `socket`.
    pub fn new(socket: &'s UnixStream) -> Self {
        Self { socket, files: Vec::new() }
    }

    /// The descriptors that came since the last call, but for those above [`SHARES_MAX`], which were closed.
    pub fn take_files(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.files)
    }
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SHARES_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffers = [IoSliceMut::new(buffer)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(self.socket, &mut buffers, &mut control, flags)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                self.files.extend(files);
            }
        }
        self.files.truncate(SHARES_MAX);
        Ok(received.bytes)
    }
}
