//! A stream: frames to and from a network in another process, such as passt's, each behind its length
//! (4 bytes, big-endian: the framing of QEMU's `-netdev stream`).
//!
//! The peer is not trusted with more than frames: what has a length that no frame has ends the
//! connection, and no more is held of what it sent than two frames.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::header::{self, ETHERNET_LEN, FRAME_LEN_MAX};
use crate::iovec::{IoVecs, retry};

/// Bytes of the length before each frame.
pub const LENGTH_LEN: usize = 4;
/// The longest frame: what a guest can be given, and can send.
const FRAME_MAX: usize = FRAME_LEN_MAX - header::LEN;
/// Room for a frame that is not whole, and for as much of what follows.
const INCOMING_LEN: usize = 2 * (LENGTH_LEN + FRAME_MAX);

/// A connected Unix stream socket that frames go through.
#[derive(Debug)]
pub struct Stream {
    socket: OwnedFd,
    /// What the peer has sent and the guest has not got yet.
    incoming: Box<[u8]>,
    /// Where that is in `incoming`.
    start: usize,
    end: usize,
    /// What the socket has not taken of a frame that it has begun.
    outgoing: Vec<u8>,
}

/// The peer is gone, or sends what is no frames: as with a tap whose interface was deleted.
fn gone() -> io::Error {
    io::Error::from_raw_os_error(libc::ENODEV)
}

impl Stream {
    /// Takes over a connected stream socket, which is made non-blocking.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let incoming = vec![0; INCOMING_LEN].into();
        Ok(Self { socket, incoming, start: 0, end: 0, outgoing: Vec::new() })
    }

    /// Receives one frame, behind a virtio header that says nothing, to `buffers` and returns the
    /// length of both; what there is no room for is lost. `WouldBlock` if there is none.
    pub(super) fn receive<const N: usize>(&mut self, buffers: &IoVecs<N>) -> io::Result<usize> {
        let len = match self.frame_len()? {
            Some(len) => len,
            None => {
                // Once: the rest of a frame that is not whole yet is another event.
                self.fill()?;
                self.frame_len()?.ok_or(io::ErrorKind::WouldBlock)?
            }
        };
        let frame = self.start + LENGTH_LEN..self.start + LENGTH_LEN + len;
        self.start = frame.end;
        buffers.write_at(0, &[0; header::LEN]);
        buffers.write_at(header::LEN, &self.incoming[frame]);
        Ok(header::LEN + len)
    }

    /// The length of the first frame, if all of it is there.
    fn frame_len(&self) -> io::Result<Option<usize>> {
        let there = &self.incoming[self.start..self.end];
        let Some((length, rest)) = there.split_first_chunk::<LENGTH_LEN>() else { return Ok(None) };
        let len = u32::from_be_bytes(*length) as usize;
        match (ETHERNET_LEN..=FRAME_MAX).contains(&len) {
            true => Ok((rest.len() >= len).then_some(len)),
            false => Err(gone()),
        }
    }

    /// Reads what the socket has, behind what is there.
    fn fill(&mut self) -> io::Result<()> {
        self.incoming.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        // What is there is less than a frame, so there is room.
        let room = &mut self.incoming[self.end..];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.socket, &mut *room)) {
            Ok(0) => Err(gone()),
            Ok(len) => {
                self.end += len;
                Ok(())
            }
            Err(rustix::io::Errno::AGAIN) => Err(io::ErrorKind::WouldBlock.into()),
            Err(_) => Err(gone()),
        }
    }

    /// Sends `buffers`, a length and a frame. `WouldBlock` if the socket takes nothing for now; what
    /// it takes of a frame only in part is kept to follow.
    pub(super) fn send<const N: usize>(&mut self, buffers: &IoVecs<N>) -> io::Result<()> {
        if !self.flush()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // SAFETY: `buffers` holds `count` buffers that are valid for reads; racing guest writes
        // change what is sent, nothing else.
        let sent = retry(|| unsafe {
            libc::writev(self.socket.as_raw_fd(), buffers.as_ptr(), buffers.count())
        });
        match sent {
            Ok(len) => {
                self.outgoing = buffers.copy_from(len);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            Err(_) => Err(gone()),
        }
    }

    /// Sends what was kept; whether nothing is left of it.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        while !self.outgoing.is_empty() {
            match rustix::io::retry_on_intr(|| rustix::io::write(&self.socket, &self.outgoing)) {
                Ok(len) => drop(self.outgoing.drain(..len)),
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(_) => return Err(gone()),
            }
        }
        Ok(true)
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
