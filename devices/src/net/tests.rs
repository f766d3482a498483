//! The device as a driver and the host's network see it; a datagram socket stands in for the tap.

mod hostile;
mod place;
mod random;
mod receive;
mod stream;
mod transmit;

use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

use super::header::NUM_BUFFERS;
use super::*;
use crate::testing::{Driver, Used};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

/// A guest's driver and the host's end of the wire.
struct Wire {
    driver: Driver,
    host: OwnedFd,
}

fn sockets() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

impl Wire {
    /// With all features accepted.
    fn new() -> Self {
        Self::with(u64::MAX, NetConfig::default())
    }

    /// With `features` of those offered.
    fn with(features: u64, config: NetConfig) -> Self {
        let (host, guest) = sockets();
        let link = Some(Link::Tap(Tap::socket(guest)));
        let device = Net::new(NetConfig { mac: MAC, link, ..config }).unwrap();
        let mut driver = Driver::new(Box::new(device));
        let offered = driver.offered_features();
        driver.initialise(offered & features | VERSION_1);
        Self { driver, host }
    }

    /// Posts a chain to send, made of these pieces.
    fn send(&mut self, pieces: &[&[u8]]) -> u16 {
        let head = self.driver.queue(TX).post(pieces, &[]);
        self.driver.kick(TX);
        head
    }

    /// The next message that the host got from the guest.
    fn host_gets(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 1 << 17];
        let (len, _) = rustix::net::recv(&self.host, &mut bytes[..], RecvFlags::empty()).ok()?;
        bytes.truncate(len);
        Some(bytes)
    }

    /// A message from the host; false if the socket is full.
    fn host_sends(&self, bytes: &[u8]) -> bool {
        rustix::net::send(&self.host, bytes, SendFlags::empty()).is_ok()
    }

    /// Posts chains of one buffer each for frames from the host.
    fn post_receive(&mut self, count: usize, len: u32) {
        for _ in 0..count {
            self.driver.queue(RX).post(&[], &[len]);
        }
        self.driver.kick(RX);
    }

    /// All that the device has used of a queue after it did what it could.
    fn used(&mut self, queue: usize) -> Vec<Used> {
        self.driver.run();
        std::iter::from_fn(|| self.driver.queue(queue).take_used()).collect()
    }

    fn status(&self) -> u16 {
        let mut status = [0; 2];
        self.driver.read_config(6, &mut status);
        u16::from_le_bytes(status)
    }
}

/// A header that asks for nothing, then `len` bytes that tell one frame from another.
fn frame(seed: u8, len: usize) -> Vec<u8> {
    let payload = (0..len).map(|i| seed.wrapping_add((i % 251) as u8));
    std::iter::repeat_n(0, header::LEN).chain(payload).collect()
}

/// `bytes` as the device delivers them, in `chains` chains.
fn delivered(mut bytes: Vec<u8>, chains: u16) -> Vec<u8> {
    bytes[NUM_BUFFERS..header::LEN].copy_from_slice(&chains.to_le_bytes());
    bytes
}

#[test]
fn the_configuration_says_what_was_asked_for() {
    let wire = Wire::new();
    let mut config = [0xaa; 16];
    wire.driver.read_config(0, &mut config);
    assert_eq!(config[..6], MAC);
    let vendor = wire.driver.read(virtio_bindings::virtio_mmio::VIRTIO_MMIO_VENDOR_ID);
    assert_eq!(vendor, u32::from_le_bytes(*b"BULK"), "the link's status may change");
    assert_eq!(config[6..], [1, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(wire.driver.offered_features() & 1 << VIRTIO_NET_F_MTU, 0);

    let wire = Wire::with(u64::MAX, NetConfig { mtu: Some(1400), ..NetConfig::default() });
    let mut mtu = [0; 2];
    wire.driver.read_config(10, &mut mtu);
    assert_eq!(u16::from_le_bytes(mtu), 1400);
    assert_ne!(wire.driver.offered_features() & 1 << VIRTIO_NET_F_MTU, 0);
}

#[test]
fn without_a_tap_the_link_is_down_and_frames_go_nowhere() {
    let mut driver = Driver::start(Box::new(Net::new(NetConfig::default()).unwrap()));
    let mut status = [0xaa; 2];
    driver.read_config(6, &mut status);
    assert_eq!(status, [0, 0]);
    for _ in 0..300 {
        driver.queue(TX).post(&[&frame(1, 60)], &[]);
        driver.kick(TX);
        assert_eq!(driver.wait_used(TX).len, 0);
    }
    driver.queue(RX).post(&[], &[1536]);
    driver.kick(RX);
    driver.run();
    assert!(!driver.queue(RX).has_used());
}

#[test]
fn a_tap_that_vanishes_takes_the_link_down() {
    let mut wire = Wire::new();
    wire.post_receive(64, 2048);
    wire.driver.run();
    let before = wire.driver.interrupts.count();
    let (other, _) = sockets();
    drop(std::mem::replace(&mut wire.host, other));
    wire.driver.run();
    assert_eq!(wire.status(), 0);
    assert_eq!(wire.driver.interrupts.count(), before + 1);
    assert_eq!(wire.driver.transport.lock().unwrap().interrupt().pending() & 2, 2);
    wire.send(&[&frame(1, 60)]);
    assert_eq!(wire.used(TX).len(), 1);
}

#[test]
fn a_device_that_was_reset_works_again() {
    let mut wire = Wire::new();
    wire.post_receive(100, 1536);
    wire.send(&[&frame(1, 60)]);
    wire.driver.run();
    let features = wire.driver.offered_features();
    wire.driver.initialise(features);
    // Frames that arrived in between wait for the new driver's buffers.
    assert!(wire.host_sends(&frame(2, 100)));
    wire.driver.run();
    wire.post_receive(100, 1536);
    assert_eq!(wire.used(RX)[0].bytes, delivered(frame(2, 100), 1));
    assert_eq!(wire.host_gets(), Some(frame(1, 60)));
    wire.send(&[&frame(3, 60)]);
    wire.driver.run();
    assert_eq!(wire.host_gets(), Some(frame(3, 60)));
}

#[test]
fn a_restored_device_has_its_driver_look_at_the_new_tap() {
    let mut driver = Driver::start(Box::new(Net::new(NetConfig::default()).unwrap()));
    let generation = driver.read(virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG_GENERATION);
    let (host, guest) = sockets();
    let link = Some(Link::Tap(Tap::socket(guest)));
    let plugged = Net::new(NetConfig { mac: MAC, mtu: Some(1400), link, ..NetConfig::default() });
    driver.restore_to(Box::new(plugged.unwrap())).unwrap();
    assert_eq!(driver.transport.lock().unwrap().interrupt().pending(), 2, "configuration changed");
    assert_eq!(driver.interrupts.count(), 1);
    let changed = driver.read(virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG_GENERATION);
    assert_ne!(changed, generation);
    let mut wire = Wire { driver, host };
    assert_eq!(wire.status(), 1);
    wire.post_receive(100, 1536);
    assert!(wire.host_sends(&frame(2, 100)));
    assert_eq!(wire.used(RX)[0].bytes, delivered(frame(2, 100), 1));
    wire.send(&[&frame(3, 60)]);
    wire.driver.run();
    assert_eq!(wire.host_gets(), Some(frame(3, 60)));
}
