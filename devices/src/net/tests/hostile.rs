//! A driver that wants the host.

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::testing::{FREE_MEMORY, raw_descriptor};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// The device still does its work.
fn works(wire: &mut Wire) {
    wire.send(&[&frame(77, 60)]);
    wire.driver.run();
    let got: Vec<_> = std::iter::from_fn(|| wire.host_gets()).collect();
    assert_eq!(got, [frame(77, 60)], "nothing but the good frame reaches the host");
}

#[test]
fn frames_that_are_none_go_nowhere() {
    let mut wire = Wire::new();
    let (short, long) = (frame(1, 13), frame(1, 65_551));
    let header_only = &short[..12];
    let bad: [&[&[u8]]; 6] =
        [&[b""], &[&short[..11]], &[header_only], &[&short], &[&long], &[&short[..5], b"", b""]];
    for pieces in bad {
        let head = wire.send(pieces);
        let used = wire.used(TX);
        assert_eq!((used.len(), used[0].head, used[0].len), (1, head, 0));
    }
    works(&mut wire);
}

#[test]
fn writable_descriptors_are_nothing_to_send() {
    let mut wire = Wire::new();
    wire.driver.queue(TX).post(&[], &[100]);
    wire.driver.queue(TX).post(&[&frame(1, 5)], &[100, 1000]);
    wire.driver.kick(TX);
    assert!(wire.used(TX).iter().all(|used| used.len == 0 && used.bytes.is_empty()));
    works(&mut wire);
}

#[test]
fn a_frame_in_too_many_pieces_is_dropped() {
    let mut wire = Wire::new();
    let whole = frame(1, 200);
    let pieces: Vec<&[u8]> = whole.chunks(1).collect();
    wire.send(&pieces);
    assert_eq!(wire.used(TX).len(), 1);
    works(&mut wire);
}

/// Address, length, flags and next of descriptor 0.
fn bad_descriptors(flag: u16) -> Vec<(u64, u32, u16, u16)> {
    let table = FREE_MEMORY.start;
    vec![
        (u64::MAX - 4, 64, flag, 0),                // wraps around
        (1 << 40, 64, flag, 0),                     // outside of memory
        (FREE_MEMORY.start, u32::MAX, flag, 0),     // runs out of memory
        (FREE_MEMORY.start, 64, flag | NEXT, 0),    // a loop
        (FREE_MEMORY.start, 0, flag | NEXT, 0),     // a loop of nothing
        (FREE_MEMORY.start, 64, flag | NEXT, 9999), // leads out of the table
        (table, 16, INDIRECT, 0),                   // a table in a table
        (table, 17, INDIRECT, 0),                   // half a descriptor
        (1 << 40, 16, INDIRECT, 0),                 // a table outside of memory
    ]
}

#[test]
fn bad_chains_are_used_with_nothing_in_them() {
    for (queue, flag) in [(TX, 0), (RX, WRITE)] {
        for (address, len, flags, next) in bad_descriptors(flag) {
            let mut wire = Wire::new();
            let nested = raw_descriptor(FREE_MEMORY.start, 32, INDIRECT, 0);
            wire.driver.memory.write_slice(&nested, GuestAddress(FREE_MEMORY.start)).unwrap();
            wire.host_sends(&frame(1, 60));
            let ring = wire.driver.queue(queue);
            ring.write_descriptor(0, address, len, flags, next);
            ring.publish(0);
            wire.driver.kick(queue);
            let used = wire.used(queue);
            let what = format!("{queue}: {address:#x} {len} {flags} {next}");
            // Where the good part of a receive chain is large enough it waits for more like it.
            assert!(used.iter().all(|used| used.len == 0), "{what}: {used:?}");
            if queue == TX {
                assert_eq!(used.len(), 1, "{what}");
                works(&mut wire);
            }
        }
    }
}

#[test]
fn receive_buffers_that_hold_no_header_come_back_empty() {
    let mut wire = Wire::new();
    assert!(wire.host_sends(&frame(1, 60)));
    for (readable, writable) in [(&[b"x" as &[u8]][..], &[][..]), (&[], &[0]), (&[], &[5, 6])] {
        wire.driver.queue(RX).post(readable, writable);
        wire.driver.kick(RX);
        let used = wire.used(RX);
        assert_eq!((used.len(), used[0].len), (1, 0));
    }
    wire.post_receive(43, 1536);
    assert_eq!(wire.used(RX)[0].bytes, delivered(frame(1, 60), 1));
}

#[test]
fn a_ring_of_useless_buffers_comes_back_and_the_frame_stays() {
    let mut wire = Wire::new();
    assert!(wire.host_sends(&frame(1, 60)));
    for _ in 0..3 {
        wire.post_receive(256, 3);
        assert_eq!(wire.used(RX).len(), 256);
    }
    wire.post_receive(43, 1536);
    assert_eq!(wire.used(RX)[0].bytes, delivered(frame(1, 60), 1));
}

#[test]
fn an_index_that_jumps_silences_the_queue_until_reset() {
    for queue in [RX, TX] {
        let mut wire = Wire::new();
        assert!(wire.host_sends(&frame(1, 60)));
        wire.driver.queue(queue).set_avail_index(257);
        wire.driver.transport.lock().unwrap().queue_notifiers()[queue].write(1).unwrap();
        assert!(wire.used(queue).is_empty());
        let features = wire.driver.offered_features();
        wire.driver.initialise(features);
        works(&mut wire);
    }
}

#[test]
fn a_head_outside_of_the_ring_is_not_used() {
    for queue in [RX, TX] {
        let mut wire = Wire::new();
        assert!(wire.host_sends(&frame(1, 60)));
        wire.driver.queue(queue).publish(256);
        wire.driver.kick(queue);
        assert!(wire.used(queue).is_empty());
    }
}
