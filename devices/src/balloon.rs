//! virtio-balloon, of which there is free page reporting (virtio 1.3, section 5.5): the guest's kernel names memory it
//! does not need, in blocks of a huge page, some seconds after it was freed, and the host gets it back. There is no
//! balloon: its size is always 0.

use event_manager::{EventOps, Events};
use rustix::mm::{Advice, madvise};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vm_memory::VolatileSlice;

use crate::rate_limiter::RateLimiter;
use crate::virtio::buffers::Buffers;
use crate::virtio::mmio::EVENT_IDX;
use crate::virtio::{ActivateError, Active, VirtioDevice, serve};

/// Free page reporting (linux/virtio_balloon.h).
const VIRTIO_BALLOON_F_REPORTING: u32 = 5;
/// Bytes of the host's pages: x86_64 has no other.
const PAGE: usize = 4096;
/// Linux reports up to 32 blocks at a time (PAGE_REPORTING_CAPACITY in linux/page_reporting.h) and waits.
const QUEUE_SIZE_MAX: u16 = 32;
/// Inflation, deflation, reports.
const QUEUES: [u16; 3] = [QUEUE_SIZE_MAX; 3];
/// The queue of reports; no other is served, for there is no balloon.
const REPORTS: usize = 2;
/// The most reports served before other devices have their turn.
const REPORTS_MAX: usize = 4;

/// A device that gives the host back what the guest does not need.
#[derive(Default)]
pub struct Balloon {
    active: Option<Active>,
}

impl VirtioDevice for Balloon {
    fn name(&self) -> &'static str {
        "balloon"
    }

    fn device_id(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn features(&self) -> u64 {
        EVENT_IDX | 1 << VIRTIO_BALLOON_F_REPORTING
    }

    fn queue_sizes_max(&self) -> &[u16] {
        &QUEUES
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, active: Active) -> Result<(), ActivateError> {
        self.active = Some(active);
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn active(&self) -> Option<&Active> {
        self.active.as_ref()
    }

    fn queue_notified(&mut self, index: usize, _ops: &mut EventOps) {
        if index == REPORTS
            && let Some(active) = &mut self.active
        {
            let mut limiter = RateLimiter::default();
            // An error is a ring the driver has corrupted: the device goes quiet until reset.
            let _ = serve::writable(active, REPORTS, REPORTS_MAX, &mut limiter, take_back);
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {}
}

/// Takes a report's blocks back; nothing is written to them.
fn take_back(blocks: Buffers) -> usize {
    blocks.slices().iter().for_each(discard);
    0
}

/// Gives the whole pages of `block` back. What the guest reads there next is zeros or, in a clone, the template's: it
/// has said that it does not care (PAGE_POISON is not offered).
fn discard(block: &VolatileSlice<'_>) {
    let guard = block.ptr_guard_mut();
    let start = guard.as_ptr();
    let lead = start.align_offset(PAGE);
    let len = block.len().saturating_sub(lead) / PAGE * PAGE;
    if len > 0 {
        // SAFETY: the `len` bytes from `lead` on are within `block`, which is guest memory: mapped while `guard` lives,
        // and only ever accessed as memory that may change at any time.
        let done = unsafe { madvise(start.wrapping_add(lead).cast(), len, Advice::LinuxDontNeed) };
        // Memory that the host cannot take back stays the guest's.
        let _ = done;
    }
}

#[cfg(test)]
mod tests;
