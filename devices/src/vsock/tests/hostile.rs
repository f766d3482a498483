//! Guests that lie.

use std::num::NonZeroU64;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::guest::*;
use crate::rate_limiter::{Rate, RateLimits};
use crate::testing::{FREE_MEMORY, raw_descriptor};
use crate::vsock::packet::{Header, Key, Op, SHUTDOWN_SEND};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

const KEY: Key = Key { guest_port: 1000, host_port: 5000 };

fn guest() -> (Guest, UnixListener) {
    let mut guest = Guest::new(Ends::default());
    guest.get_ready();
    let listener = UnixListener::bind(guest.path.with_file_name("vm_5000")).unwrap();
    (guest, listener)
}

/// The device still works.
#[track_caller]
fn check(guest: &mut Guest) {
    let mut packet = guest.next_after_request(Key { guest_port: 77_777, host_port: 5000 });
    while packet.header.dst_port != 77_777 {
        packet = guest.next();
    }
    assert_eq!(packet.op(), Op::Response);
}

#[test]
fn packets_of_no_connection_are_reset() {
    let (mut guest, _listener) = guest();
    for op in [Op::Response, Op::Shutdown, Op::Data, Op::CreditUpdate, Op::CreditRequest] {
        guest.send(KEY, op, 3);
        let reset = guest.expect(Op::Reset).header;
        assert_eq!((reset.src_port, reset.dst_port), (5000, 1000));
    }
    guest.send(KEY, Op::Reset, 0);
    guest.expect_silence();
}

#[test]
fn wrong_addresses_types_and_ops_are_reset_or_dropped() {
    let (mut guest, _listener) = guest();
    let request = guest.header(KEY, Op::Request);
    for (header, answered) in [
        (Header { src_cid: CID + 1, ..request }, false),
        (Header { src_cid: CID | 1 << 32, ..request }, false),
        (Header { dst_cid: 3, ..request }, true),
        (Header { dst_cid: u64::MAX, ..request }, true),
        (Header { kind: 2, ..request }, true),
        (Header { kind: 0, ..request }, true),
        (Header { op: 0, ..request }, true),
        (Header { op: 8, ..request }, true),
        (Header { op: 3, dst_cid: 9, ..request }, false),
    ] {
        guest.send_raw(&[&header.to_bytes()]);
        if answered {
            let reset = guest.expect(Op::Reset).header;
            assert_eq!(reset.src_cid, header.dst_cid);
            assert_eq!(reset.kind, header.kind);
        } else {
            guest.expect_silence();
        }
    }
    check(&mut guest);
}

#[test]
fn what_a_connection_does_not_allow_resets_it() {
    let (mut guest, _listener) = guest();
    type BreakBy<'a> = &'a dyn Fn(&mut Guest, Key);
    let break_by: [BreakBy; 6] = [
        &|guest, key| guest.send(key, Op::Request, 0),
        &|guest, key| guest.send(key, Op::Response, 0),
        &|guest, key| {
            let header = guest.header(key, Op::Data);
            guest.send_raw(&[&Header { op: 99, ..header }.to_bytes()]);
        },
        &|guest, key| {
            let header = guest.header(key, Op::Data);
            guest.send_raw(&[&Header { len: 10, ..header }.to_bytes(), b"short"]);
        },
        &|guest, key| {
            let header = guest.header(key, Op::Data);
            guest.send_raw(&[&Header { len: u32::MAX, ..header }.to_bytes(), b"short"]);
        },
        &|guest, key| {
            guest.send(key, Op::Shutdown, SHUTDOWN_SEND);
            guest.send_data(key, &[b"more"]);
        },
    ];
    for (port, break_by) in (0..).zip(break_by) {
        let key = guest.connect(port, 5000);
        break_by(&mut guest, key);
        guest.expect(Op::Reset);
        guest.expect_silence();
    }
    check(&mut guest);
}

#[test]
fn a_response_before_the_request_was_seen_is_refused() {
    let (mut guest, _listener) = guest();
    let (_client, key) = guest.client(1024);
    guest.send(key, Op::Data, 0);
    guest.expect(Op::Reset);
}

