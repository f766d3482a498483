//! Bytes from the guest that the host has not taken yet.

use vm_memory::VolatileSlice;

use crate::virtio::buffers::Buffers;

/// A queue of bytes. Its owner bounds it: a connection takes no more from the guest than
/// [`super::caps::Caps::buffer_bytes`] beyond what has left it.
#[derive(Debug, Default)]
pub struct Backlog {
    bytes: Vec<u8>,
    /// Bytes before it have left.
    start: usize,
}

impl From<Vec<u8>> for Backlog {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, start: 0 }
    }
}

impl Backlog {
    /// Bytes waiting.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Nothing is waiting.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends all of `buffers`.
    pub fn push(&mut self, buffers: &mut Buffers) {
        // Move what is waiting to the front once the gap before it is the larger part, so that
        // each byte moves at most once on average.
        if self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        let end = self.bytes.len();
        self.bytes.resize(end + buffers.len(), 0);
        let read = buffers.read(&mut self.bytes[end..]);
        self.bytes.truncate(end + read);
    }

    /// A copy of what is waiting.
    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes[self.start..].to_vec()
    }

    /// What is waiting, for a write.
    pub fn slice(&mut self) -> VolatileSlice<'_> {
        VolatileSlice::from(&mut self.bytes[self.start..])
    }

    /// The first `count` bytes have left.
    pub fn consume(&mut self, count: usize) {
        self.start += count.min(self.len());
        if self.is_empty() {
            self.bytes.clear();
            self.start = 0;
        }
    }

    /// Drops all that is waiting, and returns how many bytes that was.
    pub fn clear(&mut self) -> usize {
        let dropped = self.len();
        *self = Self::default();
        dropped
    }
}
