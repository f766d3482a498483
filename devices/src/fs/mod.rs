//! virtio-fs (virtio 1.3, section 5.11): FUSE requests from the guest to a file server in another
//! process, and its replies back.
//!
//! ```text
//!  hiprio ──┐                      ┌── Sending ──▶ socket ──▶ worker
//!           ├─ Request (checked) ──┤
//!  requests ┘                      └── Slots (in flight) ◀── Receiving ◀── socket ◀── worker
//! ```
//!
//! The device reads nothing of a request but its header, of which it makes one copy: a header that
//! changes afterwards changes nothing. It gives each request a number of its own, so neither guest
//! nor worker can make one request's reply another's. Bytes go between guest memory and socket
//! without a copy in between. Nothing here blocks: when the socket takes no more, the device takes
//! no more requests, and goes on with replies.
//!
//! The worker is trusted less than the VMM. A reply that does not fit its request, or a closed
//! socket, ends the connection for good: every request, then and later, fails with EIO or
//! ENOTCONN.

mod channel;
mod mapping;
mod monitors;
mod receiving;
mod request;
mod slots;
#[cfg(test)]
mod tests;
mod transfer;
mod window;
mod wire;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use event_manager::{EventOps, EventSet, Events};
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use virtio_queue::{Queue, QueueT};

use self::channel::Channel;
use self::mapping::Mapping;
pub use self::transfer::FILES_MAX;
pub use self::window::{SLOT_LEN, Window};
use crate::GuestMemory;
use crate::rate_limiter::{RateLimiter, RateLimits};
use crate::virtio::buffers;
use crate::virtio::device::{SharedMemory, read_config};
use crate::virtio::mmio::EVENT_IDX;
use crate::virtio::{ActivateError, Active, RestoreError, VirtioDevice};

/// FORGETs, one descriptor each.
const HIPRIO_QUEUE_SIZE: u16 = 128;
/// A request of 1 MiB takes up to 260 descriptors where the driver cannot use an indirect table.
const REQUEST_QUEUE_SIZE: u16 = 512;
const QUEUE_SIZES: [u16; 2] = [HIPRIO_QUEUE_SIZE, REQUEST_QUEUE_SIZE];
/// The most requests taken from a queue before other devices have their turn.
const BATCH_MAX: usize = REQUEST_QUEUE_SIZE as usize;

/// `struct virtio_fs_config`: a tag of 36 bytes, then the number of request queues.
const TAG_LEN: usize = 36;
const CONFIG_LEN: usize = TAG_LEN + 4;

/// `VIRTIO_FS_SHMCAP_ID_CACHE`.
const WINDOW_ID: u32 = 0;

/// A virtio-fs device.
pub struct FsDevice {
    config: [u8; CONFIG_LEN],
    channel: Channel,
    active: Option<Active>,
    limiter: RateLimiter,
    /// Whether the event loop tells when the socket can be written to.
    watching_out: bool,
}

impl FsDevice {
    /// A device that the guest mounts by `tag` (UTF-8, cut off after 36 bytes) and whose requests
    /// `socket` answers: a `SOCK_STREAM` Unix socket on which every message has the length that its
    /// own FUSE header begins with.
    pub fn new(tag: &str, socket: OwnedFd) -> Self {
        let mut config = [0; CONFIG_LEN];
        let tag = &tag.as_bytes()[..tag.floor_char_boundary(TAG_LEN)];
        config[..tag.len()].copy_from_slice(tag);
        config[TAG_LEN..].copy_from_slice(&1u32.to_le_bytes());
        let in_flight_max = QUEUE_SIZES.iter().map(|size| usize::from(*size)).sum();
        let channel = Channel::new(socket, in_flight_max);
        let limiter = RateLimiter::default();
        Self { config, channel, active: None, limiter, watching_out: false }
    }

    /// Passes no more on than `limits`: requests, and the bytes of them, of the room they offer for
    /// replies, and of what they have mapped. Fails if their timer cannot be made.
    pub fn limited(self, limits: &RateLimits) -> io::Result<Self> {
        Ok(Self { limiter: RateLimiter::new(limits)?, ..self })
    }

    /// Lets the guest map files to `window`.
    pub fn with_window(mut self, window: Window) -> Self {
        self.channel.set_window(window);
        self
    }

    /// Asks the worker for what no guest may, with up to [`FILES_MAX`] files, while the guest's requests go
    /// on: `bytes` are a whole FUSE message but for its number. [`FsDevice::take_answer`] tells what
    /// became of it, some time after the event loop has run. EBUSY until then.
    pub fn ask(
        &mut self,
        bytes: Vec<u8>,
        files: Vec<OwnedFd>,
        ops: &mut EventOps,
    ) -> io::Result<()> {
        let memory = self.active.as_ref().map(|active| &*active.memory);
        self.channel.ask(memory, bytes, files)?;
        self.take_requests(ops);
        Ok(())
    }

    /// The worker's answer to [`FsDevice::ask`], once it is there: the error is the worker's, or the
    /// connection has ended.
    pub fn take_answer(&mut self) -> Option<io::Result<()>> {
        self.channel.take_answer()
    }

    /// Takes requests from every queue while the socket takes them, and signals the driver.
    fn take_requests(&mut self, ops: &mut EventOps) {
        if let Some(active) = &mut self.active {
            for index in 0..active.queues.len() {
                // An error is a ring the driver has corrupted: it goes quiet until reset.
                let _ = take_requests(active, &mut self.channel, &mut self.limiter, index);
            }
            signal(active, &mut self.channel);
        }
        self.watch(ops);
    }

