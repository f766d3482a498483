//! Floods of devices that are held to a rate: as many requests as a ring takes, again and again. The
//! runner counts what came of them on the host.

use super::Attack;
use super::fuse::{Fs, op};
use super::vsock;
use crate::io::{clock, get, outb, pause, put, put_bytes, wait};
use crate::virtio::{BUFFERS, Device, NET, NEXT, Queue, WRITE, rng};
use crate::{fail, print_count};

pub const ATTACKS: &[Attack] = &[
    ("flood_of_files", flood_of_files),
    ("flood_of_writes", flood_of_writes),
    ("flood_of_copies", flood_of_copies),
    ("flood_of_packets", flood_of_packets),
    ("flood_of_output", flood_of_output),
    ("flood_of_small_entropy", flood_of_small_entropy),
    ("flood_of_large_entropy", flood_of_large_entropy),
    ("flood_of_frames", flood_of_frames),
    ("flood_of_large_frames", flood_of_large_frames),
    ("flood_of_received_frames", flood_of_received_frames),
    ("flood_of_console_bytes", flood_of_console_bytes),
    ("flood_of_connections", flood_of_connections),
];

/// Room for a request, and for a reply.
const SLOT_LEN: u64 = 0x2_0000;
/// A second, about.
const TICKS: u64 = 3_000_000_000;
/// Of files' names: the octal digits of a request's number.
const NAME_LEN: usize = 8;

/// Where the request of a slot is, and where its reply.
fn places(slot: u16) -> (u64, u64) {
    let at = BUFFERS + 0x20_0000 + u64::from(slot) * 2 * SLOT_LEN;
    (at, at + SLOT_LEN)
}

/// Offers chains for a second, each again as soon as it is used: `prepare` gets the slot, whose
/// chain begins with descriptor `2 * slot`, and the number of the request. At the end chains must be
/// waiting: the flood was more than the device takes. Tells how many were used, and their bytes.
fn flood(queue: Queue, mut prepare: impl FnMut(u16, u64)) {
    let (mut offered, mut used, mut bytes) = (0u64, 0u64, 0u64);
    let mut seen = queue.used_index();
    let slots = queue.size / 2;
    for slot in 0..slots {
        prepare(slot, offered);
        queue.offer(2 * slot);
        offered += 1;
    }
    let start = clock();
    while clock() - start < TICKS {
        queue.notify();
        pause(1_000);
        while seen != queue.used_index() {
            let element = queue.used + 4 + 8 * u64::from(seen % queue.size);
            let slot = get::<u32>(element) as u16 / 2 % slots;
            bytes += u64::from(get::<u32>(element + 4));
            seen = seen.wrapping_add(1);
            used += 1;
            prepare(slot, offered);
            queue.offer(2 * slot);
            offered += 1;
        }
    }
    print_count("used ", used);
    print_count("bytes ", bytes);
    if used == offered {
        fail("nothing had to wait");
    }
}

/// One request a file.
fn flood_of_files() {
    let mut fs = Fs::start();
    let share = fs.share();
    let queue = fs.requests;
    flood(queue, |slot, number| {
        let (request, reply) = places(slot);
        let mut name = [b'0'; NAME_LEN + 1];
        for (digit, byte) in name.iter_mut().enumerate().take(NAME_LEN) {
            *byte += (number >> (3 * digit) & 7) as u8;
        }
        name[NAME_LEN] = 0;
        // mode S_IFREG | 0600, rdev, umask, padding.
        let head = [0x8180u32, 0, 0, 0].map(u32::to_le_bytes);
        let len = fs.write(request, op::MKNOD, share, &[head.as_flattened(), &name]);
        queue.describe(2 * slot, request, len, NEXT, 2 * slot + 1);
        queue.describe(2 * slot + 1, reply, 4096, WRITE, 0);
    });
}

/// 64 KiB a request, to one file, one behind the other.
fn flood_of_writes() {
    const LEN: u32 = 64 << 10;
    let mut fs = Fs::start();
    let share = fs.share();
    let file = fs.lookup(share, b"file");
    let (_, handle) = fs.open(op::OPEN, file, 2);
    let queue = fs.requests;
    flood(queue, |slot, number| {
        let (request, reply) = places(slot);
        let (handle, offset) = (handle.to_le_bytes(), (number * u64::from(LEN)).to_le_bytes());
        let head: [&[u8]; 4] = [&handle, &offset, &LEN.to_le_bytes(), &[0; 20]];
        let len = fs.write(request, op::WRITE, file, &head) + LEN;
        put(request, len);
        queue.describe(2 * slot, request, len, NEXT, 2 * slot + 1);
        queue.describe(2 * slot + 1, reply, 24, WRITE, 0);
    });
}

