//! Where an interface's frames come from and go to.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use super::header::{self, TxHeader};
use super::stream::{LENGTH_LEN, Stream};
use super::tap::Tap;
use crate::iovec::IoVecs;

/// A tap, or a stream.
#[derive(Debug)]
pub enum Link {
    /// The host's kernel, which understands virtio headers.
    Tap(Tap),
    /// Another process, which gets plain frames.
    Stream(Stream),
}

/// What precedes a frame on its way out.
pub(super) struct Preamble {
    bytes: [u8; header::LEN],
    len: usize,
}

impl Preamble {
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl Link {
    /// Lets the host leave to the guest what its driver accepted.
    pub(super) fn set_offloads(&self, features: u64) -> io::Result<()> {
        match self {
            Self::Tap(tap) => tap.set_offloads(features),
            // Nothing was offered.
            Self::Stream(_) => Ok(()),
        }
    }

    /// What is to precede a frame of `len` bytes.
    pub(super) fn preamble(&self, header: TxHeader, len: usize) -> Preamble {
        match self {
            Self::Tap(_) => Preamble { bytes: header.bytes(), len: header::LEN },
            Self::Stream(_) => {
                let mut bytes = [0; header::LEN];
                bytes[..LENGTH_LEN].copy_from_slice(&(len as u32).to_be_bytes());
                Preamble { bytes, len: LENGTH_LEN }
            }
        }
    }

    /// Receives one frame, behind a virtio header, to `buffers` and returns the length of both; what
    /// there is no room for is lost. `WouldBlock` if there is none.
    pub(super) fn receive<const N: usize>(&mut self, buffers: &IoVecs<N>) -> io::Result<usize> {
        match self {
            Self::Tap(tap) => tap.receive(buffers),
            Self::Stream(stream) => stream.receive(buffers),
        }
    }

    /// Sends `buffers`, a preamble and a frame. `WouldBlock` if the host takes no more for now.
    pub(super) fn send<const N: usize>(&mut self, buffers: &IoVecs<N>) -> io::Result<()> {
        match self {
            Self::Tap(tap) => tap.send(buffers),
            Self::Stream(stream) => stream.send(buffers),
        }
    }

    /// Whether nothing that was taken from the guest still has to be sent, after an attempt to.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        match self {
            Self::Tap(_) => Ok(true),
            Self::Stream(stream) => stream.flush(),
        }
    }
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Tap(tap) => tap.as_raw_fd(),
            Self::Stream(stream) => stream.as_raw_fd(),
        }
    }
}
