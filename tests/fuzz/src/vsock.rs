//! vsock packets that are packets: a guest that knows the protocol and lies about all of it; and devices
//! restored from states that do.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use bulkhead_devices::testing::Driver;
use bulkhead_devices::virtio::VirtioDevice;

use crate::input::Input;
use crate::queues::{vsock_at, vsock_with};

/// The guest's context ID.
pub const CID: u64 = 7;
const RX: usize = 0;
const TX: usize = 1;

/// What is done, one byte each.
const SEND: u8 = 0;
const OFFER: u8 = 1;
const TAKE: u8 = 2;
const CLIENT: u8 = 3;
const CLIENT_WRITES: u8 = 4;
const CLIENT_LEAVES: u8 = 5;
const HOST_ACCEPTS: u8 = 6;
const RESTORE: u8 = 7;
const ACTIONS: u8 = 8;

const GUEST_PORTS: [u32; 4] = [1000, 1001, 7, u32::MAX];
const HOST_PORTS: [u32; 6] = [5000, 10, 14, 1 << 30, (1 << 30) + 1, 11];

/// A packet as the input has it, with its payload.
fn packet(input: &mut Input) -> (Vec<u8>, Vec<u8>) {
    let (guest_port, host_port) = (input.pick(&GUEST_PORTS), input.pick(&HOST_PORTS));
    let (op, flags) = (u16::from(input.u8() % 10), u32::from(input.u8()));
    let lie = input.u8();
    let payload = input.u8();
    let payload = input.bytes(payload.into()).to_vec();
    let len = if lie & 1 == 0 { payload.len() as u32 } else { input.u32() };
    let src = if lie & 2 == 0 { CID } else { input.u64() };
    let kind: u16 = if lie & 4 == 0 { 1 } else { input.u16() };
    let (buf_alloc, fwd_cnt) = if lie & 8 == 0 { (65536, 0) } else { (input.u32(), input.u32()) };
    let header = [
        &src.to_le_bytes()[..],
        &2u64.to_le_bytes(),
        &guest_port.to_le_bytes(),
        &host_port.to_le_bytes(),
        &len.to_le_bytes(),
        &kind.to_le_bytes(),
        &op.to_le_bytes(),
        &flags.to_le_bytes(),
        &u32::to_le_bytes(buf_alloc),
        &u32::to_le_bytes(fwd_cnt),
    ];
    (header.concat(), payload)
}

pub fn run(input: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm");
    let driver = Driver::start(vsock_at(&path));
    drive(driver, &path, Input(input));
}

/// The input is the length of a saved device's own state, the state, and what its guest and the host do
/// then.
pub fn saved(input: &[u8]) {
    let mut input = Input(input);
    let len = input.u16();
    let state = input.bytes(len.into());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm");
    // Nobody reads it: what is written waits.
    let (_stuck, stdout) = UnixStream::pair().unwrap();
    let mut device = vsock_with(&path, Some(stdout.into()));
    if device.restore(state).is_err() {
        return;
    }
    let (_other, stdout) = UnixStream::pair().unwrap();
    let mut next = vsock_with(&dir.path().join("next"), Some(stdout.into()));
    next.restore(&device.save()).expect("what was restored can be saved, and restored again");
    drive(Driver::start(device), &path, input);
}