/// 4 MiB a request, from the front of a file to behind its end: much for the host, little for a queue.
fn flood_of_copies() {
    const LEN: u64 = 4 << 20;
    let mut fs = Fs::start();
    let share = fs.share();
    let file = fs.lookup(share, b"file");
    let (_, handle) = fs.open(op::OPEN, file, 2);
    // valid FATTR_SIZE, padding, fh; size.
    let set = [8, 0, LEN].map(u64::to_le_bytes);
    fs.call(op::SETATTR, file, &[set.as_flattened(), &[0; 64]]);
    let queue = fs.requests;
    flood(queue, |slot, number| {
        let (request, reply) = places(slot);
        let body = [handle, 0, file, handle, LEN * (number + 1), LEN, 0].map(u64::to_le_bytes);
        let len = fs.write(request, op::COPY_FILE_RANGE, file, &[body.as_flattened()]);
        queue.describe(2 * slot, request, len, NEXT, 2 * slot + 1);
        queue.describe(2 * slot + 1, reply, 24, WRITE, 0);
    });
}

/// Packets of `len` bytes to standard output.
fn packets(len: u32) {
    let mut guest = vsock::Guest::start();
    guest.send(vsock::REQUEST, 1000, vsock::STDOUT, &[]);
    let queue = guest.tx;
    flood(queue, |slot, _| {
        let (packet, _) = places(slot);
        guest.header(packet, vsock::RW, 1000, vsock::STDOUT, len);
        queue.describe(2 * slot, packet, 44, NEXT, 2 * slot + 1);
        queue.describe(2 * slot + 1, packet + 44, len, 0, 0);
    });
}

fn flood_of_packets() {
    packets(1);
}

fn flood_of_output() {
    packets(4096);
}

/// Requests for `len` bytes; every other one is none at all.
fn entropy(len: u32) {
    let queue = rng(16);
    flood(queue, |slot, number| {
        let (_, to) = places(slot);
        let at = if number % 2 == 0 { to } else { 1 << 40 };
        queue.describe(2 * slot, at, len, WRITE, 0);
    });
}

fn flood_of_small_entropy() {
    entropy(16);
}

fn flood_of_large_entropy() {
    entropy(64 << 10);
}

/// A network interface's queues, receive and transmit.
fn net() -> [Queue; 2] {
    let device = Device::find(NET);
    device.negotiate(0);
    let queues = [0, 1].map(|index| device.queue(index, 64).enable());
    device.ok();
    queues
}

/// Frames of `len` bytes to everybody, of a protocol nobody knows.
fn frames(len: u32) {
    let [_, tx] = net();
    flood(tx, |slot, _| {
        let (frame, _) = places(slot);
        // The virtio header, destination, source, type.
        put_bytes(frame, &[0; 12]);
        put_bytes(frame + 12, &[0xff; 6]);
        put_bytes(frame + 18, &[2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
        tx.describe(2 * slot, frame, 12 + len, 0, 0);
    });
}

fn flood_of_frames() {
    frames(60);
}

fn flood_of_large_frames() {
    frames(1514);
}

/// Takes whatever the host sends.
fn flood_of_received_frames() {
    let [rx, _] = net();
    flood(rx, |slot, _| {
        let (_, to) = places(slot);
        rx.describe(2 * slot, to, 2048, WRITE, 0);
    });
}

/// Connections to a host program that reads nothing, each sent what its credit is worth and, in the
/// end, more. Tells how many there were at once, and the bytes they took.
fn flood_of_connections() {
    const LEN: u32 = 4096;
    let mut guest = vsock::Guest::start();
    let mut open = 0;
    for port in 0..64 {
        guest.send(vsock::REQUEST, port, vsock::PROGRAM, &[]);
        open += u64::from(guest.receive() == Some((vsock::RESPONSE, vsock::PROGRAM)));
    }
    print_count("open ", open);
    let mut sent = 0;
    for port in 0..open as u32 {
        let mut here = 0u32;
        loop {
            guest.send(vsock::CREDIT_REQUEST, port, vsock::PROGRAM, &[]);
            guest.receive();
            let (buffer, forwarded) = guest.credit;
            if here - forwarded + LEN > buffer {
                break;
            }
            guest.send(vsock::RW, port, vsock::PROGRAM, &[b'v'; LEN as usize]);
            here += LEN;
        }
        sent += u64::from(here);
    }
    print_count("sent ", sent);
    for port in 0..open as u32 {
        guest.send(vsock::RW, port, vsock::PROGRAM, &[b'v'; LEN as usize]);
        if guest.receive() != Some((vsock::RST, vsock::PROGRAM)) {
            fail("more than there is credit for is taken");
        }
    }
}

/// A line that is much longer than what the console lets through; what is said afterwards is heard.
fn flood_of_console_bytes() {
    for _ in 0..20_000 {
        outb(0x3f8, b'~');
    }
    wait(|| false);
    outb(0x3f8, b'\n');
}
