//! Attacks by what FUSE requests do to files.

use super::Attack;
use super::fuse::{Fs, ROOT, op, refused, sane};
use crate::fail;
use crate::io::Random;

const EROFS: u32 = 30;

pub const ATTACKS: &[Attack] = &[
    ("fuse_device_nodes", fuse_device_nodes),
    ("fuse_open_of_what_is_no_file", fuse_open_of_what_is_no_file),
    ("fuse_symlinks_out", fuse_symlinks_out),
    ("fuse_write_to_a_read_only_share", fuse_write_to_a_read_only_share),
    ("fuse_link_and_rename_across_shares", fuse_link_and_rename_across_shares),
    ("fuse_owner_and_mode_nonsense", fuse_owner_and_mode_nonsense),
    ("fuse_fallocate_everything", fuse_fallocate_everything),
    ("fuse_copy_onto_itself", fuse_copy_onto_itself),
    ("fuse_xattrs_of_other_kinds", fuse_xattrs_of_other_kinds),
];

fn fuse_device_nodes() {
    let mut fs = Fs::start();
    let share = fs.share();
    for kind in [0o020_000u32, 0o060_000] {
        for device in [0x103u32, 0x800, 0x801, u32::MAX] {
            let mode = (kind | 0o666).to_le_bytes();
            let parts: [&[u8]; 4] = [&mode, &device.to_le_bytes(), &[0; 8], b"node\0"];
            refused("a device node is made on the host", fs.call(op::MKNOD, share, &parts).errno);
        }
    }
    for kind in [0u32, 0o170_000, 0o150_000, 0o040_000, 0o120_000, u32::MAX] {
        fs.call(op::MKNOD, share, &[&kind.to_le_bytes(), &[0; 12], b"odd\0"]);
        fs.call(op::UNLINK, share, &[b"odd\0"]);
    }
    sane();
}

fn fuse_open_of_what_is_no_file() {
    let mut fs = Fs::start();
    let share = fs.share();
    fs.call(op::MKNOD, share, &[&0o010_666u32.to_le_bytes(), &[0; 12], b"fifo\0"]);
    fs.call(op::MKNOD, share, &[&0o140_666u32.to_le_bytes(), &[0; 12], b"socket\0"]);
    for name in [&b"fifo"[..], b"socket", b"dir", b"up", b"abs"] {
        let node = fs.lookup(share, name);
        for flags in [0, 1, 2, 0o100, 0o1_0000, 0o20_0000, 0o1000_0000, u32::MAX] {
            let (errno, _) = fs.open(op::OPEN, node, flags);
            refused("what is no file is opened as one", errno);
        }
    }
    for name in [&b"fifo\0"[..], b"socket\0"] {
        fs.call(op::UNLINK, share, &[name]);
    }
    sane();
}

fn fuse_symlinks_out() {
    let mut fs = Fs::start();
    let share = fs.share();
    for name in [&b"up"[..], b"abs"] {
        let link = fs.lookup(share, name);
        for target in [&b"secret\0"[..], b"etc\0", b"..\0"] {
            refused("a link is walked through", fs.call(op::LOOKUP, link, &[target]).errno);
        }
        refused("a link is a directory", fs.open(op::OPENDIR, link, 0).0);
        let create: [&[u8]; 4] = [&[2, 0, 0, 0], &0o644u32.to_le_bytes(), &[0; 8], b"planted\0"];
        refused("a file is made behind a link", fs.call(op::CREATE, link, &create).errno);
        let mut set = [0u8; 88];
        (set[0], set[68], set[69]) = (1, 0xff, 0x0f); // the mode
        fs.call(op::SETATTR, link, &[&set]);
        set[0] = 8; // the size
        refused("a link is truncated", fs.call(op::SETATTR, link, &[&set]).errno);
    }
    sane();
}

fn fuse_write_to_a_read_only_share() {
    let mut fs = Fs::start();
    let share = fs.lookup(ROOT, b"r");
    let file = fs.lookup(share, b"file");
    for flags in [1, 2, 0o1000, 0o1001, 0o2001] {
        refused("a read-only file is opened to write", fs.open(op::OPEN, file, flags).0);
    }
    let (_, handle) = fs.open(op::OPEN, file, 0);
    let body = [0u8; 40];
    let write: [&[u8]; 3] = [&handle.to_le_bytes(), &body[8..], b"x"];
    refused("a read-only handle is written to", fs.call(op::WRITE, file, &write).errno);
    let range: [&[u8]; 2] = [&handle.to_le_bytes(), &[1; 24]];
    refused("a read-only file grows", fs.call(op::FALLOCATE, file, &range).errno);
    for bit in 0..12 {
        let mut set = [0u8; 88];
        set[..4].copy_from_slice(&(1u32 << bit).to_le_bytes());
        let errno = fs.call(op::SETATTR, file, &[&set]).errno;
        refused("a read-only file's attributes change", errno);
    }
    let one: [u8; 4] = 0o100_755u32.to_le_bytes();
    let makes: [(u32, &[&[u8]]); 7] = [
        (op::MKDIR, &[&one, &[0; 4], b"new\0"]),
        (op::MKNOD, &[&one, &[0; 12], b"new\0"]),
        (op::SYMLINK, &[b"new\0target\0"]),
        (op::UNLINK, &[b"file\0"]),
        (op::CREATE, &[&[2, 0, 0, 0], &one, &[0; 8], b"new\0"]),
        (op::TMPFILE, &[&[2, 0, 0, 0], &one, &[0; 8], b"new\0"]),
        (op::SETXATTR, &[&[1, 0, 0, 0, 0, 0, 0, 0], b"user.x\0", b"1"]),
    ];
    for (opcode, parts) in makes {
        if fs.call(opcode, share, parts).errno != EROFS {
            fail("a read-only share is changed, or refused for another reason");
        }
    }
    sane();
}

