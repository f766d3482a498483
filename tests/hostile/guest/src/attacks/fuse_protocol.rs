//! Attacks on the FUSE protocol: headers, nodes, handles, sizes and numbers of requests.

use super::Attack;
use super::fuse::{Fs, INIT_BODY, REPLY, REQUEST, ROOT, op, refused, sane};
use crate::fail;
use crate::io::{Random, put, wait};
use crate::virtio::{NEXT, WRITE};

pub const ATTACKS: &[Attack] = &[
    ("fuse_every_opcode_with_nothing", fuse_every_opcode_with_nothing),
    ("fuse_every_opcode_with_noise", fuse_every_opcode_with_noise),
    ("fuse_headers_that_lie", fuse_headers_that_lie),
    ("fuse_no_room_for_a_reply", fuse_no_room_for_a_reply),
    ("fuse_requests_before_init", fuse_requests_before_init),
    ("fuse_bogus_nodes", fuse_bogus_nodes),
    ("fuse_bogus_handles", fuse_bogus_handles),
    ("fuse_forget_underflow", fuse_forget_underflow),
    ("fuse_batch_forget_lies", fuse_batch_forget_lies),
    ("fuse_lookup_flood", fuse_lookup_flood),
    ("fuse_open_flood", fuse_open_flood),
    ("fuse_inode_flood", fuse_inode_flood),
    ("fuse_readdir_at_any_offset", fuse_readdir_at_any_offset),
    ("fuse_reads_of_any_size", fuse_reads_of_any_size),
    ("fuse_writes_that_lie", fuse_writes_that_lie),
    ("fuse_pipelined_and_reset", fuse_pipelined_and_reset),
    ("fuse_init_again_and_again", fuse_init_again_and_again),
];

/// Opcodes whose answer ends a session or comes not at all.
fn is_quiet(opcode: u32) -> bool {
    matches!(opcode, 2 | 36 | 38 | 42)
}

fn fuse_every_opcode_with_nothing() {
    let mut fs = Fs::start();
    for opcode in (0..128).filter(|opcode| !is_quiet(*opcode)) {
        for node in [0, 1, 2] {
            let len = fs.write(REQUEST, opcode, node, &[]);
            fs.submit(len, 4096);
        }
    }
    for opcode in [4096, u32::MAX, 0x8000_0000] {
        fs.call(opcode, 1, &[]);
    }
    sane();
}

fn fuse_every_opcode_with_noise() {
    let mut random = Random(0xabad_1dea);
    let mut fs = Fs::start();
    let share = fs.share();
    let mut noise = [0u8; 256];
    for round in 0..1_500u32 {
        let opcode = random.next() as u32 % 54;
        for chunk in noise.chunks_exact_mut(8) {
            let value = random.next();
            chunk.copy_from_slice(&(if value & 3 == 0 { value } else { value % 8 }).to_le_bytes());
        }
        if is_quiet(opcode) {
            continue;
        }
        let node = if round % 3 == 0 { share } else { random.next() % 16 };
        let len = (random.next() % 256) as usize;
        fs.call(opcode, node, &[&noise[..len]]);
    }
    sane();
}

fn fuse_headers_that_lie() {
    for len in [0, 1, 39, 41, 4096, 1 << 20, (1 << 20) + 4096, 1 << 24, 1 << 31, u32::MAX] {
        let mut fs = Fs::start();
        fs.write(REQUEST, op::LOOKUP, ROOT, &[b"s\0"]);
        put(REQUEST, len);
        fs.submit(42, 4096);
    }
    let mut fs = Fs::start();
    for sent in [0, 1, 8, 39] {
        fs.write(REQUEST, op::LOOKUP, ROOT, &[b"s\0"]);
        fs.requests.describe(0, REQUEST, sent, NEXT, 1);
        fs.requests.describe(1, REPLY, 4096, WRITE, 0);
        fs.requests.submit(0);
    }
    sane();
}