#[test]
fn bytes_beyond_the_header_s_length_are_ignored() {
    use std::io::Read;
    let (mut guest, listener) = guest();
    let key = guest.connect(1000, 5000);
    let header = Header { len: 3, ..guest.header(key, Op::Data) };
    guest.send_raw(&[&header.to_bytes(), b"abcdef"]);
    guest.send(key, Op::Shutdown, SHUTDOWN_SEND);
    guest.driver.run();
    let mut bytes = Vec::new();
    listener.accept().unwrap().0.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"abc");
}

#[test]
fn limits_hold_packets_back_and_let_them_go() {
    let [per_second, burst] = [100, 3].map(|number| NonZeroU64::new(number).unwrap());
    let operations = Some(Rate { per_second, burst });
    let limits = RateLimits { operations, bytes: None };
    let mut guest = Guest::new(Ends { limits, ..Ends::default() });
    let start = Instant::now();
    for _ in 0..10 {
        guest.send(KEY, Op::Data, 0);
    }
    for _ in 0..10 {
        guest.expect(Op::Reset);
    }
    // Three at once, seven at 10 ms each.
    assert!(start.elapsed() >= Duration::from_millis(69), "{:?}", start.elapsed());
    guest.expect_silence();
}

#[test]
fn replies_wait_for_buffers_and_are_bounded() {
    let (mut guest, _listener) = guest();
    guest.rx_buffers = 0;
    let mut answers = 0;
    for _ in 0..200 {
        for _ in 0..4 {
            guest.driver.queue(TX).post(&[&guest_header(Op::Data)], &[]);
        }
        guest.driver.kick(TX);
        guest.driver.run();
        while guest.driver.queue(TX).take_used().is_some() {
            answers += 1;
        }
        if guest.driver.queue(TX).outstanding() >= 100 {
            break;
        }
    }
    // 256 buffers of the start and as many replies as may wait; the rest stays in the queue.
    assert_eq!(answers, 256 + 64);
    let left = guest.driver.queue(TX).outstanding();
    guest.rx_buffers = 256;
    let mut resets = 0;
    while resets < answers + left {
        guest.expect(Op::Reset);
        resets += 1;
    }
    guest.expect_silence();
    check(&mut guest);
}

fn guest_header(op: Op) -> [u8; Header::LEN] {
    let header = Header { src_cid: CID, dst_cid: 2, kind: 1, op: op as u16, ..Header::default() };
    header.to_bytes()
}

#[test]
fn chains_that_hold_no_packet_are_given_back() {
    let (mut guest, _listener) = guest();
    let table = FREE_MEMORY.start;
    let nested = raw_descriptor(table, 16, INDIRECT, 0);
    guest.driver.memory.write_slice(&nested, GuestAddress(table)).unwrap();
    for (address, len, flags, next) in [
        (u64::MAX - 4, 64, 0, 0),
        (1 << 40, 64, 0, 0),
        (FREE_MEMORY.start, u32::MAX, 0, 0),
        (FREE_MEMORY.start, 43, 0, 0),
        (FREE_MEMORY.start, 0, 0, 0),
        (FREE_MEMORY.start, 64, WRITE, 0),
        (FREE_MEMORY.start, 1, NEXT, 9),
        (table, 16, INDIRECT, 0),
        (table, 15, INDIRECT, 0),
        (1 << 40, 16, INDIRECT, 0),
    ] {
        let queue = guest.driver.queue(TX);
        queue.write_descriptor(9, address, len, flags, next);
        queue.publish(9);
        guest.driver.kick(TX);
        let used = guest.driver.wait_used(TX);
        assert_eq!((used.head, used.len), (9, 0), "{address:#x} {len} {flags}");
    }
    guest.expect_silence();
    check(&mut guest);
}

#[test]
fn receive_buffers_that_hold_no_packet_are_given_back() {
    let (mut guest, _listener) = guest();
    guest.rx_buffers = 0;
    for _ in 0..256 {
        guest.send(KEY, Op::Data, 0);
        guest.driver.run();
        guest.expect(Op::Reset);
    }
    let queue = guest.driver.queue(RX);
    let short = queue.post(&[], &[43]);
    let readable = queue.post(&[&[0; 100]], &[]);
    queue.write_descriptor(200, 1 << 40, 4096, WRITE, 0);
    queue.publish(200);
    let good = queue.post(&[], &[20, 24]);
    guest.driver.kick(RX);
    guest.send(KEY, Op::Data, 0);
    guest.driver.run();
    for (head, len) in [(short, 0), (readable, 0), (200, 0), (good, 44)] {
        let used = guest.driver.queue(RX).take_used().unwrap();
        assert_eq!((used.head, used.len), (head, len));
    }
}

