//! virtio-net (virtio 1.3, section 5.1): a network interface whose frames go through a tap, or through
//! a stream to another process.
//!
//! ```text
//!  transmitq ──▶ TxHeader (checked) ──┐           ┌──▶ host's network
//!                                     ├── Link ───┤
//!  receiveq ◀──── Receiver ◀──────────┘           └──◀ host's network
//! ```
//!
//! Frames move between guest memory and tap by one system call each, without a copy in between.
//! Checksums and segmentation pass through: what both sides can do, neither does (IFF_VNET_HDR). A
//! stream has one copy, and frames with nothing left to do.
//! Nothing here blocks: a link that takes no more leaves frames in the transmit queue, and a guest
//! without buffers leaves frames in the link, where the host's own queue bounds them.
//!
//! A device without a link is one with its cable unplugged: its link is down, and what it is given
//! to send goes nowhere. So a template can have an interface before there is a network for it: a
//! restored device tells its driver to look at the configuration again. An empty [`Net::place`] is no
//! device at all to the guest, until an interface is plugged in there: so a VM can run before it is
//! known what network it will have.
//!
//! Seen in the lab, where one emulated processor runs host, monitor and guest (64 MiB over TCP, Python on
//! both sides, segmentation offload both ways): to the container 32 to 58 MB/s at 13 to 21 VM exits a
//! MB, from it 22 to 29 MB/s at 50 to 53; a plain veth pair there makes 450 and 390 MB/s. The exits carry
//! over to real hardware, the rates do not. Writes of 1 KiB, which TCP makes frames of 9 KiB of, take some 540
//! exits a MB: no more than a fifth are notifications, one a frame at most; most are the price of interrupts
//! (the status read, its acknowledgement, and the end of interrupt).

mod header;
mod link;
mod rx;
mod stream;
mod tap;
#[cfg(test)]
mod tests;
mod tx;

use std::io;
use std::os::fd::AsRawFd;

use event_manager::{EventOps, EventSet, Events};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use virtio_queue::QueueT;

pub use self::link::Link;
use self::rx::Receiver;
pub use self::stream::Stream;
pub use self::tap::Tap;
use crate::rate_limiter::{RateLimiter, RateLimits};
use crate::virtio::device::read_config;
use crate::virtio::mmio::EVENT_IDX;
use crate::virtio::{ActivateError, Active, RestoreError, VirtioDevice};

const RX: usize = 0;
const TX: usize = 1;
/// 256 receive buffers of 1536 bytes hold six frames of the largest size.
const QUEUE_SIZES: [u16; 2] = [256, 256];
/// The most frames of one direction before other devices have their turn: of the largest size they
/// are 4 MiB.
const FRAMES_MAX: usize = 64;

/// Event data of the device's own descriptors.
const DATA_LINK: u32 = 0;
const DATA_RX_TIMER: u32 = 1;
const DATA_TX_TIMER: u32 = 2;

/// Feature bits of every interface.
const FEATURES: u64 = EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_STATUS
    | 1 << VIRTIO_NET_F_MRG_RXBUF;
/// Of those whose frames need not be checksummed and cut to size by the guest.
const OFFLOADS: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN;

/// What an interface is made of.
#[derive(Debug, Default)]
pub struct NetConfig {
    /// The address it has from the beginning.
    pub mac: [u8; 6],
    /// The largest payload of a frame; the driver takes no more then.
    pub mtu: Option<u16>,
    /// Where its frames come from and go to.
    pub link: Option<Link>,
    /// That is, or will be, a [`Link::Stream`]: nothing is left to the host.
    pub plain: bool,
    /// Limits on frames to the guest.
    pub rx_limits: RateLimits,
    /// Limits on frames from the guest.
    pub tx_limits: RateLimits,
}

/// The device ID of a place where no device is: drivers ignore it (virtio 1.3, 4.2.3.1.1).
pub const PLACE_ID: u32 = 0;
/// The device ID of an interface.
pub const ID: u32 = VIRTIO_ID_NET;

