//! The driver's half of a split virtqueue (virtio 1.3, 2.7).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY};
use vm_memory::{Bytes, GuestAddress};

use crate::GuestMemory;

/// The most bytes of one descriptor's own buffer.
pub const SEGMENT_MAX: u64 = 128 << 10;

/// A chain the device has used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// Index of the chain's first descriptor.
    pub head: u16,
    /// What the device says it wrote, in bytes.
    pub len: u32,
    /// The first `len` bytes of the chain's writable buffers.
    pub bytes: Vec<u8>,
}

/// One virtqueue, with a buffer of [`SEGMENT_MAX`] bytes for each descriptor.
pub struct DriverQueue {
    memory: Arc<GuestMemory>,
    start: u64,
    size: u16,
    event_idx: bool,
    avail_index: u16,
    kicked_index: u16,
    used_index: u16,
    free: Vec<u16>,
    /// By head.
    posted: HashMap<u16, Posted>,
}

/// A chain the device holds.
#[derive(Default)]
struct Posted {
    descriptors: Vec<u16>,
    /// Address and length of its writable buffers.
    writable: Vec<(u64, u32)>,
}

impl DriverQueue {
    pub(super) fn footprint(size: u16) -> u64 {
        u64::from(size) * (SEGMENT_MAX + 32) + 0x2000
    }

    pub(super) fn new(memory: Arc<GuestMemory>, start: u64, size: u16) -> Self {
        let mut queue = Self {
            memory,
            start,
            size,
            event_idx: false,
            avail_index: 0,
            kicked_index: 0,
            used_index: 0,
            free: Vec::new(),
            posted: HashMap::new(),
        };
        queue.reset();
        queue
    }

    pub(super) fn reset(&mut self) {
        let [desc, _, used] = self.addresses();
        let rings = used + 8 + 8 * u64::from(self.size) - desc;
        self.memory.write_slice(&vec![0; rings as usize], GuestAddress(desc)).unwrap();
        self.free = (0..self.size).rev().collect();
        self.posted.clear();
        (self.avail_index, self.kicked_index, self.used_index) = (0, 0, 0);
    }

    pub(super) fn set_event_idx(&mut self, event_idx: bool) {
        self.event_idx = event_idx;
    }

    /// Addresses of descriptor table, available ring and used ring.
    pub fn addresses(&self) -> [u64; 3] {
        let size = u64::from(self.size);
        let avail = self.start + 16 * size;
        let used = (avail + 6 + 2 * size).next_multiple_of(4);
        [self.start, avail, used]
    }

    pub fn size(&self) -> u16 {
        self.size
    }

    /// Address of descriptor `index`'s own buffer.
    pub fn buffer(&self, index: u16) -> u64 {
        let rings = u64::from(self.size) * 32 + 0x1000;
        (self.start + rings).next_multiple_of(0x1000) + u64::from(index) * SEGMENT_MAX
    }

    /// How many descriptors are free.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Makes a chain available: readable buffers with the bytes given, then writable ones of the
    /// lengths given. Returns its head.
    pub fn post(&mut self, readable: &[&[u8]], writable: &[u32]) -> u16 {
        let count = readable.len() + writable.len();
        let chain: Vec<u16> =
            (0..count).map(|_| self.free.pop().expect("a free descriptor")).collect();
        let next = |i: usize| chain.get(i + 1).copied();
        for (i, bytes) in readable.iter().enumerate() {
            let buffer = self.buffer(chain[i]);
            assert!(bytes.len() as u64 <= SEGMENT_MAX);
            self.memory.write_slice(bytes, GuestAddress(buffer)).unwrap();
            self.link(chain[i], buffer, bytes.len() as u32, 0, next(i));
        }
        let mut buffers = Vec::new();
        for (i, len) in (readable.len()..).zip(writable) {
            let buffer = self.buffer(chain[i]);
            assert!(u64::from(*len) <= SEGMENT_MAX);
            self.link(chain[i], buffer, *len, VRING_DESC_F_WRITE as u16, next(i));
            buffers.push((buffer, *len));
        }
        let head = chain[0];
        self.posted.insert(head, Posted { descriptors: chain, writable: buffers });
        self.publish(head);
        head
    }

    fn link(&self, index: u16, address: u64, len: u32, flags: u16, next: Option<u16>) {
        let flags = flags | next.map_or(0, |_| VRING_DESC_F_NEXT as u16);
        self.write_descriptor(index, address, len, flags, next.unwrap_or(0));
    }

    /// Writes a raw descriptor into the table, however wrong it is.
    pub fn write_descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let table = GuestAddress(self.start);
        let at = GuestAddress(table.0 + 16 * u64::from(index));
        self.memory.write_slice(&raw_descriptor(address, len, flags, next), at).unwrap();
    }

    /// Puts `head` into the available ring, however wrong it is.
    pub fn publish(&mut self, head: u16) {
        let [_, avail, _] = self.addresses();
        let slot = avail + 4 + 2 * u64::from(self.avail_index % self.size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.avail_index = self.avail_index.wrapping_add(1);
        self.set_avail_index(self.avail_index);
    }

    /// Writes the available ring's index, however wrong it is.
    pub fn set_avail_index(&mut self, index: u16) {
        let [_, avail, _] = self.addresses();
        self.avail_index = index;
        self.memory.store(index, GuestAddress(avail + 2), Ordering::SeqCst).unwrap();
    }

    /// The device wants a notification for what was made available since the last call.
    pub fn wants_kick(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let [_, _, used] = self.addresses();
        let old = std::mem::replace(&mut self.kicked_index, self.avail_index);
        if self.event_idx {
            let event: u16 = self.load(used + 4 + 8 * u64::from(self.size));
            let new = self.avail_index;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            let flags: u16 = self.load(used);
            flags & VRING_USED_F_NO_NOTIFY as u16 == 0
        }
    }

    /// There is a used chain to take.
    pub fn has_used(&self) -> bool {
        let [_, _, used] = self.addresses();
        self.load(used + 2) != self.used_index
    }

    /// Takes the next used chain, and asks for an interrupt for the one after it.
    pub fn take_used(&mut self) -> Option<Used> {
        let [_, avail, used] = self.addresses();
        if !self.has_used() {
            return None;
        }
        let element = used + 4 + 8 * u64::from(self.used_index % self.size);
        let head = self.memory.read_obj::<u32>(GuestAddress(element)).unwrap() as u16;
        let len = self.memory.read_obj::<u32>(GuestAddress(element + 4)).unwrap();
        self.used_index = self.used_index.wrapping_add(1);
        let used_event = avail + 4 + 2 * u64::from(self.size);
        self.memory.store(self.used_index, GuestAddress(used_event), Ordering::SeqCst).unwrap();

        let posted = self.posted.remove(&head).unwrap_or_default();
        self.free.extend(posted.descriptors.iter().rev());
        let mut bytes = Vec::new();
        for (address, segment) in posted.writable {
            let take = (len as usize - bytes.len()).min(segment as usize);
            let at = bytes.len();
            bytes.resize(at + take, 0);
            self.memory.read_slice(&mut bytes[at..], GuestAddress(address)).unwrap();
        }
        Some(Used { head, len, bytes })
    }

    /// Chains the device holds.
    pub fn outstanding(&self) -> usize {
        self.posted.len()
    }

    fn load(&self, address: u64) -> u16 {
        self.memory.load(GuestAddress(address), Ordering::SeqCst).unwrap()
    }
}

/// A split-ring descriptor as it is in memory: for indirect tables, however wrong they are.
pub fn raw_descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}
