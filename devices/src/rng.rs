//! virtio-rng: random bytes from the host (virtio 1.3, section 5.4).

use event_manager::EventOps;
use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::QueueT;

use crate::virtio::buffers::{Buffers, pop};
use crate::virtio::mmio::EVENT_IDX;
use crate::virtio::{ActivateError, Active, VirtioDevice};

/// Linux asks for one small buffer at a time.
const QUEUE_SIZE_MAX: u16 = 16;
/// The most bytes one request gets; the driver takes less than it asked for as an answer.
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// The most requests served before other devices have their turn.
const REQUESTS_MAX: usize = QUEUE_SIZE_MAX as usize;
/// Random bytes fetched by one system call; below 256 it cannot be interrupted.
const CHUNK: usize = 256;

/// An entropy device.
#[derive(Default)]
pub struct Rng {
    active: Option<Active>,
}

impl Rng {
    /// A device that serves the host's random numbers.
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn name(&self) -> &'static str {
        "rng"
    }

    fn device_id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        EVENT_IDX
    }

    fn queue_sizes_max(&self) -> &[u16] {
        &[QUEUE_SIZE_MAX]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, active: Active) -> Result<(), ActivateError> {
        if !active.queues[0].ready() {
            return Err(ActivateError::QueueNotReady { device: self.name(), index: 0 });
        }
        self.active = Some(active);
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn active(&self) -> Option<&Active> {
        self.active.as_ref()
    }

    fn queue_notified(&mut self, _index: usize, _ops: &mut EventOps) {
        // An error is a ring the driver has corrupted: the device goes quiet until reset.
        if let Some(active) = &mut self.active {
            let _ = serve(active);
        }
    }
}

fn serve(active: &mut Active) -> Result<(), virtio_queue::Error> {
    let memory = &*active.memory;
    let queue = &mut active.queues[0];
    let mut served = 0;
    loop {
        while served < REQUESTS_MAX
            && let Some(chain) = pop(queue, memory)?
        {
            let head = chain.head_index();
            let filled = Buffers::writable(memory, chain, queue.size().into()).map_or(0, fill);
            queue.add_used(memory, head, filled as u32)?;
            served += 1;
        }
        if served == REQUESTS_MAX || !queue.enable_notification(memory)? {
            break;
        }
    }
    if served > 0 && queue.needs_notification(memory)? {
        active.interrupt.used();
    }
    if served == REQUESTS_MAX {
        active.notify_again(0);
    }
    Ok(())
}

/// Fills the buffers of one request and returns how many bytes that were.
fn fill(mut buffers: Buffers) -> usize {
    buffers.truncate(REQUEST_BYTES_MAX);
    let mut filled = 0;
    let mut chunk = [0; CHUNK];
    while !buffers.is_empty() {
        let wanted = buffers.len().min(CHUNK);
        match getrandom(&mut chunk[..wanted], GetRandomFlags::empty()) {
            Ok(count) if count > 0 => filled += buffers.write(&chunk[..count]),
            Err(rustix::io::Errno::INTR) => {}
            _ => break,
        }
    }
    filled
}

#[cfg(test)]
mod tests;
