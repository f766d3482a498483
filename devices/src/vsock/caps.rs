//! How much of the host's a guest may hold by its connections.

use std::ops::RangeInclusive;

/// Connections at a time: each may hold two descriptors and a buffer.
pub const CONNECTIONS: RangeInclusive<u32> = 8..=1024;
/// Bytes of a connection's buffer: a page at least; Linux takes its own to be 256 KiB.
pub const BUFFER_BYTES: RangeInclusive<u32> = 4 << 10..=1 << 20;

/// What a guest's connections may come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// The most connections at a time, one of [`CONNECTIONS`]. A container takes five, and up to four
    /// for each call of `exec`. What comes on top is refused if the guest asks for it, and waits if
    /// a host program does.
    pub connections: u32,
    /// The most bytes from the guest that wait in a connection for the host, one of
    /// [`BUFFER_BYTES`].
    pub buffer_bytes: u32,
}

impl Default for Caps {
    /// 256 connections of 256 KiB: 64 MiB and 512 descriptors. Linux sends packets of up to 64 KiB:
    /// a buffer like this lets it fill a pipe and have as much again under way.
    fn default() -> Self {
        Self { connections: 256, buffer_bytes: 256 << 10 }
    }
}

impl Caps {
    /// Both are in their ranges.
    pub fn are_possible(&self) -> bool {
        CONNECTIONS.contains(&self.connections) && BUFFER_BYTES.contains(&self.buffer_bytes)
    }

    /// The most memory that the connections' buffers take, bytes: a buffer's vector may be twice as
    /// long as what waits in it, and have room for twice as much.
    pub fn memory_max(&self) -> u64 {
        4 * u64::from(self.connections) * u64::from(self.buffer_bytes)
    }
}
