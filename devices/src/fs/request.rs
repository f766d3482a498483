//! A request: a descriptor chain, taken apart and checked.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::mapping::{Mapping, SETUP_MAPPING};
use super::window::SLOT_LEN;
use super::wire::{
    COPY_FILE_RANGE, COPY_LEN, COPY_MAX, HEADER_LEN_IN, HEADER_LEN_OUT, InHeader, MESSAGE_MAX,
    OutHeader,
};
use crate::GuestMemory;

/// A guest buffer: within guest memory, and not empty.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Where it begins.
    pub address: GuestAddress,
    /// Its length, bytes.
    pub len: usize,
}

/// A request of the guest. What it says of itself was read once and is not read again.
#[derive(Debug)]
pub struct Request {
    /// The index of the queue it came from.
    pub queue: usize,
    /// Its chain's head.
    pub head: u16,
    /// Its header, with the guest's number until [`super::slots::Slots`] gives it another.
    pub header: InHeader,
    /// The guest's number.
    pub unique: u64,
    /// The request, header included.
    pub readable: Vec<Segment>,
    /// The body of a COPY_FILE_RANGE: sent as it was read, the once, for it is charged for what it says.
    pub copy: Option<Box<[u8; COPY_LEN]>>,
    /// Room for the reply.
    pub writable: Vec<Segment>,
    /// Bytes of `writable`.
    pub writable_len: usize,
    /// What is to be mapped when the worker hands the file over.
    pub mapping: Option<Mapping>,
}

/// A request that is not passed on. The guest's driver gets EIO for it if there is room to say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

impl Request {
    /// A request of nothing, to be [taken](Self::take).
    pub fn new() -> Self {
        Self {
            queue: 0,
            head: 0,
            header: InHeader::EMPTY,
            unique: 0,
            readable: Vec::new(),
            copy: None,
            writable: Vec::new(),
            writable_len: 0,
            mapping: None,
        }
    }

    /// Becomes the request in `chain`, which may have up to `descriptors_max` descriptors.
    ///
    /// What makes it one: all buffers lie in guest memory, the readable ones come first and hold
    /// as many bytes as the header announces, and there is room for a reply if there is to be one.
    /// A refused request keeps what room for a reply was found.
    pub fn take(
        &mut self,
        memory: &GuestMemory,
        chain: DescriptorChain<&GuestMemory>,
        descriptors_max: u16,
        queue: usize,
    ) -> Result<(), Refused> {
        (self.queue, self.head) = (queue, chain.head_index());
        (self.header, self.unique, self.writable_len) = (InHeader::EMPTY, 0, 0);
        (self.mapping, self.copy) = (None, None);
        self.readable.clear();
        self.writable.clear();
        let readable_len = self.collect(memory, chain, descriptors_max)?;
        if readable_len < HEADER_LEN_IN {
            return Err(Refused);
        }
        let mut header = [0; HEADER_LEN_IN];
        read_front(memory, &self.readable, &mut header)?;
        self.header = InHeader::new(header);
        self.unique = self.header.unique();
        if self.header.is_monitors() {
            return Err(Refused);
        }
        let announced = self.header.len() as usize == readable_len && readable_len <= MESSAGE_MAX;
        let answerable = self.header.is_silent() || self.writable_len >= HEADER_LEN_OUT;
        if !announced || !answerable {
            return Err(Refused);
        }
        if self.header.opcode() == COPY_FILE_RANGE {
            self.copy = Some(Box::new(self.body(memory, 0)?));
        }
        Ok(())
    }

    /// What it costs a guest that may ask for so many bytes a second and no more: a mapping is the file's
    /// bytes, asked for at once; a copy is read and written on the host.
    pub fn cost(&self) -> usize {
        let mapped = if self.header.opcode() == SETUP_MAPPING { SLOT_LEN as usize } else { 0 };
        let copied = self.copy.as_ref().map_or(0, |body| {
            let [.., a, b, c, d, e, f, g, h, _, _, _, _, _, _, _, _] = **body;
            2 * u64::from_le_bytes([a, b, c, d, e, f, g, h]).min(COPY_MAX) as usize
        });
        self.header.len() as usize + self.writable_len + mapped + copied
    }

    /// What was read of it, the once, after the first `sent` bytes; the rest is sent as it is then.
    pub fn front(&self, sent: usize) -> [&[u8]; 2] {
        let copy = self.copy.as_ref().map_or(&[][..], |body| &body[..]);
        let in_copy = sent.saturating_sub(HEADER_LEN_IN).min(copy.len());
        [&self.header.bytes()[HEADER_LEN_IN.min(sent)..], &copy[in_copy..]]
    }

