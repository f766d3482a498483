//! Network interfaces: those a VM starts with, and those it gets while it runs.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use bulkhead_devices::net::{self, Link, Net, NetConfig, Stream, Tap};
use bulkhead_devices::virtio::VirtioDevice;
use bulkhead_devices::virtio::mmio::Transport;
use event_manager::{SubscriberId, SubscriberOps};

use crate::machine::Loop;
use crate::spec::{Limits, LinkKind, NetSpec};

/// The device of `spec`, whose link it takes over.
pub fn device(spec: &NetSpec, limits: &Limits) -> io::Result<Box<dyn VirtioDevice>> {
    let link = spec.link_fd.map(|fd| {
        // SAFETY: the spec says that this descriptor was inherited for this use alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        match spec.kind {
            LinkKind::Tap => Tap::new(fd).map(Link::Tap),
            LinkKind::Stream => Stream::new(fd).map(Link::Stream),
        }
    });
    let config = NetConfig {
        mac: spec.mac,
        mtu: spec.mtu,
        link: link.transpose()?,
        plain: spec.kind == LinkKind::Stream,
        rx_limits: limits.net_rx,
        tx_limits: limits.net_tx,
    };
    Ok(Box::new(Net::new(config)?))
}

/// A device that will be an interface once one is plugged in.
pub fn place(limits: &Limits) -> io::Result<Box<dyn VirtioDevice>> {
    Ok(Box::new(Net::place(limits.net_rx, limits.net_tx)?))
}

/// Where a device is: in the guest's memory map, and in the event loop.
pub struct Place {
    /// Of [`Place::transport`].
    pub subscriber: SubscriberId,
    /// Its registers.
    pub transport: Arc<Mutex<Transport>>,
}

/// Places for interfaces, and interfaces without a cable, in their order.
#[derive(Default)]
pub struct Places(Vec<Place>);

/// Why an interface was not plugged in.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// No descriptor.
    #[error("no tap came with the request")]
    NoTap,
    /// Some other descriptor, or a tap of another kind.
    #[error("what came with the request is no tap for frames with virtio headers: {0}")]
    Tap(#[source] io::Error),
    /// All taken, or not such a tap.
    #[error(transparent)]
    Device(#[from] net::PlugError),
    /// The event loop.
    #[error("cannot watch the tap: {0}")]
    EventLoop(#[from] event_manager::Error),
}

impl From<Vec<Place>> for Places {
    fn from(places: Vec<Place>) -> Self {
        Self(places)
    }
}

impl Places {
    /// Plugs an interface in at the first of them that is free, or is so again because its tap was
    /// deleted.
    pub fn plug(
        &self,
        events: &mut Loop,
        mac: [u8; 6],
        mtu: Option<u16>,
        tap: Option<OwnedFd>,
    ) -> Result<(), PlugError> {
        let tap = Tap::new(tap.ok_or(PlugError::NoTap)?).map_err(PlugError::Tap)?;
        for Place { subscriber, transport } in &self.0 {
            let mut transport = transport.lock().unwrap_or_else(PoisonError::into_inner);
            let net: Option<&mut Net> = transport.device_mut();
            if let Some(net) = net.filter(|net| net.has_room()) {
                let mut ops = events.event_ops(*subscriber)?;
                return Ok(net.plug(mac, mtu, tap, &mut ops)?);
            }
        }
        Err(net::PlugError::Occupied.into())
    }
}
