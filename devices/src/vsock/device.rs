//! The device: its queues and what the event loop tells it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use event_manager::{EventOps, EventSet, Events};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::caps::Caps;
use super::host_port::HostEnd;
use super::muxer::Muxer;
use super::packet::Header;
use super::rx::RxQueue;
use super::saved::VsockState;
use crate::GuestMemory;
use crate::rate_limiter::{RateLimiter, RateLimits};
use crate::virtio::buffers::{Buffers, pop};
use crate::virtio::device::read_config;
use crate::virtio::mmio::EVENT_IDX;
use crate::virtio::{ActivateError, Active, RestoreError, VirtioDevice};

/// Packets to the guest, packets from the guest, events (of which there are none).
const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
/// Linux fills the receive queue with buffers of 4 KiB: 256 of them hold 1 MiB on their way.
const QUEUE_SIZES_MAX: [u16; 3] = [256, 256, 8];
/// Packets taken from the guest before other devices have their turn.
const TURN_PACKETS_MAX: usize = 256;
/// Half a second: what a connection's timeouts are counted in.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

/// Event data of the device's own descriptors.
const DATA_READY: u32 = 0;
const DATA_LISTENER: u32 = 1;
const DATA_WAKE: u32 = 2;
const DATA_TIMER: u32 = 3;
const DATA_LIMITER: u32 = 4;
const DATA_CONNECTIONS: u32 = 16;

/// What a vsock device is made of.
pub struct VsockConfig {
    /// The guest's context ID, 3 or more.
    pub guest_cid: u32,
    /// What the guest's connections may come to.
    pub caps: Caps,
    /// Where host programs connect to reach the guest; listens already. It is made non-blocking.
    pub listener: UnixListener,
    /// The guest's connections to host port `P` go to the socket `<path>_P`.
    pub path: PathBuf,
    /// Signalled when the guest listens: clients wait in the listener's backlog until then.
    pub ready: EventFd,
    /// Ports that the VMM answers itself.
    pub host_ports: Vec<(u32, HostEnd)>,
    /// Called once, when the first byte was written to a [`HostEnd::Streams`].
    pub on_first_output: Option<Box<dyn FnMut() + Send>>,
}

/// A vsock device.
pub struct Vsock {
    guest_cid: u32,
    listener: UnixListener,
    ready: EventFd,
    /// Clients may be waiting in the backlog.
    acceptable: bool,
    /// Calls the event loop from where it is out of reach.
    wake: EventFd,
    timer: Option<OwnedFd>,
    ticking: bool,
    muxer: Muxer,
    /// Of packets from the guest; what goes to the guest is the host's to limit.
    limiter: RateLimiter,
    active: Option<Active>,
}

impl Vsock {
    /// A device that nobody uses yet. Fails if an eventfd cannot be made.
    pub fn new(config: VsockConfig) -> io::Result<Self> {
        config.listener.set_nonblocking(true)?;
        let VsockConfig { guest_cid, caps, path, host_ports, on_first_output, .. } = config;
        let cid = guest_cid.into();
        Ok(Self {
            guest_cid,
            listener: config.listener,
            ready: config.ready,
            acceptable: false,
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            timer: None,
            ticking: false,
            muxer: Muxer::new(cid, caps, path, host_ports, on_first_output, DATA_CONNECTIONS),
            limiter: RateLimiter::default(),
            active: None,
        })
    }

    /// Takes no more from the guest than `limits`: packets, and their bytes. Fails if their timer
    /// cannot be made.
    pub fn limited(self, limits: &RateLimits) -> io::Result<Self> {
        Ok(Self { limiter: RateLimiter::new(limits)?, ..self })
    }

    fn wake(&self) {
        // Only a full counter is refused, and that is a signal too.
        let _ = self.wake.write(1);
    }

    fn accept(&mut self, ops: &mut EventOps) {
        while self.acceptable && self.muxer.has_room() {
            match self.listener.accept() {
                Ok((socket, _)) => self.muxer.client(socket, ops),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // An empty backlog, or no descriptors left: the next client tries again.
                Err(_) => self.acceptable = false,
            }
        }
    }

    /// Moves packets both ways, for as long as there are packets and buffers.
    fn turn(&mut self, ops: &mut EventOps) {
        loop {
            self.accept(ops);
            if let Some(active) = &mut self.active {
                let (muxer, limiter) = (&mut self.muxer, &mut self.limiter);
                let mut turn = Turn { muxer, limiter, active, ops };
                // An error is a ring the driver has corrupted: it goes quiet until reset.
                let _ = turn.packets();
            }
            let delivered = self.muxer.deliver(ops);
            // A client may have waited for a connection that has ended now.
            let again = delivered || self.acceptable && self.muxer.has_room();
            if !again {
                break;
            }
        }
        if self.muxer.is_timed() && !self.ticking {
            // Without a timer a silent guest or client keeps its connection, and nothing else.
            self.ticking = self.start_tick(ops).is_ok();
        }
    }

    fn start_tick(&mut self, ops: &mut EventOps) -> io::Result<()> {
        let timer = match self.timer.take() {
            Some(timer) => timer,
            None => {
                let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
                let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
                let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
                let added = ops.add(Events::with_data(&timer, DATA_TIMER, edges));
                added.map_err(io::Error::other)?;
                timer
            }
        };
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let once = Itimerspec { it_interval: never, it_value: TICK };
        let started = timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once);
        self.timer = Some(timer);
        started?;
        Ok(())
    }
}

