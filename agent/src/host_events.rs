//! Events of the VMM's process, as they come from the host.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bulkhead_protocol::HostEvent;
use rustix::io::Errno;

/// The connection they come by.
#[derive(Debug)]
pub struct HostEvents {
    socket: OwnedFd,
    record: [u8; HostEvent::LEN],
    /// How much of `record` has arrived.
    length: usize,
}

/// No more events will come.
#[derive(Debug)]
pub struct Closed;

impl HostEvents {
    /// Reads from a non-blocking socket, which may still be connecting.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, record: [0; HostEvent::LEN], length: 0 }
    }

    /// The next event that means something here; `None` when none is there yet.
    pub fn next(&mut self) -> Result<Option<HostEvent>, Closed> {
        loop {
            match rustix::io::read(&self.socket, &mut self.record[self.length..]) {
                Ok(0) => return Err(Closed),
                Ok(length) => self.length += length,
                Err(Errno::INTR) => continue,
                // NOTCONN: until it is connected.
                Err(Errno::AGAIN | Errno::NOTCONN) => return Ok(None),
                Err(_) => return Err(Closed),
            }
            if self.length == HostEvent::LEN {
                self.length = 0;
                if let Some(event) = HostEvent::from_bytes(self.record) {
                    return Ok(Some(event));
                }
            }
        }
    }
}

impl AsFd for HostEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