fn fuse_link_and_rename_across_shares() {
    let mut fs = Fs::start();
    let (rw, ro) = (fs.share(), fs.lookup(ROOT, b"r"));
    let file = fs.lookup(ro, b"file");
    let linked = fs.call(op::LINK, rw, &[&file.to_le_bytes(), b"stolen\0"]);
    refused("a file of another share is linked", linked.errno);
    for (from, to) in [(rw, ro), (ro, rw), (ROOT, rw), (rw, ROOT), (ROOT, ROOT)] {
        let errno = fs.call(op::RENAME, from, &[&to.to_le_bytes(), b"file\0moved\0"]).errno;
        refused("a file moves between shares", errno);
        for flags in [0u32, 1, 2, 4, u32::MAX] {
            let parts: [&[u8]; 4] = [&to.to_le_bytes(), &flags.to_le_bytes(), &[0; 4], b"s\0r\0"];
            refused("shares change places", fs.call(op::RENAME2, from, &parts).errno);
        }
    }
    sane();
}

fn fuse_owner_and_mode_nonsense() {
    let mut fs = Fs::start();
    let share = fs.share();
    let mut random = Random(5);
    let made = fs.call(op::MKNOD, share, &[&0o100_644u32.to_le_bytes(), &[0; 12], b"own\0"]);
    let node = made.node();
    if node == 0 {
        fail("no file is made");
    }
    for _ in 0..300 {
        let mut set = [0u8; 88];
        set.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.next().to_le_bytes()));
        // Not the size: a sparse file of any size is no harm, but slow to check.
        set[0] &= !8;
        fs.call(op::SETATTR, node, &[&set]);
    }
    fs.call(op::UNLINK, share, &[b"own\0"]);
    sane();
}

fn fuse_fallocate_everything() {
    let mut fs = Fs::start();
    let share = fs.share();
    let file = fs.lookup(share, b"file");
    let (_, handle) = fs.open(op::OPEN, file, 2);
    for (offset, length) in [(0, u64::MAX), (u64::MAX, 1), (1 << 62, 1 << 62), (0, 1 << 62)] {
        for mode in [0u32, 1, 2, 3, 0x10, u32::MAX] {
            let parts: [&[u8]; 5] = [
                &handle.to_le_bytes(),
                &u64::to_le_bytes(offset),
                &u64::to_le_bytes(length),
                &mode.to_le_bytes(),
                &[0; 4],
            ];
            fs.call(op::FALLOCATE, file, &parts);
        }
    }
    sane();
}

fn fuse_copy_onto_itself() {
    let mut fs = Fs::start();
    let share = fs.share();
    let file = fs.lookup(share, b"file");
    let (_, handle) = fs.open(op::OPEN, file, 2);
    for offset in [0, 1, i64::MAX as u64, u64::MAX] {
        for len in [1, 1 << 20, u64::MAX] {
            let (handle, offset) = (handle.to_le_bytes(), u64::to_le_bytes(offset));
            let node = file.to_le_bytes();
            let parts: [&[u8]; 7] =
                [&handle, &offset, &node, &handle, &offset, &u64::to_le_bytes(len), &[0; 8]];
            fs.call(op::COPY_FILE_RANGE, file, &parts);
        }
    }
    sane();
}

fn fuse_xattrs_of_other_kinds() {
    let mut fs = Fs::start();
    let share = fs.share();
    let file = fs.lookup(share, b"file");
    for name in
        [&b"trusted.overlay.opaque\0"[..], b"security.selinux\0", b"system.posix_acl_access\0"]
    {
        let parts: [&[u8]; 3] = [&[4, 0, 0, 0, 0, 0, 0, 0], name, b"evil"];
        refused("an attribute of the host's own is set", fs.call(op::SETXATTR, file, &parts).errno);
        fs.call(op::GETXATTR, file, &[&[0xff; 8], name]);
        fs.call(op::REMOVEXATTR, file, &[name]);
    }
    for (size, flags) in [(u32::MAX, 0), (1 << 17, 0), (4, u32::MAX), (0, 3)] {
        let head = [u32::to_le_bytes(size), u32::to_le_bytes(flags)].concat_8();
        fs.call(op::SETXATTR, file, &[&head, b"user.big\0", b"evil"]);
    }
    sane();
}

trait Concat8 {
    fn concat_8(self) -> [u8; 8];
}

impl Concat8 for [[u8; 4]; 2] {
    fn concat_8(self) -> [u8; 8] {
        let [[a, b, c, d], [e, f, g, h]] = self;
        [a, b, c, d, e, f, g, h]
    }
}
