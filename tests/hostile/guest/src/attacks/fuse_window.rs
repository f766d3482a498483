//! Attacks on the DAX window: what is mapped there, and what is done with it then.

use super::Attack;
use super::fuse::{Fs, REPLY, REQUEST, ROOT, op, refused, sane};
use crate::fail;
use crate::io::{Random, get, put};
use crate::virtio::{NEXT, WRITE};

pub const ATTACKS: &[Attack] = &[
    ("window_mappings_of_nonsense", window_mappings_of_nonsense),
    ("window_read_and_written_everywhere", window_read_and_written_everywhere),
    ("window_storm", window_storm),
    ("window_as_buffers", window_as_buffers),
];

/// Where the window of a VM of less than 3 GiB begins, its length, and that of a mapping.
const WINDOW: u64 = 1 << 32;
const LEN: u64 = 64 << 20;
const SLOT: u64 = 2 << 20;
const READ: u64 = 2;

/// SETUPMAPPING of `[offset, len, flags, at]`.
fn set_up(fs: &mut Fs, node: u64, body: [u64; 4]) -> u32 {
    let body = body.map(u64::to_le_bytes);
    let parts: [&[u8]; 5] = [&[0xff; 8], &body[0], &body[1], &body[2], &body[3]];
    fs.call(op::SETUPMAPPING, node, &parts).errno
}

fn remove(fs: &mut Fs, count: u32, at: u64, len: u64) -> u32 {
    let parts: [&[u8]; 3] = [&count.to_le_bytes(), &at.to_le_bytes(), &len.to_le_bytes()];
    fs.call(op::REMOVEMAPPING, ROOT, &parts).errno
}

fn window_mappings_of_nonsense() {
    let mut fs = Fs::start();
    let share = fs.share();
    let file = fs.lookup(share, b"file");
    let odd = [1, 4096, SLOT - 1, SLOT + 4096, LEN, LEN - 4096, 1 << 62, 1 << 63, u64::MAX];
    for value in odd {
        refused("a mapping of an odd place is made", set_up(&mut fs, file, [0, SLOT, READ, value]));
        if value % SLOT != 0 || value > 1 << 62 {
            let errno = set_up(&mut fs, file, [value, SLOT, READ, 0]);
            refused("a mapping of an odd part is made", errno);
        }
        refused("a mapping of an odd length is made", set_up(&mut fs, file, [0, value, READ, 0]));
        refused("an odd place is emptied", remove(&mut fs, 1, value, SLOT));
        refused("more is removed than is named", remove(&mut fs, value as u32 | 2, 0, SLOT));
    }
    for name in [&b"dir"[..], b"up", b"abs"] {
        let node = fs.lookup(share, name);
        refused("what is no file is mapped", set_up(&mut fs, node, [0, SLOT, READ, 0]));
    }
    for node in [0, ROOT, share, file + 1000, u64::MAX] {
        refused("what is unknown is mapped", set_up(&mut fs, node, [0, SLOT, READ, 0]));
    }
    let other = fs.lookup(ROOT, b"r");
    for file in [file, fs.lookup(other, b"file")] {
        for flags in [1, 3, u64::MAX] {
            refused("a file is mapped to be written to", set_up(&mut fs, file, [0, SLOT, flags, 0]));
        }
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..500 {
        let body = [(); 4].map(|()| random.next() & [u64::MAX, LEN - 1, 7][random.next() as usize % 3]);
        set_up(&mut fs, [file, share, random.next()][random.next() as usize % 3], body);
        remove(&mut fs, random.next() as u32 & 3, body[0], body[1]);
    }
    sane();
}

fn window_read_and_written_everywhere() {
    let mut fs = Fs::start();
    let share = fs.share();
    let file = fs.lookup(share, b"file");
    for slot in 0..LEN / SLOT {
        // Most of them begin behind the file's end.
        if set_up(&mut fs, file, [slot / 2 * SLOT, SLOT, READ, slot * SLOT]) != 0 {
            fail("a file is not mapped");
        }
    }
    let first: u8 = get(WINDOW);
    for at in (0..LEN).step_by(SLOT as usize / 4) {
        put(WINDOW + at, 0xa5u8);
        let _: u64 = get(WINDOW + at);
        put(WINDOW + at + 4088, u64::MAX);
    }
    if first == 0 || get::<u8>(WINDOW) != first {
        fail("a mapped file is not what it was");
    }
    if get::<u8>(WINDOW + SLOT - 1) != 0 || remove(&mut fs, 1, 0, LEN) != 0 {
        fail("what is behind a file's end, or an empty window, is something");
    }
    for at in (0..LEN).step_by(SLOT as usize / 2) {
        put(WINDOW + at, 1u8);
        if get::<u8>(WINDOW + at) != 0 {
            fail("an empty window is written to");
        }
    }
    sane();
}

fn window_storm() {
    let mut fs = Fs::start();
    let share = fs.share();
    let file = fs.lookup(share, b"file");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..3000 {
        let at = random.next() % (LEN / SLOT) * SLOT;
        set_up(&mut fs, file, [0, SLOT, READ, at]);
        let _: u8 = get(WINDOW + at);
        if round % 3 == 0 {
            remove(&mut fs, 1, at, SLOT);
        }
        if round % 1000 == 0 {
            // With one under way.
            let words = [0, SLOT, READ, at].map(u64::to_le_bytes);
            let parts: [&[u8]; 5] = [&[0xff; 8], &words[0], &words[1], &words[2], &words[3]];
            fs.send_and_forget(op::SETUPMAPPING, file, &parts);
            fs = Fs::start();
            let share = fs.share();
            fs.lookup(share, b"file");
        }
    }
    sane();
}

fn window_as_buffers() {
    let mut fs = Fs::start();
    let share = fs.share();
    let file = fs.lookup(share, b"file");
    set_up(&mut fs, file, [0, SLOT, READ, 0]);
    let (_, handle) = fs.open(op::OPEN, file, 0);
    let (handle, size) = (handle.to_le_bytes(), 4096u32.to_le_bytes());
    for (request, reply) in [(REQUEST, WINDOW), (WINDOW, REPLY), (WINDOW + SLOT, WINDOW)] {
        let len = fs.write(REQUEST, op::READ, file, &[&handle, &[0; 8], &size, &[0; 20]]);
        fs.requests.describe(0, request, len, NEXT, 1);
        fs.requests.describe(1, reply, 8192, WRITE, 0);
        fs.requests.submit(0);
    }
    if get::<u8>(WINDOW) == 0 {
        fail("a device wrote to the window");
    }
    sane();
}