impl VirtioDevice for Vsock {
    fn name(&self) -> &'static str {
        "vsock"
    }

    fn device_id(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn features(&self) -> u64 {
        EVENT_IDX
    }

    fn queue_sizes_max(&self) -> &[u16] {
        &QUEUE_SIZES_MAX
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(&u64::from(self.guest_cid).to_le_bytes(), offset, data);
    }

    fn activate(&mut self, active: Active) -> Result<(), ActivateError> {
        if let Some(index) = active.queues.iter().position(|queue| !queue.ready()) {
            return Err(ActivateError::QueueNotReady { device: self.name(), index });
        }
        for index in [RX, EVENT] {
            quieten(&active.queues[index], &active.memory);
        }
        self.active = Some(active);
        if self.muxer.has_packets() {
            // Something came before the guest's driver.
            self.wake();
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.muxer.forget_guest();
        self.wake();
    }

    fn active(&self) -> Option<&Active> {
        self.active.as_ref()
    }

    fn save(&self) -> Vec<u8> {
        self.muxer.save().to_bytes()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        self.muxer.restore(VsockState::from_bytes(state)?)?;
        self.wake();
        Ok(())
    }

    fn register(&mut self, ops: &mut EventOps) {
        let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
        for (eventfd, data) in [(&self.ready, DATA_READY), (&self.wake, DATA_WAKE)] {
            let added = ops.add(Events::with_data(eventfd, data, edges));
            debug_assert!(added.is_ok(), "an eventfd can be watched: {added:?}");
        }
        self.limiter.register(ops, DATA_LIMITER);
    }

    fn queue_notified(&mut self, _index: usize, ops: &mut EventOps) {
        self.turn(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            DATA_READY => {
                let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
                // A second signal finds the listener watched already.
                let _ = ops.add(Events::with_data(&self.listener, DATA_LISTENER, edges));
                self.acceptable = true;
            }
            DATA_LISTENER => self.acceptable = true,
            DATA_WAKE => {
                self.muxer.adopt(ops);
                self.muxer.sweep(ops);
            }
            DATA_TIMER => {
                self.ticking = false;
                self.muxer.tick(ops);
            }
            DATA_LIMITER => {}
            data => self.muxer.host_ready(data, events.event_set(), ops),
        }
        self.turn(ops);
    }
}

/// Asks the driver not to notify of new buffers until the device has run out of them: it takes
/// them when it has something to put there.
fn quieten(queue: &Queue, memory: &GuestMemory) {
    if queue.event_idx_enabled() {
        let avail_event = queue.used_ring() + 4 + 8 * u64::from(queue.size());
        let never = queue.next_avail().wrapping_sub(1);
        // The ring was checked to be in memory.
        let _ = memory.write_obj(never.to_le(), GuestAddress(avail_event));
    }
}

/// The moving of packets, once.
struct Turn<'a, 'o> {
    muxer: &'a mut Muxer,
    limiter: &'a mut RateLimiter,
    active: &'a mut Active,
    ops: &'a mut EventOps<'o>,
}

impl Turn<'_, '_> {
    /// Moves packets both ways and raises at most one interrupt for all of them.
    fn packets(&mut self) -> Result<(), virtio_queue::Error> {
        let used_before = [RX, TX].map(|index| self.active.queues[index].next_used());
        let finished = self.take_packets().and_then(|()| self.fill());
        let mut interrupt = false;
        for (index, before) in [RX, TX].into_iter().zip(used_before) {
            let queue = &mut self.active.queues[index];
            if queue.next_used() != before {
                interrupt |= queue.needs_notification(&*self.active.memory)?;
            }
        }
        if interrupt {
            self.active.interrupt.used();
        }
        finished
    }

    /// Takes the guest's packets.
    fn take_packets(&mut self) -> Result<(), virtio_queue::Error> {
        let memory = &*self.active.memory;
        let queue = &mut self.active.queues[TX];
        let size = queue.size().into();
        for _ in 0..TURN_PACKETS_MAX {
            // Room for answers is made by `fill`; the limiter's timer calls again.
            if !self.muxer.takes_packets() || !self.limiter.ready() {
                return Ok(());
            }
            let Some(chain) = pop(queue, memory)? else {
                match queue.enable_notification(memory)? {
                    true => continue,
                    false => return Ok(()),
                }
            };
            let head = chain.head_index();
            // A chain that holds no packet goes back like one that does.
            let mut payload = Buffers::readable(memory, chain, size).unwrap_or_default();
            self.limiter.charge(payload.len());
            let mut header = [0; Header::LEN];
            if payload.read(&mut header) == Header::LEN {
                self.muxer.packet(&Header::from_bytes(&header), payload, self.ops);
            }
            queue.add_used(memory, head, 0)?;
        }
        self.active.notify_again(TX);
        Ok(())
    }

    /// Fills the guest's receive buffers.
    fn fill(&mut self) -> Result<(), virtio_queue::Error> {
        let memory = &*self.active.memory;
        let was_full = !self.muxer.takes_packets();
        loop {
            let queue = &mut self.active.queues[RX];
            let starved = self.muxer.fill(&mut RxQueue::new(queue, memory), self.ops)?;
            if !starved || !queue.enable_notification(memory)? {
                break;
            }
        }
        if was_full && self.muxer.takes_packets() {
            self.active.notify_again(TX);
        }
        Ok(())
    }
}
