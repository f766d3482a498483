use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use super::*;
use crate::rate_limiter::Rate;
use crate::testing::{Driver, FREE_MEMORY, raw_descriptor};
use vm_memory::{Bytes, GuestAddress};

const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const NEXT: u16 = 1;

fn driver() -> Driver {
    Driver::start(Box::new(Rng::new()))
}

#[test]
fn fills_every_buffer_of_a_request() {
    let mut driver = driver();
    let head = driver.queue(0).post(&[], &[64, 1, 300]);
    driver.kick(0);
    let used = driver.wait_used(0);
    assert_eq!((used.head, used.len), (head, 365));
    let zeros = used.bytes.iter().filter(|byte| **byte == 0).count();
    assert!(zeros < 40, "{zeros} of 365 random bytes are zero");
    assert_eq!(driver.interrupts.count(), 1);
    assert_eq!(driver.transport.lock().unwrap().interrupt().pending(), 1);
}

#[test]
fn one_interrupt_answers_a_batch() {
    let mut driver = driver();
    for _ in 0..QUEUE_SIZE_MAX {
        driver.queue(0).post(&[], &[8]);
    }
    driver.kick(0);
    driver.run();
    assert_eq!(driver.interrupts.count(), 1);
    for _ in 0..QUEUE_SIZE_MAX {
        assert_eq!(driver.wait_used(0).len, 8);
    }
    // The early stop at REQUESTS_MAX did not lose a later request.
    driver.queue(0).post(&[], &[8]);
    driver.kick(0);
    assert_eq!(driver.wait_used(0).len, 8);
}

#[test]
fn a_request_is_bounded() {
    let mut driver = driver();
    driver.queue(0).post(&[], &[100 << 10, 100 << 10]);
    driver.kick(0);
    assert_eq!(driver.wait_used(0).len as usize, REQUEST_BYTES_MAX);
}

#[test]
fn bad_chains_are_used_with_nothing_in_them() {
    let table = FREE_MEMORY.start;
    let nested = raw_descriptor(table, 32, INDIRECT, 0);
    // (address, len, flags, next) of descriptor 0, and what an indirect table holds.
    for (address, len, flags, next) in [
        (u64::MAX - 4, 64, WRITE, 0),     // wraps around
        (1 << 40, 64, WRITE, 0),          // outside of memory
        (FREE_MEMORY.start, 64, 0, 0),    // read-only
        (FREE_MEMORY.start, 0, WRITE, 0), // empty
        (table, 16, INDIRECT, 0),         // a table in a table
        (table, 17, INDIRECT, 0),         // half a descriptor
        (table, 0, INDIRECT, 0),          // an empty table
        (1 << 40, 16, INDIRECT, 0),       // a table outside of memory
    ] {
        let mut driver = driver();
        driver.memory.write_slice(&nested, GuestAddress(table)).unwrap();
        let queue = driver.queue(0);
        queue.write_descriptor(0, address, len, flags, next);
        queue.publish(0);
        driver.kick(0);
        let used = driver.wait_used(0);
        assert_eq!((used.head, used.len), (0, 0), "{address:#x} {len} {flags}");
    }
}

#[test]
fn a_loop_ends_at_the_queue_s_size() {
    let mut driver = driver();
    let queue = driver.queue(0);
    queue.write_descriptor(0, FREE_MEMORY.start, 64, WRITE | NEXT, 0);
    queue.publish(0);
    driver.kick(0);
    assert_eq!(driver.wait_used(0).len, 64 * u32::from(QUEUE_SIZE_MAX));
}

#[test]
fn an_indirect_table_longer_than_the_queue_is_refused() {
    let mut driver = driver();
    let table = FREE_MEMORY.start;
    for i in 0..=QUEUE_SIZE_MAX {
        let next = if i < QUEUE_SIZE_MAX { NEXT } else { 0 };
        let descriptor = raw_descriptor(table + 0x1000, 8, WRITE | next, i + 1);
        let at = GuestAddress(table + 16 * u64::from(i));
        driver.memory.write_slice(&descriptor, at).unwrap();
    }
    for (entries, len) in [(QUEUE_SIZE_MAX, 8 * u32::from(QUEUE_SIZE_MAX)), (QUEUE_SIZE_MAX + 1, 0)]
    {
        let queue = driver.queue(0);
        queue.write_descriptor(0, table, 16 * u32::from(entries), INDIRECT, 0);
        queue.publish(0);
        driver.kick(0);
        assert_eq!(driver.wait_used(0).len, len, "{entries} entries");
    }
}

#[test]
fn a_corrupt_ring_silences_the_device_until_reset() {
    let mut driver = driver();
    driver.queue(0).set_avail_index(500);
    driver.kick(0);
    driver.run();
    let mut driver = {
        driver.initialise(1 << 32);
        driver
    };
    driver.queue(0).post(&[], &[8]);
    driver.kick(0);
    assert_eq!(driver.wait_used(0).len, 8);

    // A head that is no descriptor.
    driver.queue(0).publish(999);
    driver.kick(0);
    driver.run();
    assert_eq!(driver.queue(0).take_used(), None);
}

#[test]
fn limits_hold_requests_back_and_let_them_go() {
    let number = |value| NonZeroU64::new(value).unwrap();
    let bytes = Some(Rate { per_second: number(6400), burst: number(128) });
    let limits = RateLimits { bytes, ..RateLimits::default() };
    let mut driver = Driver::start(Box::new(Rng::limited(&limits).unwrap()));
    let start = Instant::now();
    for _ in 0..10 {
        driver.queue(0).post(&[], &[64]);
    }
    driver.kick(0);
    for _ in 0..10 {
        assert_eq!(driver.wait_used(0).len, 64);
    }
    // Two at once and another on credit; seven of 64 bytes follow, the last as soon as there is one.
    assert!(start.elapsed() >= Duration::from_millis(60), "{:?}", start.elapsed());
}
