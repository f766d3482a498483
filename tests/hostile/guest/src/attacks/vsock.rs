//! Attacks with vsock packets, and by what an agent that has changed sides says.

use super::Attack;
use crate::fail;
use crate::io::{get, pause, put, put_bytes, wait};
use crate::virtio::{BUFFERS, Device, NEXT, Queue, VSOCK, WRITE};

/// Where packets are made up.
pub const PACKET: u64 = BUFFERS;
const RX_BUFFERS: u64 = BUFFERS + 0x10_0000;
const RX_LEN: u32 = 4096;
const RX_COUNT: u16 = 32;

const OUR_CID: u64 = 3;
const HOST_CID: u64 = 2;
pub const REQUEST: u16 = 1;
pub const RESPONSE: u16 = 2;
pub const RST: u16 = 3;
const SHUTDOWN: u16 = 4;
pub const RW: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
pub const CREDIT_REQUEST: u16 = 7;

/// agent/protocol's host ports.
const STDIN: u32 = 10;
pub const STDOUT: u32 = 11;
const STDERR: u32 = 12;
/// A program of the host's, which limits.rs has listen.
pub const PROGRAM: u32 = 5000;
const EXIT: u32 = 14;

pub const ATTACKS: &[Attack] = &[
    ("vsock_packets_from_other_cids", vsock_packets_from_other_cids),
    ("vsock_packets_to_other_cids", vsock_packets_to_other_cids),
    ("vsock_every_op_and_type", vsock_every_op_and_type),
    ("vsock_lengths_that_lie", vsock_lengths_that_lie),
    ("vsock_packets_cut_short", vsock_packets_cut_short),
    ("vsock_connection_flood", vsock_connection_flood),
    ("vsock_ports_all_over", vsock_ports_all_over),
    ("vsock_data_without_a_connection", vsock_data_without_a_connection),
    ("vsock_credit_lies", vsock_credit_lies),
    ("vsock_credit_request_storm", vsock_credit_request_storm),
    ("vsock_beyond_its_credit", vsock_beyond_its_credit),
    ("vsock_half_closes", vsock_half_closes),
    ("vsock_never_reads", vsock_never_reads),
    ("vsock_responses_nobody_asked_for", vsock_responses_nobody_asked_for),
    ("vsock_event_queue_abuse", vsock_event_queue_abuse),
    ("vsock_streams_taken_twice", vsock_streams_taken_twice),
    ("vsock_stdout_flood", vsock_stdout_flood),
    ("exit_report_too_short", exit_report_too_short),
    ("exit_report_of_noise", exit_report_of_noise),
    ("exit_report_without_end", exit_report_without_end),
    ("exit_report_faked", exit_report_faked),
];

/// A vsock driver.
pub struct Guest {
    rx: Queue,
    pub tx: Queue,
    event: Queue,
    cid: u64,
    dst_cid: u64,
    kind: u16,
    buf_alloc: u32,
    fwd_cnt: u32,
    flags: u32,
    /// Packets read so far.
    seen: u16,
    /// Op and source port of the last of them.
    last: Option<(u16, u32)>,
    /// buf_alloc and fwd_cnt of the last of them.
    pub credit: (u32, u32),
}

impl Guest {
    /// Resets the device and offers receive buffers.
    pub fn start() -> Self {
        let guest = Self::deaf();
        for slot in 0..RX_COUNT {
            let at = RX_BUFFERS + u64::from(slot) * u64::from(RX_LEN);
            guest.rx.describe(slot, at, RX_LEN, WRITE, 0);
            guest.rx.offer(slot);
        }
        guest.rx.notify();
        guest
    }

    /// The same without receive buffers.
    fn deaf() -> Self {
        let device = Device::find(VSOCK);
        device.negotiate(0);
        let [rx, tx, event] =
            [(0, 64), (1, 64), (2, 8)].map(|(index, size)| device.queue(index, size).enable());
        device.ok();
        Self {
            rx,
            tx,
            event,
            cid: OUR_CID,
            dst_cid: HOST_CID,
            kind: 1,
            buf_alloc: 1 << 18,
            fwd_cnt: 0,
            flags: 0,
            seen: 0,
            last: None,
            credit: (0, 0),
        }
    }

    /// Sends a packet to host port `to` and waits until it was taken.
    pub fn send(&mut self, op: u16, from: u32, to: u32, data: &[u8]) -> bool {
        self.send_as(op, from, to, data, data.len() as u32)
    }

    /// The same with another length in its header.
    fn send_as(&mut self, op: u16, from: u32, to: u32, data: &[u8], len: u32) -> bool {
        self.header(PACKET, op, from, to, len);
        put_bytes(PACKET + 44, data);
        self.tx.describe(0, PACKET, 44, NEXT, 1);
        self.tx.describe(1, PACKET + 44, data.len() as u32, 0, 0);
        if data.is_empty() {
            self.tx.describe(0, PACKET, 44, 0, 0);
        }
        let before = self.tx.used_index();
        self.tx.offer(0);
        self.tx.notify();
        // The device takes no more while its answers find no room.
        wait(|| {
            self.recycle();
            self.tx.used_index() != before
        })
    }