fn fuse_no_room_for_a_reply() {
    let mut fs = Fs::start();
    for room in [0, 1, 15, 16, 17, 100] {
        let len = fs.write(REQUEST, op::LOOKUP, ROOT, &[b"s\0"]);
        fs.submit(len, room);
    }
    // No writable buffer at all, and only writable ones.
    let len = fs.write(REQUEST, op::LOOKUP, ROOT, &[b"s\0"]);
    let other = Fs::bare();
    other.requests.describe(0, REQUEST, len, 0, 0);
    other.requests.submit(0);
    other.requests.describe(0, REPLY, 4096, WRITE, 0);
    other.requests.submit(0);
    // A reply without room ends the file system of this guest, and its VM with it: no one else's loss.
    wait(|| false);
}

fn fuse_requests_before_init() {
    let mut fs = Fs::bare();
    fs.call(op::LOOKUP, ROOT, &[b"s\0"]);
    fs.call(op::READ, 2, &[&[0xff; 40]]);
    for (major, minor) in [(0, 0), (6, 99), (7, 0), (8, 0), (u8::MAX, u8::MAX)] {
        let mut body = INIT_BODY;
        (body[0], body[4]) = (major, minor);
        fs.call(op::INIT, 0, &[&body]);
    }
    sane();
}

fn fuse_bogus_nodes() {
    let mut fs = Fs::start();
    // The shares' roots are 2 and 3, for good.
    for node in [0, 4, 99, 1 << 32, 1 << 63, u64::MAX] {
        for opcode in (1..54).filter(|opcode| !is_quiet(*opcode) && *opcode != op::INIT) {
            let reply = fs.call(opcode, node, &[b"file\0", &[0; 128]]);
            if opcode == op::LOOKUP {
                refused("a node nobody looked up is known", reply.errno);
            }
        }
    }
    sane();
}

fn fuse_bogus_handles() {
    let mut fs = Fs::start();
    let share = fs.share();
    let file = fs.lookup(share, b"file");
    for handle in [0, 1, 2, 1 << 31, 1 << 63, u64::MAX] {
        for opcode in [15, 16, 18, 20, 25, 28, 29, 30, 43, 44, 46, 47] {
            let reply = fs.call(opcode, file, &[&handle.to_le_bytes(), &[0; 120]]);
            refused("a handle nobody opened is known", reply.errno);
        }
    }
    sane();
}

fn fuse_forget_underflow() {
    let mut fs = Fs::start();
    let share = fs.share();
    let file = fs.lookup(share, b"file");
    for node in [ROOT, share, file, file, 77, u64::MAX, 0] {
        for count in [1, 1000, u64::MAX] {
            let len = fs.write(REQUEST, op::FORGET, node, &[&count.to_le_bytes()]);
            fs.hiprio.describe(0, REQUEST, len, 0, 0);
            if !fs.hiprio.submit(0) {
                fail("FORGET is not taken");
            }
        }
    }
    refused("a forgotten node is known", fs.call(3, file, &[&[0; 16]]).errno);
    if fs.lookup(share, b"file") == 0 {
        fail("the share was forgotten");
    }
    sane();
}

fn fuse_batch_forget_lies() {
    let mut fs = Fs::start();
    for count in [0, 1, 2, 1000, u32::MAX] {
        let len =
            fs.write(REQUEST, op::BATCH_FORGET, 0, &[&count.to_le_bytes(), &[0; 4], &[1; 32]]);
        fs.hiprio.describe(0, REQUEST, len, 0, 0);
        fs.hiprio.submit(0);
    }
    sane();
}

fn fuse_lookup_flood() {
    let mut fs = Fs::start();
    let share = fs.share();
    let first = fs.lookup(share, b"file");
    for _ in 0..6_000 {
        if fs.lookup(share, b"file") != first {
            return fail("one file has two nodes");
        }
        refused("what is not there is found", fs.call(op::LOOKUP, share, &[b"none\0"]).errno);
    }
    sane();
}

