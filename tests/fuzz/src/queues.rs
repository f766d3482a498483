//! A device behind rings that a guest fills with whatever it likes, and a host that does the same.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use bulkhead_devices::fs::FsDevice;
use bulkhead_devices::net::{Link, Net, NetConfig, Tap};
use bulkhead_devices::rng::Rng;
use bulkhead_devices::testing::{Driver, FREE_MEMORY, raw_descriptor};
use bulkhead_devices::virtio::VirtioDevice;
use bulkhead_devices::vsock::caps::Caps;
use bulkhead_devices::vsock::{HostEnd, Vsock, VsockConfig};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::input::Input;

/// What is done, one byte each.
const DESCRIPTOR: u8 = 0;
const PUBLISH: u8 = 1;
const KICK: u8 = 2;
const MEMORY: u8 = 3;
const HOST: u8 = 4;
const INDIRECT: u8 = 5;
const JUMP: u8 = 6;
const TAKE: u8 = 7;
const RESET: u8 = 8;
const ACTIONS: u8 = 9;

/// The two ways into memory: where a buffer may be, and anywhere.
fn address(input: &mut Input) -> u64 {
    match input.u8() % 4 {
        0 => input.u64(),
        _ => FREE_MEMORY.start + u64::from(input.u16()) * 8,
    }
}

/// Descriptor indices and ring entries, mostly of the first few descriptors.
fn index(input: &mut Input) -> u16 {
    match input.u8() {
        raw @ 0..240 => u16::from(raw) % 12,
        _ => input.u16(),
    }
}

fn drive(device: Box<dyn VirtioDevice>, input: &[u8], mut host: impl FnMut(&mut Input)) {
    let mut input = Input(input);
    let mut driver = Driver::start(device);
    let queues = [0, 1, 2].map(|queue| queue % driver.queues());
    while !input.is_empty() {
        let action = input.u8();
        let queue = input.pick(&queues);
        match action % ACTIONS {
            DESCRIPTOR => {
                let (at, address, len) = (index(&mut input), address(&mut input), input.u32());
                let (flags, next) = (input.u8().into(), index(&mut input));
                let at = at % driver.queue(queue).size();
                driver.queue(queue).write_descriptor(at, address, len, flags, next);
            }
            PUBLISH => driver.queue(queue).publish(index(&mut input)),
            KICK => {
                driver.kick(queue);
                driver.run();
            }
            MEMORY => {
                let (at, len) = (FREE_MEMORY.start + u64::from(input.u16()) * 8, input.u8());
                let _ = driver.memory.write_slice(input.bytes(len.into()), GuestAddress(at));
            }
            INDIRECT => {
                let (table, buffer) = (address(&mut input), address(&mut input));
                let descriptor = raw_descriptor(buffer, input.u32(), input.u8().into(), 1);
                let _ = driver.memory.write_slice(&descriptor, GuestAddress(table));
            }
            HOST => host(&mut input),
            JUMP => driver.queue(queue).set_avail_index(input.u16()),
            RESET => {
                let features = driver.offered_features();
                driver.initialise(features);
            }
            _ => while driver.queue(queue).take_used().is_some() {},
        }
    }
    driver.run();
}

pub fn rng(input: &[u8]) {
    drive(Box::new(Rng::new()), input, |_| {});
}

pub fn net(input: &[u8]) {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let sockets = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let (host, guest) = sockets.unwrap();
    let config = NetConfig { link: Some(Link::Tap(Tap::socket(guest))), ..NetConfig::default() };
    drive(Box::new(Net::new(config).unwrap()), input, |input| {
        let len = input.u8();
        let _ = rustix::net::send(&host, input.bytes(len.into()), SendFlags::empty());
        let _ = rustix::net::recv(&host, &mut [0; 4096][..], RecvFlags::empty());
    });
}