/// Why nothing can be plugged in.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// The guest's driver has a place, or something else is plugged in there.
    #[error("there is no free place for a network interface")]
    Occupied,
    /// The tap does not take what the driver negotiated.
    #[error("the tap does not take the frames of the guest's driver: {0}")]
    Offloads(#[source] io::Error),
}

/// A network interface, or a place for one.
pub struct Net {
    /// No interface has been plugged in yet.
    empty: bool,
    mac: [u8; 6],
    mtu: Option<u16>,
    link: Option<Link>,
    plain: bool,
    rx_limiter: RateLimiter,
    tx_limiter: RateLimiter,
    /// A frame waits for the link to take it.
    tx_blocked: bool,
    /// The driver may have seen another link than this one, or none.
    restored: bool,
    active: Option<Active>,
}

/// How one turn of a queue ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// It waits for an event: the driver's, the link's, or a timer's.
    Waiting,
    /// It waits for the link to take more.
    Blocked,
    /// It may have more to do.
    Unfinished,
    /// The link is gone.
    Gone,
}

impl Net {
    /// An interface. Fails if a limit's timer cannot be made.
    pub fn new(config: NetConfig) -> io::Result<Self> {
        Ok(Self {
            empty: false,
            mac: config.mac,
            mtu: config.mtu,
            link: config.link,
            plain: config.plain,
            rx_limiter: RateLimiter::new(&config.rx_limits)?,
            tx_limiter: RateLimiter::new(&config.tx_limits)?,
            tx_blocked: false,
            restored: false,
            active: None,
        })
    }

    /// A place for an interface, whose frames will have these limits.
    pub fn place(rx_limits: RateLimits, tx_limits: RateLimits) -> io::Result<Self> {
        let nothing = Self::new(NetConfig { rx_limits, tx_limits, ..NetConfig::default() })?;
        Ok(Self { empty: true, ..nothing })
    }

    /// Puts an interface in this place, at which the guest has to be told to look again; or joins one
    /// without a cable to a tap. What its driver knows of that stays as it is: the MTU.
    pub fn plug(
        &mut self,
        mac: [u8; 6],
        mtu: Option<u16>,
        tap: Tap,
        ops: &mut EventOps,
    ) -> Result<(), PlugError> {
        if !self.has_room() {
            return Err(PlugError::Occupied);
        }
        if let Some(active) = &self.active {
            tap.set_offloads(active.features).map_err(PlugError::Offloads)?;
            active.interrupt.config_changed();
        }
        if std::mem::take(&mut self.empty) {
            self.mtu = mtu;
        }
        (self.mac, self.link) = (mac, Some(Link::Tap(tap)));
        self.watch_link(ops);
        Ok(())
    }

    /// Whether something can be plugged in.
    pub fn has_room(&self) -> bool {
        // A driver that took nothing for a device has not seen what this one will offer.
        self.link.is_none() && !(self.empty && self.active.is_some())
    }

    fn watch_link(&self, ops: &mut EventOps) {
        if let Some(link) = &self.link {
            // Edges: frames that wait for the guest's buffers would keep the loop awake.
            let events = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
            let added = ops.add(Events::with_data(link, DATA_LINK, events));
            debug_assert!(added.is_ok(), "fd {} can be watched: {added:?}", link.as_raw_fd());
        }
    }

    /// `struct virtio_net_config` up to `mtu`.
    fn config_space(&self) -> [u8; 12] {
        let status = if self.link.is_some() { VIRTIO_NET_S_LINK_UP as u16 } else { 0 };
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac);
        config[6..8].copy_from_slice(&status.to_le_bytes());
        // One pair of queues, though nobody reads that without VIRTIO_NET_F_MQ.
        config[8..10].copy_from_slice(&1u16.to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        config
    }