    /// Writes a packet's header to `at`.
    pub fn header(&self, at: u64, op: u16, from: u32, to: u32, len: u32) {
        put(at, self.cid);
        put(at + 8, self.dst_cid);
        put(at + 16, from);
        put(at + 20, to);
        put(at + 24, len);
        put(at + 28, self.kind);
        put(at + 30, op);
        put(at + 32, self.flags);
        put(at + 36, self.buf_alloc);
        put(at + 40, self.fwd_cnt);
    }

    /// Gives used receive buffers back, and keeps what the last packet was.
    fn recycle(&mut self) {
        if self.seen == self.rx.used_index() {
            return;
        }
        while self.seen != self.rx.used_index() {
            let slot = u64::from(self.seen % self.rx.size);
            let head: u32 = get(self.rx.used + 4 + 8 * slot);
            let at = RX_BUFFERS + u64::from(head) * u64::from(RX_LEN);
            self.last = Some((get(at + 30), get(at + 16)));
            self.credit = (get(at + 36), get(at + 40));
            self.rx.offer(head as u16);
            self.seen = self.seen.wrapping_add(1);
        }
        self.rx.notify();
    }

    /// The last packet's op and source port.
    pub fn receive(&mut self) -> Option<(u16, u32)> {
        wait(|| {
            self.recycle();
            self.last.is_some()
        });
        self.last.take()
    }
}

/// The device, reset, still answers.
pub fn sane() {
    let mut guest = Guest::start();
    guest.send(REQUEST, 7777, 999_999, &[]);
    if guest.receive() != Some((RST, 999_999)) {
        fail("a connection to nobody is not refused");
    }
}

fn vsock_packets_from_other_cids() {
    let mut guest = Guest::start();
    for cid in [0, 1, 2, 4, 0xffff_ffff, 1 << 32 | OUR_CID, u64::MAX] {
        guest.cid = cid;
        guest.send(REQUEST, 1000, STDOUT, &[]);
        guest.send(RW, 1000, STDOUT, b"not ours\n");
        guest.send(RW, 1000, EXIT, &[0; 8]);
    }
    sane();
}

fn vsock_packets_to_other_cids() {
    let mut guest = Guest::start();
    for cid in [0, 1, 3, 4, 5, 0xffff_ffff, 1 << 32 | HOST_CID, u64::MAX] {
        guest.dst_cid = cid;
        guest.send(REQUEST, 1000, STDOUT, &[]);
        guest.send(RW, 1000, STDOUT, b"for another\n");
    }
    sane();
}

fn vsock_every_op_and_type() {
    let mut guest = Guest::start();
    for kind in [0, 1, 2, 3, u16::MAX] {
        for op in (0..16).chain([0x7fff, u16::MAX]) {
            guest.kind = kind;
            guest.send(op, 2000 + u32::from(op), 3000, &[]);
            guest.send(op, 2000 + u32::from(op), 3000, &[0; 100]);
        }
    }
    sane();
}

fn vsock_lengths_that_lie() {
    let mut guest = Guest::start();
    guest.send(REQUEST, 1000, STDOUT, &[]);
    for len in [0, 1, 99, 101, 1 << 16, (1 << 16) + 1, 1 << 31, u32::MAX] {
        guest.send_as(RW, 1000, STDOUT, &[b'.'; 100], len);
    }
    sane();
}

fn vsock_packets_cut_short() {
    let guest = Guest::start();
    for len in 0..44 {
        guest.tx.describe(0, PACKET, len, 0, 0);
        guest.tx.submit(0);
    }
    // A header in pieces of one byte.
    for i in 0..44u16 {
        let flags = if i < 43 { NEXT } else { 0 };
        guest.tx.describe(i, PACKET + u64::from(i), 1, flags, i + 1);
    }
    guest.tx.submit(0);
    // Writable where it should be readable.
    guest.tx.describe(0, PACKET, 44, WRITE, 0);
    guest.tx.submit(0);
    sane();
}

fn vsock_connection_flood() {
    let mut guest = Guest::start();
    for port in 0..400 {
        guest.send(REQUEST, 10_000 + port, 20_000 + port % 7, &[]);
    }
    sane();
}

fn vsock_ports_all_over() {
    let mut guest = Guest::start();
    for port in [0, 1, 1023, 1024, 1 << 16, 1 << 30, 1 << 31, u32::MAX - 1, u32::MAX] {
        guest.send(REQUEST, port, port, &[]);
        guest.send(RW, port, port, b"x");
        guest.send(SHUTDOWN, port, port, &[]);
    }
    sane();
}

fn vsock_data_without_a_connection() {
    let mut guest = Guest::start();
    for port in 0..200 {
        guest.send(RW, port, STDIN, &[0; 64]);
    }
    sane();
}

