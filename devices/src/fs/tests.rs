//! The device between a mock driver and a worker that the test plays itself.

mod copy;
mod monitors;
mod window;

use std::io::{ErrorKind, Read, Write};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::rate_limiter::Rate;
use crate::testing::{Driver, FREE_MEMORY, Used, raw_descriptor};

const HIPRIO: usize = 0;
const REQUESTS: usize = 1;
const FORGET: u32 = 2;
const READ: u32 = 15;
const WRITE: u32 = 16;
const EIO: i32 = 5;
const ENOTCONN: i32 = 107;

struct Worker(UnixStream);

/// A request as the worker reads it.
#[derive(Debug, PartialEq)]
struct Asked {
    opcode: u32,
    unique: u64,
    body: Vec<u8>,
}

fn start() -> (Driver, Worker) {
    let (near, far) = UnixStream::pair().unwrap();
    far.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (Driver::start(Box::new(FsDevice::new("bulkhead", OwnedFd::from(near)))), Worker(far))
}

impl Worker {
    fn read(&mut self) -> Asked {
        let mut header = [0; 40];
        self.0.read_exact(&mut header).unwrap();
        let u32_at = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let mut body = vec![0; u32_at(0) as usize - 40];
        self.0.read_exact(&mut body).unwrap();
        let unique = u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32;
        Asked { opcode: u32_at(4), unique, body }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    fn answer(&mut self, unique: u64, body: &[u8]) {
        self.write(&reply(16 + body.len() as u32, 0, unique, body));
    }

    fn nothing_to_read(&mut self) -> bool {
        self.0.set_nonblocking(true).unwrap();
        let result = self.0.read(&mut [0]);
        self.0.set_nonblocking(false).unwrap();
        matches!(result, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }
}

fn message(opcode: u32, unique: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = (40 + body.len() as u32).to_le_bytes().to_vec();
    bytes.extend(opcode.to_le_bytes());
    bytes.extend(unique.to_le_bytes());
    bytes.extend([0x55; 24]);
    bytes.extend(body);
    bytes
}

fn reply(len: u32, error: i32, unique: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = len.to_le_bytes().to_vec();
    bytes.extend(error.to_le_bytes());
    bytes.extend(unique.to_le_bytes());
    bytes.extend(body);
    bytes
}

fn post(driver: &mut Driver, opcode: u32, unique: u64, body: &[u8], writable: &[u32]) -> u16 {
    let bytes = message(opcode, unique, body);
    let (header, body) = bytes.split_at(40);
    let head = if body.is_empty() {
        driver.queue(REQUESTS).post(&[header], writable)
    } else {
        driver.queue(REQUESTS).post(&[header, body], writable)
    };
    driver.kick(REQUESTS);
    driver.run();
    head
}

fn error_of(used: &Used) -> i32 {
    assert_eq!((used.len, &used.bytes[..4]), (16, &[16, 0, 0, 0][..]));
    -i32::from_le_bytes(used.bytes[4..8].try_into().unwrap())
}

#[test]
fn tells_its_tag_and_queues() {
    let (near, _far) = UnixStream::pair().unwrap();
    let long = "ä".repeat(30);
    let device = FsDevice::new(&long, near.into());
    let mut config = [0xaa; 48];
    device.read_config(0, &mut config);
    assert_eq!(config[..36], *"ä".repeat(18).as_bytes());
    assert_eq!(config[36..], [1, 0, 0, 0, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa]);
    device.read_config(36, &mut config[..4]);
    assert_eq!(config[..4], [1, 0, 0, 0]);
    device.read_config(u64::MAX, &mut config);
    let (driver, _worker) = start();
    let mut tag = [0; 9];
    for (at, byte) in tag.iter_mut().enumerate() {
        driver.read_config(at as u64, std::slice::from_mut(byte));
    }
    assert_eq!(&tag, b"bulkhead\0");
}

#[test]
fn a_request_goes_out_and_its_reply_comes_back() {
    let (mut driver, mut worker) = start();
    let head = post(&mut driver, 3, 77, b"getattr body", &[16, 104]);
    let asked = worker.read();
    assert_eq!((asked.opcode, asked.body.as_slice()), (3, &b"getattr body"[..]));
    assert_ne!(asked.unique, 77, "the worker sees the device's number");
    worker.answer(asked.unique, &[7; 104]);
    let used = driver.wait_used(REQUESTS);
    assert_eq!((used.head, used.len), (head, 120));
    assert_eq!(used.bytes[..16], reply(120, 0, 77, &[]), "the guest sees its own");
    assert_eq!(used.bytes[16..], [7; 104]);
    assert_eq!(driver.interrupts.count(), 1);
}

/// Requests wait in the queue, where they cost nothing; the room for replies counts, too.
#[test]
fn limits_hold_requests_back_and_let_them_go() {
    let rate = |per_second, burst| {
        let [per_second, burst] = [per_second, burst].map(|n| NonZeroU64::new(n).unwrap());
        Some(Rate { per_second, burst })
    };
    let by_requests = RateLimits { operations: rate(100, 3), bytes: None };
    let by_bytes = RateLimits { operations: None, bytes: rate(60_000, 1) };
    for limits in [by_requests, by_bytes] {
        let (near, far) = UnixStream::pair().unwrap();
        let device = FsDevice::new("bulkhead", OwnedFd::from(near)).limited(&limits).unwrap();
        let (mut driver, mut worker) = (Driver::start(Box::new(device)), Worker(far));
        let answers = thread::spawn(move || {
            for _ in 0..10 {
                let asked = worker.read();
                worker.answer(asked.unique, &[1; 544]);
            }
            worker
        });
        let start = Instant::now();
        for unique in 0..10 {
            post(&mut driver, READ, unique, &[], &[16, 544]);
        }
        for _ in 0..10 {
            assert_eq!(driver.wait_used(REQUESTS).len, 560);
        }
        // Seven of 10 ms; nine of 600 bytes, 10 ms each.
        assert!(start.elapsed() >= Duration::from_millis(65), "{:?}", start.elapsed());
        assert!(answers.join().unwrap().nothing_to_read());
    }
}

#[test]
fn errors_pass_through() {
    let (mut driver, mut worker) = start();
    post(&mut driver, 1, 5, b"name\0", &[16, 128]);
    let asked = worker.read();
    worker.write(&reply(16, -2, asked.unique, &[]));
    assert_eq!(error_of(&driver.wait_used(REQUESTS)), 2);
}

#[test]
fn replies_come_in_any_order_with_one_interrupt() {
    let (mut driver, mut worker) = start();
    let heads: Vec<u16> = (0..50).map(|i| post(&mut driver, 1, i, &[i as u8], &[16, 64])).collect();
    let asked: Vec<Asked> = heads.iter().map(|_| worker.read()).collect();
    let mut replies = Vec::new();
    for asked in asked.iter().rev() {
        replies.extend(reply(16 + 8, 0, asked.unique, &[asked.body[0]; 8]));
    }
    worker.write(&replies);
    for (i, head) in heads.iter().enumerate().rev() {
        let used = driver.wait_used(REQUESTS);
        assert_eq!((used.head, &used.bytes[16..]), (*head, &[i as u8; 8][..]));
        assert_eq!(used.bytes[8..16], (i as u64).to_le_bytes());
    }
    assert_eq!(driver.interrupts.count(), 1);
}

#[test]
fn forgets_are_used_at_once() {
    let (mut driver, mut worker) = start();
    let bytes = message(FORGET, 9, &[3; 8]);
    let head = driver.queue(HIPRIO).post(&[&bytes], &[]);
    driver.kick(HIPRIO);
    let used = driver.wait_used(HIPRIO);
    assert_eq!((used.head, used.len), (head, 0));
    assert_eq!(worker.read().body, [3; 8]);
}

#[test]
fn a_mebibyte_each_way_through_a_small_socket() {
    const SEGMENT: usize = 100_000;
    const SEGMENTS: usize = 10;
    let (mut driver, mut worker) = start();
    let data: Vec<u8> = (0..SEGMENT * SEGMENTS).map(|i| ((i * 7) >> 3) as u8).collect();

    let bytes = message(WRITE, 1, &data);
    let mut parts: Vec<&[u8]> = vec![&bytes[..13], &bytes[13..50]];
    parts.extend(bytes[50..].chunks(SEGMENT));
    driver.queue(REQUESTS).post(&parts, &[16, 8]);
    driver.kick(REQUESTS);
    driver.run();
    // More requests while the socket is full.
    for i in 0..20 {
        post(&mut driver, 1, 100 + i, &[i as u8], &[16, 64]);
    }
    let echo = thread::spawn(move || {
        let written = worker.read();
        worker.answer(written.unique, &[1; 8]);
        for i in 0..20 {
            let asked = worker.read();
            assert_eq!(asked.body, [i]);
            worker.answer(asked.unique, &asked.body);
        }
        let read = worker.read();
        assert_eq!(read.opcode, READ);
        worker.answer(read.unique, &written.body);
        written.body
    });
    assert_eq!(driver.wait_used(REQUESTS).bytes[16..], [1; 8]);
    for i in 0..20 {
        assert_eq!(driver.wait_used(REQUESTS).bytes[16..], [i]);
    }
    post(&mut driver, READ, 2, &[0; 40], &[&[16; 1][..], &[SEGMENT as u32; SEGMENTS]].concat());
    let used = driver.wait_used(REQUESTS);
    assert!(echo.join().unwrap() == data, "WRITE arrived changed");
    assert!(used.bytes[16..] == data, "READ arrived changed");
}

#[test]
fn refused_requests_get_eio_and_go_nowhere() {
    let (mut driver, mut worker) = start();
    let good = message(1, 8, b"name\0");
    let mut long = good.clone();
    long[0] += 1;
    let mut short = good.clone();
    short[0] -= 1;
    let [save, share, unshare] =
        [1, 2, 3].map(|code| message(0x424b_0000 + code, 8, b"\0\0\0\0name\0"));
    for (readable, writable, answer) in [
        (&long[..], &[16, 64][..], Some(EIO)), // announces more than there is
        (&short, &[16, 64], Some(EIO)),        // or less
        (&good[..39], &[16, 64], Some(EIO)),   // half a header
        (&[], &[16, 64], Some(EIO)),           // none
        (&save, &[16, 64], Some(EIO)),         // what the monitor alone may ask for
        (&share, &[16, 64], Some(EIO)),
        (&unshare, &[16, 64], Some(EIO)),
        (&good, &[15], None), // no room for a reply
        (&good, &[], None),
    ] {
        let readable: Vec<&[u8]> = if readable.is_empty() { vec![] } else { vec![readable] };
        driver.queue(REQUESTS).post(&readable, writable);
        driver.kick(REQUESTS);
        let used = driver.wait_used(REQUESTS);
        match answer {
            Some(errno) => assert_eq!(error_of(&used), errno),
            None => assert_eq!(used.len, 0),
        }
    }
    assert!(worker.nothing_to_read());
    post(&mut driver, 1, 8, b"name\0", &[16, 64]);
    assert_eq!(worker.read().body, b"name\0");
}

#[test]
fn bad_buffers_are_refused() {
    const NEXT: u16 = 1;
    const WRITABLE: u16 = 2;
    let (mut driver, mut worker) = start();
    let at = FREE_MEMORY.start;
    driver.memory.write_slice(&message(1, 8, &[0; 8]), GuestAddress(at)).unwrap();
    // Descriptors 0, 1, 2: address, length, flags.
    for chain in [
        [(at, 48, NEXT), (1 << 40, 64, WRITABLE | NEXT), (at, 0, WRITABLE)],
        [(u64::MAX - 8, 48, NEXT), (at, 64, WRITABLE | NEXT), (at, 0, WRITABLE)],
        [(at + 4096, 64, WRITABLE | NEXT), (at, 48, NEXT), (at, 0, 0)],
        [(at, 40, NEXT), (at + 4096, 64, WRITABLE | NEXT), (at + 40, 8, 0)],
        [(at, u32::MAX, NEXT), (at, 64, WRITABLE | NEXT), (at, 0, WRITABLE)],
    ] {
        let queue = driver.queue(REQUESTS);
        for (i, (address, len, flags)) in (0..).zip(chain) {
            queue.write_descriptor(i, address, len, flags, i + 1);
        }
        queue.publish(0);
        driver.kick(REQUESTS);
        let used = driver.wait_used(REQUESTS);
        assert!(used.len == 0 || used.len == 16, "{chain:?}: {}", used.len);
    }
    assert!(worker.nothing_to_read());
}

/// By an indirect table, which may have more descriptors than the queue.
#[test]
fn a_chain_may_be_as_long_as_the_queue() {
    const NEXT: u16 = 1;
    const INDIRECT: u16 = 4;
    let (mut driver, mut worker) = start();
    let [table, at] = [0x1000, 0x8000].map(|offset| FREE_MEMORY.start + offset);
    for count in [REQUEST_QUEUE_SIZE, REQUEST_QUEUE_SIZE + 1] {
        let len = 48 - 1 + u32::from(count);
        driver
            .memory
            .write_slice(&message(1, 8, &vec![7; len as usize - 40]), GuestAddress(at))
            .unwrap();
        for index in 0..count {
            // The header and eight bytes in the first one, a byte in each of the others.
            let (from, len) = if index == 0 { (at, 48) } else { (at + 47 + u64::from(index), 1) };
            let next = if index + 1 == count { 0 } else { NEXT };
            let descriptor = raw_descriptor(from, len, next, index + 1);
            driver
                .memory
                .write_slice(&descriptor, GuestAddress(table + 16 * u64::from(index)))
                .unwrap();
        }
        // Room for a reply is what a silent request does without.
        driver.memory.write_slice(&FORGET.to_le_bytes(), GuestAddress(at + 4)).unwrap();
        let queue = driver.queue(REQUESTS);
        queue.write_descriptor(0, table, 16 * u32::from(count), INDIRECT, 0);
        queue.publish(0);
        driver.kick(REQUESTS);
        driver.wait_used(REQUESTS);
        match count > REQUEST_QUEUE_SIZE {
            true => assert!(worker.nothing_to_read()),
            false => assert_eq!(worker.read().body, vec![7; len as usize - 40]),
        }
    }
}

#[test]
fn a_malformed_reply_ends_everything_with_eio() {
    // Length, error, offset to the unique that was asked, bytes that follow.
    for (len, error, offset, body) in [
        (15, 0, 0, 0),            // shorter than a header
        (u32::MAX, 0, 0, 0),      // longer than any message
        (16 + 65, 0, 0, 65),      // longer than the room for it
        (16, 5, 0, 0),            // an error that is none
        (16, -4096, 0, 0),        //
        (16, i32::MIN, 0, 0),     //
        (24, -5, 0, 8),           // an error with a body
        (16, 0, 1, 0),            // a request that was never made
        (16, 0, 1 << 32, 0),      // another generation
        (16, 0, u64::MAX / 2, 0), //
    ] {
        let (mut driver, mut worker) = start();
        for unique in 0..3 {
            post(&mut driver, 1, unique, b"n\0", &[16, 64]);
        }
        let asked = [worker.read(), worker.read(), worker.read()];
        let unique = asked[2].unique.wrapping_add(offset);
        worker.write(&reply(len, error, unique, &vec![0; body]));
        for _ in 0..3 {
            assert_eq!(error_of(&driver.wait_used(REQUESTS)), EIO, "{len} {error} {offset}");
        }
        post(&mut driver, 1, 9, b"n\0", &[16, 64]);
        assert_eq!(error_of(&driver.wait_used(REQUESTS)), EIO);
        assert_eq!(worker.0.read(&mut [0]).unwrap(), 0, "the worker is told");
        // Not even a reset brings it back, and the event loop does not spin.
        driver.initialise(1 << 32);
        post(&mut driver, 1, 9, b"n\0", &[16, 64]);
        assert_eq!(error_of(&driver.wait_used(REQUESTS)), EIO);
    }
}

#[test]
fn a_reply_is_good_once() {
    let (mut driver, mut worker) = start();
    post(&mut driver, 1, 1, b"n\0", &[16, 64]);
    let asked = worker.read();
    worker.answer(asked.unique, &[]);
    assert_eq!(driver.wait_used(REQUESTS).len, 16);
    post(&mut driver, 1, 2, b"n\0", &[16, 64]);
    worker.answer(asked.unique, &[]);
    assert_eq!(error_of(&driver.wait_used(REQUESTS)), EIO);
}

#[test]
fn a_corrupt_ring_silences_the_device_and_nothing_waits_for_it() {
    let (mut driver, mut worker) = start();
    driver.queue(REQUESTS).set_avail_index(REQUEST_QUEUE_SIZE + 1);
    driver.kick(REQUESTS);
    driver.run();
    assert!(worker.nothing_to_read());
}

#[test]
fn a_dead_worker_means_enotconn() {
    let (mut driver, mut worker) = start();
    post(&mut driver, 1, 1, b"n\0", &[16, 64]);
    post(&mut driver, READ, 2, &[0; 40], &[16, 5000]);
    worker.read();
    let asked = worker.read();
    // In the middle of a reply.
    worker.write(&reply(5016, 0, asked.unique, &[1; 100]));
    driver.run();
    drop(worker);
    for _ in 0..2 {
        assert_eq!(error_of(&driver.wait_used(REQUESTS)), ENOTCONN);
    }
    post(&mut driver, 1, 3, b"n\0", &[16, 64]);
    assert_eq!(error_of(&driver.wait_used(REQUESTS)), ENOTCONN);
    let bytes = message(FORGET, 9, &[3; 8]);
    driver.queue(HIPRIO).post(&[&bytes], &[]);
    driver.kick(HIPRIO);
    assert_eq!(driver.wait_used(HIPRIO).len, 0);
}

#[test]
fn late_replies_are_swallowed_after_a_reset() {
    let (mut driver, mut worker) = start();
    for unique in 0..3 {
        post(&mut driver, READ, unique, &[0; 40], &[16, 9000]);
    }
    let asked = [worker.read(), worker.read(), worker.read()];
    // One has begun to arrive when the guest's kernel starts anew.
    let replies: Vec<u8> =
        asked.iter().flat_map(|asked| reply(9016, 0, asked.unique, &[6; 9000])).collect();
    worker.write(&replies[..6000]);
    driver.run();
    let features = driver.offered_features();
    driver.initialise(features);
    let head = post(&mut driver, 1, 50, b"n\0", &[16, 64]);
    let fresh = worker.read();
    assert!(asked.iter().all(|asked| asked.unique != fresh.unique));
    worker.write(&replies[6000..]);
    driver.run();
    assert_eq!(driver.queue(REQUESTS).take_used(), None);
    worker.answer(fresh.unique, b"fresh");
    let used = driver.wait_used(REQUESTS);
    assert_eq!((used.head, &used.bytes[16..]), (head, &b"fresh"[..]));
    // There were three, and no more.
    post(&mut driver, 1, 51, b"n\0", &[16, 64]);
    worker.answer(asked[0].unique, &[]);
    assert_eq!(error_of(&driver.wait_used(REQUESTS)), EIO);
}

#[test]
fn a_request_cut_by_a_reset_is_finished() {
    let (mut driver, mut worker) = start();
    let data = vec![0x5a; 1_000_000];
    let bytes = message(WRITE, 1, &data);
    let parts: Vec<&[u8]> = bytes.chunks(120_000).collect();
    driver.queue(REQUESTS).post(&parts, &[16, 8]);
    driver.kick(REQUESTS);
    driver.run();
    let features = driver.offered_features();
    driver.initialise(features);
    // The guest uses its memory for something else.
    let buffers = driver.queue(REQUESTS).buffer(0);
    driver.memory.write_slice(&vec![0; 64 << 20], GuestAddress(buffers)).unwrap();
    post(&mut driver, 1, 2, b"n\0", &[16, 64]);
    let reader = thread::spawn(move || {
        let cut = worker.read();
        worker.answer(cut.unique, &[0; 8]);
        let fresh = worker.read();
        worker.answer(fresh.unique, &[]);
        (cut.body, fresh.body)
    });
    assert_eq!(driver.wait_used(REQUESTS).bytes, reply(16, 0, 2, &[]));
    let (cut, fresh) = reader.join().unwrap();
    assert_eq!(fresh, b"n\0");
    assert!(cut == data);
}

#[test]
fn a_guest_that_makes_one_chain_available_for_ever_is_bounded() {
    let (mut driver, mut worker) = start();
    let most: u16 = QUEUE_SIZES.iter().sum();
    let head = post(&mut driver, 1, 1, b"n\0", &[16, 64]);
    worker.read();
    for _ in 1..most {
        driver.queue(REQUESTS).publish(head);
        driver.kick(REQUESTS);
        driver.run();
        worker.read();
    }
    driver.queue(REQUESTS).publish(head);
    driver.kick(REQUESTS);
    assert_eq!(error_of(&driver.wait_used(REQUESTS)), EIO);
    assert!(worker.nothing_to_read());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Whatever chains the guest makes and whatever the worker answers: no panic, no hang, and
    /// nothing written outside the buffers given.
    #[test]
    fn random_chains_and_replies(
        chains in prop::collection::vec(
            prop::collection::vec((0u64..20, 0u32..9000, any::<u16>(), 0u16..40), 1..12), 1..20),
        headers in prop::collection::vec((0u32..100, 0u32..60, any::<u64>()), 20),
        replies in prop::collection::vec((prop_oneof![0u32..100, any::<u32>()], any::<bool>()), 0..30),
    ) {
        let (mut driver, mut worker) = start();
        worker.0.set_nonblocking(true).unwrap();
        let canary = [0xc7; 4096];
        driver.memory.write_slice(&canary, GuestAddress(0xf_0000)).unwrap();
        for (i, (len, opcode, unique)) in headers.iter().enumerate() {
            let mut bytes = message(*opcode, *unique, &[]);
            bytes[..4].copy_from_slice(&len.to_le_bytes());
            driver.memory.write_slice(&bytes, GuestAddress(0x1000 + 0x2000 * i as u64)).unwrap();
        }
        let mut replies = replies.into_iter();
        for chain in chains {
            let queue = driver.queue(REQUESTS);
            for (i, (slot, len, flags, next)) in (0..).zip(&chain) {
                // Readable, writable and chained, rarely indirect.
                let flags = if flags % 16 == 0 { flags & 7 } else { flags & 3 };
                queue.write_descriptor(i, 0x1000 + 0x2000 * slot, *len, flags, *next % 12);
            }
            queue.publish(0);
            driver.kick(REQUESTS);
            driver.run();
            let mut header = [0; 40];
            if worker.0.read(&mut header).is_ok_and(|len| len == 40)
                && let Some((len, right)) = replies.next()
            {
                let unique = u64::from_le_bytes(header[8..16].try_into().unwrap());
                let unique = if right { unique } else { unique ^ 1 };
                let len = if right { 16 } else { len };
                let _ = worker.0.write_all(&reply(len, 0, unique, &[]));
                driver.run();
            }
            while driver.queue(REQUESTS).take_used().is_some() {}
        }
        let mut after = [0; 4096];
        driver.memory.read_slice(&mut after, GuestAddress(0xf_0000)).unwrap();
        prop_assert_eq!(after, canary);
    }
}
