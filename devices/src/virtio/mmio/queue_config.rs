//! What the driver writes of a queue before it becomes a live [`Queue`].

use virtio_queue::{Queue, QueueT};

use crate::GuestMemory;

/// A queue's registers (virtio 1.3, 4.2.2): plain data, unchecked until [`QueueConfig::build`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct QueueConfig {
    pub(super) size_max: u16,
    pub(super) size: u32,
    pub(super) ready: bool,
    pub(super) desc_table: u64,
    pub(super) avail_ring: u64,
    pub(super) used_ring: u64,
}

impl QueueConfig {
    pub(super) fn new(size_max: u16) -> Self {
        let size = size_max.into();
        Self { size_max, size, ready: false, desc_table: 0, avail_ring: 0, used_ring: 0 }
    }

    /// The live queue, not ready if the driver left it alone; `None` if what the driver wrote
    /// cannot be a queue: a size that is no power of two or above the maximum, a misaligned ring,
    /// or one outside of guest memory.
    pub(super) fn build(&self, memory: &GuestMemory, event_idx: bool) -> Option<Queue> {
        let mut queue = Queue::new(self.size_max).ok()?;
        if !self.ready {
            return Some(queue);
        }
        queue.try_set_size(self.size.try_into().ok()?).ok()?;
        queue.try_set_desc_table_address(vm_memory::GuestAddress(self.desc_table)).ok()?;
        queue.try_set_avail_ring_address(vm_memory::GuestAddress(self.avail_ring)).ok()?;
        queue.try_set_used_ring_address(vm_memory::GuestAddress(self.used_ring)).ok()?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        // A queue takes an available ring at address 0 for one that was never set.
        (self.avail_ring != 0 && queue.is_valid(memory)).then_some(queue)
    }
}