fn vsock_credit_lies() {
    let mut guest = Guest::start();
    guest.send(REQUEST, 1000, STDOUT, &[]);
    for (buf_alloc, fwd_cnt) in
        [(0, 0), (0, u32::MAX), (u32::MAX, 0), (u32::MAX, u32::MAX), (1, 1 << 31)]
    {
        (guest.buf_alloc, guest.fwd_cnt) = (buf_alloc, fwd_cnt);
        for op in [CREDIT_UPDATE, CREDIT_REQUEST, RW] {
            guest.send(op, 1000, STDOUT, b".");
        }
    }
    sane();
}

fn vsock_credit_request_storm() {
    let mut guest = Guest::start();
    guest.send(REQUEST, 1000, STDOUT, &[]);
    for _ in 0..300 {
        guest.send(CREDIT_REQUEST, 1000, STDOUT, &[]);
    }
    sane();
}

fn vsock_beyond_its_credit() {
    let mut guest = Guest::start();
    guest.send(REQUEST, 1000, STDOUT, &[]);
    for _ in 0..120 {
        // Zero bytes are as good as any; the runner counts them.
        guest.send(RW, 1000, STDOUT, &[b'.'; 4000]);
    }
    sane();
}

fn vsock_half_closes() {
    let mut guest = Guest::start();
    for (port, flags) in [(STDOUT, 1), (STDERR, 2), (STDIN, 3), (EXIT, 0), (77, u32::MAX)] {
        guest.send(REQUEST, 1000 + port, port, &[]);
        for _ in 0..3 {
            guest.flags = flags;
            guest.send(SHUTDOWN, 1000 + port, port, &[]);
            guest.send(RW, 1000 + port, port, b"\n");
        }
        guest.flags = 0;
        guest.send(RST, 1000 + port, port, &[]);
        guest.send(RW, 1000 + port, port, b"\n");
    }
    sane();
}

fn vsock_never_reads() {
    let guest = Guest::deaf();
    for port in 0..2_000u32 {
        // Each is owed an answer for which there is no buffer: the device must stop taking them.
        put(PACKET, OUR_CID);
        put(PACKET + 8, HOST_CID);
        put(PACKET + 16, port);
        put(PACKET + 20, 99_999u32);
        put(PACKET + 24, 0u32);
        put(PACKET + 28, 1u16);
        put(PACKET + 30, REQUEST);
        guest.tx.describe(0, PACKET, 44, 0, 0);
        guest.tx.offer(0);
        guest.tx.notify();
    }
    pause(2_000_000);
    sane();
}

fn vsock_responses_nobody_asked_for() {
    let mut guest = Guest::start();
    for port in 0..100 {
        guest.send(RESPONSE, 1024, (1 << 30) + port, &[]);
        guest.send(RW, 1024, (1 << 30) + port, &[0; 128]);
    }
    sane();
}

fn vsock_event_queue_abuse() {
    let guest = Guest::start();
    for (address, len) in [(BUFFERS, 0), (BUFFERS, 1), (u64::MAX, 16), (0xd000_0000, 8)] {
        guest.event.describe(0, address, len, WRITE, 0);
        guest.event.offer(0);
        guest.event.notify();
    }
    sane();
}

fn vsock_streams_taken_twice() {
    let mut guest = Guest::start();
    for port in [STDIN, STDOUT, STDERR, EXIT] {
        for again in 0..20 {
            guest.send(REQUEST, 100 + again, port, &[]);
        }
    }
    sane();
}

fn vsock_stdout_flood() {
    let mut guest = Guest::start();
    guest.send(REQUEST, 1000, STDOUT, &[]);
    let line = [b'f'; 4000];
    for round in 0..250 {
        guest.fwd_cnt = 0;
        if !guest.send(RW, 1000, STDOUT, &line) {
            crate::print_count("stopped after ", round);
            break;
        }
    }
    sane();
}

fn exit_report_too_short() {
    let mut guest = Guest::start();
    guest.send(REQUEST, 1000, EXIT, &[]);
    guest.send(RW, 1000, EXIT, &[0]);
    guest.flags = 3;
    guest.send(SHUTDOWN, 1000, EXIT, &[]);
    pause(1_000_000);
    sane();
}

fn exit_report_of_noise() {
    let mut guest = Guest::start();
    guest.send(REQUEST, 1000, EXIT, &[]);
    guest.send(RW, 1000, EXIT, &[0xee; 64]);
    pause(1_000_000);
    sane();
}

fn exit_report_without_end() {
    let mut guest = Guest::start();
    guest.send(REQUEST, 1000, EXIT, &[]);
    for _ in 0..60 {
        guest.send(RW, 1000, EXIT, &[0xee; 4000]);
    }
    sane();
}

/// agent/protocol's ExitReport with code 42: "BLHK", the code, no flags.
const FAKE_REPORT: [u8; 12] = [0x42, 0x4c, 0x48, 0x4b, 42, 0, 0, 0, 0, 0, 0, 0];

/// The report of an agent: what it says is the container's code, and no more than that.
fn exit_report_faked() {
    let mut guest = Guest::start();
    guest.send(REQUEST, 1000, EXIT, &[]);
    guest.send(RW, 1000, EXIT, &FAKE_REPORT);
    pause(50_000_000);
    fail("the report ends nothing");
}
