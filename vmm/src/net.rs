//! From a [`NetSpec`] to its device.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use bulkhead_devices::net::{Net, NetConfig, Tap};
use bulkhead_devices::virtio::VirtioDevice;

use crate::spec::NetSpec;

/// The device of `spec`, whose tap it takes over.
pub fn device(spec: &NetSpec) -> io::Result<Box<dyn VirtioDevice>> {
    let tap = spec.tap_fd.map(|fd| {
        // SAFETY: the spec says that this descriptor was inherited for this use alone.
        Tap::new(unsafe { OwnedFd::from_raw_fd(fd) })
    });
    let config = NetConfig {
        mac: spec.mac,
        mtu: spec.mtu,
        tap: tap.transpose()?,
        rx_limits: spec.rx_limits,
        tx_limits: spec.tx_limits,
    };
    Ok(Box::new(Net::new(config)?))
}