/// Does what the rest of the input says, with a device whose sockets are at `path`.
fn drive(mut driver: Driver, path: &Path, mut input: Input) {
    let listener = UnixListener::bind(path.with_file_name("vm_5000")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut hosts: Vec<UnixStream> = Vec::new();
    while !input.is_empty() {
        match input.u8() % ACTIONS {
            SEND if driver.queue(TX).free() >= 2 => {
                let (header, payload) = packet(&mut input);
                let parts = [&header[..], &payload];
                driver.queue(TX).post(&parts[..1 + usize::from(!payload.is_empty())], &[]);
                driver.kick(TX);
            }
            OFFER if driver.queue(RX).free() >= 1 => {
                driver.queue(RX).post(&[], &[input.u16().into()]);
                driver.kick(RX);
            }
            TAKE => {
                [RX, TX].into_iter().for_each(|q| while driver.queue(q).take_used().is_some() {})
            }
            CLIENT if hosts.len() < 8 => {
                let mut client = UnixStream::connect(path).unwrap();
                client.set_nonblocking(true).unwrap();
                let _ =
                    client.write_all(input.pick(&[b"CONNECT 7\n", b"CONNECT 9\n", b"connect 7\n"]));
                hosts.push(client);
            }
            CLIENT_WRITES => {
                let len = input.u8();
                let bytes = input.bytes(len.into());
                if let Some(host) = hosts.last_mut() {
                    let _ = host.write_all(bytes);
                    let _ = host.read(&mut [0; 512]);
                }
            }
            CLIENT_LEAVES => drop(hosts.pop()),
            HOST_ACCEPTS => {
                let accepted = listener.accept().ok().map(|(host, _)| host);
                accepted.iter().for_each(|host| host.set_nonblocking(true).unwrap());
                hosts.extend(accepted);
            }
            RESTORE => {
                let features = driver.offered_features();
                driver.initialise(features);
            }
            _ => {}
        }
        driver.run();
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let send = |ports: [u8; 2], op, flags, payload: &[u8]| {
        [&[SEND, ports[0], ports[1], op, flags, 0, payload.len() as u8][..], payload].concat()
    };
    let offer = [OFFER, 0xc0, 0x0e];
    let guests = [
        offer.repeat(4),
        send([0, 0], 1, 0, b""),
        vec![HOST_ACCEPTS, TAKE],
        send([0, 0], 5, 0, b"hello"),
        vec![CLIENT_WRITES, 3, b'a', b'b', b'c', TAKE],
        send([0, 0], 7, 0, b""),
        send([0, 0], 4, 2, b""),
        send([0, 0], 3, 0, b""),
    ];
    let report = [
        offer.repeat(2),
        send([1, 2], 1, 0, b""),
        send([1, 2], 5, 0, b"BLHK\x03\0\0\0\0\0\0\0"),
        send([1, 2], 4, 3, b""),
    ];
    let clients = [
        offer.repeat(3),
        vec![CLIENT, 0],
        vec![TAKE],
        send([2, 3], 2, 0, b""),
        vec![CLIENT_WRITES, 2, b'x', b'y'],
        send([2, 3], 5, 0, b"reply"),
        vec![CLIENT_LEAVES, TAKE, RESTORE],
    ];
    vec![guests.concat(), report.concat(), clients.concat()]
}

/// Devices in the middle of something, each followed by a guest that goes on.
pub fn saved_seeds() -> Vec<Vec<u8>> {
    let (header, _) = packet(&mut Input(&[0, 5, 1, 0, 0, 0]));
    let (data, payload) = packet(&mut Input(&[&[0, 5, 5, 0, 0, 200][..], &[b'o'; 200]].concat()));
    let states = [0, 1, 1200].map(|packets| {
        let dir = tempfile::tempdir().unwrap();
        let (_stuck, stdout) = UnixStream::pair().unwrap();
        let mut driver = Driver::start(vsock_with(&dir.path().join("vm"), Some(stdout.into())));
        driver.queue(TX).post(&[&header], &[]);
        driver.kick(TX);
        driver.run();
        for _ in 0..packets {
            driver.queue(TX).post(&[&data, &payload], &[]);
            driver.kick(TX);
            driver.run();
            while driver.queue(TX).take_used().is_some() {}
        }
        driver.transport.lock().unwrap().save().device
    });
    let goes_on = [&[OFFER, 0xc0, 0x0e, SEND, 0, 5, 5, 0, 0, 2][..], b"hi", &[TAKE]].concat();
    let whole =
        |state: &Vec<u8>| [&(state.len() as u16).to_le_bytes()[..], state, &goes_on].concat();
    states.iter().map(whole).collect()
}