#[test]
fn a_corrupt_ring_is_left_alone_until_reset() {
    for queue in [RX, TX] {
        let (mut guest, _listener) = guest();
        guest.driver.queue(queue).set_avail_index(30_000);
        guest.driver.transport.lock().unwrap().queue_notifiers()[queue].write(1).unwrap();
        guest.driver.run();
        if queue == RX {
            guest.driver.queue(TX).post(&[&guest_header(Op::Data)], &[]);
            guest.driver.kick(TX);
            guest.driver.run();
        }
        guest.driver.initialise(1 << 32 | crate::virtio::mmio::EVENT_IDX);
        guest.refill();
        check(&mut guest);
    }
}

/// A step of a guest that follows no protocol.
#[derive(Clone, Debug)]
struct Step {
    op: u16,
    guest_port: u32,
    host_port: u32,
    flags: u32,
    len: u32,
    data: usize,
    buf_alloc: u32,
    fwd_cnt: u32,
}

fn step() -> impl Strategy<Value = Step> {
    let small = 0u32..3;
    let len = prop_oneof![8 => 0u32..2000, 1 => any::<u32>()];
    (0u16..9, small, 0u32..3, 0u32..5, len, 0usize..2000, any::<u32>(), any::<u32>()).prop_map(
        |(op, guest_port, host, flags, len, data, buf_alloc, fwd_cnt)| Step {
            op,
            guest_port,
            host_port: [5000, STDOUT, EXIT][host as usize],
            flags,
            len,
            data,
            buf_alloc,
            fwd_cnt,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// No packets panic or hang the device, and it serves the next guest process as before.
    #[test]
    fn any_packets_leave_the_device_working(
        steps in proptest::collection::vec((step(), any::<bool>()), 1..80),
    ) {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut guest = Guest::new(Ends { stdout: Some(writer.into()), ..Ends::default() });
        let listener = UnixListener::bind(guest.path.with_file_name("vm_5000")).unwrap();
        let mut programs = Vec::new();
        for (step, run) in steps {
            let key = Key { guest_port: step.guest_port, host_port: step.host_port };
            let header = Header {
                op: step.op,
                flags: step.flags,
                len: step.len,
                buf_alloc: step.buf_alloc,
                fwd_cnt: step.fwd_cnt,
                ..guest.header(key, Op::Data)
            };
            guest.send_raw(&[&header.to_bytes(), &vec![7; step.data]]);
            if run {
                guest.driver.run();
            }
            rustix::io::ioctl_fionbio(&listener, true).unwrap();
            programs.extend(listener.accept());
        }
        guest.driver.run();
        check(&mut guest);
        drop(reader);
    }

    /// No descriptors do either.
    #[test]
    fn any_descriptors_leave_the_device_working(
        descriptors in proptest::collection::vec(
            (prop_oneof![0u64..0x20_0000, any::<u64>()], any::<u32>(), 0u16..8, 0u16..20), 1..20,
        ),
        heads in proptest::collection::vec((0u16..20, any::<bool>()), 1..40),
    ) {
        let mut guest = Guest::with_rx_buffers(Ends::default(), 0);
        let _listener = UnixListener::bind(guest.path.with_file_name("vm_5000")).unwrap();
        for (index, (address, len, flags, next)) in (0..).zip(descriptors) {
            let len = len >> (address % 32);
            for queue in [RX, TX] {
                // The top of the table: the driver's own chains use the bottom.
                let queue = guest.driver.queue(queue);
                queue.write_descriptor(200 + index, address, len, flags, 200 + next);
            }
        }
        for (head, to_rx) in heads {
            if to_rx {
                guest.driver.queue(RX).publish(200 + head);
                guest.driver.kick(RX);
                guest.send(KEY, Op::Data, 0);
            } else {
                guest.driver.queue(TX).publish(200 + head);
                guest.driver.kick(TX);
            }
            guest.driver.run();
            while guest.driver.queue(TX).take_used().is_some() {}
        }
        // What was written through them may have hit the rings: a reset must be enough.
        guest.driver.initialise(1 << 32);
        guest.rx_buffers = 256;
        guest.restart();
        check(&mut guest);
    }
}
