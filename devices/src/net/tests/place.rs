//! Places that get their interface while the VM runs.

use virtio_bindings::virtio_mmio::VIRTIO_MMIO_DEVICE_ID;

use super::*;

fn place() -> Driver {
    Driver::new(Box::new(Net::place(RateLimits::default(), RateLimits::default()).unwrap()))
}

fn plug(driver: &mut Driver) -> (OwnedFd, Result<(), PlugError>) {
    let (host, guest) = sockets();
    let plugged =
        driver.with_device(|net: &mut Net, ops| net.plug(MAC, Some(9000), Tap::socket(guest), ops));
    (host, plugged)
}

#[test]
fn an_empty_place_is_no_device_until_an_interface_is_plugged_in() {
    let mut driver = place();
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_ID), 0);
    let (host, plugged) = plug(&mut driver);
    plugged.unwrap();
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_ID), VIRTIO_ID_NET);
    let features = driver.offered_features();
    assert_ne!(features & 1 << VIRTIO_NET_F_MTU, 0);
    driver.initialise(features);
    let mut config = [0; 12];
    driver.read_config(0, &mut config);
    assert_eq!((&config[..6], &config[10..]), (&MAC[..], &9000u16.to_le_bytes()[..]));

    let mut wire = Wire { driver, host };
    assert_eq!(wire.status(), 1, "the link is up");
    wire.send(&[&frame(1, 60)]);
    wire.driver.run();
    assert_eq!(wire.host_gets(), Some(frame(1, 60)));
    // Enough for the largest frame there can be.
    wire.post_receive(40, 2048);
    assert!(wire.host_sends(&frame(2, 60)));
    assert_eq!(wire.used(RX)[0].bytes, delivered(frame(2, 60), 1));
}

#[test]
fn a_place_is_taken_once_and_not_while_a_driver_sits_there() {
    let mut driver = place();
    plug(&mut driver).1.unwrap();
    assert!(matches!(plug(&mut driver).1, Err(PlugError::Occupied)));

    let mut hasty = place();
    hasty.initialise(VERSION_1);
    assert!(matches!(plug(&mut hasty).1, Err(PlugError::Occupied)));
    hasty.reset();
    plug(&mut hasty).1.unwrap();
}

#[test]
fn an_empty_place_is_saved_and_restored_as_one() {
    let mut driver = place();
    driver.restore_to(Box::new(Net::new(NetConfig::default()).unwrap())).unwrap_err();
    let empty = Net::place(RateLimits::default(), RateLimits::default()).unwrap();
    driver.restore_to(Box::new(empty)).unwrap();
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_ID), 0);
    plug(&mut driver).1.unwrap();
}

#[test]
fn an_interface_without_a_cable_gets_one_while_its_driver_works() {
    let mut wire = Wire::with(u64::MAX, NetConfig { mtu: Some(1400), ..NetConfig::default() });
    wire.post_receive(40, 2048);
    let without = NetConfig { mac: MAC, mtu: Some(1500), ..NetConfig::default() };
    wire.driver.restore_to(Box::new(Net::new(without).unwrap())).unwrap();
    assert_eq!(wire.status(), 0, "the link is down");
    let (host, plugged) = plug(&mut wire.driver);
    plugged.unwrap();
    wire.host = host;
    assert_eq!(wire.status(), 1);
    let mut config = [0; 12];
    wire.driver.read_config(0, &mut config);
    assert_eq!(&config[10..], &1500u16.to_le_bytes(), "what the driver knows stays");
    wire.send(&[&frame(1, 60)]);
    wire.driver.run();
    assert_eq!(wire.host_gets(), Some(frame(1, 60)));
    assert!(wire.host_sends(&frame(2, 60)));
    assert_eq!(wire.used(RX)[0].bytes, delivered(frame(2, 60), 1));
    assert!(matches!(plug(&mut wire.driver).1, Err(PlugError::Occupied)));
}