    /// Sorts the chain's buffers and returns how many bytes are readable.
    fn collect(
        &mut self,
        memory: &GuestMemory,
        chain: DescriptorChain<&GuestMemory>,
        descriptors_max: u16,
    ) -> Result<usize, Refused> {
        let mut readable_len = 0;
        for (count, descriptor) in chain.enumerate() {
            let segment = Segment { address: descriptor.addr(), len: descriptor.len() as usize };
            let disordered = !descriptor.is_write_only() && !self.writable.is_empty();
            if count >= descriptors_max.into()
                || disordered
                || !memory.check_range(segment.address, segment.len)
            {
                return Err(Refused);
            }
            if segment.len == 0 {
                continue;
            }
            // The chain's iterator ends before lengths add up to more than 32 bits.
            if descriptor.is_write_only() {
                self.writable_len += segment.len;
                self.writable.push(segment);
            } else {
                readable_len += segment.len;
                self.readable.push(segment);
            }
        }
        Ok(readable_len)
    }

    /// Copies bytes of the body, after the first `skip`; refused if it ends before.
    pub fn body<const N: usize>(
        &self,
        memory: &GuestMemory,
        skip: usize,
    ) -> Result<[u8; N], Refused> {
        let mut bytes = [0; N];
        let mut to = &mut bytes[..];
        for segment in rest(&self.readable, HEADER_LEN_IN + skip) {
            let (now, later) = to.split_at_mut(segment.len.min(to.len()));
            memory.read_slice(now, segment.address).map_err(|_| Refused)?;
            to = later;
        }
        if to.is_empty() { Ok(bytes) } else { Err(Refused) }
    }

    /// The whole message as it is sent.
    pub fn copy(&self, memory: &GuestMemory) -> Vec<u8> {
        let mut bytes = vec![0; self.header.len() as usize];
        // The segments were found to lie in guest memory, which does not shrink.
        let _ = read_front(memory, &self.readable, &mut bytes);
        let front = self.front(0).concat();
        bytes[..front.len()].copy_from_slice(&front);
        bytes
    }

    /// Writes the header of the reply, with the guest's own number. There was room for it when the
    /// request was taken.
    pub fn put_header(&self, memory: &GuestMemory, header: OutHeader) {
        self.put(memory, 0, &OutHeader { unique: self.unique, ..header }.bytes());
    }

    /// Writes an error for a reply and returns the number of bytes used: none if there is no room.
    pub fn put_error(&self, memory: &GuestMemory, errno: i32) -> u32 {
        if self.header.is_silent() || self.writable_len < HEADER_LEN_OUT {
            return 0;
        }
        let len = HEADER_LEN_OUT as u32;
        self.put_header(memory, OutHeader { len, error: -errno, unique: 0 });
        len
    }

    /// Writes a reply without a body and returns its length.
    pub fn put_success(&self, memory: &GuestMemory) -> u32 {
        let len = HEADER_LEN_OUT as u32;
        self.put_header(memory, OutHeader { len, error: 0, unique: 0 });
        len
    }

    /// Writes `bytes` of the reply, `offset` bytes after its beginning.
    pub fn put(&self, memory: &GuestMemory, offset: usize, bytes: &[u8]) {
        let mut left = bytes;
        for segment in rest(&self.writable, offset) {
            let (now, later) = left.split_at(left.len().min(segment.len));
            // The segment was found to lie in guest memory, which does not shrink.
            let _ = memory.write_slice(now, segment.address);
            left = later;
            if left.is_empty() {
                break;
            }
        }
    }
}

/// What follows after the first `skip` bytes of `segments`.
pub fn rest(segments: &[Segment], mut skip: usize) -> impl Iterator<Item = Segment> {
    segments.iter().filter_map(move |&Segment { address, len }| {
        let skipped = skip.min(len);
        skip -= skipped;
        let address = GuestAddress(address.0 + skipped as u64);
        (skipped < len).then_some(Segment { address, len: len - skipped })
    })
}

fn read_front(memory: &GuestMemory, from: &[Segment], mut to: &mut [u8]) -> Result<(), Refused> {
    for segment in from {
        let (now, later) = to.split_at_mut(segment.len.min(to.len()));
        memory.read_slice(now, segment.address).map_err(|_| Refused)?;
        to = later;
        if to.is_empty() {
            break;
        }
    }
    Ok(())
}
