//! virtio-rng: random bytes from the host (virtio 1.3, section 5.4).

use std::io;

use event_manager::{EventOps, Events};
use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::QueueT;

use crate::rate_limiter::{RateLimiter, RateLimits};
use crate::virtio::buffers::Buffers;
use crate::virtio::mmio::EVENT_IDX;
use crate::virtio::{ActivateError, Active, VirtioDevice, serve};

/// Linux asks for one small buffer at a time.
const QUEUE_SIZE_MAX: u16 = 16;
/// The most bytes one request gets; the driver takes less than it asked for as an answer.
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// The most requests served before other devices have their turn.
const REQUESTS_MAX: usize = QUEUE_SIZE_MAX as usize;
/// Random bytes fetched by one system call; below 256 it cannot be interrupted.
const CHUNK: usize = 256;
/// Event data of the limiter's timer.
const DATA_TIMER: u32 = 0;

/// An entropy device.
#[derive(Default)]
pub struct Rng {
    active: Option<Active>,
    limiter: RateLimiter,
}

impl Rng {
    /// A device that serves the host's random numbers.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that serves no more than `limits`. Fails if their timer cannot be made.
    pub fn limited(limits: &RateLimits) -> io::Result<Self> {
        Ok(Self { active: None, limiter: RateLimiter::new(limits)? })
    }

    fn serve(&mut self) {
        // An error is a ring the driver has corrupted: the device goes quiet until reset.
        if let Some(active) = &mut self.active {
            let _ = serve::writable(active, 0, REQUESTS_MAX, &mut self.limiter, fill);
        }
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

    fn register(&mut self, ops: &mut EventOps) {
        self.limiter.register(ops, DATA_TIMER);
    }

    fn queue_notified(&mut self, _index: usize, _ops: &mut EventOps) {
        self.serve();
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.serve();
    }
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
