//! The receive queue: packets from the host to the guest.

use std::io;

use virtio_queue::{Queue, QueueT};
use vm_memory::VolatileSlice;

use super::packet::Header;
use crate::GuestMemory;
use crate::virtio::buffers::{Buffers, pop};

/// The receive queue for the length of one turn.
pub struct RxQueue<'a> {
    queue: &'a mut Queue,
    memory: &'a GuestMemory,
}

/// What came of [`RxQueue::send_data`].
#[derive(Debug)]
pub enum Sent {
    /// The guest offers no buffer: nothing was read.
    Starved,
    /// What the read returned, and whether it filled all the buffers it had.
    Read { result: io::Result<usize>, filled: bool },
}

struct RxBuffer<'a> {
    head: u16,
    buffers: Buffers<'a>,
}

impl<'a> RxQueue<'a> {
    /// Puts packets into `queue`.
    pub fn new(queue: &'a mut Queue, memory: &'a GuestMemory) -> Self {
        Self { queue, memory }
    }

    /// Sends a packet without payload; false if the guest offers no buffer.
    pub fn send(&mut self, header: &Header) -> Result<bool, virtio_queue::Error> {
        let Some(buffer) = self.take_usable(Header::LEN)? else { return Ok(false) };
        self.finish(buffer, *header, 0)?;
        Ok(true)
    }

    /// Sends up to `limit` bytes in up to `packets_max` packets, read straight into the guest's
    /// buffers by one call of `read`. Buffers it leaves empty stay available.
    pub fn send_data(
        &mut self,
        header: Header,
        limit: usize,
        packets_max: usize,
        read: impl FnOnce(&[VolatileSlice]) -> io::Result<usize>,
    ) -> Result<Sent, virtio_queue::Error> {
        let Some(first) = self.take_usable(Header::LEN + 1)? else { return Ok(Sent::Starved) };
        let mut room = first.room().min(limit);
        let mut batch = vec![first];
        while batch.len() < packets_max
            && room < limit
            && let Some(next) = self.take_if_usable(Header::LEN + 1)?
        {
            room += next.room().min(limit - room);
            batch.push(next);
        }
        let result = read(&payload_slices(&batch, room));
        let mut left = result.as_ref().map_or(0, |count| *count);
        let filled = left == room;
        let mut unused = 0u16;
        for buffer in batch {
            if left == 0 {
                unused += 1;
                continue;
            }
            let len = buffer.room().min(left);
            self.finish(buffer, header, len)?;
            left -= len;
        }
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(unused));
        Ok(Sent::Read { result, filled })
    }

    /// The next buffer of at least `len_min` bytes; shorter ones go back with nothing in them.
    fn take_usable(&mut self, len_min: usize) -> Result<Option<RxBuffer<'a>>, virtio_queue::Error> {
        while let Some(buffer) = self.take()? {
            if buffer.buffers.len() >= len_min {
                return Ok(Some(buffer));
            }
            self.queue.add_used(self.memory, buffer.head, 0)?;
        }
        Ok(None)
    }

    /// The next buffer, left available if it is shorter than `len_min` bytes.
    fn take_if_usable(
        &mut self,
        len_min: usize,
    ) -> Result<Option<RxBuffer<'a>>, virtio_queue::Error> {
        let next_avail = self.queue.next_avail();
        let buffer = self.take()?.filter(|buffer| buffer.buffers.len() >= len_min);
        if buffer.is_none() {
            self.queue.set_next_avail(next_avail);
        }
        Ok(buffer)
    }

    fn take(&mut self) -> Result<Option<RxBuffer<'a>>, virtio_queue::Error> {
        let size = self.queue.size().into();
        let Some(chain) = pop(self.queue, self.memory)? else { return Ok(None) };
        let head = chain.head_index();
        let buffers = Buffers::writable(self.memory, chain, size).unwrap_or_default();
        Ok(Some(RxBuffer { head, buffers }))
    }

    fn finish(
        &mut self,
        mut buffer: RxBuffer,
        header: Header,
        len: usize,
    ) -> Result<(), virtio_queue::Error> {
        buffer.buffers.write(&Header { len: len as u32, ..header }.to_bytes());
        self.queue.add_used(self.memory, buffer.head, (Header::LEN + len) as u32)
    }
}

impl RxBuffer<'_> {
    /// Bytes of payload it holds.
    fn room(&self) -> usize {
        self.buffers.len() - Header::LEN
    }
}

/// The batch's room for payload, `limit` bytes of it.
fn payload_slices<'a>(batch: &[RxBuffer<'a>], mut limit: usize) -> Vec<VolatileSlice<'a>> {
    let mut slices = Vec::with_capacity(batch.len());
    for buffer in batch {
        let mut payload = buffer.buffers.clone();
        payload.advance(Header::LEN);
        payload.truncate(limit);
        limit -= payload.len();
        slices.extend_from_slice(payload.slices());
    }
    slices
}