    /// Has the event loop watch for what the channel waits for.
    fn watch(&mut self, ops: &mut EventOps) {
        let socket = self.channel.socket();
        if self.channel.is_dead() {
            // It would be readable for ever. Removing twice is refused, and harmless.
            let _ = ops.remove(Events::with_data(socket, SOCKET, EventSet::IN));
            return;
        }
        let out = self.channel.is_blocked();
        if out != self.watching_out {
            let events = if out { EventSet::IN | EventSet::OUT } else { EventSet::IN };
            // Refused only for an fd that is not watched; then the device was never registered.
            let _ = ops.modify(Events::with_data(socket, SOCKET, events));
            self.watching_out = out;
        }
    }
}

/// Event data of the socket, and of the limiter's timer.
const SOCKET: u32 = 0;
const TIMER: u32 = 1;

impl VirtioDevice for FsDevice {
    fn name(&self) -> &'static str {
        "fs"
    }

    fn device_id(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn features(&self) -> u64 {
        EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn queue_sizes_max(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.config, offset, data);
    }

    fn shared_memory(&self, id: u32) -> Option<SharedMemory> {
        let window = self.channel.window().filter(|_| id == WINDOW_ID)?;
        Some(window.shared_memory())
    }

    fn activate(&mut self, active: Active) -> Result<(), ActivateError> {
        if let Some(index) = active.queues.iter().position(|queue| !queue.ready()) {
            return Err(ActivateError::QueueNotReady { device: self.name(), index });
        }
        self.active = Some(active);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(active) = self.active.take() {
            self.channel.abandon(&active.memory);
            if let Some(window) = self.channel.window() {
                window.clear();
            }
        }
    }

    fn active(&self) -> Option<&Active> {
        self.active.as_ref()
    }

    /// A request that the worker still has could not be answered to a restored guest.
    fn is_idle(&self) -> bool {
        self.channel.is_idle()
    }

    fn save(&self) -> Vec<u8> {
        let mappings = self.channel.window().map(Window::mappings).unwrap_or_default();
        // Numbers encode; an empty list is no state, as of a device without a window.
        if mappings.is_empty() {
            Vec::new()
        } else {
            postcard::to_stdvec(&mappings).unwrap_or_default()
        }
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        if state.is_empty() {
            return Ok(());
        }
        let device = self.name();
        let mappings = postcard::from_bytes::<Vec<Mapping>>(state).ok();
        let window = self.channel.window().map_or(0, Window::slot_count);
        let mappings = mappings.filter(|mappings| mappings.len() <= window);
        let mappings = mappings.ok_or(RestoreError::Device { device })?;
        for mapping in mappings {
            self.channel.map_again(mapping).map_err(RestoreError::Mapping)?;
        }
        Ok(())
    }

    fn register(&mut self, ops: &mut EventOps) {
        let socket = self.channel.socket();
        let added = ops.add(Events::with_data(socket, SOCKET, EventSet::IN));
        debug_assert!(added.is_ok(), "fd {} can be watched: {added:?}", socket.as_raw_fd());
        self.limiter.register(ops, TIMER);
    }

    fn queue_notified(&mut self, _index: usize, ops: &mut EventOps) {
        // Both queues: they share the socket, and a look at an empty one is cheap.
        self.take_requests(ops);
    }

    fn process(&mut self, _events: Events, ops: &mut EventOps) {
        let memory = self.active.as_ref().map(|active| &*active.memory);
        self.channel.receive(memory);
        self.channel.flush(memory);
        // Replies make room; also signals what was received.
        self.take_requests(ops);
    }
}

fn take_requests(
    active: &mut Active,
    channel: &mut Channel,
    limiter: &mut RateLimiter,
    index: usize,
) -> Result<(), virtio_queue::Error> {
    let memory = &*active.memory;
    let queue: &mut Queue = &mut active.queues[index];
    for _ in 0..BATCH_MAX {
        // The socket or the timer calls again.
        if channel.is_blocked() || !limiter.ready() {
            return Ok(());
        }
        match buffers::pop(queue, memory)? {
            Some(chain) => {
                let mut request = channel.spare_request();
                let checked = request.take(memory, chain, queue.size(), index);
                limiter.charge(request.cost());
                channel.submit(memory, request, checked);
            }
            None if queue.enable_notification(memory)? => {}
            None => return Ok(()),
        }
    }
    active.notify_again(index);
    Ok(())
}

/// Returns completed chains to the driver, with one interrupt if it wants one.
fn signal(active: &mut Active, channel: &mut Channel) {
    let memory: &GuestMemory = &active.memory;
    let mut used = [false; QUEUE_SIZES.len()];
    for done in channel.take_done() {
        // An error is a ring the driver has corrupted; nothing is to be told then.
        if let Some(queue) = active.queues.get_mut(done.queue)
            && queue.add_used(memory, done.head, done.len).is_ok()
        {
            used[done.queue] = true;
        }
    }
    let mut wanted = false;
    for (queue, _) in active.queues.iter_mut().zip(used).filter(|(_, used)| *used) {
        wanted |= queue.needs_notification(memory).unwrap_or(false);
    }
    if wanted {
        active.interrupt.used();
    }
}