fn fuse_open_flood() {
    let mut fs = Fs::start();
    let share = fs.share();
    let file = fs.lookup(share, b"file");
    let mut opened = 0;
    while opened < 6_000 && fs.open(op::OPEN, file, 0).0 == 0 {
        opened += 1;
    }
    crate::print_count("opened ", opened);
    sane();
}

fn fuse_inode_flood() {
    let mut fs = Fs::start();
    let share = fs.share();
    let mut made = 0;
    let mut name = *b"flood-00000\0";
    for number in 0..3_000u32 {
        for (i, place) in [10_000, 1_000, 100, 10, 1].into_iter().enumerate() {
            name[6 + i] = b'0' + (number / place % 10) as u8;
        }
        let mode = 0o100_644u32.to_le_bytes();
        if fs.call(op::MKNOD, share, &[&mode, &[0; 12], &name]).errno != 0 {
            break;
        }
        made += 1;
        // The node stays known; the name goes, so that nothing stays on the host's disk.
        fs.call(op::UNLINK, share, &[&name]);
    }
    crate::print_count("made ", made);
    if made == 0 {
        fail("no file is made");
    }
    sane();
}

fn fuse_readdir_at_any_offset() {
    let mut fs = Fs::start();
    let share = fs.share();
    for node in [ROOT, share] {
        let (_, handle) = fs.open(op::OPENDIR, node, 0);
        for opcode in [op::READDIR, op::READDIRPLUS] {
            for offset in [0, 1, 2, 3, 1000, 1 << 31, 1 << 32, i64::MAX as u64, 1 << 63, u64::MAX] {
                for size in [0, 1, 24, 25, 100, 4096, 1 << 20, u32::MAX] {
                    fs.read(opcode, node, handle, offset, size);
                }
            }
        }
    }
    sane();
}

fn fuse_reads_of_any_size() {
    let mut fs = Fs::start();
    let share = fs.share();
    let file = fs.lookup(share, b"file");
    let (_, handle) = fs.open(op::OPEN, file, 0);
    for size in [0, 1, 4096, 1 << 20, (1 << 20) + 1, 1 << 22, 1 << 31, u32::MAX] {
        for offset in [0, 1, 1 << 40, i64::MAX as u64, 1 << 63, u64::MAX] {
            fs.read(op::READ, file, handle, offset, size);
        }
    }
    sane();
}

fn fuse_writes_that_lie() {
    let mut fs = Fs::start();
    let share = fs.share();
    let file = fs.lookup(share, b"file");
    let (_, handle) = fs.open(op::OPEN, file, 2);
    for size in [0, 1, 5, 100, 1 << 20, u32::MAX] {
        for offset in [i64::MAX as u64, 1 << 63, u64::MAX, 0] {
            let (handle, offset) = (handle.to_le_bytes(), offset.to_le_bytes());
            let parts: [&[u8]; 5] = [&handle, &offset, &size.to_le_bytes(), &[0; 20], b"data!"];
            let reply = fs.call(op::WRITE, file, &parts);
            if size > 5 {
                refused("more is written than was sent", reply.errno);
            }
        }
    }
    sane();
}

fn fuse_pipelined_and_reset() {
    for _ in 0..60 {
        let mut fs = Fs::start();
        for slot in 0..30u16 {
            let at = REQUEST + 0x1000 * u64::from(slot);
            let len = fs.write(at, op::LOOKUP, ROOT, &[b"s\0"]);
            fs.requests.describe(2 * slot, at, len, NEXT, 2 * slot + 1);
            fs.requests.describe(2 * slot + 1, REPLY, 4096, WRITE, 0);
            fs.requests.offer(2 * slot);
        }
        fs.requests.notify();
        fs.requests.device.set(0x70, 0);
    }
    sane();
}

fn fuse_init_again_and_again() {
    let mut fs = Fs::start();
    for _ in 0..300 {
        let share = fs.share();
        fs.open(op::OPENDIR, share, 0);
        fs.call(op::INIT, 0, &[&INIT_BODY]);
        refused("a node outlives its session", fs.call(3, share + 50, &[&[0; 16]]).errno);
    }
    sane();
}
