//! Double fetches: a second processor rewrites what a device reads while it reads it.

use super::fuse::{self, INIT_BODY};
use super::{Attack, vsock};
use crate::boot::start_second;
use crate::fail;
use crate::io::{get, put};
use crate::virtio::{BUFFERS, Device, INDIRECT, NEXT, RNG, WRITE, describe, rng_is_sane, rng_with};

pub const ATTACKS: &[Attack] = &[
    ("race_descriptor_addresses", race_descriptor_addresses),
    ("race_descriptor_chains", race_descriptor_chains),
    ("race_indirect_tables", race_indirect_tables),
    ("race_ring_indexes", race_ring_indexes),
    ("race_fuse_headers", race_fuse_headers),
    ("race_vsock_headers", race_vsock_headers),
    ("race_status", race_status),
];

const ROUNDS: u32 = 1_500;
const TABLE: u64 = BUFFERS + 0x10_0000;
/// Where the entropy device's rings are: the same in every VM of these attacks.
static mut RING: u64 = 0;

fn ring() -> u64 {
    unsafe { (&raw const RING).read_volatile() }
}

fn set_ring(at: u64) {
    unsafe { (&raw mut RING).write_volatile(at) }
}

fn sane() {
    if !rng_is_sane() {
        fail("the entropy device does not work any more");
    }
}

fn storm(features: u32, prepare: fn(u64), work: fn()) {
    let queue = rng_with(16, features);
    set_ring(queue.desc);
    prepare(queue.desc);
    start_second(work);
    for round in 0..ROUNDS {
        if round % 64 == 63 {
            // A ring that was caught corrupt stays quiet until the device is reset.
            rng_with(16, features);
            prepare(ring());
        }
        queue.offer(0);
        queue.notify();
    }
    start_second(|| {});
    sane();
}

fn race_descriptor_addresses() {
    storm(
        0,
        |ring| describe(ring, 0, BUFFERS, 4096, WRITE, 0),
        || {
            put(ring(), u64::MAX - 100);
            put(ring() + 8, u32::MAX);
            put(ring(), 0xd000_0000u64);
            put(ring(), BUFFERS);
            put(ring() + 8, 4096u32);
        },
    );
}

fn race_descriptor_chains() {
    storm(
        0,
        |ring| (0..16).for_each(|i| describe(ring, i, BUFFERS, 64, WRITE | NEXT, (i + 1) % 16)),
        || {
            for i in 0..16u64 {
                put(ring() + 16 * i + 12, WRITE);
                put(ring() + 16 * i + 14, 0xffffu16);
                put(ring() + 16 * i + 12, WRITE | NEXT);
                put(ring() + 16 * i + 14, (i as u16 + 1) % 16);
            }
        },
    );
}

fn race_indirect_tables() {
    storm(
        1 << 28,
        |ring| {
            describe(TABLE, 0, BUFFERS, 64, WRITE | NEXT, 1);
            describe(TABLE, 1, BUFFERS, 64, WRITE, 0);
            describe(ring, 0, TABLE, 32, INDIRECT, 0);
        },
        || {
            put(TABLE + 12, INDIRECT);
            put(ring() + 8, 1u32 << 24);
            put(TABLE + 14, 0x7fffu16);
            put(ring(), u64::MAX - 31);
            put(TABLE + 12, WRITE | NEXT);
            put(ring() + 8, 32u32);
            put(TABLE + 14, 1u16);
            put(ring(), TABLE);
        },
    );
}

fn race_ring_indexes() {
    storm(
        0,
        |ring| describe(ring, 0, BUFFERS, 16, WRITE, 0),
        || {
            let avail = ring() + 0x4000;
            let index: u16 = get(avail + 2);
            put(avail + 2, index.wrapping_add(0x4000));
            put(avail + 4, 0xffffu16);
            put(ring() + 0x8002, 0x1234u16);
            put(avail + 2, index);
            put(avail + 4, 0u16);
        },
    );
}

fn race_fuse_headers() {
    let mut fs = fuse::Fs::start();
    start_second(|| {
        // The length and the opcode of the request being sent.
        for len in [0u32, 39, 1 << 20, u32::MAX, 104] {
            put(fuse::REQUEST, len);
            put(fuse::REQUEST + 4, len % 60);
        }
    });
    for _ in 0..400 {
        fs.send_and_forget(26, 0, &[&INIT_BODY]);
    }
    start_second(|| {});
    fuse::sane();
}

fn race_vsock_headers() {
    let mut vsock = vsock::Guest::start();
    start_second(|| {
        for len in [0u32, 1 << 16, u32::MAX, 44] {
            put(vsock::PACKET + 24, len);
            put(vsock::PACKET + 30, (len % 9) as u16);
            put(vsock::PACKET + 8, u64::from(len));
        }
    });
    for port in 0..40 {
        vsock.send(1, 5000 + port, 9000, &[0; 64]);
    }
    start_second(|| {});
    vsock::sane();
}

fn race_status() {
    let device = Device::find(RNG);
    start_second(|| {
        let device = Device::find(RNG);
        device.set(0x70, 0);
        device.negotiate(0);
        device.ok();
    });
    for _ in 0..1_000 {
        device.negotiate(0);
        let queue = device.queue(0, 8).enable();
        device.ok();
        queue.describe(0, BUFFERS, 1 << 16, WRITE, 0);
        queue.offer(0);
        queue.notify();
    }
    start_second(|| {});
    sane();
}