/// The host is the file worker: it answers the number it was last asked with, or another.
pub fn fs(input: &[u8]) {
    let (mut worker, socket) = UnixStream::pair().unwrap();
    worker.set_nonblocking(true).unwrap();
    let mut asked = 0;
    drive(Box::new(FsDevice::new("fuzz", OwnedFd::from(socket))), input, |input| {
        let mut request = [0; 40];
        if worker.read(&mut request).is_ok_and(|len| len == request.len()) {
            asked = u64::from_le_bytes(request[8..16].try_into().unwrap());
        }
        let (len, error) = (u32::from(input.u8()), -i32::from(input.u8()));
        let unique = if input.u8() % 8 == 0 { input.u64() } else { asked };
        let reply = [&len.to_le_bytes()[..], &error.to_le_bytes(), &unique.to_le_bytes()].concat();
        let body = input.bytes((len as usize).saturating_sub(reply.len()));
        let _ = worker.write_all(&[&reply, body].concat());
    });
}

pub fn vsock(input: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm");
    let device = vsock_at(&path);
    let mut client = None;
    drive(device, input, |input| {
        let client = client.get_or_insert_with(|| UnixStream::connect(&path).unwrap());
        let _ = client.set_nonblocking(true);
        let len = input.u8();
        let greeted = client.write_all(b"CONNECT 7\n");
        let _ = greeted.and_then(|()| client.write_all(input.bytes(len.into())));
        let _ = client.read(&mut [0; 4096]);
    });
}

/// A vsock device whose guest has called it ready; its sockets are at `path`.
pub fn vsock_at(path: &std::path::Path) -> Box<Vsock> {
    vsock_with(path, None)
}

/// The same, with standard output if given.
pub fn vsock_with(path: &std::path::Path, stdout: Option<OwnedFd>) -> Box<Vsock> {
    let ready = EventFd::new(EFD_NONBLOCK).unwrap();
    ready.write(1).unwrap();
    let null = std::fs::File::open("/dev/null").unwrap().into();
    let stdout = stdout.map(|fd| (11, HostEnd::Streams { read: None, write: Some(fd) }));
    let mut host_ports = vec![
        (10, HostEnd::Streams { read: Some(null), write: None }),
        (14, HostEnd::Message { len: 12, deliver: Box::new(|_| {}) }),
    ];
    host_ports.extend(stdout);
    let config = VsockConfig {
        guest_cid: crate::vsock::CID as u32,
        caps: Caps::default(),
        listener: UnixListener::bind(path).unwrap(),
        path: path.to_owned(),
        ready,
        host_ports,
        on_first_output: None,
    };
    Box::new(Vsock::new(config).unwrap())
}

/// A request of two buffers, one of each direction, for any queue; then one by an indirect table.
pub fn seeds() -> Vec<Vec<u8>> {
    let near = |slot: u16| [&[1][..], &slot.to_le_bytes()].concat();
    (0..3)
        .map(|queue| {
            let descriptor = |at: u8, slot, len: u32, flags: u8| {
                let head = [&[DESCRIPTOR, queue, at][..], &near(slot)].concat();
                [&head[..], &len.to_le_bytes(), &[flags, at + 1]].concat()
            };
            let mut header = vec![MEMORY, queue, 0, 0, 44];
            header.extend(48u32.to_le_bytes());
            header.extend([1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1].iter().chain(&[0; 27]));
            let table = [&[INDIRECT, queue][..], &near(900), &near(0), &[48, 0, 0, 0, 1]].concat();
            [
                header,
                descriptor(0, 0, 48, 1),
                descriptor(1, 100, 4096, 2),
                vec![PUBLISH, queue, 0, KICK, queue, HOST, queue, 24, 0, 1],
                vec![9; 8],
                vec![KICK, queue, TAKE, queue],
                table,
                descriptor(2, 900, 16, 4),
                vec![PUBLISH, queue, 2, KICK, queue, RESET, queue, JUMP, queue, 3, 0, KICK, queue],
            ]
            .concat()
        })
        .collect()
}
