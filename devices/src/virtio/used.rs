//! Several chains returned to the driver as one, which `QueueT::add_used` cannot do: it shows the
//! driver each chain as it comes.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::GuestMemory;

/// Offset of the elements in the used ring, and the size of one (virtio 1.3, 2.7.8).
const RING: u64 = 4;
const ELEMENT: u64 = 8;
/// Offset of the entries in the available ring, and the size of one (2.7.6).
const AVAIL_RING: u64 = 4;
const AVAIL_ENTRY: u64 = 2;

/// Puts `chains` (head, bytes written) into the used ring, at most as many as the queue has
/// descriptors; the driver sees all of them or none. Pair it with [`interrupt_wanted`], for the
/// queue does not count them.
pub fn add_together(
    queue: &mut Queue,
    memory: &GuestMemory,
    chains: &[(u16, u32)],
) -> Result<(), Error> {
    let ring = GuestAddress(queue.used_ring());
    let size = queue.size();
    let mut next = queue.next_used();
    for (head, len) in chains {
        if *head >= size {
            return Err(Error::InvalidDescriptorIndex);
        }
        let offset = RING + ELEMENT * u64::from(next % size);
        let element = u64::from(*head) | u64::from(*len) << 32;
        memory.write_obj(element.to_le(), at(ring, offset)?).map_err(Error::GuestMemory)?;
        next = next.wrapping_add(1);
    }
    queue.set_next_used(next);
    memory.store(next.to_le(), at(ring, 2)?, Ordering::Release).map_err(Error::GuestMemory)
}

/// Whether the driver wants an interrupt for what was put into the used ring since its index was
/// `since` (2.7.10). Drivers without VIRTIO_F_EVENT_IDX want one for everything.
pub fn interrupt_wanted(queue: &Queue, memory: &GuestMemory, since: u16) -> Result<bool, Error> {
    let next = queue.next_used();
    if !queue.event_idx_enabled() {
        return Ok(next != since);
    }
    // The driver writes its event before it looks at the ring for the last time.
    fence(Ordering::SeqCst);
    let used_event = AVAIL_RING + AVAIL_ENTRY * u64::from(queue.size());
    let event = at(GuestAddress(queue.avail_ring()), used_event)?;
    let event = memory.load(event, Ordering::Relaxed).map(u16::from_le);
    let event = event.map_err(Error::GuestMemory)?;
    Ok(next.wrapping_sub(event).wrapping_sub(1) < next.wrapping_sub(since))
}

fn at(ring: GuestAddress, offset: u64) -> Result<GuestAddress, Error> {
    ring.0.checked_add(offset).map(GuestAddress).ok_or(Error::AddressOverflow)
}
