//! Frames from the host to the guest.
//!
//! A frame goes straight to the buffers the driver has made available, before its length is known:
//! so nothing is read until they could take the largest frame there can be. Buffers that a turn did
//! not need go back to the available ring, so that the device holds none between turns.

use std::collections::VecDeque;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vm_memory::VolatileSlice;

use super::header::{self, ETHERNET_LEN, FRAME_LEN_MAX, NUM_BUFFERS};
use super::link::Link;
use super::tap::is_gone;
use super::{FRAMES_MAX, Turn};
use crate::GuestMemory;
use crate::iovec::IoVecs;
use crate::rate_limiter::RateLimiter;
use crate::virtio::buffers::{Buffers, pop};
use crate::virtio::used;

/// The most buffers of one system call. Linux's are of 1536 bytes or more: the largest frame takes
/// 43.
const BUFFERS_MAX: usize = 128;
/// What of that is for chains.
const CHAINS_BUFFERS_MAX: usize = BUFFERS_MAX - 1;
/// A VLAN tag.
const VLAN_LEN: usize = 4;
/// What an interface takes unless told otherwise.
const MTU_DEFAULT: u16 = 1500;

/// A chain of buffers for a frame, or for a part of one.
struct Chain<'m> {
    head: u16,
    buffers: Buffers<'m>,
}

/// One turn of the receive queue.
pub(super) struct Receiver<'a, 'm> {
    queue: &'a mut Queue,
    memory: &'m GuestMemory,
    /// Taken off the available ring, in its order.
    held: VecDeque<Chain<'m>>,
    /// Bytes of all of them.
    room: usize,
    /// The largest frame, with its header.
    frame_len_max: usize,
    /// A frame may take several chains.
    mergeable: bool,
    /// Unusable chains there may be yet before others have their turn.
    unusable_max: u16,
    /// The used ring's index when the turn began.
    used_since: u16,
}

impl<'a, 'm> Receiver<'a, 'm> {
    pub(super) fn new(
        queue: &'a mut Queue,
        memory: &'m GuestMemory,
        features: u64,
        mtu: Option<u16>,
    ) -> Self {
        let segments = features & (1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO6);
        let plain = header::LEN + ETHERNET_LEN + VLAN_LEN;
        let plain = plain + usize::from(mtu.unwrap_or(MTU_DEFAULT));
        Self {
            memory,
            held: VecDeque::new(),
            room: 0,
            frame_len_max: if segments == 0 { plain } else { FRAME_LEN_MAX },
            mergeable: features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0,
            unusable_max: queue.size(),
            used_since: queue.next_used(),
            queue,
        }
    }

    /// Receives frames, as many as one turn may, and returns whether the driver wants an interrupt.
    pub(super) fn run(
        mut self,
        link: &mut Link,
        limiter: &mut RateLimiter,
    ) -> Result<(Turn, bool), Error> {
        self.queue.disable_notification(self.memory)?;
        let mut turn = Turn::Unfinished;
        for _ in 0..FRAMES_MAX {
            if let Some(reason) = self.receive(link, limiter)? {
                turn = reason;
                break;
            }
        }
        let next = self.queue.next_avail().wrapping_sub(self.held.len() as u16);
        self.queue.set_next_avail(next);
        let interrupt = used::interrupt_wanted(self.queue, self.memory, self.used_since)?;
        Ok((turn, interrupt))
    }

    /// Receives one frame, or returns why the turn is over.
    fn receive(
        &mut self,
        link: &mut Link,
        limiter: &mut RateLimiter,
    ) -> Result<Option<Turn>, Error> {
        if let Some(reason) = self.gather()? {
            return Ok(Some(reason));
        }
        if !limiter.ready() {
            return Ok(Some(Turn::Waiting));
        }
        let mut buffers = IoVecs::<BUFFERS_MAX>::new();
        let chains = if self.mergeable { self.held.len() } else { 1 };
        for chain in self.held.iter().take(chains) {
            if buffers.count() as usize + chain.buffers.slices().len() > CHAINS_BUFFERS_MAX {
                break;
            }
            buffers.push(chain.buffers.slices(), usize::MAX);
        }
        let room = buffers.bytes();
        // A byte more tells a frame that fills the buffers from one that was cut off.
        let mut beyond = [0; 1];
        buffers.push(&[VolatileSlice::from(&mut beyond[..])], 1);
        match link.receive(&buffers) {
            Ok(len) => {
                limiter.charge(len);
                if (header::LEN..=room).contains(&len) {
                    self.deliver(len)?;
                }
                Ok(None)
            }
            Err(error) if is_gone(&error) => Ok(Some(Turn::Gone)),
            // An error of another kind is a frame lost; the next one is another event.
            Err(_) => Ok(Some(Turn::Waiting)),
        }
    }

    /// Takes chains until they can hold the largest frame, or there are no more than these; returns
    /// why the turn is over if there are not enough.
    fn gather(&mut self) -> Result<Option<Turn>, Error> {
        while !self.enough() {
            let Some(chain) = pop(self.queue, self.memory)? else {
                // Something may have come before notifications were wanted again.
                match self.queue.enable_notification(self.memory)? {
                    true => continue,
                    false => return Ok(Some(Turn::Waiting)),
                }
            };
            let head = chain.head_index();
            match Buffers::writable(self.memory, chain, self.queue.size().into()) {
                Ok(buffers) if usable(&buffers) => {
                    self.room += buffers.len();
                    self.held.push_back(Chain { head, buffers });
                }
                _ if self.unusable_max == 0 => {
                    self.queue.go_to_previous_position();
                    return Ok(Some(Turn::Unfinished));
                }
                _ => {
                    self.unusable_max -= 1;
                    used::add_together(self.queue, self.memory, &[(head, 0)])?;
                }
            }
        }
        Ok(None)
    }

    fn enough(&self) -> bool {
        match self.mergeable {
            true => {
                // A ring that is all here and holds no more never will: what does not fit is lost.
                self.room >= self.frame_len_max || self.held.len() >= self.queue.size().into()
            }
            false => !self.held.is_empty(),
        }
    }

    /// Hands the driver a frame of `len` bytes, which is in the first chains.
    fn deliver(&mut self, len: usize) -> Result<(), Error> {
        let mut left = len;
        let mut chains: Vec<(u16, u32)> = Vec::new();
        let mut first = None;
        while let Some(chain) = self.held.pop_front_if(|_| left > 0) {
            let taken = chain.buffers.len().min(left);
            self.room -= chain.buffers.len();
            left -= taken;
            chains.push((chain.head, taken as u32));
            first.get_or_insert(chain.buffers);
        }
        if let Some(mut buffers) = first {
            // The host leaves this field alone.
            buffers.advance(NUM_BUFFERS);
            buffers.write(&(chains.len() as u16).to_le_bytes());
        }
        used::add_together(self.queue, self.memory, &chains)
    }
}

/// A chain holds at least the header (5.1.6.3.1), in no more pieces than one call takes.
fn usable(buffers: &Buffers) -> bool {
    buffers.len() >= header::LEN && buffers.slices().len() <= CHAINS_BUFFERS_MAX
}