    fn receive(&mut self, ops: &mut EventOps) {
        let (Some(active), Some(link)) = (&mut self.active, &mut self.link) else { return };
        let receiver =
            Receiver::new(&mut active.queues[RX], &active.memory, active.features, self.mtu);
        // An error is a ring the driver has corrupted: it goes quiet until reset.
        let Ok((turn, interrupt)) = receiver.run(link, &mut self.rx_limiter) else { return };
        if interrupt {
            active.interrupt.used();
        }
        self.end_turn(turn, RX, ops);
    }

    fn transmit(&mut self, ops: &mut EventOps) {
        let Some(active) = &mut self.active else { return };
        let (memory, queue) = (&*active.memory, &mut active.queues[TX]);
        let (link, limiter) = (self.link.as_mut(), &mut self.tx_limiter);
        // As above.
        let Ok(turn) = tx::send(queue, memory, active.features, link, limiter) else { return };
        self.tx_blocked = turn == Turn::Blocked;
        if queue.needs_notification(memory).unwrap_or(false) {
            active.interrupt.used();
        }
        self.end_turn(turn, TX, ops);
    }

    fn end_turn(&mut self, turn: Turn, queue: usize, ops: &mut EventOps) {
        match (turn, &self.active) {
            (Turn::Unfinished, Some(active)) => active.notify_again(queue),
            (Turn::Gone, _) => self.unplug(ops),
            _ => {}
        }
    }

    /// Does without a link whose other end is gone.
    fn unplug(&mut self, ops: &mut EventOps) {
        if let Some(link) = self.link.take() {
            // It was added in `register`, or never: both are fine.
            let _ = ops.remove(Events::empty(&link));
        }
        if let Some(active) = &self.active {
            active.interrupt.config_changed();
            // What was to be sent goes nowhere now.
            active.notify_again(TX);
        }
    }
}

impl VirtioDevice for Net {
    fn name(&self) -> &'static str {
        "net"
    }

    fn device_id(&self) -> u32 {
        if self.empty { PLACE_ID } else { ID }
    }

    fn features(&self) -> u64 {
        let offloads = if self.plain { 0 } else { OFFLOADS };
        FEATURES | offloads | self.mtu.map_or(0, |_| 1 << VIRTIO_NET_F_MTU)
    }

    fn queue_sizes_max(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.config_space(), offset, data);
    }

    /// The link's status is there.
    fn config_is_constant(&self) -> bool {
        false
    }

    fn activate(&mut self, active: Active) -> Result<(), ActivateError> {
        if let Some(index) = active.queues.iter().position(|queue| !queue.ready()) {
            return Err(ActivateError::QueueNotReady { device: self.name(), index });
        }
        if let Some(link) = &self.link {
            link.set_offloads(active.features)
                .map_err(|source| ActivateError::Host { device: "net", source })?;
        }
        if std::mem::take(&mut self.restored) {
            active.interrupt.config_changed();
        }
        self.active = Some(active);
        Ok(())
    }

    fn reset(&mut self) {
        self.tx_blocked = false;
        self.active = None;
    }

    fn active(&self) -> Option<&Active> {
        self.active.as_ref()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        self.restored = true;
        if state.is_empty() { Ok(()) } else { Err(RestoreError::Device { device: self.name() }) }
    }

    fn register(&mut self, ops: &mut EventOps) {
        self.watch_link(ops);
        self.rx_limiter.register(ops, DATA_RX_TIMER);
        self.tx_limiter.register(ops, DATA_TX_TIMER);
    }

    fn queue_notified(&mut self, index: usize, ops: &mut EventOps) {
        match index {
            RX => self.receive(ops),
            _ => self.transmit(ops),
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let lost = events.event_set().intersects(EventSet::ERROR | EventSet::HANG_UP);
        match events.data() {
            DATA_LINK if lost => self.unplug(ops),
            DATA_LINK => {
                self.receive(ops);
                // An error is one that the link ends with, which is another event.
                let sent = self.link.as_mut().is_none_or(|link| link.flush().unwrap_or(true));
                if self.tx_blocked && sent {
                    self.transmit(ops);
                }
            }
            DATA_RX_TIMER => self.receive(ops),
            _ => self.transmit(ops),
        }
    }
}
